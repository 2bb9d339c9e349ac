// A store that is open for reading only: finds what the other one would find, and writes nothing,
// whatever state the disk is in.
#include <algorithm>

#include "gtest/gtest.h"
#include "tests/storage/ssd_harness.h"

namespace flexkv {
namespace {

class SsdReadOnlyTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(harness_.Open().ok());
    segment_ = *harness_.store().CreateSegment(harness_.shape);
    for (uint32_t slot = 0; slot < kBlocks; ++slot) {
      ASSERT_TRUE(harness_.WriteNow({segment_, slot}, TestIdentity(slot)).ok());
    }
    harness_.Close();
  }

  // Opens for reading only and holds the disk's counters against those before.
  absl::Status OpenReadOnly() {
    harness_.options.read_only = true;
    writes_ = harness_.disk().stats().writes;
    syncs_ = harness_.disk().stats().syncs;
    files_ = Files();
    return harness_.Open();
  }
  void ExpectNothingWritten() {
    harness_.Close();
    EXPECT_EQ(harness_.disk().stats().writes, writes_);
    EXPECT_EQ(harness_.disk().stats().syncs, syncs_);
    const std::vector<DiskFile> files = Files();
    ASSERT_EQ(files.size(), files_.size());
    for (size_t i = 0; i < files.size(); ++i) {
      EXPECT_EQ(files[i].name, files_[i].name);
      EXPECT_EQ(files[i].bytes, files_[i].bytes);
    }
  }
  std::vector<DiskFile> Files() {
    std::vector<DiskFile> files = *harness_.disk().List();
    std::sort(files.begin(), files.end(),
              [](const DiskFile& a, const DiskFile& b) { return a.name < b.name; });
    return files;
  }
  uint32_t CountGood() {
    uint32_t good = 0;
    for (uint32_t slot = 0; slot < kBlocks; ++slot) {
      good += harness_.ReadNow({segment_, slot}, TestIdentity(slot)).ok() ? 1 : 0;
    }
    return good;
  }
  std::string Log() const { return "segment-00000001.log"; }
  std::string Data() const { return "segment-00000001.data"; }

  static constexpr uint32_t kBlocks = 8;
  SsdHarness harness_;
  uint32_t segment_ = 0;
  uint64_t writes_ = 0, syncs_ = 0;
  std::vector<DiskFile> files_;
};

TEST_F(SsdReadOnlyTest, ReadsAndRefusesEverythingElse) {
  ASSERT_TRUE(OpenReadOnly().ok());
  EXPECT_EQ(harness_.store().TakeRecovered().size(), kBlocks);
  EXPECT_EQ(CountGood(), kBlocks);
  const absl::StatusCode refused = absl::StatusCode::kFailedPrecondition;
  EXPECT_EQ(harness_.WriteNow({segment_, 9}, TestIdentity(9)).code(), refused);
  EXPECT_EQ(harness_.FreeNow({segment_, 0}).code(), refused);
  EXPECT_EQ(harness_.RaiseNow(1, 5).code(), refused);
  EXPECT_EQ(harness_.store().CreateSegment(harness_.shape).status().code(), refused);
  EXPECT_EQ(harness_.store().DropSegment(segment_).code(), refused);
  EXPECT_EQ(CountGood(), kBlocks);
  EXPECT_TRUE(harness_.store().CheckInvariants().ok());
  ExpectNothingWritten();
}

TEST_F(SsdReadOnlyTest, DamagedBlocksAreToldAndNotQuarantined) {
  for (uint32_t slot = 0; slot < 5; ++slot) {
    harness_.disk().FlipBit(Data(), (slot * harness_.shape.record_bytes() + 4096) * 8 + 1);
  }
  ASSERT_TRUE(OpenReadOnly().ok());
  for (int round = 0; round < 2; ++round) {
    EXPECT_TRUE(absl::IsDataLoss(harness_.ReadNow({segment_, 0}, TestIdentity(0))));
    EXPECT_EQ(CountGood(), kBlocks - 5);
  }
  EXPECT_EQ(harness_.store().segments()[0].state, SegmentState::kOpen);
  EXPECT_EQ(harness_.store().segments()[0].quarantined, 0u);
  ExpectNothingWritten();
}

TEST_F(SsdReadOnlyTest, ALostLogIsReadFromHeadersAndNotReplaced) {
  harness_.disk().EraseRaw(Log());
  ASSERT_TRUE(OpenReadOnly().ok());
  EXPECT_TRUE(harness_.store().segments()[0].rebuilt);
  EXPECT_EQ(CountGood(), kBlocks);
  ExpectNothingWritten();
}

TEST_F(SsdReadOnlyTest, SuperblocksAreCountedAndNotRepaired) {
  harness_.disk().FlipBit("superblock.a", 100);
  ASSERT_TRUE(OpenReadOnly().ok());
  EXPECT_EQ(harness_.store().stats().bad_superblocks, 1u);
  ExpectNothingWritten();
  harness_.disk().EraseRaw("superblock.b");
  ASSERT_EQ(OpenReadOnly(), absl::OkStatus());
  EXPECT_EQ(harness_.store().stats().bad_superblocks, 2u);
  EXPECT_EQ(CountGood(), kBlocks) << "the store's id comes from its segments";
  ExpectNothingWritten();
}

TEST_F(SsdReadOnlyTest, LeftoversOfAnUnfinishedSegmentStay) {
  harness_.disk().EraseRaw(Data());
  ASSERT_TRUE(OpenReadOnly().ok());
  EXPECT_EQ(harness_.store().stats().leftover_files, 1u);
  EXPECT_TRUE(harness_.store().segments().empty());
  ExpectNothingWritten();
  EXPECT_TRUE(harness_.disk().Exists(Log()));
}

TEST_F(SsdReadOnlyTest, AnEmptyDeviceIsNotFormatted) {
  const std::vector<DiskFile> files = *harness_.disk().List();
  for (const DiskFile& file : files) harness_.disk().EraseRaw(file.name);
  EXPECT_TRUE(absl::IsNotFound(OpenReadOnly()));
  EXPECT_TRUE(harness_.disk().List()->empty());
}

TEST_F(SsdReadOnlyTest, FreshLogsCarryEverything) {
  ASSERT_TRUE(harness_.Open().ok());
  ASSERT_TRUE(harness_.RaiseNow(9, 4).ok());
  ASSERT_TRUE(harness_.FreeNow({segment_, 0}).ok());
  harness_.options.fresh_logs = true;
  for (int round = 0; round < 3; ++round) {
    const uint64_t writes = harness_.disk().stats().writes;
    ASSERT_TRUE(harness_.Open().ok());
    EXPECT_GT(harness_.disk().stats().writes, writes);
    EXPECT_EQ(harness_.store().TakeRecovered().size(), kBlocks - 1);
    EXPECT_EQ(harness_.store().Epochs().size(), 1u);
    EXPECT_EQ(CountGood(), kBlocks - 1);
  }
}

}  // namespace
}  // namespace flexkv
