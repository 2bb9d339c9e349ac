#include "flexkv/storage/ssd/directory_disk.h"

#include <errno.h>
#include <sys/stat.h>

#include <algorithm>
#include <utility>

#include "absl/strings/cord.h"
#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/storage/ssd/directory_files.h"
#include "flexkv/storage/ssd/volume_files.h"

namespace flexkv {
namespace {

constexpr char kInUsePayload[] = "flexkv.disk/in-use";
constexpr uint32_t kMaxFiles = 1 << 16;
constexpr uint64_t kMaxTransferBytes = 0x7ffff000;  // the kernel's own bound of one transfer
constexpr size_t kMaxSlices = 1024;                 // IOV_MAX
constexpr TimeNs kSlowNs = 50 * kNsPerMs;           // fault point disk.slow
constexpr TimeNs kMaxWaitNs = 3600 * kNsPerSecond;  // what a caller with no limit gets

TimeNs Now() { return SteadyClock().Now(); }

}  // namespace

bool IsInUse(const absl::Status& status) { return status.GetPayload(kInUsePayload).has_value(); }

absl::Status InUseError(const std::string& path) {
  absl::Status status =
      absl::FailedPreconditionError(absl::StrCat(path, " is in use by another process"));
  status.SetPayload(kInUsePayload, absl::Cord());
  return status;
}

absl::StatusOr<std::unique_ptr<DiskFiles>> OpenDiskFiles(const DirectoryDiskOptions& options) {
  if (options.queue_depth < 1 || options.queue_depth > 4096) {
    return absl::InvalidArgumentError(
        absl::StrCat("queue depth: ", options.queue_depth, ", not 1..4096"));
  }
  struct stat info {};
  const bool known = stat(options.directory.c_str(), &info) == 0;
  const bool device = known && S_ISBLK(info.st_mode);
  const bool instead = known && S_ISREG(info.st_mode) && options.allow_regular_file;
  return device || instead ? VolumeFiles::Open(options) : DirectoryFiles::Open(options);
}

DirectoryDisk::DirectoryDisk(std::unique_ptr<DiskFiles> files, uint32_t queue_depth)
    : files_(std::move(files)), transfers_(queue_depth) {
  limits_ = {.memory_align = files_->memory_align(),
             .offset_align = files_->offset_align(),
             .queue_depth = queue_depth};
  for (uint32_t slot = queue_depth; slot-- > 0;) free_slots_.push_back(slot);
}

absl::StatusOr<FileId> DirectoryDisk::Open(const std::string& name) {
  return Add(files_->OpenFile(name));
}

absl::StatusOr<FileId> DirectoryDisk::Create(const std::string& name, uint64_t bytes) {
  return Add(files_->CreateFile(name, bytes));
}

absl::StatusOr<FileId> DirectoryDisk::Add(absl::StatusOr<DiskFiles::Opened> opened) {
  if (!opened.ok()) return opened.status();
  uint32_t index = static_cast<uint32_t>(open_files_.size());
  if (!free_files_.empty()) {
    index = free_files_.back();
    free_files_.pop_back();
  } else if (index < kMaxFiles) {
    open_files_.emplace_back();
  } else {
    return absl::ResourceExhaustedError(absl::StrCat(kMaxFiles, " files are open"));
  }
  OpenFile& file = open_files_[index];
  file.fd = std::move(opened->fd);
  file.bytes = opened->bytes;
  file.base = opened->base;
  file.hold = std::move(opened->hold);
  ++file.generation;  // an id kept after Close finds nothing
  FileOpened(index, file.fd.get());
  return static_cast<FileId>(file.generation) << 16 | index;
}

DirectoryDisk::OpenFile* DirectoryDisk::Find(FileId id) {
  const uint32_t index = id & (kMaxFiles - 1);
  if (index >= open_files_.size()) return nullptr;
  OpenFile& file = open_files_[index];
  return file.fd.valid() && file.generation == id >> 16 ? &file : nullptr;
}

void DirectoryDisk::Close(FileId id) {
  OpenFile* file = Find(id);
  if (file == nullptr) return;
  const uint32_t index = id & (kMaxFiles - 1);
  FileClosed(index);
  file->fd.Reset();
  file->hold.reset();
  free_files_.push_back(index);
}

// 0, or the error that the request ends in.
int DirectoryDisk::CheckRequest(const IoRequest& request) {
  const OpenFile* file = Find(request.file);
  if (file == nullptr) return -EBADF;
  if (request.kind == IoKind::kSync) return 0;
  if (request.slices.empty() || request.slices.size() > kMaxSlices) return -EINVAL;
  if (request.offset % limits_.offset_align != 0 || request.offset > INT64_MAX) return -EINVAL;
  uint64_t bytes = 0;
  for (const iovec& slice : request.slices) {
    if (reinterpret_cast<uintptr_t>(slice.iov_base) % limits_.memory_align != 0) return -EINVAL;
    if (slice.iov_len == 0 || slice.iov_len % limits_.offset_align != 0) return -EINVAL;
    if (slice.iov_len > kMaxTransferBytes - bytes) return -EINVAL;
    bytes += slice.iov_len;
  }
  // A file has the size that it was made with: one that grew would be space that nobody counted.
  const bool grows = request.offset > file->bytes || bytes > file->bytes - request.offset;
  return request.kind == IoKind::kWrite && grows ? -EINVAL : 0;
}

bool DirectoryDisk::Submit(const IoRequest& request) {
  if (in_flight_ == limits_.queue_depth) return false;
  ++in_flight_;
  if (const int error = CheckRequest(request); error != 0) {
    immediate_.push_back({.tag = request.tag, .result = error});
    Count(request.kind, error);
    return true;
  }
  const uint32_t slot = free_slots_.back();
  Transfer& transfer = transfers_[slot];
  transfer.tag = request.tag;
  transfer.kind = request.kind;
  const OpenFile& file = *Find(request.file);
  transfer.offset = file.base + request.offset;
  transfer.slices.assign(request.slices.begin(), request.slices.end());
  transfer.fd = file.fd.get();
  transfer.file_index = request.file & (kMaxFiles - 1);
  if (transfer.kind == IoKind::kRead && file.hold != nullptr) CutAtEnd(transfer, file);
  if (const std::optional<int64_t> result = InjectFault(transfer); result.has_value()) {
    immediate_.push_back({.tag = request.tag, .result = *result});
    Count(request.kind, *result);
    return true;
  }
  free_slots_.pop_back();
  transfer.pending = true;
  ++transfer.generation;
  const Ticket ticket = static_cast<Ticket>(transfer.generation) << 32 | slot;
  if (FaultFires("disk.stray_completion")) StartStray(ticket - (Ticket{1} << 32));
  Start(ticket);
  return true;
}

// A result, when the transfer shall not reach the device at all.
std::optional<int64_t> DirectoryDisk::InjectFault(Transfer& transfer) const {
  transfer.slow = FaultFires("disk.slow");
  transfer.flip = false;
  switch (transfer.kind) {
    case IoKind::kSync:
      if (FaultFires("disk.sync_error")) return -EIO;
      return std::nullopt;
    case IoKind::kRead:
      if (FaultFires("disk.eio_read")) return -EIO;
      if (FaultFires("disk.short_read")) Shorten(transfer);
      transfer.flip = FaultFires("disk.flip_read");
      break;
    case IoKind::kWrite:
      if (FaultFires("disk.eio_write")) return -EIO;
      if (FaultFires("disk.short_write")) Shorten(transfer);
      break;
  }
  if (transfer.slices.empty()) return 0;
  return std::nullopt;
}

// To the first half: the rest of the memory, or of the file, stays as it was.
void DirectoryDisk::Shorten(Transfer& transfer) const {
  uint64_t bytes = 0;
  for (const iovec& slice : transfer.slices) bytes += slice.iov_len;
  Cut(transfer, bytes / 2 / limits_.offset_align * limits_.offset_align);
}

// Where no file system does it: what lies behind is another file.
void DirectoryDisk::CutAtEnd(Transfer& transfer, const OpenFile& file) const {
  const uint64_t offset = transfer.offset - file.base;
  Cut(transfer, offset < file.bytes ? file.bytes - offset : 0);
}

void DirectoryDisk::Cut(Transfer& transfer, uint64_t left) {
  for (iovec& slice : transfer.slices) {
    slice.iov_len = std::min<uint64_t>(slice.iov_len, left);
    left -= slice.iov_len;
  }
  std::erase_if(transfer.slices, [](const iovec& slice) { return slice.iov_len == 0; });
}

bool DirectoryDisk::Complete(Ticket ticket, int64_t result) {
  const uint32_t slot = SlotOf(ticket);
  if (slot >= transfers_.size() || !transfers_[slot].pending ||
      transfers_[slot].generation != ticket >> 32) {
    ++stats_.stray_completions;
    return false;
  }
  Transfer& transfer = transfers_[slot];
  transfer.pending = false;
  free_slots_.push_back(slot);
  Count(transfer.kind, result);
  if (transfer.flip && result > 0) {
    *static_cast<std::byte*>(transfer.slices[0].iov_base) ^= std::byte{1};
  }
  const IoResult finished = {.tag = transfer.tag, .result = result};
  if (transfer.slow) {
    held_.push_back({.due = Now() + kSlowNs, .result = finished});
  } else {
    Deliver(finished);
  }
  return true;
}

void DirectoryDisk::Count(IoKind kind, int64_t result) {
  const uint64_t bytes = result > 0 ? static_cast<uint64_t>(result) : 0;
  if (result < 0) ++stats_.errors;
  switch (kind) {
    case IoKind::kRead:
      ++stats_.reads;
      stats_.read_bytes += bytes;
      break;
    case IoKind::kWrite:
      ++stats_.writes;
      stats_.written_bytes += bytes;
      break;
    case IoKind::kSync:
      ++stats_.syncs;
      break;
  }
}

void DirectoryDisk::Deliver(const IoResult& result) {
  --in_flight_;
  if (results_ != nullptr) results_->push_back(result);
}

// Held results come in the order of their due times.
void DirectoryDisk::DeliverHeld() {
  if (held_.empty()) return;
  const TimeNs now = Now();
  size_t ready = 0;
  while (ready < held_.size() && held_[ready].due <= now) Deliver(held_[ready++].result);
  held_.erase(held_.begin(), held_.begin() + static_cast<std::ptrdiff_t>(ready));
}

TimeNs DirectoryDisk::HeldNs() const {
  if (held_.empty()) return kMaxWaitNs;
  const TimeNs now = Now();
  return held_.front().due > now ? held_.front().due - now : 0;
}

void DirectoryDisk::Poll(TimeNs timeout_ns, std::vector<IoResult>* results) {
  results_ = results;
  const size_t before = results->size();
  for (const IoResult& result : immediate_) Deliver(result);
  immediate_.clear();
  DeliverHeld();
  TimeNs wait = results->size() > before ? 0 : std::min(timeout_ns, kMaxWaitNs);
  TimeNs deadline = 0;  // unknown before the first wait: most calls need no clock
  for (;;) {
    if (wait > 0 && deadline == 0) deadline = Now() + wait;
    const bool woken = Reap(std::min(wait, HeldNs()));
    DeliverHeld();
    if (wait == 0 || woken || results->size() > before) break;
    const TimeNs now = Now();  // only a held or a stray completion came, or the time is over
    wait = deadline > now ? deadline - now : 0;
    if (wait == 0) break;
  }
  results_ = nullptr;
}

}  // namespace flexkv
