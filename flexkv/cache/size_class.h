// Everything that engines with the same shard sizes share: slots of both tiers, segment groups, one
// radix tree, one eviction order. It keeps blocks and memory consistent with each other; when to
// grow, evict, write back or give back is decided above it. Thread: the control thread only.
//
// Two tiers, one handle. A block that is only in memory has its CPU slot for a handle. Once it is
// on an SSD its SSD slot is the handle (MoveToSsd), and a *copy* in memory may stand beside it.
// Copies may be dropped at any time, in any order; a block without one leaves the tree when it is
// evicted. A copy's CPU slot has one reference for being there, as a resident block's has.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/fixed_divisor.h"
#include "flexkv/base/ids.h"
#include "flexkv/cache/copy_list.h"
#include "flexkv/cache/planner.h"
#include "flexkv/cache/ssd_slots.h"
#include "flexkv/index/radix_tree.h"
#include "flexkv/storage/segment_store.h"
#include "flexkv/storage/slot_table.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv {

class SizeClass {
 public:
  // `segments` outlives the class. Its segments are destroyed with it. `ssd`: nullopt without an
  // SSD tier.
  SizeClass(std::vector<uint64_t> shard_bytes, GroupGeometry geometry,
            std::optional<SsdSlots::Options> ssd, std::unique_ptr<EvictionPolicy> policy,
            SegmentStore* segments);
  ~SizeClass();
  SizeClass(const SizeClass&) = delete;
  SizeClass& operator=(const SizeClass&) = delete;

  const std::vector<uint64_t>& shard_bytes() const { return shard_bytes_; }
  const GroupGeometry& geometry() const { return geometry_; }
  RadixTree& tree() { return *tree_; }
  const RadixTree& tree() const { return *tree_; }
  SlotTable& slots() { return slots_; }
  const SlotTable& slots() const { return slots_; }
  SsdSlots* ssd() { return ssd_.get(); }  // nullptr without an SSD tier
  const SsdSlots* ssd() const { return ssd_.get(); }
  uint64_t block_bytes() const { return block_bytes_; }
  uint64_t bytes_held() const { return uint64_t{slots_.num_groups()} * geometry_.group_bytes; }

  // --- groups of the CPU tier -------------------------------------------------------------------
  // One more group, all ranks' segments or none. ResourceExhausted: no memory, or max_groups.
  absl::Status AddGroup();
  // Begins to empty the group with the fewest used slots, or goes on with those begun; one more is
  // begun when leases or copies hold up all of them, up to kMaxDrains. False when there is nothing
  // to empty.
  static constexpr size_t kMaxDrains = 4;
  bool StartDraining();
  // Uses half-emptied groups again.
  void StopDraining();
  // Erases idle blocks of the draining groups, looking at no more than `budget` slots of each;
  // gives a group's memory back when it is empty. True when that happened. Slots leased or under a
  // copy wait for a later call.
  bool ContinueDraining(uint32_t budget);
  // Gives back one group that stayed empty since before `cutoff`, keeping `keep` empty ones. True
  // when it did. Also notes which groups are empty at `now`.
  bool GiveBackEmpty(TimeNs now, TimeNs cutoff, uint32_t keep);

  // Where the block's shard lies on this rank. REQUIRES: the slot's group is present.
  ArenaPlace PlaceOf(SlotId slot, uint32_t rank, uint32_t engine_index) const;
  // Segments of one rank, ascending; `version` changes whenever the set does.
  void SegmentsOf(uint32_t rank, std::vector<SegmentId>* segments) const;
  uint64_t version() const { return version_; }

  // --- blocks -----------------------------------------------------------------------------------
  // Adds pending blocks (slots already allocated, one reference each for residency).
  absl::Status Insert(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                      std::span<const SlotId> slots, const BlockAccess& access = {});
  // Drops a block and its subtree. Ignores slots the tree does not hold. Returns how many left the
  // tree.
  uint32_t Erase(SlotId slot);
  // Makes a CPU slot's block give way: a copy, of which nothing is lost, or a leaf that is only in
  // memory. Without `keep_copies` copies go first; with it whichever was used least lately.
  // `*ns` tells whose block was lost, 0 when none was. False when nothing gives way; a slot that a
  // transfer uses becomes free later.
  // `reuse`: when the slot is free at once it stays allocated for the caller and is returned here,
  // else kNoSlot; nullptr: it becomes free.
  bool EvictOne(bool keep_copies, NamespaceId* ns, SlotId* reuse = nullptr);
  // Drops a copy only: false when none may go.
  bool DropOneCopy();
  // Evicts one leaf that resides on an SSD; false when none gives way.
  bool EvictFromSsd(NamespaceId* ns);
  void AddNamespace(NamespaceId ns);
  void DropNamespace(NamespaceId ns);
  uint64_t BlocksOf(NamespaceId ns) const;
  // Blocks of the tree whose handle is in that tier.
  uint64_t resident(Tier tier) const { return resident_[static_cast<size_t>(tier)]; }
  NamespaceId OwnerOf(SlotId handle) const { return OwnerAt(handle); }

  // --- the SSD tier: REQUIRES ssd() -------------------------------------------------------------
  // The block was written: `ssd` is its handle now, its CPU slot the copy. REQUIRES: the tree holds
  // `cpu` unpinned.
  void MoveToSsd(SlotId cpu, SlotId ssd);
  // The CPU slot that holds the block's bytes: the handle itself, its copy, or kNoSlot.
  SlotId InMemory(SlotId handle) const;
  // `cpu` (allocated, filled) becomes the copy of a block that has none.
  void AddCopy(SlotId ssd, SlotId cpu);
  void TouchCopy(SlotId ssd);  // it was used
  uint64_t num_copies() const { return copies_.size(); }
  // SSD slots whose blocks left the tree since the last call: the device is to be told.
  std::vector<SlotId> TakeLeft();
  size_t left() const { return left_.size(); }  // not taken yet
  // Erases idle blocks that reside in this group, looking at up to `budget` slots from `*cursor`
  // on; returns how many left the tree.
  uint32_t DrainSsdGroup(uint32_t group, uint32_t budget, uint32_t* cursor);
  // What eviction took while draining, since the last call (for the counters).
  std::vector<NamespaceId> TakeDrained();

  // Expected references of CPU slots: residency here plus `op_refs` (by slot index).
  absl::Status CheckInvariants(const std::vector<uint32_t>& op_refs) const;

 private:
  static constexpr uint32_t kNoGroup = UINT32_MAX;
  static constexpr uint32_t kNoCopy = UINT32_MAX;
  struct Group {
    std::vector<SegmentId> segments;  // one per rank; empty = position unused
    TimeNs empty_since = 0;           // 0 = not seen empty
  };

  struct Drain {
    uint32_t group = 0;
    uint32_t cursor = 0;
    bool held_up = false;  // looked at all its slots and some are still in use
  };

  bool IsDraining(uint32_t group) const;
  void ContinueDrain(Drain* drain, uint32_t budget);
  void Forget(std::span<const SlotId> freed);
  void NoteGone(SlotId slot);
  uint64_t* CountOf(NamespaceId ns);
  void DestroyGroup(uint32_t position);
  void DropCopy(SlotId ssd);
  NamespaceId OwnerAt(SlotId handle) const {
    return owner_[static_cast<size_t>(handle.tier())][handle.index()];
  }
  void NoteCapacity();  // tells the policy
  void SetOwner(SlotId handle, NamespaceId ns);
  absl::Status CheckCpuSlots(const std::vector<uint32_t>& op_refs) const;
  absl::Status CheckCopies() const;

  const std::vector<uint64_t> shard_bytes_;
  const GroupGeometry geometry_;
  const FixedDivisor slots_per_group_;
  uint64_t block_bytes_ = 0;
  SegmentStore* const segments_;
  SlotTable slots_;
  std::unique_ptr<SsdSlots> ssd_;
  std::unique_ptr<RadixTree> tree_;
  std::vector<Group> groups_;
  // By tier and slot index; meaningful while the tree holds the slot.
  std::array<std::vector<NamespaceId>, 2> owner_;
  std::array<uint64_t, 2> resident_{};
  std::vector<uint32_t> copy_of_;  // by SSD slot: index of the CPU slot with its copy, or kNoCopy
  CopyList copies_;
  std::vector<SlotId> left_;  // SSD slots
  absl::flat_hash_map<NamespaceId, uint64_t> blocks_of_;
  // Where the count of one namespace is, until the table changes: most blocks that leave are of the
  // same as the one before.
  NamespaceId counted_ns_ = 0;
  uint64_t* counted_ = nullptr;
  std::vector<Drain> drains_;
  std::vector<NamespaceId> drained_;
  uint64_t version_ = 1;
  std::vector<SlotId> freed_;  // scratch
};

}  // namespace flexkv
