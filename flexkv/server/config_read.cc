#include "flexkv/server/config_read.h"

#include <algorithm>

#include "absl/status/statusor.h"
#include "absl/strings/str_join.h"
#include "flexkv/base/units.h"

namespace flexkv::config_read {

std::string Shown(const Json& value) {
  std::string text = value.dump(-1, ' ', true, Json::error_handler_t::replace);
  if (text.size() > 40) text = text.substr(0, 37) + "...";
  return text;
}

absl::Status Bad(const Json& value, std::string_view wanted) {
  return absl::InvalidArgumentError(
      absl::StrCat("must be ", std::string(wanted), ", not ", Shown(value)));
}

absl::Status ReadBool(const Json& value, bool* target) {
  if (!value.is_boolean()) return Bad(value, "true or false");
  *target = value.get<bool>();
  return absl::OkStatus();
}

absl::Status ReadString(const Json& value, std::string* target) {
  if (!value.is_string()) return Bad(value, "a string");
  *target = value.get<std::string>();
  if (target->find('\0') != std::string::npos) return Bad(value, "a string without zero bytes");
  return absl::OkStatus();
}

absl::Status ReadSize(const Json& value, uint64_t whole, uint64_t least, uint64_t* target) {
  uint64_t bytes = 0;
  if (value.is_number_unsigned()) {
    bytes = value.get<uint64_t>();
  } else if (value.is_string()) {
    absl::StatusOr<uint64_t> parsed = ParseBytes(value.get<std::string>(), whole);
    if (!parsed.ok()) return parsed.status();
    bytes = *parsed;
  } else {
    return Bad(value, "a number of bytes, or a string such as \"200GB\" or \"25%\"");
  }
  if (bytes < least) return Bad(value, absl::StrCat("at least ", FormatBytes(least)));
  *target = bytes;
  return absl::OkStatus();
}

absl::Status ReadRatio(const Json& value, bool zero_allowed, double* target) {
  const std::string wanted = zero_allowed ? "a number from 0 to 1" : "a number above 0, at most 1";
  if (!value.is_number()) return Bad(value, wanted);
  const double number = value.get<double>();
  if (!(number >= 0 && number <= 1) || (number == 0 && !zero_allowed)) return Bad(value, wanted);
  *target = number;
  return absl::OkStatus();
}

absl::Status ReadChoice(const Json& value, const std::vector<std::string>& choices,
                        std::string* target) {
  if (absl::Status status = ReadString(value, target); !status.ok()) return status;
  if (std::find(choices.begin(), choices.end(), *target) != choices.end()) return absl::OkStatus();
  return Bad(value, absl::StrCat("one of ", absl::StrJoin(choices, ", ")));
}

}  // namespace flexkv::config_read
