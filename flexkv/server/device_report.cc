#include "flexkv/server/device_report.h"

#include <cmath>
#include <cstring>

namespace flexkv {
namespace {

using Body = shm::DeviceReportBody;

// False: it does not end. What follows its end is not looked at again.
template <size_t kSize>
bool MakeSafe(char (&text)[kSize]) {
  const size_t length = strnlen(text, kSize);
  if (length == kSize) return false;
  for (size_t i = 0; i < length; ++i) {
    char& c = text[i];
    if (c < 0x20 || c > 0x7e || c == '\\') c = '_';
    if (c == '"') c = '\'';
  }
  std::memset(text + length, 0, kSize - length);
  return true;
}

bool IsRate(float value) { return std::isfinite(value) && value >= 0; }

bool InOrder(const Body& body) {
  uint32_t last = 0;
  for (uint32_t i = 0; i < body.num_points; ++i) {
    const Body::Point& point = body.points[i];
    if (point.fragment_bytes <= last) return false;
    last = point.fragment_bytes;
    for (int route = 0; route < 2; ++route) {
      if (!IsRate(point.copy_engine[route]) || !IsRate(point.kernel[route])) return false;
    }
  }
  return true;
}

}  // namespace

shm::DeviceOptionsBody ToWire(const CopyOptions& options) {
  shm::DeviceOptionsBody body;
  for (int route = 0; route < 2; ++route) {
    body.engine[route] = static_cast<uint32_t>(options.engine[route]);
    body.kernel_sms[route] = options.kernel_sms[route];
    body.bytes_in_flight[route] = options.bytes_in_flight[route];
  }
  body.batch_copies = options.batch_copies;
  body.above_compute = options.above_compute ? 1 : 0;
  body.layers_ahead = options.layers_ahead;
  return body;
}

absl::StatusOr<Body> ParseDeviceReport(std::span<const std::byte> payload) {
  Body body;
  if (payload.size() != sizeof(body))
    return absl::InvalidArgumentError("a device report has the wrong size");
  std::memcpy(&body, payload.data(), sizeof(body));
  if (!MakeSafe(body.device) || !MakeSafe(body.problem))
    return absl::InvalidArgumentError("a device report holds a text without an end");
  if (body.pinning_refused > 1 || body.num_points > Body::kMaxPoints)
    return absl::InvalidArgumentError("a device report holds a number out of range");
  if (!InOrder(body))
    return absl::InvalidArgumentError("a device report holds a curve that is none");
  for (uint32_t i = body.num_points; i < Body::kMaxPoints; ++i) body.points[i] = {};
  return body;
}

}  // namespace flexkv
