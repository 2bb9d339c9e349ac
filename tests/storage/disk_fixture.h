// What the tests of both disk backends share: each test runs on io_uring and on threads, on the
// disk that holds the working directory (FLEXKV_TEST_DIR names another place) and on tmpfs.
#pragma once

#include <errno.h>
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flexkv/base/fault.h"
#include "flexkv/storage/ssd/disk.h"

namespace flexkv {

constexpr size_t kPage = 4096;
constexpr TimeNs kLong = 20 * kNsPerSecond;

// Page-aligned memory of our own.
class Buffer {
 public:
  explicit Buffer(size_t bytes) : bytes_(bytes) {
    data_ = static_cast<std::byte*>(std::aligned_alloc(kPage, bytes));
    std::memset(data_, 0xEE, bytes);
  }
  ~Buffer() { std::free(data_); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  std::span<std::byte> span() { return {data_, bytes_}; }
  std::byte* data() { return data_; }
  iovec slice(size_t from, size_t bytes) { return {data_ + from, bytes}; }

 private:
  std::byte* data_;
  size_t bytes_;
};

inline std::string MakeDirectory(const std::string& parent) {
  std::string path = parent + "/flexkv-disk-test-XXXXXX";
  if (mkdtemp(path.data()) == nullptr) {
    ADD_FAILURE() << "mkdtemp " << path << ": " << std::strerror(errno);
  }
  return path;
}

inline std::string DiskPlace() {
  const char* named = std::getenv("FLEXKV_TEST_DIR");
  return named != nullptr ? named : std::filesystem::current_path().string();
}

enum class DiskPlaceKind : uint8_t {
  kDirectory,
  kTmpfs,
  kImage,  // a regular file that stands for a raw device
  kLoop,   // a real block device
};

struct DiskCase {
  const char* name;
  bool uring;
  DiskPlaceKind kind = DiskPlaceKind::kDirectory;
};

// A block device on top of a file, where the machine has such.
class LoopDevice {
 public:
  explicit LoopDevice(const std::string& file) {
    FILE* pipe = popen(("losetup -f --show " + file + " 2>&1").c_str(), "r");
    char text[200] = {};
    if (pipe != nullptr && std::fgets(text, sizeof(text), pipe) != nullptr) output_ = text;
    if (pipe != nullptr) pclose(pipe);
    while (!output_.empty() && output_.back() == '\n') output_.pop_back();
    if (output_.rfind("/dev/loop", 0) == 0) path_ = output_;
  }
  ~LoopDevice() {
    if (path_.empty()) return;
    EXPECT_EQ(std::system(("losetup -d " + path_).c_str()), 0);
  }
  LoopDevice(const LoopDevice&) = delete;
  LoopDevice& operator=(const LoopDevice&) = delete;
  const std::string& path() const { return path_; }  // empty: there is none
  const std::string& output() const { return output_; }

 private:
  std::string path_, output_;
};

inline void MakeImage(const std::string& path, uint64_t bytes) {
  const int fd = open(path.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
  EXPECT_EQ(ftruncate(fd, static_cast<off_t>(bytes)), 0);
  close(fd);
}

class DiskTest : public testing::TestWithParam<DiskCase> {
 protected:
  void SetUp() override {
    const bool tmpfs = GetParam().kind == DiskPlaceKind::kTmpfs;
    if (tmpfs && access("/dev/shm", W_OK) != 0) GTEST_SKIP() << "no tmpfs";
    directory_ = MakeDirectory(tmpfs ? "/dev/shm" : DiskPlace());
    place_ = directory_;
    if (is_volume()) {
      place_ = directory_ + "/image";
      MakeImage(place_, 256 << 20);
    }
    if (GetParam().kind == DiskPlaceKind::kLoop) {
      loop_ = std::make_unique<LoopDevice>(place_);
      if (loop_->path().empty()) GTEST_SKIP() << "no loop device: " << loop_->output();
      place_ = loop_->path();
    }
    Reopen();
  }
  void TearDown() override {
    EXPECT_TRUE(ArmFaults("").ok());
    disk_.reset();
    loop_.reset();
    if (!directory_.empty()) std::filesystem::remove_all(directory_);
  }

  static bool is_volume() {
    return GetParam().kind == DiskPlaceKind::kImage || GetParam().kind == DiskPlaceKind::kLoop;
  }
  static absl::StatusOr<std::unique_ptr<Disk>> Make(DirectoryDiskOptions options) {
    options.allow_regular_file = GetParam().kind == DiskPlaceKind::kImage;
    return GetParam().uring ? MakeUringDisk(options) : MakeThreadDisk(options);
  }

  void Reopen(uint32_t depth = 64) {
    disk_.reset();
    absl::StatusOr<std::unique_ptr<Disk>> disk = Make({.directory = place_, .queue_depth = depth});
    if (!disk.ok() && disk.status().code() == absl::StatusCode::kUnavailable) {
      GTEST_SKIP() << disk.status();
    }
    ASSERT_TRUE(disk.ok()) << disk.status();
    disk_ = *std::move(disk);
  }

  FileId MustCreate(const std::string& name, uint64_t bytes) {
    const absl::StatusOr<FileId> file = disk_->Create(name, bytes);
    EXPECT_TRUE(file.ok()) << file.status();
    return file.value_or(0);
  }

  // One transfer to its end.
  int64_t Do(IoKind kind, FileId file, uint64_t offset, std::vector<iovec> slices) {
    EXPECT_TRUE(
        disk_->Submit({.tag = 99, .kind = kind, .file = file, .offset = offset, .slices = slices}));
    const std::vector<IoResult> results = Collect(1);
    return results.empty() ? INT64_MIN : results[0].result;
  }
  int64_t Write(FileId file, uint64_t offset, std::vector<iovec> slices) {
    return Do(IoKind::kWrite, file, offset, std::move(slices));
  }
  int64_t Read(FileId file, uint64_t offset, std::vector<iovec> slices) {
    return Do(IoKind::kRead, file, offset, std::move(slices));
  }
  int64_t Sync(FileId file) { return Do(IoKind::kSync, file, 0, {}); }

  std::vector<IoResult> Collect(size_t count) {
    std::vector<IoResult> results;
    const TimeNs deadline = SteadyClock().Now() + kLong;
    while (results.size() < count && SteadyClock().Now() < deadline) {
      disk_->Poll(kNsPerSecond, &results);
    }
    EXPECT_EQ(results.size(), count);
    return results;
  }

  std::string PathOf(const std::string& name) const { return directory_ + "/" + name; }

  std::string directory_;
  std::string place_;  // directory_, or the device
  std::unique_ptr<LoopDevice> loop_;
  std::unique_ptr<Disk> disk_;
};

}  // namespace flexkv
