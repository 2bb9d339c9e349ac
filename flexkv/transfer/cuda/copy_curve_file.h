// The text of the file that keeps measured copy curves: JSON of one shape, written and read by
// copy_route.cc only. Byte for byte:
//
//   {"flexkv_copy_curves": 1, "curves": [
//   {"device": "NVIDIA H200", "driver": 13000, "kernel_sms": [8, 8], "points": [[4096, 9.5, 8.75,
//   20, 19.5], ...]}, ...]}
//
// A point: fragment bytes, GB/s of the copy engine down and up, of the kernel down and up; 0: not
// measured. Keys stand in this order; whitespace is free.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/transfer/cuda/copy_route.h"

namespace flexkv::cuda {

struct CurveEntry {
  std::string device;  // printable, without quote and backslash, at most 63 bytes
  int32_t driver_version = 0;
  CopyCurve curve;
};

inline constexpr size_t kMaxCurveFileBytes = 64u << 10;
inline constexpr size_t kMaxCurveEntries = 32;
inline constexpr size_t kMaxCurvePoints = 16;

// DataLoss: anything but what FormatCurves writes, up to whitespace and the spelling of numbers.
absl::StatusOr<std::vector<CurveEntry>> ParseCurves(std::string_view text);
// REQUIRES: entries as ParseCurves gives them.
std::string FormatCurves(const std::vector<CurveEntry>& entries);

// The device's name as an entry holds it.
std::string CurveDeviceName(const DeviceInfo& device);

}  // namespace flexkv::cuda
