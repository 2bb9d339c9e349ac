#include "flexkv/transfer/host_agent.h"

#include <pthread.h>
#include <signal.h>

#include <algorithm>
#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"

namespace flexkv {
namespace internal {

HostAgent::HostAgent(const Options& options, const KvLayout& layout, SegmentMapper* mapper,
                     std::function<void()> on_result)
    : options_(options),
      map_(layout),
      mapper_(mapper),
      on_result_(std::move(on_result)),
      ended_(options.max_ops),
      fenced_(map_.num_blocks) {
  // Signals are the engine's business: its handlers must not run on our thread.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

HostAgent::~HostAgent() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    stopping_ = true;
  }
  work_.notify_all();
  thread_.join();
}

// --- tables --------------------------------------------------------------------------------------

AgentOp* HostAgent::Find(OpKey key) const {
  auto it = ops_.find(key);
  return it == ops_.end() ? nullptr : it->second.get();
}

AgentOp* HostAgent::AddOp(OpKey key, Route route) {
  auto op = std::make_unique<AgentOp>();
  op->key = key;
  op->route = route;
  op->since = clock_.Now();
  return ops_.emplace(key, std::move(op)).first->second.get();
}

void HostAgent::MoveTo(OpList* list, AgentOp* op) {
  if (op->queue != nullptr) op->queue->erase(op->place);
  op->queue = list;
  if (list != nullptr) op->place = list->insert(list->end(), op);
}

void HostAgent::Match(AgentOp* op) {
  if (!op->is_load() && op->step >= steps_done_) {
    MoveTo(&unreleased_, op);  // StepDone wakes the thread
    return;
  }
  MoveTo(op->is_load() ? &loads_ : &stores_, op);
  work_.notify_one();
}

void HostAgent::TellDaemon(AgentResult result) {
  daemon_results_.push_back(std::move(result));
  tell_ = true;
  work_.notify_one();
}

// The present part of an op whose halves have met is answered.
void HostAgent::TellPart(AgentResult result) {
  --daemon_halves_;
  if (!FaultFires("agent.drop_done")) TellDaemon(std::move(result));
}

// The op's halves are answered and it is gone. REQUIRES: it is not the running one, or the thread
// calls.
void HostAgent::EndOp(AgentOp* op) {
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
  MoveTo(nullptr, op);
  ops_.erase(op->key);
}

// The present part is over and not the last: it is answered, and the next one takes its place, now
// or when it comes.
void HostAgent::EndPart(AgentOp* op) {
  AgentResult result = op->DaemonResult();
  op->LeavePart(result);
  TellPart(std::move(result));
  if (op->later.empty()) {
    MoveTo(nullptr, op);
    return;
  }
  op->TakePart(std::move(op->later.front()));
  op->later.pop_front();
}

// No part will be taken any more. What is here is still copied.
void HostAgent::Close(AgentOp* op) {
  op->closed = true;
  if (!op->has_part) EndOp(op);
}

// A daemon half that never becomes part of an op: both sides hear of its end.
void HostAgent::EndWithout(const DaemonHalf& half) {
  ++stats_.refused;
  TellDaemon(FailedResult(half));
  if (AgentOp* op = Find(half.key); op != nullptr) {
    Close(op);
  } else {
    ended_.Add(half.key, EndedKeys::Why::kFailed);
  }
}

void HostAgent::FailEngineHalf(const EngineHalf& half) {
  if (half.route != Route::kCpuToDevice) return;
  engine_results_.push_back({.key = half.key,
                             .route = half.route,
                             .status = OpStatus::kFailed,
                             .failed_engine_blocks = half.block_ids});
}

// The engine half was not taken: its daemon half need not wait for it.
void HostAgent::RefuseEngineHalf(OpKey key) {
  AgentOp* op = Find(key);
  if (op != nullptr && op->has_engine) return;  // another half of that key was taken before
  ended_.Add(key, EndedKeys::Why::kFailed);
  if (op != nullptr) EndOp(op);
}

void HostAgent::EndOrphans(TimeNs now) {
  while (!orphans_.empty() && now - orphans_.front()->since >= options_.orphan_timeout_ns) {
    AgentOp* op = orphans_.front();
    ++stats_.orphans;
    ended_.Add(op->key, EndedKeys::Why::kFailed);
    EndOp(op);
  }
}

void HostAgent::WaitForChunk(std::unique_lock<std::mutex>& lock) {
  const uint64_t number = chunk_number_;
  chunk_ended_.wait(lock, [&] { return chunk_number_ != number; });
}

// --- calls from outside --------------------------------------------------------------------------

void HostAgent::SetBootId(uint64_t boot_id) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (boot_id == boot_id_) return;
  boot_id_ = boot_id;
  std::vector<AgentOp*> old;
  for (const auto& [key, op] : ops_) old.push_back(op.get());
  for (AgentOp* op : old) {
    if (op == running_) {
      op->cancelled = true;
    } else {
      EndOp(op);
    }
  }
  ended_.Clear();
}

absl::Status HostAgent::SubmitEngineHalf(EngineHalf half) {
  if (half.key == 0 || half.route >= Route::kNumRoutes) {
    return absl::InvalidArgumentError("an engine half without key or with an unknown route");
  }
  const bool in_range = std::all_of(half.block_ids.begin(), half.block_ids.end(),
                                    [this](uint32_t id) { return id < map_.num_blocks; });
  std::lock_guard<std::mutex> lock(mutex_);
  AgentOp* op = Find(half.key);
  if (op != nullptr && op->has_engine) {
    return absl::InvalidArgumentError(absl::StrCat("op ", half.key, " has an engine half already"));
  }
  if (!in_range || half.block_ids.empty()) {
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
  const bool met = op != nullptr;
  if (!met) op = AddOp(half.key, half.route);
  op->has_engine = true;
  op->block_ids = std::move(half.block_ids);
  op->step = steps_done_;
  ++engine_halves_;
  if (met) {
    Match(op);
  } else if (!op->is_load()) {
    // A load's end is awaited (and revoked when too late) by the engine; a store's by nobody.
    MoveTo(&orphans_, op);
  }
  return absl::OkStatus();
}

// Is it what the daemon owes `op` (null: of a key not seen yet) next?
bool HostAgent::IsNext(const AgentOp* op, const DaemonHalf& half) {
  if (half.more && half.blocks.empty()) return false;
  if (half.route == Route::kDeviceToCpu && (half.more || half.part != 0)) return false;
  if (op == nullptr) return half.part == 0;
  return !op->closed && !op->cancelled && op->route == half.route && op->next_part == half.part;
}

void HostAgent::SubmitDaemonHalf(DaemonHalf half) {
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

void HostAgent::StepDone() {
  std::lock_guard<std::mutex> lock(mutex_);
  ++steps_done_;
  if (unreleased_.empty()) return;
  while (!unreleased_.empty()) MoveTo(&stores_, unreleased_.front());
  work_.notify_one();
}

void HostAgent::Revoke(OpKey key) {
  std::unique_lock<std::mutex> lock(mutex_);
  std::erase_if(engine_results_, [key](const AgentResult& result) { return result.key == key; });
  AgentOp* op = Find(key);
  if (op == nullptr) {
    ended_.Add(key, EndedKeys::Why::kRevoked);
    return;
  }
  ++stats_.revoked;
  op->engine_hears = false;
  if (op == running_) {
    op->cancelled = true;
    if (copying_) WaitForChunk(lock);
    return;
  }
  if (!op->has_engine || !op->has_daemon) ended_.Add(key, EndedKeys::Why::kRevoked);
  EndOp(op);
}

void HostAgent::FenceBlocks(std::span<const uint32_t> block_ids) {
  std::unique_lock<std::mutex> lock(mutex_);
  for (const uint32_t id : block_ids) {
    if (id < map_.num_blocks) fenced_[id] = true;
  }
  for (const auto& [key, op] : ops_) {
    if (!op->is_load() && op->has_engine) stats_.fenced_blocks += op->DropFenced(fenced_);
  }
  const bool must_wait = copying_ && !running_->is_load() &&
                         std::any_of(chunk_.begin(), chunk_.end(), [this](const Piece& piece) {
                           return fenced_[running_->BlockAt(piece.position)];
                         });
  for (const uint32_t id : block_ids) {
    if (id < map_.num_blocks) fenced_[id] = false;
  }
  if (must_wait) WaitForChunk(lock);
}

void HostAgent::TakeDaemonResults(std::vector<AgentResult>* results) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::move(daemon_results_.begin(), daemon_results_.end(), std::back_inserter(*results));
  daemon_results_.clear();
}

void HostAgent::TakeEngineResults(std::vector<AgentResult>* results) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::move(engine_results_.begin(), engine_results_.end(), std::back_inserter(*results));
  engine_results_.clear();
}

bool HostAgent::Busy() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return daemon_halves_ > 0;
}

DeviceReport HostAgent::Report() const {
  DeviceReport report;
  report.device = "cpu";
  return report;
}

AgentStats HostAgent::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

}  // namespace internal

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeHostAgent(DeviceAgent::Options options,
                                                           KvLayout layout, SegmentMapper* mapper,
                                                           std::function<void()> on_result) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (mapper == nullptr || options.chunk_bytes == 0 || options.max_ops == 0) {
    return absl::InvalidArgumentError(
        "a device agent needs a mapper, a chunk size and room for ops");
  }
  return std::unique_ptr<DeviceAgent>(
      std::make_unique<internal::HostAgent>(options, layout, mapper, std::move(on_result)));
}

}  // namespace flexkv
