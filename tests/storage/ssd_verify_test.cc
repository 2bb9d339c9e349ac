// The scrub on real directories: what it finds, that it changes nothing, and that a repaired
// directory has exactly the good blocks.
#include "flexkv/storage/ssd/ssd_verify.h"

#include <set>

#include "flexkv/base/fault.h"
#include "tests/storage/ssd_verify_fixture.h"

namespace flexkv {
namespace {

class SsdVerifyTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override { directory_.Fill(); }
  void TearDown() override { EXPECT_TRUE(ArmFaults("").ok()); }

  SsdVerifyOptions Options(std::vector<std::string> directories = {}) const {
    SsdVerifyOptions options;
    options.directories = std::move(directories);
    if (options.directories.empty()) options.directories = {directory_.path()};
    options.use_threads = GetParam();
    options.lock_wait_ns = 100 * kNsPerMs;
    return options;
  }
  // Of one directory, which must not change a byte by it.
  SsdDirectoryReport Verify() { return VerifyWith(Options()); }
  SsdDirectoryReport VerifyWith(const SsdVerifyOptions& options) {
    const auto before = directory_.Snapshot();
    const absl::StatusOr<SsdVerifyReport> report = VerifySsd(options);
    EXPECT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(before == directory_.Snapshot()) << "verify has written";
    return report.ok() ? report->directories[0] : SsdDirectoryReport();
  }
  // Repairs, then nothing is damaged any more.
  SsdRepairReport Repair(bool keep_orphans = false) {
    SsdVerifyOptions options = Options();
    options.repair = true;
    options.keep_orphans = keep_orphans;
    const absl::StatusOr<SsdVerifyReport> report = VerifySsd(options);
    EXPECT_TRUE(report.ok()) << report.status();
    if (!report.ok()) return {};
    EXPECT_TRUE(report->repaired);
    EXPECT_EQ(report->repair_failures(), 0u) << report->directories[0].repair.first_failure;
    const SsdDirectoryReport after = Verify();
    EXPECT_FALSE(after.damaged());
    EXPECT_EQ(after.duplicates, 0u);
    if (!keep_orphans) {
      EXPECT_EQ(after.orphans, 0u);
    }
    return report->directories[0].repair;
  }

  // Threads work in memory where there is such a place, the ring on the disk.
  static std::string Place() {
    return GetParam() && access("/dev/shm", W_OK) == 0 ? "/dev/shm" : DiskPlace();
  }

  SsdDirectory directory_{Place()};
};

TEST_P(SsdVerifyTest, AGoodDirectory) {
  const SsdDirectoryReport report = Verify();
  EXPECT_FALSE(report.damaged());
  EXPECT_EQ(report.good_blocks, 24u);
  EXPECT_EQ(report.open_segments, 2u);
  EXPECT_EQ(report.orphans + report.duplicates + report.unread_blocks + report.leftover_files, 0u);
  EXPECT_EQ(report.read_bytes, 12u * 12288 + 12u * 12288);
  EXPECT_GT(report.file_bytes, report.read_bytes);
  const auto before = directory_.Snapshot();
  const SsdRepairReport repair = Repair();
  EXPECT_EQ(repair.fresh_logs, 0u) << "nothing to repair";
  EXPECT_TRUE(before == directory_.Snapshot());
  directory_.ExpectExactly(directory_.AllBut({}));
}

TEST_P(SsdVerifyTest, OneBlockAtATimeInTinyMemory) {
  SsdVerifyOptions options = Options();
  options.max_inflight_bytes = 1;
  options.queue_depth = 1;
  uint64_t last = 0, calls = 0;
  options.on_progress = [&](const SsdVerifyProgress& progress) {
    EXPECT_GE(progress.bytes, last);
    last = progress.bytes;
    EXPECT_EQ(progress.total_bytes, 24u * 12288);
    ++calls;
    return true;
  };
  EXPECT_EQ(VerifyWith(options).good_blocks, 24u);
  EXPECT_EQ(last, 24u * 12288);
  EXPECT_GE(calls, 24u);
}

TEST_P(SsdVerifyTest, FlippedDataBits) {
  directory_.FlipPayload(3);   // of chain 0: 4 and 5 hang from it
  directory_.FlipPayload(20);  // of chain 3: 21 to 23
  const SsdDirectoryReport report = Verify();
  EXPECT_TRUE(report.damaged());
  EXPECT_EQ(report.corrupt_blocks, 2u);
  EXPECT_EQ(report.good_blocks, 22u);
  EXPECT_EQ(report.orphans, 5u);
  const SsdRepairReport repair = Repair();
  EXPECT_EQ(repair.freed_blocks, 2u);
  EXPECT_EQ(repair.freed_orphans, 5u);
  EXPECT_EQ(repair.fresh_logs, 2u);
  directory_.ExpectExactly(directory_.AllBut({3, 4, 5, 20, 21, 22, 23}));
}

TEST_P(SsdVerifyTest, OrphansStayWhenAskedTo) {
  directory_.FlipPayload(3);
  EXPECT_EQ(Repair(/*keep_orphans=*/true).freed_orphans, 0u);
  directory_.ExpectExactly(directory_.AllBut({3}));
}

TEST_P(SsdVerifyTest, EveryFlippedPageOfTheLogs) {
  if (!GetParam()) GTEST_SKIP() << "is about logs, not about backends";
  uint32_t damaged = 0, pages = 0;
  const auto good = directory_.Snapshot();
  for (uint32_t segment : {1u, 2u}) {
    const std::string file = directory_.FileOf(segment, "log");
    const std::string bytes = SsdDirectory::Content(file);
    for (uint64_t at = 0; at < bytes.size(); at += 4096) {
      if (bytes.find_first_not_of('\0', at) >= at + 4096) continue;  // never written
      ++pages;
      SsdDirectory::FlipByte(file, at + 100);
      const SsdDirectoryReport report = Verify();
      damaged += report.damaged() ? 1 : 0;
      SCOPED_TRACE(testing::Message() << file << " at " << at);
      EXPECT_TRUE(report.damaged() || report.good_blocks == 24);
      EXPECT_EQ(report.corrupt_blocks + report.unreadable_blocks, 0u);
      Repair();
      EXPECT_EQ(Verify().good_blocks, report.good_blocks - report.orphans);
      for (const auto& [name, content] : good) {
        SsdDirectory::Change(directory_.path() + "/" + name,
                             [&](std::string* all) { *all = content; });
      }
    }
  }
  EXPECT_GE(pages, 4u);
  EXPECT_GE(damaged, 4u);
}

TEST_P(SsdVerifyTest, SwappedSlots) {
  directory_.SwapRecords(5, 11);  // both last of their chains
  const SsdDirectoryReport report = Verify();
  EXPECT_EQ(report.corrupt_blocks, 2u);
  EXPECT_EQ(report.orphans, 0u);
  EXPECT_EQ(Repair().freed_blocks, 2u);
  directory_.ExpectExactly(directory_.AllBut({5, 11}));
}

TEST_P(SsdVerifyTest, ATruncatedDataFileGivesItsHeadToANewSegment) {
  const uint64_t record = directory_.ShapeOf(1).record_bytes();
  std::filesystem::resize_file(directory_.FileOf(1, "data"), 5 * record + 1000);
  const SsdDirectoryReport report = Verify();
  EXPECT_EQ(report.cut_segments, 1u);
  EXPECT_EQ(report.good_blocks, 5u + 12u);
  EXPECT_EQ(report.damaged_records, 7u);
  const SsdRepairReport repair = Repair();
  EXPECT_EQ(repair.moved_blocks, 5u);
  EXPECT_EQ(repair.dropped_segments, 1u);
  directory_.ExpectExactly(directory_.AllBut({5, 6, 7, 8, 9, 10, 11}));
  EXPECT_FALSE(std::filesystem::exists(directory_.FileOf(1, "data")));
}

TEST_P(SsdVerifyTest, ATruncatedLog) {
  std::filesystem::resize_file(directory_.FileOf(2, "log"), 5000);
  const SsdDirectoryReport report = Verify();
  EXPECT_TRUE(report.damaged());
  EXPECT_EQ(report.good_blocks, 24u);
  Repair();
  directory_.ExpectExactly(directory_.AllBut({}));
}

TEST_P(SsdVerifyTest, ARemovedLog) {
  std::filesystem::remove(directory_.FileOf(2, "log"));
  const SsdDirectoryReport report = Verify();
  EXPECT_EQ(report.rebuilt_segments, 1u);
  EXPECT_EQ(report.good_blocks, 24u);
  EXPECT_EQ(Repair().fresh_logs, 2u);
  directory_.ExpectExactly(directory_.AllBut({}));
}

TEST_P(SsdVerifyTest, ASegmentThatTellsNothingIsDropped) {
  std::filesystem::remove(directory_.FileOf(2, "log"));
  SsdDirectory::Change(directory_.FileOf(2, "data"),
                       [](std::string* bytes) { bytes->assign(bytes->size(), 'x'); });
  const SsdDirectoryReport report = Verify();
  EXPECT_EQ(report.unreadable_segments, 1u);
  EXPECT_EQ(Repair().dropped_segments, 1u);
  std::set<size_t> numbers;
  for (size_t i = 0; i < 12; ++i) numbers.insert(i);
  directory_.ExpectExactly(numbers);
}

TEST_P(SsdVerifyTest, Superblocks) {
  SsdDirectory::FlipByte(directory_.path() + "/superblock.b", 60);
  EXPECT_EQ(Verify().bad_superblocks, 1u);
  Repair();
  std::filesystem::remove(directory_.path() + "/superblock.a");
  SsdDirectory::FlipByte(directory_.path() + "/superblock.b", 60);
  EXPECT_EQ(Verify().bad_superblocks, 2u);
  Repair();
  directory_.ExpectExactly(directory_.AllBut({}));
}

TEST_P(SsdVerifyTest, DuplicatesAreFreed) {
  {
    OpenedStore opened(directory_.path());
    for (const size_t number : {2, 9}) {  // again, in a slot of the same segment
      directory_.Add(&opened, {1, 12 + static_cast<uint32_t>(number) % 4},
                     directory_.known()[number].identity);
    }
  }
  const SsdDirectoryReport report = Verify();
  EXPECT_FALSE(report.damaged());
  EXPECT_EQ(report.duplicates, 2u);
  EXPECT_EQ(Repair().freed_duplicates, 2u);
  EXPECT_EQ(Verify().good_blocks, 24u);
}

TEST_P(SsdVerifyTest, ParentsMayLieInAnotherDirectory) {
  SsdDirectory even, odd;
  even.FillWith({ChainIdentity(7, 0), ChainIdentity(7, 2)});
  odd.FillWith({ChainIdentity(7, 3), ChainIdentity(7, 1)});
  const auto both = VerifySsd(Options({even.path(), odd.path()}));
  ASSERT_TRUE(both.ok()) << both.status();
  EXPECT_EQ(both->directories[0].orphans + both->directories[1].orphans, 0u);
  const auto alone = VerifySsd(Options({odd.path()}));
  ASSERT_TRUE(alone.ok()) << alone.status();
  EXPECT_EQ(alone->directories[0].orphans, 2u);
  EXPECT_FALSE(alone->damaged()) << "waste is no damage";
}

TEST_P(SsdVerifyTest, BlocksOfAnEpochThatIsOverAreNoDamage) {
  {
    OpenedStore opened(directory_.path());
    NamespaceDigest ns;
    ns.fill(1);
    ASSERT_TRUE(opened.store->SubmitRaiseEpoch(1, ns, 3));
    opened.Finish();
  }
  const SsdDirectoryReport report = Verify();
  EXPECT_FALSE(report.damaged());
  EXPECT_EQ(report.good_blocks, 0u);
  EXPECT_EQ(report.namespaces, 1u);
  EXPECT_EQ(report.highest_epoch, 3u);
}

TEST_P(SsdVerifyTest, BlocksThatCannotBeRead) {
  SsdVerifyOptions options = Options();
  options.max_inflight_bytes = 1;
  int calls = 0;
  options.on_progress = [&](const SsdVerifyProgress&) {
    ++calls;
    EXPECT_TRUE(ArmFaults(calls >= 3 && calls < 9 ? "disk.eio_read" : "").ok());
    return true;
  };
  const SsdDirectoryReport report = VerifyWith(options);
  EXPECT_GT(report.unreadable_blocks, 0u);
  EXPECT_EQ(report.corrupt_blocks, 0u);
  EXPECT_EQ(report.good_blocks + report.unreadable_blocks, 24u);
  EXPECT_EQ(Verify().good_blocks, 24u) << "the fault was of the moment";
}

TEST_P(SsdVerifyTest, AnEarlyEndChangesNothing) {
  directory_.FlipPayload(0);
  for (const bool repair : {false, true}) {
    SsdVerifyOptions options = Options();
    options.max_inflight_bytes = 1;
    options.repair = repair;
    options.on_progress = [](const SsdVerifyProgress& progress) { return progress.bytes == 0; };
    const auto before = directory_.Snapshot();
    const auto report = VerifySsd(options);
    ASSERT_TRUE(report.ok()) << report.status();
    EXPECT_TRUE(report->interrupted);
    EXPECT_FALSE(report->repaired);
    const SsdDirectoryReport& of = report->directories[0];
    EXPECT_GT(of.unread_blocks, 0u);
    EXPECT_EQ(of.unread_blocks + of.good_blocks + of.corrupt_blocks, 24u);
    EXPECT_TRUE(before == directory_.Snapshot());
  }
}

TEST_P(SsdVerifyTest, ForeignAndMissingDirectoriesAreLeftAlone) {
  SsdDirectory foreign;
  EXPECT_TRUE(absl::IsNotFound(VerifySsd(Options({foreign.path()})).status())) << "empty";
  std::ofstream(foreign.path() + "/letter.txt") << "dear";
  EXPECT_TRUE(absl::IsNotFound(VerifySsd(Options({foreign.path()})).status()));
  EXPECT_EQ(foreign.Snapshot().size(), 1u) << "no lock was left";
  EXPECT_TRUE(absl::IsNotFound(VerifySsd(Options({foreign.path() + "/none"})).status()));
  EXPECT_FALSE(VerifySsd(Options({foreign.path() + "/letter.txt"})).ok());
  std::ofstream(foreign.path() + "/superblock.a") << std::string(4096, 'x');
  const auto before = foreign.Snapshot();
  for (const bool repair : {false, true}) {
    SsdVerifyOptions options = Options({foreign.path()});
    options.repair = repair;
    EXPECT_TRUE(absl::IsFailedPrecondition(VerifySsd(options).status()));
  }
  EXPECT_EQ(foreign.Snapshot().at("superblock.a"), before.at("superblock.a"));
  EXPECT_TRUE(
      absl::IsInvalidArgument(VerifySsd(Options({foreign.path(), foreign.path()})).status()));
}

TEST_P(SsdVerifyTest, ADirectoryInUse) {
  OpenedStore opened(directory_.path());
  for (const bool repair : {false, true}) {
    SsdVerifyOptions options = Options();
    options.repair = repair;
    const absl::Status status = VerifySsd(options).status();
    EXPECT_TRUE(absl::IsFailedPrecondition(status)) << status;
    EXPECT_TRUE(IsInUse(status)) << status;
  }
}

INSTANTIATE_TEST_SUITE_P(Backends, SsdVerifyTest, testing::Bool(),
                         [](const auto& tested) { return tested.param ? "threads" : "uring"; });

}  // namespace
}  // namespace flexkv
