// The files of one SSD directory: opened, made with all their space, removed and listed, so that a
// crash at any instant leaves whole files or none. Thread: one.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/ssd/disk_files.h"

namespace flexkv {

class DirectoryFiles final : public DiskFiles {
 public:
  // Takes the directory for this process: locks it (file `lock`), finds out what alignment direct
  // I/O needs in it. NotFound: no such directory; PermissionDenied: not ours, others may write, or
  // it cannot be written; FailedPrecondition: not a directory, in use by another process, or no
  // direct I/O though the options demand it.
  static absl::StatusOr<std::unique_ptr<DiskFiles>> Open(const DirectoryDiskOptions& options);

  ~DirectoryFiles() override;

  absl::StatusOr<Opened> OpenFile(const std::string& name) override;
  absl::StatusOr<Opened> CreateFile(const std::string& name, uint64_t bytes) override;
  absl::Status RemoveFile(const std::string& name) override;
  absl::StatusOr<std::vector<DiskFile>> List() const override;
  absl::StatusOr<uint64_t> FreeBytes() const override;

  uint32_t memory_align() const override { return memory_align_; }
  uint32_t offset_align() const override { return offset_align_; }
  int lock_fd() const override { return lock_.get(); }

 private:
  explicit DirectoryFiles(std::string path) : path_(std::move(path)) {}
  absl::Status OpenDirectory();
  absl::Status TakeLock(TimeNs wait_ns);
  absl::Status ProbeAlignment(bool direct);
  absl::StatusOr<UniqueFd> OpenAnyFile(int flags) const;
  absl::Status CheckWritable() const;
  absl::StatusOr<UniqueFd> MakeUnnamed(int flags) const;
  absl::Status Allocate(int fd, const std::string& name, uint64_t bytes) const;
  absl::Status WriteZeros(int fd, uint64_t bytes) const;
  absl::Status SyncDirectory() const;
  absl::Status CheckName(const std::string& name) const;
  absl::Status Error(int error, const char* what, const std::string& name) const;

  std::string path_;
  UniqueFd directory_;
  UniqueFd lock_;
  int direct_flag_ = 0;       // O_DIRECT, or 0 where the file system has none
  bool has_unnamed_ = false;  // O_TMPFILE and a way to give it a name
  bool read_only_ = false;
  uint32_t memory_align_ = 4096;
  uint32_t offset_align_ = 4096;
};

}  // namespace flexkv
