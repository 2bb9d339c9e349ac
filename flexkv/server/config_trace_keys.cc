#include "flexkv/server/config_trace_keys.h"

#include <algorithm>

#include "flexkv/base/units.h"

namespace flexkv::config_read {
namespace {

constexpr uint64_t kMinRotateBytes = 64ull << 10;
constexpr uint32_t kMaxFiles = 100'000;
constexpr size_t kMaxPathBytes = 3500;  // numbers and endings, and the kernel's 4096, beside it

absl::Status ReadPath(const Json& value, TraceConfig* config) {
  if (absl::Status status = ReadString(value, &config->path); !status.ok()) return status;
  const std::string& path = config->path;
  if (path.empty()) return absl::OkStatus();
  const bool plain =
      std::none_of(path.begin(), path.end(), [](char c) { return c >= 0 && c < 0x20; });
  if (path.front() != '/' || path.back() == '/' || path.size() > kMaxPathBytes || !plain) {
    return Bad(value, "the absolute path of a file, such as \"/var/log/flexkv/trace.jsonl\"");
  }
  return absl::OkStatus();
}

absl::Status ReadRotateBytes(const Json& value, TraceConfig* config) {
  uint64_t bytes = 0;
  if (absl::Status status = ReadSize(value, 0, 0, &bytes); !status.ok()) return status;
  if (bytes != 0 && bytes < kMinRotateBytes)
    return Bad(value, absl::StrCat("0 (never), or at least ", FormatBytes(kMinRotateBytes)));
  config->rotate_bytes = bytes;
  return absl::OkStatus();
}

absl::Status ReadCompress(const Json& value, TraceConfig* config) {
  std::string name;
  if (absl::Status status = ReadChoice(value, {"none", "zstd"}, &name); !status.ok()) return status;
  config->zstd = name == "zstd";
  return absl::OkStatus();
}

absl::Status ReadHashes(const Json& value, TraceConfig* config) {
  using trace::TraceHashes;
  std::string name;
  if (absl::Status status = ReadChoice(value, {"none", "short", "full"}, &name); !status.ok())
    return status;
  for (const TraceHashes hashes : {TraceHashes::kNone, TraceHashes::kShort, TraceHashes::kFull}) {
    if (name == TraceHashesName(hashes)) config->hashes = hashes;
  }
  return absl::OkStatus();
}

}  // namespace

const std::vector<TraceKey>& TraceKeys() {
  static const auto* keys = new std::vector<TraceKey>{
      {"enable_trace", [](const Json& v, TraceConfig* c) { return ReadBool(v, &c->enabled); }},
      {"trace_file_path", ReadPath},
      {"trace_rotate_bytes", ReadRotateBytes},
      {"trace_max_files",
       [](const Json& v, TraceConfig* c) { return ReadInteger(v, 0, kMaxFiles, &c->max_files); }},
      {"trace_compress", ReadCompress},
      {"trace_hashes", ReadHashes},
  };
  return *keys;
}

absl::Status CheckTraceKeys(const TraceConfig& config) {
  if (!config.enabled || !config.path.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "enable_trace: needs trace_file_path, where the trace is written");
}

void TraceToJson(const TraceConfig& config, Json* json) {
  (*json)["enable_trace"] = config.enabled;
  if (!config.path.empty()) (*json)["trace_file_path"] = config.path;
  (*json)["trace_rotate_bytes"] = config.rotate_bytes;
  (*json)["trace_max_files"] = config.max_files;
  (*json)["trace_compress"] = config.zstd ? "zstd" : "none";
  (*json)["trace_hashes"] = TraceHashesName(config.hashes);
}

}  // namespace flexkv::config_read
