// A segment in memory: 16 bytes a slot, and where its log stands. Pure state.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/storage/ssd/ssd_format.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv::ssd {

enum class SlotState : uint8_t {
  kFree,
  kWriting,  // a write was accepted, its group is not committed
  kCommitted,
  kFreeing,      // a free was accepted, its group is not committed
  kQuarantined,  // did not read back as written; never used again
  kLost,         // its write or free failed: what the log says of it is not known
};
inline constexpr int kSlotStates = 6;

class Slot {
 public:
  static constexpr uint32_t kTagBits = 29;
  SlotState state() const { return static_cast<SlotState>(tag_and_state_ >> kTagBits); }
  uint32_t tag() const { return tag_and_state_ & kTagMask; }
  static uint32_t TagOf(const SsdIdentity& identity) { return IdentityTag(identity) & kTagMask; }

  uint64_t checksum = 0;
  uint32_t generation = 0;  // of the last write, committed or not

 private:
  friend class SlotArray;
  static constexpr uint32_t kTagMask = (1u << kTagBits) - 1;
  uint32_t tag_and_state_ = 0;
};
static_assert(sizeof(Slot) == 16);

class SlotArray {
 public:
  void Reset(uint32_t slots, uint32_t generation);  // all free
  uint32_t size() const { return static_cast<uint32_t>(slots_.size()); }
  const Slot& operator[](uint32_t slot) const { return slots_[slot]; }
  // All state changes go through these two, so the counts are right.
  void Set(uint32_t slot, SlotState state);
  void Write(uint32_t slot, SlotState state, uint32_t generation, uint32_t tag, uint64_t checksum);
  uint32_t count(SlotState state) const { return counts_[static_cast<size_t>(state)]; }
  // True: this record is what the slot holds, and a checkpoint must carry it.
  bool IsLive(const LogRecord& commit) const;
  uint32_t MaxGeneration() const;
  absl::Status CheckInvariants() const;

 private:
  std::vector<Slot> slots_;
  std::array<uint32_t, kSlotStates> counts_{};
};

// Where the log is written. Pages are only appended to a region whose checkpoint this life of the
// store has written: what an earlier life left behind the last good page is not known.
struct LogPosition {
  uint32_t region = 0;
  uint64_t epoch = 0;      // of the region in use
  uint64_t max_epoch = 0;  // seen in either region; a new one goes above
  uint32_t next_page = 0;
  bool appendable = false;
};

struct Segment {
  uint32_t id = 0;
  SsdShape shape;  // empty when unreadable
  uint64_t record_bytes = 0;
  uint32_t region_pages = 0;
  FileId data = 0, log = 0;
  bool data_open = false, log_open = false;
  uint64_t data_bytes = 0, log_bytes = 0;  // of the files that exist
  SegmentState state = SegmentState::kOpen;
  bool rebuilt = false;
  uint64_t damaged_records = 0;
  SlotArray slots;
  LogPosition position;
  uint32_t faults = 0;       // slots quarantined in this life
  uint32_t pending_ops = 0;  // accepted and without result
  bool committing = false;   // part of the group being committed
  // Its log, as it lies, has every epoch known: its own record of it or a checkpoint's.
  bool carries_epochs = false;

  SsdSegmentInfo Info() const;
  uint64_t file_bytes() const { return data_bytes + log_bytes; }
  void SetShape(const SsdShape& given);
  uint64_t PayloadOffset(uint32_t slot) const { return slot * record_bytes + kPageBytes; }
  uint64_t RegionOffset(uint32_t region) const {
    return uint64_t{region} * region_pages * kPageBytes;
  }
};

using SegmentMap = std::map<uint32_t, std::unique_ptr<Segment>>;
using EpochMap = std::map<NamespaceDigest, uint32_t>;

// Raises an epoch. False: the table is full.
bool RaiseEpoch(const NamespaceDigest& ns, uint32_t epoch, EpochMap* epochs);
// True: the namespace has a later epoch than the block.
bool IsOver(const EpochMap& epochs, const SsdIdentity& identity);

std::string DataName(uint32_t segment);
std::string LogName(uint32_t segment);
// False: not the name of a segment's file.
bool ParseSegmentName(const std::string& name, uint32_t* segment, bool* is_log);

}  // namespace flexkv::ssd
