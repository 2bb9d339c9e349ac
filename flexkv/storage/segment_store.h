// Where arena memory comes from: sealed memfd segments, made on demand up to a byte budget.
//
// The core asks for segments through SegmentStore and never touches memory itself;
// MemfdSegmentStore is the real one, FakeSegmentStore (tests/support) its fault-injecting twin.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/ids.h"

namespace flexkv {

class SegmentStore {
 public:
  virtual ~SegmentStore() = default;
  // A new segment of `bytes` (rounded up by the caller to kSegmentAlign). Quick: pages arrive in
  // the background. ResourceExhausted: no memory or no descriptor.
  virtual absl::StatusOr<SegmentId> Create(uint64_t bytes) = 0;
  // The memory goes back once the last process that maps it lets go. Unknown ids are ignored.
  virtual void Destroy(SegmentId segment) = 0;
};

inline constexpr uint64_t kSegmentAlign = 2ull << 20;

// What the pages of the arena really are (asked of the kernel, not assumed).
enum class PageKind : uint8_t { kUnknown, k4KiB, kTransparentHuge, kHugetlb };

struct MemfdSegmentStoreOptions {
  bool use_hugetlb = true;  // try 2 MiB hugetlb pages first when the system has free ones
  bool use_thp = true;      // else MADV_HUGEPAGE, where shmem_enabled allows it
  bool lock_memory = true;  // mlock as far as RLIMIT_MEMLOCK allows; never an error
  bool prefault = true;     // populate in a background thread, small pieces, oldest segment first
  int numa_node = -1;       // bind to this node; -1 leaves it to the kernel
  // Create is refused when it would leave the system or the cgroup less than this (pages promised
  // to earlier segments and not yet there count as used): a refused segment is a smaller cache, a
  // fault without memory kills the process that touches it. 0 switches the check off.
  uint64_t reserve_bytes = 128ull << 20;
};

struct SegmentStoreStats {
  uint64_t bytes = 0;
  uint64_t prefaulted_bytes = 0;
  uint64_t locked_bytes = 0;
  uint64_t huge_bytes = 0;  // backed by huge pages, as the kernel reports after prefault
  uint32_t segments = 0;
  PageKind page_kind = PageKind::kUnknown;
  // Pieces the kernel had no memory for; the segment stays usable where it is populated, and its
  // other pages are tried again by whoever touches them. `first_prefault_errno` says why (0 = none
  // failed).
  uint64_t prefault_failed_bytes = 0;
  int first_prefault_errno = 0;
  uint64_t numa_unbound_bytes = 0;  // mbind to numa_node was refused
};

class MemfdSegmentStore : public SegmentStore {
 public:
  using Options = MemfdSegmentStoreOptions;
  static absl::StatusOr<std::unique_ptr<MemfdSegmentStore>> Open(const Options& options);
  ~MemfdSegmentStore() override;

  absl::StatusOr<SegmentId> Create(uint64_t bytes) override;
  void Destroy(SegmentId segment) override;

  // Borrowed descriptor to pass by SCM_RIGHTS (sealed: F_SEAL_SHRINK|GROW|SEAL); -1 for an unknown
  // id.
  int Fd(SegmentId segment) const;
  uint64_t Bytes(SegmentId segment) const;
  // The daemon's own mapping; nullptr for an unknown id.
  std::byte* Data(SegmentId segment) const;
  // Blocks until everything created so far is prefaulted or `timeout_ms` is over. For tests and
  // perf.
  bool WaitPrefaulted(int timeout_ms) const;
  SegmentStoreStats stats() const;  // any thread

 private:
  struct Impl;
  explicit MemfdSegmentStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

// Bytes the process may use: MemAvailable of /proc/meminfo, bounded by the cgroup's limit less its
// use (v2 then v1). 0 when nothing can be read.
uint64_t AvailableMemoryBytes();

}  // namespace flexkv
