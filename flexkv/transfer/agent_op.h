// One op inside a device agent: its two halves, how far it is, and how it ended. Plain state; the
// agent's mutex guards it but for what is marked as a thread's own.
#pragma once

#include <cstdint>
#include <list>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/chunk_copier.h"
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
  std::vector<uint32_t> group_blocks;  // by group: its GPU block ids are below it
  uint64_t shard_bytes = 0;
  uint64_t largest_layer_bytes = 0;

  explicit ShardMap(const KvLayout& layout);
  uint32_t num_groups() const { return static_cast<uint32_t>(group_blocks.size()); }
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

  // The engine half; fixed once there.
  std::vector<uint32_t> block_ids;  // of group 0, then of group 1, ...
  uint32_t num_blocks = 0;          // in each group
  bool layerwise = false;
  ComputeMark mark = 0;  // loads: taken when the half was submitted

  std::vector<bool> dropped;  // stores: fenced, by engine index
  uint32_t pins = 0;          // chunks under way, and one while the op is being checked
  bool cancelled = false;     // no further chunk; ends with its last pin
  bool engine_hears = true;   // false once revoked
  bool layers_begun = false;  // the engine was told that it may compute

  uint32_t next_part = 0;       // the number the next part must have
  std::list<DaemonHalf> later;  // parts behind the present one

  // The present part.
  uint32_t part = 0;
  std::vector<ArenaPlace> places;  // fixed
  bool usable = false;             // checked, nothing wrong
  uint32_t position = 0;           // blocks before it are copied, failed or in a chunk under way
  uint32_t layer = 0;              // layers of block `position` before it likewise
  std::vector<uint32_t> failed;    // positions, in any order, perhaps more than once
  uint64_t bytes = 0;
  TimeNs copy_ns = 0;

  // The parts before it.
  bool earlier_failed = false;  // not all of their blocks were copied
  uint64_t earlier_bytes = 0;
  TimeNs earlier_copy_ns = 0;

  bool prepared = false;           // the checking thread's own from here on, while it checks the op
  std::vector<std::byte*> shards;  // by position
  std::vector<bool> named;         // by engine index: by the present part or one before it
  std::vector<bool> arrived;       // likewise: copied by one before it, and named by no other

  std::list<AgentOp*>* queue = nullptr;  // the one list the op is in
  std::list<AgentOp*>::iterator place;

  bool is_load() const { return route == Route::kCpuToDevice; }
  bool done() const { return position == places.size(); }
  bool on_last_part() const { return closed && later.empty(); }
  // The ids of the block at a position of the present part: one of each group.
  void AppendIds(uint32_t at, std::vector<uint32_t>* ids) const;

  void SetBlocks(std::vector<uint32_t> ids, uint32_t num_groups);
  // Makes `half` the present part.
  void TakePart(DaemonHalf half);
  // Sums up the present part, which ended with `result`: there is none now.
  void LeavePart(const AgentResult& result);
  // Notes which blocks the present part names. False when one is out of range or was named before.
  bool NameBlocks();

  // A single part that brings every block of the engine half.
  bool IsWhole() const;

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
