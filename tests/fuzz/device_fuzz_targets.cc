// What crosses between daemon and ranks about devices, and the file that keeps copy curves.
#include <algorithm>
#include <array>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "flexkv/client/device_wire.h"
#include "flexkv/server/device_report.h"
#include "flexkv/transfer/cuda/copy_curve_file.h"
#include "proto/packet_socket.h"
#include "tests/fuzz/fuzz_targets.h"

namespace flexkv {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

template <typename T>
std::string Raw(const T& value) {
  return {reinterpret_cast<const char*>(&value), sizeof(value)};
}

template <typename T>
T FromInput(FuzzInput input) {
  T value{};
  std::memcpy(static_cast<void*>(&value), input.data(), std::min(input.size(), sizeof(value)));
  return value;
}

template <size_t kSize>
void CheckText(const char (&text)[kSize]) {
  const size_t length = strnlen(text, kSize);
  Require(length < kSize, "a text without an end");
  for (size_t i = 0; i < kSize; ++i) {
    const char c = text[i];
    Require(i < length ? c >= 0x20 && c <= 0x7e && c != '"' && c != '\\' : c == 0,
            "a text that is not safe");
  }
}

void CheckReport(const shm::DeviceReportBody& report) {
  CheckText(report.device);
  CheckText(report.problem);
  Require(report.num_points <= shm::DeviceReportBody::kMaxPoints, "too many points");
  Require(report.pinning_refused <= 1, "a yes or no that is neither");
  uint32_t last = 0;
  for (uint32_t i = 0; i < report.num_points; ++i) {
    const shm::DeviceReportBody::Point& point = report.points[i];
    Require(point.fragment_bytes > last, "sizes that do not rise");
    last = point.fragment_bytes;
    for (int route = 0; route < 2; ++route) {
      Require(std::isfinite(point.copy_engine[route]) && point.copy_engine[route] >= 0 &&
                  std::isfinite(point.kernel[route]) && point.kernel[route] >= 0,
              "a rate that is none");
    }
  }
}

// A rank's report of whatever numbers: the daemon takes what ToWire makes of it.
void CheckOwnReport(const shm::DeviceReportBody& wild) {
  DeviceReport report;
  report.device.assign(wild.device, sizeof(wild.device));
  report.problem.assign(wild.problem, sizeof(wild.problem));
  report.pinning_refused = wild.pinning_refused % 2 == 1;
  for (const shm::DeviceReportBody::Point& point : wild.points) {
    report.curve.push_back({point.fragment_bytes,
                            {point.copy_engine[0], point.copy_engine[1]},
                            {point.kernel[0], point.kernel[1]}});
  }
  const shm::DeviceReportBody body = ToWire(report, {});
  Require(ParseDeviceReport(shm::AsBytes(body)).ok(), "a rank's own report is refused");
}

std::vector<std::string> ReportCorpus() {
  DeviceReport report;
  report.device = "NVIDIA H200";
  report.problem = "raise the limit on locked memory (ulimit -l)";
  report.pinning_refused = true;
  report.pinned_bytes = 1ull << 30;
  report.kernel_below[1] = 28672;
  for (uint32_t i = 0; i < 8; ++i) report.curve.push_back({4096u << i, {10, 20}, {30, 40}});
  const std::string whole = Raw(ToWire(report, {}));
  return {whole, Raw(ToWire({}, {})), whole.substr(0, 100), whole + "x",
          std::string(sizeof(shm::DeviceReportBody), '\xff')};
}

std::vector<std::string> OptionsCorpus() {
  shm::Welcome welcome;
  welcome.type = static_cast<uint32_t>(shm::PacketType::kWelcome);
  welcome.version = shm::kProtocolVersion;
  welcome.boot_id = 5;
  welcome.region_bytes = shm::kRegionBytes;
  welcome.device = ToWire(CopyOptions{});
  const std::string whole = Raw(welcome);
  return {whole, whole.substr(0, 32), std::string(sizeof(welcome), '\xff')};
}

std::vector<std::string> CurveCorpus() {
  cuda::CurveEntry entry{"NVIDIA H200", 13000, {}};
  for (uint32_t i = 0; i < 8; ++i)
    entry.curve.points.push_back({4096u << i, {10.5f, 20}, {1e-3f, 0}});
  return {cuda::FormatCurves({entry, {"", 0, {}}}), cuda::FormatCurves({}),
          R"({"flexkv_copy_curves":1,"curves":[{"device":"a","driver":1,"kernel_sms":[1,2],)"
          R"("points":[[1,1e5,0.00001,1e-40,-0]]}]})",
          std::string(300, '[')};
}

}  // namespace

void FuzzDeviceReport(FuzzInput input) {
  const absl::StatusOr<shm::DeviceReportBody> report = ParseDeviceReport(input);
  Require(!report.ok() || input.size() == sizeof(*report), "a report of another size is taken");
  // Mutations change the length: the content counts as well.
  const auto wild = FromInput<shm::DeviceReportBody>(input);
  const absl::StatusOr<shm::DeviceReportBody> sized = ParseDeviceReport(shm::AsBytes(wild));
  if (sized.ok()) {
    CheckReport(*sized);
    const absl::StatusOr<shm::DeviceReportBody> again = ParseDeviceReport(shm::AsBytes(*sized));
    Require(again.ok() && std::memcmp(&*again, &*sized, sizeof(*sized)) == 0,
            "what was made safe is not taken as it is");
  } else {
    Require(!sized.status().message().empty(), "an error without words");
  }
  CheckOwnReport(wild);
}

void FuzzDeviceOptions(FuzzInput input) {
  const CopyOptions options = FromWire(FromInput<shm::Welcome>(input).device);
  for (int route = 0; route < 2; ++route) {
    Require(options.engine[route] <= CopyOptions::Engine::kKernel, "an engine that is none");
    Require(options.kernel_sms[route] >= 1 && options.kernel_sms[route] <= 132, "SMs");
    Require(options.bytes_in_flight[route] >= 1ull << 20 &&
                options.bytes_in_flight[route] <= 4ull << 30,
            "bytes in flight");
  }
  Require(options.batch_copies >= 1 && options.batch_copies <= 65536, "copies in a call");
  Require(options.layers_ahead >= 1 && options.layers_ahead <= 1024, "layers ahead");
  const shm::DeviceOptionsBody wire = ToWire(options);
  const shm::DeviceOptionsBody again = ToWire(FromWire(wire));
  Require(std::memcmp(&wire, &again, sizeof(wire)) == 0, "options do not come back");
}

void FuzzCurveFile(FuzzInput input) {
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const absl::StatusOr<std::vector<cuda::CurveEntry>> entries = cuda::ParseCurves(text);
  if (!entries.ok()) {
    Require(!entries.status().message().empty(), "an error without words");
    return;
  }
  Require(entries->size() <= cuda::kMaxCurveEntries, "too many entries");
  for (const cuda::CurveEntry& entry : *entries) {
    Require(entry.device.size() < sizeof(cuda::DeviceInfo::name), "a name longer than any");
    Require(entry.curve.points.size() <= cuda::kMaxCurvePoints, "too many points");
    cuda::KernelBelow(entry.curve, Route::kCpuToDevice);
  }
  const std::string written = cuda::FormatCurves(*entries);
  const absl::StatusOr<std::vector<cuda::CurveEntry>> again = cuda::ParseCurves(written);
  Require(again.ok() && cuda::FormatCurves(*again) == written, "what is written is not read back");
}

std::span<const FuzzTarget> DeviceFuzzTargets() {
  static const std::array<FuzzTarget, 3> kTargets = {
      {{"device_report", &FuzzDeviceReport, &ReportCorpus},
       {"device_options", &FuzzDeviceOptions, &OptionsCorpus},
       {"curve_file", &FuzzCurveFile, &CurveCorpus}}};
  return kTargets;
}

}  // namespace flexkv
