// Sizes, also as people write them: "200GB", "64 MiB", "25%", 1073741824.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace flexkv {

// The smallest multiple of `unit` (> 0) that is not below `value`.
constexpr uint64_t RoundUp(uint64_t value, uint64_t unit) {
  return (value + unit - 1) / unit * unit;
}

// Bytes of `text`: a number with an optional unit B, KB, MB, GB, TB (powers of 1000), KiB, MiB,
// GiB, TiB (powers of 1024), in any case, or "N%" of `whole_bytes`. InvalidArgument: not a size,
// negative, too large, or a percentage above 100 or of an unknown whole (whole_bytes 0).
absl::StatusOr<uint64_t> ParseBytes(std::string_view text, uint64_t whole_bytes);

// "1.5 GiB", "512 B": three significant digits, binary units.
std::string FormatBytes(uint64_t bytes);

// "350 ns", "1.2 us", "35 ms", "4.0 s".
std::string FormatDuration(uint64_t nanoseconds);

}  // namespace flexkv
