// What MemfdSegmentStore asks of the kernel, one call each. No state.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv {

// A memfd of `bytes` (2 MiB hugetlb pages when asked), sealed against shrinking, growing and
// further seals. ResourceExhausted with the reason.
absl::StatusOr<UniqueFd> MakeArenaMemfd(uint64_t bytes, bool hugetlb);

// Maps all of it, shared, at an address aligned to kSegmentAlign (else the kernel cannot use huge
// pages). With hugetlb this reserves the pages, so that a later touch cannot fail for want of them.
// ResourceExhausted.
absl::StatusOr<std::span<std::byte>> MapArena(int fd, uint64_t bytes);

// Binds the pages of the range to a NUMA node, those to come included. 0 or an errno.
int BindToNode(std::span<std::byte> range, int node);

// Locks pages as they arrive, as much of the range's start as limits allow (`already_locked` bytes
// count against RLIMIT_MEMLOCK). Returns the bytes locked.
uint64_t LockOnFault(std::span<std::byte> range, uint64_t already_locked);

// Populates the range without ever raising SIGBUS. `offset` is where it lies in `fd`. 0 or an
// errno.
int Populate(int fd, std::span<std::byte> range, uint64_t offset);

// Bytes of the mapping that huge pages back, as /proc/self/smaps tells.
uint64_t HugeBytesOf(std::span<const std::byte> mapping);

// Free 2 MiB hugetlb pages of the system, in bytes.
uint64_t FreeHugetlbBytes();

}  // namespace flexkv
