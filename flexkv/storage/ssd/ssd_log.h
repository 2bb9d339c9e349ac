// Writing of a segment's log: pages of records, and the checkpoint that opens a region.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "flexkv/storage/ssd/ssd_io.h"
#include "flexkv/storage/ssd/ssd_segment.h"

namespace flexkv::ssd {

// Consecutive log pages in memory.
class PageBuilder {
 public:
  // `id` says store, segment, region epoch and number of the first page.
  PageBuilder(const LogPageInfo& id, size_t capacity_pages);

  bool Add(const LogRecord& record);                                // false: no room
  size_t full_pages() const { return used_ == 0 ? 0 : used_ - 1; }  // all but the one being filled
  // Seals all but the page being filled / all of them, the last one marked where `last`.
  std::span<const std::byte> SealFull();
  std::span<const std::byte> SealAll(bool last);
  // Forgets what SealFull returned and goes on behind it.
  void DropFull();
  uint32_t first_page() const { return id_.page; }
  uint32_t next_page() const { return id_.page + static_cast<uint32_t>(used_); }

 private:
  void SealPage(size_t index, bool last);

  LogPageInfo id_;  // of the first page in the buffer
  PageBuffer buffer_;
  size_t used_ = 0;     // pages begun
  uint32_t count_ = 0;  // records in the page being filled
};

// One transfer of the log file.
struct LogIo {
  IoKind kind = IoKind::kSync;
  uint64_t offset = 0;
  std::span<std::byte> memory;  // written as it is, or read into
};

// Moves a log to its other region: header, sync, checkpoint pages, sync; from then on the log is
// appended to there. A program of transfers that its caller runs one after the other, blocking or
// not. The header is durable before any page: an attempt that a crash ended left its epoch there,
// so no two attempts write pages of one epoch. Until the last sync the old region is untouched.
//
// Live commit records come from the old region's pages, read back and checked, or, where there is
// no good old region, from `blocks`.
class TurnOver {
 public:
  TurnOver(const StoreId& store, Segment* segment, const EpochMap& epochs);
  TurnOver(const StoreId& store, Segment* segment, const EpochMap& epochs,
           std::span<const RecoveredBlock> blocks);

  // The next transfer; nullopt: the new region is in use.
  std::optional<LogIo> Next();
  // After a transfer worked. False: what was read does not verify, the log must not be moved.
  bool Done();

 private:
  // The transfer that Next returned last.
  enum class Step : uint8_t {
    kNone,
    kHeader,
    kHeaderSync,
    kRead,
    kWrite,
    kWriteLast,
    kSync,
  };
  static constexpr uint32_t kChunkPages = 256;
  static constexpr uint32_t kWritePages = 64;

  void Begin(const EpochMap& epochs);
  void Fill();
  bool TakeChunk();
  LogIo ReadChunk();
  LogIo WritePages();
  LogIo ReadOrWrite();
  uint64_t Offset(uint32_t region, uint32_t page) const;

  const StoreId store_;
  Segment* const segment_;
  const std::span<const RecoveredBlock> blocks_;
  const uint32_t source_end_;  // pages of the old region below are read
  const uint32_t region_;      // the new one
  const uint64_t epoch_;
  PageBuffer header_;
  PageBuffer chunk_;
  PageBuilder pages_;
  Step step_ = Step::kNone;
  uint32_t next_slot_ = 0;    // quarantined ones below are in
  size_t next_block_ = 0;     // of blocks_
  uint32_t source_page_ = 1;  // next to read
  uint32_t chunk_first_ = 0, chunk_count_ = 0;
};

// Id of the next appended page, the first of its group.
LogPageInfo AppendPageId(const StoreId& store, const Segment& segment);

}  // namespace flexkv::ssd
