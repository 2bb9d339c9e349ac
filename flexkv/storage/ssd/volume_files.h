// Files on a raw block device, behind the table of volume_table.h. Made whole or not at all: a
// file's space is zeroed and synced before a table that names it is written.
//
// A file is one run of units: there is no splitting of transfers, and none of its reads and writes
// goes to two places. The price is fragmentation where segments of very different sizes come and
// go; Create then says ResourceExhausted as for a full device.
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flexkv/storage/ssd/disk_files.h"
#include "flexkv/storage/ssd/volume_table.h"

namespace flexkv {

class VolumeFiles final : public DiskFiles {
 public:
  // Takes the device for this process. Writes nothing: a blank device gets its table with its first
  // file. FailedPrecondition: mounted or in use (IsInUse), or it carries something else;
  // PermissionDenied; Unavailable: neither copy of the table can be read.
  static absl::StatusOr<std::unique_ptr<DiskFiles>> Open(const DirectoryDiskOptions& options);
  ~VolumeFiles() override;

  absl::StatusOr<Opened> OpenFile(const std::string& name) override;
  absl::StatusOr<Opened> CreateFile(const std::string& name, uint64_t bytes) override;
  absl::Status RemoveFile(const std::string& name) override;
  absl::StatusOr<std::vector<DiskFile>> List() const override;
  absl::StatusOr<uint64_t> FreeBytes() const override;

  uint32_t memory_align() const override { return memory_align_; }
  uint32_t offset_align() const override { return offset_align_; }
  int lock_fd() const override { return lock_.get(); }

 private:
  // Space of an open file; it may be removed meanwhile.
  struct Held {
    std::pair<uint64_t, uint64_t> run;
    std::weak_ptr<const void> hold;
  };

  explicit VolumeFiles(const DirectoryDiskOptions& options);
  absl::Status TakeLock(TimeNs wait_ns);
  absl::Status OpenDevice(TimeNs wait_ns);
  absl::Status ReadLimits();
  absl::Status ReadTable();
  VolumeTableState ReadCopy(int copy, std::span<std::byte> memory, int* error);
  absl::Status WipeFirst(const char* why) const;
  absl::Status WriteTable(VolumeTable next);
  absl::Status Zero(uint64_t offset, uint64_t bytes) const;
  absl::StatusOr<Opened> OpenRun(const VolumeFile& file);
  std::vector<std::pair<uint64_t, uint64_t>> HeldRuns();
  absl::Status CheckWritable() const;
  absl::Status Error(int error, const char* what) const;

  const std::string path_;
  const bool read_only_;
  bool is_device_ = false;
  UniqueFd lock_;    // flock, before the device itself is claimed
  UniqueFd device_;  // O_DIRECT, on a device also O_EXCL
  uint32_t memory_align_ = 4096;
  uint32_t offset_align_ = 4096;
  VolumeTable table_;
  int live_copy_ = 1;  // that table_ was read from or written to; the other one is written next
  std::vector<Held> held_;
};

}  // namespace flexkv
