// Create makes, seals, maps and advises a memfd, which takes microseconds; a background thread then
// populates it piece by piece, oldest segment first, and asks the kernel what pages it gave. The
// same thread lets go of destroyed segments, since giving a GiB of pages back takes tens of
// milliseconds that the caller does not have.
//
// Lifetime: the table and the thread share a segment, so a piece being populated stays mapped until
// it is done even when Destroy comes in between.
#include <pthread.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <deque>
#include <map>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/arena_memory.h"
#include "flexkv/storage/segment_store.h"

namespace flexkv {
namespace {

// Populating holds the address space's lock against whoever maps memory, the control thread's
// malloc included. A niced thread that is preempted with it blocks them for as long as the engine
// keeps the cores busy; so pieces are much shorter than a time slice and the thread sleeps between
// them, which also leaves it time to run when it wakes.
constexpr uint64_t kPieceBytes = 256 << 10;  // of ordinary pages, about 0.1 ms
constexpr int kRestsPerPiece = 2;            // so long it sleeps for the time that a piece took

struct Segment {
  UniqueFd fd;
  std::span<std::byte> memory;
  bool hugetlb = false;
  bool destroyed = false;
  // Written by the thread, all under the store's mutex.
  uint64_t prefaulted_bytes = 0;
  uint64_t failed_bytes = 0;
  uint64_t huge_bytes = 0;
  uint64_t locked_bytes = 0;
  bool bind_failed = false;
  bool inspected = false;  // huge_bytes is what the kernel reported

  Segment() = default;
  Segment(const Segment&) = delete;
  Segment& operator=(const Segment&) = delete;
  ~Segment() {
    if (!memory.empty()) munmap(memory.data(), memory.size());
  }
};

using SegmentPtr = std::shared_ptr<Segment>;  // shared by table and thread, see above

absl::StatusOr<SegmentPtr> MakeSegment(uint64_t bytes, bool hugetlb) {
  absl::StatusOr<UniqueFd> fd = MakeArenaMemfd(bytes, hugetlb);
  if (!fd.ok()) return fd.status();
  absl::StatusOr<std::span<std::byte>> memory = MapArena(fd->get(), bytes);
  if (!memory.ok()) return memory.status();
  auto segment = std::make_shared<Segment>();
  segment->fd = *std::move(fd);
  segment->memory = *memory;
  segment->hugetlb = hugetlb;
  return segment;
}

}  // namespace

struct MemfdSegmentStore::Impl {
  explicit Impl(const Options& given) : options(given) {}

  const Options options;
  mutable std::mutex mutex;  // control thread, background thread and readers of stats meet here
  mutable std::condition_variable work, idle;
  std::map<SegmentId, SegmentPtr> segments;
  std::deque<SegmentPtr> to_prefault;
  std::deque<SegmentPtr> to_release;
  uint64_t releasing_bytes = 0;  // destroyed, pages not given back yet
  SegmentId next_id = 1;
  int first_errno = 0;
  uint64_t prefault_failed_bytes = 0;
  bool prefaulting = false;
  bool stopping = false;
  std::thread thread;

  absl::Status CheckRoom(uint64_t bytes) const;
  absl::StatusOr<SegmentPtr> MakeAny(uint64_t bytes) const;
  void Advise(Segment& segment) const;
  void Run();
  void PrefaultPiece(std::unique_lock<std::mutex>& lock);
  void Release(std::unique_lock<std::mutex>& lock);
};

// REQUIRES: mutex held.
absl::Status MemfdSegmentStore::Impl::CheckRoom(uint64_t bytes) const {
  if (options.reserve_bytes == 0) return absl::OkStatus();
  const uint64_t available = AvailableMemoryBytes();
  if (available == 0) return absl::OkStatus();  // unknown
  uint64_t promised = options.reserve_bytes;
  for (const auto& [id, segment] : segments) {
    if (!segment->hugetlb) promised += segment->memory.size() - segment->prefaulted_bytes;
  }
  const uint64_t room = available + releasing_bytes;
  if (bytes <= room && promised <= room - bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("a segment of ", bytes >> 20, " MiB does not fit: ", available >> 20,
                   " MiB available, ", promised >> 20, " MiB promised or kept in reserve"));
}

absl::StatusOr<SegmentPtr> MemfdSegmentStore::Impl::MakeAny(uint64_t bytes) const {
  if (options.use_hugetlb && FreeHugetlbBytes() >= bytes) {
    absl::StatusOr<SegmentPtr> segment = MakeSegment(bytes, /*hugetlb=*/true);
    if (segment.ok()) return segment;  // else somebody took the pages meanwhile
  }
  if (absl::Status status = CheckRoom(bytes); !status.ok()) return status;
  return MakeSegment(bytes, /*hugetlb=*/false);
}

// All of it is best effort; what was not granted shows in the stats. REQUIRES: mutex held.
void MemfdSegmentStore::Impl::Advise(Segment& segment) const {
  const std::span<std::byte> memory = segment.memory;
  if (options.use_thp && !segment.hugetlb) madvise(memory.data(), memory.size(), MADV_HUGEPAGE);
  madvise(memory.data(), memory.size(), MADV_DONTDUMP);  // prompts do not belong into core files
  if (options.numa_node >= 0) segment.bind_failed = BindToNode(memory, options.numa_node) != 0;
  if (!options.lock_memory) return;
  uint64_t locked = 0;
  for (const auto& [id, other] : segments) locked += other->locked_bytes;
  segment.locked_bytes = LockOnFault(memory, locked);
}

void MemfdSegmentStore::Impl::Run() {
  pthread_setname_np(pthread_self(), "flexkv-prefault");
  std::unique_lock<std::mutex> lock(mutex);
  while (!stopping) {
    if (!to_release.empty()) {
      Release(lock);
    } else if (!to_prefault.empty()) {
      PrefaultPiece(lock);
    } else {
      idle.notify_all();
      work.wait(lock);
    }
  }
}

void MemfdSegmentStore::Impl::Release(std::unique_lock<std::mutex>& lock) {
  SegmentPtr segment = std::move(to_release.front());
  to_release.pop_front();
  const uint64_t bytes = segment->memory.size();
  lock.unlock();
  segment.reset();
  lock.lock();
  releasing_bytes -= bytes;
}

// Populates the next piece of the oldest segment; after its last piece looks at what it got.
void MemfdSegmentStore::Impl::PrefaultPiece(std::unique_lock<std::mutex>& lock) {
  const SegmentPtr segment = to_prefault.front();
  const uint64_t done = segment->prefaulted_bytes + segment->failed_bytes;
  if (done == segment->memory.size()) {
    to_prefault.pop_front();
    prefaulting = true;
    lock.unlock();
    const uint64_t huge_bytes = HugeBytesOf(segment->memory);
    lock.lock();
    prefaulting = false;
    segment->huge_bytes = huge_bytes;
    segment->inspected = true;
    return;
  }
  const uint64_t piece = segment->hugetlb ? kSegmentAlign : kPieceBytes;
  const uint64_t bytes = std::min(piece, segment->memory.size() - done);
  prefaulting = true;
  lock.unlock();
  const auto start = std::chrono::steady_clock::now();
  const int error = Populate(segment->fd.get(), segment->memory.subspan(done, bytes), done);
  std::this_thread::sleep_for(kRestsPerPiece * (std::chrono::steady_clock::now() - start));
  lock.lock();
  prefaulting = false;
  (error == 0 ? segment->prefaulted_bytes : segment->failed_bytes) += bytes;
  if (error == 0) return;
  prefault_failed_bytes += bytes;
  if (first_errno == 0) first_errno = error;
}

absl::StatusOr<std::unique_ptr<MemfdSegmentStore>> MemfdSegmentStore::Open(const Options& options) {
  if (options.numa_node < -1 || options.numa_node > 4095) {
    return absl::InvalidArgumentError(absl::StrCat("no NUMA node ", options.numa_node));
  }
  auto impl = std::make_unique<Impl>(options);
  Impl* store = impl.get();
  store->thread = std::thread([store] { store->Run(); });
  return std::unique_ptr<MemfdSegmentStore>(new MemfdSegmentStore(std::move(impl)));
}

MemfdSegmentStore::MemfdSegmentStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}

MemfdSegmentStore::~MemfdSegmentStore() {
  {
    std::lock_guard<std::mutex> lock(impl_->mutex);
    impl_->stopping = true;
  }
  impl_->work.notify_all();
  impl_->thread.join();
}

absl::StatusOr<SegmentId> MemfdSegmentStore::Create(uint64_t bytes) {
  if (bytes == 0 || bytes > (uint64_t{1} << 46)) {
    return absl::InvalidArgumentError(absl::StrCat("a segment cannot have ", bytes, " bytes"));
  }
  if (FaultFires("segment.create_fails")) {
    return absl::ResourceExhaustedError("fault point segment.create_fails");
  }
  bytes = (bytes + kSegmentAlign - 1) / kSegmentAlign * kSegmentAlign;
  Impl& store = *impl_;
  std::lock_guard<std::mutex> lock(store.mutex);
  absl::StatusOr<SegmentPtr> segment = store.MakeAny(bytes);
  if (!segment.ok()) return segment.status();
  store.Advise(**segment);
  const SegmentId id = store.next_id++;
  if (store.options.prefault) {
    store.to_prefault.push_back(*segment);
    store.work.notify_all();
  }
  store.segments.emplace(id, *std::move(segment));
  return id;
}

void MemfdSegmentStore::Destroy(SegmentId id) {
  Impl& store = *impl_;
  std::lock_guard<std::mutex> lock(store.mutex);
  auto it = store.segments.find(id);
  if (it == store.segments.end()) return;
  it->second->destroyed = true;
  store.releasing_bytes += it->second->memory.size();
  store.to_release.push_back(std::move(it->second));
  store.segments.erase(it);
  // Nobody but the thread may hold the last reference: forget it here where it still waits.
  std::erase_if(store.to_prefault, [](const SegmentPtr& segment) { return segment->destroyed; });
  store.work.notify_all();
}

int MemfdSegmentStore::Fd(SegmentId id) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  auto it = impl_->segments.find(id);
  return it == impl_->segments.end() ? -1 : it->second->fd.get();
}

uint64_t MemfdSegmentStore::Bytes(SegmentId id) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  auto it = impl_->segments.find(id);
  return it == impl_->segments.end() ? 0 : it->second->memory.size();
}

std::byte* MemfdSegmentStore::Data(SegmentId id) const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  auto it = impl_->segments.find(id);
  return it == impl_->segments.end() ? nullptr : it->second->memory.data();
}

bool MemfdSegmentStore::WaitPrefaulted(int timeout_ms) const {
  std::unique_lock<std::mutex> lock(impl_->mutex);
  return impl_->idle.wait_for(lock, std::chrono::milliseconds(timeout_ms), [this] {
    return impl_->to_prefault.empty() && impl_->to_release.empty() && !impl_->prefaulting &&
           impl_->releasing_bytes == 0;
  });
}

SegmentStoreStats MemfdSegmentStore::stats() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  SegmentStoreStats stats;
  uint64_t inspected_bytes = 0, hugetlb_bytes = 0;
  for (const auto& [id, segment] : impl_->segments) {
    const uint64_t bytes = segment->memory.size();
    ++stats.segments;
    stats.bytes += bytes;
    stats.prefaulted_bytes += segment->prefaulted_bytes;
    stats.locked_bytes += segment->locked_bytes;
    stats.huge_bytes += segment->huge_bytes;
    if (segment->bind_failed) stats.numa_unbound_bytes += bytes;
    if (segment->inspected) inspected_bytes += bytes;
    if (segment->inspected && segment->hugetlb) hugetlb_bytes += bytes;
  }
  stats.prefault_failed_bytes = impl_->prefault_failed_bytes;
  stats.first_prefault_errno = impl_->first_errno;
  // The kind that most of the inspected bytes have.
  if (inspected_bytes > 0) {
    stats.page_kind = hugetlb_bytes * 2 > inspected_bytes      ? PageKind::kHugetlb
                      : stats.huge_bytes * 2 > inspected_bytes ? PageKind::kTransparentHuge
                                                               : PageKind::k4KiB;
  }
  return stats;
}

}  // namespace flexkv
