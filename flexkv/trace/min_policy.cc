#include "flexkv/trace/min_policy.h"

#include <algorithm>
#include <queue>
#include <utility>
#include <vector>

namespace flexkv::trace {
namespace {

class MinCache {
 public:
  MinCache(size_t requests, uint64_t capacity) : here_(requests, 0), capacity_(capacity) {}

  // Takes out the blocks whose next use is request `number`: it is now.
  uint32_t Take(uint32_t number) {
    const uint32_t blocks = std::exchange(here_[number], 0);
    held_ -= blocks;
    return blocks;
  }
  void Keep(uint32_t next_use, uint32_t blocks) {
    if (blocks == 0) return;
    if (here_[next_use] == 0) furthest_.push(next_use);
    here_[next_use] += blocks;
    held_ += blocks;
  }
  // How many gave way.
  uint64_t Shrink() {
    const uint64_t before = held_;
    while (held_ > capacity_) {
      uint32_t& blocks = here_[furthest_.top()];
      const auto gone = static_cast<uint32_t>(std::min<uint64_t>(blocks, held_ - capacity_));
      blocks -= gone;
      held_ -= gone;
      if (blocks == 0) furthest_.pop();
    }
    return before - held_;
  }

 private:
  std::vector<uint32_t> here_;  // by request to come
  // Those with blocks here; of requests that have been since, too.
  std::priority_queue<uint32_t> furthest_;
  const uint64_t capacity_;
  uint64_t held_ = 0;
};

}  // namespace

MinResult ReplayMin(const NextUses& uses, uint64_t capacity_blocks) {
  MinResult result;
  MinCache cache(uses.size(), capacity_blocks);
  for (uint32_t i = 0; i < uses.size(); ++i) {
    const NextUses::Request& request = uses.request(i);
    const uint32_t hits = cache.Take(i);
    if (request.kind != RequestKind::kPut) {
      result.hit_blocks += hits;
      result.hit_tokens += uint64_t{hits} * request.tokens_per_block;
    }
    // A lookup leaves what it found, an insert all its blocks.
    uint64_t left = request.kind == RequestKind::kGet ? hits : request.num_blocks;
    uint64_t kept = 0;
    for (const NextUses::Edge& edge : uses.EdgesOf(i)) {
      const auto blocks = static_cast<uint32_t>(std::min<uint64_t>(edge.blocks, left));
      cache.Keep(edge.to, blocks);
      left -= blocks;
      kept += blocks;
    }
    result.inserted_blocks += kept > hits ? kept - hits : 0;
    result.evicted_blocks += cache.Shrink();
  }
  return result;
}

}  // namespace flexkv::trace
