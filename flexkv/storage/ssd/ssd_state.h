// What the parts of the store share. One thread.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/storage/ssd/ssd_format.h"
#include "flexkv/storage/ssd/ssd_io.h"
#include "flexkv/storage/ssd/ssd_log.h"
#include "flexkv/storage/ssd/ssd_segment.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv::ssd {

struct StoreState {
  StoreState(const SsdStoreOptions& given, Disk* disk, const Clock* given_clock)
      : options(given), clock(given_clock), io(disk) {}

  const SsdStoreOptions options;
  const Clock* const clock;
  IoDriver io;
  Superblock superblock;    // as it lies on disk
  int superblock_copy = 0;  // that has it; the other one may be older
  SegmentMap segments;
  EpochMap epochs;
  SsdStoreStats stats;
  std::vector<SsdResult> results;         // not handed out yet
  std::vector<uint32_t> result_segments;  // where each of them belongs; 0: to none

  Segment* Find(uint32_t segment);
  // Nothing more is written to it.
  void Retire(Segment* segment);
  bool SyncFile(FileId file) { return !options.sync || options.read_only || io.Sync(file); }
  // Moves the segment's log to its other region, waiting for each transfer; with the live blocks
  // from the old region or from `blocks`. False: a transfer failed.
  bool RunTurnOver(Segment* segment, std::optional<std::span<const RecoveredBlock>> blocks);
  bool HasRoomFor(uint64_t bytes) const;
  absl::Status CheckWritable() const;  // FailedPrecondition: read_only
};

// --- superblocks
inline constexpr const char* kSuperblockNames[] = {"superblock.a", "superblock.b"};

// Writes the next superblock over the older copy. Unavailable.
absl::Status UpdateSuperblock(StoreState* state, uint32_t next_segment);
// Reads, repairs or makes the superblocks. FailedPrecondition: not ours or another format;
// Unavailable: cannot be read.
absl::Status OpenSuperblocks(StoreState* state, const std::vector<DiskFile>& files);

// --- segments
// Finds out what is in every segment among the files. Blocks of the present epochs only.
std::vector<RecoveredBlock> RecoverSegments(StoreState* state, const std::vector<DiskFile>& files);
absl::StatusOr<uint32_t> CreateSegment(StoreState* state, const SsdShape& shape);
absl::Status DropSegment(StoreState* state, uint32_t segment);

}  // namespace flexkv::ssd
