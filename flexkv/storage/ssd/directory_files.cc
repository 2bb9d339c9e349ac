// A file is made without a name (O_TMPFILE), given its space, synced and only then linked: whatever
// kills the process before, nothing stays behind. Where the file system has no such files, the name
// comes first and a failure removes it.
#include "flexkv/storage/ssd/directory_files.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"

namespace flexkv {
namespace {

constexpr char kLockName[] = "lock";
constexpr char kProbeName[] = ".probe";  // only where O_TMPFILE is missing
constexpr timespec kLockPause = {.tv_sec = 0, .tv_nsec = 10 * 1000 * 1000};
constexpr size_t kZeroBytes = 1 << 20;
constexpr uint64_t kStatBlock = 512;  // unit of st_blocks

template <typename Call>
auto Retry(Call call) {
  auto result = call();
  while (result < 0 && errno == EINTR) result = call();
  return result;
}

// Only a limit that would also raise SIGXFSZ, which nobody here asked for.
bool OverFileSizeLimit(uint64_t bytes) {
  rlimit limit{};
  return getrlimit(RLIMIT_FSIZE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY &&
         bytes > limit.rlim_cur;
}

bool WritableByOthers(mode_t mode) { return (mode & (S_IWGRP | S_IWOTH)) != 0; }

struct DirCloser {
  void operator()(DIR* dir) const { closedir(dir); }
};

}  // namespace

absl::StatusOr<std::unique_ptr<DiskFiles>> DirectoryFiles::Open(
    const DirectoryDiskOptions& options) {
  std::unique_ptr<DirectoryFiles> files(new DirectoryFiles(options.directory));
  files->read_only_ = options.read_only;
  if (absl::Status status = files->OpenDirectory(); !status.ok()) return status;
  if (absl::Status status = files->TakeLock(options.lock_wait_ns); !status.ok()) return status;
  if (absl::Status status = files->ProbeAlignment(options.direct); !status.ok()) return status;
  return files;
}

// A ring that is being torn down may hold the lock's file a little longer than we do.
DirectoryFiles::~DirectoryFiles() {
  if (lock_.valid()) flock(lock_.get(), LOCK_UN);
}

absl::Status DirectoryFiles::Error(int error, const char* what, const std::string& name) const {
  const std::string text =
      absl::StrCat(what, " of ", path_, name.empty() ? "" : "/", name, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
      return absl::NotFoundError(text);
    case EEXIST:
      return absl::AlreadyExistsError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case ELOOP:
    case ENOTDIR:
    case EISDIR:
      return absl::FailedPreconditionError(text);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::UnavailableError(text);
  }
}

absl::Status DirectoryFiles::CheckName(const std::string& name) const {
  if (name.empty() || name.size() > 255 || name == "." || name == ".." || name == kLockName ||
      name.find('/') != std::string::npos || name.find('\0') != std::string::npos) {
    return absl::InvalidArgumentError(absl::StrCat("no name for a file of ", path_, ": ", name));
  }
  return absl::OkStatus();
}

absl::Status DirectoryFiles::OpenDirectory() {
  directory_ = UniqueFd(open(path_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  if (!directory_.valid()) return Error(errno, "open", "");
  struct stat info {};
  if (fstat(directory_.get(), &info) != 0) return Error(errno, "stat", "");
  if (info.st_uid != geteuid()) {
    return absl::PermissionDeniedError(
        absl::StrCat(path_, " belongs to uid ", info.st_uid, ", not to ", geteuid()));
  }
  if (WritableByOthers(info.st_mode)) {
    return absl::PermissionDeniedError(
        absl::StrCat(path_, " may be written by other users; chmod it to 0700"));
  }
  return absl::OkStatus();
}

absl::Status DirectoryFiles::TakeLock(TimeNs wait_ns) {
  const int flags = O_NOFOLLOW | O_CLOEXEC;
  if (read_only_) lock_ = UniqueFd(openat(directory_.get(), kLockName, O_RDONLY | flags));
  if (!lock_.valid()) {
    lock_ = UniqueFd(openat(directory_.get(), kLockName, O_RDWR | O_CREAT | flags, 0600));
  }
  if (!lock_.valid() && read_only_ && errno == EROFS) return absl::OkStatus();
  if (!lock_.valid()) return Error(errno, "open", kLockName);
  const SteadyClock clock;
  const TimeNs start = clock.Now();
  while (Retry([&] { return flock(lock_.get(), LOCK_EX | LOCK_NB); }) != 0) {
    const int error = errno;
    if (error == EWOULDBLOCK && clock.Now() - start < wait_ns) {
      nanosleep(&kLockPause, nullptr);
      continue;
    }
    lock_.Reset();  // not ours
    if (error != EWOULDBLOCK) return Error(error, "lock", kLockName);
    return InUseError(path_);
  }
  return absl::OkStatus();
}

absl::Status DirectoryFiles::CheckWritable() const {
  if (!read_only_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(path_, " is open for reading only"));
}

// One that is there, to ask what transfers of it must look like.
absl::StatusOr<UniqueFd> DirectoryFiles::OpenAnyFile(int flags) const {
  const absl::StatusOr<std::vector<DiskFile>> files = List();
  if (!files.ok()) return files.status();
  if (files->empty()) return absl::NotFoundError(absl::StrCat("no file in ", path_));
  const std::string& name = files->front().name;
  UniqueFd fd(openat(directory_.get(), name.c_str(), O_RDONLY | O_NOFOLLOW | O_CLOEXEC | flags));
  if (!fd.valid()) return Error(errno, "open", name);
  return fd;
}

// An open, empty file without a name, or one whose name is gone already.
absl::StatusOr<UniqueFd> DirectoryFiles::MakeUnnamed(int flags) const {
  flags |= O_RDWR | O_CLOEXEC;
  if (has_unnamed_) {
    UniqueFd fd(openat(directory_.get(), ".", flags | O_TMPFILE, 0600));
    if (!fd.valid()) return Error(errno, "making a file", "");
    return fd;
  }
  UniqueFd fd(openat(directory_.get(), kProbeName, flags | O_CREAT | O_TRUNC | O_NOFOLLOW, 0600));
  if (!fd.valid()) return Error(errno, "making a file", kProbeName);
  unlinkat(directory_.get(), kProbeName, 0);
  return fd;
}

absl::Status DirectoryFiles::ProbeAlignment(bool direct) {
  // /proc is what gives such a file its name without privileges.
  has_unnamed_ =
      !read_only_ &&
      UniqueFd(openat(directory_.get(), ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600)).valid() &&
      access("/proc/self/fd", F_OK) == 0;
  const auto make = [this](int flags) {
    return read_only_ ? OpenAnyFile(flags) : MakeUnnamed(flags);
  };
  const absl::StatusOr<UniqueFd> plain = make(0);
  if (read_only_ && absl::IsNotFound(plain.status())) return absl::OkStatus();  // nothing to read
  if (!plain.ok()) return plain.status();
  struct statx ask {};
  const bool known = statx(plain->get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &ask) == 0 &&
                     (ask.stx_mask & STATX_DIOALIGN) != 0;
  // Without the kernel's word 4 KiB is right for every device that is sold; whether there is direct
  // I/O at all shows when such a file is opened.
  const bool can = known ? ask.stx_dio_offset_align != 0 : make(O_DIRECT).ok();
  if (!can && direct) {
    return absl::FailedPreconditionError(
        absl::StrCat("the file system of ", path_, " has no direct I/O"));
  }
  direct_flag_ = can ? O_DIRECT : 0;
  if (can && known) {
    memory_align_ = std::max(ask.stx_dio_mem_align, 1u);
    offset_align_ = ask.stx_dio_offset_align;
  }
  return absl::OkStatus();
}

absl::StatusOr<DirectoryFiles::Opened> DirectoryFiles::OpenFile(const std::string& name) {
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  struct stat info {};
  // Looked at before it is opened: opening a device or a pipe may already do something.
  if (fstatat(directory_.get(), name.c_str(), &info, AT_SYMLINK_NOFOLLOW) != 0) {
    return Error(errno, "stat", name);
  }
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path_, "/", name, " is not a regular file"));
  }
  Opened opened;
  opened.fd =
      UniqueFd(openat(directory_.get(), name.c_str(),
                      (read_only_ ? O_RDONLY : O_RDWR) | O_NOFOLLOW | O_CLOEXEC | direct_flag_));
  if (!opened.fd.valid()) return Error(errno, "open", name);
  if (fstat(opened.fd.get(), &info) != 0) return Error(errno, "stat", name);
  if (!S_ISREG(info.st_mode)) {
    return absl::FailedPreconditionError(absl::StrCat(path_, "/", name, " is not a regular file"));
  }
  if (info.st_uid != geteuid() || WritableByOthers(info.st_mode)) {
    return absl::PermissionDeniedError(
        absl::StrCat(path_, "/", name, " is not ours, or others may write it"));
  }
  opened.bytes = static_cast<uint64_t>(info.st_size);
  return opened;
}

absl::StatusOr<DirectoryFiles::Opened> DirectoryFiles::CreateFile(const std::string& name,
                                                                  uint64_t bytes) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  if (bytes == 0 || bytes % offset_align_ != 0 || bytes > INT64_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file of ", bytes, " bytes in ", path_, ", aligned to ", offset_align_));
  }
  if (faccessat(directory_.get(), name.c_str(), F_OK, AT_SYMLINK_NOFOLLOW) == 0) {
    return absl::AlreadyExistsError(absl::StrCat(path_, "/", name));
  }
  const int flags = O_RDWR | O_NOFOLLOW | O_CLOEXEC | direct_flag_;
  const char* path = has_unnamed_ ? "." : name.c_str();
  const int make = has_unnamed_ ? O_TMPFILE : O_CREAT | O_EXCL;
  Opened opened;
  opened.fd = UniqueFd(openat(directory_.get(), path, flags | make, 0600));
  if (!opened.fd.valid()) return Error(errno, "making", name);
  bool linked = !has_unnamed_;
  absl::Status status = Allocate(opened.fd.get(), name, bytes);
  if (status.ok() && Retry([&] { return fsync(opened.fd.get()); }) != 0) {
    status = Error(errno, "sync", name);
  }
  if (status.ok() && !linked) {
    const std::string self = absl::StrCat("/proc/self/fd/", opened.fd.get());
    linked = linkat(AT_FDCWD, self.c_str(), directory_.get(), name.c_str(), AT_SYMLINK_FOLLOW) == 0;
    if (!linked) status = Error(errno, "naming", name);
  }
  if (status.ok()) status = SyncDirectory();
  if (!status.ok()) {
    if (linked) unlinkat(directory_.get(), name.c_str(), 0);
    return status;
  }
  opened.bytes = bytes;
  return opened;
}

absl::Status DirectoryFiles::Allocate(int fd, const std::string& name, uint64_t bytes) const {
  if (FaultFires("disk.enospc")) return Error(ENOSPC, "allocation", name);
  if (OverFileSizeLimit(bytes)) return Error(EFBIG, "allocation", name);
  if (Retry([&] { return fallocate(fd, 0, 0, static_cast<off_t>(bytes)); }) != 0) {
    if (errno != EOPNOTSUPP && errno != ENOSYS) return Error(errno, "allocation", name);
    if (absl::Status status = WriteZeros(fd, bytes); !status.ok()) return status;
  }
  struct stat info {};
  if (fstat(fd, &info) != 0) return Error(errno, "stat", name);
  if (static_cast<uint64_t>(info.st_size) != bytes ||
      static_cast<uint64_t>(info.st_blocks) * kStatBlock < bytes) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the file system of ", path_, " does not give a file its space (", info.st_blocks,
        " blocks of 512 for ", bytes, " bytes): compressed or without fallocate?"));
  }
  return absl::OkStatus();
}

absl::Status DirectoryFiles::WriteZeros(int fd, uint64_t bytes) const {
  struct Freer {
    void operator()(void* memory) const { std::free(memory); }
  };
  const std::unique_ptr<void, Freer> zeros(std::aligned_alloc(4096, kZeroBytes));
  if (zeros == nullptr) return absl::ResourceExhaustedError("no memory for zeros");
  std::memset(zeros.get(), 0, kZeroBytes);
  for (uint64_t done = 0; done < bytes;) {
    const size_t length = static_cast<size_t>(std::min<uint64_t>(kZeroBytes, bytes - done));
    const ssize_t wrote =
        Retry([&] { return pwrite(fd, zeros.get(), length, static_cast<off_t>(done)); });
    // A short write means no space, which the next one would say.
    if (wrote <= 0) return Error(wrote < 0 ? errno : ENOSPC, "allocation", "");
    done += static_cast<uint64_t>(wrote);
  }
  return absl::OkStatus();
}

absl::Status DirectoryFiles::RemoveFile(const std::string& name) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  if (absl::Status status = CheckName(name); !status.ok()) return status;
  if (unlinkat(directory_.get(), name.c_str(), 0) != 0) return Error(errno, "removal", name);
  return SyncDirectory();
}

absl::Status DirectoryFiles::SyncDirectory() const {
  if (Retry([&] { return fsync(directory_.get()); }) == 0) return absl::OkStatus();
  return Error(errno, "sync", "");
}

absl::StatusOr<std::vector<DiskFile>> DirectoryFiles::List() const {
  // A descriptor of its own: the position in a directory belongs to the open file.
  UniqueFd fd(openat(directory_.get(), ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd.valid()) return Error(errno, "open", "");
  const std::unique_ptr<DIR, DirCloser> dir(fdopendir(fd.get()));
  if (dir == nullptr) return Error(errno, "listing", "");
  fd.Release();  // closedir closes it
  std::vector<DiskFile> files;
  for (;;) {
    errno = 0;
    const dirent* entry = readdir(dir.get());
    if (entry == nullptr && errno != 0) return Error(errno, "listing", "");
    if (entry == nullptr) break;
    struct stat info {};
    if (fstatat(directory_.get(), entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    if (!S_ISREG(info.st_mode) || std::strcmp(entry->d_name, kLockName) == 0) continue;
    files.push_back({.name = entry->d_name, .bytes = static_cast<uint64_t>(info.st_size)});
  }
  std::sort(files.begin(), files.end(),
            [](const DiskFile& a, const DiskFile& b) { return a.name < b.name; });
  return files;
}

absl::StatusOr<uint64_t> DirectoryFiles::FreeBytes() const {
  struct statvfs info {};
  if (Retry([&] { return fstatvfs(directory_.get(), &info); }) != 0) {
    return Error(errno, "statvfs", "");
  }
  return static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
}

}  // namespace flexkv
