// Readers of one JSON value each, shared by the tables of keys. An error says what was wanted and
// what stood there, on one line; the caller puts the key before it. Inside config only.
#pragma once

#include <cstdint>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace flexkv::config_read {

using Json = nlohmann::ordered_json;

// JSON as it appears in a message: one line, short.
std::string Shown(const Json& value);
absl::Status Bad(const Json& value, std::string_view wanted);

absl::Status ReadBool(const Json& value, bool* target);
absl::Status ReadString(const Json& value, std::string* target);
// `whole` is what a percentage is of; 0: percentages are refused.
absl::Status ReadSize(const Json& value, uint64_t whole, uint64_t least, uint64_t* target);
absl::Status ReadRatio(const Json& value, bool zero_allowed, double* target);
absl::Status ReadChoice(const Json& value, const std::vector<std::string>& choices,
                        std::string* target);

template <typename T>
absl::Status ReadInteger(const Json& value, uint64_t least, uint64_t most, T* target) {
  const std::string wanted = most == std::numeric_limits<uint64_t>::max()
                                 ? absl::StrCat("a whole number of at least ", least)
                                 : absl::StrCat("a whole number from ", least, " to ", most);
  if (!value.is_number_unsigned()) return Bad(value, wanted);
  const uint64_t number = value.get<uint64_t>();
  if (number < least || number > most) return Bad(value, wanted);
  *target = static_cast<T>(number);
  return absl::OkStatus();
}

}  // namespace flexkv::config_read
