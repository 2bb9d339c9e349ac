// What ranks copy with, for `flexkv status` and Prometheus.
#pragma once

#include <string>

#include "flexkv/base/metrics.h"
#include "flexkv/server/snapshot.h"
#include "proto/admin.pb.h"

namespace flexkv {

// "copy engine; kernel below 28 KiB": what the rank really does, also where the configuration or
// the device leaves no choice. `device` as reported; "cpu" has neither.
std::string CopyRouteWords(const std::string& device, uint32_t kernel_below);

void AddDevices(const EngineSnapshot& engine, admin::v1::Engine* to);
void AppendDevices(const admin::v1::Engine& engine, std::string* out);
void AddDeviceMetrics(const DaemonSnapshot& snapshot, PrometheusText* page);

}  // namespace flexkv
