// What passes between the daemon and its ranks about their devices: the configuration's copy
// options to them, their reports from them.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/statusor.h"
#include "flexkv/transfer/device_agent.h"
#include "proto/shm_layout.h"

namespace flexkv {

// For a Welcome.
shm::DeviceOptionsBody ToWire(const CopyOptions& options);

// The payload of a kDeviceReport, checked and made safe for logs, metrics and terminals: texts end
// and are printable ASCII without double quote and backslash, points beyond num_points are zero.
// InvalidArgument, in words: a protocol violation.
absl::StatusOr<shm::DeviceReportBody> ParseDeviceReport(std::span<const std::byte> payload);

}  // namespace flexkv
