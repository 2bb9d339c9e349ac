// Devices that run full, fail or are slow, with real files and both backends: the tier goes on with
// what it has, and comes back when the fault goes.
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "flexkv/base/fault.h"
#include "flexkv/storage/ssd/ssd_device.h"
#include "tests/storage/disk_fixture.h"
#include "tests/storage/ssd_crash_workload.h"
#include "tests/storage/ssd_harness.h"

namespace flexkv {
namespace {

using absl::StatusCode;

const SsdShape kShape{{5000, 4096}, 64};  // 1 MiB of data, as much again of log at the most

class SsdBadDeviceTest : public testing::TestWithParam<SsdBackend> {
 protected:
  void SetUp() override {
    directory_ = MakeDirectory(DiskPlace());
    if (GetParam() == SsdBackend::kIoUring) {
      const absl::Status status = MakeUringDisk({.directory = directory_}).status();
      if (absl::IsUnavailable(status)) GTEST_SKIP() << status;
    }
  }
  void TearDown() override {
    EXPECT_TRUE(ArmFaults("").ok());
    device_.reset();
    if (mounted_) {
      EXPECT_EQ(umount(directory_.c_str()), 0) << std::strerror(errno);
    }
    std::filesystem::remove_all(directory_);
  }

  bool Mount(const char* size, unsigned long flags = 0) {
    const std::string options = std::string("mode=700,size=") + size;
    const bool done = mount("tmpfs", directory_.c_str(), "tmpfs", flags, options.c_str()) == 0;
    mounted_ |= done;
    return done;
  }
  void Open() {
    device_.reset();
    SsdDeviceOptions options;
    options.disk.directory = directory_;
    options.backend = GetParam();
    options.store.max_bytes = 1ull << 40;  // the quota is not what ends growth here
    absl::StatusOr<std::unique_ptr<SsdDevice>> device = SsdDevice::Open(options);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }
  SsdDeviceResult Wait(uint64_t tag) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!results_.contains(tag) && std::chrono::steady_clock::now() < deadline) {
      std::vector<SsdDeviceResult> taken;
      device_->TakeResults(&taken);
      for (SsdDeviceResult& result : taken) results_[result.tag] = result;
      if (taken.empty()) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (!results_.contains(tag)) return {tag, absl::DeadlineExceededError("a command hangs"), 0};
    return results_.at(tag);
  }
  absl::StatusOr<uint32_t> Create() {
    EXPECT_TRUE(device_->CreateSegment(++tag_, kShape));
    const SsdDeviceResult result = Wait(tag_);
    if (!result.status.ok()) return result.status;
    return result.segment;
  }
  absl::Status Drop(uint32_t segment) {
    EXPECT_TRUE(device_->DropSegment(++tag_, segment));
    return Wait(tag_).status;
  }
  absl::Status Write(SsdPlace place, uint64_t number) {
    SsdBlockBuffer memory(kShape.shard_bytes);
    memory.Fill(TestIdentity(number));
    EXPECT_TRUE(device_->Write({++tag_, place, TestIdentity(number), memory.ToWrite()}));
    return Wait(tag_).status;
  }
  absl::Status Read(SsdPlace place, uint64_t number) {
    SsdBlockBuffer memory(kShape.shard_bytes);
    EXPECT_TRUE(device_->Read({++tag_, place, TestIdentity(number), memory.ToRead()}));
    absl::Status status = Wait(tag_).status;
    if (status.ok() && !memory.Matches(TestIdentity(number))) {
      return absl::InternalError("WRONG BYTES");
    }
    return status;
  }
  // Blocks 0..count-1 in the slots of their numbers.
  void WriteBlocks(uint32_t segment, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) ASSERT_EQ(Write({segment, i}, i), absl::OkStatus());
  }
  void ExpectBlocks(uint32_t segment, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) EXPECT_EQ(Read({segment, i}, i), absl::OkStatus());
  }
  SegmentState StateOf(uint32_t segment) {
    std::this_thread::sleep_for(std::chrono::milliseconds(250));  // the status is that much behind
    for (const SsdSegmentInfo& info : device_->status().segments) {
      if (info.id == segment) return info.state;
    }
    return SegmentState::kUnreadable;
  }

  std::string directory_;
  bool mounted_ = false;
  std::unique_ptr<SsdDevice> device_;
  std::map<uint64_t, SsdDeviceResult> results_;
  uint64_t tag_ = 0;
};

TEST_P(SsdBadDeviceTest, AFullFileSystem) {
  if (!Mount("6m")) GTEST_SKIP() << "no mount here: " << std::strerror(errno);
  Open();
  std::vector<uint32_t> segments;
  absl::StatusOr<uint32_t> next = Create();
  for (; next.ok() && segments.size() < 20; next = Create()) segments.push_back(*next);
  ASSERT_GE(segments.size(), 2u);
  EXPECT_EQ(next.status().code(), StatusCode::kResourceExhausted) << next.status();
  for (const uint32_t segment : segments) WriteBlocks(segment, 20);
  for (int attempt = 0; attempt < 3; ++attempt) {  // growth fails, work goes on
    EXPECT_EQ(Create().status().code(), StatusCode::kResourceExhausted);
    for (const uint32_t segment : segments) ExpectBlocks(segment, 20);
    EXPECT_EQ(Write({segments[0], 30 + static_cast<uint32_t>(attempt)}, 30), absl::OkStatus());
  }
  ASSERT_TRUE(Mount("12m", MS_REMOUNT));
  next = Create();
  ASSERT_TRUE(next.ok()) << next.status();
  WriteBlocks(*next, 5);
  // Nothing of the failures was left behind, and all is found again.
  Open();
  EXPECT_EQ(device_->TakeRecovered().size(), segments.size() * 20 + 3 + 5);
  EXPECT_EQ(device_->status().store.leftover_files, 0u);
  ExpectBlocks(*next, 5);
  EXPECT_EQ(device_->status().segments.size(), segments.size() + 1);
}

TEST_P(SsdBadDeviceTest, SpaceOfADroppedSegmentIsUsedAgain) {
  if (!Mount("4m")) GTEST_SKIP() << "no mount here: " << std::strerror(errno);
  Open();
  std::vector<uint32_t> segments;
  absl::StatusOr<uint32_t> next = Create();
  for (; next.ok() && segments.size() < 20; next = Create()) segments.push_back(*next);
  ASSERT_GE(segments.size(), 2u);
  WriteBlocks(segments[1], 10);
  for (int round = 0; round < 5; ++round) {
    EXPECT_EQ(Create().status().code(), StatusCode::kResourceExhausted);
    EXPECT_EQ(Drop(segments[0]), absl::OkStatus());
    const absl::StatusOr<uint32_t> again = Create();
    ASSERT_TRUE(again.ok()) << again.status();
    EXPECT_GT(*again, segments[0]) << "ids are not used again";
    segments[0] = *again;
    WriteBlocks(segments[0], 3);
    ExpectBlocks(segments[1], 10);
  }
}

TEST_P(SsdBadDeviceTest, AFileSizeLimit) {
  Open();
  const absl::StatusOr<uint32_t> segment = Create();
  ASSERT_TRUE(segment.ok()) << segment.status();
  WriteBlocks(*segment, 10);
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const auto old_action = signal(SIGXFSZ, SIG_IGN);
  const rlimit limit = {.rlim_cur = 256 << 10, .rlim_max = before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  EXPECT_EQ(Create().status().code(), StatusCode::kResourceExhausted);
  ExpectBlocks(*segment, 10);
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &before), 0);
  signal(SIGXFSZ, old_action);
  const absl::StatusOr<uint32_t> next = Create();
  ASSERT_TRUE(next.ok()) << next.status();
  WriteBlocks(*next, 3);
  ExpectBlocks(*segment, 10);
}

TEST_P(SsdBadDeviceTest, ABadReadQuarantinesAndTheTierGoesOn) {
  Open();
  const uint32_t segment = *Create();
  WriteBlocks(segment, 10);
  ASSERT_TRUE(ArmFaults("disk.eio_read").ok());
  EXPECT_EQ(Read({segment, 0}, 0).code(), StatusCode::kUnavailable);
  ASSERT_TRUE(ArmFaults("disk.flip_read").ok());
  EXPECT_EQ(Read({segment, 1}, 1).code(), StatusCode::kDataLoss);
  ASSERT_TRUE(ArmFaults("").ok());
  for (const uint32_t slot : {0u, 1u}) {  // a miss from now on, and out of use
    EXPECT_EQ(Read({segment, slot}, slot).code(), StatusCode::kNotFound);
    EXPECT_EQ(Write({segment, slot}, 50).code(), StatusCode::kUnavailable);
  }
  for (uint32_t i = 2; i < 10; ++i) EXPECT_EQ(Read({segment, i}, i), absl::OkStatus());
  EXPECT_EQ(Write({segment, 20}, 20), absl::OkStatus());
  Open();
  EXPECT_EQ(device_->TakeRecovered().size(), 9u);
  EXPECT_EQ(StateOf(segment), SegmentState::kOpen);
  EXPECT_EQ(device_->status().segments[0].quarantined, 2u);
}

TEST_P(SsdBadDeviceTest, AFailedSyncRetiresAndANewSegmentWorks) {
  Open();
  const uint32_t segment = *Create();
  WriteBlocks(segment, 10);
  ASSERT_TRUE(ArmFaults("disk.sync_error").ok());
  EXPECT_EQ(Write({segment, 20}, 20).code(), StatusCode::kUnavailable);
  EXPECT_EQ(StateOf(segment), SegmentState::kRetired);
  ExpectBlocks(segment, 10);
  EXPECT_FALSE(Create().ok()) << "nothing can be made durable";
  ASSERT_TRUE(ArmFaults("").ok());
  const absl::StatusOr<uint32_t> next = Create();
  ASSERT_TRUE(next.ok()) << next.status();
  WriteBlocks(*next, 10);
  ExpectBlocks(segment, 10);
  EXPECT_EQ(Drop(segment), absl::OkStatus());
  Open();
  EXPECT_EQ(device_->TakeRecovered().size(), 10u);
  ExpectBlocks(*next, 10);
}

TEST_P(SsdBadDeviceTest, AFailedWriteRetiresAndANewSegmentWorks) {
  Open();
  const uint32_t segment = *Create();
  WriteBlocks(segment, 10);
  for (const char* fault : {"disk.eio_write", "disk.short_write"}) {
    const uint32_t victim = *Create();
    ASSERT_TRUE(ArmFaults(fault).ok());
    EXPECT_EQ(Write({victim, 0}, 0).code(), StatusCode::kUnavailable);
    ASSERT_TRUE(ArmFaults("").ok());
    EXPECT_EQ(StateOf(victim), SegmentState::kRetired);
    EXPECT_EQ(Drop(victim), absl::OkStatus());
    EXPECT_EQ(Write({segment, victim + 20}, 30), absl::OkStatus());
  }
  ExpectBlocks(segment, 10);
}

TEST_P(SsdBadDeviceTest, ASlowDeviceHoldsUpNobody) {
  Open();
  const uint32_t segment = *Create();
  WriteBlocks(segment, 10);
  ASSERT_TRUE(ArmFaults("disk.slow").ok());  // 50 ms a transfer
  std::vector<std::unique_ptr<SsdBlockBuffer>> memory;
  const auto start = std::chrono::steady_clock::now();
  const uint64_t first = tag_ + 1;
  for (uint32_t i = 0; i < 10; ++i) {
    memory.push_back(std::make_unique<SsdBlockBuffer>(kShape.shard_bytes));
    ASSERT_TRUE(device_->Read({++tag_, {segment, i}, TestIdentity(i), memory.back()->ToRead()}));
  }
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(250))
      << "ten one after the other would take 500";
  for (uint32_t i = 0; i < 10; ++i) {
    EXPECT_EQ(Wait(first + i).status, absl::OkStatus());
    EXPECT_TRUE(memory[i]->Matches(TestIdentity(i)));
  }
  EXPECT_EQ(Write({segment, 20}, 20), absl::OkStatus());
  ASSERT_TRUE(ArmFaults("").ok());
  ExpectBlocks(segment, 10);
}

// 200 steps of the crash test's workload on real files, with every fault that a device tells, and
// restarts: what was committed is there in the end, and no byte is ever wrong.
TEST_P(SsdBadDeviceTest, FaultsAtOdds) {
  const SteadyClock clock;
  const auto make = [this] {
    const DirectoryDiskOptions options{.directory = directory_, .threads = 4};
    auto disk =
        GetParam() == SsdBackend::kIoUring ? MakeUringDisk(options) : MakeThreadDisk(options);
    EXPECT_TRUE(disk.ok()) << disk.status();
    return disk.ok() ? *std::move(disk) : nullptr;
  };
  const std::string odds =
      "disk.eio_read:60,disk.eio_write:60,disk.short_read:60,disk.short_write:60,"
      "disk.sync_error:80,disk.enospc:4,disk.stray_completion:20";
  uint64_t fired = 0;
  std::unique_ptr<Disk> disk = make();
  ASSERT_NE(disk, nullptr);
  auto workload = std::make_unique<SsdWorkload>(disk.get(), &clock, TestSeed(), SsdTrust::kLoud);
  for (uint64_t life = 0; life < 4; ++life) {
    absl::Status status = workload->Open();
    ASSERT_TRUE(ArmFaults(odds).ok());
    if (status.ok()) status = workload->Run(200);
    if (status.ok()) status = workload->Settle();
    for (const char* name : {"disk.eio_read", "disk.eio_write", "disk.short_read",
                             "disk.short_write", "disk.sync_error"}) {
      fired += FaultCount(name);
    }
    ASSERT_TRUE(ArmFaults("").ok());
    ASSERT_TRUE(status.ok()) << status << ", FLEXKV_TEST_SEED=" << TestSeed();
    // The successor takes over what this one knows. Its store must be gone before the next opens.
    auto next = std::make_unique<SsdWorkload>(*workload, nullptr, &clock, TestSeed() + life);
    workload.reset();
    disk.reset();
    disk = make();
    ASSERT_NE(disk, nullptr);
    workload = std::make_unique<SsdWorkload>(*next, disk.get(), &clock, TestSeed() + life);
  }
  EXPECT_EQ(workload->Open(), absl::OkStatus());
  EXPECT_EQ(workload->VerifyAll(), absl::OkStatus());
  EXPECT_GT(fired, 4u);
}

INSTANTIATE_TEST_SUITE_P(Backends, SsdBadDeviceTest,
                         testing::Values(SsdBackend::kIoUring, SsdBackend::kThreads),
                         [](const auto& tested) {
                           return tested.param == SsdBackend::kIoUring ? "io_uring" : "threads";
                         });

}  // namespace
}  // namespace flexkv
