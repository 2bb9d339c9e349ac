#include "flexkv/client/device_wire.h"

#include <algorithm>
#include <cmath>
#include <string>

namespace flexkv {
namespace {

constexpr uint32_t kMaxSms = 132;
constexpr uint64_t kMinInFlight = 1ull << 20, kMaxInFlight = 4ull << 30;
constexpr uint32_t kMaxBatchCopies = 65536;
constexpr uint32_t kMaxLayersAhead = 1024;

template <typename T>
void TakeIfIn(T value, T least, T most, T* target) {
  if (value >= least && value <= most) *target = value;
}

// `target` ends with 0 whatever `text` holds.
template <size_t kSize>
void CopyText(const std::string& text, char (&target)[kSize]) {
  const size_t length = std::min(text.size(), kSize - 1);
  std::transform(text.begin(), text.begin() + static_cast<std::ptrdiff_t>(length), target,
                 [](char c) { return c >= 0x20 && c <= 0x7e ? c : '?'; });
  target[length] = 0;
}

float Rate(float value) { return std::isfinite(value) && value > 0 ? value : 0; }

}  // namespace

CopyOptions FromWire(const shm::DeviceOptionsBody& body) {
  CopyOptions options;
  for (int route = 0; route < 2; ++route) {
    if (body.engine[route] <= static_cast<uint32_t>(CopyOptions::Engine::kKernel))
      options.engine[route] = static_cast<CopyOptions::Engine>(body.engine[route]);
    TakeIfIn(body.kernel_sms[route], 1u, kMaxSms, &options.kernel_sms[route]);
    TakeIfIn(body.bytes_in_flight[route], kMinInFlight, kMaxInFlight,
             &options.bytes_in_flight[route]);
  }
  TakeIfIn(body.batch_copies, 1u, kMaxBatchCopies, &options.batch_copies);
  if (body.above_compute <= 1) options.above_compute = body.above_compute == 1;
  TakeIfIn(body.layers_ahead, 1u, kMaxLayersAhead, &options.layers_ahead);
  return options;
}

shm::DeviceReportBody ToWire(const DeviceReport& report, const AgentStats& stats) {
  shm::DeviceReportBody body;
  CopyText(report.device, body.device);
  CopyText(report.problem, body.problem);
  body.pinning_refused = report.pinning_refused ? 1 : 0;
  body.pinned_bytes = report.pinned_bytes;
  body.arena_bytes = report.arena_bytes;
  body.staged_bytes = report.staged_bytes;
  body.layer_loads = stats.layer_loads;
  body.layer_loads_failed = stats.layer_loads_failed;
  uint32_t last = 0;
  for (const DeviceReport::Point& point : report.curve) {
    if (body.num_points == shm::DeviceReportBody::kMaxPoints) break;
    if (point.fragment_bytes <= last) continue;
    last = point.fragment_bytes;
    shm::DeviceReportBody::Point& wire = body.points[body.num_points++];
    wire.fragment_bytes = point.fragment_bytes;
    for (int route = 0; route < 2; ++route) {
      wire.copy_engine[route] = Rate(point.copy_engine[route]);
      wire.kernel[route] = Rate(point.kernel[route]);
    }
  }
  for (int route = 0; route < 2; ++route) body.kernel_below[route] = report.kernel_below[route];
  return body;
}

}  // namespace flexkv
