#include "flexkv/storage/segment_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdio>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <string>

#include "flexkv/base/fault.h"
#include "flexkv/storage/available_memory.h"
#include "gtest/gtest.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"

namespace flexkv {
namespace {

constexpr uint64_t kMiB = 1ull << 20;

std::unique_ptr<MemfdSegmentStore> OpenStore(MemfdSegmentStoreOptions options = {}) {
  return std::move(MemfdSegmentStore::Open(options)).value();
}

TEST(MemfdSegmentStoreTest, SegmentIsSealedMappedAndSharedThroughItsDescriptor) {
  auto store = OpenStore();
  const SegmentId id = store->Create(3 * kMiB).value();
  EXPECT_EQ(store->Bytes(id), 4 * kMiB) << "rounded up to the alignment";
  std::byte* data = store->Data(id);
  ASSERT_NE(data, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(data) % kSegmentAlign, 0u);

  const int fd = store->Fd(id);
  EXPECT_EQ(fcntl(fd, F_GET_SEALS), F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
  EXPECT_EQ(fcntl(fd, F_GETFD) & FD_CLOEXEC, FD_CLOEXEC);
  EXPECT_NE(ftruncate(fd, 0), 0) << "a client must not be able to take the pages away";

  const BlockHash hash = HashFromNumber(1);
  FillContent(hash, 0, {data + kMiB, kMiB});
  void* other = mmap(nullptr, 4 * kMiB, PROT_READ, MAP_SHARED, fd, 0);
  ASSERT_NE(other, MAP_FAILED);
  EXPECT_TRUE(ContentMatches(hash, 0, {static_cast<std::byte*>(other) + kMiB, kMiB}));
  munmap(other, 4 * kMiB);
}

TEST(MemfdSegmentStoreTest, PrefaultsInTheBackgroundAndSaysWhatItGot) {
  auto store = OpenStore();
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(store->Create(16 * kMiB).ok());
  ASSERT_TRUE(store->WaitPrefaulted(30000));
  const SegmentStoreStats stats = store->stats();
  EXPECT_EQ(stats.segments, 3u);
  EXPECT_EQ(stats.bytes, 48 * kMiB);
  EXPECT_EQ(stats.prefaulted_bytes, 48 * kMiB);
  EXPECT_EQ(stats.prefault_failed_bytes, 0u);
  EXPECT_NE(stats.page_kind, PageKind::kUnknown);
  EXPECT_LE(stats.huge_bytes, stats.bytes);
  if (stats.page_kind != PageKind::k4KiB) {
    EXPECT_GT(stats.huge_bytes, 0u);
  }
}

// Writers may use a segment from the first moment: prefault never disturbs bytes.
TEST(MemfdSegmentStoreTest, BytesWrittenWhilePrefaultRunsStay) {
  auto store = OpenStore();
  const SegmentId id = store->Create(64 * kMiB).value();
  std::byte* data = store->Data(id);
  for (uint32_t i = 0; i < 64; ++i) {
    FillContent(HashFromNumber(i), i, {data + (63 - i) * kMiB, kMiB});
  }
  ASSERT_TRUE(store->WaitPrefaulted(30000));
  for (uint32_t i = 0; i < 64; ++i) {
    EXPECT_TRUE(ContentMatches(HashFromNumber(i), i, {data + (63 - i) * kMiB, kMiB}));
  }
}

int OpenDescriptors() {
  int count = 0;
  for ([[maybe_unused]] const auto& entry : std::filesystem::directory_iterator("/proc/self/fd")) {
    ++count;
  }
  return count;
}

TEST(MemfdSegmentStoreTest, DestroyGivesDescriptorAndMappingBack) {
  const int before = OpenDescriptors();
  auto store = OpenStore();
  const SegmentId kept = store->Create(2 * kMiB).value();
  const SegmentId id = store->Create(512 * kMiB).value();
  store->Destroy(id);  // most likely while it is being populated
  store->Destroy(id);
  store->Destroy(12345);
  ASSERT_TRUE(store->WaitPrefaulted(30000));
  EXPECT_EQ(store->Fd(id), -1);
  EXPECT_EQ(store->Data(id), nullptr);
  EXPECT_EQ(store->Bytes(id), 0u);
  EXPECT_EQ(store->stats().bytes, 2 * kMiB);
  EXPECT_EQ(OpenDescriptors(), before + 1);
  EXPECT_NE(store->Create(2 * kMiB).value(), id) << "ids are never reused";
  EXPECT_NE(store->Fd(kept), -1);
  store.reset();
  EXPECT_EQ(OpenDescriptors(), before);
}

TEST(MemfdSegmentStoreTest, MappingOfAClientOutlivesDestroy) {
  auto store = OpenStore();
  const SegmentId id = store->Create(2 * kMiB).value();
  FillContent(HashFromNumber(5), 0, {store->Data(id), kMiB});
  void* other = mmap(nullptr, 2 * kMiB, PROT_READ, MAP_SHARED, store->Fd(id), 0);
  ASSERT_NE(other, MAP_FAILED);
  store.reset();
  EXPECT_TRUE(ContentMatches(HashFromNumber(5), 0, {static_cast<std::byte*>(other), kMiB}));
  munmap(other, 2 * kMiB);
}

TEST(MemfdSegmentStoreTest, RefusesWhatCannotBe) {
  auto store = OpenStore();
  EXPECT_EQ(store->Create(0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->Create(UINT64_MAX).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(store->Create(1ull << 45).status().code(), absl::StatusCode::kResourceExhausted)
      << "more than the machine has";
  EXPECT_FALSE(MemfdSegmentStore::Open({.numa_node = -7}).ok());
}

TEST(MemfdSegmentStoreTest, KeepsTheReserve) {
  const uint64_t available = AvailableMemoryBytes();
  ASSERT_GT(available, 0u);
  auto store = OpenStore({.prefault = false, .reserve_bytes = available});
  EXPECT_EQ(store->Create(2 * kMiB).status().code(), absl::StatusCode::kResourceExhausted);
  // Promised pages count: three quarters and once more does not fit.
  store = OpenStore({.prefault = false});
  ASSERT_TRUE(store->Create(available / 4 * 3).ok());
  EXPECT_EQ(store->Create(available / 4 * 3).status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(MemfdSegmentStoreTest, FaultPointMakesCreateFail) {
  auto store = OpenStore();
  ASSERT_TRUE(ArmFaults("segment.create_fails").ok());
  EXPECT_EQ(store->Create(2 * kMiB).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(FaultCount("segment.create_fails"), 1u);
  ASSERT_TRUE(ArmFaults("").ok());
  EXPECT_TRUE(store->Create(2 * kMiB).ok());
}

TEST(MemfdSegmentStoreTest, NoDescriptorsLeftIsAnAnswer) {
  auto store = OpenStore();
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &old), 0);
  rlimit none = old;
  none.rlim_cur = 3;
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &none), 0);
  const absl::Status status = store->Create(2 * kMiB).status();
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &old), 0);
  EXPECT_EQ(status.code(), absl::StatusCode::kResourceExhausted);
}

TEST(MemfdSegmentStoreTest, UnknownNumaNodeIsToldNotFatal) {
  auto store = OpenStore({.numa_node = 4000});
  ASSERT_TRUE(store->Create(2 * kMiB).ok());
  EXPECT_EQ(store->stats().numa_unbound_bytes, 2 * kMiB);
}

TEST(FakeSegmentStoreTest, KeepsItsBudgetAndFailsWhenTold) {
  FakeSegmentStore store(10);
  store.FailCreate(2);
  const SegmentId first = store.Create(6).value();
  EXPECT_FALSE(store.Create(1).ok());
  EXPECT_FALSE(store.Create(5).ok());
  EXPECT_TRUE(store.Create(4).ok());
  EXPECT_EQ(store.live_bytes(), 10u);
  store.Destroy(first);
  store.Destroy(first);
  EXPECT_EQ(store.live().size(), 1u);
  EXPECT_EQ(store.unknown_destroys(), 1u);
  EXPECT_EQ(store.failed_creates(), 2u);
}

// A tree of /proc and cgroup files.
class AvailableMemoryTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/flexkv_memory_XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    root_ = name;
    Write("proc/meminfo", "MemTotal:  2000 kB\nMemAvailable:  1000 kB\n");
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  void Write(const std::string& path, const std::string& text) {
    const std::filesystem::path full = std::filesystem::path(root_) / path;
    std::filesystem::create_directories(full.parent_path());
    std::ofstream(full) << text;
  }
  uint64_t Available() { return AvailableMemoryBytesIn(root_ + "/proc", root_ + "/cgroup"); }

  std::string root_;
};

TEST_F(AvailableMemoryTest, IsMemAvailableWithoutCgroups) { EXPECT_EQ(Available(), 1000u << 10); }

TEST_F(AvailableMemoryTest, IsZeroWhenNothingCanBeRead) {
  EXPECT_EQ(AvailableMemoryBytesIn("/nowhere", "/nowhere"), 0u);
}

TEST_F(AvailableMemoryTest, EveryCgroupAboveTheProcessBounds) {
  Write("proc/self/cgroup", "0::/a/b\n");
  Write("cgroup/a/b/memory.max", "max\n");
  Write("cgroup/a/b/memory.current", "10\n");
  Write("cgroup/a/memory.max", "500000\n");
  Write("cgroup/a/memory.current", "300000\n");
  Write("cgroup/a/memory.stat", "anon 7\ninactive_file 100000\n");
  EXPECT_EQ(Available(), 300000u);
  Write("cgroup/a/memory.current", "700000\n");
  EXPECT_EQ(Available(), 0u);
}

TEST_F(AvailableMemoryTest, ReadsVersionOneAndAPathThatIsNotMounted) {
  Write("proc/self/cgroup", "4:cpu:/x\n3:memory,hugetlb:/docker/123\n");
  Write("cgroup/memory/memory.limit_in_bytes", "400000\n");
  Write("cgroup/memory/memory.usage_in_bytes", "100000\n");
  EXPECT_EQ(Available(), 300000u);
}

}  // namespace
}  // namespace flexkv
