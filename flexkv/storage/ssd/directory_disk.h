// What both backends share: open files, checks of requests, slots of transfers in flight, fault
// points, counters. A backend only starts a transfer and says when it ended.
//
// Invariants: in_flight() counts from Submit until the result was appended by Poll, and bounds
// every list here; a completion is acted upon only when its ticket (generation and slot) is that of
// a transfer in the backend's hands, so one that comes twice or late changes nothing.
#pragma once

#include <sys/uio.h>

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/ssd/disk.h"
#include "flexkv/storage/ssd/disk_files.h"

namespace flexkv {

class DirectoryDisk : public Disk {
 public:
  const DiskLimits& limits() const final { return limits_; }
  absl::StatusOr<FileId> Open(const std::string& name) final;
  absl::StatusOr<FileId> Create(const std::string& name, uint64_t bytes) final;
  void Close(FileId file) final;
  absl::Status Remove(const std::string& name) final { return files_->RemoveFile(name); }
  absl::StatusOr<std::vector<DiskFile>> List() final { return files_->List(); }
  absl::StatusOr<uint64_t> FreeBytes() final { return files_->FreeBytes(); }
  bool Submit(const IoRequest& request) final;
  void Poll(TimeNs timeout_ns, std::vector<IoResult>* results) final;
  uint32_t in_flight() const final { return in_flight_; }
  DiskStats stats() const final { return stats_; }

 protected:
  // One in flight; the slices stay where they are until it ended.
  struct Transfer {
    uint64_t tag = 0;
    uint64_t offset = 0;
    std::vector<iovec> slices;
    IoKind kind = IoKind::kRead;
    bool pending = false;  // in the backend's hands
    bool slow = false;     // by a fault point: its result is held back
    bool flip = false;     // by a fault point: a byte that was read is changed
    int fd = -1;
    uint32_t file_index = 0;
    uint32_t generation = 0;
  };
  using Ticket = uint64_t;  // generation in the upper half, slot in the lower

  DirectoryDisk(std::unique_ptr<DiskFiles> files, uint32_t queue_depth);

  const DiskFiles& files() const { return *files_; }
  const Transfer& transfer(uint32_t slot) const { return transfers_[slot]; }
  static uint32_t SlotOf(Ticket ticket) { return static_cast<uint32_t>(ticket); }
  DiskStats& mutable_stats() { return stats_; }

  // --- for the backend to implement ---
  virtual void Start(Ticket ticket) = 0;  // never blocks
  // A completion with this ticket and no transfer behind it; for the fault point that proves that
  // such are told apart.
  virtual void StartStray(Ticket ticket) = 0;
  // Gives the backend what was started and calls Complete for what ended; waits at most
  // `timeout_ns` for the first. True: woken by Wake.
  virtual bool Reap(TimeNs timeout_ns) = 0;
  virtual void FileOpened(uint32_t /*file_index*/, int /*fd*/) {}
  virtual void FileClosed(uint32_t /*file_index*/) {}

  // False: a stray. Outside of Poll (in a destructor) the result is dropped.
  bool Complete(Ticket ticket, int64_t result);

 private:
  struct OpenFile {
    UniqueFd fd;
    uint64_t bytes = 0;
    uint64_t base = 0;
    std::shared_ptr<const void> hold;  // see DiskFiles::Opened
    uint16_t generation = 0;
  };
  struct Held {
    TimeNs due = 0;
    IoResult result;
  };

  absl::StatusOr<FileId> Add(absl::StatusOr<DiskFiles::Opened> opened);
  OpenFile* Find(FileId file);
  int CheckRequest(const IoRequest& request);
  std::optional<int64_t> InjectFault(Transfer& transfer) const;
  static void Cut(Transfer& transfer, uint64_t bytes);
  void Shorten(Transfer& transfer) const;
  void CutAtEnd(Transfer& transfer, const OpenFile& file) const;
  TimeNs HeldNs() const;
  void Deliver(const IoResult& result);
  void DeliverHeld();
  void Count(IoKind kind, int64_t result);

  std::unique_ptr<DiskFiles> files_;
  DiskLimits limits_;
  std::vector<OpenFile> open_files_;
  std::vector<uint32_t> free_files_;
  std::vector<Transfer> transfers_;
  std::vector<uint32_t> free_slots_;
  std::vector<IoResult> immediate_;  // refused or failed by a fault point, before the backend
  std::vector<Held> held_;
  std::vector<IoResult>* results_ = nullptr;  // of the Poll that runs
  uint32_t in_flight_ = 0;
  DiskStats stats_;
};

}  // namespace flexkv
