// One ring. Submit only queues; Poll turns what is queued into submission entries, enters the
// kernel once for all of them (and for the wait, when there is one) and takes completions from the
// shared ring.
//
// Memory given to the kernel stays the kernel's until its completion: slices live in the transfer's
// slot, and the destructor waits. Entering may fail for want of memory or of room for completions
// (EAGAIN, EBUSY) or be interrupted; entries not taken stay in the ring for the next time.
#include <errno.h>
#include <liburing.h>
#include <poll.h>
#include <pthread.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/ssd/directory_disk.h"
#include "flexkv/storage/ssd/ring_memory.h"

namespace flexkv {
namespace {

// Generations are 32 bits in the upper half and slots at most 4096: no ticket looks like these.
constexpr uint64_t kWakeTicket = UINT64_MAX;
constexpr uint32_t kMaxRingFiles = 4096;
constexpr uint32_t kLockEntry = 0;  // of the ring's table of files; others follow
constexpr uint32_t kFirstEntry = 1;
constexpr TimeNs kRetryNs = kNsPerMs;  // after the kernel refused to take entries

class UringDisk : public DirectoryDisk {
 public:
  UringDisk(std::unique_ptr<DiskFiles> files, uint32_t queue_depth)
      : DirectoryDisk(std::move(files), queue_depth) {}
  ~UringDisk() override;
  absl::Status Init();

  void Wake() override;
  bool RegisterMemory(std::span<std::byte> memory) override { return memory_.Register(memory); }
  void UnregisterMemory(const std::byte* memory) override { memory_.Unregister(memory); }

 protected:
  void Start(Ticket ticket) override { queued_.push_back(ticket); }
  void StartStray(Ticket ticket) override { strays_.push_back(ticket); }
  bool Reap(TimeNs timeout_ns) override;
  void FileOpened(uint32_t file_index, int fd) override;
  void FileClosed(uint32_t file_index) override;

 private:
  int MakeRing();
  void InitFileTable();
  void ArmWake();
  void Prepare();
  void PrepareTransfer(io_uring_sqe* sqe, Ticket ticket);
  void PrepareSlices(io_uring_sqe* sqe, const Transfer& transfer);
  int Enter(TimeNs timeout_ns);
  bool TakeCompletions();
  bool EntryOf(uint32_t file_index, uint32_t* entry) const;

  io_uring ring_ = {};
  bool has_ring_ = false;
  RingMemory memory_;
  std::vector<bool> ring_files_;  // which entries of the ring's table hold a file
  std::vector<Ticket> queued_;    // started, not in the ring yet
  std::vector<Ticket> strays_;
  uint32_t in_ring_ = 0;  // of transfers: in the submission ring or in the kernel

  // Wake writes to an eventfd that the ring polls; the flag spares all writes but the first.
  UniqueFd wake_fd_;
  std::atomic<bool> woken_{false};
  bool wake_armed_ = false;
  pthread_t wake_thread_ = {};  // by which: the kernel ends a thread's polls with the thread
};

absl::Status UringDisk::Init() {
  if (const int error = MakeRing(); error < 0) {
    return absl::UnavailableError(
        absl::StrCat("io_uring is refused here: ", std::strerror(-error)));
  }
  has_ring_ = true;
  const uint32_t needed = IORING_FEAT_NODROP | IORING_FEAT_SUBMIT_STABLE | IORING_FEAT_EXT_ARG;
  if ((ring_.features & needed) != needed) {
    return absl::UnavailableError("the io_uring of this kernel is too old (before 5.11)");
  }
  io_uring_ring_dontfork(&ring_);
  wake_fd_ = UniqueFd(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK));
  if (!wake_fd_.valid()) {
    return absl::UnavailableError(absl::StrCat("eventfd: ", std::strerror(errno)));
  }
  memory_.Init(&ring_);
  InitFileTable();
  queued_.reserve(limits().queue_depth);
  return absl::OkStatus();
}

// 0 or -errno.
int UringDisk::MakeRing() {
  const unsigned entries = limits().queue_depth + 8;  // wakes, and strays of the fault point
  // Completions need no interrupt of this thread: it looks for them when it enters the kernel.
  for (const unsigned flags : {IORING_SETUP_COOP_TASKRUN | IORING_SETUP_TASKRUN_FLAG, 0u}) {
    io_uring_params params{};
    params.flags = flags;
    const int error = io_uring_queue_init_params(entries, &ring_, &params);
    if (error == 0 || flags == 0 || error != -EINVAL) return error;
  }
  return -EINVAL;
}

// The lock's file too: see DirectoryFiles::lock_fd.
void UringDisk::InitFileTable() {
  rlimit limit{};
  uint32_t entries = kMaxRingFiles;
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
    entries = static_cast<uint32_t>(std::min<rlim_t>(entries, limit.rlim_cur));
  }
  if (entries == 0 || io_uring_register_files_sparse(&ring_, entries) != 0) return;
  ring_files_.assign(entries, false);
  const int lock = files().lock_fd();
  ring_files_[kLockEntry] = io_uring_register_files_update(&ring_, kLockEntry, &lock, 1) == 1;
}

bool UringDisk::EntryOf(uint32_t file_index, uint32_t* entry) const {
  *entry = file_index + kFirstEntry;
  return *entry < ring_files_.size() && ring_files_[*entry];
}

void UringDisk::FileOpened(uint32_t file_index, int fd) {
  const uint32_t entry = file_index + kFirstEntry;
  if (entry >= ring_files_.size()) return;  // used by its descriptor
  ring_files_[entry] = io_uring_register_files_update(&ring_, entry, &fd, 1) == 1;
}

void UringDisk::FileClosed(uint32_t file_index) {
  uint32_t entry = 0;
  if (!EntryOf(file_index, &entry)) return;
  const int none = -1;
  io_uring_register_files_update(&ring_, entry, &none, 1);
  ring_files_[entry] = false;
}

UringDisk::~UringDisk() {
  if (!has_ring_) return;
  queued_.clear();
  while (in_ring_ > 0) {  // however long the device takes: the memory is the kernel's
    Enter(kNsPerSecond);
    TakeCompletions();
  }
  // Now, and not some time after: a ring ends in the background, with files open and memory pinned.
  io_uring_unregister_files(&ring_);
  io_uring_unregister_buffers(&ring_);
  io_uring_queue_exit(&ring_);
}

void UringDisk::Wake() {
  if (woken_.exchange(true, std::memory_order_acq_rel)) return;
  const uint64_t one = 1;
  // Cannot fail: the counter is drained before the flag is cleared.
  [[maybe_unused]] const ssize_t wrote = write(wake_fd_.get(), &one, sizeof(one));
}

// Polled anew when another thread took the disk over, for polls end with the thread that made them.
void UringDisk::ArmWake() {
  const pthread_t self = pthread_self();
  if (wake_armed_ && pthread_equal(wake_thread_, self)) return;
  io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
  if (sqe == nullptr) return;  // the wait ends at its time
  io_uring_prep_poll_add(sqe, wake_fd_.get(), POLLIN);
  io_uring_sqe_set_data64(sqe, kWakeTicket);
  wake_armed_ = true;
  wake_thread_ = self;
}

// What finds no room in the submission ring stays queued.
void UringDisk::Prepare() {
  size_t taken = 0;
  for (; taken < queued_.size(); ++taken) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) break;
    PrepareTransfer(sqe, queued_[taken]);
    ++in_ring_;
  }
  queued_.erase(queued_.begin(), queued_.begin() + static_cast<std::ptrdiff_t>(taken));
  while (!strays_.empty()) {
    io_uring_sqe* sqe = io_uring_get_sqe(&ring_);
    if (sqe == nullptr) break;
    io_uring_prep_nop(sqe);
    io_uring_sqe_set_data64(sqe, strays_.back());
    strays_.pop_back();
  }
}

void UringDisk::PrepareTransfer(io_uring_sqe* sqe, Ticket ticket) {
  const Transfer& transfer = this->transfer(SlotOf(ticket));
  if (transfer.kind == IoKind::kSync) {
    io_uring_prep_fsync(sqe, transfer.fd, IORING_FSYNC_DATASYNC);
  } else {
    PrepareSlices(sqe, transfer);
  }
  uint32_t entry = 0;
  if (EntryOf(transfer.file_index, &entry)) {
    sqe->fd = static_cast<int>(entry);
    sqe->flags |= IOSQE_FIXED_FILE;
  }
  io_uring_sqe_set_data64(sqe, ticket);
}

void UringDisk::PrepareSlices(io_uring_sqe* sqe, const Transfer& transfer) {
  const bool read = transfer.kind == IoKind::kRead;
  const iovec& first = transfer.slices[0];
  const auto length = static_cast<unsigned>(first.iov_len);  // checked by Submit
  const bool single = transfer.slices.size() == 1;
  const int buffer = single ? memory_.Find(first.iov_base, first.iov_len) : -1;
  if (buffer >= 0) {
    read ? io_uring_prep_read_fixed(sqe, transfer.fd, first.iov_base, length, transfer.offset,
                                    buffer)
         : io_uring_prep_write_fixed(sqe, transfer.fd, first.iov_base, length, transfer.offset,
                                     buffer);
    return;
  }
  ++mutable_stats().unregistered;
  if (single) {
    read ? io_uring_prep_read(sqe, transfer.fd, first.iov_base, length, transfer.offset)
         : io_uring_prep_write(sqe, transfer.fd, first.iov_base, length, transfer.offset);
    return;
  }
  const auto count = static_cast<unsigned>(transfer.slices.size());
  read ? io_uring_prep_readv(sqe, transfer.fd, transfer.slices.data(), count, transfer.offset)
       : io_uring_prep_writev(sqe, transfer.fd, transfer.slices.data(), count, transfer.offset);
}

// Submits, and waits for a completion when there is a timeout and none is there yet. 0 or -errno.
int UringDisk::Enter(TimeNs timeout_ns) {
  if (timeout_ns > 0 && io_uring_cq_ready(&ring_) == 0) {
    __kernel_timespec timeout = {.tv_sec = static_cast<__s64>(timeout_ns / kNsPerSecond),
                                 .tv_nsec = static_cast<long long>(timeout_ns % kNsPerSecond)};
    io_uring_cqe* unused = nullptr;
    return std::min(0, io_uring_submit_and_wait_timeout(&ring_, &unused, 1, &timeout, nullptr));
  }
  if (io_uring_sq_ready(&ring_) > 0) return std::min(0, io_uring_submit_and_get_events(&ring_));
  const unsigned flags = IO_URING_READ_ONCE(*ring_.sq.kflags);
  // Completions that wait for this thread to fetch them, or for room in the ring.
  if ((flags & (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) == 0) return 0;
  return std::min(0, io_uring_get_events(&ring_));
}

// Returns whether a wake was among them.
bool UringDisk::TakeCompletions() {
  bool woken = false;
  unsigned head = 0, count = 0;
  io_uring_cqe* cqe = nullptr;
  io_uring_for_each_cqe(&ring_, head, cqe) {
    ++count;
    if (cqe->user_data == kWakeTicket) {
      wake_armed_ = false;
      woken = true;
      continue;
    }
    if (Complete(cqe->user_data, cqe->res)) --in_ring_;
  }
  io_uring_cq_advance(&ring_, count);
  return woken;
}

bool UringDisk::Reap(TimeNs timeout_ns) {
  if (woken_.load(std::memory_order_acquire)) timeout_ns = 0;
  if (timeout_ns > 0) ArmWake();
  Prepare();
  const int error = Enter(timeout_ns);
  const bool polled_wake = TakeCompletions();
  const bool expected = error == 0 || error == -ETIME || error == -EINTR;
  if (!expected && timeout_ns > 0) {
    const timespec pause = {.tv_sec = 0,
                            .tv_nsec = static_cast<long>(std::min(timeout_ns, kRetryNs))};
    nanosleep(&pause, nullptr);
  }
  if (!polled_wake && !woken_.load(std::memory_order_acquire)) return false;
  // Drained first: who comes after the flag is cleared writes again.
  uint64_t wakes = 0;
  [[maybe_unused]] const ssize_t drained = read(wake_fd_.get(), &wakes, sizeof(wakes));
  woken_.exchange(false, std::memory_order_acq_rel);
  return true;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Disk>> MakeUringDisk(const DirectoryDiskOptions& options) {
  absl::StatusOr<std::unique_ptr<DiskFiles>> files = OpenDiskFiles(options);
  if (!files.ok()) return files.status();
  auto disk = std::make_unique<UringDisk>(*std::move(files), options.queue_depth);
  if (absl::Status status = disk->Init(); !status.ok()) return status;
  return disk;
}

}  // namespace flexkv
