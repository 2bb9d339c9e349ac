#include <cmath>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::trace {

absl::StatusOr<uint64_t> ParseBlockCount(std::string_view text) {
  const auto refuse = [&](const char* why) {
    return absl::InvalidArgumentError(absl::StrCat("'", std::string(text),
                                                   "' is not a number of blocks (", why,
                                                   "): write for example 800, 10k, 1.5M or inf"));
  };
  std::string rest(text);
  absl::AsciiStrToLower(&rest);
  if (rest == "inf" || rest == "infinite") return kInfiniteBlocks;
  double factor = 1;
  if (!rest.empty()) {
    const std::string units = "kmgt";
    const size_t unit = units.find(rest.back());
    if (unit != std::string::npos) {
      factor = std::pow(1000.0, static_cast<double>(unit + 1));
      rest.pop_back();
    }
  }
  const bool digits = !rest.empty() && absl::ascii_isdigit(static_cast<unsigned char>(rest[0])) &&
                      rest.find_first_not_of("0123456789.") == std::string::npos;
  double value = 0;
  if (!digits || !absl::SimpleAtod(rest, &value)) return refuse("digits and a unit are wanted");
  value *= factor;
  if (value > 1e15) return refuse("too large");
  const double whole = std::round(value);
  if (std::abs(whole - value) > 1e-6) return refuse("a part of a block is left");
  return static_cast<uint64_t>(whole);
}

}  // namespace flexkv::trace
