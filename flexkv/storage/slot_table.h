// Which slots of one size class are free, used or shared with transfers in flight. Pure state, no
// I/O.
//
// A size class (all engines whose blocks have the same shard sizes) owns segment groups: one
// segment per rank, each cut into `slots_per_group` shards. Slot index = group position *
// slots_per_group + number within the group, so an index says the same place on every rank. Group
// positions are reused after a group was given back.
//
// A slot has a reference count: one for residency in the index, one for each transfer op that reads
// or writes it. It is free only at zero: memory that a copy still owns is never handed out again.
//
// Allocation prefers the fullest groups, so that others run empty and can be given back.
// Thread: the control thread only.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/ids.h"

namespace flexkv {

class SlotTable {
 public:
  struct Options {
    uint32_t slots_per_group = 0;
    uint32_t max_groups = 0;
    Tier tier = Tier::kCpu;
  };
  explicit SlotTable(Options options);
  ~SlotTable();

  // Adds a group of free slots; returns its position. ResourceExhausted beyond max_groups.
  absl::StatusOr<uint32_t> AddGroup();
  // Takes an empty group away. FailedPrecondition when a slot of it is used.
  absl::Status RemoveGroup(uint32_t group);
  // No new slots are handed out from a closed group (it is being emptied). Reopen undoes it.
  void CloseGroup(uint32_t group);
  void ReopenGroup(uint32_t group);

  // One free slot with reference count 1. O(1). nullopt when none is free.
  std::optional<SlotId> Allocate();
  void Ref(SlotId slot);  // REQUIRES: count > 0
  // Drops a reference; true when that freed the slot.
  bool Unref(SlotId slot);  // REQUIRES: count > 0
  uint32_t RefCount(SlotId slot) const;
  // The slot has one reference, and would be handed out again if that were dropped: whoever holds
  // it may use the slot for another block instead.
  bool MayChangeHands(SlotId slot) const;

  uint32_t slots_per_group() const;
  uint32_t num_groups() const;  // groups present
  uint64_t capacity() const;    // slots in present groups
  uint64_t used() const;        // slots with references, closed groups included
  uint64_t free_slots() const;  // free slots that Allocate may hand out
  uint32_t GroupUsed(uint32_t group) const;
  bool HasGroup(uint32_t group) const;
  // Conservation: free + used + free-in-closed = capacity, free lists agree with counts. Internal
  // otherwise.
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Move-only reservation of freshly allocated slots: what is not taken returns when it dies.
class SlotReservation {
 public:
  SlotReservation() = default;
  // Reserves up to `count` slots (fewer when fewer are free).
  static SlotReservation UpTo(SlotTable* table, uint32_t count);
  SlotReservation(SlotReservation&& other) noexcept;
  SlotReservation& operator=(SlotReservation&& other) noexcept;
  ~SlotReservation();

  std::span<const SlotId> slots() const { return slots_; }
  // The first `count` slots now belong to the caller (their reference is not dropped); the rest
  // return.
  std::vector<SlotId> Take(uint32_t count);

 private:
  SlotTable* table_ = nullptr;  // outlives the reservation
  std::vector<SlotId> slots_;
};

}  // namespace flexkv
