// What one segment's files tell. ssd_recovery.cc reads its log, ssd_rebuild.cc the headers of its
// slots where the log is lost.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "flexkv/storage/ssd/ssd_replay.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv::ssd {

struct SegmentFiles {
  std::optional<uint64_t> data_bytes, log_bytes;
};

// The first pages of a region.
struct Probe {
  bool good = false;  // the header
  RegionHeader header;
  uint64_t max_epoch = 0;  // of header and first page

  // A header that is older than its pages, or damaged with pages behind it, was lost.
  bool header_lost() const { return max_epoch > (good ? header.epoch : 0); }
};

class SegmentRecovery {
 public:
  SegmentRecovery(StoreState* state, Segment* segment, const SegmentFiles& files,
                  std::vector<RecoveredBlock>* blocks)
      : state_(state), segment_(segment), files_(files), blocks_(blocks), first_(blocks->size()) {}

  // False: nothing was ever in it; its files may go.
  bool Run();
  size_t first_block() const { return first_; }

 private:
  Probe ProbeRegion(uint32_t region, uint64_t offset);
  void ProbeRegions();
  const Probe* Newest() const;
  bool ReadLog(SegmentImage* image);
  RegionVerdict Replay(uint32_t region, SegmentImage* image);
  std::optional<SsdShape> FindShape();
  void Rebuild();
  void Salvage(SegmentImage* image);
  void SalvagePage(const std::byte* page, uint64_t region_epoch, SegmentImage* image);
  void ReadHeaders(SegmentImage* image);
  void MarkUnreadable();
  uint64_t log_end() const { return files_.log_bytes.value_or(0); }

  StoreState* const state_;
  Segment* const segment_;
  const SegmentFiles files_;
  std::vector<RecoveredBlock>* const blocks_;
  const size_t first_;
  Probe probes_[2];
};

// Gives a rebuilt segment a log; where that fails its blocks are only read.
void WriteNewLog(StoreState* state, Segment* segment, std::span<const RecoveredBlock> blocks);

}  // namespace flexkv::ssd
