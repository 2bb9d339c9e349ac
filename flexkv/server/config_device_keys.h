// The keys that say how ranks copy between GPU and arena. Inside config only.
#pragma once

#include <vector>

#include "absl/status/status.h"
#include "flexkv/server/config_read.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv::config_read {

struct DeviceKey {
  const char* name;
  absl::Status (*read)(const Json& value, CopyOptions* options);
};

const std::vector<DeviceKey>& DeviceKeys();

// Effective values, as DeviceKeys reads them back.
void DeviceToJson(const CopyOptions& options, Json* json);

}  // namespace flexkv::config_read
