#include "perf/ssd/bench_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "flexkv/storage/arena_memory.h"

namespace flexkv::bench {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

}  // namespace

BenchMemory MakeBenchMemory(size_t bytes, bool plain) {
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS;
  const int access = PROT_READ | PROT_WRITE;
  if (!plain && FreeHugetlbBytes() >= 2 * bytes) {
    void* at = mmap(nullptr, bytes, access, flags | MAP_HUGETLB | MAP_POPULATE, -1, 0);
    if (at != MAP_FAILED) return {{static_cast<std::byte*>(at), bytes}, Pages::kHugetlb};
  }
  void* room = mmap(nullptr, bytes + kHugePage, access, flags, -1, 0);
  if (room == MAP_FAILED) {
    std::fprintf(stderr, "flexkv_ssd_bench: no memory\n");
    std::exit(2);
  }
  const uintptr_t aligned =
      (reinterpret_cast<uintptr_t>(room) + kHugePage - 1) / kHugePage * kHugePage;
  BenchMemory memory = {{reinterpret_cast<std::byte*>(aligned), bytes}};
  madvise(memory.span.data(), bytes, plain ? MADV_NOHUGEPAGE : MADV_HUGEPAGE);
  std::memset(memory.span.data(), 1, bytes);
  if (HugeBytesOf(memory.span) == bytes) memory.pages = Pages::kTransparent;
  return memory;
}

const char* NameOf(Pages pages) {
  switch (pages) {
    case Pages::k4KiB:
      return "4 KiB pages";
    case Pages::kTransparent:
      return "transparent 2 MiB pages";
    case Pages::kHugetlb:
      return "hugetlb pages";
  }
  return "";
}

}  // namespace flexkv::bench
