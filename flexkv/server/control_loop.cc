// Clients come and go through five doors, all in this file: Admit (a hello in order), OnGoodbye,
// OnHangUp, OnExit, and Violate. What matters at each is the same question: may a thread of that
// process still copy into the arena? Until it said goodbye or died it may, so a worker with ops
// under way lingers without an engine until then; its ops' slots stay pinned, everything else it
// held is given back at once.
#include "flexkv/server/control_loop.h"

#include <immintrin.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/server/device_report.h"
#include "flexkv/server/log.h"
#include "proto/packet_socket.h"
#include "spdlog/spdlog.h"

#ifndef FLEXKV_VERSION
#define FLEXKV_VERSION "0"
#endif

namespace flexkv {
namespace {

constexpr int kMessagesPerTurn = 64;            // of one client, before the next one's turn
constexpr TimeNs kBusyTickNs = kNsPerMs;        // ticks while things happen
constexpr TimeNs kIdleTickNs = 100 * kNsPerMs;  // ticks while nothing does
constexpr TimeNs kStallLimitNs =
    2 * kNsPerSecond;  // a client that takes nothing for so long is dropped

}  // namespace

ControlLoop::ControlLoop(Options options, MemfdSegmentStore* segments, SsdTier* ssd,
                         int doorbell_fd, shm::Bell* doorbell)
    : options_(std::move(options)),
      segments_(segments),
      ssd_(ssd),
      doorbell_fd_(doorbell_fd),
      doorbell_(doorbell),
      mailbox_(doorbell),
      executor_(&clock_),
      transfers_({}, {&executor_}),
      manager_(options_.cache, ssd == nullptr ? segments : ssd->segments(), &transfers_,
               ssd == nullptr ? std::vector<SsdPort*>() : ssd->ports()),
      started_(clock_.Now()),
      last_client_(started_) {
  executor_.SetDirectory(this);
  if (options_.trace != nullptr) {
    recorder_ = std::make_unique<TraceRecorder>(options_.trace->recorder_options(), &manager_,
                                                &clock_, options_.trace);
  }
}

ControlLoop::~ControlLoop() { Stop(); }

void ControlLoop::Start(IoThread* io) {
  io_ = io;
  thread_ = std::thread([this] { Run(); });
}

void ControlLoop::Stop() {
  stopping_.store(true);
  shm::RingBell(doorbell_);
  if (thread_.joinable()) thread_.join();
  mailbox_.Close();
  io_ = nullptr;
}

// --- the loop -----------------------------------------------------------------------------------

void ControlLoop::Run() {
  prctl(PR_SET_NAME, "flexkvd-ctl");
  TimeNs last_work = 0;
  while (!stopping_.load(std::memory_order_relaxed)) {
    if (Round()) {
      last_work = clock_.Now();
      continue;
    }
    if (clock_.Now() - last_work < options_.spin_us * kNsPerUs) {
      _mm_pause();
      continue;
    }
    shm::SleepOnBell(doorbell_, SleepTime(), [this] { return HasWork() || stopping_.load(); });
  }
  if (recorder_ != nullptr) recorder_->Finish();
}

bool ControlLoop::Round() {
  now_ = clock_.Now();
  bool worked = mailbox_.RunAll();
  worked |= DrainRings();
  dirty_ |= worked;
  TickIfDue();
  if (worked) DeliverEvents();
  FlushClients();
  CheckIdleExit();
  return worked;
}

bool ControlLoop::HasRingWork() const {
  return std::any_of(clients_.begin(), clients_.end(),
                     [](const auto& entry) { return entry.second->Readable(); });
}

bool ControlLoop::HasWork() const {
  return mailbox_.Waiting() || HasRingWork() || executor_.HasResults() ||
         (ssd_ != nullptr && ssd_->HasResults());
}

TimeNs ControlLoop::SleepTime() const {
  const bool waiting_for_room = std::any_of(
      clients_.begin(), clients_.end(),
      [](const auto& entry) { return entry.second->backlogged() && !entry.second->muted(); });
  const TimeNs interval = dirty_ || waiting_for_room ? kBusyTickNs : kIdleTickNs;
  const TimeNs elapsed = clock_.Now() - last_tick_;
  return elapsed >= interval ? kNsPerUs : interval - elapsed;
}

bool ControlLoop::DrainRings() {
  bool worked = false;
  std::vector<ClientConnection*> gone;
  for (auto& [id, client] : clients_) {
    if (!client->Readable()) continue;
    worked |= DrainClient(client.get());
    if (client->muted() || (client->lingering && executor_.OpsOf(client.get()) == 0))
      gone.push_back(client.get());
  }
  for (ClientConnection* client : gone) Leave(client);
  return worked;
}

bool ControlLoop::DrainClient(ClientConnection* client) {
  bool worked = false;
  for (int i = 0; i < kMessagesPerTurn && client->Readable(); ++i) {
    const shm::PopResult result = client->Pop(&message_, &payload_);
    if (result == shm::PopResult::kEmpty) break;
    worked = true;
    if (result == shm::PopResult::kViolation) {
      Violate(client, "its ring is not in order");
      break;
    }
    if (absl::Status status = Handle(client); !status.ok()) {
      Violate(client, Words(status));
      break;
    }
  }
  return worked;
}

absl::Status ControlLoop::HandleWorkerMessage(ClientConnection* client) {
  switch (static_cast<shm::MessageType>(message_.type)) {
    case shm::MessageType::kOpDone:
      return executor_.OnOpDone(client, message_, payload_);
    case shm::MessageType::kWorkerReady:
      if (!payload_.empty()) return absl::InvalidArgumentError("a worker's ready has a payload");
      return client->engine == nullptr ? absl::OkStatus()
                                       : client->engine->OnWorkerReady(client, now_);
    case shm::MessageType::kDeviceReport:
      return HandleDeviceReport(client);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("message type ", message_.type, " is not a worker's"));
  }
}

absl::Status ControlLoop::HandleDeviceReport(ClientConnection* client) {
  absl::StatusOr<shm::DeviceReportBody> report = ParseDeviceReport(payload_);
  if (!report.ok()) return report.status();
  if (client->engine != nullptr) client->engine->OnDeviceReport(client, *report);
  return absl::OkStatus();
}

absl::Status ControlLoop::Handle(ClientConnection* client) {
  const auto type = static_cast<shm::MessageType>(message_.type);
  if (client->is_worker()) return HandleWorkerMessage(client);
  if (client->engine == nullptr) return absl::OkStatus();
  const EngineHandle handle = client->engine->handle();
  if (type != shm::MessageType::kLookup) {
    return HandleSchedulerMessage(&manager_, handle, message_, payload_, client->engine, now_,
                                  recorder_.get());
  }
  const TimeNs start = clock_.Now();
  absl::Status status = HandleSchedulerMessage(&manager_, handle, message_, payload_,
                                               client->engine, start, recorder_.get());
  match_latency_ns_.Record(clock_.Now() - start);
  return status;
}

void ControlLoop::TickIfDue() {
  const TimeNs interval = dirty_ ? kBusyTickNs : kIdleTickNs;
  const bool results = executor_.HasResults() || (ssd_ != nullptr && ssd_->HasResults());
  if (!results && now_ - last_tick_ < interval) return;
  last_tick_ = now_;
  bool ssd_results = false;
  if (ssd_ != nullptr) {
    ssd_results = ssd_->Collect();
    ssd_->Tick(now_);
  }
  executor_.SyncSegments();
  manager_.Tick(now_);
  if (recorder_ != nullptr) recorder_->Tick(now_);
  // Results of the SSD tier made room for what waits: that is looked at soon, not in 100 ms.
  dirty_ =
      executor_.TakeBlocked() || executor_.HasResults() || ssd_results || manager_.WantsTicks();
  DeliverEvents();
  if (!dirty_) ReportPages();
}

// Later segments may get other pages than the first ones: memory fragments.
void ControlLoop::ReportPages() {
  const PageKind kind = segments_->stats().page_kind;
  if (kind == PageKind::kUnknown || kind == pages_) return;
  pages_ = kind;
  if (kind == PageKind::k4KiB) {
    spdlog::warn("the CPU tier has 4 KiB pages: copies are slower (see use_hugetlb and use_thp)");
  } else {
    spdlog::info("the CPU tier has {} pages",
                 kind == PageKind::kHugetlb ? "2 MiB hugetlb" : "transparent huge");
  }
}

void ControlLoop::DeliverEvents() {
  events_.clear();
  manager_.TakeEvents(&events_);
  for (const ManagerEvent& event : events_) Deliver(event);
}

// Handle 0 is nobody's: an engine that is not complete has it too.
void ControlLoop::Deliver(const ManagerEvent& event) {
  if (recorder_ != nullptr) recorder_->OnEvent(event);
  if (event.engine == 0) {
    if (event.kind == ManagerEvent::Kind::kResetDone) FinishClear(event);
    return;
  }
  for (auto& [id, engine] : engines_) {
    if (engine->handle() == event.engine) engine->OnEvent(event, now_);
  }
}

void ControlLoop::FinishClear(const ManagerEvent& event) {
  auto clear = clears_.extract(event.key);
  if (clear.empty()) return;
  clear.mapped().outcome.noted = event.status == OpStatus::kOk;
  clear.mapped().done(clear.mapped().outcome);
}

void ControlLoop::FlushClients() {
  std::vector<ClientConnection*> stalled;
  for (auto& [id, client] : clients_) {
    if (client->muted()) continue;
    if (client->backlogged()) client->Flush(now_);
    if (client->Stalled(kStallLimitNs)) stalled.push_back(client.get());
  }
  for (ClientConnection* client : stalled) {
    Violate(client, "it took nothing from its ring or socket for 2 s");
    Leave(client);
  }
}

void ControlLoop::CheckIdleExit() {
  if (!clients_.empty()) last_client_ = now_;
  if (options_.idle_exit_s == 0 || idle_exit_told_ || !options_.on_idle_exit) return;
  if (now_ - last_client_ < options_.idle_exit_s * kNsPerSecond) return;
  idle_exit_told_ = true;
  spdlog::info("no client for {} s: exiting", options_.idle_exit_s);
  options_.on_idle_exit();
}

// --- clients come and go ------------------------------------------------------------------------

void ControlLoop::OnClient(NewClient client) {
  // std::function wants copyable closures; the client is moved out of its box once.
  auto box = std::make_shared<NewClient>(std::move(client));
  mailbox_.Post([this, box] { Admit(std::move(*box)); });
}

void ControlLoop::OnGoodbye(uint64_t client_id) {
  mailbox_.Post([this, client_id] {
    if (ClientConnection* client = Find(client_id)) Bury(client);
  });
}

void ControlLoop::OnExit(uint64_t client_id) { OnGoodbye(client_id); }

void ControlLoop::OnHangUp(uint64_t client_id) {
  mailbox_.Post([this, client_id] {
    if (ClientConnection* client = Find(client_id)) Leave(client);
  });
}

void ControlLoop::OnBadPacket(uint64_t client_id) {
  mailbox_.Post([this, client_id] {
    ClientConnection* client = Find(client_id);
    if (client == nullptr || client->muted()) return;
    Violate(client, "a packet that is no goodbye came after the handshake");
    Leave(client);
  });
}

ClientConnection* ControlLoop::Find(uint64_t client_id) {
  auto it = clients_.find(client_id);
  return it == clients_.end() ? nullptr : it->second.get();
}

absl::Status ControlLoop::Place(const ClientHello& hello, pid_t pid) {
  // The same process in the same place again: by contract a client attaches anew only after its
  // threads stopped copying for the old attachment, so what lingers of that one is over.
  for (auto client = clients_.begin(); client != clients_.end();) {
    ClientConnection* old = (client++)->second.get();
    const ClientHello& theirs = old->hello();
    if (old->lingering && old->pid() == pid && theirs.engine == hello.engine &&
        theirs.role == hello.role && theirs.rank == hello.rank) {
      Bury(old);
    }
  }
  auto engine = engines_.find(hello.engine);
  if (engine != engines_.end()) return engine->second->Admits(hello);
  if (engines_.size() < options_.max_engines) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("max_engines (", options_.max_engines, ") are attached"));
}

void ControlLoop::Admit(NewClient new_client) {
  const uint64_t id = new_client.link->client_id;
  auto client = std::make_unique<ClientConnection>(std::move(new_client));
  const ClientHello& hello = client->hello();
  if (absl::Status status = Place(hello, client->pid()); !status.ok()) {
    spdlog::warn("refused a client (pid {}): {}", client->pid(), Words(status));
    client->SendPacket(RejectPacket(Words(status)), {}).IgnoreError();
    io_->Forget(id);
    return;
  }
  if (absl::Status status =
          client->SendWelcome(options_.boot_id, doorbell_fd_, ToWire(options_.copy));
      !status.ok()) {
    io_->Forget(id);
    return;
  }
  std::unique_ptr<EngineConnection>& engine = engines_[hello.engine];
  if (engine == nullptr) engine = std::make_unique<EngineConnection>(hello, &manager_, &executor_);
  ClientConnection* raw = client.get();
  clients_.emplace(id, std::move(client));
  engine->Add(raw, now_);
}

void ControlLoop::Violate(ClientConnection* client, const std::string& reason) {
  ++clients_dropped_;
  spdlog::warn("dropped a {} (pid {}): {}", client->is_worker() ? "worker" : "scheduler",
               client->pid(), reason);
  client->Mute();
}

void ControlLoop::Leave(ClientConnection* client) {
  if (EngineConnection* engine = client->engine) {
    if (recorder_ != nullptr && engine->handle() != 0) recorder_->OnDetach(engine->handle(), now_);
    engine->Remove(client, now_);
    if (engine->Empty()) engines_.erase(client->hello().engine);
  }
  if (executor_.OpsOf(client) == 0) {
    executor_.RemoveWorker(client);
    Forget(client);
    return;
  }
  if (!std::exchange(client->lingering, true)) client->CloseSending();
}

void ControlLoop::Bury(ClientConnection* client) {
  // Ends that it reported before count; after them nothing does.
  while (client->is_worker() && client->Readable() && DrainClient(client)) {
  }
  executor_.RemoveWorker(client);
  Leave(client);
}

void ControlLoop::Forget(ClientConnection* client) {
  io_->Forget(client->id());
  clients_.erase(client->id());
}

// --- what the daemon tells about itself ---------------------------------------------------------

bool ControlLoop::SegmentsOf(EngineHandle engine, uint32_t rank, uint64_t* seen,
                             std::vector<SegmentId>* segments) const {
  return manager_.SegmentsOf(engine, rank, seen, segments);
}

uint32_t ControlLoop::Clear(const std::string& label, std::function<void(ClearOutcome)> done) {
  dirty_ = true;
  const uint64_t tag = next_clear_++;
  const uint32_t namespaces = manager_.ResetByLabel(label, tag, now_);
  if (recorder_ != nullptr) recorder_->OnReset(0, now_);
  clears_.emplace(tag, PendingClear{{.namespaces = namespaces}, std::move(done)});
  return namespaces;
}

TraceSnapshot ControlLoop::SnapshotOfTrace() const {
  if (recorder_ == nullptr) return {};
  return {.enabled = true,
          .path = options_.trace->path(),
          .writer = options_.trace->stats(),
          .open_records = recorder_->open(),
          .unfinished = recorder_->unfinished(),
          .skipped = recorder_->skipped()};
}

DaemonSnapshot ControlLoop::TakeSnapshot() {
  DaemonSnapshot snapshot;
  snapshot.version = FLEXKV_VERSION;
  snapshot.boot_id = options_.boot_id;
  snapshot.pid = getpid();
  snapshot.uptime_s = (now_ - started_) / kNsPerSecond;
  snapshot.clients = static_cast<uint32_t>(clients_.size());
  snapshot.clients_dropped = clients_dropped_;
  snapshot.clients_accepted = io_->counters().accepted.load();
  snapshot.clients_rejected = io_->counters().rejected.load();
  snapshot.clients_refused_uid = io_->counters().refused_uid.load();
  snapshot.handshakes_timed_out = io_->counters().timed_out.load();
  snapshot.cache = manager_.status();
  snapshot.memory = segments_->stats();
  if (ssd_ != nullptr) snapshot.ssd_devices = ssd_->Snapshot(now_);
  snapshot.match_latency_ns = match_latency_ns_.snapshot();
  snapshot.trace = SnapshotOfTrace();
  constexpr std::array<const char*, 2> kNames = {"device_to_cpu", "cpu_to_device"};
  for (size_t i = 0; i < kNames.size(); ++i) {
    const DeviceExecutor::RouteMetrics& metrics = executor_.metrics(static_cast<Route>(i));
    snapshot.routes[i] = {kNames[i],
                          metrics.ops.load(),
                          metrics.failed_ops.load(),
                          metrics.bytes.load(),
                          metrics.latency_ns.snapshot(),
                          metrics.copy_ns.snapshot()};
  }
  for (const auto& [id, engine] : engines_) {
    EngineSnapshot item;
    item.label = engine->label();
    item.ready = engine->handle() != 0;
    item.world_size = engine->world_size();
    item.ranks_present = engine->present_workers();
    item.tokens_per_block = engine->tokens_per_block();
    item.block_bytes = engine->block_bytes();
    item.attached_for_s = item.ready ? (now_ - engine->attached_at()) / kNsPerSecond : 0;
    item.scheduler_pid = engine->scheduler_pid();
    item.stats = engine->stats();
    item.devices = engine->devices();
    snapshot.engines.push_back(std::move(item));
  }
  return snapshot;
}

}  // namespace flexkv
