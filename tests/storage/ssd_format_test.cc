#include "flexkv/storage/ssd/ssd_format.h"

#include <cstring>
#include <utility>
#include <vector>

#include "flexkv/storage/ssd/ssd_checksum.h"
#include "flexkv/storage/ssd/ssd_checksum_isa.h"
#include "flexkv/storage/ssd/ssd_io.h"
#include "flexkv/storage/ssd/ssd_log.h"
#include "flexkv/storage/ssd/ssd_replay.h"
#include "flexkv/storage/ssd/ssd_segment.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_harness.h"

namespace flexkv::ssd {
namespace {

constexpr StoreId kStore = {1, 2, 3};
const SsdShape kShape{{5000, 4096, 1}, 16};

template <typename Parse>
void ExpectEveryBitMatters(std::byte* page, Parse parse) {
  ASSERT_TRUE(parse());
  for (size_t bit = 0; bit < size_t{kPageBytes} * 8; ++bit) {
    page[bit / 8] ^= std::byte{1} << (bit % 8);
    ASSERT_FALSE(parse()) << "bit " << bit;
    page[bit / 8] ^= std::byte{1} << (bit % 8);
  }
  ASSERT_TRUE(parse());
}

// Right checksum, wrong field: each byte from `begin` to `end` must not be `value`.
template <typename Parse>
void ExpectRefused(std::byte* page, size_t begin, size_t end, std::byte value, Parse parse) {
  for (size_t at = begin; at < end; ++at) {
    const std::byte kept = std::exchange(page[at], value);
    ResealPage(page);
    ASSERT_FALSE(parse()) << "byte " << at;
    page[at] = kept;
    ResealPage(page);
  }
}

TEST(SsdFormatTest, Sizes) {
  EXPECT_EQ(kShape.record_bytes(), 4096u + 8192 + 4096 + 4096);
  EXPECT_EQ(kShape.segment_bytes(), kShape.record_bytes() * 16);
  for (const uint32_t slots : {1u, 30u, 31u, 32u, 1000u, 131072u}) {
    // Room for a full checkpoint, and behind it for the largest group.
    EXPECT_GE(CheckpointPages(slots) * kRecordsPerPage, slots + kMaxEpochs);
    EXPECT_GT(RegionPages(slots), CheckpointPages(slots) + kMaxGroupPages);
  }
}

TEST(SsdFormatTest, Shapes) {
  EXPECT_TRUE(ShapeIsValid(kShape));
  EXPECT_FALSE(ShapeIsValid({{}, 1}));
  EXPECT_FALSE(ShapeIsValid({{1}, 0}));
  EXPECT_FALSE(ShapeIsValid({{1, 0}, 1}));
  EXPECT_FALSE(ShapeIsValid({std::vector<uint32_t>(257, 1), 1}));
  EXPECT_TRUE(ShapeIsValid({std::vector<uint32_t>(256, 1), 1}));
  EXPECT_FALSE(ShapeIsValid({{kMaxShardBytes + 1}, 1}));
  EXPECT_FALSE(ShapeIsValid({{1}, kMaxSlots + 1}));
  EXPECT_FALSE(ShapeIsValid({std::vector<uint32_t>(256, kMaxShardBytes), kMaxSlots}));
}

TEST(SsdFormatTest, Superblock) {
  PageBuffer buffer(1);
  std::byte* page = buffer.page(0);
  Superblock parsed;
  uint32_t format = 0;
  EXPECT_EQ(ParseSuperblock(page, &parsed, &format), SuperblockState::kBlank);
  EncodeSuperblock({kStore, 12, 34}, page);
  const auto parse = [&] {
    return ParseSuperblock(page, &parsed, &format) == SuperblockState::kGood;
  };
  ExpectEveryBitMatters(page, parse);
  EXPECT_EQ(parsed.store, kStore);
  EXPECT_EQ(parsed.sequence, 12u);
  EXPECT_EQ(parsed.next_segment, 34u);
  ExpectRefused(page, 60, kPageBytes, std::byte{1}, parse);
  page[16] = std::byte{9};  // the format
  ResealPage(page);
  EXPECT_EQ(ParseSuperblock(page, &parsed, &format), SuperblockState::kOtherVersion);
  EXPECT_EQ(format, 9u);
  page[0] = std::byte{'X'};
  EXPECT_EQ(ParseSuperblock(page, &parsed, &format), SuperblockState::kForeign);
}

TEST(SsdFormatTest, RegionHeader) {
  PageBuffer buffer(1);
  RegionHeader parsed;
  EncodeRegionHeader({kStore, 7, 99, 1, 55, kShape}, buffer.page(0));
  const auto parse = [&] { return ParseRegionHeader(buffer.page(0), &parsed); };
  ExpectEveryBitMatters(buffer.page(0), parse);
  EXPECT_EQ(parsed.segment, 7u);
  EXPECT_EQ(parsed.epoch, 99u);
  EXPECT_EQ(parsed.region, 1u);
  EXPECT_EQ(parsed.generation_floor, 55u);
  EXPECT_EQ(parsed.shape.shard_bytes, kShape.shard_bytes);
  EXPECT_EQ(parsed.shape.slots, kShape.slots);
  ExpectRefused(buffer.page(0), 1088, kPageBytes, std::byte{1}, parse);
}

TEST(SsdFormatTest, SlotHeader) {
  PageBuffer buffer(1);
  SlotHeader parsed;
  EncodeSlotHeader({kStore, 7, 11, 3, 0x1234, TestIdentity(5, 2), kShape}, buffer.page(0));
  const auto parse = [&] { return ParseSlotHeader(buffer.page(0), &parsed); };
  ExpectEveryBitMatters(buffer.page(0), parse);
  EXPECT_EQ(parsed.slot, 11u);
  EXPECT_EQ(parsed.generation, 3u);
  EXPECT_EQ(parsed.payload_checksum, 0x1234u);
  EXPECT_EQ(parsed.identity, TestIdentity(5, 2));
  ExpectRefused(buffer.page(0), 1192, kPageBytes, std::byte{1}, parse);
  for (SlotHeader wrong : {SlotHeader{kStore, 7, 16, 3, 0, {}, kShape},    // no such slot
                           SlotHeader{kStore, 7, 1, 0, 0, {}, kShape}}) {  // never written
    EncodeSlotHeader(wrong, buffer.page(0));
    EXPECT_FALSE(parse());
  }
}

TEST(SsdFormatTest, LogPage) {
  PageBuffer buffer(1);
  LogPageInfo info;
  info.store = kStore;
  info.segment = 7;
  info.region_epoch = 3;
  info.page = 12;
  info.count = 2;
  info.group_page = 11;
  RecordsOf(buffer.page(0))[0] = CommitRecord(4, 9, 77, TestIdentity(3, 1));
  RecordsOf(buffer.page(0))[1] = SlotRecord(RecordKind::kFree, 5, 2);
  SealLogPage(info, buffer.page(0));
  LogPageInfo parsed;
  const auto parse = [&] { return ParseLogPage(buffer.page(0), &parsed); };
  ExpectEveryBitMatters(buffer.page(0), parse);
  EXPECT_EQ(parsed.page, 12u);
  EXPECT_EQ(parsed.group_page, 11u);
  EXPECT_FALSE(parsed.checkpoint);
  const LogRecord& record = RecordsOf(std::as_const(buffer).page(0))[0];
  EXPECT_EQ(IdentityOf(record), TestIdentity(3, 1));
  EXPECT_TRUE(RecordIsValid(record, 16));
  EXPECT_FALSE(RecordIsValid(record, 4));
  for (auto change : std::vector<void (*)(LogPageInfo*)>{
           [](LogPageInfo* i) { i->page = 0; }, [](LogPageInfo* i) { i->region_epoch = 0; },
           [](LogPageInfo* i) { i->group_page = 13; }, [](LogPageInfo* i) { i->last = true; }}) {
    LogPageInfo wrong = info;
    change(&wrong);
    SealLogPage(wrong, buffer.page(0));
    EXPECT_FALSE(parse());
  }
}

TEST(SsdFormatTest, Records) {
  EXPECT_TRUE(RecordIsValid(EpochRecord({}, 5), 1));
  EXPECT_TRUE(RecordIsValid(SlotRecord(RecordKind::kQuarantine, 0, 0), 1));
  EXPECT_FALSE(RecordIsValid(SlotRecord(RecordKind::kFree, 1, 1), 1));
  EXPECT_FALSE(RecordIsValid(CommitRecord(0, 0, 1, {}), 1)) << "generation 0 is never written";
  LogRecord record = EpochRecord({}, 5);
  record.kind = 0;
  EXPECT_FALSE(RecordIsValid(record, 1));
  record.kind = 5;
  EXPECT_FALSE(RecordIsValid(record, 1));
}

TEST(SsdFormatTest, PayloadSeedBindsEverything) {
  const SsdIdentity identity = TestIdentity(4, 1);
  const uint64_t seed = PayloadSeed(kStore, {1, 2}, 3, identity);
  EXPECT_EQ(PayloadSeed(kStore, {1, 2}, 3, identity), seed);
  EXPECT_NE(PayloadSeed({}, {1, 2}, 3, identity), seed);
  EXPECT_NE(PayloadSeed(kStore, {2, 2}, 3, identity), seed);
  EXPECT_NE(PayloadSeed(kStore, {1, 3}, 3, identity), seed);
  EXPECT_NE(PayloadSeed(kStore, {1, 2}, 4, identity), seed);
  for (auto change : std::vector<void (*)(SsdIdentity*)>{
           [](SsdIdentity* i) { ++i->epoch; }, [](SsdIdentity* i) { ++i->depth; },
           [](SsdIdentity* i) { ++i->ns[31]; }, [](SsdIdentity* i) { ++i->hash.words[3]; },
           [](SsdIdentity* i) { ++i->parent.words[0]; }}) {
    SsdIdentity other = identity;
    change(&other);
    EXPECT_NE(PayloadSeed(kStore, {1, 2}, 3, other), seed);
    EXPECT_NE(IdentityTag(other), IdentityTag(identity));
  }
}

TEST(SsdChecksumTest, TheSameOnEveryInstructionSetAndInPieces) {
  std::vector<std::byte> bytes(70'001);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 7 + i / 251);
  for (const size_t size : {0, 1, 16, 200, 241, 1024, 4096, 65536, 70'001}) {
    const uint64_t expected = Checksum(bytes.data(), size, 42);
    const internal::ChecksumPiece whole{bytes.data(), size};
    EXPECT_EQ(internal::ChecksumSse2(&whole, 1, 42), expected);
    if (__builtin_cpu_supports("avx2")) {
      EXPECT_EQ(internal::ChecksumAvx2(&whole, 1, 42), expected);
    }
    const std::span<const std::byte> all(bytes.data(), size);
    const std::vector<std::span<const std::byte>> pieces = {all.first(size / 3),
                                                            all.subspan(size / 3)};
    EXPECT_EQ(Checksum(pieces, 42), expected);
    EXPECT_NE(Checksum(bytes.data(), size, 43), expected) << size;
  }
}

TEST(SsdSegmentTest, Names) {
  uint32_t segment = 0;
  bool is_log = false;
  EXPECT_TRUE(ParseSegmentName(DataName(12), &segment, &is_log));
  EXPECT_EQ(segment, 12u);
  EXPECT_FALSE(is_log);
  EXPECT_TRUE(ParseSegmentName(LogName(4'000'000'000), &segment, &is_log));
  EXPECT_EQ(segment, 4'000'000'000);
  EXPECT_TRUE(is_log);
  for (const char* name : {"segment-1.data", "segment-00000001.dat", "segment-00000001.data2",
                           "xsegment-00000001.data", "segment-00000001", "lock"}) {
    EXPECT_FALSE(ParseSegmentName(name, &segment, &is_log)) << name;
  }
}

// --- replay -------------------------------------------------------------------------------------

class ReplayTest : public testing::Test {
 protected:
  ReplayTest() {
    segment_.id = 7;
    segment_.SetShape(kShape);
  }
  // A region of pages, each with one commit of the slot of its number.
  std::vector<std::byte> Page(uint32_t number, uint32_t group_page, bool checkpoint = false,
                              uint64_t epoch = 1) {
    PageBuffer buffer(1);
    LogPageInfo info;
    info.store = kStore;
    info.segment = 7;
    info.region_epoch = epoch;
    info.page = number;
    info.checkpoint = info.last = checkpoint;
    info.count = 1;
    info.group_page = group_page;
    RecordsOf(buffer.page(0))[0] = CommitRecord(number, 1, number, TestIdentity(number));
    SealLogPage(info, buffer.page(0));
    return {buffer.page(0), buffer.page(0) + kPageBytes};
  }
  RegionVerdict Replay(const std::vector<std::vector<std::byte>>& pages) {
    blocks_.clear();
    SegmentImage image(&segment_, segment_.shape.segment_bytes(), &blocks_, &epochs_);
    RegionReplay replay(kStore, segment_, 1, &image);
    PageBuffer buffer(1);
    for (size_t i = 0; replay.wants_more(); ++i) {
      std::memset(buffer.page(0), 0, kPageBytes);
      if (i < pages.size() && !pages[i].empty()) {
        std::memcpy(buffer.page(0), pages[i].data(), kPageBytes);
      }
      replay.Feed(buffer.page(0));
    }
    return replay.verdict();
  }

  Segment segment_;
  std::vector<RecoveredBlock> blocks_;
  EpochMap epochs_;
};

TEST_F(ReplayTest, EndsAtTheFirstPageThatIsNotOfThisUse) {
  EXPECT_EQ(Replay({Page(1, 1, true), Page(2, 2), Page(3, 3)}), RegionVerdict::kGood);
  EXPECT_EQ(blocks_.size(), 3u);
  EXPECT_EQ(Replay({Page(1, 1, true), Page(2, 2), Page(3, 3, false, 2)}), RegionVerdict::kGood);
  EXPECT_EQ(blocks_.size(), 2u);
}

TEST_F(ReplayTest, ATornGroupIsAnEndAndALostSyncedPageIsDamage) {
  // Pages 2 and 3 are one group, never acknowledged.
  EXPECT_EQ(Replay({Page(1, 1, true), {}, Page(3, 2)}), RegionVerdict::kGood);
  EXPECT_EQ(blocks_.size(), 1u);
  // Page 3 is a group of its own: page 2 had been synced.
  EXPECT_EQ(Replay({Page(1, 1, true), {}, Page(3, 3)}), RegionVerdict::kDamaged);
}

TEST_F(ReplayTest, ACheckpointWithoutEnd) {
  EXPECT_EQ(Replay({}), RegionVerdict::kIncomplete);
  EXPECT_EQ(Replay({{}, Page(2, 2)}), RegionVerdict::kDamaged) << "it had been appended to";
}

}  // namespace
}  // namespace flexkv::ssd
