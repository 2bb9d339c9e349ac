#include "flexkv/base/units.h"

#include <array>
#include <cctype>
#include <charconv>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"

namespace flexkv {
namespace {

struct Unit {
  std::string_view name;  // lower case
  double bytes;
};

constexpr double kKi = 1024.0;
constexpr std::array<Unit, 10> kUnits = {{{"", 1},
                                          {"b", 1},
                                          {"kb", 1e3},
                                          {"mb", 1e6},
                                          {"gb", 1e9},
                                          {"tb", 1e12},
                                          {"kib", kKi},
                                          {"mib", kKi* kKi},
                                          {"gib", kKi* kKi* kKi},
                                          {"tib", kKi* kKi* kKi* kKi}}};

constexpr double kMaxBytes = 9.0e18;

absl::Status NotASize(std::string_view text) {
  return absl::InvalidArgumentError(
      absl::StrCat("'", std::string(text.substr(0, 40)),
                   "' is not a size (write 1073741824, \"200GB\", \"64MiB\" or \"25%\")"));
}

std::string Print(double value, const char* unit) {
  char text[48];
  const char* format = value < 10 ? "%.2f %s" : value < 100 ? "%.1f %s" : "%.0f %s";
  std::snprintf(text, sizeof(text), format, value, unit);
  return text;
}

}  // namespace

absl::StatusOr<uint64_t> ParseBytes(std::string_view text, uint64_t whole_bytes) {
  double number = 0;
  const char* end = text.data() + text.size();
  const auto [rest, error] = std::from_chars(text.data(), end, number, std::chars_format::fixed);
  if (error != std::errc() || !std::isfinite(number) || number < 0) return NotASize(text);
  std::string unit;
  for (const char* c = rest; c != end; ++c) {
    if (*c != ' ') unit.push_back(static_cast<char>(std::tolower(static_cast<unsigned char>(*c))));
  }
  if (unit == "%") {
    if (number > 100) return absl::InvalidArgumentError("a percentage above 100");
    if (whole_bytes == 0) return absl::InvalidArgumentError("a percentage of an unknown size");
    return static_cast<uint64_t>(static_cast<double>(whole_bytes) * number / 100);
  }
  for (const Unit& known : kUnits) {
    if (known.name != unit) continue;
    const double bytes = number * known.bytes;
    if (bytes > kMaxBytes) return absl::InvalidArgumentError("the size is too large");
    return static_cast<uint64_t>(bytes);
  }
  return NotASize(text);
}

std::string FormatBytes(uint64_t bytes) {
  constexpr std::array<const char*, 5> kNames = {"KiB", "MiB", "GiB", "TiB", "PiB"};
  if (bytes < 1024) return absl::StrCat(bytes, " B");
  double value = static_cast<double>(bytes) / 1024;
  size_t name = 0;
  while (value >= 1024 && name + 1 < kNames.size()) {
    value /= 1024;
    ++name;
  }
  return Print(value, kNames[name]);
}

std::string FormatDuration(uint64_t nanoseconds) {
  const double ns = static_cast<double>(nanoseconds);
  if (nanoseconds < 1000) return absl::StrCat(nanoseconds, " ns");
  if (ns < 1e6) return Print(ns / 1e3, "us");
  if (ns < 1e9) return Print(ns / 1e6, "ms");
  return Print(ns / 1e9, "s");
}

}  // namespace flexkv
