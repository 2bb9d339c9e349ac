// Eviction order and leases.
//
// The heap holds exactly the evictable leaves, keyed by the policy's score of their last block.
// Keys are kept exact eagerly: a match touches at most one leaf's tail, so it costs one sift; in
// return no eviction ever has to work through leaves whose stored score has gone stale.
#include <algorithm>

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
  const auto tier = static_cast<size_t>(node.slots()[node.len - 1].tier());
  for (size_t other = 0; other < evictable.size(); ++other) {
    if (other != tier && evictable[other].Contains(id)) evictable[other].Remove(id);
  }
  evictable[tier].Put(id, policy->Score(node.words()[node.len - 1], node.end() - 1));
}

void RadixTree::Impl::RemoveEvictable(NodeId id) {
  for (EvictionHeap& heap : evictable) {
    if (heap.Contains(id)) heap.Remove(id);
  }
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
  EvictionHeap& order = evictable[static_cast<size_t>(tier)];
  if (order.empty()) return kNoSlot;
  NodeId id = order.top();
  // A policy may let scores rise by themselves; the stored one is then only a lower bound.
  for (;;) {
    const Node& node = nodes[id];
    const uint64_t score = policy->Score(node.words()[node.len - 1], node.end() - 1);
    if (score <= order.top_score()) break;
    order.Put(id, score);
    if (order.top() == id) break;
    id = order.top();
  }
  Node& node = nodes[id];
  const SlotId slot = node.slots()[node.len - 1];
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
