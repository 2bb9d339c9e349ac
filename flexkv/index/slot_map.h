// Slot -> where its block lies in the tree, and how often it is pinned: 8 bytes a slot.
//
// A block's place is its node and its *lane*: its depth modulo kAnchorBlocks. Since runs never
// cross an anchor, the lane survives splits and merges; only the node changes, and only for one of
// the halves. Pins live here because leases come with a slot, and so cost no memory per block of
// their own.
#pragma once

#include <array>
#include <cstdint>
#include <utility>

#include "flexkv/base/ids.h"
#include "flexkv/index/head_table.h"
#include "flexkv/index/require.h"
#include "flexkv/index/reserved_memory.h"

namespace flexkv {

struct Place {
  NodeId node = kNoNode;
  uint32_t lane = 0;
};

class SlotMap {
 public:
  explicit SlotMap(uint32_t max_slots) : max_slots_(max_slots) {}

  // False for a slot no tree with these options can hold.
  bool InRange(SlotId slot) const {
    return slot.valid() && slot.index() < max_slots_ && slot.value >> 30 < kNumTiers;
  }
  bool Holds(SlotId slot) const { return Get(slot) != 0; }
  // node is kNoNode when the slot is not held.
  Place Find(SlotId slot) const {
    const uint64_t entry = Get(slot);
    return {static_cast<NodeId>(entry) - 1, static_cast<uint32_t>(entry >> 32) & 63};
  }
  uint32_t Pins(SlotId slot) const { return static_cast<uint32_t>(Get(slot) >> kPinShift); }

  // Opens room for `slot`; needed once before Add.
  void Ensure(SlotId slot) {
    ReservedArray<uint64_t>& entries = tiers_[slot.value >> 30];
    if (!entries.reserved()) [[unlikely]]
      entries.Reserve(max_slots_);
    entries.Ensure(slot.index() + 1u);
  }
  void Add(SlotId slot, NodeId node, uint32_t lane) {
    uint64_t& entry = Entry(slot);
    Require(entry == 0, "an inserted slot is not in use by the tree");
    entry = (node + 1ull) | (static_cast<uint64_t>(lane) << 32);
  }
  void Move(SlotId slot, NodeId node) {
    uint64_t& entry = Entry(slot);
    entry = (entry & ~0xffffffffull) | (node + 1ull);
  }
  // The block in `from` resides in `to` from now on. REQUIRES: `from` is held and not pinned.
  void Rename(SlotId from, SlotId to) {
    uint64_t& old = Entry(from);
    uint64_t& entry = Entry(to);
    Require(entry == 0, "a slot that a block moves to is not in use by the tree");
    entry = std::exchange(old, 0);
  }
  // Returns how many pins went with it.
  uint32_t Remove(SlotId slot) {
    uint64_t& entry = Entry(slot);
    const uint64_t pins = entry >> kPinShift;
    entry = 0;
    return static_cast<uint32_t>(pins);
  }
  void Pin(SlotId slot) {
    uint64_t& entry = Entry(slot);
    Require(entry >> kPinShift < kMaxPins, "fewer than 2^26 leases end at one block");
    entry += 1ull << kPinShift;
  }
  // REQUIRES: pinned.
  void Unpin(SlotId slot) { Entry(slot) -= 1ull << kPinShift; }

  void Prefetch(SlotId slot) const {
    __builtin_prefetch(tiers_[slot.value >> 30].data() + slot.index(), 1);
  }

  uint64_t bytes() const {
    uint64_t bytes = 0;
    for (const auto& tier : tiers_) bytes += tier.bytes();
    return bytes;
  }
  // Slots held, by counting. For CheckInvariants.
  uint64_t CountHeld() const {
    uint64_t held = 0;
    for (const auto& tier : tiers_) {
      for (size_t i = 0; i < tier.usable(); ++i) held += tier[i] != 0;
    }
    return held;
  }

 private:
  // Entry: node + 1 (32 bits; 0 when not held), lane (6 bits), pins (26 bits).
  static constexpr int kPinShift = 38;
  static constexpr uint64_t kMaxPins = (1ull << 26) - 1;

  uint64_t Get(SlotId slot) const {
    const uint32_t tier = slot.value >> 30;
    if (tier >= kNumTiers || slot.index() >= tiers_[tier].usable()) return 0;
    return tiers_[tier][slot.index()];
  }
  uint64_t& Entry(SlotId slot) { return tiers_[slot.value >> 30][slot.index()]; }

  uint32_t max_slots_;
  std::array<ReservedArray<uint64_t>, kNumTiers> tiers_;
};

}  // namespace flexkv
