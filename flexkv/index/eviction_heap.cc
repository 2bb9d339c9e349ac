#include "flexkv/index/eviction_heap.h"

#include <algorithm>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/require.h"

namespace flexkv {

void EvictionHeap::Add(NodeId node, uint64_t score) {
  if (!entries_.reserved()) [[unlikely]]
    entries_.Reserve(max_nodes_ + kRoot + 1);
  entries_.Ensure(size_ + kRoot + 1);
  SiftUp(size_++, Entry{score, node, 0});
}

void EvictionHeap::Move(NodeId node, uint64_t score) {
  const Entry entry{score, node, 0};
  const uint64_t i = (*positions_)[node] - 1;
  if (score < At(i).score) {
    SiftUp(i, entry);
  } else {
    SiftDown(i, entry);
  }
}

void EvictionHeap::Remove(NodeId node) {
  const uint64_t i = (*positions_)[node] - 1;
  (*positions_)[node] = 0;
  const Entry last = At(--size_);
  if (i == size_) return;
  if (i > 0 && last.score < At((i - 1) / 4).score) {
    SiftUp(i, last);
  } else {
    SiftDown(i, last);
  }
}

void EvictionHeap::SiftUp(uint64_t i, Entry entry) {
  while (i > 0) {
    const uint64_t parent = (i - 1) / 4;
    if (At(parent).score <= entry.score) break;
    Set(i, At(parent));
    i = parent;
  }
  Set(i, entry);
}

void EvictionHeap::SiftDown(uint64_t i, Entry entry) {
  for (;;) {
    const uint64_t first = 4 * i + 1;
    if (first >= size_) break;
    const uint64_t end = std::min(first + 4, size_);
    // The next level's four lines are on their way while this level's one is compared.
    for (uint64_t child = first; child < end && 4 * child + 1 < size_; ++child) {
      __builtin_prefetch(&At(4 * child + 1));
    }
    uint64_t least = first;
    for (uint64_t child = first + 1; child < end; ++child) {
      if (At(child).score < At(least).score) least = child;
    }
    if (At(least).score >= entry.score) break;
    Set(i, At(least));
    i = least;
  }
  Set(i, entry);
}

bool EvictionHeap::OrderHolds() const {
  for (uint64_t i = 0; i < size_; ++i) {
    if (i > 0 && At((i - 1) / 4).score > At(i).score) return false;
    if ((*positions_)[At(i).node] != i + 1) return false;
  }
  return true;
}

EvictionOrder::EvictionOrder(uint64_t max_nodes, uint32_t num_queues)
    : num_queues_(num_queues), heaps_(std::make_unique<EvictionHeap[]>(kNumTiers * num_queues)) {
  Require(num_queues > 0 && num_queues <= EvictionPolicy::kMaxQueues,
          "a policy has from 1 to 64 queues");
  static_assert(kNumTiers * EvictionPolicy::kMaxQueues < UINT8_MAX);
  positions_.Reserve(max_nodes);
  homes_.Reserve(max_nodes);
  for (uint32_t i = 0; i < kNumTiers * num_queues; ++i) heaps_[i].Init(max_nodes, &positions_);
}

void EvictionOrder::Open(NodeId node) {
  positions_.Ensure(node + 1ull);
  homes_.Ensure(node + 1ull);
  opened_ = std::min(positions_.usable(), homes_.usable());
}

void EvictionOrder::Remove(NodeId node) {
  const uint32_t home = homes_[node] - 1u;
  homes_[node] = 0;
  heaps_[home].Remove(node);
  if (heaps_[home].empty()) filled_[home / num_queues_] &= ~(1ull << home % num_queues_);
}

uint64_t EvictionOrder::size() const {
  uint64_t size = 0;
  for (uint32_t i = 0; i < kNumTiers * num_queues_; ++i) size += heaps_[i].size();
  return size;
}

uint64_t EvictionOrder::bytes() const {
  uint64_t bytes = positions_.bytes() + homes_.bytes();
  for (uint32_t i = 0; i < kNumTiers * num_queues_; ++i) bytes += heaps_[i].bytes();
  return bytes;
}

bool EvictionOrder::StandsIn(NodeId node, Tier tier, uint32_t queue, uint64_t score) const {
  const uint32_t home = HeapIndex(tier, queue);
  return Contains(node) && homes_[node] == home + 1 && heaps_[home].ScoreOf(node) <= score;
}

bool EvictionOrder::Holds() const {
  uint64_t placed = 0;
  for (uint64_t node = 0; node < opened_; ++node) placed += homes_[node] != 0;
  if (placed != size()) return false;
  for (uint32_t i = 0; i < kNumTiers * num_queues_; ++i) {
    const bool filled = (filled_[i / num_queues_] >> (i % num_queues_) & 1) != 0;
    if (filled == heaps_[i].empty() || !heaps_[i].OrderHolds()) return false;
  }
  return true;
}

}  // namespace flexkv
