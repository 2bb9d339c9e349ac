// One device as the SSD tier sees it: a directory of preallocated files (or a raw device), read and
// written asynchronously at aligned offsets. Three implementations run the same tests: io_uring
// (MakeUringDisk), a pool of threads with pread/pwrite (MakeThreadDisk), and a simulated disk that
// loses, tears and reorders what was not synced (SimDisk, tests/support).
//
// A buffer given to Submit belongs to the disk until its result was returned by Poll, whatever
// happens meanwhile. Thread: one thread per Disk for everything.
#pragma once

#include <sys/uio.h>

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"

namespace flexkv {

using FileId = uint32_t;  // an open file of one Disk; not reused while results for it are awaited

struct DiskLimits {
  // Of buffer addresses; statx STATX_DIOALIGN where the kernel has it.
  uint32_t memory_align = 4096;
  uint32_t offset_align = 4096;  // of offsets and lengths
  uint32_t queue_depth = 64;     // requests in flight that Submit accepts
};

enum class IoKind : uint8_t { kRead, kWrite, kSync };

struct IoRequest {
  uint64_t tag = 0;  // the caller's; comes back with the result
  IoKind kind = IoKind::kRead;
  FileId file = 0;
  uint64_t offset = 0;  // bytes; aligned
  std::span<const iovec> slices =
      {};  // copied by Submit; addresses and lengths aligned; empty for kSync
};

struct IoResult {
  uint64_t tag = 0;
  // Bytes transferred, or -errno. Fewer bytes than asked for is a short transfer: the caller
  // decides (the SSD tier treats it as a failure). 0 for a sync that worked.
  int64_t result = 0;
};

struct DiskFile {
  std::string name;
  uint64_t bytes = 0;
};

struct DiskStats {
  uint64_t reads = 0, writes = 0, syncs = 0, read_bytes = 0, written_bytes = 0, errors = 0;
  // Transfers whose buffers were not registered with the kernel (more CPU per transfer).
  uint64_t unregistered = 0;
  uint64_t stray_completions = 0;  // of nothing in flight (stale, doubled); never acted upon
};

class Disk {
 public:
  virtual ~Disk() = default;  // REQUIRES: nothing in flight
  virtual const DiskLimits& limits() const = 0;

  // --- files: rare, synchronous -----------------------------------------------------------------
  // Opens an existing regular file of the directory (O_NOFOLLOW, O_DIRECT where it can be had).
  // NotFound; PermissionDenied: not our uid's, or others may write it; FailedPrecondition: not a
  // regular file.
  virtual absl::StatusOr<FileId> Open(const std::string& name) = 0;
  // Makes a file of exactly `bytes`, all of them allocated for real, and makes its name durable
  // (directory sync). AlreadyExists. ResourceExhausted: no space; nothing is left behind then.
  virtual absl::StatusOr<FileId> Create(const std::string& name, uint64_t bytes) = 0;
  virtual void Close(FileId file) = 0;  // REQUIRES: nothing in flight for it
  // Removes the name durably. NotFound.
  virtual absl::Status Remove(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<DiskFile>> List() = 0;
  virtual absl::StatusOr<uint64_t> FreeBytes() = 0;

  // --- transfers --------------------------------------------------------------------------------
  // False: the queue is full; Poll first. Alignment is the caller's duty (checked: -EINVAL result),
  // and so is the end of the file: a read beyond it is short, a write beyond it -EINVAL (files do
  // not grow). A file that is not open: -EBADF.
  virtual bool Submit(const IoRequest& request) = 0;
  // Appends finished transfers, each exactly once. Waits at most `timeout_ns` for the first (0 =
  // never waits); returns early when Wake was called.
  virtual void Poll(TimeNs timeout_ns, std::vector<IoResult>* results) = 0;
  virtual uint32_t in_flight() const = 0;
  // Ends a Poll that waits, or the next one. The one method for other threads.
  virtual void Wake() = 0;

  // Memory that transfers will use often (arena segments): registered with the kernel where that is
  // allowed, at most 1 GiB a piece. False: not registered (memlock limit, kernel); transfers work
  // all the same and are counted as unregistered. REQUIRES for Unregister: no transfer uses it.
  virtual bool RegisterMemory(std::span<std::byte> memory) = 0;
  virtual void UnregisterMemory(const std::byte* memory) = 0;

  virtual DiskStats stats() const = 0;  // this thread only
};

struct DirectoryDiskOptions {
  // A directory: must exist, be ours and not writable by others. Or a block device, all of which
  // the disk takes for itself (volume_files.h).
  std::string directory;
  bool allow_regular_file = false;  // for tests: one may stand for a block device
  uint32_t queue_depth = 64;        // 1..4096
  uint32_t threads = 8;             // thread backend only, 1..64
  // True: a file system without O_DIRECT is refused (FailedPrecondition). False: buffered I/O
  // there.
  bool direct = true;
  // How long to wait for a directory in use: a killed predecessor's transfers end some time after
  // the process.
  TimeNs lock_wait_ns = 2 * kNsPerSecond;
  // Opens files for reading only, makes and removes none. Locks all the same, except where the file
  // system is read-only itself: nobody else can be writing there.
  bool read_only = false;
};

// True: what made the place unusable is that another process has it.
bool IsInUse(const absl::Status& status);

// Both lock the directory (its file `lock`, never listed) or device for as long as the disk or any
// of its transfers lives, those of a killed process included. NotFound; PermissionDenied: not ours,
// or others may write it; FailedPrecondition: in use, or no O_DIRECT, or a device that is mounted
// or carries something else; InvalidArgument: options out of range. Unavailable: io_uring is
// refused here (container profile, sysctl, old kernel); use the thread backend.
absl::StatusOr<std::unique_ptr<Disk>> MakeUringDisk(const DirectoryDiskOptions& options);
absl::StatusOr<std::unique_ptr<Disk>> MakeThreadDisk(const DirectoryDiskOptions& options);

}  // namespace flexkv
