// Configuration of the trace that the daemon records: its keys, and whether it can be written.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "flexkv/trace/trace_writer.h"

namespace flexkv {

struct TraceConfig {
  bool enabled = false;
  std::string path;                      // of the first file
  uint64_t rotate_bytes = 256ull << 20;  // a file's size, as stored; 0: one file only
  uint32_t max_files = 16;               // the oldest go; 0: all stay
  bool zstd = false;
  trace::TraceHashes hashes = trace::TraceHashes::kShort;
};

const char* TraceHashesName(trace::TraceHashes hashes);  // "none", "short", "full"

// Whether files can be made beside `path`; nothing when tracing is off. Changes nothing. Errors
// are one sentence that starts with the key. NotFound: no such directory. InvalidArgument: no
// directory, or the path is one. PermissionDenied: not writable.
absl::Status CheckTracePath(const TraceConfig& config);

}  // namespace flexkv
