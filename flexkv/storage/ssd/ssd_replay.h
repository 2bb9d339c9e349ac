// From the bytes of a log to the state of its segment. Pure: pages come from wherever the caller
// reads them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "flexkv/storage/ssd/ssd_segment.h"

namespace flexkv::ssd {

// What the records seen so far say of one segment.
class SegmentImage {
 public:
  // `blocks` collects what is committed, behind what is in it; epochs rise in `epochs`.
  SegmentImage(Segment* segment, uint64_t data_bytes, std::vector<RecoveredBlock>* blocks,
               EpochMap* epochs);

  void Reset(uint32_t generation_floor);
  // In the order of the log: a later record of a slot counts.
  void Apply(const LogRecord& record);
  // What a slot's own header says: counts when it is newer than all records.
  void ApplyHeader(const SlotHeader& header);
  // Forgets blocks that are not committed (any more).
  void Compact();
  // A page that should tell something and does not.
  void CountDamage(const std::byte* page);
  uint64_t dropped() const { return dropped_; }

 private:
  static constexpr uint32_t kUntouched = 0xffffffffu;  // no record of the slot so far
  static constexpr uint32_t kNoBlock = 0xfffffffeu;

  void Commit(uint32_t slot, uint32_t generation, uint64_t checksum, const SsdIdentity& identity);

  Segment* const segment_;
  const uint32_t readable_slots_;  // slots that lie within the data file
  std::vector<RecoveredBlock>* const blocks_;
  EpochMap* const epochs_;
  const size_t first_;           // in blocks_, of this segment
  std::vector<uint32_t> entry_;  // of each slot: its block, counted from first_
  uint64_t dropped_ = 0;
};

enum class RegionVerdict : uint8_t {
  kGood,        // a whole checkpoint, and all that was synced behind it
  kIncomplete,  // a checkpoint that a crash ended; nothing was appended
  kDamaged,     // it was in use and something of it is lost
};

// Reads one region, page by page from number 1.
class RegionReplay {
 public:
  RegionReplay(const StoreId& store, const Segment& segment, uint64_t epoch, SegmentImage* image);

  void Feed(const std::byte* page);
  // False: the verdict cannot change any more.
  bool wants_more() const;
  RegionVerdict verdict() const;
  uint32_t next_page() const;  // the first that is not part of the log

 private:
  bool Accept(const LogPageInfo& info) const;

  const StoreId store_;
  const uint32_t segment_;
  const uint32_t region_pages_;
  const uint64_t epoch_;
  SegmentImage* const image_;
  uint32_t page_ = 1;       // next to feed
  uint32_t first_bad_ = 0;  // 0: none yet
  bool complete_ = false;   // the checkpoint's last page was there
  bool damaged_ = false;
};

// A page of this segment's log, whatever its epoch.
bool ParsePageOf(const StoreId& store, uint32_t segment, const std::byte* page, LogPageInfo* info);

}  // namespace flexkv::ssd
