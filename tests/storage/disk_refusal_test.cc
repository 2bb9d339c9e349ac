// What the system may refuse a disk: space, io_uring, locked memory.
#include <gmock/gmock.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#include <iterator>

#include "tests/storage/disk_fixture.h"

namespace flexkv {
namespace {

using absl::StatusCode;

// Runs a check in a process of its own, which may give up rights for good.
template <typename Check>
bool InChild(Check check) {
  const pid_t child = fork();
  if (child == 0) _exit(check() ? 0 : 1);
  int status = 0;
  return child > 0 && waitpid(child, &status, 0) == child && WIFEXITED(status) &&
         WEXITSTATUS(status) == 0;
}

// As container runtimes do by default.
bool ForbidUring() {
  sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  const sock_fprog program = {.len = std::size(code), .filter = code};
  return prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0 &&
         prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0;
}

// Root may lock what it likes as long as it has the capability.
bool LimitLockedMemory(uint64_t bytes) {
  __user_cap_header_struct header = {.version = _LINUX_CAPABILITY_VERSION_3, .pid = 0};
  __user_cap_data_struct rights[2] = {};
  if (syscall(SYS_capget, &header, rights) != 0) return false;
  rights[CAP_TO_INDEX(CAP_IPC_LOCK)].effective &= ~CAP_TO_MASK(CAP_IPC_LOCK);
  const rlimit limit = {.rlim_cur = bytes, .rlim_max = bytes};
  return syscall(SYS_capset, &header, rights) == 0 && setrlimit(RLIMIT_MEMLOCK, &limit) == 0;
}

// On a mount of 1 MiB where that can be had, else under a limit on the size of files.
TEST_P(DiskTest, NoSpaceLeavesNothingBehind) {
  const std::string small = PathOf("small");
  ASSERT_EQ(mkdir(small.c_str(), 0700), 0);
  const bool mounted = mount("tmpfs", small.c_str(), "tmpfs", 0, "size=1m,mode=700") == 0;
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  if (!mounted) {
    const rlimit limit = {.rlim_cur = 1 << 20, .rlim_max = before.rlim_max};
    ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &limit), 0);
  }
  {
    absl::StatusOr<std::unique_ptr<Disk>> disk = Make({.directory = small});
    ASSERT_TRUE(disk.ok()) << disk.status();
    EXPECT_EQ((*disk)->Create("a", 2 << 20).status().code(), StatusCode::kResourceExhausted);
    EXPECT_THAT((*disk)->List().value(), testing::IsEmpty());
    EXPECT_GT((*disk)->FreeBytes().value(), mounted ? 900u << 10 : 0u);
    EXPECT_TRUE((*disk)->Create("a", 512 << 10).ok());
    if (mounted) {
      EXPECT_EQ((*disk)->Create("b", 768 << 10).status().code(), StatusCode::kResourceExhausted);
      EXPECT_TRUE((*disk)->Remove("a").ok());
    }
    EXPECT_EQ((*disk)->List()->size(), mounted ? 0u : 1u);
  }
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(mounted ? umount(small.c_str()) : 0, 0);
}

TEST_P(DiskTest, UringForbidden) {
  disk_.reset();
  EXPECT_TRUE(InChild([&] {
    if (!ForbidUring()) return false;
    const absl::Status status = Make({.directory = place_}).status();
    return GetParam().uring
               ? status.code() == StatusCode::kUnavailable &&
                     MakeThreadDisk({.directory = place_, .allow_regular_file = is_volume()}).ok()
               : status.ok();
  }));
}

TEST_P(DiskTest, LockedMemoryLimited) {
  const FileId file = MustCreate("a", 4 << 20);
  Buffer out(4 << 20);
  EXPECT_EQ(Write(file, 0, {out.slice(0, 4 << 20)}), 4 << 20);
  disk_.reset();
  EXPECT_TRUE(InChild([&] {
    if (!LimitLockedMemory(1 << 20)) return false;
    Reopen();
    if (disk_ == nullptr) return false;
    Buffer in(4 << 20);
    if (disk_->RegisterMemory(in.span())) return false;
    const FileId again = disk_->Open("a").value();
    return Read(again, 0, {in.slice(0, 4 << 20)}) == 4 << 20 && disk_->stats().unregistered == 1 &&
           std::memcmp(in.data(), out.data(), 4 << 20) == 0;
  }));
}

}  // namespace
}  // namespace flexkv
