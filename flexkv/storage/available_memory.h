// How much memory the process may still use, read from /proc and the cgroup files under given roots
// (AvailableMemoryBytes uses "/proc" and "/sys/fs/cgroup"; tests bring their own trees).
#pragma once

#include <cstdint>
#include <string>

namespace flexkv {

// MemAvailable bounded by what every memory cgroup above the process leaves free; reclaimable file
// pages count as free. 0 when meminfo cannot be read.
uint64_t AvailableMemoryBytesIn(const std::string& proc_root, const std::string& cgroup_root);

}  // namespace flexkv
