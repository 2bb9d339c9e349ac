#include "flexkv/transfer/agent_op.h"

#include <algorithm>
#include <numeric>

namespace flexkv::internal {

ShardMap::ShardMap(const KvLayout& layout) : num_blocks(UINT32_MAX) {
  for (const KvGroup& group : layout.groups) {
    num_blocks = std::min(num_blocks, group.num_blocks);
    for (const LayerView& view : group.layers) {
      parts.push_back({view, shard_bytes, view.block_bytes()});
      shard_bytes += view.block_bytes();
    }
  }
}

void AgentOp::TakeChunk(const ShardMap& map, uint64_t chunk_bytes, std::vector<Piece>* chunk) {
  chunk->clear();
  const uint32_t num_parts = static_cast<uint32_t>(map.parts.size());
  uint64_t total = 0;
  while (!done()) {
    if (!dropped.empty() && dropped[places[position].engine_index]) {
      failed.push_back(position++);
      part = 0;
      continue;
    }
    if (part == 0 && total > 0 && total + map.shard_bytes > chunk_bytes) return;
    const uint32_t first = part;
    while (part < num_parts && (total == 0 || total + map.parts[part].bytes <= chunk_bytes)) {
      total += map.parts[part++].bytes;
    }
    if (part > first) chunk->push_back({position, first, part});
    if (part < num_parts) return;
    ++position;
    part = 0;
  }
}

uint32_t AgentOp::DropFenced(const std::vector<bool>& fenced) {
  uint32_t count = 0;
  const auto drop = [&](uint32_t index) {
    if (!fenced[block_ids[index]] || (!dropped.empty() && dropped[index])) return;
    if (dropped.empty()) dropped.resize(block_ids.size());
    dropped[index] = true;
    ++count;
  };
  if (has_daemon) {
    for (size_t at = position; at < places.size(); ++at) {
      // The agent checks indexes before it copies; until then they are what the daemon said.
      if (places[at].engine_index < block_ids.size()) drop(places[at].engine_index);
    }
  } else {
    for (uint32_t index = 0; index < block_ids.size(); ++index) drop(index);
  }
  return count;
}

AgentResult AgentOp::DaemonResult() const {
  AgentResult result{
      .key = key, .route = route, .failed = failed, .bytes = bytes, .copy_ns = copy_ns};
  for (size_t at = position; at < places.size(); ++at) {
    result.failed.push_back(static_cast<uint32_t>(at));
  }
  if (result.failed.size() == places.size()) {
    result.status = OpStatus::kFailed;
  } else if (!result.failed.empty()) {
    result.status = OpStatus::kPartial;
  }
  return result;
}

AgentResult AgentOp::EngineResult() const {
  AgentResult result = DaemonResult();
  std::vector<bool> arrived(block_ids.size());
  size_t next_failed = 0;
  for (uint32_t at = 0; at < places.size(); ++at) {
    if (next_failed < result.failed.size() && result.failed[next_failed] == at) {
      ++next_failed;
    } else {
      arrived[places[at].engine_index] = true;
    }
  }
  result.failed.clear();
  for (size_t index = 0; index < block_ids.size(); ++index) {
    if (!arrived[index]) result.failed_engine_blocks.push_back(block_ids[index]);
  }
  const size_t missing = result.failed_engine_blocks.size();
  result.status = missing == 0                  ? OpStatus::kOk
                  : missing == block_ids.size() ? OpStatus::kFailed
                                                : OpStatus::kPartial;
  return result;
}

AgentResult FailedResult(const DaemonHalf& half) {
  AgentResult result{.key = half.key, .route = half.route, .status = OpStatus::kFailed};
  result.failed.resize(half.blocks.size());
  std::iota(result.failed.begin(), result.failed.end(), 0u);
  return result;
}

}  // namespace flexkv::internal
