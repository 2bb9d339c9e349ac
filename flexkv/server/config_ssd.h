// Configuration of the SSD tier: its keys, and whether the directories can give what is asked.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/storage/ssd/ssd_device.h"

namespace flexkv {

struct SsdConfig {
  bool enabled = false;
  // Absolute, normal form, distinct; one device each. A block device may stand for a directory.
  std::vector<std::string> directories;
  // Quota of all directories together, in equal shares. 0: `cache_percent` of what there is room
  // for, until ResolveSsd has put a number here.
  uint64_t cache_bytes = 0;
  // Of what the directories could hold: what their file systems have free and what the tier's own
  // files occupy already, so that a restart comes to the same number. The smallest directory
  // counts for all of them.
  double cache_percent = 50;
  uint64_t num_blocks = 0;  // not 0: at most so many blocks as well
  uint64_t segment_bytes = 1ull << 30;
  uint32_t queue_depth = 64;
  SsdBackend backend = SsdBackend::kAuto;
  uint64_t write_bytes_per_s = 0;  // 0: unlimited
  SsdAdmission admission = SsdAdmission::kAlways;
};

const char* SsdBackendName(SsdBackend backend);        // "auto", "io_uring", "threads"
const char* SsdAdmissionName(SsdAdmission admission);  // "always", "second_touch"

enum class SsdResolve : uint8_t {
  kCheck,  // changes nothing: a directory that is missing counts as one that can be made
  kMake,   // missing directories are made, mode 0700 (their parents are not)
};

// Looks at the directories and fills in cache_bytes; nothing when the tier is off. Errors are one
// sentence that starts with the key. InvalidArgument: not the tier's directory (foreign files,
// another format, a symlink, not ours, open to others, not writable, twice the same), or less
// space than asked. NotFound: its parent does not exist. AlreadyExists: in use by another process
// (kCheck only: opening the device waits for a killed predecessor and says so itself).
absl::Status ResolveSsd(SsdResolve resolve, SsdConfig* config);

// Whether another process has the directory's or device's lock now.
bool SsdDirectoryInUse(const std::string& directory);

// Of each directory.
inline uint64_t SsdShareBytes(const SsdConfig& config) {
  return config.directories.empty() ? 0 : config.cache_bytes / config.directories.size();
}

inline constexpr uint64_t kMinSsdShareBytes = 8ull << 20;

}  // namespace flexkv
