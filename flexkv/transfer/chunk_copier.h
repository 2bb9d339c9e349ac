// Moves the bytes of chunks for a device agent: by the processor (host_copier.h) or by a GPU's copy
// engines and kernels (cuda/cuda_copier.h). Who may be copied when is the agent's business
// (agent_core.h); a copier knows nothing of ops, halves or the daemon.
//
// A chunk is started once and its end is collected once. Between the two the copier may read and
// write the engine blocks and arena shards of the chunk, on any thread or device; after its end it
// touches them no more.
//
// The engine's compute stream is the order in which the engine's own work touches its KV tensors. A
// ComputeMark stands for "all that had been enqueued there when it was taken"; HoldCompute makes
// all that is enqueued later wait. Engines on CPU have no such stream: their work is over when the
// call returns and every mark is 0. The processor's chunks are over when Start returns, so there
// HoldCompute has nothing to do and says true.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv {

using ComputeMark = uint64_t;  // ascending; 0: nothing to wait for
// No mark could be taken (the engine was capturing a graph, or the device refused): a chunk after
// it ends as failed, nothing copied. It is later than every mark, so the latest of several marks is
// it when one of them is: nobody but a copier needs to know it.
inline constexpr ComputeMark kNoMark = UINT64_MAX;
using ChunkTicket = uint64_t;  // unique within one agent, ascending, never 0

// Layers [first_layer, end_layer) of one block, in the packed order of the layout (all groups'
// layer views one after the other, as in ShardMap).
struct ChunkPiece {
  std::byte* shard = nullptr;           // where the block's shard begins in the mapped arena
  std::span<const uint32_t> block_ids;  // the block's GPU block id in each KV group
  uint32_t first_layer = 0;
  uint32_t end_layer = 0;
};

// Who the chunk is for. Chunks of the layer lane are started on an engine thread, in the middle of
// a step; all others on the agent's thread. A copier takes both at the same time.
enum class Lane : uint8_t { kBackground, kLayer };

struct ChunkJob {
  ChunkTicket ticket = 0;
  OpKey op = 0;  // for names in profiles; of several ops: one of them
  Route route = Route::kDeviceToCpu;
  Lane lane = Lane::kBackground;
  ComputeMark after = 0;
  uint64_t bytes = 0;
  std::span<const ChunkPiece> pieces;  // valid during Start only, and the ids they point to
};

struct ChunkEnd {
  ChunkTicket ticket = 0;
  bool ok = false;     // false: the bytes at the target are anything
  TimeNs copy_ns = 0;  // spent copying, without waiting for its turn
};

class ChunkCopier {
 public:
  virtual ~ChunkCopier() = default;  // REQUIRES: every chunk has ended

  // Called once on the agent's thread, before anything else there.
  virtual void EnterThread() = 0;
  // Bytes of background chunks that may be under way in this direction; a first one always may.
  virtual uint64_t MaxBytesInFlight(Route route) const = 0;

  // Never fails: what cannot be copied ends with ok = false.
  virtual void Start(const ChunkJob& job) = 0;
  // Agent thread. Appends the ends there are. Does not wait.
  virtual void Collect(std::vector<ChunkEnd>* ends) = 0;
  // Agent thread: how long Collect is not worth calling, from now; 0 when an end may be there. Only
  // asked while chunks are under way. Before an end is asked for again that was due, some time
  // passes, whatever this says.
  virtual TimeNs CollectAfter() const = 0;

  // Engine thread; may be called at every step. The stream is a cudaStream_t as a number; 0 in
  // engines without. From here on marks are taken on it and it is the one held; what was held
  // before holds for it too.
  virtual void SetComputeStream(uint64_t stream) = 0;
  virtual ComputeMark Mark() = 0;
  // Engine thread. All that is enqueued on the compute stream from here on waits until these chunks
  // (Start has returned; perhaps ended, perhaps collected) have ended. False: that cannot be had
  // now; the caller waits for their ends.
  virtual bool HoldCompute(std::span<const ChunkTicket> tickets) = 0;
};

}  // namespace flexkv
