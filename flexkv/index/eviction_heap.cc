#include "flexkv/index/eviction_heap.h"

#include <algorithm>

namespace flexkv {

EvictionHeap::EvictionHeap(uint64_t max_nodes) {
  entries_.Reserve(max_nodes + kRoot + 1);
  positions_.Reserve(max_nodes);
}

void EvictionHeap::Put(NodeId node, uint64_t score) {
  const Entry entry{score, node, 0};
  if (Contains(node)) {
    const uint64_t i = positions_[node] - 1;
    if (score < At(i).score) {
      SiftUp(i, entry);
    } else {
      SiftDown(i, entry);
    }
    return;
  }
  positions_.Ensure(node + 1ull);
  entries_.Ensure(size_ + kRoot + 1);
  SiftUp(size_++, entry);
}

void EvictionHeap::Remove(NodeId node) {
  const uint64_t i = positions_[node] - 1;
  positions_[node] = 0;
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
    if (positions_[At(i).node] != i + 1) return false;
  }
  return true;
}

}  // namespace flexkv
