// A device on its own thread, real files: commands from one thread, results, bounds, a clean end.
#include "flexkv/storage/ssd/ssd_device.h"

#include <atomic>
#include <chrono>
#include <filesystem>
#include <map>
#include <thread>

#include "gtest/gtest.h"
#include "tests/storage/disk_fixture.h"
#include "tests/storage/ssd_harness.h"

namespace flexkv {
namespace {

const SsdShape kShape{{5000, 4096}, 64};

class SsdDeviceTest : public testing::TestWithParam<SsdBackend> {
 protected:
  SsdDeviceTest() {
    directory_ = MakeDirectory(DiskPlace());
    options_.disk.directory = directory_;
    options_.backend = GetParam();
    options_.store.max_bytes = 64ull << 20;
    options_.on_results = [this] { ++bells_; };
  }
  ~SsdDeviceTest() override {
    device_.reset();
    std::filesystem::remove_all(directory_);
  }
  void Open() {
    device_.reset();
    absl::StatusOr<std::unique_ptr<SsdDevice>> device = SsdDevice::Open(options_);
    ASSERT_TRUE(device.ok()) << device.status();
    device_ = *std::move(device);
  }
  // Until the command of this tag has ended; Unavailable after five seconds.
  SsdDeviceResult Wait(uint64_t tag) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
    while (!results_.contains(tag) && std::chrono::steady_clock::now() < deadline) {
      std::vector<SsdDeviceResult> taken;
      device_->TakeResults(&taken);
      for (SsdDeviceResult& result : taken) {
        EXPECT_TRUE(results_.emplace(result.tag, result).second) << "told twice";
      }
      if (taken.empty()) std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    if (!results_.contains(tag)) return {tag, absl::UnavailableError("no result"), 0};
    return results_.at(tag);
  }
  uint32_t NewSegment() {
    EXPECT_TRUE(device_->CreateSegment(++tag_, kShape));
    const SsdDeviceResult result = Wait(tag_);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result.segment;
  }
  // Writes blocks 0..count-1 to slots of the same number and waits for all.
  void WriteBlocks(uint32_t segment, uint32_t count) {
    std::vector<std::unique_ptr<SsdBlockBuffer>> memory;
    const uint64_t first = tag_ + 1;
    for (uint32_t i = 0; i < count; ++i) {
      memory.push_back(std::make_unique<SsdBlockBuffer>(kShape.shard_bytes));
      memory.back()->Fill(TestIdentity(i));
      ASSERT_TRUE(
          device_->Write({++tag_, {segment, i}, TestIdentity(i), memory.back()->ToWrite()}));
    }
    for (uint32_t i = 0; i < count; ++i) {
      ASSERT_TRUE(Wait(first + i).status.ok()) << Wait(first + i).status;
    }
  }
  absl::Status ReadBlock(uint32_t segment, uint32_t slot, const SsdIdentity& identity) {
    SsdBlockBuffer memory(kShape.shard_bytes);
    EXPECT_TRUE(device_->Read({++tag_, {segment, slot}, identity, memory.ToRead()}));
    absl::Status status = Wait(tag_).status;
    if (status.ok() && !memory.Matches(identity)) return absl::InternalError("wrong bytes");
    return status;
  }

  std::string directory_;
  SsdDeviceOptions options_;
  std::unique_ptr<SsdDevice> device_;
  std::map<uint64_t, SsdDeviceResult> results_;
  std::atomic<int> bells_{0};
  uint64_t tag_ = 0;
};

TEST_P(SsdDeviceTest, BlocksComeBackAlsoAfterARestart) {
  Open();
  const uint32_t segment = NewSegment();
  WriteBlocks(segment, 20);
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(ReadBlock(segment, i, TestIdentity(i)).ok()) << i;
  EXPECT_EQ(ReadBlock(segment, 3, TestIdentity(4)).code(), absl::StatusCode::kNotFound);
  EXPECT_GT(bells_.load(), 0);

  Open();
  EXPECT_EQ(device_->TakeRecovered().size(), 20u);
  EXPECT_TRUE(device_->TakeRecovered().empty());
  for (uint32_t i = 0; i < 20; ++i) EXPECT_TRUE(ReadBlock(segment, i, TestIdentity(i)).ok()) << i;
}

// The owner goes as soon as its writes were accepted: they are committed all the same.
TEST_P(SsdDeviceTest, ACleanEndCommitsWhatIsUnderWay) {
  options_.store.group_delay_ns = kNsPerSecond;  // only the end closes the group
  options_.store.group_bytes = 1ull << 40;
  Open();
  const uint32_t segment = NewSegment();
  SsdBlockBuffer memory(kShape.shard_bytes);
  memory.Fill(TestIdentity(1));
  ASSERT_TRUE(device_->Write({++tag_, {segment, 0}, TestIdentity(1), memory.ToWrite()}));
  while (device_->status().store.queued_ops == 0) {  // the thread has it
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  Open();
  EXPECT_EQ(device_->TakeRecovered().size(), 1u);
}

TEST_P(SsdDeviceTest, FreedPlacesAndOldEpochsAreNotFoundAgain) {
  Open();
  const uint32_t segment = NewSegment();
  WriteBlocks(segment, 4);
  ASSERT_TRUE(device_->Free(++tag_, {segment, 2}));
  EXPECT_TRUE(Wait(tag_).status.ok());
  EXPECT_EQ(ReadBlock(segment, 2, TestIdentity(2)).code(), absl::StatusCode::kNotFound);
  ASSERT_TRUE(device_->RaiseEpoch(++tag_, TestIdentity(0).ns, 1));
  EXPECT_TRUE(Wait(tag_).status.ok());
  Open();
  EXPECT_TRUE(device_->TakeRecovered().empty());
  ASSERT_EQ(device_->TakeEpochs().size(), 1u);
}

TEST_P(SsdDeviceTest, CommandsAreBounded) {
  options_.store.max_queued_ops = 4;
  Open();
  const uint32_t segment = NewSegment();
  uint32_t accepted = 0;
  std::vector<std::unique_ptr<SsdBlockBuffer>> memory;
  for (uint32_t i = 0; i < 10; ++i) {
    memory.push_back(std::make_unique<SsdBlockBuffer>(kShape.shard_bytes));
    accepted += device_->Read({++tag_, {segment, i}, TestIdentity(i), memory.back()->ToRead()});
  }
  EXPECT_EQ(accepted, 4u);  // nobody took a result
  for (uint32_t i = 1; i <= 4; ++i) {
    EXPECT_EQ(Wait(tag_ - 10 + i).status.code(), absl::StatusCode::kNotFound);
  }
  EXPECT_EQ(ReadBlock(segment, 0, TestIdentity(0)).code(), absl::StatusCode::kNotFound);
}

TEST_P(SsdDeviceTest, MalformedCommandsAreTold) {
  Open();
  EXPECT_TRUE(device_->CreateSegment(++tag_, SsdShape{{}, 10}));
  EXPECT_EQ(Wait(tag_).status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(device_->DropSegment(++tag_, 77));
  EXPECT_FALSE(Wait(tag_).status.ok());
  EXPECT_EQ(ReadBlock(77, 0, TestIdentity(0)).code(), absl::StatusCode::kInvalidArgument);
}

TEST_P(SsdDeviceTest, MemoryMayBeAddedAndRemoved) {
  Open();
  const uint32_t segment = NewSegment();
  WriteBlocks(segment, 1);
  SsdBlockBuffer memory({1u << 20});
  ASSERT_TRUE(device_->AddMemory(++tag_, memory.ToRead()[0]));
  EXPECT_TRUE(Wait(tag_).status.ok());
  EXPECT_TRUE(ReadBlock(segment, 0, TestIdentity(0)).ok());
  ASSERT_TRUE(device_->RemoveMemory(++tag_, memory.ToRead()[0].data()));
  EXPECT_TRUE(Wait(tag_).status.ok());
}

// Memory comes and goes between reads that are on their way together: each read finds it as the
// commands before it left it, and the status says what is known at the end.
TEST_P(SsdDeviceTest, MemoryCommandsTakeEffectInOrder) {
  Open();
  const uint32_t segment = NewSegment();
  WriteBlocks(segment, 1);
  const bool ring = device_->status().backend == SsdBackend::kIoUring;
  SsdBlockBuffer memory({kShape.shard_bytes[1]});
  const std::byte* address = memory.ToRead()[0].data();
  std::vector<uint64_t> added, removed;
  for (int round = 0; round < 20; ++round) {
    ASSERT_TRUE(device_->AddMemory(++tag_, memory.ToRead()[0]));
    added.push_back(tag_);
    ASSERT_TRUE(device_->RemoveMemory(++tag_, address));
    removed.push_back(tag_);
  }
  ASSERT_TRUE(device_->AddMemory(++tag_, memory.ToRead()[0]));
  added.push_back(tag_);
  const bool registered = Wait(added.front()).registered;
  EXPECT_TRUE(ring || !registered);
  // Out of order an Add would meet memory that is there already, and be refused.
  for (const uint64_t tag : added) EXPECT_EQ(Wait(tag).registered, registered);
  for (const uint64_t tag : removed) EXPECT_FALSE(Wait(tag).registered);
  const auto told = [&] { return device_->status().memory_bytes == memory.bytes(); };
  for (int i = 0; i < 100 && !told(); ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(device_->status().memory_bytes, memory.bytes());
  EXPECT_EQ(device_->status().registered_bytes, registered ? memory.bytes() : 0);
  EXPECT_EQ(device_->status().commands, 0u);
}

TEST_P(SsdDeviceTest, ADirectoryInUseIsRefused) {
  Open();
  options_.disk.lock_wait_ns = 0;
  EXPECT_FALSE(SsdDevice::Open(options_).ok());
}

std::string BackendName(const testing::TestParamInfo<SsdBackend>& info) {
  return info.param == SsdBackend::kAuto ? "auto" : "threads";
}
INSTANTIATE_TEST_SUITE_P(Backends, SsdDeviceTest,
                         testing::Values(SsdBackend::kAuto, SsdBackend::kThreads), BackendName);

}  // namespace
}  // namespace flexkv
