// A table of keys: each has a name and a function that checks a JSON value and stores it.
// Everything the reader knows about a key stands in its row; rows of the SSD tier, the
// trace and the devices are in config_*_keys.cc, keys of parts that this build lacks stand in a
// table of their own.
#include "flexkv/server/config.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <fstream>
#include <limits>
#include <nlohmann/json.hpp>
#include <sstream>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/server/config_device_keys.h"
#include "flexkv/server/config_read.h"
#include "flexkv/server/config_ssd_keys.h"
#include "flexkv/server/config_trace_keys.h"
#include "flexkv/storage/segment_store.h"

namespace flexkv {
namespace {

using namespace config_read;  // NOLINT: the readers of values

constexpr uint64_t kMinCacheBytes = 2ull << 20;

absl::Status ReadCacheBytes(const Json& value, const ConfigContext& context, DaemonConfig* config) {
  if (absl::Status status =
          ReadSize(value, context.available_memory_bytes, kMinCacheBytes, &config->cpu_cache_bytes);
      !status.ok()) {
    return status;
  }
  const uint64_t available = context.available_memory_bytes;
  if (available != 0 && config->cpu_cache_bytes > available) {
    return absl::InvalidArgumentError(absl::StrCat(FormatBytes(config->cpu_cache_bytes),
                                                   " is more than the ", FormatBytes(available),
                                                   " of memory available"));
  }
  return absl::OkStatus();
}

absl::Status ReadSocketDir(const Json& value, std::string* target) {
  if (absl::Status status = ReadString(value, target); !status.ok()) return status;
  if (target->empty()) return absl::OkStatus();
  if (target->front() != '/') return Bad(value, "an absolute path");
  std::string parent = *target;
  while (parent.size() > 1 && parent.back() == '/') parent.pop_back();
  parent = parent.substr(0, std::max<size_t>(1, parent.rfind('/')));
  struct stat info {};
  if (stat(parent.c_str(), &info) != 0 || !S_ISDIR(info.st_mode)) {
    return absl::InvalidArgumentError(absl::StrCat("the directory ", parent, " does not exist"));
  }
  return absl::OkStatus();
}

absl::Status ReadUids(const Json& value, std::vector<uid_t>* target) {
  constexpr uint64_t kMaxUid = std::numeric_limits<uid_t>::max() - 1;
  if (!value.is_array() || value.empty()) return Bad(value, "a list of user ids such as [1000]");
  target->clear();
  for (const Json& item : value) {
    uid_t uid = 0;
    if (absl::Status status = ReadInteger(item, 0, kMaxUid, &uid); !status.ok()) return status;
    target->push_back(uid);
  }
  return absl::OkStatus();
}

absl::Status ReadNumaNode(const Json& value, int* target) {
  if (value.is_number_integer() && value.get<int64_t>() == -1) {
    *target = -1;
    return absl::OkStatus();
  }
  if (absl::Status status = ReadInteger(value, 0, 1023, target); !status.ok()) {
    return Bad(value, "a NUMA node, or -1 for none");
  }
  const std::string path = absl::StrCat("/sys/devices/system/node/node", *target);
  if (*target != 0 && access(path.c_str(), F_OK) != 0) {
    return absl::InvalidArgumentError(absl::StrCat("this machine has no NUMA node ", *target));
  }
  return absl::OkStatus();
}

absl::Status ReadMetrics(const Json& value, std::string* target) {
  if (absl::Status status = ReadString(value, target); !status.ok()) return status;
  return target->empty() ? absl::OkStatus() : ParseLoopback(*target).status();
}

absl::Status ReadTokensPerBlock(const Json& value, uint32_t* target) {
  if (absl::Status status = ReadInteger(value, 0, 1u << 20, target); !status.ok()) return status;
  if (*target == 0) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "values other than 0 (the engine's block size) are not in this build");
}

const char* ObjectiveName(EvictionObjective objective) {
  return objective == EvictionObjective::kTokens ? "tokens" : "compute";
}

absl::Status ReadObjective(const Json& value, EvictionObjective* target) {
  std::string name;
  if (absl::Status status = ReadChoice(value, {"tokens", "compute"}, &name); !status.ok())
    return status;
  *target = name == "tokens" ? EvictionObjective::kTokens : EvictionObjective::kCompute;
  return absl::OkStatus();
}

struct Key {
  const char* name;
  absl::Status (*read)(const Json& value, const ConfigContext& context, DaemonConfig* config);
};

#define FLEXKV_KEY(name, expression)                                                         \
  Key {                                                                                      \
    name, [](const Json& v, const ConfigContext& context, DaemonConfig* c) -> absl::Status { \
      (void)context;                                                                         \
      return expression;                                                                     \
    }                                                                                        \
  }

constexpr uint64_t kNoLimit = std::numeric_limits<uint64_t>::max();
constexpr uint64_t kDayMs = 24ull * 3600 * 1000;

const std::vector<std::string>& LogLevels() {
  static const auto* levels =
      new std::vector<std::string>{"trace", "debug", "info", "warning", "error", "critical", "off"};
  return *levels;
}

const std::vector<std::string>& Policies() {
  static const auto* names =
      new std::vector<std::string>(PolicyNames().begin(), PolicyNames().end());
  return *names;
}

const std::array<Key, 21> kKeys = {{
    FLEXKV_KEY("cpu_cache_bytes", ReadCacheBytes(v, context, c)),
    FLEXKV_KEY("num_cpu_blocks", ReadInteger(v, 1, kNoLimit, &c->num_cpu_blocks)),
    FLEXKV_KEY("segment_bytes",
               ReadSize(v, context.available_memory_bytes, kSegmentAlign, &c->segment_bytes)),
    FLEXKV_KEY("evict_ratio", ReadRatio(v, true, &c->evict_ratio)),
    FLEXKV_KEY("evict_start_ratio", ReadRatio(v, false, &c->evict_start_ratio)),
    FLEXKV_KEY("eviction_policy", ReadChoice(v, Policies(), &c->eviction_policy)),
    FLEXKV_KEY("eviction_objective", ReadObjective(v, &c->eviction_objective)),
    FLEXKV_KEY("tokens_per_block", ReadTokensPerBlock(v, &c->tokens_per_block)),
    FLEXKV_KEY("lease_timeout_ms", ReadInteger(v, 1, kDayMs, &c->lease_timeout_ms)),
    FLEXKV_KEY("socket_dir", ReadSocketDir(v, &c->socket_dir)),
    FLEXKV_KEY("allowed_uids", ReadUids(v, &c->allowed_uids)),
    FLEXKV_KEY("use_hugetlb", ReadBool(v, &c->use_hugetlb)),
    FLEXKV_KEY("use_thp", ReadBool(v, &c->use_thp)),
    FLEXKV_KEY("lock_memory", ReadBool(v, &c->lock_memory)),
    FLEXKV_KEY("prefault", ReadBool(v, &c->prefault)),
    FLEXKV_KEY("numa_node", ReadNumaNode(v, &c->numa_node)),
    FLEXKV_KEY("metrics", ReadMetrics(v, &c->metrics)),
    FLEXKV_KEY("idle_exit_s", ReadInteger(v, 0, 1u << 30, &c->idle_exit_s)),
    FLEXKV_KEY("max_engines", ReadInteger(v, 1, 1024, &c->max_engines)),
    FLEXKV_KEY("log_level", ReadChoice(v, LogLevels(), &c->log_level)),
    FLEXKV_KEY("spin_us", ReadInteger(v, 0, 1000, &c->spin_us)),
}};
#undef FLEXKV_KEY

// Keys that other builds know. Their "off" values are accepted, so that one file serves several
// builds.
constexpr std::array<const char*, 3> kOtherBuilds = {"enable_remote", "num_remote_blocks",
                                                     "remote_cache_bytes"};

bool IsOff(const Json& value) {
  return value.is_null() || (value.is_boolean() && !value.get<bool>()) ||
         (value.is_number() && value.get<double>() == 0) ||
         (value.is_string() && value.get<std::string>().empty());
}

absl::Status UnknownKey(const std::string& name) {
  std::vector<std::string> known(std::begin(kOtherBuilds), std::end(kOtherBuilds));
  for (const Key& key : kKeys) known.emplace_back(key.name);
  for (const SsdKey& key : SsdKeys()) known.emplace_back(key.name);
  for (const TraceKey& key : TraceKeys()) known.emplace_back(key.name);
  for (const DeviceKey& key : DeviceKeys()) known.emplace_back(key.name);
  const std::string nearest = NearestName(name, known);
  return absl::InvalidArgumentError(
      nearest.empty() ? "unknown key" : absl::StrCat("unknown key; did you mean ", nearest, "?"));
}

absl::Status ReadKey(const std::string& name, const Json& value, const ConfigContext& context,
                     DaemonConfig* config) {
  for (const Key& key : kKeys) {
    if (name == key.name) return key.read(value, context, config);
  }
  for (const SsdKey& key : SsdKeys()) {
    if (name != key.name) continue;
    return value.is_null() ? absl::OkStatus() : key.read(value, &config->ssd);
  }
  for (const TraceKey& key : TraceKeys()) {
    if (name != key.name) continue;
    return value.is_null() ? absl::OkStatus() : key.read(value, &config->trace);
  }
  for (const DeviceKey& key : DeviceKeys()) {
    if (name != key.name) continue;
    return value.is_null() ? absl::OkStatus() : key.read(value, &config->copy);
  }
  for (const char* other : kOtherBuilds) {
    if (name != other) continue;
    return IsOff(value) ? absl::OkStatus() : absl::InvalidArgumentError("not in this build");
  }
  return UnknownKey(name);
}

size_t EditDistance(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] == b[j - 1] ? 0 : 1);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// Keys as shown in messages: printable and short, whatever the file holds.
std::string ShownKey(const std::string& key) {
  std::string shown = key.substr(0, 60);
  for (char& c : shown) {
    if (c < 0x20 || c > 0x7e) c = '?';
  }
  return shown;
}

}  // namespace

ConfigContext SystemConfigContext() { return {AvailableMemoryBytes(), geteuid()}; }

void FinishConfig(const ConfigContext& context, DaemonConfig* config) {
  constexpr uint64_t kUnknownMachine = 1ull << 30;
  if (config->cpu_cache_bytes == 0) {
    config->cpu_cache_bytes = std::max(kMinCacheBytes, context.available_memory_bytes == 0
                                                           ? kUnknownMachine
                                                           : context.available_memory_bytes / 4);
  }
  if (config->allowed_uids.empty()) config->allowed_uids.push_back(context.own_uid);
}

absl::StatusOr<DaemonConfig> ParseConfig(std::string_view text, const ConfigContext& context) {
  const Json root = Json::parse(text.begin(), text.end(), nullptr, false, true);
  if (root.is_discarded()) return absl::InvalidArgumentError("not valid JSON");
  if (!root.is_object()) return absl::InvalidArgumentError("must be a JSON object");
  const Json* object = &root;
  if (root.contains("cache_config")) {
    if (root.size() != 1) {
      return absl::InvalidArgumentError("cache_config: must be the only key where it is used");
    }
    object = &root["cache_config"];
    if (!object->is_object())
      return absl::InvalidArgumentError("cache_config: must be a JSON object");
  }
  DaemonConfig config;
  for (const auto& [name, value] : object->items()) {
    if (absl::Status status = ReadKey(name, value, context, &config); !status.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(ShownKey(name), ": ", status.message()));
    }
  }
  if (absl::Status status = CheckSsdKeys(config.ssd); !status.ok()) return status;
  if (absl::Status status = CheckTraceKeys(config.trace); !status.ok()) return status;
  FinishConfig(context, &config);
  return config;
}

absl::StatusOr<DaemonConfig> ReadConfigFile(const std::string& path, const ConfigContext& context) {
  struct stat info {};
  std::ifstream file(path, std::ios::binary);
  if (!file || stat(path.c_str(), &info) != 0 || S_ISDIR(info.st_mode)) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be read"));
  }
  constexpr std::streamsize kMaxConfigBytes = 1 << 20;
  std::string text(static_cast<size_t>(kMaxConfigBytes) + 1, '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (file.gcount() > kMaxConfigBytes) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": larger than 1 MiB"));
  }
  text.resize(static_cast<size_t>(file.gcount()));
  absl::StatusOr<DaemonConfig> config = ParseConfig(text, context);
  if (!config.ok())
    return absl::InvalidArgumentError(absl::StrCat(path, ": ", config.status().message()));
  return config;
}

absl::Status SetCpuCacheBytes(std::string_view text, const ConfigContext& context,
                              DaemonConfig* config) {
  absl::Status status = ReadCacheBytes(Json(std::string(text)), context, config);
  if (status.ok()) return status;
  return absl::InvalidArgumentError(absl::StrCat("cpu_cache_bytes: ", status.message()));
}

std::string ConfigToJson(const DaemonConfig& config) {
  Json json;
  json["cpu_cache_bytes"] = config.cpu_cache_bytes;
  if (config.num_cpu_blocks != 0) json["num_cpu_blocks"] = config.num_cpu_blocks;
  json["segment_bytes"] = config.segment_bytes;
  json["use_hugetlb"] = config.use_hugetlb;
  json["use_thp"] = config.use_thp;
  json["lock_memory"] = config.lock_memory;
  json["prefault"] = config.prefault;
  json["numa_node"] = config.numa_node;
  SsdToJson(config.ssd, &json);
  TraceToJson(config.trace, &json);
  DeviceToJson(config.copy, &json);
  json["eviction_policy"] = config.eviction_policy;
  json["eviction_objective"] = ObjectiveName(config.eviction_objective);
  json["evict_ratio"] = config.evict_ratio;
  json["evict_start_ratio"] = config.evict_start_ratio;
  json["tokens_per_block"] = config.tokens_per_block;
  json["lease_timeout_ms"] = config.lease_timeout_ms;
  json["socket_dir"] = config.socket_dir;
  json["allowed_uids"] = config.allowed_uids;
  json["max_engines"] = config.max_engines;
  json["metrics"] = config.metrics;
  json["idle_exit_s"] = config.idle_exit_s;
  json["spin_us"] = config.spin_us;
  json["log_level"] = config.log_level;
  return Json{{"cache_config", json}}.dump(2, ' ', true, Json::error_handler_t::replace);
}

std::string NearestName(std::string_view name, const std::vector<std::string>& known) {
  if (name.size() > 64) return "";
  std::string best;
  size_t best_distance = std::max<size_t>(3, name.size() / 2) + 1;
  for (const std::string& candidate : known) {
    const size_t distance = EditDistance(name, candidate);
    if (distance < best_distance) {
      best_distance = distance;
      best = candidate;
    }
  }
  return best;
}

absl::StatusOr<HostPort> ParseLoopback(const std::string& text) {
  const size_t colon = text.rfind(':');
  HostPort result;
  if (colon == std::string::npos || !absl::SimpleAtoi(text.substr(colon + 1), &result.port) ||
      result.port < 0 || result.port > 65535) {
    return absl::InvalidArgumentError("must be \"\" or HOST:PORT such as \"127.0.0.1:9090\"");
  }
  result.host = text.substr(0, colon);
  if (result.host == "[::1]") result.host = "::1";
  if (result.host != "127.0.0.1" && result.host != "::1" && result.host != "localhost") {
    return absl::InvalidArgumentError(
        "only a loopback address is allowed (127.0.0.1, [::1] or localhost); metrics carry no "
        "authentication");
  }
  return result;
}

}  // namespace flexkv
