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
  struct Part {
    LayerView view;
    uint64_t offset = 0;  // within the shard
    uint64_t bytes = 0;
  };
  std::vector<Part> parts;
  uint64_t shard_bytes = 0;
  uint32_t num_blocks = 0;  // the least of all groups: an id below it is valid in each

  explicit ShardMap(const KvLayout& layout);
};

// Part of a block that one chunk copies.
struct Piece {
  uint32_t position = 0;    // in AgentOp::places
  uint32_t first_part = 0;  // in ShardMap::parts
  uint32_t end_part = 0;
};

struct AgentOp {
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  bool has_engine = false;
  bool has_daemon = false;
  TimeNs since = 0;   // arrival of the first half
  uint64_t step = 0;  // stores: runnable once this many steps and one more are done

  std::vector<uint32_t> block_ids;  // engine half; fixed once there
  std::vector<ArenaPlace> places;   // daemon half; fixed once there
  std::vector<bool> dropped;        // stores: fenced, by position in block_ids

  bool cancelled = false;        // ends at the next chunk boundary
  bool engine_hears = true;      // false once revoked
  uint32_t position = 0;         // blocks before it are copied, failed or in the running chunk
  uint32_t part = 0;             // parts of block `position` before it likewise
  std::vector<uint32_t> failed;  // positions, ascending
  uint64_t bytes = 0;
  TimeNs copy_ns = 0;

  bool prepared = false;  // the thread's own from here on
  bool flip_byte = false;
  std::vector<std::byte*> shards;  // by position

  std::list<AgentOp*>* queue = nullptr;  // the one list the op is in
  std::list<AgentOp*>::iterator place;

  bool is_load() const { return route == Route::kCpuToDevice; }
  bool done() const { return position == places.size(); }
  uint32_t BlockAt(uint32_t at) const { return block_ids[places[at].engine_index]; }

  // Takes the next at most `chunk_bytes` (at least one part) out of the op and skips dropped
  // blocks. Blocks are split only when one alone is more than a chunk. Empty when nothing is left.
  void TakeChunk(const ShardMap& map, uint64_t chunk_bytes, std::vector<Piece>* chunk);

  // Drops blocks not yet taken whose id `fenced` marks; returns how many.
  uint32_t DropFenced(const std::vector<bool>& fenced);

  // What both sides hear. Blocks not copied yet count as failed.
  AgentResult DaemonResult() const;
  AgentResult EngineResult() const;
};

// A result that says nothing of `half` was done.
AgentResult FailedResult(const DaemonHalf& half);

}  // namespace flexkv::internal
