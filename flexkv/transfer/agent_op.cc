#include "flexkv/transfer/agent_op.h"

#include <algorithm>
#include <numeric>
#include <utility>

namespace flexkv::internal {

ShardMap::ShardMap(const KvLayout& layout) {
  for (uint32_t index = 0; index < layout.groups.size(); ++index) {
    const KvGroup& group = layout.groups[index];
    group_blocks.push_back(group.num_blocks);
    for (const LayerView& view : group.layers) {
      largest_layer_bytes = std::max(largest_layer_bytes, view.block_bytes());
      layers.push_back({view, index, shard_bytes, view.block_bytes()});
      shard_bytes += view.block_bytes();
    }
  }
}

void AgentOp::AppendIds(uint32_t at, std::vector<uint32_t>* ids) const {
  for (size_t id = places[at].engine_index; id < block_ids.size(); id += num_blocks) {
    ids->push_back(block_ids[id]);
  }
}

void AgentOp::SetBlocks(std::vector<uint32_t> ids, uint32_t num_groups) {
  has_engine = true;
  block_ids = std::move(ids);
  num_blocks = static_cast<uint32_t>(block_ids.size() / num_groups);
}

bool AgentOp::IsWhole() const {
  return has_part && part == 0 && on_last_part() && places.size() == num_blocks;
}

void AgentOp::TakePart(DaemonHalf half) {
  has_part = true;
  part = half.part;
  places = std::move(half.blocks);
}

void AgentOp::LeavePart(const AgentResult& result) {
  earlier_failed |= result.status != OpStatus::kOk;
  earlier_bytes += bytes;
  earlier_copy_ns += copy_ns;
  arrived.resize(num_blocks);
  NoteArrived(result, &arrived);
  has_part = usable = prepared = false;
  places.clear();
  failed.clear();
  shards.clear();
  position = layer = 0;
  bytes = 0;
  copy_ns = 0;
}

bool AgentOp::NameBlocks() {
  bool good = true;
  named.resize(num_blocks);
  for (const ArenaPlace& named_place : places) {
    const uint32_t index = named_place.engine_index;
    if (index >= named.size()) {
      good = false;
    } else if (named[index]) {
      good = false;
      if (!arrived.empty()) arrived[index] = false;
    } else {
      named[index] = true;
    }
  }
  return good;
}

void AgentOp::TakeChunk(const ShardMap& map, uint64_t chunk_bytes, std::vector<Piece>* chunk) {
  chunk->clear();
  const uint32_t num_layers = static_cast<uint32_t>(map.layers.size());
  uint64_t total = 0;
  while (!done()) {
    if (!dropped.empty() && dropped[places[position].engine_index]) {
      failed.push_back(position++);
      layer = 0;
      continue;
    }
    if (layer == 0 && total > 0 && total + map.shard_bytes > chunk_bytes) return;
    const uint32_t first = layer;
    while (layer < num_layers && (total == 0 || total + map.layers[layer].bytes <= chunk_bytes)) {
      total += map.layers[layer++].bytes;
    }
    if (layer > first) chunk->push_back({position, first, layer});
    if (layer < num_layers) return;
    ++position;
    layer = 0;
  }
}

uint32_t AgentOp::DropFenced(const std::vector<bool>& fenced) {
  uint32_t count = 0;
  const auto drop = [&](uint32_t index) {
    bool hit = false;
    for (size_t id = index; id < block_ids.size(); id += num_blocks) hit |= fenced[block_ids[id]];
    if (!hit || (!dropped.empty() && dropped[index])) return;
    if (dropped.empty()) dropped.resize(num_blocks);
    dropped[index] = true;
    ++count;
  };
  if (has_daemon) {
    for (size_t at = position; at < places.size(); ++at) {
      // The agent checks indexes before it copies; until then they are what the daemon said.
      if (places[at].engine_index < num_blocks) drop(places[at].engine_index);
    }
  } else {
    for (uint32_t index = 0; index < num_blocks; ++index) drop(index);
  }
  return count;
}

AgentResult AgentOp::DaemonResult() const {
  AgentResult result{.key = key,
                     .route = route,
                     .part = part,
                     .failed = failed,
                     .bytes = bytes,
                     .copy_ns = copy_ns};
  for (size_t at = position; at < places.size(); ++at) {
    result.failed.push_back(static_cast<uint32_t>(at));
  }
  // A block in several chunks may have failed in each.
  std::sort(result.failed.begin(), result.failed.end());
  result.failed.erase(std::unique(result.failed.begin(), result.failed.end()), result.failed.end());
  // An empty part closes an op: nothing in it can fail, but it may never have run.
  const bool closed_it = part > 0 && places.empty() && usable && !cancelled;
  if (result.failed.size() == places.size() && !closed_it) {
    result.status = OpStatus::kFailed;
  } else if (!result.failed.empty()) {
    result.status = OpStatus::kPartial;
  }
  return result;
}

// Adds the blocks of the present part that `result` does not call failed.
void AgentOp::NoteArrived(const AgentResult& result, std::vector<bool>* blocks) const {
  size_t next_failed = 0;
  for (uint32_t at = 0; at < places.size(); ++at) {
    if (next_failed < result.failed.size() && result.failed[next_failed] == at) {
      ++next_failed;
    } else {
      (*blocks)[places[at].engine_index] = true;
    }
  }
}

AgentResult AgentOp::EngineResult() const {
  AgentResult result{.key = key,
                     .route = route,
                     .bytes = earlier_bytes + bytes,
                     .copy_ns = earlier_copy_ns + copy_ns};
  std::vector<bool> good = arrived;
  good.resize(num_blocks);
  if (has_part) NoteArrived(DaemonResult(), &good);
  for (size_t id = 0; id < block_ids.size(); ++id) {
    if (!good[id % num_blocks]) result.failed_engine_blocks.push_back(block_ids[id]);
  }
  const size_t missing = result.failed_engine_blocks.size();
  result.status = missing == 0                  ? OpStatus::kOk
                  : missing == block_ids.size() ? OpStatus::kFailed
                                                : OpStatus::kPartial;
  return result;
}

AgentResult FailedResult(const DaemonHalf& half) {
  AgentResult result{
      .key = half.key, .route = half.route, .part = half.part, .status = OpStatus::kFailed};
  result.failed.resize(half.blocks.size());
  std::iota(result.failed.begin(), result.failed.end(), 0u);
  return result;
}

}  // namespace flexkv::internal
