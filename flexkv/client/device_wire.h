// Copy options and device reports as they cross between daemon and worker (proto/shm_layout.h).
#pragma once

#include "flexkv/transfer/device_agent.h"
#include "proto/shm_layout.h"

namespace flexkv {

// A field that is out of its range becomes its default: a worker serves whatever the daemon says.
CopyOptions FromWire(const shm::DeviceOptionsBody& body);
// Always what the daemon accepts: texts printable and cut, numbers finite, at most
// DeviceReportBody::kMaxPoints points of ascending sizes (the rest is left out).
shm::DeviceReportBody ToWire(const DeviceReport& report, const AgentStats& stats);

}  // namespace flexkv
