// The door of the trace writer to the disk. Behind it: files of a directory, or what a test makes
// of them. Thread: the writer's own.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace flexkv::trace {

class TraceFile {
 public:
  virtual ~TraceFile() = default;  // closes
  // All of it, or an error after which part of it may be in the file.
  virtual absl::Status Append(std::string_view bytes) = 0;
};

class TraceDisk {
 public:
  virtual ~TraceDisk() = default;
  // A new file that only its owner may read (0600). AlreadyExists: there is one, it stays as it is.
  virtual absl::StatusOr<std::unique_ptr<TraceFile>> Create(const std::string& path) = 0;
  virtual absl::Status Remove(const std::string& path) = 0;
  // Names, without the directory.
  virtual absl::StatusOr<std::vector<std::string>> List(const std::string& directory) = 0;
};

// The real one. Fault points: trace.open_fails, trace.enospc, trace.short_write, trace.slow.
std::unique_ptr<TraceDisk> MakeDirectoryTraceDisk();

}  // namespace flexkv::trace
