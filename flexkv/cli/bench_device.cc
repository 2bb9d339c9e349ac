#include "flexkv/cli/bench_device.h"

#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/text_table.h"

namespace flexkv::cli {
namespace {

using Json = nlohmann::ordered_json;
using Point = DeviceReport::Point;

struct Direction {
  size_t route;
  const char* key;
  const char* title;
};
constexpr std::array<Direction, 2> kDirections = {{
    {static_cast<size_t>(Route::kCpuToDevice), "load", "loads (host to device)"},
    {static_cast<size_t>(Route::kDeviceToCpu), "store", "stores (device to host)"},
}};

std::string Name(const cuda::DeviceInfo& info) {
  return Printable(std::string(info.name, strnlen(info.name, sizeof(info.name))), 64);
}

std::string Rate(float rate) { return rate > 0 ? absl::StrFormat("%.1f", rate) : "-"; }

std::string Share(float rate, float peak) {
  return rate > 0 && peak > 0 ? absl::StrFormat("%.0f %%", 100.0 * rate / peak) : "-";
}

std::string Choice(uint32_t kernel_below) {
  if (kernel_below == 0) return "all fragments by copy engine";
  return absl::StrCat("fragments below ", FormatBytes(kernel_below),
                      " by kernel, others by copy engine");
}

void AppendDirection(const DeviceBench& bench, const Direction& direction, std::string* out) {
  const size_t route = direction.route;
  const float peak = bench.peak[route];
  absl::StrAppendFormat(out, "\n%s: %s GB/s with one large copy\n", direction.title, Rate(peak));
  TextTable table({"fragment", "copy engine", "of large", "kernel", "of large"});
  for (const Point& point : bench.curve.points) {
    table.Add({FormatBytes(point.fragment_bytes), Rate(point.copy_engine[route]),
               Share(point.copy_engine[route], peak), Rate(point.kernel[route]),
               Share(point.kernel[route], peak)});
  }
  absl::StrAppend(out, table.Text(2), "  choice: ", Choice(bench.kernel_below[route]), "\n");
}

// Three decimals: what was measured, without the digits that double adds.
double Rounded(float rate) { return std::round(static_cast<double>(rate) * 1000) / 1000; }

Json DirectionJson(const DeviceBench& bench, size_t route) {
  Json points = Json::array();
  for (const Point& point : bench.curve.points) {
    points.push_back({{"fragment_bytes", point.fragment_bytes},
                      {"copy_engine_gb_per_s", Rounded(point.copy_engine[route])},
                      {"kernel_gb_per_s", Rounded(point.kernel[route])}});
  }
  return {{"peak_gb_per_s", Rounded(bench.peak[route])},
          {"kernel_below_bytes", bench.kernel_below[route]},
          {"points", std::move(points)}};
}

absl::Status Refused(cuda::Api* api, const char* what) {
  return absl::InternalError(absl::StrCat(what, ": ", api->LastMessage()));
}

}  // namespace

absl::StatusOr<DeviceBench> MeasureDevice(cuda::Api* api, uint32_t sms) {
  DeviceBench bench;
  if (!Ok(api->UseDevice())) return Refused(api, "using the device");
  if (!Ok(api->GetDeviceInfo(&bench.info))) return Refused(api, "asking the device");
  const uint32_t kernel_sms[2] = {sms, sms};
  absl::StatusOr<cuda::CopyCurve> curve = cuda::MeasureCopies(api, kernel_sms);
  if (!curve.ok()) return curve.status();
  bench.curve = *std::move(curve);
  for (const Route route : {Route::kDeviceToCpu, Route::kCpuToDevice}) {
    const auto index = static_cast<size_t>(route);
    bench.kernel_below[index] = cuda::KernelBelow(bench.curve, route);
    if (!bench.curve.points.empty())
      bench.peak[index] = bench.curve.points.back().copy_engine[index];
  }
  return bench;
}

std::string DeviceBenchText(const DeviceBench& bench) {
  const cuda::DeviceInfo& info = bench.info;
  std::string out = absl::StrFormat(
      "%s: sm_%d%d, %d SMs, PCI bus %02x, driver %d, runtime %d\n"
      "GB/s by fragment size, host memory registered, one direction at a time; kernel on %d "
      "SMs%s\n",
      Name(info), info.compute_major, info.compute_minor, info.num_sms, info.pci_bus,
      info.driver_version, info.runtime_version, bench.curve.kernel_sms[0],
      info.kernels_read_host ? "" : " (not possible here: kernels cannot read host memory)");
  for (const Direction& direction : kDirections) AppendDirection(bench, direction, &out);
  return out;
}

std::string DeviceBenchJson(const DeviceBench& bench) {
  const cuda::DeviceInfo& info = bench.info;
  Json json = {{"device", Name(info)},
               {"compute_capability", absl::StrCat(info.compute_major, ".", info.compute_minor)},
               {"num_sms", info.num_sms},
               {"pci_bus", info.pci_bus},
               {"driver_version", info.driver_version},
               {"runtime_version", info.runtime_version},
               {"kernels_read_host", info.kernels_read_host},
               {"kernel_sms", bench.curve.kernel_sms[0]}};
  for (const Direction& direction : kDirections)
    json[direction.key] = DirectionJson(bench, direction.route);
  return json.dump(2, ' ', true, Json::error_handler_t::replace);
}

}  // namespace flexkv::cli
