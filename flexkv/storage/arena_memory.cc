#include "flexkv/storage/arena_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <linux/mempolicy.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "flexkv/storage/segment_store.h"

namespace flexkv {
namespace {

absl::Status Exhausted(const char* call) {
  return absl::ResourceExhaustedError(absl::StrCat(call, ": ", std::strerror(errno)));
}

#ifndef MADV_POPULATE_WRITE
constexpr int MADV_POPULATE_WRITE = 23;  // Linux 5.14
#endif

}  // namespace

absl::StatusOr<UniqueFd> MakeArenaMemfd(uint64_t bytes, bool hugetlb) {
  unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING;
  if (hugetlb) flags |= MFD_HUGETLB | MFD_HUGE_2MB;
  UniqueFd fd(memfd_create("flexkv-arena", flags));
  if (!fd.valid()) return Exhausted("memfd_create");
  if (ftruncate(fd.get(), static_cast<off_t>(bytes)) != 0) return Exhausted("ftruncate");
  if (fcntl(fd.get(), F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    return Exhausted("F_ADD_SEALS");
  }
  return fd;
}

absl::StatusOr<std::span<std::byte>> MapArena(int fd, uint64_t bytes) {
  void* room = mmap(nullptr, bytes + kSegmentAlign, PROT_NONE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) return Exhausted("mmap");
  const uintptr_t start = reinterpret_cast<uintptr_t>(room);
  const uintptr_t aligned = (start + kSegmentAlign - 1) / kSegmentAlign * kSegmentAlign;
  void* mapped = mmap(reinterpret_cast<void*>(aligned), bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_FIXED, fd, 0);
  if (mapped == MAP_FAILED) {
    const absl::Status status = Exhausted("mmap");
    munmap(room, bytes + kSegmentAlign);
    return status;
  }
  const uintptr_t end = start + bytes + kSegmentAlign;
  if (aligned > start) munmap(room, aligned - start);
  if (end > aligned + bytes) {
    munmap(reinterpret_cast<void*>(aligned + bytes), end - aligned - bytes);
  }
  return std::span<std::byte>(static_cast<std::byte*>(mapped), bytes);
}

int BindToNode(std::span<std::byte> range, int node) {
  constexpr size_t kBits = 8 * sizeof(unsigned long);
  std::vector<unsigned long> mask(static_cast<size_t>(node) / kBits + 1);
  mask.back() = 1ul << (static_cast<size_t>(node) % kBits);
  const unsigned long max_node = mask.size() * kBits + 1;  // the kernel takes one bit fewer
  const long result =
      syscall(SYS_mbind, range.data(), range.size(), MPOL_BIND, mask.data(), max_node, 0);
  return result == 0 ? 0 : errno;
}

uint64_t LockOnFault(std::span<std::byte> range, uint64_t already_locked) {
  if (mlock2(range.data(), range.size(), MLOCK_ONFAULT) == 0) return range.size();
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0 || limit.rlim_cur <= already_locked) return 0;
  const uint64_t room = (limit.rlim_cur - already_locked) / kSegmentAlign * kSegmentAlign;
  const uint64_t bytes = std::min<uint64_t>(room, range.size());
  return bytes > 0 && mlock2(range.data(), bytes, MLOCK_ONFAULT) == 0 ? bytes : 0;
}

int Populate(int fd, std::span<std::byte> range, uint64_t offset) {
  if (madvise(range.data(), range.size(), MADV_POPULATE_WRITE) == 0) return 0;
  if (errno != EINVAL) return errno;
  // An older kernel: let the file system allocate first, which fails politely, then touch.
  if (fallocate(fd, 0, static_cast<off_t>(offset), static_cast<off_t>(range.size())) != 0) {
    return errno;
  }
  const long page = sysconf(_SC_PAGESIZE);
  for (size_t at = 0; at < range.size(); at += static_cast<size_t>(page)) {
    // An atomic no-op: the page may be in use by a copy already.
    __atomic_fetch_or(reinterpret_cast<unsigned char*>(range.data() + at), 0, __ATOMIC_RELAXED);
  }
  return 0;
}

uint64_t HugeBytesOf(std::span<const std::byte> mapping) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(mapping.data());
  const uintptr_t end = begin + mapping.size();
  std::ifstream smaps("/proc/self/smaps");
  std::string line;
  bool inside = false;
  uint64_t huge_kib = 0;
  // A mapping's entry starts with its range; locking or binding may have split ours into several.
  // Newer mappings lie lower, so stopping behind ours usually spares the walk over older segments.
  while (std::getline(smaps, line)) {
    unsigned long from = 0, to = 0, kib = 0;
    char name[64];
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) {
      if (from >= end) break;
      inside = from >= begin;
    } else if (inside && std::sscanf(line.c_str(), "%63[^:]: %lu kB", name, &kib) == 2) {
      const std::string_view field = name;
      if (field == "AnonHugePages" || field == "ShmemPmdMapped" || field == "FilePmdMapped" ||
          field == "Shared_Hugetlb" || field == "Private_Hugetlb") {
        huge_kib += kib;
      }
    }
  }
  return huge_kib * 1024;
}

uint64_t FreeHugetlbBytes() {
  // Reserved pages are promised to other mappings already.
  const std::string directory = "/sys/kernel/mm/hugepages/hugepages-2048kB/";
  uint64_t free_pages = 0, reserved_pages = 0;
  std::ifstream(directory + "free_hugepages") >> free_pages;
  std::ifstream(directory + "resv_hugepages") >> reserved_pages;
  return free_pages > reserved_pages ? (free_pages - reserved_pages) * kSegmentAlign : 0;
}

}  // namespace flexkv
