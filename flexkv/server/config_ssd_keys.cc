#include "flexkv/server/config_ssd_keys.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <filesystem>
#include <utility>

#include "flexkv/base/units.h"

namespace flexkv {
namespace {

constexpr std::array<std::pair<const char*, SsdBackend>, 3> kBackends = {
    {{"auto", SsdBackend::kAuto},
     {"io_uring", SsdBackend::kIoUring},
     {"threads", SsdBackend::kThreads}}};
constexpr std::array<std::pair<const char*, SsdAdmission>, 2> kAdmissions = {
    {{"always", SsdAdmission::kAlways}, {"second_touch", SsdAdmission::kSecondTouch}}};

template <typename Names>
auto NameOf(const Names& names, decltype(names[0].second) value) {
  for (const auto& [name, known] : names) {
    if (known == value) return name;
  }
  return names[0].first;
}

}  // namespace

const char* SsdBackendName(SsdBackend backend) { return NameOf(kBackends, backend); }
const char* SsdAdmissionName(SsdAdmission admission) { return NameOf(kAdmissions, admission); }

namespace config_read {
namespace {

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
constexpr size_t kMaxDirectories = 16;
constexpr size_t kMaxPathBytes = 3500;  // file names and the kernel's 4096 beside it
constexpr uint64_t kMinSegmentBytes = 2ull << 20;
constexpr uint64_t kMaxSegmentBytes = 1ull << 40;
constexpr uint32_t kMaxQueueDepth = 4096;
constexpr uint32_t kDefaultQueueDepth = 64;

template <typename Names>
absl::Status ReadNamed(const Json& value, const Names& names, decltype(names[0].second)* target) {
  std::vector<std::string> choices;
  for (const auto& entry : names) choices.emplace_back(entry.first);
  std::string name;
  if (absl::Status status = ReadChoice(value, choices, &name); !status.ok()) return status;
  for (const auto& [known, meaning] : names) {
    if (name == known) *target = meaning;
  }
  return absl::OkStatus();
}

// One spelling for one path, so that the same directory twice is noticed.
absl::Status AddDirectory(const Json& value, std::vector<std::string>* directories) {
  std::string path;
  if (absl::Status status = ReadString(value, &path); !status.ok()) return status;
  if (path.empty() || path.front() != '/' || path.size() > kMaxPathBytes) {
    return Bad(value, "an absolute path, or a list of them");
  }
  // Messages that name it have one line.
  if (std::any_of(path.begin(), path.end(), [](char c) { return c >= 0 && c < 0x20; })) {
    return Bad(value, "a path without control characters");
  }
  path = std::filesystem::path(path).lexically_normal().string();
  while (path.size() > 1 && path.back() == '/') path.pop_back();
  if (std::find(directories->begin(), directories->end(), path) != directories->end()) {
    return absl::InvalidArgumentError(absl::StrCat("names ", path, " twice"));
  }
  directories->push_back(std::move(path));
  return absl::OkStatus();
}

absl::Status ReadDirectories(const Json& value, SsdConfig* config) {
  config->directories.clear();
  if (value.is_string() && value.get_ref<const std::string&>().empty()) return absl::OkStatus();
  if (!value.is_array()) return AddDirectory(value, &config->directories);
  if (value.empty() || value.size() > kMaxDirectories) {
    return Bad(value, absl::StrCat("a list of 1 to ", kMaxDirectories, " paths"));
  }
  for (const Json& item : value) {
    if (absl::Status status = AddDirectory(item, &config->directories); !status.ok()) return status;
  }
  return absl::OkStatus();
}

bool IsZero(const Json& value) { return value.is_number_unsigned() && value.get<uint64_t>() == 0; }

// A percentage is kept as one: what it is of is known when the directories were looked at.
absl::Status ReadCacheBytes(const Json& value, SsdConfig* config) {
  config->cache_bytes = 0;
  config->cache_percent = SsdConfig().cache_percent;
  if (IsZero(value)) return absl::OkStatus();  // the default, as if it were not there
  const bool text = value.is_string();
  const std::string word = text ? value.get<std::string>() : std::string();
  if (word.find('%') == std::string::npos) {
    return ReadSize(value, 0, kMinSsdShareBytes, &config->cache_bytes);
  }
  uint64_t unused = 0;
  if (absl::Status status = ReadSize(value, 100, 0, &unused); !status.ok()) return status;
  double percent = 0;
  std::from_chars(word.data(), word.data() + word.size(), percent, std::chars_format::fixed);
  if (percent < 1) return Bad(value, "at least 1 %");
  config->cache_percent = percent;
  return absl::OkStatus();
}

absl::Status ReadWriteBudget(const Json& value, SsdConfig* config) {
  constexpr std::string_view kPerSecond = "/s";
  Json size = value;
  if (value.is_string()) {
    std::string text = value.get<std::string>();
    if (text.ends_with(kPerSecond)) text.resize(text.size() - kPerSecond.size());
    size = text;
  }
  if (!size.is_string() && !size.is_number_unsigned()) {
    return Bad(value, "bytes per second such as \"200MB/s\", or 0 for no limit");
  }
  return ReadSize(size, 0, 0, &config->write_bytes_per_s);
}

absl::Status ReadSegmentBytes(const Json& value, SsdConfig* config) {
  uint64_t bytes = 0;
  if (absl::Status status = ReadSize(value, 0, kMinSegmentBytes, &bytes); !status.ok())
    return status;
  if (bytes > kMaxSegmentBytes)
    return Bad(value, absl::StrCat("at most ", FormatBytes(kMaxSegmentBytes)));
  config->segment_bytes = bytes;
  return absl::OkStatus();
}

absl::Status ReadQueueDepth(const Json& value, SsdConfig* config) {
  if (absl::Status status = ReadInteger(value, 0, kMaxQueueDepth, &config->queue_depth);
      !status.ok()) {
    return Bad(value, absl::StrCat("a whole number from 1 to ", kMaxQueueDepth));
  }
  if (config->queue_depth == 0) config->queue_depth = kDefaultQueueDepth;
  return absl::OkStatus();
}

std::string PercentText(double percent) {
  char text[64];
  const auto [end, error] =
      std::to_chars(text, text + sizeof(text) - 1, percent, std::chars_format::fixed);
  return error == std::errc() ? std::string(text, end) + "%" : "50%";
}

using KeyConfig = SsdConfig;

}  // namespace

const std::vector<SsdKey>& SsdKeys() {
  static const auto* keys = new std::vector<SsdKey>{
      {"enable_ssd", [](const Json& v, KeyConfig* c) { return ReadBool(v, &c->enabled); }},
      {"ssd_cache_dir", ReadDirectories},
      {"ssd_cache_bytes", ReadCacheBytes},
      {"num_ssd_blocks",
       [](const Json& v, KeyConfig* c) { return ReadInteger(v, 0, kNoLimit, &c->num_blocks); }},
      {"ssd_segment_bytes", ReadSegmentBytes},
      {"ssd_cache_iouring_entries", ReadQueueDepth},
      {"ssd_backend",
       [](const Json& v, KeyConfig* c) { return ReadNamed(v, kBackends, &c->backend); }},
      {"ssd_write_budget", ReadWriteBudget},
      {"ssd_admission",
       [](const Json& v, KeyConfig* c) { return ReadNamed(v, kAdmissions, &c->admission); }},
  };
  return *keys;
}

absl::Status CheckSsdKeys(const SsdConfig& config) {
  if (!config.enabled) return absl::OkStatus();
  if (config.directories.empty()) {
    return absl::InvalidArgumentError(
        "enable_ssd: needs ssd_cache_dir, a directory on the SSD (or a list of them)");
  }
  if (config.cache_bytes != 0 && SsdShareBytes(config) < kMinSsdShareBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ssd_cache_bytes: ", FormatBytes(config.cache_bytes), " over ", config.directories.size(),
        " directories is less than ", FormatBytes(kMinSsdShareBytes), " each"));
  }
  return absl::OkStatus();
}

void SsdToJson(const SsdConfig& config, Json* json) {
  (*json)["enable_ssd"] = config.enabled;
  if (config.directories.size() == 1) {
    (*json)["ssd_cache_dir"] = config.directories.front();
  } else if (!config.directories.empty()) {
    (*json)["ssd_cache_dir"] = config.directories;
  }
  if (config.cache_bytes != 0) {
    (*json)["ssd_cache_bytes"] = config.cache_bytes;
  } else {
    (*json)["ssd_cache_bytes"] = PercentText(config.cache_percent);
  }
  if (config.num_blocks != 0) (*json)["num_ssd_blocks"] = config.num_blocks;
  (*json)["ssd_segment_bytes"] = config.segment_bytes;
  (*json)["ssd_cache_iouring_entries"] = config.queue_depth;
  (*json)["ssd_backend"] = SsdBackendName(config.backend);
  (*json)["ssd_write_budget"] = config.write_bytes_per_s;
  (*json)["ssd_admission"] = SsdAdmissionName(config.admission);
}

}  // namespace config_read
}  // namespace flexkv
