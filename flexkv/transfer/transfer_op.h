// Copies of blocks between two tiers. Transfer knows slots and segments, never tokens, hashes or
// policy.
#pragma once

#include <cstdint>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"

namespace flexkv {

using OpId = uint64_t;     // unique within one TransferEngine, never 0
using GraphId = uint64_t;  // unique within one TransferEngine, never 0

// Which executor runs an op.
enum class Route : uint8_t { kDeviceToCpu = 0, kCpuToDevice = 1, kNumRoutes = 2 };

// One block's shard in the arena.
struct ArenaPlace {
  SegmentId segment = 0;
  uint32_t engine_index =
      0;  // which block of the engine half this is (position in its block id list)
  uint64_t offset_bytes = 0;  // within the segment
};

struct TransferOp {
  OpId id = 0;  // set by SubmitTransferGraph
  Route route = Route::kDeviceToCpu;
  EngineHandle engine = 0;
  uint32_t rank = 0;
  OpKey key = 0;  // meets the engine half of the same key in the rank's agent
  // A load may come in parts, as its blocks reach the arena: ops of one key with parts 0, 1, 2, ...
  // in the order of submission, each with its own result. All but the last say that more follow;
  // the last may be empty. Stores have one part.
  uint32_t part = 0;
  bool more = false;
  std::vector<ArenaPlace> blocks;
  std::vector<uint32_t>
      after;  // indexes of ops in the same graph that must end first, successfully
};

struct TransferGraph {
  uint64_t tag = 0;  // the caller's, handed back on completion
  std::vector<TransferOp> ops;
};

enum class OpStatus : uint8_t { kOk = 0, kPartial = 1, kFailed = 2 };

// What became of one op. `failed` names positions in TransferOp::blocks, ascending; all of them
// when kFailed.
struct OpResult {
  OpId id = 0;
  OpStatus status = OpStatus::kOk;
  std::vector<uint32_t> failed;
  TimeNs copy_ns = 0;  // time spent copying, as far as the executor knows; for people and traces
};

struct CompletedOp {
  GraphId graph = 0;
  uint64_t tag = 0;
  uint32_t op_index = 0;  // position in TransferGraph::ops
  OpResult result;
};

struct CompletedGraph {
  GraphId graph = 0;
  uint64_t tag = 0;
};

}  // namespace flexkv
