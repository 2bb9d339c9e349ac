// The simulated disk keeps what it promises: synced writes survive every crash, unsynced ones may
// not, faults come when told, and the same seed gives the same run.
#include "tests/support/sim_disk.h"

#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "gtest/gtest.h"

namespace flexkv {
namespace {

constexpr uint64_t kPage = SimDisk::kPage;

class SimDiskTest : public testing::Test {
 protected:
  void Make(const SimDiskOptions& options) {
    disk_ = std::make_unique<SimDisk>(options);
    file_ = *disk_->Create("f", 16 * kPage);
  }
  void SetUp() override { Make({.seed = TestSeed()}); }

  std::byte* Buffer(uint8_t fill, uint64_t pages = 1) {
    buffers_.emplace_back(static_cast<std::byte*>(std::aligned_alloc(kPage, pages * kPage)));
    std::fill_n(buffers_.back().get(), pages * kPage, std::byte{fill});
    return buffers_.back().get();
  }
  void Submit(IoKind kind, uint64_t page, std::byte* buffer, uint64_t pages = 1) {
    const iovec slice{buffer, pages * kPage};
    IoRequest request{.tag = ++tag_, .kind = kind, .file = file_, .offset = page * kPage};
    if (kind != IoKind::kSync) request.slices = {&slice, 1};
    ASSERT_TRUE(disk_->Submit(request));
  }
  int64_t Finish() {  // result of the last one to end
    std::vector<IoResult> results;
    while (disk_->in_flight() > 0) disk_->Poll(kNsPerSecond, &results);
    EXPECT_FALSE(results.empty());
    return results.empty() ? -1 : results.back().result;
  }
  int64_t Write(uint64_t page, uint8_t fill, uint64_t pages = 1) {
    Submit(IoKind::kWrite, page, Buffer(fill, pages), pages);
    return Finish();
  }
  int64_t Sync() {
    Submit(IoKind::kSync, 0, nullptr);
    return Finish();
  }
  static uint8_t At(const SimDisk& disk, uint64_t page, uint64_t byte = 0) {
    return static_cast<uint8_t>(disk.ReadRaw("f", page * kPage + byte, 1)[0]);
  }

  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::vector<std::unique_ptr<std::byte, Free>> buffers_;
  std::unique_ptr<SimDisk> disk_;
  FileId file_ = 0;
  uint64_t tag_ = 0;
};

TEST_F(SimDiskTest, ReadsWhatWasWritten) {
  EXPECT_EQ(Write(3, 7, 2), static_cast<int64_t>(2 * kPage));
  std::byte* target = Buffer(0);
  Submit(IoKind::kRead, 4, target);
  EXPECT_EQ(Finish(), static_cast<int64_t>(kPage));
  EXPECT_EQ(target[100], std::byte{7});
  EXPECT_EQ(disk_->violation(), "");
}

TEST_F(SimDiskTest, SyncedSurvivesEveryCrash) {
  Write(0, 1);
  EXPECT_EQ(Sync(), 0);
  Write(0, 2);
  std::vector<int> seen(3);
  for (CrashMode mode : {CrashMode::kDrop, CrashMode::kTear, CrashMode::kReorder}) {
    for (uint64_t i = 0; i < 200; ++i) {
      const auto copy = disk_->CrashedCopy(mode, TestSeed() + i);
      const uint8_t byte = At(*copy, 0);
      ASSERT_TRUE(byte == 1 || byte == 2);
      ++seen[byte];
      if (mode != CrashMode::kTear) {
        ASSERT_EQ(byte, At(*copy, 0, kPage - 1));
      }
    }
  }
  EXPECT_GT(seen[1], 0);
  EXPECT_GT(seen[2], 0);
}

TEST_F(SimDiskTest, WritesFinishedAfterTheSyncBeganAreNotCovered) {
  Submit(IoKind::kWrite, 0, Buffer(1));
  Submit(IoKind::kSync, 0, nullptr);
  Finish();
  EXPECT_EQ(disk_->unsynced_writes(), 1u);
}

TEST_F(SimDiskTest, TearsAndReorders) {
  Write(0, 1, 4);
  Write(8, 1);
  bool torn = false;
  bool reordered = false;
  for (uint64_t i = 0; i < 200; ++i) {
    const auto tear = disk_->CrashedCopy(CrashMode::kTear, TestSeed() + i);
    torn |= At(*tear, 0) != At(*tear, 0, SimDisk::kSector);
    const auto reorder = disk_->CrashedCopy(CrashMode::kReorder, TestSeed() + i);
    reordered |= At(*reorder, 0) == 0 && At(*reorder, 8) == 1;
  }
  EXPECT_TRUE(torn);
  EXPECT_TRUE(reordered);
}

TEST_F(SimDiskTest, CrashOfTheSameObject) {
  Write(0, 1);
  Sync();
  Submit(IoKind::kWrite, 1, Buffer(2));
  disk_->Crash(CrashMode::kDrop, TestSeed());
  EXPECT_EQ(Finish(), -EIO);
  EXPECT_FALSE(disk_->Open("f").ok());
  disk_->Restart();
  EXPECT_TRUE(disk_->Open("f").ok());
  EXPECT_EQ(At(*disk_, 0), 1);
}

TEST_F(SimDiskTest, FailedSyncLosesItsWrites) {
  Write(0, 1);
  disk_->FailNth(1, SimFault::kEio);
  EXPECT_EQ(Sync(), -EIO);
  EXPECT_EQ(Sync(), 0);
  const auto copy = disk_->CrashedCopy(CrashMode::kDrop, 1);
  EXPECT_EQ(At(*copy, 0), 0);
}

TEST_F(SimDiskTest, FaultsAsTold) {
  Write(0, 1);
  Write(0, 2);
  std::byte* target = Buffer(0);
  disk_->FailNth(1, SimFault::kStale);
  Submit(IoKind::kRead, 0, target);
  EXPECT_EQ(Finish(), static_cast<int64_t>(kPage));
  EXPECT_EQ(target[0], std::byte{1});
  disk_->FailNth(1, SimFault::kShort);
  Submit(IoKind::kRead, 0, target);
  EXPECT_LT(Finish(), static_cast<int64_t>(kPage));
  disk_->AddRule({.name_part = "f", .kind = IoKind::kWrite, .fault = SimFault::kEnospc});
  EXPECT_EQ(Write(1, 3), -ENOSPC);
  EXPECT_EQ(Write(1, 3), -ENOSPC);
  disk_->ClearFaults();
  EXPECT_EQ(Write(1, 3), static_cast<int64_t>(kPage));
  EXPECT_EQ(disk_->faults(), 4u);
}

TEST_F(SimDiskTest, CapacityAndHalfMadeFiles) {
  Make({.seed = TestSeed(), .capacity_bytes = 20 * kPage});
  EXPECT_EQ(disk_->Create("g", 5 * kPage).status().code(), absl::StatusCode::kResourceExhausted);
  bool partial = false;
  bool absent = false;
  disk_->SetObserver([&] {
    for (uint64_t i = 0; i < 50; ++i) {
      const auto copy = disk_->CrashedCopy(CrashMode::kDrop, TestSeed() + i);
      absent |= !copy->Exists("g");
      partial |= copy->Exists("g") && copy->FileBytes("g") < 4 * kPage;
    }
  });
  EXPECT_TRUE(disk_->Create("g", 4 * kPage).ok());
  EXPECT_TRUE(absent);
  EXPECT_TRUE(partial);
  disk_->SetObserver(nullptr);
  EXPECT_TRUE(disk_->CrashedCopy(CrashMode::kDrop, 1)->Exists("g"));
}

TEST_F(SimDiskTest, FindsMisuse) {
  std::byte* buffer = Buffer(1);
  Submit(IoKind::kWrite, 0, buffer);
  buffer[5] = std::byte{9};
  Finish();
  EXPECT_NE(disk_->violation().find("buffer changed"), std::string::npos);
  Make({.seed = TestSeed()});
  Submit(IoKind::kWrite, 0, Buffer(1, 2), 2);
  Submit(IoKind::kRead, 1, Buffer(0));
  Finish();
  EXPECT_NE(disk_->violation().find("overlapping"), std::string::npos);
}

TEST_F(SimDiskTest, SameSeedSameRun) {
  const auto run = [this](uint64_t seed) {
    Make({.seed = seed});
    disk_->set_odds({.short_transfer = 4, .eio = 4, .bit_flip = 4});
    std::vector<int64_t> trace;
    for (uint64_t i = 0; i < 16; ++i) Submit(IoKind::kWrite, i, Buffer(1));
    std::vector<IoResult> results;
    while (disk_->in_flight() > 0) disk_->Poll(kNsPerSecond, &results);
    for (const IoResult& result : results) {
      trace.push_back(static_cast<int64_t>(result.tag % 16));
      trace.push_back(result.result);
    }
    return trace;
  };
  EXPECT_EQ(run(7), run(7));
  EXPECT_NE(run(7), run(8));
}

}  // namespace
}  // namespace flexkv
