#include "flexkv/transfer/agent_core.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"

namespace flexkv::internal {

AgentCore::AgentCore(const Options& options, const KvLayout& layout, SegmentMapper* mapper,
                     std::unique_ptr<AgentDevice> device, std::function<void()> on_result)
    : options_(options),
      map_(layout),
      largest_chunk_bytes_(std::max(options.chunk_bytes, map_.largest_layer_bytes)),
      mapper_(mapper),
      device_(std::move(device)),
      copier_(device_->copier()),
      on_result_(std::move(on_result)),
      ended_(options.max_ops),
      fenced_(*std::max_element(map_.group_blocks.begin(), map_.group_blocks.end())),
      layers_ahead_(std::max(1u, options.copy.layers_ahead)) {
  // Signals are the engine's business: its handlers must not run on our thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

AgentCore::~AgentCore() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

// --- tables --------------------------------------------------------------------------------------

AgentOp* AgentCore::Find(OpKey key) const {
  auto it = ops_.find(key);
  return it == ops_.end() ? nullptr : it->second.get();
}

AgentOp* AgentCore::AddOp(OpKey key, Route route) {
  auto op = std::make_unique<AgentOp>();
  op->key = key;
  op->route = route;
  op->since = clock_.Now();
  return ops_.emplace(key, std::move(op)).first->second.get();
}

void AgentCore::MoveTo(OpList* list, AgentOp* op) {
  if (op->queue != nullptr) op->queue->erase(op->place);
  op->queue = list;
  if (list != nullptr) op->place = list->insert(list->end(), op);
}

void AgentCore::Match(AgentOp* op) {
  if (op->layerwise) {
    MoveTo(&layer_pending_, op);
    layer_half_came_.notify_all();
    return;
  }
  if (!op->is_load() && op->step >= steps_done_) {
    MoveTo(&unreleased_, op);  // StepDone wakes the thread
    return;
  }
  MoveTo(op->is_load() ? &loads_ : &stores_, op);
  work_.notify_one();
}

void AgentCore::TellDaemon(AgentResult result) {
  daemon_results_.push_back(std::move(result));
  tell_ = true;
  work_.notify_one();
}

// The present part of an op whose halves have met is answered.
void AgentCore::TellPart(AgentResult result) {
  --daemon_halves_;
  if (!FaultFires("agent.drop_done")) TellDaemon(std::move(result));
}

// No chunk of the op will be started any more; it ends now or with its last pin.
void AgentCore::Cancel(AgentOp* op) {
  if (op->pins == 0) {
    EndOp(op);
    return;
  }
  op->cancelled = true;
  MoveTo(nullptr, op);
}

// The op's halves are answered and it is gone. REQUIRES: no pins.
void AgentCore::EndOp(AgentOp* op) {
  const bool met = op->has_engine && op->has_daemon;
  bool failed = op->earlier_failed || !op->has_part;
  if (op->has_engine) {
    --engine_halves_;
    if (op->is_load() && op->engine_hears) engine_results_.push_back(op->EngineResult());
  }
  if (op->has_part) {
    AgentResult result = op->DaemonResult();
    failed |= result.status != OpStatus::kOk;
    if (met) {
      TellPart(std::move(result));
    } else {
      --daemon_halves_;
      TellDaemon(std::move(result));
    }
  }
  for (const DaemonHalf& half : op->later) {
    --daemon_halves_;
    TellDaemon(FailedResult(half));
  }
  if (met && op->engine_hears && failed) ++stats_.failed;
  if (op->layerwise) LeaveLayers(op, failed);
  MoveTo(nullptr, op);
  ops_.erase(op->key);
}

// The present part is over and not the last: it is answered, and the next one takes its place, now
// or when it comes.
void AgentCore::EndPart(AgentOp* op) {
  AgentResult result = op->DaemonResult();
  op->LeavePart(result);
  TellPart(std::move(result));
  if (op->later.empty()) {
    MoveTo(nullptr, op);
    return;
  }
  op->TakePart(std::move(op->later.front()));
  op->later.pop_front();
  MoveTo(&loads_, op);
}

// What comes next when a chunk or a check of the op is over.
void AgentCore::Settle(AgentOp* op) {
  if (op->pins > 0) return;
  const bool goes_on = op->usable && !op->cancelled;
  if (goes_on && !op->done()) return;
  if (!op->cancelled && !op->on_last_part()) {
    EndPart(op);
    return;
  }
  if (goes_on) ++(op->is_load() ? stats_.loads : stats_.stores);
  EndOp(op);
}

// No part will be taken any more. What is here is still copied.
void AgentCore::Close(AgentOp* op) {
  op->closed = true;
  if (!op->has_part) EndOp(op);
}

// A daemon half that never becomes part of an op: both sides hear of its end.
void AgentCore::EndWithout(const DaemonHalf& half) {
  ++stats_.refused;
  TellDaemon(FailedResult(half));
  if (AgentOp* op = Find(half.key); op != nullptr) {
    Close(op);
  } else {
    ended_.Add(half.key, EndedKeys::Why::kFailed);
  }
}

void AgentCore::FailEngineHalf(const EngineHalf& half) {
  if (half.route != Route::kCpuToDevice) return;
  engine_results_.push_back({.key = half.key,
                             .route = half.route,
                             .status = OpStatus::kFailed,
                             .failed_engine_blocks = half.block_ids});
  if (half.layerwise) ++stats_.layer_loads_failed;
}

// The engine half was not taken: its daemon half need not wait for it.
void AgentCore::RefuseEngineHalf(OpKey key) {
  AgentOp* op = Find(key);
  if (op != nullptr && op->has_engine) return;  // another half of that key was taken before
  ended_.Add(key, EndedKeys::Why::kFailed);
  if (op != nullptr) EndOp(op);
}

void AgentCore::EndOrphans(TimeNs now) {
  while (!orphans_.empty() && now - orphans_.front()->since >= options_.orphan_timeout_ns) {
    AgentOp* op = orphans_.front();
    ++stats_.orphans;
    ended_.Add(op->key, EndedKeys::Why::kFailed);
    EndOp(op);
  }
}

bool AgentCore::InRange(const EngineHalf& half) const {
  const size_t groups = map_.num_groups();
  if (half.block_ids.empty() || half.block_ids.size() % groups != 0) return false;
  const size_t of_group = half.block_ids.size() / groups;
  for (size_t at = 0; at < half.block_ids.size(); ++at) {
    if (half.block_ids[at] >= map_.group_blocks[at / of_group]) return false;
  }
  return true;
}

// --- calls from outside --------------------------------------------------------------------------

void AgentCore::SetBootId(uint64_t boot_id) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (boot_id == boot_id_) return;
  boot_id_ = boot_id;
  // Loads that the engine has begun to compute with are brought to their end.
  if (!layer_step_.ops.empty()) {
    layer_step_.left_to_thread = true;
    work_.notify_one();
  }
  std::vector<AgentOp*> old;
  for (const auto& [key, op] : ops_) {
    if (!op->layers_begun) old.push_back(op.get());
  }
  for (AgentOp* op : old) Cancel(op);
  ended_.Clear();
}

absl::Status AgentCore::SubmitEngineHalf(EngineHalf half) {
  if (half.key == 0 || half.route >= Route::kNumRoutes) {
    return absl::InvalidArgumentError("an engine half without key or with an unknown route");
  }
  const bool in_range = InRange(half);
  const ComputeMark mark = half.route == Route::kCpuToDevice ? LoadMark() : 0;
  std::lock_guard<std::mutex> lock(mutex_);
  AgentOp* op = Find(half.key);
  if (op != nullptr && op->has_engine) {
    return absl::InvalidArgumentError(absl::StrCat("op ", half.key, " has an engine half already"));
  }
  if (!in_range) {
    RefuseEngineHalf(half.key);
    return absl::InvalidArgumentError(
        absl::StrCat("block ids of op ", half.key, " are out of range"));
  }
  if (const EndedKeys::Why* why = ended_.Find(half.key); why != nullptr || boot_id_ == 0) {
    if (why == nullptr || *why == EndedKeys::Why::kFailed) FailEngineHalf(half);
    return absl::OkStatus();
  }
  if (engine_halves_ >= options_.max_ops) {
    RefuseEngineHalf(half.key);
    return absl::ResourceExhaustedError("too many ops");
  }
  if (op != nullptr && op->route != half.route) {
    RefuseEngineHalf(half.key);
    FailEngineHalf(half);
    return absl::OkStatus();
  }
  TakeEngineHalf(op, std::move(half), mark);
  return absl::OkStatus();
}

// `op` is null when its daemon half is not here.
void AgentCore::TakeEngineHalf(AgentOp* op, EngineHalf half, ComputeMark mark) {
  const bool met = op != nullptr;
  if (!met) op = AddOp(half.key, half.route);
  op->SetBlocks(std::move(half.block_ids), map_.num_groups());
  op->layerwise = half.layerwise && op->is_load();
  op->mark = mark;
  op->step = steps_done_;
  ++engine_halves_;
  if (!op->is_load()) ++stores_in_step_;
  if (met) {
    Match(op);
  } else if (op->layerwise) {
    MoveTo(&layer_pending_, op);
  } else if (!op->is_load()) {
    // A load's end is awaited (and revoked when too late) by the engine; a store's by nobody.
    MoveTo(&orphans_, op);
  }
}

// Is it what the daemon owes `op` (null: of a key not seen yet) next?
bool AgentCore::IsNext(const AgentOp* op, const DaemonHalf& half) {
  if (half.more && half.blocks.empty()) return false;
  if (half.route == Route::kDeviceToCpu && (half.more || half.part != 0)) return false;
  if (op == nullptr) return half.part == 0;
  return !op->closed && !op->cancelled && op->route == half.route && op->next_part == half.part;
}

void AgentCore::SubmitDaemonHalf(DaemonHalf half) {
  std::lock_guard<std::mutex> lock(mutex_);
  const bool foreign = boot_id_ == 0 || half.boot_id != boot_id_;
  if (foreign || half.key == 0 || half.route >= Route::kNumRoutes ||
      ended_.Find(half.key) != nullptr) {
    ++stats_.refused;
    TellDaemon(FailedResult(half));
    return;
  }
  AgentOp* op = Find(half.key);
  if (half.refused || daemon_halves_ >= options_.max_ops || !IsNext(op, half)) {
    EndWithout(half);
    return;
  }
  if (op == nullptr) op = AddOp(half.key, half.route);
  op->has_daemon = true;
  op->closed = !half.more;
  ++op->next_part;
  ++daemon_halves_;
  if (op->has_part) {
    op->later.push_back(std::move(half));
    return;
  }
  op->TakePart(std::move(half));
  if (op->has_engine) {
    Match(op);
  } else {
    MoveTo(&orphans_, op);
  }
}

void AgentCore::StepDone() {
  if (layer_step_open_.load(std::memory_order_relaxed)) WaitForLayer(UINT32_MAX);
  load_mark_.store(kNoMark, std::memory_order_relaxed);
  std::unique_lock<std::mutex> lock(mutex_);
  if (!layer_pending_.empty()) FailLayerLoads();
  if (stores_in_step_ > 0) {
    lock.unlock();
    const ComputeMark mark = copier_->Mark();
    lock.lock();
    step_marks_[steps_done_ % step_marks_.size()] = mark;
    stores_in_step_ = 0;
  }
  ++steps_done_;
  if (unreleased_.empty()) return;
  while (!unreleased_.empty()) MoveTo(&stores_, unreleased_.front());
  work_.notify_one();
}

void AgentCore::SetComputeStream(uint64_t stream) {
  load_mark_.store(kNoMark, std::memory_order_relaxed);
  copier_->SetComputeStream(stream);
}

void AgentCore::Revoke(OpKey key) {
  std::unique_lock<std::mutex> lock(mutex_);
  std::erase_if(engine_results_, [key](const AgentResult& result) { return result.key == key; });
  AgentOp* op = Find(key);
  if (op == nullptr) {
    ended_.Add(key, EndedKeys::Why::kRevoked);
    return;
  }
  ++stats_.revoked;
  op->engine_hears = false;
  if (!op->has_engine || !op->has_daemon) ended_.Add(key, EndedKeys::Why::kRevoked);
  std::vector<ChunkTicket> tickets;
  for (const auto& [ticket, chunk] : chunks_) {
    if (std::ranges::find(chunk.ops, op) != chunk.ops.end()) tickets.push_back(ticket);
  }
  Cancel(op);
  HoldChunks(std::move(tickets), lock);
}

void AgentCore::FenceBlocks(std::span<const uint32_t> block_ids) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (const uint32_t id : block_ids) {
    if (id < fenced_.size()) fenced_[id] = true;
  }
  for (const auto& [key, op] : ops_) {
    if (!op->is_load() && op->has_engine) stats_.fenced_blocks += op->DropFenced(fenced_);
  }
  std::vector<ChunkTicket> tickets;
  for (const auto& [ticket, chunk] : chunks_) {
    const bool reads =
        chunk.job.route == Route::kDeviceToCpu &&
        std::ranges::any_of(chunk.block_ids, [&](uint32_t id) { return fenced_[id]; });
    if (reads) tickets.push_back(ticket);
  }
  for (const uint32_t id : block_ids) {
    if (id < fenced_.size()) fenced_[id] = false;
  }
  HoldChunks(std::move(tickets), lock);
}

void AgentCore::TakeDaemonResults(std::vector<AgentResult>* results) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::move(daemon_results_.begin(), daemon_results_.end(), std::back_inserter(*results));
  daemon_results_.clear();
}

void AgentCore::TakeEngineResults(std::vector<AgentResult>* results) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::move(engine_results_.begin(), engine_results_.end(), std::back_inserter(*results));
  engine_results_.clear();
}

bool AgentCore::Busy() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return daemon_halves_ > 0 || !chunks_.empty();
}

void AgentCore::SegmentMapped(SegmentId segment, std::span<std::byte> memory) {
  device_->SegmentMapped(segment, memory);
}

void AgentCore::SegmentGone(SegmentId segment) { device_->SegmentGone(segment); }

void AgentCore::SetCopyOptions(const CopyOptions& options) {
  device_->SetCopyOptions(options);
  std::lock_guard<std::mutex> lock(mutex_);
  layers_ahead_ = std::max(1u, options.layers_ahead);
}

DeviceReport AgentCore::Report() const { return device_->Report(); }

AgentStats AgentCore::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeAgent(const DeviceAgent::Options& options,
                                                       const KvLayout& layout,
                                                       SegmentMapper* mapper,
                                                       std::unique_ptr<AgentDevice> device,
                                                       std::function<void()> on_result) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (mapper == nullptr || device == nullptr || options.chunk_bytes == 0 || options.max_ops == 0) {
    return absl::InvalidArgumentError(
        "a device agent needs a mapper, a device, a chunk size and room for ops");
  }
  return std::unique_ptr<DeviceAgent>(std::make_unique<AgentCore>(
      options, layout, mapper, std::move(device), std::move(on_result)));
}

}  // namespace flexkv::internal
