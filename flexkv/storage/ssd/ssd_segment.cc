#include "flexkv/storage/ssd/ssd_segment.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace flexkv {

uint64_t SsdShape::record_bytes() const {
  uint64_t bytes = ssd::kPageBytes;
  for (const uint32_t shard : shard_bytes) bytes += ssd::RoundUpToPage(shard);
  return bytes;
}

}  // namespace flexkv

namespace flexkv::ssd {

void SlotArray::Reset(uint32_t slots, uint32_t generation) {
  Slot empty;
  empty.generation = generation;
  slots_.assign(slots, empty);
  counts_ = {};
  counts_[static_cast<size_t>(SlotState::kFree)] = slots;
}

void SlotArray::Set(uint32_t slot, SlotState state) {
  Slot& entry = slots_[slot];
  --counts_[static_cast<size_t>(entry.state())];
  ++counts_[static_cast<size_t>(state)];
  entry.tag_and_state_ = static_cast<uint32_t>(state) << Slot::kTagBits | entry.tag();
}

void SlotArray::Write(uint32_t slot, SlotState state, uint32_t generation, uint32_t tag,
                      uint64_t checksum) {
  Set(slot, state);
  Slot& entry = slots_[slot];
  entry.generation = generation;
  entry.checksum = checksum;
  entry.tag_and_state_ = static_cast<uint32_t>(state) << Slot::kTagBits | (tag & Slot::kTagMask);
}

bool SlotArray::IsLive(const LogRecord& commit) const {
  if (commit.slot >= slots_.size()) return false;
  const Slot& slot = slots_[commit.slot];
  // A free that is not committed yet: its record comes after the checkpoint.
  const bool holds = slot.state() == SlotState::kCommitted || slot.state() == SlotState::kFreeing;
  return holds && slot.generation == commit.generation && slot.checksum == commit.checksum;
}

uint32_t SlotArray::MaxGeneration() const {
  uint32_t generation = 0;
  for (const Slot& slot : slots_) generation = std::max(generation, slot.generation);
  return generation;
}

absl::Status SlotArray::CheckInvariants() const {
  std::array<uint32_t, kSlotStates> counts{};
  for (const Slot& slot : slots_) {
    const auto state = static_cast<size_t>(slot.state());
    if (state >= kSlotStates) return absl::InternalError("a slot has no known state");
    ++counts[state];
    if (slot.state() != SlotState::kFree && slot.state() != SlotState::kQuarantined &&
        slot.generation == 0) {
      return absl::InternalError("a used slot was never written");
    }
  }
  return counts == counts_ ? absl::OkStatus() : absl::InternalError("counts of slots are wrong");
}

SsdSegmentInfo Segment::Info() const {
  SsdSegmentInfo info;
  info.id = id;
  info.shape = shape;
  info.state = state;
  info.committed = slots.count(SlotState::kCommitted) + slots.count(SlotState::kFreeing);
  info.quarantined = slots.count(SlotState::kQuarantined);
  info.rebuilt = rebuilt;
  info.damaged_records = damaged_records;
  if (info.quarantined + slots.count(SlotState::kLost) == 0) return info;
  for (uint32_t slot = 0; slot < slots.size(); ++slot) {
    const SlotState found = slots[slot].state();
    if (found == SlotState::kQuarantined || found == SlotState::kLost)
      info.unusable.push_back(slot);
  }
  return info;
}

void Segment::SetShape(const SsdShape& given) {
  shape = given;
  record_bytes = given.record_bytes();
  region_pages = RegionPages(given.slots);
}

bool RaiseEpoch(const NamespaceDigest& ns, uint32_t epoch, EpochMap* epochs) {
  auto it = epochs->find(ns);
  if (it == epochs->end()) {
    if (epochs->size() >= kMaxEpochs) return false;
    it = epochs->emplace(ns, epoch).first;
  }
  it->second = std::max(it->second, epoch);
  return true;
}

bool IsOver(const EpochMap& epochs, const SsdIdentity& identity) {
  auto it = epochs.find(identity.ns);
  return it != epochs.end() && identity.epoch < it->second;
}

namespace {

constexpr char kNameFormat[] = "segment-%08u.%s";

std::string NameOf(uint32_t segment, const char* kind) {
  char name[40];
  std::snprintf(name, sizeof(name), kNameFormat, segment, kind);
  return name;
}

}  // namespace

std::string DataName(uint32_t segment) { return NameOf(segment, "data"); }
std::string LogName(uint32_t segment) { return NameOf(segment, "log"); }

bool ParseSegmentName(const std::string& name, uint32_t* segment, bool* is_log) {
  unsigned number = 0;
  char kind[8] = {};
  if (std::sscanf(name.c_str(), "segment-%10u.%4[a-z]", &number, kind) != 2) return false;
  *segment = number;
  *is_log = std::string(kind) == "log";
  return name == NameOf(number, *is_log ? "log" : "data");
}

}  // namespace flexkv::ssd
