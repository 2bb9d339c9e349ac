// Memory for transfers, as an arena of the daemon gets it.
#pragma once

#include <cstddef>
#include <span>

#include "perf/ssd/ssd_load.h"

namespace flexkv::bench {

struct BenchMemory {
  std::span<std::byte> span;
  Pages pages = Pages::k4KiB;
};

// Hugetlb pages where enough of them are free, also for a peer's memory of the same size, else
// transparent huge pages, else 4 KiB; `plain`: 4 KiB at once. For as long as the program runs.
BenchMemory MakeBenchMemory(size_t bytes, bool plain);

const char* NameOf(Pages pages);

}  // namespace flexkv::bench
