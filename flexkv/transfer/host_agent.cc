// The two tables of halves are one map of ops; an op is in at most one list: `orphans_` while a daemon half (or a
// store's engine half) waits for its other half, `unreleased_` while a store waits for its step, `loads_` or `stores_` when it may run.
//
// The thread takes the first op of a list, maps and checks its places without the mutex, then alternates between
// choosing a chunk under the mutex and copying it without. `running_` is the op it holds (nobody else may end it:
// they set `cancelled` and it ends at the chunk boundary), `copying_` says that engine memory is being touched. Revoke and
// FenceBlocks first make sure that no further chunk will touch the blocks, then wait for chunk_number_ to move on.
//
// Keys of ops that ended before their second half came are remembered in a bounded table so that this half is answered at
// once. Forgetting one is safe: without an engine half nothing is ever copied.
#include <pthread.h>
#include <sched.h>
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <memory>
#include <mutex>
#include <thread>
#include <unordered_map>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/device_agent.h"
#include "flexkv/transfer/host_copy.h"

namespace flexkv {
namespace {

using internal::AgentOp;
using internal::FailedResult;
using internal::Piece;
using internal::ShardMap;
using OpList = std::list<AgentOp*>;

// With both kinds ready, a store gets one chunk after this many of loads: loads hold requests up, but a store
// that never ends holds slots for ever.
constexpr uint32_t kLoadChunksPerStoreChunk = 8;
constexpr auto kSlowChunk = std::chrono::milliseconds(20);

// Keys whose second half is answered on arrival; the oldest are forgotten.
class EndedKeys {
 public:
  enum class Why : uint8_t { kFailed, kRevoked };
  explicit EndedKeys(size_t limit) : limit_(limit) {}

  void Add(OpKey key, Why why) {
    auto [it, added] = keys_.try_emplace(key, why);
    if (!added) {
      if (why == Why::kRevoked) it->second = why;
      return;
    }
    order_.push_back(key);
    while (order_.size() > limit_) {
      keys_.erase(order_.front());
      order_.pop_front();
    }
  }
  const Why* Find(OpKey key) const {
    auto it = keys_.find(key);
    return it == keys_.end() ? nullptr : &it->second;
  }
  void Clear() {
    keys_.clear();
    order_.clear();
  }

 private:
  size_t limit_;
  std::unordered_map<OpKey, Why> keys_;
  std::deque<OpKey> order_;
};

// The engine may have bound the thread that made us to cores it keeps busy; the kernel cuts a full mask down to the
// cores this process is allowed.
void UseAllAllowedCores() {
  constexpr int kMaxCores = 8192;
  cpu_set_t* all = CPU_ALLOC(kMaxCores);
  if (all == nullptr) return;
  const size_t bytes = CPU_ALLOC_SIZE(kMaxCores);
  CPU_ZERO_S(bytes, all);
  for (int core = 0; core < kMaxCores; ++core) CPU_SET_S(static_cast<size_t>(core), bytes, all);
  sched_setaffinity(0, bytes, all);
  CPU_FREE(all);
}

class HostAgent : public DeviceAgent {
 public:
  HostAgent(const Options& options, const KvLayout& layout, SegmentMapper* mapper,
            std::function<void()> on_result);
  ~HostAgent() override;

  void SetBootId(uint64_t boot_id) override;
  absl::Status SubmitEngineHalf(EngineHalf half) override;
  void SubmitDaemonHalf(DaemonHalf half) override;
  void StepDone() override;
  void Revoke(OpKey key) override;
  void FenceBlocks(std::span<const uint32_t> block_ids) override;
  void TakeDaemonResults(std::vector<AgentResult>* results) override;
  void TakeEngineResults(std::vector<AgentResult>* results) override;
  bool Busy() const override;
  AgentStats stats() const override;

 private:
  // All of these require mutex_ unless they say otherwise.
  AgentOp* Find(OpKey key) const;
  AgentOp* AddOp(OpKey key, Route route);
  void MoveTo(OpList* list, AgentOp* op);
  void Match(AgentOp* op);
  void EndOp(AgentOp* op);
  void EndWithout(const DaemonHalf& half);
  void TellDaemon(AgentResult result);
  void FailEngineHalf(const EngineHalf& half);
  void RefuseEngineHalf(OpKey key);
  void EndOrphans(TimeNs now);
  void WaitForChunk(std::unique_lock<std::mutex>& lock);

  // The thread's.
  void Run();
  void Sleep(std::unique_lock<std::mutex>& lock);
  AgentOp* PickOp();
  void RunSome(AgentOp* op, std::unique_lock<std::mutex>& lock);
  bool Prepare(AgentOp* op);                // without mutex_
  void CopyChunk(AgentOp* op);              // without mutex_
  void FlipBytes(const AgentOp& op, const Piece& piece);  // without mutex_

  const Options options_;
  const ShardMap map_;
  SegmentMapper* const mapper_;
  const std::function<void()> on_result_;
  const SteadyClock clock_;

  // Engine threads, the ring's thread and ours meet here; held for table work only, never during a copy.
  mutable std::mutex mutex_;
  std::condition_variable work_, chunk_ended_;
  std::unordered_map<OpKey, std::unique_ptr<AgentOp>> ops_;
  OpList orphans_, unreleased_, loads_, stores_;
  uint32_t engine_halves_ = 0, daemon_halves_ = 0;
  EndedKeys ended_;
  uint64_t boot_id_ = 0;
  uint64_t steps_done_ = 0;
  std::vector<bool> fenced_;  // by block id; all false between calls
  std::vector<AgentResult> daemon_results_, engine_results_;
  AgentStats stats_;
  bool tell_ = false;         // on_result_ is due
  bool stopping_ = false;

  AgentOp* running_ = nullptr;
  bool copying_ = false;
  std::vector<Piece> chunk_;  // changed by the thread under mutex_, while !copying_
  uint64_t chunk_number_ = 0;
  uint32_t load_chunks_in_a_row_ = 0;
  std::thread thread_;        // last: it uses all of the above
};

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

// --- tables ------------------------------------------------------------------------------------------

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
  if (op->is_load()) {
    MoveTo(&loads_, op);
  } else {
    MoveTo(op->step < steps_done_ ? &stores_ : &unreleased_, op);
  }
  work_.notify_one();
}

void HostAgent::TellDaemon(AgentResult result) {
  daemon_results_.push_back(std::move(result));
  tell_ = true;
  work_.notify_one();
}

// The op's halves are answered and it is gone. REQUIRES: it is not the running one, or the thread calls.
void HostAgent::EndOp(AgentOp* op) {
  const bool met = op->has_engine && op->has_daemon;
  if (op->has_daemon) {
    --daemon_halves_;
    AgentResult result = op->DaemonResult();
    if (met && op->engine_hears && result.status != OpStatus::kOk) ++stats_.failed;
    if (!met || !FaultFires("agent.drop_done")) TellDaemon(std::move(result));
  }
  if (op->has_engine) {
    --engine_halves_;
    if (op->is_load() && op->engine_hears) engine_results_.push_back(op->EngineResult());
  }
  MoveTo(nullptr, op);
  ops_.erase(op->key);
}

// A daemon half that never becomes part of an op: both sides hear of its end.
void HostAgent::EndWithout(const DaemonHalf& half) {
  ++stats_.refused;
  TellDaemon(FailedResult(half));
  if (AgentOp* op = Find(half.key); op != nullptr) {
    EndOp(op);
  } else {
    ended_.Add(half.key, EndedKeys::Why::kFailed);
  }
}

void HostAgent::FailEngineHalf(const EngineHalf& half) {
  if (half.route != Route::kCpuToDevice) return;
  engine_results_.push_back({.key = half.key, .route = half.route, .status = OpStatus::kFailed,
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

// --- calls from outside --------------------------------------------------------------------------------

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
    return absl::InvalidArgumentError(absl::StrCat("block ids of op ", half.key, " are out of range"));
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
    work_.notify_one();
  }
  return absl::OkStatus();
}

void HostAgent::SubmitDaemonHalf(DaemonHalf half) {
  std::lock_guard<std::mutex> lock(mutex_);
  AgentOp* op = Find(half.key);
  const bool foreign = boot_id_ == 0 || half.boot_id != boot_id_;
  if (foreign || half.key == 0 || half.route >= Route::kNumRoutes ||
      (op != nullptr && op->has_daemon) || ended_.Find(half.key) != nullptr) {
    ++stats_.refused;
    TellDaemon(FailedResult(half));
    return;
  }
  if (half.refused || daemon_halves_ >= options_.max_ops ||
      (op != nullptr && op->route != half.route)) {
    EndWithout(half);
    return;
  }
  const bool met = op != nullptr;
  if (!met) op = AddOp(half.key, half.route);
  op->has_daemon = true;
  op->places = std::move(half.blocks);
  ++daemon_halves_;
  if (met) {
    Match(op);
  } else {
    MoveTo(&orphans_, op);
    work_.notify_one();
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
  const bool must_wait =
      copying_ && !running_->is_load() &&
      std::any_of(chunk_.begin(), chunk_.end(),
                  [this](const Piece& piece) { return fenced_[running_->BlockAt(piece.position)]; });
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

AgentStats HostAgent::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return stats_;
}

// --- the thread ----------------------------------------------------------------------------------------

void HostAgent::Run() {
  pthread_setname_np(pthread_self(), "flexkv-agent");
  UseAllAllowedCores();
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    EndOrphans(clock_.Now());
    if (std::exchange(tell_, false)) {
      if (on_result_ == nullptr) continue;
      lock.unlock();
      on_result_();
      lock.lock();
    } else if (AgentOp* op = PickOp(); op != nullptr) {
      RunSome(op, lock);
    } else {
      Sleep(lock);
    }
  }
}

// Until there is work, or the oldest orphan's time is over.
void HostAgent::Sleep(std::unique_lock<std::mutex>& lock) {
  if (orphans_.empty()) {
    work_.wait(lock);
    return;
  }
  const TimeNs deadline = orphans_.front()->since + options_.orphan_timeout_ns;
  const TimeNs now = clock_.Now();
  if (deadline > now) work_.wait_for(lock, std::chrono::nanoseconds(deadline - now));
}

AgentOp* HostAgent::PickOp() {
  const bool store_is_due = load_chunks_in_a_row_ >= kLoadChunksPerStoreChunk;
  if (!stores_.empty() && (loads_.empty() || store_is_due)) {
    load_chunks_in_a_row_ = 0;
    return stores_.front();
  }
  if (loads_.empty()) return nullptr;
  load_chunks_in_a_row_ = stores_.empty() ? 0 : load_chunks_in_a_row_ + 1;
  return loads_.front();
}

// Checks the op the first time, then copies one chunk of it.
void HostAgent::RunSome(AgentOp* op, std::unique_lock<std::mutex>& lock) {
  running_ = op;
  if (!op->prepared) {
    lock.unlock();
    const bool usable = Prepare(op);
    lock.lock();
    if (!usable) op->cancelled = true;
  }
  if (!op->cancelled) op->TakeChunk(map_, options_.chunk_bytes, &chunk_);
  if (!op->cancelled && !chunk_.empty()) {
    copying_ = true;
    lock.unlock();
    const TimeNs start = clock_.Now();
    CopyChunk(op);
    const TimeNs copy_ns = clock_.Now() - start;
    lock.lock();
    copying_ = false;
    ++chunk_number_;
    chunk_ended_.notify_all();
    uint64_t bytes = 0;
    for (const Piece& piece : chunk_) {
      for (uint32_t part = piece.first_part; part < piece.end_part; ++part) {
        bytes += map_.parts[part].bytes;
      }
    }
    op->bytes += bytes;
    op->copy_ns += copy_ns;
    (op->is_load() ? stats_.load_bytes : stats_.store_bytes) += bytes;
    (op->is_load() ? stats_.load_copy_ns : stats_.store_copy_ns) += copy_ns;
  }
  running_ = nullptr;
  if (!op->cancelled && !op->done()) return;
  if (!op->cancelled) ++(op->is_load() ? stats_.loads : stats_.stores);
  EndOp(op);
}

// Everything the daemon said is checked here, before the first byte moves. Only fixed fields of the op are read.
bool HostAgent::Prepare(AgentOp* op) {
  op->prepared = true;
  if (FaultFires("agent.fail_op")) return false;
  std::vector<bool> seen(op->block_ids.size());
  std::span<std::byte> mapping;
  SegmentId mapped = 0;
  op->shards.reserve(op->places.size());
  for (const ArenaPlace& place : op->places) {
    if (place.engine_index >= seen.size() || seen[place.engine_index]) return false;
    seen[place.engine_index] = true;
    if (mapping.empty() || place.segment != mapped) {
      mapping = mapper_->Map(place.segment);
      mapped = place.segment;
    }
    if (place.offset_bytes > mapping.size() ||
        map_.shard_bytes > mapping.size() - place.offset_bytes) {
      return false;
    }
    op->shards.push_back(mapping.data() + place.offset_bytes);
  }
  if (op->is_load()) {
    op->flip_byte = FaultFires("agent.flip_byte");
    if (op->shards.size() > 1 && FaultFires("agent.swap_blocks")) {
      std::swap(op->shards[0], op->shards[1]);
    }
  }
  return true;
}

void HostAgent::CopyChunk(AgentOp* op) {
  if (FaultFires("agent.slow_chunk")) std::this_thread::sleep_for(kSlowChunk);
  BlockCopier copier;
  for (const Piece& piece : chunk_) {
    const uint32_t block = op->BlockAt(piece.position);
    for (uint32_t at = piece.first_part; at < piece.end_part; ++at) {
      const ShardMap::Part& part = map_.parts[at];
      std::byte* packed = op->shards[piece.position] + part.offset;
      op->is_load() ? copier.Scatter(part.view, block, packed)
                    : copier.Gather(part.view, block, packed);
    }
  }
  copier.Flush();
  if (op->flip_byte && !chunk_.empty() && chunk_.front().position == 0) FlipBytes(*op, chunk_.front());
}

// The highest byte of a number, so that the engine's tokens show it.
void HostAgent::FlipBytes(const AgentOp& op, const Piece& piece) {
  for (uint32_t at = piece.first_part; at < piece.end_part; ++at) {
    const LayerView& view = map_.parts[at].view;
    auto* fragment = reinterpret_cast<std::byte*>(
        view.base + op.BlockAt(piece.position) * static_cast<uint64_t>(view.block_stride_bytes));
    fragment[view.fragment_bytes - 1] ^= std::byte{0x40};
  }
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeHostAgent(DeviceAgent::Options options, KvLayout layout,
                                                           SegmentMapper* mapper,
                                                           std::function<void()> on_result) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (mapper == nullptr || options.chunk_bytes == 0 || options.max_ops == 0) {
    return absl::InvalidArgumentError("a device agent needs a mapper, a chunk size and room for ops");
  }
  return std::unique_ptr<DeviceAgent>(
      std::make_unique<HostAgent>(options, layout, mapper, std::move(on_result)));
}

}  // namespace flexkv
