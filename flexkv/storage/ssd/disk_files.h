// The files of one place, a directory or a raw device: what both backends of Disk need of it. Knows
// nothing of transfers. Thread: one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/ssd/disk.h"

namespace flexkv {

class DiskFiles {
 public:
  struct Opened {
    UniqueFd fd;
    uint64_t bytes = 0;
    uint64_t base = 0;  // where the file begins within `fd`
    // Kept while the file is open: its space is not given away before. Empty where the file system
    // sees to that, and to the file's end.
    std::shared_ptr<const void> hold;
  };

  virtual ~DiskFiles() = default;  // REQUIRES: no transfer runs any more

  // As Disk has them; names are single path components. InvalidArgument otherwise.
  virtual absl::StatusOr<Opened> OpenFile(const std::string& name) = 0;
  virtual absl::StatusOr<Opened> CreateFile(const std::string& name, uint64_t bytes) = 0;
  virtual absl::Status RemoveFile(const std::string& name) = 0;
  virtual absl::StatusOr<std::vector<DiskFile>> List() const = 0;
  virtual absl::StatusOr<uint64_t> FreeBytes() const = 0;

  virtual uint32_t memory_align() const = 0;
  virtual uint32_t offset_align() const = 0;
  // The place stays locked as long as anything holds this open file. A ring registers it: the
  // kernel then keeps the lock until the last transfer of a killed process has ended, and its
  // successor cannot meet writes that are still on their way.
  virtual int lock_fd() const = 0;
};

// Checks what both backends take and opens the place: a directory, or a block device where the
// path names one.
absl::StatusOr<std::unique_ptr<DiskFiles>> OpenDiskFiles(const DirectoryDiskOptions& options);

// What tells IsInUse.
absl::Status InUseError(const std::string& path);

}  // namespace flexkv
