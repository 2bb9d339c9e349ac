// Room for blocks of one size class on the SSD devices. Pure state, no I/O.
//
// A group is one segment of a device; its slots have numbers [group * stride, group * stride +
// slots), so an index says which device, segment and slot. New blocks go to the devices in turn
// (striping). A slot is free, used, or lost (the device will not take it again); a used one holds a
// block, is being written, or waits until the device has made its freeing durable.
// Thread: the control thread only.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/ids.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv {

class SsdSlots {
 public:
  struct Options {
    uint32_t devices = 1;
    uint32_t stride = 1;      // most slots that a segment of this class has
    uint32_t max_groups = 0;  // stride * max_groups fits a SlotId
  };
  explicit SsdSlots(const Options& options);

  uint32_t index_bound() const { return options_.stride * options_.max_groups; }

  // --- groups -----------------------------------------------------------------------------------
  // A segment with all slots free; nullopt: no group position is left, or more slots than `stride`.
  std::optional<uint32_t> AddGroup(uint32_t device, uint32_t segment, uint32_t slots);
  // Nothing more is written to it (its segment is retired, or to be given back).
  void CloseGroup(uint32_t group);
  // REQUIRES: GroupIsIdle(group).
  void RemoveGroup(uint32_t group);
  bool HasGroup(uint32_t group) const { return group < groups_.size() && groups_[group].present; }
  bool IsClosed(uint32_t group) const { return groups_[group].closed; }
  bool GroupIsIdle(uint32_t group) const;  // no slot is used; lost ones do not count
  uint32_t GroupUsed(uint32_t group) const { return groups_[group].used; }
  uint32_t GroupSlots(uint32_t group) const { return groups_[group].slots; }
  uint32_t DeviceOf(uint32_t group) const { return groups_[group].device; }
  uint32_t SegmentOf(uint32_t group) const { return groups_[group].segment; }
  uint32_t group_end() const { return static_cast<uint32_t>(groups_.size()); }

  // --- slots ------------------------------------------------------------------------------------
  // A free slot of an open group, on a device that `usable` allows (by device), which is then used.
  std::optional<SlotId> Allocate(const std::vector<bool>& usable);
  void Occupy(SlotId slot);  // REQUIRES: free; for blocks found on a device
  void Free(SlotId slot);    // REQUIRES: used
  void Lose(SlotId slot);    // REQUIRES: used
  bool IsUsed(SlotId slot) const;
  // A write or free in the group failed, or one went well. True from the third failure in a row on:
  // it is not the slot, it is the segment.
  bool NoteResult(uint32_t group, bool ok);

  uint32_t GroupOf(SlotId slot) const { return slot.index() / options_.stride; }
  SsdPlace PlaceOf(SlotId slot) const {
    return {groups_[GroupOf(slot)].segment, slot.index() % options_.stride};
  }
  SlotId SlotAt(uint32_t group, uint32_t slot) const {
    return SlotId::Make(Tier::kSsd, group * options_.stride + slot);
  }

  uint32_t num_groups() const { return num_groups_; }
  uint32_t closed_groups() const { return closed_groups_; }
  uint64_t all_slots() const { return all_slots_; }  // of all groups, whatever their state
  uint64_t capacity() const { return capacity_; }    // lost slots and closed groups left out
  uint64_t used() const { return used_; }
  uint64_t free_slots() const { return capacity_ - used_in_open_; }  // of open groups
  // States, counters and free lists agree. Internal otherwise.
  absl::Status CheckInvariants() const;

 private:
  enum class State : uint8_t { kFree, kUsed, kLost };
  struct Group {
    bool present = false, closed = false;
    uint32_t device = 0, segment = 0, slots = 0;
    uint32_t used = 0, lost = 0;
    uint32_t failures = 0;  // in a row
    std::vector<State> states;
    std::vector<uint32_t> free;  // taken from the end; may name slots occupied since
  };

  std::optional<SlotId> AllocateFrom(uint32_t group);
  Group& GroupFor(SlotId slot) { return groups_[GroupOf(slot)]; }

  const Options options_;
  std::vector<Group> groups_;
  uint32_t num_groups_ = 0, closed_groups_ = 0;
  uint64_t all_slots_ = 0;
  uint64_t capacity_ = 0;
  uint64_t used_ = 0;
  uint64_t used_in_open_ = 0;
  uint32_t next_device_ = 0;
  std::vector<uint32_t> first_with_room_;  // by device: groups before it have no free slot
};

}  // namespace flexkv
