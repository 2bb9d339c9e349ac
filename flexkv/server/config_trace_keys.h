// The trace's part of the table of keys. Inside config only.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "flexkv/server/config_read.h"
#include "flexkv/server/config_trace.h"

namespace flexkv::config_read {

struct TraceKey {
  const char* name;
  absl::Status (*read)(const Json& value, TraceConfig* config);
};

const std::vector<TraceKey>& TraceKeys();

// What no key says alone. The message starts with a key.
absl::Status CheckTraceKeys(const TraceConfig& config);

// Effective values, as TraceKeys reads them back.
void TraceToJson(const TraceConfig& config, Json* json);

}  // namespace flexkv::config_read
