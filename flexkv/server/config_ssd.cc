// What can be known of the directories before a device is opened. Opening has the last word (and
// the lock): this here says early, and in words of the configuration, what would not work.
#include "flexkv/server/config_ssd.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <sys/file.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <limits>
#include <map>
#include <memory>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/base/units.h"
#include "flexkv/storage/ssd/ssd_format.h"
#include "flexkv/storage/ssd/ssd_segment.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv {
namespace {

constexpr char kLockFile[] = "lock";
constexpr uint64_t kStatBlock = 512;      // unit of st_blocks
constexpr uint64_t kShareStep = 1 << 20;  // shares of a percentage are whole MiB

struct Directory {
  std::string path;
  bool exists = false;
  dev_t device = 0;  // of it, or of the parent that it will be made in
  ino_t inode = 0;
  uint64_t held_bytes = 0;  // by the tier's own files
  uint64_t free_bytes = 0;  // of its file system
};

struct DirCloser {
  void operator()(DIR* dir) const { closedir(dir); }
};

std::string Key(const std::string& words) { return absl::StrCat("ssd_cache_dir: ", words); }

absl::Status Refuse(const std::string& words) { return absl::InvalidArgumentError(Key(words)); }

// /dev/disk/by-id and the like are symlinks.
bool IsBlockDevice(const std::string& path, struct stat* info) {
  return stat(path.c_str(), info) == 0 && S_ISBLK(info->st_mode);
}

std::string ParentOf(const std::string& path) {
  return path.substr(0, std::max<size_t>(1, path.rfind('/')));
}

bool IsOurs(const std::string& name) {
  uint32_t segment = 0;
  bool is_log = false;
  for (const char* known : ssd::kSuperblockNames) {
    if (name == known) return true;
  }
  // ".probe" is made for a moment where files must have names.
  return name == kLockFile || name == ".probe" || ssd::ParseSegmentName(name, &segment, &is_log);
}

// A name that somebody else gave, in a message.
std::string ShownName(const std::string& name) {
  std::string shown = name.substr(0, 60);
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return shown;
}

absl::Status CheckSuperblock(int directory_fd, const Directory& directory, const char* name) {
  const UniqueFd fd(openat(directory_fd, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid()) return absl::OkStatus();  // missing, or what opening the device will complain of
  alignas(8) std::array<std::byte, ssd::kPageBytes> page{};
  if (pread(fd.get(), page.data(), page.size(), 0) != static_cast<ssize_t>(page.size())) {
    return absl::OkStatus();  // damage is the store's to mend
  }
  ssd::Superblock superblock;
  uint32_t format = 0;
  if (ssd::ParseSuperblock(page.data(), &superblock, &format) ==
      ssd::SuperblockState::kOtherVersion) {
    return Refuse(absl::StrCat(directory.path, " has format ", format, ", this program reads ",
                               ssd::kFormat, ": give it another directory"));
  }
  return absl::OkStatus();
}

// Files that are not ours, and the space that ours take.
absl::Status ReadEntries(int directory_fd, Directory* directory) {
  UniqueFd copy(dup(directory_fd));
  const std::unique_ptr<DIR, DirCloser> dir(fdopendir(copy.get()));
  if (dir == nullptr)
    return Refuse(absl::StrCat(directory->path, " cannot be listed: ", std::strerror(errno)));
  copy.Release();  // closedir closes it
  while (const dirent* entry = readdir(dir.get())) {
    const std::string name = entry->d_name;
    if (name == "." || name == ".." || name == "lost+found") continue;
    if (!IsOurs(name)) {
      return Refuse(absl::StrCat(directory->path, " holds files that are not the SSD tier's (",
                                 ShownName(name), "): give it a directory of its own"));
    }
    struct stat info {};
    if (fstatat(directory_fd, entry->d_name, &info, AT_SYMLINK_NOFOLLOW) != 0) continue;
    directory->held_bytes += static_cast<uint64_t>(info.st_blocks) * kStatBlock;
  }
  return absl::OkStatus();
}

absl::Status CheckOwner(const struct stat& info, const std::string& path) {
  if (info.st_uid != geteuid()) {
    return Refuse(absl::StrCat(path, " belongs to uid ", info.st_uid, ", not to ", geteuid()));
  }
  if ((info.st_mode & (S_IWGRP | S_IWOTH)) != 0) {
    return Refuse(absl::StrCat(path, " may be written by other users; chmod it to 0700"));
  }
  if (access(path.c_str(), R_OK | W_OK | X_OK) != 0) {
    return Refuse(absl::StrCat(path, " is not writable: ", std::strerror(errno)));
  }
  return absl::OkStatus();
}

// A device is all the tier's: what it carries now is for opening it to judge.
absl::Status LookAtDevice(const struct stat& info, Directory* device) {
  device->exists = true;
  device->device = info.st_rdev;
  const UniqueFd fd(open(device->path.c_str(), O_RDWR | O_NONBLOCK | O_CLOEXEC));
  if (!fd.valid() || ioctl(fd.get(), BLKGETSIZE64, &device->free_bytes) != 0)
    return Refuse(absl::StrCat(device->path, " is not usable: ", std::strerror(errno)));
  return absl::OkStatus();
}

absl::Status LookAt(Directory* directory) {
  const UniqueFd fd(open(directory->path.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC));
  struct stat info {};
  if (!fd.valid() || fstat(fd.get(), &info) != 0) {
    const bool other = errno == ELOOP || errno == ENOTDIR;
    return Refuse(other ? absl::StrCat(directory->path, " is not a directory (a symlink or a file)")
                        : absl::StrCat(directory->path, ": ", std::strerror(errno)));
  }
  directory->exists = true;
  directory->device = info.st_dev;
  directory->inode = info.st_ino;
  if (absl::Status status = CheckOwner(info, directory->path); !status.ok()) return status;
  if (absl::Status status = ReadEntries(fd.get(), directory); !status.ok()) return status;
  for (const char* name : ssd::kSuperblockNames) {
    if (absl::Status status = CheckSuperblock(fd.get(), *directory, name); !status.ok())
      return status;
  }
  return absl::OkStatus();
}

// A missing directory: can it be made; and on which file system?
absl::Status LookAtParent(Directory* directory) {
  const std::string parent = ParentOf(directory->path);
  struct stat info {};
  if (stat(parent.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(Key(absl::StrCat(directory->path, " cannot be made: the directory ",
                                                parent, " does not exist")));
  }
  directory->device = info.st_dev;
  if (access(parent.c_str(), W_OK | X_OK) == 0) return absl::OkStatus();
  return Refuse(absl::StrCat(directory->path, " cannot be made: ", std::strerror(errno)));
}

absl::Status Make(const Directory& directory) {
  if (directory.exists || mkdir(directory.path.c_str(), 0700) == 0) return absl::OkStatus();
  return Refuse(absl::StrCat(directory.path, " cannot be made: ", std::strerror(errno)));
}

absl::Status Examine(SsdResolve resolve, Directory* directory) {
  struct stat info {};
  const bool missing = lstat(directory->path.c_str(), &info) != 0 && errno == ENOENT;
  const bool device = IsBlockDevice(directory->path, &info);
  const absl::Status status = device    ? LookAtDevice(info, directory)
                              : missing ? LookAtParent(directory)
                                        : LookAt(directory);
  if (!status.ok()) return status;
  if (resolve == SsdResolve::kCheck && SsdDirectoryInUse(directory->path)) {
    return absl::AlreadyExistsError(
        Key(absl::StrCat(directory->path, " is in use by another process (another flexkvd?)")));
  }
  if (device) return absl::OkStatus();
  struct statvfs space {};
  const std::string place = directory->exists ? directory->path : ParentOf(directory->path);
  if (statvfs(place.c_str(), &space) != 0)
    return Refuse(absl::StrCat(place, ": ", std::strerror(errno)));
  directory->free_bytes = static_cast<uint64_t>(space.f_bavail) * space.f_frsize;
  return absl::OkStatus();
}

struct FileSystem {
  uint64_t free_bytes = 0;
  uint64_t wanted_bytes = 0;  // beyond what is held
  uint64_t directories = 0;
};

// Directories on one file system share its space.
std::map<dev_t, FileSystem> FileSystems(const std::vector<Directory>& directories, uint64_t share) {
  std::map<dev_t, FileSystem> systems;
  for (const Directory& directory : directories) {
    FileSystem& system = systems[directory.device];
    system.free_bytes = directory.free_bytes;
    system.wanted_bytes += share - std::min(share, directory.held_bytes);
    ++system.directories;
  }
  return systems;
}

uint64_t ShareOfPercent(const std::vector<Directory>& directories, double percent) {
  const std::map<dev_t, FileSystem> systems = FileSystems(directories, 0);
  uint64_t smallest = std::numeric_limits<uint64_t>::max();
  for (const Directory& directory : directories) {
    const FileSystem& system = systems.at(directory.device);
    const uint64_t room = system.free_bytes / system.directories + directory.held_bytes;
    smallest = std::min(smallest, room);
  }
  return static_cast<uint64_t>(static_cast<double>(smallest) * percent / 100) / kShareStep *
         kShareStep;
}

absl::Status CheckSpace(const std::vector<Directory>& directories, uint64_t share) {
  const std::map<dev_t, FileSystem> systems = FileSystems(directories, share);
  for (const Directory& directory : directories) {
    const FileSystem& system = systems.at(directory.device);
    if (system.wanted_bytes <= system.free_bytes) continue;
    return absl::InvalidArgumentError(absl::StrCat(
        "ssd_cache_bytes: ", FormatBytes(share), " asked of ", directory.path, ", but its file ",
        "system has ", FormatBytes(system.free_bytes), " free",
        directory.held_bytes == 0
            ? std::string()
            : absl::StrCat(" beside the ", FormatBytes(directory.held_bytes), " held there"),
        system.directories == 1 ? std::string()
                                : absl::StrCat(" for ", system.directories, " directories")));
  }
  return absl::OkStatus();
}

absl::Status CheckDistinct(const std::vector<Directory>& directories) {
  for (size_t i = 0; i < directories.size(); ++i) {
    for (size_t k = 0; k < i; ++k) {
      const Directory &a = directories[k], &b = directories[i];
      if (a.exists && b.exists && a.device == b.device && a.inode == b.inode) {
        return Refuse(absl::StrCat(a.path, " and ", b.path, " are the same directory"));
      }
    }
  }
  return absl::OkStatus();
}

}  // namespace

bool SsdDirectoryInUse(const std::string& directory) {
  struct stat info {};
  const std::string path =
      IsBlockDevice(directory, &info) ? directory : absl::StrCat(directory, "/", kLockFile);
  const UniqueFd lock(open(path.c_str(), O_RDONLY | O_NONBLOCK | O_CLOEXEC));
  return lock.valid() && flock(lock.get(), LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK;
}

absl::Status ResolveSsd(SsdResolve resolve, SsdConfig* config) {
  if (!config->enabled) return absl::OkStatus();
  std::vector<Directory> directories;
  for (const std::string& path : config->directories) {
    Directory& directory = directories.emplace_back();
    directory.path = path;
    if (absl::Status status = Examine(resolve, &directory); !status.ok()) return status;
  }
  if (absl::Status status = CheckDistinct(directories); !status.ok()) return status;
  if (config->cache_bytes == 0) {
    const uint64_t share = ShareOfPercent(directories, config->cache_percent);
    if (share < kMinSsdShareBytes) {
      return absl::InvalidArgumentError(
          absl::StrCat("ssd_cache_bytes: ", config->cache_percent,
                       " % of the space there is comes to ", FormatBytes(share),
                       " a directory; at least ", FormatBytes(kMinSsdShareBytes), " are needed"));
    }
    config->cache_bytes = share * directories.size();
  }
  absl::Status status = CheckSpace(directories, SsdShareBytes(*config));
  for (const Directory& directory : directories) {
    if (status.ok() && resolve == SsdResolve::kMake) status = Make(directory);
  }
  return status;
}

}  // namespace flexkv
