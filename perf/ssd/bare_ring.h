// The limit of what a backend may cost: a ring and nothing else.
#pragma once

#include "perf/ssd/ssd_load.h"

namespace flexkv::bench {

// Exits the program when the ring or a transfer fails.
SsdRate RunBareRing(const SsdLoad& load, uint64_t seed);

}  // namespace flexkv::bench
