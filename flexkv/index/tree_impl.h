// Inside of RadixTree. The parts lie in files by topic: tree_match.cc (lookups), tree_change.cc
// (insert, commit, erase, split, merge), tree_evict.cc (eviction and leases), tree_check.cc
// (invariants).
//
// Shape. A node holds a run of 1..64 blocks between two anchors (depths that are multiples of 64).
// Its first block's hash is in `heads`; its blocks' slots are in `slots`. Children are a doubly
// linked list; the nodes at depth 0 are the children of their namespace's root.
//
// A split gives the *front* of a run to a new node, so that the children of the old one keep their
// parent link: O(blocks of a run), whatever the number of children. A node left with a single child
// inside the same anchor segment takes it in again, so that shared prefixes do not stay cut up
// after their branches are gone.
#pragma once

#include <array>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "flexkv/index/eviction_heap.h"
#include "flexkv/index/head_table.h"
#include "flexkv/index/node_store.h"
#include "flexkv/index/radix_tree.h"
#include "flexkv/index/require.h"
#include "flexkv/index/slot_map.h"

namespace flexkv {

struct RadixTree::Impl {
  // Where a walk along a chain ended: the block at depth `blocks - 1` is block `last_len - 1` of
  // `node`.
  struct WalkEnd {
    uint32_t blocks = 0;
    NodeId node = kNoNode;
    uint32_t last_len = 0;
  };
  struct Lane;  // one anchor segment of a chain being looked up (tree_match.cc)

  explicit Impl(Options options);

  // --- lookup (tree_match.cc) -------------------------------------------------------------------
  PrefixMatch Match(NamespaceId ns, std::span<const BlockHash> chain, std::span<SlotId> out,
                    const BlockAccess& access);
  void ResolveLanes(NamespaceId ns, std::span<const BlockHash> chain, std::span<Lane> lanes) const;
  bool TakeLane(const Lane& lane, NodeId* previous, uint32_t touched_before, PrefixMatch* match,
                std::span<SlotId> out);
  // Longest prefix present (kReadyOnly: ready). Bisects over the anchors, trusting chained hashes.
  template <bool kReadyOnly>
  WalkEnd FindPrefix(NamespaceId ns, std::span<const BlockHash> chain) const;
  template <bool kReadyOnly, bool kExact>
  uint32_t CountAnchors(NamespaceId ns, std::span<const BlockHash> chain) const;
  // Walks the segment that starts at `start` (an anchor) as far as the chain is present.
  WalkEnd WalkSegment(NamespaceId ns, std::span<const BlockHash> chain, uint32_t start) const;
  NodeId FindHead(uint32_t key, NamespaceId ns, const BlockHash& hash, uint32_t depth) const;
  NodeId FindChild(uint32_t key, NamespaceId ns, const BlockHash& hash, NodeId parent) const;

  // --- change (tree_change.cc) ------------------------------------------------------------------
  absl::Status InsertPending(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                             std::span<const SlotId> new_slots, const BlockAccess& access);
  absl::Status CheckInsert(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                           std::span<const SlotId> new_slots) const;
  // Finds the block before `first` and checks that chain[first] is not behind it.
  absl::Status FindParent(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                          WalkEnd* parent) const;
  void AppendBlocks(NodeId id, std::span<const BlockHash> hashes,
                    std::span<const SlotId> new_slots);
  // Of the block before block `offset` of the node; nullptr at the root.
  const PolicyWord* WordBefore(const Node& node, uint32_t offset) const;
  NodeId AddNode(NamespaceId ns, NodeId parent, uint32_t depth, uint32_t blocks,
                 const BlockHash& head);
  bool Commit(SlotId slot);
  bool AdvanceReady(NodeId id);
  void CascadeReady(NodeId id);
  void Erase(SlotId slot, std::vector<SlotId>* freed);
  void DropNamespace(NamespaceId ns, std::vector<SlotId>* freed);
  void EraseDescendants(NodeId id, std::vector<SlotId>* freed);
  // Blocks [keep, len) leave; the node has no children. keep == 0 removes the node.
  void Truncate(NodeId id, uint32_t keep, std::vector<SlotId>* freed);
  void RemoveNode(NodeId id);
  // Gives the first `count` blocks to a new node in front; returns that node.
  NodeId SplitFront(NodeId id, uint32_t count);
  // If the node has one child, in its own segment, that child takes in the node's blocks.
  void MaybeMerge(NodeId id);
  void Link(NodeId id, NodeId parent);
  void Unlink(NodeId id);
  // `id` takes the place of `old` among its siblings and under its parent.
  void TakePlace(NodeId id, NodeId old);
  NodeId& FirstChildOf(NodeId parent, NamespaceId ns);

  // --- eviction and leases (tree_evict.cc) ------------------------------------------------------
  bool Evictable(const Node& node) const;
  // Puts the node into the eviction order, moves it there, or takes it out: call after any change
  // to its tail, its children or its tail's pins.
  void UpdateEvictable(NodeId id);
  void RemoveEvictable(NodeId id);
  // The heap whose top is the next to go; nullptr when the tier has no evictable leaf.
  EvictionHeap* PickHeap(Tier tier);
  uint32_t PickQueue(Tier tier);  // REQUIRES: the tier has an evictable leaf
  bool TopIsExact(EvictionHeap* heap, Tier tier, uint32_t queue);
  std::optional<uint64_t> LowestScore(Tier tier);
  SlotId EvictOne(Tier tier);
  void Rename(SlotId from, SlotId to);
  bool SubtreeInUse(SlotId slot) const;
  NamespaceId Pin(SlotId slot);
  void Unpin(NamespaceId ns, SlotId slot);
  Place Held(SlotId slot) const;  // aborts when the tree does not hold the slot
  // The node after `id` when the subtree of `root` is walked parents first; kNoNode at its end.
  NodeId NextInSubtree(NodeId root, NodeId id) const;
  static uint32_t OffsetOf(const Node& node, Place place) {
    return place.lane - node.depth % kAnchorBlocks;
  }

  // --- checks (tree_check.cc) -------------------------------------------------------------------
  absl::Status CheckInvariants() const;
  absl::Status CheckNode(NodeId id, RadixTreeStats* sums) const;
  absl::Status CheckBlocks(NodeId id, RadixTreeStats* sums) const;
  uint64_t Bytes() const;

  std::unique_ptr<EvictionPolicy> policy;
  NodeStore nodes;
  HeadTable heads;
  SlotMap slots;
  EvictionOrder evictable;                         // a leaf's tier is that of its last block
  absl::flat_hash_map<NamespaceId, NodeId> roots;  // first node at depth 0
  uint64_t num_blocks = 0;
  uint64_t num_ready = 0;
  uint64_t num_pins = 0;
  std::vector<NodeId> stack;                   // scratch of CascadeReady, kept for its capacity
  std::vector<EvictionPolicy::QueueTop> tops;  // scratch of PickHeap
};

}  // namespace flexkv
