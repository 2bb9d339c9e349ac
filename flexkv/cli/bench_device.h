// What `flexkv bench device` measures and prints, apart from the opening of the device.
#pragma once

#include <array>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/transfer/cuda/copy_route.h"

namespace flexkv::cli {

struct DeviceBench {
  cuda::DeviceInfo info = {};
  cuda::CopyCurve curve;
  std::array<uint32_t, 2> kernel_below = {};  // by direction (index: Route)
  // What one large copy reaches, GB/s by direction: the copy engine's largest fragments.
  std::array<float, 2> peak = {};
};

// `sms`: of the kernel. Internal, ResourceExhausted.
absl::StatusOr<DeviceBench> MeasureDevice(cuda::Api* api, uint32_t sms);

std::string DeviceBenchText(const DeviceBench& bench);
std::string DeviceBenchJson(const DeviceBench& bench);

}  // namespace flexkv::cli
