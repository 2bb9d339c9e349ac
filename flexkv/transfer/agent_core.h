// What a device agent is made of: the core, which knows ops and order, over the device's side,
// which moves bytes. The core in three files: tables and calls from outside (agent_core.cc), its
// thread (agent_thread.cc), loads layer by layer (agent_layers.cc).
//
// The two tables of halves are one map of ops; an op is in at most one list: `orphans_` while a
// daemon half (or a store's engine half) waits for its other half, `unreleased_` while a store
// waits for its step, `loads_` or `stores_` while it has chunks to start, `layer_pending_` while it
// waits for StartLayerLoads. It is in none while all that is left are chunks under way, or while it
// waits for its next part.
//
// The thread takes the first op of a list, checks its places without the mutex, then cuts one chunk
// off it under the mutex and starts it without. Several chunks of several ops are under way at a
// time, bounded by direction. A chunk and a check pin their ops: an op with pins is not ended, it
// is `cancelled` and ends with its last pin. Since its daemon half is answered no earlier, the
// arena slots that a chunk reads or writes stay the op's as long.
//
// Revoke and FenceBlocks first make sure that no further chunk will touch the blocks. For those
// under way they wait until Start has returned, and then make the compute stream wait (HoldCompute)
// or, where the copier cannot, wait for the chunk's end themselves.
//
// Marks: loads get the mark of their submission, one for all of a step unless blocks were held in
// between (a later load may write what such a chunk still touches, so its mark must be behind the
// hold). Stores get the mark of the StepDone that releases them.
//
// Keys of ops that ended before their second half came are remembered in a bounded table so that
// this half is answered at once. Forgetting one is safe: nothing is ever copied without an engine
// half, and the engine hands over no half of a key that it revoked. Later parts of an op that ended
// need no table: a part other than the first begins no op.
#pragma once

#include <array>
#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <thread>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv::internal {

// The device's side of an agent: its copier, and what it wants to hear beside chunks. The calls are
// those of DeviceAgent of the same name, handed through, on the caller's thread.
class AgentDevice {
 public:
  virtual ~AgentDevice() = default;  // every chunk has ended, the agent's thread too

  virtual ChunkCopier* copier() = 0;  // the same for the device's life
  virtual void SegmentMapped(SegmentId /*segment*/, std::span<std::byte> /*memory*/) {}
  virtual void SegmentGone(SegmentId /*segment*/) {}
  virtual void SetCopyOptions(const CopyOptions& /*options*/) {}
  virtual DeviceReport Report() const = 0;
};

// InvalidArgument: the layout, the options, no mapper or no device. The mapper outlives the agent.
absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeAgent(const DeviceAgent::Options& options,
                                                       const KvLayout& layout,
                                                       SegmentMapper* mapper,
                                                       std::unique_ptr<AgentDevice> device,
                                                       std::function<void()> on_result);

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

// A chunk from before Start until its end was collected.
struct Chunk {
  ChunkJob job;
  bool of_layers = false;  // one layer of all ops of a layer step; else pieces of one op
  bool started = false;    // Start has returned
  bool ended = false;      // an end was collected; gone as soon as it is started, too
  ChunkEnd end;
  std::vector<AgentOp*> ops;     // each has a pin
  std::vector<Piece> positions;  // unless of layers
  std::vector<ChunkPiece> pieces;
  std::vector<uint32_t> block_ids;  // of all groups, piece by piece

  // The job's spans, when all pieces are there.
  void Seal(uint32_t num_groups);
  // As new, but for the memory of its vectors.
  void Clear();
};

class AgentCore : public DeviceAgent {
 public:
  AgentCore(const Options& options, const KvLayout& layout, SegmentMapper* mapper,
            std::unique_ptr<AgentDevice> device, std::function<void()> on_result);
  ~AgentCore() override;

  void SetBootId(uint64_t boot_id) override;
  absl::Status SubmitEngineHalf(EngineHalf half) override;
  void SubmitDaemonHalf(DaemonHalf half) override;
  void StepDone() override;
  void SetComputeStream(uint64_t stream) override;
  void StartLayerLoads(TimeNs wait_ns) override;
  void WaitForLayer(uint32_t layer) override;
  void Revoke(OpKey key) override;
  void FenceBlocks(std::span<const uint32_t> block_ids) override;
  void TakeDaemonResults(std::vector<AgentResult>* results) override;
  void TakeEngineResults(std::vector<AgentResult>* results) override;
  bool Busy() const override;
  void SegmentMapped(SegmentId segment, std::span<std::byte> memory) override;
  void SegmentGone(SegmentId segment) override;
  void SetCopyOptions(const CopyOptions& options) override;
  DeviceReport Report() const override;
  AgentStats stats() const override;

 private:
  using Lock = std::unique_lock<std::mutex>;

  // All of these require mutex_ unless they say otherwise; those that take the lock let go of it
  // meanwhile.
  AgentOp* Find(OpKey key) const;
  AgentOp* AddOp(OpKey key, Route route);
  void MoveTo(OpList* list, AgentOp* op);
  void Match(AgentOp* op);
  void Cancel(AgentOp* op);
  void EndOp(AgentOp* op);
  void EndPart(AgentOp* op);
  void Settle(AgentOp* op);
  void Close(AgentOp* op);
  static bool IsNext(const AgentOp* op, const DaemonHalf& half);
  void EndWithout(const DaemonHalf& half);
  void TellPart(AgentResult result);
  void TellDaemon(AgentResult result);
  void FailEngineHalf(const EngineHalf& half);
  void RefuseEngineHalf(OpKey key);
  bool InRange(const EngineHalf& half) const;  // without mutex_
  void EndOrphans(TimeNs now);
  void TakeEngineHalf(AgentOp* op, EngineHalf half, ComputeMark mark);
  // The engine's thread: what it does from here on comes after the ends of these chunks.
  void HoldChunks(std::vector<ChunkTicket> tickets, Lock& lock);
  ComputeMark LoadMark();  // without mutex_
  ComputeMark MarkOf(const AgentOp& op) const;

  // Checks and chunks, for both lanes.
  void Check(AgentOp* op, TimeNs wait_ns, Lock& lock);
  bool Prepare(AgentOp* op, TimeNs wait_ns);  // without mutex_; waits for a segment
  Chunk NewChunk();
  void AddPiece(AgentOp* op, const Piece& piece, Chunk* chunk) const;
  void StartChunk(Chunk chunk, Lock& lock);
  void EndChunk(ChunkTicket ticket);

  // The thread's.
  void Run();
  void Sleep(Lock& lock);
  bool Tell(Lock& lock);
  bool HasRoom(Route route) const;
  AgentOp* PickOp();
  bool StartSome(Lock& lock);
  bool CollectEnds(Lock& lock);

  // Layer by layer.
  bool LayerLoadsAreHere() const;
  void BeginLayerLoad(AgentOp* op, TimeNs deadline, Lock& lock);
  void FailLayerLoads();
  void LeaveLayers(AgentOp* op, bool failed);
  void StartNextLayer(Lane lane, Lock& lock);
  bool StartLeftLayer(Lock& lock);
  void StartAndHoldLayers(uint64_t start_end, uint64_t hold_end, Lock& lock);

  const Options options_;
  const ShardMap map_;
  const uint64_t largest_chunk_bytes_;
  SegmentMapper* const mapper_;
  const std::unique_ptr<AgentDevice> device_;
  ChunkCopier* const copier_;  // device_'s
  const std::function<void()> on_result_;
  const SteadyClock clock_;

  // Engine threads, the ring's thread and ours meet here; held for table work only, never while a
  // copier starts, collects, marks or holds.
  mutable std::mutex mutex_;
  std::condition_variable work_, chunk_changed_, layer_half_came_;
  std::unordered_map<OpKey, std::unique_ptr<AgentOp>> ops_;
  OpList orphans_, unreleased_, loads_, stores_, layer_pending_;
  uint32_t engine_halves_ = 0, daemon_halves_ = 0;
  EndedKeys ended_;
  uint64_t boot_id_ = 0;
  std::vector<bool> fenced_;  // by block id; all false between calls
  std::vector<AgentResult> daemon_results_, engine_results_;
  AgentStats stats_;
  bool tell_ = false;  // on_result_ is due
  bool stopping_ = false;

  // Steps. A mark in `step_marks_` is of the step at that place or of a later one, which is as
  // good.
  uint64_t steps_done_ = 0;
  uint32_t stores_in_step_ = 0;
  std::array<ComputeMark, 64> step_marks_{};
  std::atomic<ComputeMark> load_mark_{kNoMark};  // of this step; kNoMark: is to be taken

  std::map<ChunkTicket, Chunk> chunks_;
  std::vector<Chunk> spare_chunks_;
  ChunkTicket last_ticket_ = 0;
  uint32_t chunks_to_collect_ = 0;     // started and not ended
  uint64_t bytes_in_flight_[2] = {};   // of the background lane, by route
  uint32_t load_chunks_in_a_row_ = 0;  // the thread's
  std::vector<ChunkEnd> ends_;         // the thread's

  // The layer-wise loads of the present step.
  struct LayerStep {
    std::vector<AgentOp*> ops;         // with layers to start
    std::vector<ChunkTicket> tickets;  // by layer; 0: none
    uint32_t next = 0;                 // layers before it were started
    uint32_t held = 0;                 // layers before it are waited for by the compute stream
    bool left_to_thread = false;       // the daemon is lost: nobody knows if the engine will go on
  };
  LayerStep layer_step_;
  std::atomic<bool> layer_step_open_{false};  // layers are left to start or to hold
  uint32_t layers_ahead_;

  std::thread thread_;  // last: it uses all of the above
};

}  // namespace flexkv::internal
