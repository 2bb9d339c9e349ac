#include "flexkv/server/config_trace.h"

#include <sys/stat.h>
#include <unistd.h>

#include <filesystem>

#include "absl/strings/str_cat.h"

namespace flexkv {

const char* TraceHashesName(trace::TraceHashes hashes) {
  switch (hashes) {
    case trace::TraceHashes::kNone:
      return "none";
    case trace::TraceHashes::kShort:
      return "short";
    case trace::TraceHashes::kFull:
      break;
  }
  return "full";
}

absl::Status CheckTracePath(const TraceConfig& config) {
  if (!config.enabled) return absl::OkStatus();
  const std::string directory = std::filesystem::path(config.path).parent_path();
  struct stat info {};
  if (stat(directory.c_str(), &info) != 0) {
    return absl::NotFoundError(
        absl::StrCat("trace_file_path: the directory ", directory, " does not exist"));
  }
  if (!S_ISDIR(info.st_mode))
    return absl::InvalidArgumentError(
        absl::StrCat("trace_file_path: ", directory, " is no directory"));
  if (access(directory.c_str(), R_OK | W_OK | X_OK) != 0) {
    return absl::PermissionDeniedError(
        absl::StrCat("trace_file_path: files cannot be made in ", directory));
  }
  if (stat(config.path.c_str(), &info) == 0 && !S_ISREG(info.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat("trace_file_path: ", config.path, " is not a regular file"));
  }
  return absl::OkStatus();
}

}  // namespace flexkv
