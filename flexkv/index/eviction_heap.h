// The leaves that may be evicted: for each tier and queue of the policy a 4-ary heap, lowest score
// first. A node is in at most one heap, so one array of places serves them all.
//
// Four children of 16 bytes share one cache line, so a step down costs one miss. Places are kept
// apart from the node headers, in 5 bytes a node: sifting touches nothing but these arrays.
#pragma once

#include <array>
#include <cstdint>
#include <memory>

#include "flexkv/base/ids.h"
#include "flexkv/index/head_table.h"
#include "flexkv/index/reserved_memory.h"

namespace flexkv {

class EvictionHeap {
 public:
  // `positions`: by node, place + 1; 0 when absent. Shared with heaps that hold other nodes.
  void Init(uint64_t max_nodes, ReservedArray<uint32_t>* positions) {
    max_nodes_ = max_nodes;
    positions_ = positions;
  }

  bool empty() const { return size_ == 0; }
  uint64_t size() const { return size_; }
  NodeId top() const { return At(0).node; }  // REQUIRES: !empty()
  uint64_t top_score() const { return At(0).score; }
  uint64_t ScoreOf(NodeId node) const { return At((*positions_)[node] - 1).score; }

  void Add(NodeId node, uint64_t score);   // REQUIRES: absent, and positions has room for it
  void Move(NodeId node, uint64_t score);  // REQUIRES: present
  void Remove(NodeId node);                // REQUIRES: present

  uint64_t bytes() const { return entries_.bytes(); }
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
    (*positions_)[entry.node] = static_cast<uint32_t>(i + 1);
  }
  void SiftUp(uint64_t i, Entry entry);
  void SiftDown(uint64_t i, Entry entry);

  ReservedArray<Entry> entries_;
  ReservedArray<uint32_t>* positions_ = nullptr;
  uint64_t max_nodes_ = 0;
  uint64_t size_ = 0;
};

class EvictionOrder {
 public:
  EvictionOrder(uint64_t max_nodes, uint32_t num_queues);

  bool Contains(NodeId node) const { return node < opened_ && homes_[node] != 0; }
  // Adds the node, or moves it to where tier, queue and score put it.
  void Put(NodeId node, Tier tier, uint32_t queue, uint64_t score) {
    const uint32_t home = HeapIndex(tier, queue);
    if (node >= opened_) [[unlikely]]
      Open(node);
    if (homes_[node] == home + 1) {
      heaps_[home].Move(node, score);
      return;
    }
    if (homes_[node] != 0) Remove(node);
    homes_[node] = static_cast<uint8_t>(home + 1);
    heaps_[home].Add(node, score);
    filled_[static_cast<size_t>(tier)] |= 1ull << queue;
  }
  void Remove(NodeId node);  // REQUIRES: Contains

  uint32_t num_queues() const { return num_queues_; }
  // Bit q: queue q has leaves in this tier.
  uint64_t filled(Tier tier) const { return filled_[static_cast<size_t>(tier)]; }
  EvictionHeap& heap(Tier tier, uint32_t queue) { return heaps_[HeapIndex(tier, queue)]; }
  uint64_t size() const;

  uint64_t bytes() const;
  // For CheckInvariants: is the node there, and not scored above `score`?
  bool StandsIn(NodeId node, Tier tier, uint32_t queue, uint64_t score) const;
  bool Holds() const;  // O(max nodes ever)

 private:
  uint32_t HeapIndex(Tier tier, uint32_t queue) const {
    return static_cast<uint32_t>(tier) * num_queues_ + queue;
  }
  void Open(NodeId node);

  uint32_t num_queues_;
  uint64_t opened_ = 0;                    // nodes that the arrays have room for
  std::unique_ptr<EvictionHeap[]> heaps_;  // by tier, then queue
  ReservedArray<uint32_t> positions_;
  ReservedArray<uint8_t> homes_;  // by node: heap index + 1, 0 when absent
  std::array<uint64_t, kNumTiers> filled_{};
};

}  // namespace flexkv
