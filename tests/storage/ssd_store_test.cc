// What the store promises while nothing or one thing goes wrong. Crashes: ssd_crash_test.cc.
#include "flexkv/storage/ssd/ssd_store.h"

#include <set>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_harness.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using absl::StatusCode;

class SsdStoreTest : public testing::Test, protected SsdHarness {
 protected:
  void OpenWithSegment() {
    ASSERT_TRUE(Open().ok());
    absl::StatusOr<uint32_t> segment = store().CreateSegment(shape);
    ASSERT_TRUE(segment.ok()) << segment.status();
    segment_ = *segment;
  }
  SsdPlace At(uint32_t slot) const { return {segment_, slot}; }
  void TearDown() override {
    EXPECT_EQ(disk().violation(), "");
    Close();
    EXPECT_EQ(disk().violation(), "");
    EXPECT_EQ(disk().open_files(), 0u);
  }
  // Blocks 0..count-1 at slots of the same number.
  void WriteMany(uint32_t count) {
    std::vector<uint64_t> tags;
    for (uint32_t i = 0; i < count; ++i) tags.push_back(Write(At(i), TestIdentity(i)));
    ASSERT_TRUE(Drain());
    for (const uint64_t tag : tags) ASSERT_TRUE(Result(tag).ok()) << Result(tag);
  }
  void ExpectAllReadable(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      EXPECT_TRUE(ReadNow(At(i), TestIdentity(i)).ok())
          << i << " " << ReadNow(At(i), TestIdentity(i));
    }
  }
  std::set<uint32_t> RecoveredSlots() {
    std::set<uint32_t> slots;
    for (const RecoveredBlock& block : store().TakeRecovered()) {
      EXPECT_TRUE(slots.insert(block.place.slot).second);
    }
    return slots;
  }
  SsdSegmentInfo Info() {
    for (const SsdSegmentInfo& info : store().segments()) {
      if (info.id == segment_) return info;
    }
    return {};
  }

  uint32_t segment_ = 0;
};

TEST_F(SsdStoreTest, ReadsBackWhatWasWritten) {
  OpenWithSegment();
  EXPECT_EQ(ReadNow(At(3), TestIdentity(3)).code(), StatusCode::kNotFound);
  EXPECT_TRUE(WriteNow(At(3), TestIdentity(3)).ok());
  EXPECT_TRUE(ReadNow(At(3), TestIdentity(3)).ok());
  // Another block, or another place.
  EXPECT_EQ(ReadNow(At(3), TestIdentity(4)).code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadNow(At(4), TestIdentity(3)).code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadNow(At(3), TestIdentity(3, 1)).code(), StatusCode::kNotFound);
  EXPECT_TRUE(ReadNow(At(3), TestIdentity(3)).ok());
  EXPECT_EQ(store().stats().corrupt_blocks, 0u);
  EXPECT_EQ(Info().committed, 1u);
  EXPECT_TRUE(store().CheckInvariants().ok());
}

TEST_F(SsdStoreTest, GroupsCloseByTimeBytesAndFlush) {
  options.group_delay_ns = 5 * kNsPerMs;
  options.group_bytes = 1 << 20;
  OpenWithSegment();
  const uint64_t first = Write(At(0), TestIdentity(0));
  const TimeNs start = clock().Now();
  while (!Has(first)) PollOnce();
  EXPECT_GE(clock().Now() - start, 5 * kNsPerMs);
  const uint64_t groups = store().stats().groups;
  for (uint32_t i = 1; i < 9; ++i) Write(At(i), TestIdentity(i));
  ASSERT_TRUE(Drain());
  EXPECT_EQ(store().stats().groups, groups + 1) << "eight writes at once are one group";
  EXPECT_EQ(store().stats().writes, 9u);
}

TEST_F(SsdStoreTest, FreedPlacesAreReusedUnderHigherGenerations) {
  OpenWithSegment();
  for (uint64_t round = 0; round < 80; ++round) {  // more than a region of the log takes
    ASSERT_TRUE(WriteNow(At(5), TestIdentity(100 + round)).ok());
    ASSERT_TRUE(ReadNow(At(5), TestIdentity(100 + round)).ok());
    ASSERT_TRUE(FreeNow(At(5)).ok());
    ASSERT_EQ(ReadNow(At(5), TestIdentity(100 + round)).code(), StatusCode::kNotFound);
  }
  EXPECT_GE(store().stats().checkpoints, 2u);
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(store().TakeRecovered().empty());
}

TEST_F(SsdStoreTest, AFreeIsHeldWhileThePlaceIsRead) {
  OpenWithSegment();
  WriteMany(1);
  disk().AddRule(
      {.name_part = "data", .kind = IoKind::kRead, .fault = SimFault::kSlow, .count = 1});
  const uint64_t read = Read(At(0), TestIdentity(0));
  PollOnce(0);
  const uint64_t free = Free(At(0));
  store().Flush();
  while (!Has(read)) {
    PollOnce(kNsPerMs);
    ASSERT_TRUE(Has(read) || !Has(free));
  }
  ASSERT_TRUE(Drain());
  EXPECT_TRUE(Result(read).ok()) << Result(read);
  EXPECT_TRUE(Result(free).ok());
}

TEST_F(SsdStoreTest, RestartsWithAllThatWasCommitted) {
  OpenWithSegment();
  WriteMany(10);
  ASSERT_TRUE(FreeNow(At(4)).ok());
  for (const bool kill : {false, true}) {
    ASSERT_TRUE((kill ? Kill(1) : Open()).ok());
    EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{0, 1, 2, 3, 5, 6, 7, 8, 9}));
    EXPECT_EQ(store().stats().recovered_blocks, 9u);
    EXPECT_EQ(Info().shape.slots, shape.slots);
    EXPECT_TRUE(ReadNow(At(5), TestIdentity(5)).ok());
    EXPECT_EQ(ReadNow(At(4), TestIdentity(4)).code(), StatusCode::kNotFound);
  }
  // And goes on: the first group moves the log to its other region.
  ASSERT_TRUE(WriteNow(At(4), TestIdentity(44)).ok());
  EXPECT_EQ(store().stats().checkpoints, 1u);
  ASSERT_TRUE(Crash(CrashMode::kDrop, 3).ok());
  EXPECT_EQ(RecoveredSlots().size(), 10u);
  EXPECT_TRUE(ReadNow(At(4), TestIdentity(44)).ok());
}

}  // namespace
}  // namespace flexkv
