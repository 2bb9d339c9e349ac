// What lies on disk, byte by byte. Everything is little-endian and comes in pages of 4096 bytes;
// each page begins with the same head, whose checksum covers the rest of the page and is seeded by
// the kind of page. Reserved bytes are zero and checked.
//
//   superblock.a, superblock.b   one SuperblockPage each; the higher sequence counts
//   segment-NNNNNNNN.log         two regions of equal size: RegionHeaderPage, then LogPages
//   numbered
//                                from 1: a checkpoint, its last page marked, then appended pages
//   segment-NNNNNNNN.data        slots of equal size: SlotHeaderPage, then each shard, rounded up
//
// Ideas: LevelDB doc/log_format.md (records in checked blocks), TigerBeetle's superblock (several
// copies, a sequence), jbd2 (a torn tail ends the log), CacheLib Navy (self-describing entries).
// Encoding and parsing are pure functions; parsing takes any 4096 bytes (aligned to 8) and checks
// every field.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "flexkv/base/units.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv::ssd {

inline constexpr uint32_t kPageBytes = 4096;
inline constexpr uint32_t kFormat = 1;
inline constexpr uint32_t kMaxShards = 256;
inline constexpr uint32_t kMaxShardBytes = 1u << 30;
inline constexpr uint32_t kMaxSlots = 1u << 24;
inline constexpr uint32_t kRecordsPerPage = 31;
// Namespaces whose epoch was ever raised; a checkpoint has room for them beside its slots.
inline constexpr uint32_t kMaxEpochs = 1024;
// A commit group appends at most so many pages to one log: always less than a region has to append.
inline constexpr uint32_t kMaxGroupPages = 32;

using StoreId = std::array<uint8_t, 16>;

inline uint64_t RoundUpToPage(uint64_t bytes) { return RoundUp(bytes, kPageBytes); }
// False: a number of shards, slots or bytes out of range.
bool ShapeIsValid(const SsdShape& shape);

// Pages of a log region for that many slots: header, a checkpoint of all slots, as much to append.
uint32_t CheckpointPages(uint32_t slots);
uint32_t RegionPages(uint32_t slots);
// What the two files of a segment take: its slots, and two log regions.
uint64_t SegmentFileBytes(const SsdShape& shape);

struct Superblock {
  StoreId store{};
  uint64_t sequence = 0;
  uint32_t next_segment = 0;  // ids below were given away
};
enum class SuperblockState : uint8_t {
  kGood,
  kBlank,         // zeros: made and never written
  kDamaged,       // ours, does not verify
  kForeign,       // not ours
  kOtherVersion,  // ours, whole, another format
};
void EncodeSuperblock(const Superblock& superblock, std::byte* page);
SuperblockState ParseSuperblock(const std::byte* page, Superblock* superblock, uint32_t* format);

struct RegionHeader {
  StoreId store{};
  uint32_t segment = 0;
  uint64_t epoch = 0;             // of the region; the higher one counts
  uint32_t region = 0;            // 0 or 1
  uint32_t generation_floor = 0;  // slots without a record were written up to this generation
  SsdShape shape;
};
void EncodeRegionHeader(const RegionHeader& header, std::byte* page);
bool ParseRegionHeader(const std::byte* page, RegionHeader* header);

enum class RecordKind : uint32_t { kCommit = 1, kFree = 2, kEpoch = 3, kQuarantine = 4 };

struct LogRecord {
  uint32_t kind = 0;
  uint32_t slot = 0;        // 0 for kEpoch
  uint32_t generation = 0;  // of the slot; 0 for kEpoch
  uint32_t epoch = 0;
  uint32_t depth = 0;
  uint32_t reserved = 0;
  uint64_t checksum = 0;  // of the payload, kCommit only
  std::array<uint8_t, 32> ns{};
  std::array<uint8_t, 32> hash{};
  std::array<uint8_t, 32> parent{};
};
static_assert(sizeof(LogRecord) == 128);

LogRecord CommitRecord(uint32_t slot, uint32_t generation, uint64_t checksum,
                       const SsdIdentity& identity);
LogRecord SlotRecord(RecordKind kind, uint32_t slot, uint32_t generation);
LogRecord EpochRecord(const NamespaceDigest& ns, uint32_t epoch);
SsdIdentity IdentityOf(const LogRecord& record);
// False: no record that this code writes for a segment of `slots` slots.
bool RecordIsValid(const LogRecord& record, uint32_t slots);

struct LogPageInfo {
  StoreId store{};
  uint32_t segment = 0;
  uint64_t region_epoch = 0;
  uint32_t page = 0;  // number within the region, from 1
  bool checkpoint = false;
  bool last = false;  // of its checkpoint
  uint32_t count = 0;
  uint32_t group_page =
      0;  // first page of its group: all before it were synced when it was written
};
// The records lie in `page` already (RecordsOf); this fills in the rest.
void SealLogPage(const LogPageInfo& info, std::byte* page);
bool ParseLogPage(const std::byte* page, LogPageInfo* info);
LogRecord* RecordsOf(std::byte* page);
const LogRecord* RecordsOf(const std::byte* page);

struct SlotHeader {
  StoreId store{};
  uint32_t segment = 0;
  uint32_t slot = 0;
  uint32_t generation = 0;
  uint64_t payload_checksum = 0;
  SsdIdentity identity;
  SsdShape shape;
};
void EncodeSlotHeader(const SlotHeader& header, std::byte* page);
bool ParseSlotHeader(const std::byte* page, SlotHeader* header);

// Seed of a payload's checksum: binds the bytes to who they are, where they lie and which writing
// of the place it was.
uint64_t PayloadSeed(const StoreId& store, SsdPlace place, uint32_t generation,
                     const SsdIdentity& identity);
// A few bits of the identity, enough to tell another block from a damaged one.
uint32_t IdentityTag(const SsdIdentity& identity);

bool IsBlank(const std::byte* page);  // all zero

// For fuzzing: makes the page's checksum right.
void ResealPage(std::byte* page);

}  // namespace flexkv::ssd
