// Files of a disk: their space, their names, and whose they are.
#include <fcntl.h>
#include <gmock/gmock.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

#include "tests/storage/disk_fixture.h"

namespace flexkv {
namespace {

using absl::StatusCode;

TEST_P(DiskTest, FilesHaveTheirSpace) {
  const FileId file = MustCreate("a", 8 << 20);
  if (!is_volume()) {
    struct stat info {};
    ASSERT_EQ(stat(PathOf("a").c_str(), &info), 0);
    EXPECT_EQ(info.st_size, 8 << 20);
    EXPECT_GE(info.st_blocks * 512, 8 << 20);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
  }
  EXPECT_EQ(disk_->Create("a", 8 << 20).status().code(), StatusCode::kAlreadyExists);
  EXPECT_EQ(disk_->Create("b", 0).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(disk_->Create("b", 100).status().code(), StatusCode::kInvalidArgument);
  disk_->Close(file);
  const absl::StatusOr<std::vector<DiskFile>> files = disk_->List();
  ASSERT_TRUE(files.ok());
  ASSERT_EQ(files->size(), 1u);  // not the lock
  EXPECT_EQ((*files)[0].name, "a");
  EXPECT_EQ((*files)[0].bytes, 8u << 20);
  EXPECT_GT(disk_->FreeBytes().value_or(0), 0u);
  EXPECT_TRUE(disk_->Remove("a").ok());
  EXPECT_EQ(disk_->Remove("a").code(), StatusCode::kNotFound);
  EXPECT_EQ(disk_->Open("a").status().code(), StatusCode::kNotFound);
}

TEST_P(DiskTest, NamesStayInTheDirectory) {
  for (const char* name : {"", ".", "..", "../x", "/tmp/x", "a/b", "lock"}) {
    EXPECT_EQ(disk_->Open(name).status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(disk_->Create(name, 8192).status().code(), StatusCode::kInvalidArgument) << name;
    EXPECT_EQ(disk_->Remove(name).code(), StatusCode::kInvalidArgument) << name;
  }
}

TEST_P(DiskTest, ForeignFilesAreRefused) {
  if (is_volume()) GTEST_SKIP() << "is about directories";
  MustCreate("real", 8192);
  ASSERT_EQ(symlink("real", PathOf("link").c_str()), 0);
  ASSERT_EQ(mkdir(PathOf("folder").c_str(), 0700), 0);
  ASSERT_EQ(mkfifo(PathOf("pipe").c_str(), 0600), 0);
  for (const char* name : {"link", "folder", "pipe"}) {
    EXPECT_EQ(disk_->Open(name).status().code(), StatusCode::kFailedPrecondition) << name;
    EXPECT_EQ(disk_->Create(name, 8192).status().code(), StatusCode::kAlreadyExists) << name;
  }
  EXPECT_EQ(disk_->Remove("folder").code(), StatusCode::kFailedPrecondition);
  ASSERT_EQ(chmod(PathOf("real").c_str(), 0620), 0);
  EXPECT_EQ(disk_->Open("real").status().code(), StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(PathOf("real").c_str(), 0644), 0);
  EXPECT_TRUE(disk_->Open("real").ok());
  if (geteuid() == 0) {
    ASSERT_EQ(chown(PathOf("real").c_str(), 65534, 65534), 0);
    EXPECT_EQ(disk_->Open("real").status().code(), StatusCode::kPermissionDenied);
  }
  EXPECT_EQ(disk_->List()->size(), 1u);
}

TEST_P(DiskTest, ForeignDirectoriesAreRefused) {
  if (is_volume()) GTEST_SKIP() << "is about directories";
  const auto code = [](const std::string& path) {
    return Make({.directory = path}).status().code();
  };
  EXPECT_EQ(code(PathOf("none")), StatusCode::kNotFound);
  MustCreate("file", 8192);
  EXPECT_EQ(code(PathOf("file")), StatusCode::kFailedPrecondition);
  const std::string inner = PathOf("inner");
  ASSERT_EQ(mkdir(inner.c_str(), 0700), 0);
  EXPECT_EQ(code(inner), StatusCode::kOk);
  ASSERT_EQ(symlink("inner", PathOf("link").c_str()), 0);
  EXPECT_EQ(code(PathOf("link")), StatusCode::kFailedPrecondition);
  ASSERT_EQ(chmod(inner.c_str(), 0770), 0);
  EXPECT_EQ(code(inner), StatusCode::kPermissionDenied);
  ASSERT_EQ(chmod(inner.c_str(), 0755), 0);
  EXPECT_EQ(code(inner), StatusCode::kOk);
  if (geteuid() == 0) {
    ASSERT_EQ(chown(inner.c_str(), 65534, 65534), 0);
    EXPECT_EQ(code(inner), StatusCode::kPermissionDenied);
  }
  EXPECT_EQ(Make({.directory = place_, .queue_depth = 0}).status().code(),
            StatusCode::kInvalidArgument);
}

TEST_P(DiskTest, OneOwnerAtATime) {
  const absl::StatusOr<std::unique_ptr<Disk>> second =
      Make({.directory = place_, .lock_wait_ns = 20 * kNsPerMs});
  EXPECT_EQ(second.status().code(), StatusCode::kFailedPrecondition);
  disk_.reset();
  const TimeNs start = SteadyClock().Now();
  EXPECT_TRUE(Make({.directory = place_}).ok());
  EXPECT_LT(SteadyClock().Now() - start, kNsPerSecond);
}

// A process that is killed with writes in flight: its successor opens soon.
TEST_P(DiskTest, SuccessorOfAKilledProcess) {
  MustCreate("a", 32 << 20);
  disk_.reset();
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    absl::StatusOr<std::unique_ptr<Disk>> disk = Make({.directory = place_});
    if (!disk.ok()) _exit(1);
    const absl::StatusOr<FileId> file = (*disk)->Open("a");
    if (!file.ok()) _exit(1);
    Buffer* memory = new Buffer(1 << 20);
    const iovec slice = memory->slice(0, 1 << 20);
    std::vector<IoResult> results;
    for (uint64_t i = 0;; ++i) {
      while ((*disk)->Submit({.tag = i,
                              .kind = IoKind::kWrite,
                              .file = *file,
                              .offset = (i++ % 32) << 20,
                              .slices = {&slice, 1}})) {
      }
      (*disk)->Poll(kNsPerSecond, &results);
      results.clear();
    }
  }
  usleep(200 * 1000);
  ASSERT_EQ(kill(child, SIGKILL), 0);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFSIGNALED(status));
  Reopen();
  ASSERT_NE(disk_, nullptr);
  EXPECT_TRUE(disk_->Open("a").ok());
}

}  // namespace
}  // namespace flexkv
