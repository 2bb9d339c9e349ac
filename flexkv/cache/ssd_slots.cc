#include "flexkv/cache/ssd_slots.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv {

SsdSlots::SsdSlots(const Options& options) : options_(options), first_with_room_(options.devices) {}

std::optional<uint32_t> SsdSlots::AddGroup(uint32_t device, uint32_t segment, uint32_t slots) {
  if (slots == 0 || slots > options_.stride || device >= options_.devices) return std::nullopt;
  uint32_t at = 0;
  while (at < groups_.size() && groups_[at].present) ++at;
  if (at >= options_.max_groups) return std::nullopt;
  if (at == groups_.size()) groups_.emplace_back();
  Group group;
  group.present = true;
  group.device = device;
  group.segment = segment;
  group.slots = slots;
  group.states.assign(slots, State::kFree);
  group.free.reserve(slots);
  for (uint32_t slot = slots; slot > 0; --slot) group.free.push_back(slot - 1);
  groups_[at] = std::move(group);
  ++num_groups_;
  all_slots_ += slots;
  capacity_ += slots;
  first_with_room_[device] = std::min(first_with_room_[device], at);
  return at;
}

void SsdSlots::CloseGroup(uint32_t at) {
  Group& group = groups_[at];
  if (group.closed) return;
  group.closed = true;
  ++closed_groups_;
  capacity_ -= group.slots - group.lost;
  used_in_open_ -= group.used;
}

bool SsdSlots::GroupIsIdle(uint32_t at) const { return groups_[at].used == 0; }

void SsdSlots::RemoveGroup(uint32_t at) {
  CloseGroup(at);
  all_slots_ -= groups_[at].slots;
  groups_[at] = Group{};
  --num_groups_;
  --closed_groups_;
}

std::optional<SlotId> SsdSlots::AllocateFrom(uint32_t at) {
  Group& group = groups_[at];
  while (!group.free.empty()) {
    const uint32_t slot = group.free.back();
    group.free.pop_back();
    if (group.states[slot] != State::kFree) continue;
    group.states[slot] = State::kUsed;
    ++group.used;
    ++used_;
    ++used_in_open_;
    return SlotAt(at, slot);
  }
  return std::nullopt;
}

std::optional<SlotId> SsdSlots::Allocate(const std::vector<bool>& usable) {
  for (uint32_t turn = 0; turn < options_.devices; ++turn) {
    const uint32_t device = next_device_;
    next_device_ = (next_device_ + 1) % options_.devices;
    if (!usable[device]) continue;
    for (uint32_t& at = first_with_room_[device]; at < groups_.size(); ++at) {
      const Group& group = groups_[at];
      if (!group.present || group.closed || group.device != device) continue;
      if (std::optional<SlotId> slot = AllocateFrom(at); slot.has_value()) return slot;
    }
  }
  return std::nullopt;
}

void SsdSlots::Occupy(SlotId slot) {
  Group& group = GroupFor(slot);
  group.states[slot.index() % options_.stride] = State::kUsed;
  ++group.used;
  ++used_;
  if (!group.closed) ++used_in_open_;
}

void SsdSlots::Free(SlotId slot) {
  Group& group = GroupFor(slot);
  group.states[slot.index() % options_.stride] = State::kFree;
  group.free.push_back(slot.index() % options_.stride);
  --group.used;
  --used_;
  if (group.closed) return;
  --used_in_open_;
  first_with_room_[group.device] = std::min(first_with_room_[group.device], GroupOf(slot));
}

void SsdSlots::Lose(SlotId slot) {
  Group& group = GroupFor(slot);
  group.states[slot.index() % options_.stride] = State::kLost;
  --group.used;
  --used_;
  ++group.lost;
  if (group.closed) return;
  --used_in_open_;
  --capacity_;
}

bool SsdSlots::NoteResult(uint32_t at, bool ok) {
  constexpr uint32_t kFailuresInARow = 3;
  uint32_t& failures = groups_[at].failures;
  failures = ok ? 0 : failures + 1;
  return failures >= kFailuresInARow;
}

bool SsdSlots::IsUsed(SlotId slot) const {
  const uint32_t at = GroupOf(slot);
  if (!HasGroup(at)) return false;
  const uint32_t within = slot.index() % options_.stride;
  return within < groups_[at].slots && groups_[at].states[within] == State::kUsed;
}

absl::Status SsdSlots::CheckInvariants() const {
  uint64_t used = 0, capacity = 0, used_in_open = 0, all = 0;
  uint32_t present = 0, closed = 0;
  for (const Group& group : groups_) {
    if (!group.present) continue;
    ++present;
    closed += group.closed;
    all += group.slots;
    uint32_t group_used = 0, lost = 0, free = 0;
    for (State state : group.states) {
      group_used += state == State::kUsed;
      lost += state == State::kLost;
      free += state == State::kFree;
    }
    if (group_used != group.used || lost != group.lost) {
      return absl::InternalError(absl::StrCat("SSD segment ", group.segment, " lost count"));
    }
    std::vector<bool> listed(group.slots);
    for (uint32_t slot : group.free) listed[slot] = true;
    uint32_t reachable = 0;
    for (uint32_t slot = 0; slot < group.slots; ++slot) {
      reachable += listed[slot] && group.states[slot] == State::kFree;
    }
    if (reachable != free) return absl::InternalError("a free SSD slot is in no free list");
    used += group_used;
    if (group.closed) continue;
    capacity += group.slots - lost;
    used_in_open += group_used;
  }
  if (used != used_ || capacity != capacity_ || used_in_open != used_in_open_ ||
      present != num_groups_ || closed != closed_groups_ || all != all_slots_) {
    return absl::InternalError("SSD slots do not add up");
  }
  return absl::OkStatus();
}

}  // namespace flexkv
