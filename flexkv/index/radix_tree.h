// The prefix index: hash chains to block entries.
//
// A path-compressed radix tree whose nodes hold runs of consecutive blocks. Because block hashes
// are chained (equal hash = equal prefix), a node is found by the hash of its first block alone, a
// whole run is confirmed by comparing its last block, and a partial run by bisection. Runs never
// cross a depth that is a multiple of kAnchorBlocks, so every such depth on every path starts a
// node: matching can prefetch those nodes independently, and the hit length alone can be bisected
// over them.
//
// States of a block: *pending* (bytes arriving, invisible to Match), *arrived* (bytes in, but a
// parent is not ready yet), *ready*. Invariant: a block is ready only if its parent is; readiness
// is a prefix of every path. Losing a block detaches its whole subtree at once.
//
// A block is named by the slot it resides in (SlotId): the tree keeps slot -> place, so a handle
// stays valid when nodes split. The tree does not own slots: whoever inserts a block passes its
// slot, and gets it back through the callback-free `std::vector<SlotId>& freed` out-parameters.
//
// Leases: Pin(slot) keeps that block, hence its whole prefix (leaves go first), from eviction.
//
// Cost: Match O(nodes on the path), HitLength O(log blocks), Insert O(1) per block, EvictOne O(log
// leaves), never a scan over leaves or blocks. At most 96 bytes a block, policy included.
// Thread: the control thread only. Memory only: no I/O, clock or randomness.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/ids.h"
#include "flexkv/index/eviction_policy.h"

namespace flexkv {

// Where the longest ready prefix of a chain lies.
struct PrefixMatch {
  uint32_t num_blocks = 0;  // length of the ready prefix
  SlotId last = kNoSlot;    // slot of its last block; kNoSlot when num_blocks is 0
};

struct RadixTreeStats {
  uint64_t blocks = 0;  // pending + arrived + ready
  uint64_t ready = 0;
  uint64_t nodes = 0;
  uint64_t pinned = 0;  // sum of pin counts
  uint64_t evictable_leaves = 0;
  uint64_t bytes = 0;  // all memory of the tree, eviction order and slot map included
};

class RadixTree {
 public:
  static constexpr uint32_t kAnchorBlocks = 64;

  struct Options {
    uint32_t max_slots =
        0;  // slot indexes are in [0, max_slots); the slot map grows as needed up to it
    std::unique_ptr<EvictionPolicy> policy;  // required
  };

  explicit RadixTree(Options options);
  ~RadixTree();
  RadixTree(const RadixTree&) = delete;
  RadixTree& operator=(const RadixTree&) = delete;

  // --- namespaces -------------------------------------------------------------------------------
  void AddNamespace(NamespaceId ns);
  // Every block of the namespace leaves the tree, leased or not; their slots are appended to
  // `freed`. Later calls with that id match nothing and insert nothing. O(blocks of the namespace).
  void DropNamespace(NamespaceId ns, std::vector<SlotId>* freed);

  // --- lookup -----------------------------------------------------------------------------------
  // Longest ready prefix of `chain` (block hashes from the root on). Touches the policy. When
  // `slots` is not empty its first min(slots.size(), num_blocks) entries receive the blocks' slots.
  PrefixMatch Match(NamespaceId ns, std::span<const BlockHash> chain, std::span<SlotId> slots = {},
                    const BlockAccess& access = {});
  // The same without touching anything. O(log blocks).
  PrefixMatch Find(NamespaceId ns, std::span<const BlockHash> chain) const;
  // Its length.
  uint32_t HitLength(NamespaceId ns, std::span<const BlockHash> chain) const;
  // Length of the longest prefix present in any state (pending blocks included). No side effect.
  uint32_t PresentLength(NamespaceId ns, std::span<const BlockHash> chain) const;

  // --- change -----------------------------------------------------------------------------------
  // Adds chain[first .. first + slots.size()) as pending blocks residing in `slots`. Returns
  // FailedPrecondition when chain[0..first) is not present or chain[first] already is (the caller
  // takes `first` from PresentLength), NotFound for a dropped namespace. Slots must not be in use
  // by the tree.
  absl::Status InsertPending(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                             std::span<const SlotId> slots, const BlockAccess& access = {});
  // The bytes of a pending block are in. It, and arrived descendants behind it, become ready when
  // the parent is. A slot the tree does not hold (its block was dropped meanwhile) is ignored:
  // returns false.
  bool Commit(SlotId slot);
  // The block and its subtree leave the tree, whatever their state; slots appended to `freed`.
  // REQUIRES: no block of the subtree is pinned (pinned blocks are ready and all their ancestors
  // are). A slot the tree does not hold is ignored.
  void Erase(SlotId slot, std::vector<SlotId>* freed);
  // Evicts the unpinned ready leaf block with the lowest score among those that reside in `tier`.
  // kNoSlot when there is none.
  SlotId EvictOne(Tier tier);
  // The block that resides in `from` resides in `to` from now on, and `to` is its handle: after it
  // was written to another tier, or before its last copy in one is dropped. Its place, state and
  // recency stay. REQUIRES: Contains(from), not pinned (leases hold the handle); `to` is not in
  // use.
  void Rename(SlotId from, SlotId to);
  // How many blocks are held of how many there is room for, for the policy.
  void NoteCapacity(uint64_t blocks_used, uint64_t blocks_total);
  uint32_t Pins(SlotId slot) const;  // 0 for a slot the tree does not hold
  // True when the block is in the tree and it or any descendant is pinned or pending.
  bool SubtreeInUse(SlotId slot) const;

  // --- leases -----------------------------------------------------------------------------------
  // REQUIRES for Pin: the slot holds a ready block. Returns a NamespaceId to hand back to Unpin.
  NamespaceId Pin(SlotId slot);
  // Ignored when the namespace was dropped since (its pins went with it).
  void Unpin(NamespaceId ns, SlotId slot);
  // The block `steps` nearer to the root; kNoSlot past the root. Used to trim a lease.
  SlotId Ancestor(SlotId slot, uint32_t steps) const;

  bool Contains(SlotId slot) const;
  bool IsReady(SlotId slot) const;      // false for a slot the tree does not hold
  BlockHash HashOf(SlotId slot) const;  // REQUIRES: Contains(slot)
  uint32_t DepthOf(SlotId slot) const;  // distance from the root; REQUIRES: Contains(slot)
  // EvictionPolicy::Score of the block now. REQUIRES: Contains(slot)
  uint64_t ScoreOf(SlotId slot) const;
  // The priority of the block that stands first in the order; nullopt: there is none.
  std::optional<uint64_t> LowestScore(Tier tier) const;
  // Slots of the last `count` blocks of the path that ends at `last`, root side first.
  // REQUIRES: Contains(last) and the path is at least `count` long.
  void PathSlots(SlotId last, uint32_t count, std::vector<SlotId>* slots) const;

  RadixTreeStats stats() const;
  // Walks everything and returns Internal with the first broken invariant. For tests.
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
