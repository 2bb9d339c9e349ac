// The leaves that may be evicted, lowest score first: a 4-ary heap that knows where each node is.
//
// Four children of 16 bytes share one cache line, so a step down costs one miss. Positions are kept
// apart from the node headers, in 4 bytes a node: sifting touches nothing but these two arrays.
#pragma once

#include <cstdint>

#include "flexkv/index/head_table.h"
#include "flexkv/index/reserved_memory.h"

namespace flexkv {

class EvictionHeap {
 public:
  explicit EvictionHeap(uint64_t max_nodes);

  bool empty() const { return size_ == 0; }
  uint64_t size() const { return size_; }
  bool Contains(NodeId node) const { return node < positions_.usable() && positions_[node] != 0; }

  NodeId top() const { return At(0).node; }  // REQUIRES: !empty()
  uint64_t top_score() const { return At(0).score; }
  uint64_t ScoreOf(NodeId node) const {
    return At(positions_[node] - 1).score;
  }  // REQUIRES: Contains

  // Adds the node, or moves it to where the score puts it.
  void Put(NodeId node, uint64_t score);
  void Remove(NodeId node);  // REQUIRES: Contains

  uint64_t bytes() const { return entries_.bytes() + positions_.bytes(); }
  bool OrderHolds() const;  // O(size); for CheckInvariants

 private:
  struct Entry {
    uint64_t score;
    NodeId node;
    uint32_t unused;
  };
  static_assert(sizeof(Entry) == 16);
  // The root lies at element 3, so that the children of entry i (4i + 1 ..) begin a cache line.
  static constexpr uint64_t kRoot = 3;

  Entry& At(uint64_t i) const { return entries_[i + kRoot]; }
  void Set(uint64_t i, Entry entry) {
    At(i) = entry;
    positions_[entry.node] = static_cast<uint32_t>(i + 1);
  }
  void SiftUp(uint64_t i, Entry entry);
  void SiftDown(uint64_t i, Entry entry);

  ReservedArray<Entry> entries_;
  ReservedArray<uint32_t> positions_;  // by node: place + 1, 0 when absent
  uint64_t size_ = 0;
};

}  // namespace flexkv
