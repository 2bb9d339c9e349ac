// One op inside a device agent: its two halves, how far it is, and how it ended. Plain state; the
// agent's mutex guards it but for what is marked as the thread's own.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/device_agent.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv::internal {

// The views of a layout in packed order, with their place in the shard.
struct ShardMap {
  struct Layer {
    LayerView view;
    uint32_t group = 0;
    uint64_t offset = 0;  // within the shard
    uint64_t bytes = 0;
  };
  std::vector<Layer> layers;
  uint64_t shard_bytes = 0;
  uint32_t num_blocks = 0;  // the least of all groups: an id below it is valid in each

  explicit ShardMap(const KvLayout& layout);
};

// Layers of a block that one chunk copies.
struct Piece {
  uint32_t position = 0;     // in AgentOp::places
  uint32_t first_layer = 0;  // in ShardMap::layers
  uint32_t end_layer = 0;
};

// Most ops have one part. Of a load in several the op holds one at a time (`places` and what says
// how far it is); those behind it wait in `later`, those before it are summed up in `arrived` and
// the fields beside it.
struct AgentOp {
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  bool has_engine = false;
  bool has_daemon = false;  // a part came
  bool has_part = false;    // one is here, not answered yet
  bool closed = false;      // none will be taken any more
  TimeNs since = 0;         // arrival of the first half
  uint64_t step = 0;        // stores: runnable once this many steps and one more are done

  std::vector<uint32_t> block_ids;  // engine half; fixed once there
  std::vector<bool> dropped;        // stores: fenced, by position in block_ids
  bool cancelled = false;           // ends at the next chunk boundary
  bool engine_hears = true;         // false once revoked

  uint32_t next_part = 0;       // the number the next part must have
  std::list<DaemonHalf> later;  // parts behind the present one

  // The present part.
  uint32_t part = 0;
  std::vector<ArenaPlace> places;  // fixed
  bool usable = false;             // checked, nothing wrong
  uint32_t position = 0;           // blocks before it are copied, failed or in the running chunk
  uint32_t layer = 0;              // layers of block `position` before it likewise
  std::vector<uint32_t> failed;    // positions, ascending
  uint64_t bytes = 0;
  TimeNs copy_ns = 0;

  // The parts before it.
  bool earlier_failed = false;  // not all of their blocks were copied
  uint64_t earlier_bytes = 0;
  TimeNs earlier_copy_ns = 0;

  bool prepared = false;  // the thread's own from here on, while it runs the op
  bool flip_byte = false;
  std::vector<std::byte*> shards;  // by position
  std::vector<bool> named;         // by position in block_ids: by the present part or one before it
  std::vector<bool> arrived;       // likewise: copied by one before it, and named by no other

  std::list<AgentOp*>* queue = nullptr;  // the one list the op is in
  std::list<AgentOp*>::iterator place;

  bool is_load() const { return route == Route::kCpuToDevice; }
  bool done() const { return position == places.size(); }
  bool on_last_part() const { return closed && later.empty(); }
  uint32_t BlockAt(uint32_t at) const { return block_ids[places[at].engine_index]; }

  // Makes `half` the present part.
  void TakePart(DaemonHalf half);
  // Sums up the present part, which ended with `result`: there is none now.
  void LeavePart(const AgentResult& result);
  // Notes which blocks the present part names. False when one is out of range or was named before.
  bool NameBlocks();

  // Takes the next at most `chunk_bytes` (at least one layer) out of the part and skips dropped
  // blocks. Blocks are split only when one alone is more than a chunk. Empty when nothing is left.
  void TakeChunk(const ShardMap& map, uint64_t chunk_bytes, std::vector<Piece>* chunk);

  // Drops blocks not yet taken whose id `fenced` marks; returns how many.
  uint32_t DropFenced(const std::vector<bool>& fenced);

  // What the daemon hears of the present part, and the engine of all. Blocks not copied yet count
  // as failed.
  AgentResult DaemonResult() const;
  AgentResult EngineResult() const;

 private:
  void NoteArrived(const AgentResult& result, std::vector<bool>* blocks) const;
};

// A result that says nothing of `half` was done.
AgentResult FailedResult(const DaemonHalf& half);

}  // namespace flexkv::internal
