// pread and pwrite on a pool of threads, for where io_uring is refused. One mutex guards both
// queues: a transfer takes 60 us at the least, and the queue depth bounds what waits.
#include <errno.h>
#include <pthread.h>
#include <sys/uio.h>
#include <unistd.h>

#include <chrono>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/directory_disk.h"

namespace flexkv {
namespace {

class ThreadDisk : public DirectoryDisk {
 public:
  ThreadDisk(std::unique_ptr<DiskFiles> files, uint32_t queue_depth, uint32_t threads)
      : DirectoryDisk(std::move(files), queue_depth) {
    for (uint32_t i = 0; i < threads; ++i) threads_.emplace_back([this] { Work(); });
  }

  ~ThreadDisk() override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      stopping_ = true;
    }
    work_.notify_all();
    for (std::thread& thread : threads_) thread.join();  // each ends the transfer that it is in
  }

  void Wake() override {
    std::lock_guard<std::mutex> lock(mutex_);
    woken_ = true;
    done_.notify_one();
  }

  bool RegisterMemory(std::span<std::byte> /*memory*/) override { return false; }
  void UnregisterMemory(const std::byte* /*memory*/) override {}

 protected:
  void Start(Ticket ticket) override {
    if (transfer(SlotOf(ticket)).kind != IoKind::kSync) ++mutable_stats().unregistered;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      queue_.push_back(ticket);
    }
    work_.notify_one();
  }

  void StartStray(Ticket ticket) override {
    std::lock_guard<std::mutex> lock(mutex_);
    finished_.push_back({ticket, 0});
  }

  bool Reap(TimeNs timeout_ns) override {
    reaped_.clear();
    bool woken = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      if (timeout_ns > 0) {
        done_.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                       [this] { return woken_ || !finished_.empty(); });
      }
      woken = std::exchange(woken_, false);
      reaped_.swap(finished_);
    }
    for (const auto& [ticket, result] : reaped_) Complete(ticket, result);
    return woken;
  }

 private:
  void Work() {
    pthread_setname_np(pthread_self(), "flexkv-disk");
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      work_.wait(lock, [this] { return stopping_ || !queue_.empty(); });
      if (stopping_) return;
      const Ticket ticket = queue_.front();
      queue_.pop_front();
      lock.unlock();
      const int64_t result = Do(transfer(SlotOf(ticket)));
      lock.lock();
      finished_.push_back({ticket, result});
      done_.notify_one();
    }
  }

  // Its slot does not change while it is in flight, so no lock.
  static int64_t Do(const Transfer& transfer) {
    const int count = static_cast<int>(transfer.slices.size());
    const off_t offset = static_cast<off_t>(transfer.offset);
    ssize_t result = 0;
    do {
      switch (transfer.kind) {
        case IoKind::kRead:
          result = preadv(transfer.fd, transfer.slices.data(), count, offset);
          break;
        case IoKind::kWrite:
          result = pwritev(transfer.fd, transfer.slices.data(), count, offset);
          break;
        case IoKind::kSync:
          result = fdatasync(transfer.fd);
          break;
      }
      // A sync that did not run to its end has failed, whatever the reason: the second could
      // succeed without having written what the first gave up.
    } while (result < 0 && errno == EINTR && transfer.kind != IoKind::kSync);
    return result < 0 ? -errno : result;
  }

  std::mutex mutex_;  // this disk's thread and the pool meet here
  std::condition_variable work_, done_;
  std::deque<Ticket> queue_;
  std::vector<std::pair<Ticket, int64_t>> finished_;
  bool woken_ = false;
  bool stopping_ = false;
  std::vector<std::pair<Ticket, int64_t>> reaped_;  // of the disk's thread alone
  std::vector<std::thread> threads_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Disk>> MakeThreadDisk(const DirectoryDiskOptions& options) {
  if (options.threads < 1 || options.threads > 64) {
    return absl::InvalidArgumentError(absl::StrCat("threads: ", options.threads, ", not 1..64"));
  }
  absl::StatusOr<std::unique_ptr<DiskFiles>> files = OpenDiskFiles(options);
  if (!files.ok()) return files.status();
  return std::make_unique<ThreadDisk>(*std::move(files), options.queue_depth, options.threads);
}

}  // namespace flexkv
