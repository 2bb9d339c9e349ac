#include "flexkv/base/fault.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <string>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace flexkv {
namespace {

constexpr std::string_view kNames[] = {
    "agent.swap_blocks",      // a load writes the first two blocks of an op into each other's place
    "agent.flip_byte",        // a load flips one byte in each layer of its first block
    "agent.fail_op",          // an op ends as failed without copying
    "agent.slow_chunk",       // every chunk sleeps 20 ms first
    "agent.drop_done",        // a finished op is never reported to the daemon
    "manager.refuse_put",     // a PUT finds no room
    "manager.refuse_load",    // a load is refused
    "segment.create_fails",   // the arena cannot get another segment
    "client.ring_full",       // a push to the daemon finds the ring full
    "disk.eio_read",          // a read of the SSD tier ends in EIO
    "disk.eio_write",         // a write ends in EIO, nothing is written
    "disk.short_read",        // a read transfers its first half only
    "disk.short_write",       // a write transfers its first half only
    "disk.flip_read",         // a read changes one bit of what it delivers
    "disk.sync_error",        // a sync ends in EIO
    "disk.enospc",            // a file of the SSD tier finds no space
    "disk.slow",              // a transfer's result is held back for 50 ms
    "disk.stray_completion",  // a completion of an earlier transfer comes before a transfer's own
    "trace.open_fails",       // a file of the trace cannot be made
    "trace.enospc",           // a write to the trace finds no space
    "trace.short_write",      // a write to the trace fails half-way
    "trace.slow",             // a write to the trace takes 50 ms
};

struct Armed {
  uint64_t one_in = 1;
  uint64_t state = 0;
  uint64_t fired = 0;
};

struct Registry {
  std::mutex
      mutex;  // fault points fire on any thread, and only in tests: contention does not matter
  std::map<std::string, Armed, std::less<>> armed;
};

Registry& GetRegistry() {
  static Registry* registry = new Registry;  // never destroyed: points may fire during exit
  return *registry;
}

uint64_t NextRandom(uint64_t& state) {  // splitmix64
  uint64_t z = (state += 0x9E3779B97F4A7C15ull);
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

}  // namespace

namespace internal {

std::atomic<bool> any_fault_armed{false};

bool FaultFiresSlow(std::string_view name) {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  auto it = registry.armed.find(name);
  if (it == registry.armed.end()) return false;
  Armed& armed = it->second;
  if (armed.one_in > 1 && NextRandom(armed.state) % armed.one_in != 0) return false;
  ++armed.fired;
  return true;
}

}  // namespace internal

std::vector<std::string_view> FaultPointNames() { return {std::begin(kNames), std::end(kNames)}; }

absl::Status ArmFaults(std::string_view spec) {
  std::map<std::string, Armed, std::less<>> armed;
  // Debian's abseil is built with a string_view of its own, hence the conversions.
  for (absl::string_view item :
       absl::StrSplit(absl::string_view(spec.data(), spec.size()), ',', absl::SkipEmpty())) {
    std::vector<absl::string_view> parts = absl::StrSplit(item, ':');
    if (std::find(std::begin(kNames), std::end(kNames), std::string(parts[0])) ==
        std::end(kNames)) {
      return absl::InvalidArgumentError(absl::StrCat("unknown fault point '", parts[0], "'"));
    }
    Armed entry;
    if (parts.size() > 1 && (!absl::SimpleAtoi(parts[1], &entry.one_in) || entry.one_in == 0)) {
      return absl::InvalidArgumentError(absl::StrCat("bad rate in fault '", item, "'"));
    }
    if (parts.size() > 2 && !absl::SimpleAtoi(parts[2], &entry.state)) {
      return absl::InvalidArgumentError(absl::StrCat("bad seed in fault '", item, "'"));
    }
    armed.emplace(std::string(parts[0]), entry);
  }
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  registry.armed = std::move(armed);
  internal::any_fault_armed.store(!registry.armed.empty(), std::memory_order_relaxed);
  return absl::OkStatus();
}

uint64_t FaultCount(std::string_view name) {
  Registry& registry = GetRegistry();
  std::lock_guard<std::mutex> lock(registry.mutex);
  auto it = registry.armed.find(name);
  return it == registry.armed.end() ? 0 : it->second.fired;
}

}  // namespace flexkv
