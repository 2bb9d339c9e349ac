// The SSD tier's part of the table of keys. Inside config only.
#pragma once

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/server/config_read.h"
#include "flexkv/server/config_ssd.h"

namespace flexkv::config_read {

struct SsdKey {
  const char* name;
  absl::Status (*read)(const Json& value, SsdConfig* config);
};

const std::vector<SsdKey>& SsdKeys();

// What no key says alone. The message starts with a key.
absl::Status CheckSsdKeys(const SsdConfig& config);

// Effective values, as SsdKeys reads them back.
void SsdToJson(const SsdConfig& config, Json* json);

}  // namespace flexkv::config_read
