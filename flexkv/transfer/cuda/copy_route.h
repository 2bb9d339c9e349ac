// Copy engine or kernel? Decided by fragment size and direction from a short measurement on the GPU
// at hand, kept by GPU model so that the next engine start does not measure again.
#pragma once

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/transfer/cuda/cuda_api.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv::cuda {

struct CopyCurve {
  std::vector<DeviceReport::Point> points;  // ascending fragment sizes
  uint32_t kernel_sms[2] = {};              // the kernel was measured with, by direction
};

// Fragments below this size are copied faster by kernel, by at least 5 %; 0: none are. Pure: the
// largest measured size below which the kernel wins at every measured size.
uint32_t KernelBelow(const CopyCurve& curve, Route route);
// Without a measurement: 28 KiB for loads and 0 for stores (as vLLM 0.32 measured on an H100).
uint32_t DefaultKernelBelow(Route route);

// Copies at most 64 MiB a point through 16 MiB of device memory and as much host memory, given back
// before it returns; about 100 ms. Not while the engine serves. ResourceExhausted, Internal.
absl::StatusOr<CopyCurve> MeasureCopies(Api* api, const uint32_t kernel_sms[2]);

// The file is JSON, replaced as a whole; a file that cannot be read is as good as none. Entries are
// found by device name, driver version and SMs.
absl::StatusOr<CopyCurve> ReadCurve(const std::string& path, const DeviceInfo& device,
                                    const uint32_t kernel_sms[2]);
absl::Status WriteCurve(const std::string& path, const DeviceInfo& device, const CopyCurve& curve);

}  // namespace flexkv::cuda
