// Named fault points, compiled into every build and free when nothing is armed (one relaxed load).
//
//   if (FaultFires("agent.flip_byte")) ...
//
// Points are armed by the environment variable FLEXKV_FAULTS (read once, by the program's main or
// the engine library's start, through ArmFaults), a comma-separated list of NAME[:ONE_IN[:SEED]]:
// the point fires once in ONE_IN calls (default 1 = always) by a seeded generator, so a run is
// replayable. Unknown names are refused by ArmFaults with InvalidArgument. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace flexkv {

// Every point that exists, so that a misspelt name is refused and coverage can be counted.
std::vector<std::string_view> FaultPointNames();

// Replaces what is armed. "" disarms all. InvalidArgument: unknown name or bad number.
absl::Status ArmFaults(std::string_view spec);

namespace internal {
extern std::atomic<bool> any_fault_armed;
bool FaultFiresSlow(std::string_view name);
}  // namespace internal

inline bool FaultFires(std::string_view name) {
  if (!internal::any_fault_armed.load(std::memory_order_relaxed)) return false;
  return internal::FaultFiresSlow(name);
}

// How often a point fired since it was armed.
uint64_t FaultCount(std::string_view name);

}  // namespace flexkv
