#include "flexkv/server/config_device_keys.h"

#include <string>

#include "flexkv/base/units.h"

namespace flexkv::config_read {
namespace {

using Engine = CopyOptions::Engine;

constexpr size_t kUp = static_cast<size_t>(Route::kCpuToDevice);  // h2d
constexpr size_t kDown = static_cast<size_t>(Route::kDeviceToCpu);
constexpr uint64_t kMaxSms = 132;
constexpr uint64_t kMinInFlight = 1ull << 20, kMaxInFlight = 4ull << 30;

// True: by copy engine; false: by kernel.
absl::Status ReadEngine(const Json& value, Engine* target) {
  if (value.is_boolean()) {
    *target = value.get<bool>() ? Engine::kCopyEngine : Engine::kKernel;
    return absl::OkStatus();
  }
  if (!value.is_string() || value.get<std::string>() != "auto")
    return Bad(value, "\"auto\", true (copy engine) or false (kernel)");
  *target = Engine::kAuto;
  return absl::OkStatus();
}

absl::Status ReadInFlight(const Json& value, uint64_t* target) {
  uint64_t bytes = 0;
  if (absl::Status status = ReadSize(value, 0, kMinInFlight, &bytes); !status.ok()) return status;
  if (bytes > kMaxInFlight) return Bad(value, absl::StrCat("at most ", FormatBytes(kMaxInFlight)));
  *target = bytes;
  return absl::OkStatus();
}

Json EngineJson(Engine engine) {
  if (engine == Engine::kAuto) return "auto";
  return engine == Engine::kCopyEngine;
}

}  // namespace

const std::vector<DeviceKey>& DeviceKeys() {
  static const auto* keys = new std::vector<DeviceKey>{
      {"use_ce_transfer_h2d",
       [](const Json& v, CopyOptions* c) { return ReadEngine(v, &c->engine[kUp]); }},
      {"use_ce_transfer_d2h",
       [](const Json& v, CopyOptions* c) { return ReadEngine(v, &c->engine[kDown]); }},
      {"transfer_sms_h2d",
       [](const Json& v, CopyOptions* c) {
         return ReadInteger(v, 1, kMaxSms, &c->kernel_sms[kUp]);
       }},
      {"transfer_sms_d2h",
       [](const Json& v, CopyOptions* c) {
         return ReadInteger(v, 1, kMaxSms, &c->kernel_sms[kDown]);
       }},
      {"transfer_bytes_in_flight_h2d",
       [](const Json& v, CopyOptions* c) { return ReadInFlight(v, &c->bytes_in_flight[kUp]); }},
      {"transfer_bytes_in_flight_d2h",
       [](const Json& v, CopyOptions* c) { return ReadInFlight(v, &c->bytes_in_flight[kDown]); }},
      {"transfer_batch_copies",
       [](const Json& v, CopyOptions* c) { return ReadInteger(v, 1, 65536, &c->batch_copies); }},
      {"transfer_above_compute",
       [](const Json& v, CopyOptions* c) { return ReadBool(v, &c->above_compute); }},
      {"layerwise_layers_ahead",
       [](const Json& v, CopyOptions* c) { return ReadInteger(v, 1, 1024, &c->layers_ahead); }},
  };
  return *keys;
}

void DeviceToJson(const CopyOptions& options, Json* json) {
  (*json)["use_ce_transfer_h2d"] = EngineJson(options.engine[kUp]);
  (*json)["use_ce_transfer_d2h"] = EngineJson(options.engine[kDown]);
  (*json)["transfer_sms_h2d"] = options.kernel_sms[kUp];
  (*json)["transfer_sms_d2h"] = options.kernel_sms[kDown];
  (*json)["transfer_bytes_in_flight_h2d"] = options.bytes_in_flight[kUp];
  (*json)["transfer_bytes_in_flight_d2h"] = options.bytes_in_flight[kDown];
  (*json)["transfer_batch_copies"] = options.batch_copies;
  (*json)["transfer_above_compute"] = options.above_compute;
  (*json)["layerwise_layers_ahead"] = options.layers_ahead;
}

}  // namespace flexkv::config_read
