// Eviction order and leases.
//
// The heaps hold exactly the evictable leaves, one for each tier and queue of the policy, keyed by
// the policy's score of their last block.
// Keys are kept exact eagerly: a match touches at most one leaf's tail, so it costs one sift; in
// return no eviction ever has to work through leaves whose stored score has gone stale.
#include <algorithm>
#include <bit>

#include "flexkv/index/tree_impl.h"

namespace flexkv {

bool RadixTree::Impl::Evictable(const Node& node) const {
  if (node.first_child != kNoNode || !node.all_ready()) return false;
  return node.pins == 0 || slots.Pins(node.slots()[node.len - 1]) == 0;
}

void RadixTree::Impl::UpdateEvictable(NodeId id) {
  const Node& node = nodes[id];
  if (!Evictable(node)) {
    RemoveEvictable(id);
    return;
  }
  const Tier tier = node.slots()[node.len - 1].tier();
  const PolicyWord word = node.words()[node.len - 1];
  const uint32_t depth = node.end() - 1;
  const uint32_t queue = evictable.num_queues() == 1 ? 0 : policy->QueueOf(word, depth);
  evictable.Put(id, tier, queue, policy->Score(word, depth));
}

void RadixTree::Impl::RemoveEvictable(NodeId id) {
  if (evictable.Contains(id)) evictable.Remove(id);
}

// A policy may let scores rise by themselves; the stored one is then only a lower bound. False when
// the top's was.
bool RadixTree::Impl::TopIsExact(EvictionHeap* heap, Tier tier, uint32_t queue) {
  const NodeId id = heap->top();
  const Node& node = nodes[id];
  const uint64_t score = policy->Score(node.words()[node.len - 1], node.end() - 1);
  if (score <= heap->top_score()) return true;
  evictable.Put(id, tier, queue, score);
  return false;
}

EvictionHeap* RadixTree::Impl::PickHeap(Tier tier) {
  if (evictable.filled(tier) == 0) return nullptr;
  for (;;) {
    const uint32_t queue = evictable.num_queues() == 1 ? 0 : PickQueue(tier);
    EvictionHeap* heap = &evictable.heap(tier, queue);
    if (TopIsExact(heap, tier, queue)) return heap;
  }
}

uint32_t RadixTree::Impl::PickQueue(Tier tier) {
  tops.clear();
  for (uint64_t filled = evictable.filled(tier); filled != 0; filled &= filled - 1) {
    const auto queue = static_cast<uint32_t>(std::countr_zero(filled));
    const EvictionHeap& heap = evictable.heap(tier, queue);
    const Node& node = nodes[heap.top()];
    tops.push_back({.queue = queue,
                    .word = node.words()[node.len - 1],
                    .depth = node.end() - 1,
                    .score = heap.top_score()});
  }
  const size_t picked = policy->PickQueue(tops);
  Require(picked < tops.size(), "a policy picks one of the queues it is given");
  return tops[picked].queue;
}

std::optional<uint64_t> RadixTree::Impl::LowestScore(Tier tier) {
  const EvictionHeap* heap = PickHeap(tier);
  if (heap == nullptr) return std::nullopt;
  const Node& node = nodes[heap->top()];
  return policy->Score(node.words()[node.len - 1], node.end() - 1);
}

void RadixTree::Impl::Rename(SlotId from, SlotId to) {
  Require(slots.InRange(to), "a slot that a block moves to is in range");
  const Place place = Held(from);
  Require(slots.Pins(from) == 0, "a block that moves is not pinned");
  slots.Ensure(to);
  slots.Rename(from, to);
  Node& node = nodes[place.node];
  const uint32_t offset = OffsetOf(node, place);
  node.slots()[offset] = to;
  if (offset + 1 == node.len) UpdateEvictable(place.node);
}

SlotId RadixTree::Impl::EvictOne(Tier tier) {
  NodeId id = kNoNode;
  for (int reprieves = 0;; ++reprieves) {
    const EvictionHeap* heap = PickHeap(tier);
    if (heap == nullptr) return kNoSlot;
    id = heap->top();
    const Node& picked = nodes[id];
    if (reprieves == EvictionPolicy::kMaxReprieves ||
        !policy->Reprieve(picked.words() + (picked.len - 1), picked.end() - 1)) {
      break;
    }
    UpdateEvictable(id);
  }
  Node& node = nodes[id];
  const uint32_t last = node.len - 1u;
  policy->OnEvict(node.words()[last], node.hashes()[last], node.depth + last);
  const SlotId slot = node.slots()[last];
  slots.Remove(slot);
  --node.len;
  --node.ready;
  --num_blocks;
  --num_ready;
  if (node.len == 0) {
    RemoveNode(id);
  } else {
    slots.Prefetch(node.slots()[node.len - 1]);  // most likely the next victim
    nodes.MaybeShrink(id);
    UpdateEvictable(id);
  }
  return slot;
}

NodeId RadixTree::Impl::NextInSubtree(NodeId root, NodeId id) const {
  if (nodes[id].first_child != kNoNode) return nodes[id].first_child;
  while (id != root) {
    if (nodes[id].next_sibling != kNoNode) return nodes[id].next_sibling;
    id = nodes[id].parent;
  }
  return kNoNode;
}

bool RadixTree::Impl::SubtreeInUse(SlotId slot) const {
  const Place place = slots.Find(slot);
  if (place.node == kNoNode) return false;
  const Node& first = nodes[place.node];
  if (!first.all_ready()) return true;
  for (uint32_t i = OffsetOf(first, place); first.pins != 0 && i < first.len; ++i) {
    if (slots.Pins(first.slots()[i]) != 0) return true;
  }
  NodeId id = NextInSubtree(place.node, place.node);
  for (; id != kNoNode; id = NextInSubtree(place.node, id)) {
    if (!nodes[id].all_ready() || nodes[id].pins != 0) return true;
  }
  return false;
}

Place RadixTree::Impl::Held(SlotId slot) const {
  const Place place = slots.Find(slot);
  Require(place.node != kNoNode, "the tree holds the slot");
  return place;
}

NamespaceId RadixTree::Impl::Pin(SlotId slot) {
  const Place place = Held(slot);
  Node& node = nodes[place.node];
  const uint32_t offset = OffsetOf(node, place);
  Require(offset < node.ready, "a pinned block is ready");
  slots.Pin(slot);
  ++node.pins;
  ++num_pins;
  if (offset + 1 == node.len) UpdateEvictable(place.node);
  return node.ns;
}

void RadixTree::Impl::Unpin(NamespaceId ns, SlotId slot) {
  if (!roots.contains(ns)) return;
  const Place place = Held(slot);
  Node& node = nodes[place.node];
  Require(node.ns == ns && slots.Pins(slot) > 0, "an unpinned block is pinned");
  slots.Unpin(slot);
  --node.pins;
  --num_pins;
  if (OffsetOf(node, place) + 1 == node.len) UpdateEvictable(place.node);
}

}  // namespace flexkv
