// The device agent for KV tensors in host memory: its tables (host_agent.cc) and its thread
// (host_agent_thread.cc).
//
// The two tables of halves are one map of ops; an op is in at most one list: `orphans_` while a
// daemon half (or a store's engine half) waits for its other half, `unreleased_` while a store
// waits for its step, `loads_` or `stores_` when it may run. A load in several parts (see AgentOp)
// is in `loads_` while it has a part to copy, and in none while it waits for its next part.
//
// The thread takes the first op of a list, maps and checks its places without the mutex, then
// alternates between choosing a chunk under the mutex and copying it without. `running_` is the op
// it holds (nobody else may end it: they set `cancelled` and it ends at the chunk boundary),
// `copying_` says that engine memory is being touched. Revoke and FenceBlocks first make sure that
// no further chunk will touch the blocks, then wait for chunk_number_ to move on.
//
// Keys of ops that ended before their second half came are remembered in a bounded table so that
// this half is answered at once. Forgetting one is safe: nothing is ever copied without an engine
// half, and the engine hands over no half of a key that it revoked. Later parts of an op that ended
// need no table: a part other than the first begins no op.
#pragma once

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/clock.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv::internal {

using OpList = std::list<AgentOp*>;

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

class HostAgent : public DeviceAgent {
 public:
  HostAgent(const Options& options, const KvLayout& layout, SegmentMapper* mapper,
            std::function<void()> on_result);
  ~HostAgent() override;

  void SetBootId(uint64_t boot_id) override;
  absl::Status SubmitEngineHalf(EngineHalf half) override;
  void SubmitDaemonHalf(DaemonHalf half) override;
  void StepDone() override;
  void SetComputeStream(uint64_t /*stream*/) override {}
  void StartLayerLoads(TimeNs /*wait_ns*/) override {}
  void WaitForLayer(uint32_t /*layer*/) override {}
  void SegmentMapped(SegmentId /*segment*/, std::span<std::byte> /*memory*/) override {}
  void SegmentGone(SegmentId /*segment*/) override {}
  void SetCopyOptions(const CopyOptions& /*options*/) override {}
  DeviceReport Report() const override;
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
  void EndPart(AgentOp* op);
  void Close(AgentOp* op);
  static bool IsNext(const AgentOp* op, const DaemonHalf& half);
  void EndWithout(const DaemonHalf& half);
  void TellPart(AgentResult result);
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
  bool Prepare(AgentOp* op);                              // without mutex_
  void CopyChunk(AgentOp* op);                            // without mutex_
  void FlipBytes(const AgentOp& op, const Piece& piece);  // without mutex_

  const Options options_;
  const ShardMap map_;
  SegmentMapper* const mapper_;
  const std::function<void()> on_result_;
  const SteadyClock clock_;

  // Engine threads, the ring's thread and ours meet here; held for table work only, never during a
  // copy.
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
  bool tell_ = false;  // on_result_ is due
  bool stopping_ = false;

  AgentOp* running_ = nullptr;
  bool copying_ = false;
  std::vector<Piece> chunk_;  // changed by the thread under mutex_, while !copying_
  uint64_t chunk_number_ = 0;
  uint32_t load_chunks_in_a_row_ = 0;
  std::thread thread_;  // last: it uses all of the above
};

}  // namespace flexkv::internal
