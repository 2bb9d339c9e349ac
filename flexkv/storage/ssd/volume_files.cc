// The device is locked in two ways. flock on its node is what waits for a killed predecessor, whose
// ring holds the same lock until its last transfer has ended. O_EXCL is what mounts and others that
// claim devices respect, and what they are refused by.
#include "flexkv/storage/ssd/volume_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <random>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/base/units.h"

namespace flexkv {
namespace {

constexpr timespec kLockPause = {.tv_sec = 0, .tv_nsec = 10 * 1000 * 1000};

class PageMemory {
 public:
  explicit PageMemory(size_t bytes)
      : data_(static_cast<std::byte*>(std::aligned_alloc(kVolumePage, bytes))), bytes_(bytes) {
    if (data_ != nullptr) std::memset(data_.get(), 0, bytes);
  }
  std::span<std::byte> span() const { return {data_.get(), data_ == nullptr ? 0 : bytes_}; }

 private:
  struct Free {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::unique_ptr<std::byte, Free> data_;
  size_t bytes_;
};

// 0 or errno; a short transfer is EIO.
template <typename Call>
int Transfer(Call call, size_t bytes) {
  ssize_t result = 0;
  do {
    result = call();
  } while (result < 0 && errno == EINTR);
  if (result < 0) return errno;
  return static_cast<size_t>(result) == bytes ? 0 : EIO;
}

}  // namespace

VolumeFiles::VolumeFiles(const DirectoryDiskOptions& options)
    : path_(options.directory), read_only_(options.read_only) {}

VolumeFiles::~VolumeFiles() {
  if (lock_.valid()) flock(lock_.get(), LOCK_UN);
}

absl::StatusOr<std::unique_ptr<DiskFiles>> VolumeFiles::Open(const DirectoryDiskOptions& options) {
  std::unique_ptr<VolumeFiles> files(new VolumeFiles(options));
  if (absl::Status status = files->TakeLock(options.lock_wait_ns); !status.ok()) return status;
  if (absl::Status status = files->OpenDevice(options.lock_wait_ns); !status.ok()) return status;
  if (absl::Status status = files->ReadLimits(); !status.ok()) return status;
  if (absl::Status status = files->ReadTable(); !status.ok()) return status;
  return files;
}

absl::Status VolumeFiles::Error(int error, const char* what) const {
  const std::string text = absl::StrCat(what, " of ", path_, ": ", std::strerror(error));
  switch (error) {
    case ENOENT:
    case ENXIO:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case EINVAL:
      return absl::FailedPreconditionError(text);
    case ENOSPC:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(text);
    default:
      return absl::UnavailableError(text);
  }
}

absl::Status VolumeFiles::CheckWritable() const {
  if (!read_only_) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(path_, " is open for reading only"));
}

absl::Status VolumeFiles::TakeLock(TimeNs wait_ns) {
  lock_ = UniqueFd(open(path_.c_str(), O_RDONLY | O_CLOEXEC));
  if (!lock_.valid()) return Error(errno, "open");
  const SteadyClock clock;
  const TimeNs start = clock.Now();
  while (flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    const int error = errno;
    if ((error == EWOULDBLOCK || error == EINTR) && clock.Now() - start < wait_ns) {
      nanosleep(&kLockPause, nullptr);
      continue;
    }
    lock_.Reset();  // not ours
    return error == EWOULDBLOCK ? InUseError(path_) : Error(error, "lock");
  }
  return absl::OkStatus();
}

absl::Status VolumeFiles::OpenDevice(TimeNs wait_ns) {
  struct stat info {};
  if (fstat(lock_.get(), &info) != 0) return Error(errno, "stat");
  is_device_ = S_ISBLK(info.st_mode);
  const int flags =
      (read_only_ ? O_RDONLY : O_RDWR) | O_DIRECT | O_CLOEXEC | (is_device_ ? O_EXCL : 0);
  const SteadyClock clock;
  const TimeNs start = clock.Now();
  for (;;) {
    device_ = UniqueFd(open(path_.c_str(), flags));
    if (device_.valid()) return absl::OkStatus();
    if (errno != EBUSY) return Error(errno, "open");
    if (clock.Now() - start >= wait_ns) break;
    nanosleep(&kLockPause, nullptr);
  }
  return absl::FailedPreconditionError(
      absl::StrCat(path_, " is mounted, or claimed by something else of this machine"));
}

absl::Status VolumeFiles::ReadLimits() {
  uint64_t bytes = 0;
  if (is_device_) {
    int sector = 0;
    if (ioctl(device_.get(), BLKGETSIZE64, &bytes) != 0) return Error(errno, "size");
    if (ioctl(device_.get(), BLKSSZGET, &sector) != 0) return Error(errno, "sector size");
    offset_align_ = static_cast<uint32_t>(std::max(sector, 512));
  } else {
    struct stat info {};
    if (fstat(device_.get(), &info) != 0) return Error(errno, "stat");
    bytes = static_cast<uint64_t>(info.st_size);
  }
  struct statx ask {};
  if (statx(device_.get(), "", AT_EMPTY_PATH, STATX_DIOALIGN, &ask) == 0 &&
      (ask.stx_mask & STATX_DIOALIGN) != 0 && ask.stx_dio_offset_align != 0) {
    memory_align_ = std::max(ask.stx_dio_mem_align, 1u);
    offset_align_ = ask.stx_dio_offset_align;
  }
  table_.device_units = bytes / kVolumeUnit;
  if (table_.device_units > kVolumeFirstUnit && offset_align_ <= kVolumePage) {
    return absl::OkStatus();
  }
  return absl::FailedPreconditionError(absl::StrCat(path_, " has ", bytes, " bytes in sectors of ",
                                                    offset_align_,
                                                    ": too small, or sectors above 4096"));
}

// The state of one copy; table_ becomes what it says where that is newer. Sets `error` instead
// where it cannot be read.
VolumeTableState VolumeFiles::ReadCopy(int copy, std::span<std::byte> memory, int* error) {
  const auto read = [&] {
    return pread(device_.get(), memory.data(), memory.size(),
                 static_cast<off_t>(static_cast<uint64_t>(copy) * kVolumeCopyBytes));
  };
  int failed = Transfer(read, memory.size());
  if (failed != 0) failed = Transfer(read, memory.size());
  if (failed != 0) {
    *error = failed;
    return VolumeTableState::kDamaged;
  }
  VolumeTable found;
  const VolumeTableState state = ParseVolumeTable(memory, &found);
  if (state == VolumeTableState::kGood && found.sequence > table_.sequence) {
    table_ = std::move(found);
    live_copy_ = copy;
  }
  return state;
}

absl::Status VolumeFiles::ReadTable() {
  const uint64_t device_units = table_.device_units;
  const PageMemory memory(kVolumeCopyBytes);
  if (memory.span().empty()) return Error(ENOMEM, "read");
  int error = 0;
  const VolumeTableState first = ReadCopy(0, memory.span(), &error);
  const VolumeTableState second = ReadCopy(1, memory.span(), &error);
  const auto any = [&](VolumeTableState state) { return first == state || second == state; };
  if (any(VolumeTableState::kOtherVersion)) {
    return absl::FailedPreconditionError(
        absl::StrCat(path_, " has a volume table of another format"));
  }
  // Also where the other copy is good: whoever wrote over one of them has the device now.
  if (any(VolumeTableState::kForeign)) return WipeFirst("carries something else");
  if (any(VolumeTableState::kGood)) {
    if (table_.device_units > device_units) {
      return absl::FailedPreconditionError(
          absl::StrCat(path_, " has become smaller than its volume table says"));
    }
    table_.device_units = device_units;  // may have grown
    return absl::OkStatus();
  }
  if (error != 0) return Error(error, "reading the volume table");
  // Nothing yet, or the very first table, cut short by a crash.
  if (second == VolumeTableState::kBlank) return absl::OkStatus();
  return WipeFirst("has no whole copy of its volume table");
}

absl::Status VolumeFiles::WipeFirst(const char* why) const {
  return absl::FailedPreconditionError(absl::StrCat(
      path_, " ", why, "; to give all of it to the cache, wipe it first with: dd if=/dev/zero of=",
      path_, " bs=1M count=2 oflag=direct"));
}

// Into the copy that is not live. Where this fails the live one counts on, also after a restart
// unless the other one came through all the same: then what was asked for has happened.
absl::Status VolumeFiles::WriteTable(VolumeTable next) {
  ++next.sequence;
  const PageMemory memory(VolumeTableBytes(next.files.size()));
  const std::span<std::byte> bytes = memory.span();
  if (bytes.empty()) return Error(ENOMEM, "write");
  EncodeVolumeTable(next, bytes);
  const int copy = 1 - live_copy_;
  const int failed = Transfer(
      [&] {
        return pwrite(device_.get(), bytes.data(), bytes.size(),
                      static_cast<off_t>(static_cast<uint64_t>(copy) * kVolumeCopyBytes));
      },
      bytes.size());
  if (failed != 0) return Error(failed, "writing the volume table");
  if (fdatasync(device_.get()) != 0) return Error(errno, "sync");
  table_ = std::move(next);
  live_copy_ = copy;
  return absl::OkStatus();
}

// By the device itself where it can.
absl::Status VolumeFiles::Zero(uint64_t offset, uint64_t bytes) const {
  if (is_device_ && fallocate(device_.get(), FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
                              static_cast<off_t>(offset), static_cast<off_t>(bytes)) == 0) {
    return absl::OkStatus();
  }
  const PageMemory zeros(kVolumeUnit);
  if (zeros.span().empty()) return Error(ENOMEM, "write");
  for (uint64_t done = 0; done < bytes; done += kVolumeUnit) {
    const auto length = static_cast<size_t>(std::min(kVolumeUnit, bytes - done));
    const auto write = [&] {
      return pwrite(device_.get(), zeros.span().data(), length, static_cast<off_t>(offset + done));
    };
    if (const int failed = Transfer(write, length); failed != 0) return Error(failed, "zeroing");
  }
  return absl::OkStatus();
}

absl::StatusOr<VolumeFiles::Opened> VolumeFiles::OpenRun(const VolumeFile& file) {
  Opened opened;
  opened.fd = UniqueFd(fcntl(device_.get(), F_DUPFD_CLOEXEC, 0));
  if (!opened.fd.valid()) return Error(errno, "open");
  opened.bytes = file.bytes;
  opened.base = file.first_unit * kVolumeUnit;
  opened.hold = std::make_shared<const int>(0);
  held_.push_back({{file.first_unit, file.units}, opened.hold});
  return opened;
}

absl::StatusOr<VolumeFiles::Opened> VolumeFiles::OpenFile(const std::string& name) {
  if (!VolumeNameIsValid(name)) {
    return absl::InvalidArgumentError(absl::StrCat("no name for a file of ", path_, ": ", name));
  }
  const VolumeFile* file = table_.Find(name);
  if (file == nullptr) return absl::NotFoundError(absl::StrCat("no file ", name, " on ", path_));
  return OpenRun(*file);
}

std::vector<std::pair<uint64_t, uint64_t>> VolumeFiles::HeldRuns() {
  std::erase_if(held_, [](const Held& held) { return held.hold.expired(); });
  std::vector<std::pair<uint64_t, uint64_t>> runs;
  for (const Held& held : held_) runs.push_back(held.run);
  return runs;
}

absl::StatusOr<VolumeFiles::Opened> VolumeFiles::CreateFile(const std::string& name,
                                                            uint64_t bytes) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  if (!VolumeNameIsValid(name)) {
    return absl::InvalidArgumentError(absl::StrCat("no name for a file of ", path_, ": ", name));
  }
  if (bytes == 0 || bytes % offset_align_ != 0 || bytes > INT64_MAX) {
    return absl::InvalidArgumentError(
        absl::StrCat("a file of ", bytes, " bytes on ", path_, ", aligned to ", offset_align_));
  }
  if (table_.Find(name) != nullptr) {
    return absl::AlreadyExistsError(absl::StrCat(name, " on ", path_));
  }
  const uint64_t units = RoundUp(bytes, kVolumeUnit) / kVolumeUnit;
  const uint64_t first = FaultFires("disk.enospc") ? 0 : FindVolumeRun(table_, HeldRuns(), units);
  if (first == 0 || table_.files.size() == kMaxVolumeFiles) {
    return absl::ResourceExhaustedError(
        absl::StrCat("no ", bytes, " bytes in one piece are free on ", path_));
  }
  VolumeTable next = table_;
  next.files.push_back({name, first, units, bytes});
  if (next.sequence == 0) {
    std::random_device random;
    for (uint8_t& byte : next.id) byte = static_cast<uint8_t>(random());
  }
  if (absl::Status status = Zero(first * kVolumeUnit, bytes); !status.ok()) return status;
  if (fdatasync(device_.get()) != 0) return Error(errno, "sync");
  if (absl::Status status = WriteTable(std::move(next)); !status.ok()) return status;
  return OpenRun(table_.files.back());
}

absl::Status VolumeFiles::RemoveFile(const std::string& name) {
  if (absl::Status status = CheckWritable(); !status.ok()) return status;
  if (!VolumeNameIsValid(name)) {
    return absl::InvalidArgumentError(absl::StrCat("no name for a file of ", path_, ": ", name));
  }
  VolumeTable next = table_;
  const auto gone =
      std::erase_if(next.files, [&](const VolumeFile& file) { return file.name == name; });
  if (gone == 0) return absl::NotFoundError(absl::StrCat("no file ", name, " on ", path_));
  return WriteTable(std::move(next));
}

absl::StatusOr<std::vector<DiskFile>> VolumeFiles::List() const {
  std::vector<DiskFile> files;
  for (const VolumeFile& file : table_.files) files.push_back({file.name, file.bytes});
  std::sort(files.begin(), files.end(),
            [](const DiskFile& a, const DiskFile& b) { return a.name < b.name; });
  return files;
}

absl::StatusOr<uint64_t> VolumeFiles::FreeBytes() const {
  uint64_t free = table_.device_units - kVolumeFirstUnit;
  for (const VolumeFile& file : table_.files) free -= file.units;
  return free * kVolumeUnit;
}

}  // namespace flexkv
