// Threads of a worker: the engine's own (all public methods), the link's (attaching), the pump's
// (ring <-> agent) and the agent's (copies). The pump's mutex orders the pump against the loss of a
// channel: once on_lost holds it, nothing of the old daemon reaches the agent, and no old result
// reaches the next daemon.
#include "flexkv/client/worker_session.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/thread_setup.h"
#include "flexkv/client/daemon_link.h"
#include "flexkv/client/device_wire.h"
#include "flexkv/client/plan_board.h"
#include "flexkv/client/step_plan.h"
#include "flexkv/transfer/cuda/cuda_agent.h"
#include "flexkv/transfer/cuda/cuda_library.h"

namespace flexkv {
namespace {

constexpr TimeNs kPumpSleepNs = 100 * kNsPerMs;
constexpr TimeNs kReportEveryNs = kNsPerSecond;
constexpr int kBoardWaitMs = 100;
constexpr int kMessagesPerTurn = 64;
constexpr uint32_t kMaxOpBlocks = shm::kMaxPayload / sizeof(shm::OpBlock);

struct PendingLoad {
  std::string request_id;
  TimeNs deadline = 0;
  uint64_t losses = 0;  // daemons lost before it was bound
  std::vector<uint32_t> block_ids;
  bool layerwise = false;
};

// Reduced mode: the engine holds the request's blocks until this is reported.
struct HeldStore {
  std::string request_id;
  TimeNs deadline = 0;
  uint64_t losses = 0;
};

class TableMapper : public SegmentMapper {
 public:
  explicit TableMapper(SegmentTable* table) : table_(table) {}
  std::span<std::byte> Map(SegmentId segment, TimeNs wait_ns) override {
    return table_->Find(segment, wait_ns);
  }

 private:
  SegmentTable* table_;
};

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeAgent(const WorkerOptions& options,
                                                       KvLayout layout, SegmentMapper* mapper,
                                                       std::function<void()> on_result) {
  if (options.device < 0) {
    return MakeHostAgent(options.agent, std::move(layout), mapper, std::move(on_result));
  }
  absl::StatusOr<std::unique_ptr<cuda::Api>> api = cuda::OpenLibrary(options.device);
  if (!api.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat("KV caches lie on a GPU, and FlexKV cannot use it: ", api.status().message()));
  }
  return MakeCudaAgent(options.agent, std::move(layout), mapper, *std::move(api),
                       options.copy_curve_path, std::move(on_result));
}

// False: a newer daemon's message, or nonsense.
bool IsOp(const shm::Message& message, size_t payload_bytes) {
  const bool refusal = message.type == static_cast<uint32_t>(shm::MessageType::kRefuseOp);
  if (!refusal && message.type != static_cast<uint32_t>(shm::MessageType::kOp)) return false;
  const auto most =
      static_cast<uint32_t>(refusal ? shm::PartFollows::kLast : shm::PartFollows::kMore);
  return message.status <= most && message.route < static_cast<uint32_t>(Route::kNumRoutes) &&
         message.count <= kMaxOpBlocks && payload_bytes == message.count * sizeof(shm::OpBlock);
}

DaemonHalf ToDaemonHalf(const shm::Message& message, std::span<const std::byte> payload,
                        uint64_t boot_id) {
  DaemonHalf half;
  half.boot_id = boot_id;
  half.key = message.op;
  half.route = static_cast<Route>(message.route);
  half.refused = message.type == static_cast<uint32_t>(shm::MessageType::kRefuseOp);
  half.part = message.first;
  half.more = message.status == static_cast<uint32_t>(shm::PartFollows::kMore);
  const size_t count = payload.size() / sizeof(shm::OpBlock);
  half.blocks.reserve(count);
  for (size_t i = 0; i < count; ++i) {
    shm::OpBlock block;
    std::memcpy(static_cast<void*>(&block), payload.data() + i * sizeof(block), sizeof(block));
    half.blocks.push_back({block.segment, block.engine_index, block.offset_bytes});
  }
  return half;
}

}  // namespace

struct WorkerSession::Impl {
  Options options;
  SteadyClock clock;
  SegmentTable segments;
  TableMapper mapper{&segments};
  std::unique_ptr<DeviceAgent> agent;

  std::mutex pump_mutex;                  // see the head of this file
  std::shared_ptr<Channel> pump_channel;  // guarded by pump_mutex
  std::vector<AgentResult> backlog;       // guarded by pump_mutex: results the ring had no room for
  std::condition_variable pump_wake;
  std::mutex bell_mutex;  // innermost: the agent calls OnResult with locks of its own held
  std::shared_ptr<Channel> bell_channel;  // guarded by bell_mutex
  bool stopping = false;                  // guarded by pump_mutex
  std::atomic<bool> results_waiting{false};
  std::atomic<bool> attached{false};
  std::atomic<uint64_t> losses{0};  // daemons lost so far
  shm::DeviceReportBody reported;   // link's thread only: what the daemon was told last
  TimeNs reported_at = 0;           // link's thread only
  std::thread pump;
  std::unique_ptr<DaemonLink> link;

  // Engine thread only.
  ParsedPlan plan;
  uint64_t fenced_plan = 0;
  uint64_t bound_plan = 0;
  std::unordered_map<OpKey, PendingLoad> loads;
  uint32_t layer_loads_under_way = 0;  // of them
  Report early;                        // loads that ended before the next Poll
  WorkerStats counters;

  // Reduced mode.
  std::unique_ptr<PlanBoardReader> board;            // engine thread only
  std::unordered_map<OpKey, HeldStore> held_stores;  // engine thread only
  std::mutex ended_mutex;                            // innermost
  std::vector<OpKey> ended_stores;                   // guarded by ended_mutex: seen by the pump

  void OnResult();
  void OnAttached(const std::shared_ptr<Channel>& channel);
  void OnLost();
  void OnIdle();
  void ReportDevice(Channel* channel);
  void RunPump();
  bool PumpOnce(Channel* channel);
  bool SendResults(Channel* channel);
  void NoteEndedStores(std::span<const AgentResult> results);

  bool Parse(std::span<const std::byte> bytes);
  void UseStream(uint64_t stream);
  void AwaitLayerEnds();
  void FenceParsed(const ParsedPlan& parsed);
  void SubmitOp(PlanOpView& view, bool is_attached, uint64_t losses_before);
  void EndLoad(OpKey key, PendingLoad load, bool failed, std::span<const uint32_t> failed_blocks,
               Report* report);
  void TakeAgentResults(Report* report);
  void GiveUpLoads(Report* report);
  void SubmitStore(EngineHalf half, std::string request_id, bool is_attached,
                   uint64_t losses_before);
  void ReportStores(Report* report);
};

void WorkerSession::Impl::OnResult() {
  results_waiting.store(true, std::memory_order_seq_cst);
  std::shared_ptr<Channel> channel;
  {
    std::lock_guard<std::mutex> lock(bell_mutex);
    channel = bell_channel;
  }
  if (channel != nullptr) channel->RingOwnBell();
}

void WorkerSession::Impl::OnAttached(const std::shared_ptr<Channel>& channel) {
  {
    std::lock_guard<std::mutex> lock(pump_mutex);
    agent->SetCopyOptions(channel->copy_options());
    agent->SetBootId(channel->boot_id());
    pump_channel = channel;
    attached.store(true, std::memory_order_release);
    // Only now may the daemon call the engine complete: an op whose engine half was turned away
    // here would wait for it in vain.
    shm::Message ready = shm::MakeMessage(shm::MessageType::kWorkerReady);
    channel->Push(ready);  // the ring is empty
    std::lock_guard<std::mutex> bell_lock(bell_mutex);
    bell_channel = channel;
  }
  pump_wake.notify_all();
  reported = shm::DeviceReportBody();
  ReportDevice(channel.get());
}

// Tells the daemon of the device when there is something new.
void WorkerSession::Impl::ReportDevice(Channel* channel) {
  reported_at = clock.Now();
  const shm::DeviceReportBody body = ToWire(agent->Report(), agent->stats());
  if (std::memcmp(&body, &reported, sizeof(body)) == 0) return;
  std::lock_guard<std::mutex> lock(pump_mutex);  // the ring has one producer
  if (channel->Push(shm::MakeMessage(shm::MessageType::kDeviceReport), shm::AsBytes(body))) {
    reported = body;
  }
}

void WorkerSession::Impl::OnIdle() {
  if (segments.HasRetired() && !agent->Busy()) segments.Sweep();
  if (clock.Now() - reported_at < kReportEveryNs) return;
  std::shared_ptr<Channel> channel;
  {
    std::lock_guard<std::mutex> lock(pump_mutex);
    channel = pump_channel;
  }
  if (channel != nullptr) ReportDevice(channel.get());
}

void WorkerSession::Impl::OnLost() {
  attached.store(false, std::memory_order_release);
  {
    std::lock_guard<std::mutex> lock(pump_mutex);
    pump_channel.reset();
    backlog.clear();
    std::lock_guard<std::mutex> bell_lock(bell_mutex);
    bell_channel.reset();
  }
  agent->SetBootId(0);
  while (agent->Busy()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  std::vector<AgentResult> dropped;
  agent->TakeDaemonResults(&dropped);
  segments.Clear();
  losses.fetch_add(1, std::memory_order_release);
}

void WorkerSession::Impl::RunPump() {
  SetUpThread("flexkv-pump");
  std::unique_lock<std::mutex> lock(pump_mutex);
  while (!stopping) {
    if (pump_channel == nullptr) {
      pump_wake.wait_for(lock, std::chrono::nanoseconds(kPumpSleepNs));
      continue;
    }
    const std::shared_ptr<Channel> channel = pump_channel;
    if (PumpOnce(channel.get())) continue;
    lock.unlock();
    shm::SleepOnBell(channel->bell(), backlog.empty() ? kPumpSleepNs : kNsPerMs, [&] {
      return channel->HasCompletion() || results_waiting.load(std::memory_order_seq_cst);
    });
    lock.lock();
  }
}

// REQUIRES: pump_mutex. True when there was work.
bool WorkerSession::Impl::PumpOnce(Channel* channel) {
  bool worked = false;
  shm::Message message;
  std::vector<std::byte> payload;
  for (int i = 0; i < kMessagesPerTurn; ++i) {
    const shm::PopResult result = channel->Pop(&message, &payload);
    if (result == shm::PopResult::kViolation) channel->MarkDead();
    if (result != shm::PopResult::kMessage) break;
    worked = true;
    if (!IsOp(message, payload.size())) continue;  // never acted upon
    agent->SubmitDaemonHalf(ToDaemonHalf(message, payload, channel->boot_id()));
  }
  return SendResults(channel) || worked;
}

// REQUIRES: pump_mutex. True when something was sent.
bool WorkerSession::Impl::SendResults(Channel* channel) {
  if (results_waiting.exchange(false, std::memory_order_seq_cst)) {
    const size_t before = backlog.size();
    agent->TakeDaemonResults(&backlog);
    if (options.reduced) NoteEndedStores(std::span(backlog).subspan(before));
  }
  size_t sent = 0;
  for (; sent < backlog.size(); ++sent) {
    const AgentResult& result = backlog[sent];
    shm::Message message = shm::MakeMessage(shm::MessageType::kOpDone);
    message.op = result.key;
    message.first = result.part;
    message.status = static_cast<uint32_t>(result.status);
    message.route = static_cast<uint32_t>(result.route);
    message.count = static_cast<uint32_t>(result.failed.size());
    message.lease = result.copy_ns;
    if (!channel->Push(message, std::as_bytes(std::span(result.failed)))) break;
  }
  backlog.erase(backlog.begin(), backlog.begin() + static_cast<ptrdiff_t>(sent));
  return sent > 0;
}

void WorkerSession::Impl::NoteEndedStores(std::span<const AgentResult> results) {
  std::lock_guard<std::mutex> lock(ended_mutex);
  for (const AgentResult& result : results) {
    if (result.route == Route::kDeviceToCpu) ended_stores.push_back(result.key);
  }
}

bool WorkerSession::Impl::Parse(std::span<const std::byte> bytes) {
  PlanHeader header;
  if (bytes.size() >= sizeof(header)) {
    std::memcpy(static_cast<void*>(&header), bytes.data(), sizeof(header));
    if (header.number == plan.number && plan.number != 0) return true;
  }
  if (ParsePlan(bytes, &plan).ok()) return true;
  plan = ParsedPlan{};
  ++counters.bad_plans;
  return false;
}

void WorkerSession::Impl::FenceParsed(const ParsedPlan& parsed) {
  if (parsed.number <= fenced_plan) return;
  fenced_plan = parsed.number;
  if (!parsed.fences.empty()) agent->FenceBlocks(parsed.fences);
}

// On CPU the copies of this step's layerwise loads are over; only the agent's thread has yet to say
// how they went. The engine must hear of a failure before it uses what the step computed.
void WorkerSession::Impl::AwaitLayerEnds() {
  const TimeNs deadline = clock.Now() + kNsPerSecond;
  while (true) {
    TakeAgentResults(&early);
    if (layer_loads_under_way == 0 || clock.Now() >= deadline) return;
    std::this_thread::sleep_for(std::chrono::microseconds(20));
  }
}

void WorkerSession::Impl::UseStream(uint64_t stream) {
  if (options.device >= 0) agent->SetComputeStream(stream);
}

// The one place where a load gets its report.
void WorkerSession::Impl::EndLoad(OpKey key, PendingLoad load, bool failed,
                                  std::span<const uint32_t> failed_blocks, Report* report) {
  if (failed) ++counters.loads_failed;
  std::vector<uint32_t>* blocks = &report->failed_block_ids;
  if (load.layerwise) {
    if (loads.contains(key)) --layer_loads_under_way;
    ++(failed ? counters.layer_loads_failed : counters.layer_loads);
    report->layer_loads.push_back({key, failed});
    blocks = &report->layer_failed_block_ids;
  } else {
    report->loads.push_back(std::move(load.request_id));
  }
  blocks->insert(blocks->end(), failed_blocks.begin(), failed_blocks.end());
}

void WorkerSession::Impl::SubmitOp(PlanOpView& view, bool is_attached, uint64_t losses_before) {
  EngineHalf half;
  half.key = view.op.key;
  half.route = static_cast<Route>(view.op.route);
  if (half.route != Route::kCpuToDevice) {
    half.block_ids = std::move(view.block_ids);
    SubmitStore(std::move(half), std::move(view.request_id), is_attached, losses_before);
    return;
  }
  half.block_ids = view.block_ids;
  half.layerwise = view.op.layerwise != 0;
  PendingLoad load{std::move(view.request_id), clock.Now() + options.load_timeout_ms * kNsPerMs,
                   losses_before, std::move(view.block_ids), half.layerwise};
  if (view.op.dead != 0 || !is_attached || !agent->SubmitEngineHalf(std::move(half)).ok()) {
    const std::vector<uint32_t> block_ids = load.block_ids;
    EndLoad(view.op.key, std::move(load), /*failed=*/true, block_ids, &early);
    return;
  }
  if (load.layerwise) ++layer_loads_under_way;
  loads.emplace(view.op.key, std::move(load));
}

void WorkerSession::Impl::SubmitStore(EngineHalf half, std::string request_id, bool is_attached,
                                      uint64_t losses_before) {
  const OpKey key = half.key;
  const bool taken = is_attached && agent->SubmitEngineHalf(std::move(half)).ok();
  if (!options.reduced) return;  // a store not taken is a future miss
  if (taken) {
    held_stores.emplace(
        key, HeldStore{std::move(request_id), clock.Now() + options.load_timeout_ms * kNsPerMs,
                       losses_before});
  } else {
    early.stores.push_back(std::move(request_id));
  }
}

// Stores that are over, too late, or of a lost daemon: nothing reads their blocks any more.
void WorkerSession::Impl::ReportStores(Report* report) {
  std::vector<OpKey> ended;
  {
    std::lock_guard<std::mutex> lock(ended_mutex);
    ended.swap(ended_stores);
  }
  for (OpKey key : ended) {
    auto it = held_stores.find(key);
    if (it == held_stores.end()) continue;
    report->stores.push_back(std::move(it->second.request_id));
    held_stores.erase(it);
  }
  if (held_stores.empty()) return;
  const TimeNs now = clock.Now();
  const uint64_t lost_now = losses.load(std::memory_order_acquire);
  for (auto it = held_stores.begin(); it != held_stores.end();) {
    const bool lost = it->second.losses != lost_now;
    if (!lost && now < it->second.deadline) {
      ++it;
      continue;
    }
    agent->Revoke(it->first);
    report->stores.push_back(std::move(it->second.request_id));
    it = held_stores.erase(it);
  }
}

void WorkerSession::Impl::TakeAgentResults(Report* report) {
  std::vector<AgentResult> results;
  agent->TakeEngineResults(&results);
  for (AgentResult& result : results) {
    auto it = loads.find(result.key);
    if (it == loads.end()) continue;  // revoked meanwhile: reported already
    EndLoad(result.key, std::move(it->second), result.status != OpStatus::kOk,
            result.failed_engine_blocks, report);
    loads.erase(it);
  }
}

// Revokes loads that are too old, and those whose daemon was lost.
void WorkerSession::Impl::GiveUpLoads(Report* report) {
  if (loads.empty()) return;
  const TimeNs now = clock.Now();
  const uint64_t lost_now = losses.load(std::memory_order_acquire);
  for (auto it = loads.begin(); it != loads.end();) {
    const bool lost = it->second.losses != lost_now;
    if (!lost && now < it->second.deadline) {
      ++it;
      continue;
    }
    agent->Revoke(it->first);
    if (!lost) ++counters.load_timeouts;
    const std::vector<uint32_t> block_ids = it->second.block_ids;
    EndLoad(it->first, std::move(it->second), /*failed=*/true, block_ids, report);
    it = loads.erase(it);
  }
}

WorkerSession::WorkerSession(std::unique_ptr<Impl> impl)
    : impl_(std::move(impl)), agent_(impl_->agent.get()) {}

absl::StatusOr<std::unique_ptr<WorkerSession>> WorkerSession::Open(const Options& options,
                                                                   KvLayout layout) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (options.world_size == 0 || options.rank >= options.world_size) {
    return absl::InvalidArgumentError("rank is not below world_size");
  }
  if (layout.descriptor.size() > shm::kMaxHelloText) {
    return absl::InvalidArgumentError("the layout descriptor is too long");
  }
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  Impl* raw = impl.get();

  DaemonLink::Options link;
  link.socket_path = options.socket_path;
  link.hello.role = static_cast<uint32_t>(shm::Role::kWorker);
  link.hello.rank = options.rank;
  link.hello.world_size = options.world_size;
  link.hello.tokens_per_block = layout.groups[0].tokens_per_block;
  link.hello.engine_id[0] = options.engine_id[0];
  link.hello.engine_id[1] = options.engine_id[1];
  link.hello.shard_bytes = layout.shard_bytes();
  link.hello.flags = options.replicated ? uint32_t{shm::kReplicated} : 0;
  link.text = layout.descriptor;
  link.segments = &impl->segments;
  link.on_attached = [raw](const std::shared_ptr<Channel>& channel) { raw->OnAttached(channel); };
  link.on_lost = [raw] { raw->OnLost(); };
  link.on_idle = [raw] { raw->OnIdle(); };

  absl::StatusOr<std::unique_ptr<DeviceAgent>> agent =
      MakeAgent(options, std::move(layout), &impl->mapper, [raw] { raw->OnResult(); });
  if (!agent.ok()) return agent.status();
  impl->agent = *std::move(agent);
  impl->segments.Notify(
      [raw](SegmentId segment, std::span<std::byte> memory) {
        raw->agent->SegmentMapped(segment, memory);
      },
      [raw](SegmentId segment) { raw->agent->SegmentGone(segment); });
  impl->pump = std::thread([raw] { raw->RunPump(); });
  impl->link = std::make_unique<DaemonLink>(std::move(link));
  return std::unique_ptr<WorkerSession>(new WorkerSession(std::move(impl)));
}

WorkerSession::~WorkerSession() {
  impl_->link.reset();  // quiesces the agent, then says goodbye
  {
    std::lock_guard<std::mutex> lock(impl_->pump_mutex);
    impl_->stopping = true;
  }
  impl_->pump_wake.notify_all();
  impl_->pump.join();
  impl_->agent.reset();
}

void WorkerSession::Fence(std::span<const std::byte> plan, uint64_t stream) {
  if (plan.empty() || !impl_->Parse(plan)) return;
  impl_->UseStream(stream);
  impl_->FenceParsed(impl_->plan);
}

void WorkerSession::Bind(std::span<const std::byte> plan, uint64_t stream) {
  if (!plan.empty() && impl_->Parse(plan)) Bind(&impl_->plan, stream);
}

void WorkerSession::Bind(ParsedPlan* plan, uint64_t stream) {
  impl_->UseStream(stream);
  impl_->FenceParsed(*plan);
  if (plan->number <= impl_->bound_plan) return;
  impl_->bound_plan = plan->number;
  const uint64_t losses_before = impl_->losses.load(std::memory_order_acquire);  // before attached
  const bool is_attached = impl_->attached.load(std::memory_order_acquire);
  for (PlanOpView& view : plan->ops) impl_->SubmitOp(view, is_attached, losses_before);
}

void WorkerSession::StepDone() {
  impl_->agent->StepDone();
  if (impl_->options.device < 0 && impl_->layer_loads_under_way > 0) impl_->AwaitLayerEnds();
}

void WorkerSession::StartLayerLoads() {
  impl_->agent->StartLayerLoads(impl_->options.layerwise_wait_ms * kNsPerMs);
}

void WorkerSession::TakeBoardPlans() {
  Impl& impl = *impl_;
  if (impl.board == nullptr) {
    absl::StatusOr<std::unique_ptr<PlanBoardReader>> board = PlanBoardReader::Open(
        impl.options.engine_id, impl.options.rank, impl.options.world_size, kBoardWaitMs);
    if (!board.ok()) return;  // the scheduler's half is not up yet: it has published nothing
    impl.board = *std::move(board);
  }
  std::vector<std::byte> plan;
  while (impl.board->Next(&plan)) Bind(plan);
  StepDone();
}

void WorkerSession::Poll(Report* report) {
  report->loads.clear();
  report->failed_block_ids.clear();
  report->stores.clear();
  report->layer_loads.clear();
  report->layer_failed_block_ids.clear();
  std::swap(*report, impl_->early);
  if (!impl_->loads.empty()) {
    impl_->TakeAgentResults(report);
    impl_->GiveUpLoads(report);
  }
  if (impl_->options.reduced) impl_->ReportStores(report);
  impl_->counters.loads_reported += report->loads.size();
}

WorkerStats WorkerSession::stats() const {
  WorkerStats stats = impl_->counters;
  stats.agent = impl_->agent->stats();
  stats.attached = impl_->attached.load(std::memory_order_acquire);
  const uint64_t attachments = impl_->link->attachments();
  stats.reattaches = attachments > 0 ? attachments - 1 : 0;
  return stats;
}

}  // namespace flexkv
