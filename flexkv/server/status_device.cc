#include "flexkv/server/status_device.h"

#include <array>
#include <cmath>
#include <cstdint>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "flexkv/base/units.h"

namespace flexkv {
namespace {

constexpr size_t kLoad = static_cast<size_t>(Route::kCpuToDevice);
constexpr size_t kStore = static_cast<size_t>(Route::kDeviceToCpu);

// Fragment sizes are round: "28 KiB" where FormatBytes says "28.0 KiB".
std::string FragmentSize(uint32_t bytes) {
  if (bytes >= 1u << 20 && bytes % (1u << 20) == 0) return absl::StrCat(bytes >> 20, " MiB");
  if (bytes >= 1u << 10 && bytes % (1u << 10) == 0) return absl::StrCat(bytes >> 10, " KiB");
  return absl::StrCat(bytes, " B");
}

// What a float measured, without the digits that double adds.
double Rounded(float rate) { return std::round(static_cast<double>(rate) * 1000) / 1000; }

using Rate = double (admin::v1::CopyPoint::*)() const;
struct CurveRow {
  const char* name;
  Rate rate;
};
constexpr std::array<CurveRow, 4> kCurveRows = {{
    {"load, copy engine", &admin::v1::CopyPoint::load_copy_engine},
    {"load, kernel", &admin::v1::CopyPoint::load_kernel},
    {"store, copy engine", &admin::v1::CopyPoint::store_copy_engine},
    {"store, kernel", &admin::v1::CopyPoint::store_kernel},
}};

void AppendCurve(const admin::v1::Device& device, std::string* out) {
  absl::StrAppendFormat(out, "            %-20s", "GB/s by fragment");
  for (const admin::v1::CopyPoint& point : device.curve())
    absl::StrAppendFormat(out, " %8s", FragmentSize(point.fragment_bytes()));
  out->push_back('\n');
  for (const CurveRow& row : kCurveRows) {
    absl::StrAppendFormat(out, "            %-20s", row.name);
    for (const admin::v1::CopyPoint& point : device.curve()) {
      const double rate = (point.*row.rate)();
      absl::StrAppendFormat(out, " %8s", rate > 0 ? absl::StrFormat("%.1f", rate) : "-");
    }
    out->push_back('\n');
  }
}

bool SameCurve(const admin::v1::Device& a, const admin::v1::Device& b) {
  if (a.curve_size() != b.curve_size()) return false;
  for (int i = 0; i < a.curve_size(); ++i) {
    if (a.curve(i).fragment_bytes() != b.curve(i).fragment_bytes()) return false;
    for (const CurveRow& row : kCurveRows) {
      if ((a.curve(i).*row.rate)() != (b.curve(i).*row.rate)()) return false;
    }
  }
  return true;
}

}  // namespace

std::string CopyRouteWords(const std::string& device, uint32_t kernel_below) {
  if (device == "cpu") return "processor";
  if (kernel_below == UINT32_MAX) return "kernel";
  if (kernel_below == 0) return "copy engine";
  return absl::StrCat("copy engine; kernel below ", FragmentSize(kernel_below));
}

void AddDevices(const EngineSnapshot& engine, admin::v1::Engine* to) {
  for (const auto& [rank, from] : engine.devices) {
    admin::v1::Device* device = to->add_devices();
    device->set_rank(rank);
    device->set_name(from.device);
    device->set_load_route(CopyRouteWords(from.device, from.kernel_below[kLoad]));
    device->set_store_route(CopyRouteWords(from.device, from.kernel_below[kStore]));
    device->set_load_kernel_below(from.kernel_below[kLoad]);
    device->set_store_kernel_below(from.kernel_below[kStore]);
    for (uint32_t i = 0; i < from.num_points; ++i) {
      const shm::DeviceReportBody::Point& point = from.points[i];
      admin::v1::CopyPoint* shown = device->add_curve();
      shown->set_fragment_bytes(point.fragment_bytes);
      shown->set_load_copy_engine(Rounded(point.copy_engine[kLoad]));
      shown->set_load_kernel(Rounded(point.kernel[kLoad]));
      shown->set_store_copy_engine(Rounded(point.copy_engine[kStore]));
      shown->set_store_kernel(Rounded(point.kernel[kStore]));
    }
    device->set_arena_bytes(from.arena_bytes);
    device->set_pinned_bytes(from.pinned_bytes);
    device->set_pinning_refused(from.pinning_refused != 0);
    device->set_staged_bytes(from.staged_bytes);
    device->set_layer_loads(from.layer_loads);
    device->set_layer_loads_failed(from.layer_loads_failed);
    device->set_problem(from.problem);
  }
}

void AppendDevices(const admin::v1::Engine& engine, std::string* out) {
  const admin::v1::Device* last = nullptr;
  for (const admin::v1::Device& d : engine.devices()) {
    absl::StrAppendFormat(out, "            rank %d: %s; loads by %s; stores by %s\n", d.rank(),
                          d.name(), d.load_route(), d.store_route());
    absl::StrAppendFormat(out,
                          "            pinned %s of %s, staged %s; layer-wise loads %d (%d "
                          "failed)\n",
                          FormatBytes(d.pinned_bytes()), FormatBytes(d.arena_bytes()),
                          FormatBytes(d.staged_bytes()), d.layer_loads(), d.layer_loads_failed());
    if (!d.problem().empty()) absl::StrAppendFormat(out, "            PROBLEM: %s\n", d.problem());
    // Ranks on GPUs of one model share what was measured.
    if (d.curve_size() > 0 && (last == nullptr || !SameCurve(*last, d))) AppendCurve(d, out);
    last = &d;
  }
}

void AddDeviceMetrics(const DaemonSnapshot& snapshot, PrometheusText* page) {
  struct Row {
    const char* name;
    const char* help;
    uint64_t (*value)(const shm::DeviceReportBody&);
  };
  constexpr std::array<Row, 7> kRows = {{
      {"flexkv_device_arena_bytes", "Memory of the CPU tier that the rank has mapped.",
       [](const shm::DeviceReportBody& d) { return d.arena_bytes; }},
      {"flexkv_device_pinned_bytes", "Of that, registered with the device.",
       [](const shm::DeviceReportBody& d) { return d.pinned_bytes; }},
      {"flexkv_device_pinning_refused", "1 when the system allows no more locked memory.",
       [](const shm::DeviceReportBody& d) { return uint64_t{d.pinning_refused}; }},
      {"flexkv_device_staged_bytes", "Copied by way of a staging buffer, since not registered.",
       [](const shm::DeviceReportBody& d) { return d.staged_bytes; }},
      {"flexkv_device_layer_loads", "Layer-wise loads that ended well.",
       [](const shm::DeviceReportBody& d) { return d.layer_loads; }},
      {"flexkv_device_layer_loads_failed",
       "Layer-wise loads that failed after the engine had begun to compute.",
       [](const shm::DeviceReportBody& d) { return d.layer_loads_failed; }},
      {"flexkv_device_problem", "1 when the rank reports a problem, see flexkv status.",
       [](const shm::DeviceReportBody& d) { return uint64_t{d.problem[0] != 0}; }},
  }};
  for (const Row& row : kRows) {
    int number = 0;
    for (const EngineSnapshot& engine : snapshot.engines) {
      for (const auto& [rank, device] : engine.devices) {
        page->Gauge(row.name, row.help, static_cast<double>(row.value(device)),
                    {{"engine", engine.label},
                     {"number", std::to_string(number)},
                     {"rank", std::to_string(rank)},
                     {"device", device.device}});
      }
      ++number;
    }
  }
}

}  // namespace flexkv
