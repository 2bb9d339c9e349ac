// Words of a status for the log.
#pragma once

#include <string>

#include "absl/status/status.h"

namespace flexkv {

// Debian's abseil has a string_view of its own, which the log's formatter does not know.
inline std::string Words(const absl::Status& status) { return std::string(status.message()); }

}  // namespace flexkv
