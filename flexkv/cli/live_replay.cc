#include "flexkv/cli/live_replay.h"

#include <algorithm>
#include <chrono>
#include <deque>
#include <numeric>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"

namespace flexkv::cli {
namespace {

using Clock = std::chrono::steady_clock;
using trace::RequestKind;
using trace::TraceRequest;

// Lookups that may still be followed by their puts.
constexpr size_t kOpenRequests = 256;
constexpr uint32_t kFirstBlock = kNullBlock + 1;

struct Asked {
  std::string id;
  uint32_t ns = 0;
  std::vector<uint64_t> blocks;
};

// Equal ids are equal prefixes: the last common position tells.
bool Continues(std::span<const uint64_t> a, std::span<const uint64_t> b) {
  const size_t common = std::min(a.size(), b.size());
  return common > 0 && a[common - 1] == b[common - 1];
}

}  // namespace

struct LiveReplay::Impl : HashSource {
  void AppendHashes(std::string_view /*id*/, uint32_t from,
                    std::vector<BlockHash>* hashes) override {
    for (size_t i = from; i < blocks.size(); ++i)
      hashes->push_back(BlockHash{{blocks[i], 0x666c65786b76, uint64_t{ns} + 1, 7}});
  }

  KvLayout Layout() {
    KvGroup group;
    group.num_blocks = options.max_request_blocks + kFirstBlock;
    group.tokens_per_block = options.tokens_per_block;
    LayerView view;
    view.base = reinterpret_cast<uintptr_t>(memory.data());
    view.block_stride_bytes = view.fragment_bytes = options.block_bytes;
    group.layers.push_back(view);
    return {{group}, "replay"};
  }

  std::span<const uint32_t> Ids(size_t count) const { return std::span(ids).first(count); }
  Clock::time_point Deadline() const {
    return Clock::now() + std::chrono::milliseconds(options.timeout_ms);
  }

  // What the scheduler's half decided goes to the worker's, as at the end of an engine's step.
  void EndStep() {
    const std::span<const std::byte> plan = scheduler->EndStep();
    if (plan.empty()) return;
    worker->Fence(plan);
    worker->Bind(plan);
    worker->StepDone();
  }

  absl::StatusOr<uint32_t> Ask(const std::string& id, uint32_t tokens) {
    for (const auto deadline = Deadline(); Clock::now() < deadline;) {
      const int64_t matched = scheduler->MatchedTokens(id, 0, tokens);
      if (matched == SchedulerSession::kAskAgain) continue;
      if (scheduler->stats().lookup_timeouts > 0) break;  // it counts as a miss from then on
      return static_cast<uint32_t>(matched);
    }
    return absl::DeadlineExceededError("the daemon does not answer a lookup");
  }

  // True: all of it arrived.
  absl::StatusOr<bool> Load(const std::string& id) {
    scheduler->BeginStep(0);
    EndStep();
    WorkerSession::Report report;
    for (const auto deadline = Deadline(); Clock::now() < deadline; Pause()) {
      worker->Poll(&report);
      if (report.loads.empty()) continue;
      scheduler->LoadEnded(id, !report.failed_block_ids.empty());
      return report.failed_block_ids.empty();
    }
    return absl::DeadlineExceededError("a load does not end");
  }

  absl::Status Store(const std::string& id, uint32_t tokens) {
    scheduler->BeginStep(tokens);
    scheduler->ScheduledNew(id, Ids(blocks.size()), 0, tokens);
    EndStep();
    for (const auto deadline = Deadline(); Clock::now() < deadline; Pause()) {
      scheduler->BeginStep(0);  // takes the daemon's answers
      EndStep();
      if (scheduler->stats().stores_under_way == 0) return absl::OkStatus();
    }
    return absl::DeadlineExceededError("a store does not end");
  }

  static void Pause() { std::this_thread::yield(); }

  void EndOldest() {
    scheduler->RequestFinished(open.front().id);
    open.pop_front();
  }

  LiveReplayOptions options;
  std::vector<std::byte> memory;
  std::vector<uint32_t> ids;
  std::unique_ptr<SchedulerSession> scheduler;
  std::unique_ptr<WorkerSession> worker;
  uint64_t next_id = 1;
  std::deque<Asked> open;
  // Of the request whose hashes are asked for.
  std::span<const uint64_t> blocks;
  uint32_t ns = 0;
};

LiveReplay::LiveReplay() : impl_(std::make_unique<Impl>()) {}
LiveReplay::~LiveReplay() = default;

absl::StatusOr<std::unique_ptr<LiveReplay>> LiveReplay::Open(const LiveReplayOptions& options) {
  if (options.tokens_per_block == 0 || options.block_bytes == 0 || options.max_request_blocks == 0)
    return absl::InvalidArgumentError("a live replay needs sizes of blocks and requests");
  std::unique_ptr<LiveReplay> replay(new LiveReplay);
  Impl& impl = *replay->impl_;
  impl.options = options;
  impl.memory.resize(size_t{options.block_bytes} * (options.max_request_blocks + kFirstBlock));
  impl.ids.resize(options.max_request_blocks);
  std::iota(impl.ids.begin(), impl.ids.end(), kFirstBlock);

  SchedulerOptions scheduler;
  scheduler.socket_path = options.socket_path;
  scheduler.tokens_per_block = options.tokens_per_block;
  scheduler.label = options.label;
  scheduler.fingerprint = absl::StrCat("replay ", options.run);
  scheduler.min_load_tokens = 0;
  scheduler.lookup_wait_us = 100000;
  scheduler.lookup_timeout_ms = options.timeout_ms;
  scheduler.load_timeout_ms = options.timeout_ms;
  WorkerOptions worker;
  worker.socket_path = options.socket_path;
  worker.load_timeout_ms = options.timeout_ms;
  const auto now = static_cast<uint64_t>(Clock::now().time_since_epoch().count());
  for (uint64_t* id : {scheduler.engine_id, worker.engine_id}) {
    id[0] = now;
    id[1] = options.run + 1;
  }
  absl::StatusOr<std::unique_ptr<SchedulerSession>> opened =
      SchedulerSession::Open(scheduler, &impl);
  if (!opened.ok()) return opened.status();
  impl.scheduler = *std::move(opened);
  absl::StatusOr<std::unique_ptr<WorkerSession>> at_worker =
      WorkerSession::Open(worker, impl.Layout());
  if (!at_worker.ok()) return at_worker.status();
  impl.worker = *std::move(at_worker);
  if (!impl.scheduler->WaitReady(options.timeout_ms)) {
    return absl::UnavailableError(
        absl::StrCat("no daemon on ", options.socket_path, " took this client in time"));
  }
  return replay;
}

void LiveReplay::Finish() {
  while (!impl_->open.empty()) impl_->EndOldest();
}

absl::Status LiveReplay::Run(const trace::RequestBatch& batch) {
  const Clock::time_point began = Clock::now();
  for (const TraceRequest& request : batch.requests) {
    if (request.num_blocks > 0 && request.tokens_per_block != impl_->options.tokens_per_block) {
      return absl::InvalidArgumentError("the requests have blocks of several sizes");
    }
    if (absl::Status status = RunOne(request, batch.BlocksOf(request)); !status.ok()) return status;
    if (impl_->options.between) impl_->options.between();
    if (impl_->options.progress) impl_->options.progress(result_.requests);
  }
  result_.seconds += std::chrono::duration<double>(Clock::now() - began).count();
  return absl::OkStatus();
}

absl::Status LiveReplay::RunOne(const TraceRequest& request, std::span<const uint64_t> blocks) {
  Impl& impl = *impl_;
  const uint32_t most = impl.options.max_request_blocks;
  if (blocks.size() > most) {
    ++result_.cut_requests;
    blocks = blocks.first(most);
  }
  impl.blocks = blocks;
  impl.ns = request.ns;
  const auto tokens = static_cast<uint32_t>(blocks.size() * impl.options.tokens_per_block);

  if (request.kind == RequestKind::kPut) {
    const auto asked = std::find_if(impl.open.rbegin(), impl.open.rend(), [&](const auto& open) {
      return open.ns == request.ns && Continues(open.blocks, blocks);
    });
    if (asked != impl.open.rend()) return Put(asked->id, tokens);
  }
  const std::string id = absl::StrCat(impl.next_id++);
  const uint32_t prompt =
      request.kind == RequestKind::kPut ? tokens : std::max(tokens, request.prompt_tokens);
  impl.scheduler->NewRequest(id, prompt, request.hint);
  if (request.kind != RequestKind::kPut) {
    if (absl::Status status = Get(id, prompt); !status.ok()) return status;
  }
  if (request.kind == RequestKind::kGet) {
    impl.open.push_back({id, request.ns, {blocks.begin(), blocks.end()}});
    if (impl.open.size() > kOpenRequests) impl.EndOldest();
    return absl::OkStatus();
  }
  const absl::Status status = Put(id, tokens);
  impl.scheduler->RequestFinished(id);
  return status;
}

absl::Status LiveReplay::Get(const std::string& id, uint32_t prompt_tokens) {
  Impl& impl = *impl_;
  const absl::StatusOr<uint32_t> hit = impl.Ask(id, prompt_tokens);
  if (!hit.ok()) return hit.status();
  ++result_.requests;
  result_.prompt_tokens += prompt_tokens;
  result_.hit_tokens += *hit;
  impl.scheduler->BlocksAllocated(id, impl.Ids(impl.blocks.size()), *hit);
  if (*hit == 0) return absl::OkStatus();
  const absl::StatusOr<bool> arrived = impl.Load(id);
  if (!arrived.ok()) return arrived.status();
  if (*arrived) {
    result_.loaded_tokens += *hit;
  } else {
    ++result_.failed_loads;
  }
  return absl::OkStatus();
}

absl::Status LiveReplay::Put(const std::string& id, uint32_t tokens) {
  if (tokens == 0) return absl::OkStatus();
  const uint64_t before = impl_->scheduler->stats().put_blocks;
  const absl::Status status = impl_->Store(id, tokens);
  result_.stored_blocks += impl_->scheduler->stats().put_blocks - before;
  return status;
}

}  // namespace flexkv::cli
