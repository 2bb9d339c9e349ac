// Pages of the SSD tier as a broken or hostile device may give them.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "flexkv/storage/ssd/ssd_format.h"
#include "flexkv/storage/ssd/ssd_io.h"
#include "flexkv/storage/ssd/ssd_log.h"
#include "flexkv/storage/ssd/ssd_replay.h"
#include "flexkv/storage/ssd/volume_table.h"
#include "tests/fuzz/fuzz_targets.h"

namespace flexkv {
namespace {

using ssd::kPageBytes;
using ssd::PageBuffer;

constexpr uint32_t kSlots = 16;
constexpr uint32_t kSegment = 3;
constexpr ssd::StoreId kStore = {1, 2, 3};

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// The first byte says whether the page's checksum is made right, so that what lies behind it is
// reached, too. The rest is the page, filled up with zeros.
void TakePage(FuzzInput* input, std::byte* page) {
  if (input->empty()) return;
  const bool reseal = (input->front() & std::byte{1}) == std::byte{};
  *input = input->subspan(1);
  const size_t bytes = std::min<size_t>(input->size(), kPageBytes);
  std::memcpy(page, input->data(), bytes);
  std::memset(page + bytes, 0, kPageBytes - bytes);
  *input = input->subspan(bytes);
  if (reseal) ssd::ResealPage(page);
}

std::string Input(const std::byte* page, char first = 0) {
  return first + std::string(reinterpret_cast<const char*>(page), kPageBytes);
}

SsdIdentity SomeIdentity() {
  SsdIdentity identity;
  identity.ns.fill(9);
  identity.epoch = 2;
  identity.hash.words = {1, 2, 3, 4};
  return identity;
}

ssd::LogPageInfo PageInfo(uint32_t page, bool checkpoint, uint32_t count) {
  ssd::LogPageInfo info;
  info.store = kStore;
  info.segment = kSegment;
  info.region_epoch = 1;
  info.page = page;
  info.checkpoint = checkpoint;
  info.last = checkpoint;
  info.count = count;
  info.group_page = page;
  return info;
}

std::vector<std::string> SuperblockCorpus() {
  PageBuffer page(1);
  ssd::EncodeSuperblock({kStore, 5, 7}, page.page(0));
  return {Input(page.page(0)), Input(page.page(0), 1), std::string(1, '\0'), "\1junk"};
}

std::vector<std::string> SlotHeaderCorpus() {
  PageBuffer page(2);
  ssd::EncodeSlotHeader({kStore, kSegment, 4, 2, 77, SomeIdentity(), {{4096, 10}, kSlots}},
                        page.page(0));
  ssd::EncodeRegionHeader({kStore, kSegment, 3, 1, 9, {{4096}, kSlots}}, page.page(1));
  return {Input(page.page(0)), Input(page.page(0), 1), Input(page.page(1))};
}

std::vector<std::string> LogCorpus() {
  PageBuffer pages(2);
  ssd::RecordsOf(pages.page(0))[0] = ssd::CommitRecord(1, 1, 5, SomeIdentity());
  ssd::RecordsOf(pages.page(0))[1] = ssd::EpochRecord(SomeIdentity().ns, 1);
  ssd::SealLogPage(PageInfo(1, true, 2), pages.page(0));
  ssd::RecordsOf(pages.page(1))[0] = ssd::SlotRecord(ssd::RecordKind::kFree, 1, 1);
  ssd::RecordsOf(pages.page(1))[1] = ssd::CommitRecord(1, 2, 6, SomeIdentity());
  ssd::RecordsOf(pages.page(1))[2] = ssd::SlotRecord(ssd::RecordKind::kQuarantine, 2, 0);
  ssd::SealLogPage(PageInfo(2, false, 3), pages.page(1));
  return {Input(pages.page(0)) + Input(pages.page(1)), Input(pages.page(0)),
          Input(pages.page(1)) + Input(pages.page(0))};
}

// --- the table of a raw device -------------------------------------------------------------------

constexpr size_t kVolumeInput = 4 * kVolumePage;
constexpr size_t kVolumeChecksum = 8, kVolumeCovered = 16, kVolumeFileCount = 20;

// Makes the checksum of a table right, as far as the table lies within the input.
void ResealVolumeTable(std::span<std::byte> copy) {
  uint32_t files = 0;
  std::memcpy(&files, copy.data() + kVolumeFileCount, sizeof(files));
  const uint64_t bytes = VolumeTableBytes(files);
  if (files > kMaxVolumeFiles || bytes > copy.size()) return;
  const uint64_t checksum =
      XXH3_64bits_withSeed(copy.data() + kVolumeCovered, bytes - kVolumeCovered, 0x766f6c756d65);
  std::memcpy(copy.data() + kVolumeChecksum, &checksum, sizeof(checksum));
}

VolumeTable SomeVolume(uint64_t files) {
  VolumeTable table{{1, 2, 3}, 7, 1000, {}};
  for (uint64_t i = 0; i < files; ++i) {
    table.files.push_back({"file" + std::to_string(i), kVolumeFirstUnit + 3 * i, 2,
                           kVolumeUnit + 4096 * (i % 3 + 1)});
  }
  return table;
}

std::vector<std::string> VolumeTableCorpus() {
  std::vector<std::string> corpus = {std::string(1, '\0'), std::string(5000, '\0'), "\1junk"};
  for (uint64_t files : {0, 1, 2, 33}) {
    const VolumeTable table = SomeVolume(files);
    std::string bytes(VolumeTableBytes(files), '\0');
    EncodeVolumeTable(table, std::as_writable_bytes(std::span(bytes)));
    corpus.push_back('\0' + bytes);
    corpus.push_back('\1' + bytes);
    std::fill_n(bytes.begin(), kVolumePage, '\0');
    corpus.push_back('\1' + bytes);  // entries without their header
  }
  return corpus;
}

void RequireApart(const VolumeTable& table) {
  for (const VolumeFile& file : table.files) {
    Require(VolumeNameIsValid(file.name) && table.Find(file.name) == &file, "a name twice");
    Require(file.first_unit >= kVolumeFirstUnit && file.units > 0 && file.bytes > 0 &&
                file.bytes <= file.units * kVolumeUnit && file.first_unit <= table.device_units &&
                file.units <= table.device_units - file.first_unit,
            "a file beyond its place");
    for (const VolumeFile& other : table.files) {
      Require(&other == &file || file.first_unit >= other.first_unit + other.units ||
                  other.first_unit >= file.first_unit + file.units,
              "two files in one place");
    }
  }
}

void RequireFree(const VolumeTable& table, uint64_t units) {
  const uint64_t first = FindVolumeRun(table, {}, units);
  if (first == 0) return;
  Require(first >= kVolumeFirstUnit && first + units <= table.device_units,
          "a free run beyond the device");
  for (const VolumeFile& file : table.files) {
    Require(first >= file.first_unit + file.units || file.first_unit >= first + units,
            "a free run in a file");
  }
}

}  // namespace

void FuzzSsdSuperblock(FuzzInput input) {
  PageBuffer page(2);
  TakePage(&input, page.page(0));
  ssd::Superblock superblock;
  uint32_t format = ssd::kFormat;
  const ssd::SuperblockState state = ssd::ParseSuperblock(page.page(0), &superblock, &format);
  if (state == ssd::SuperblockState::kOtherVersion) {
    Require(format != ssd::kFormat, "another version is ours");
  }
  if (state != ssd::SuperblockState::kGood) return;
  ssd::EncodeSuperblock(superblock, page.page(1));
  Require(std::memcmp(page.page(0), page.page(1), kPageBytes) == 0, "a good superblock has slack");
}

void FuzzSsdSlotHeader(FuzzInput input) {
  PageBuffer page(2);
  TakePage(&input, page.page(0));
  ssd::SlotHeader slot;
  ssd::RegionHeader region;
  if (ssd::ParseSlotHeader(page.page(0), &slot)) {
    Require(ssd::ShapeIsValid(slot.shape) && slot.slot < slot.shape.slots, "a slot out of range");
    ssd::EncodeSlotHeader(slot, page.page(1));
  } else if (ssd::ParseRegionHeader(page.page(0), &region)) {
    Require(ssd::ShapeIsValid(region.shape), "a shape out of range");
    ssd::EncodeRegionHeader(region, page.page(1));
  } else {
    return;
  }
  Require(std::memcmp(page.page(0), page.page(1), kPageBytes) == 0, "a good header has slack");
}

void FuzzSsdLog(FuzzInput input) {
  ssd::Segment segment;
  segment.id = kSegment;
  segment.SetShape({{4096}, kSlots});
  std::vector<RecoveredBlock> blocks;
  ssd::EpochMap epochs;
  ssd::SegmentImage image(&segment, segment.shape.segment_bytes(), &blocks, &epochs);
  ssd::RegionReplay replay(kStore, segment, 1, &image);
  PageBuffer page(1);
  while (!input.empty() && replay.wants_more()) {
    TakePage(&input, page.page(0));
    replay.Feed(page.page(0));
  }
  ssd::SlotHeader header;
  if (ssd::ParseSlotHeader(page.page(0), &header) && header.slot < kSlots) {
    image.ApplyHeader(header);
  }
  image.Compact();
  Require(segment.slots.CheckInvariants().ok(), "counts of slots are wrong");
  Require(blocks.size() == segment.slots.count(ssd::SlotState::kCommitted),
          "blocks and committed slots differ");
  Require(epochs.size() <= ssd::kMaxEpochs, "too many epochs");
  for (const RecoveredBlock& block : blocks) {
    Require(block.place.segment == kSegment && block.place.slot < kSlots, "a block at no place");
    Require(segment.slots[block.place.slot].tag() == ssd::Slot::TagOf(block.identity),
            "a slot of another block");
  }
}

void FuzzVolumeTable(FuzzInput input) {
  if (input.empty()) return;
  const bool reseal = (input.front() & std::byte{1}) == std::byte{};
  input = input.subspan(1);
  std::vector<std::byte> copy(kVolumeInput);
  std::memcpy(copy.data(), input.data(), std::min(input.size(), copy.size()));
  if (reseal) ResealVolumeTable(copy);
  VolumeTable table;
  const VolumeTableState state = ParseVolumeTable(copy, &table);
  VolumeTable cut;
  Require(ParseVolumeTable(std::span(copy).first(kVolumePage / 2), &cut) != VolumeTableState::kGood,
          "half a header is good");
  if (state != VolumeTableState::kGood) {
    Require(table.files.empty() && table.sequence == 0, "half a table");
    return;
  }
  RequireApart(table);
  for (uint64_t units : {1, 16, 100}) RequireFree(table, units);
  std::vector<std::byte> again(VolumeTableBytes(table.files.size()));
  EncodeVolumeTable(table, again);
  ResealVolumeTable(again);
  VolumeTable same;
  Require(ParseVolumeTable(again, &same) == VolumeTableState::kGood, "what is good is not, again");
  Require(same.files.size() == table.files.size() && same.sequence == table.sequence &&
              same.id == table.id && same.device_units == table.device_units,
          "another table");
}

std::span<const FuzzTarget> SsdFuzzTargets() {
  static const std::array<FuzzTarget, 4> kTargets = {
      {{"ssd_superblock", &FuzzSsdSuperblock, &SuperblockCorpus},
       {"ssd_slot_header", &FuzzSsdSlotHeader, &SlotHeaderCorpus},
       {"ssd_log", &FuzzSsdLog, &LogCorpus},
       {"volume_table", &FuzzVolumeTable, &VolumeTableCorpus}}};
  return kTargets;
}

}  // namespace flexkv
