#include "flexkv/storage/available_memory.h"

#include <algorithm>
#include <fstream>
#include <optional>
#include <sstream>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "flexkv/storage/segment_store.h"

namespace flexkv {
namespace {

std::optional<std::string> ReadFile(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::nullopt;
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// A file that holds one number; nullopt for "max", nonsense or no file.
std::optional<uint64_t> ReadNumber(const std::string& path) {
  const std::optional<std::string> text = ReadFile(path);
  uint64_t value = 0;
  if (!text.has_value() || !absl::SimpleAtoi(*text, &value)) return std::nullopt;
  return value;
}

// The number behind `name` in lines of "name[:] number ...".
std::optional<uint64_t> FieldOf(const std::string& text, absl::string_view name) {
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, absl::ByAnyChar(" :\t"), absl::SkipEmpty());
    uint64_t value = 0;
    if (words.size() >= 2 && words[0] == name && absl::SimpleAtoi(words[1], &value)) return value;
  }
  return std::nullopt;
}

struct CgroupNames {
  const char* limit;
  const char* usage;
  const char* reclaimable;  // field of memory.stat
};
constexpr CgroupNames kV2 = {"memory.max", "memory.current", "inactive_file"};
constexpr CgroupNames kV1 = {"memory.limit_in_bytes", "memory.usage_in_bytes",
                             "total_inactive_file"};

uint64_t FreeInCgroup(const std::string& directory, const CgroupNames& names) {
  const std::optional<uint64_t> limit = ReadNumber(absl::StrCat(directory, "/", names.limit));
  const std::optional<uint64_t> usage = ReadNumber(absl::StrCat(directory, "/", names.usage));
  if (!limit.has_value() || !usage.has_value()) return UINT64_MAX;
  const std::string stat = ReadFile(directory + "/memory.stat").value_or("");
  const uint64_t reclaimable = std::min(FieldOf(stat, names.reclaimable).value_or(0), *usage);
  const uint64_t used = *usage - reclaimable;
  return *limit > used ? *limit - used : 0;
}

// Least room of the cgroup and all above it. Inside a container the path may name directories that
// are not mounted; those are skipped and the mount's root, which is the container's own group,
// still counts.
uint64_t FreeAlongPath(const std::string& mount, std::string path, const CgroupNames& names) {
  uint64_t free_bytes = UINT64_MAX;
  while (!path.empty() && path != "/") {
    free_bytes = std::min(free_bytes, FreeInCgroup(mount + path, names));
    path.resize(path.find_last_of('/'));
  }
  return std::min(free_bytes, FreeInCgroup(mount, names));
}

uint64_t FreeInCgroups(const std::string& proc_root, const std::string& cgroup_root) {
  uint64_t free_bytes = UINT64_MAX;
  const std::string cgroups = ReadFile(proc_root + "/self/cgroup").value_or("");
  for (absl::string_view line : absl::StrSplit(cgroups, '\n', absl::SkipEmpty())) {
    const std::vector<std::string> parts = absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3 || parts[2].empty() || parts[2].front() != '/') continue;
    if (parts[0] == "0" && parts[1].empty()) {
      free_bytes = std::min(free_bytes, FreeAlongPath(cgroup_root, parts[2], kV2));
      continue;
    }
    const std::vector<absl::string_view> controllers = absl::StrSplit(parts[1], ',');
    if (std::find(controllers.begin(), controllers.end(), "memory") != controllers.end()) {
      free_bytes = std::min(free_bytes, FreeAlongPath(cgroup_root + "/memory", parts[2], kV1));
    }
  }
  return free_bytes;
}

}  // namespace

uint64_t AvailableMemoryBytesIn(const std::string& proc_root, const std::string& cgroup_root) {
  const std::optional<uint64_t> available_kib =
      FieldOf(ReadFile(proc_root + "/meminfo").value_or(""), "MemAvailable");
  if (!available_kib.has_value()) return 0;
  return std::min(*available_kib * 1024, FreeInCgroups(proc_root, cgroup_root));
}

uint64_t AvailableMemoryBytes() { return AvailableMemoryBytesIn("/proc", "/sys/fs/cgroup"); }

}  // namespace flexkv
