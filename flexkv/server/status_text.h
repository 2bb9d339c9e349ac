// `flexkv status` for people and for programs.
#pragma once

#include <string>

#include "proto/admin.pb.h"

namespace flexkv {

std::string StatusText(const admin::v1::StatusReply& status);

// Every field under its name in admin.proto. Unlike protobuf's own JSON, 64-bit integers are
// numbers; the boot id is a string of 16 hexadecimal digits.
std::string StatusJson(const admin::v1::StatusReply& status);

}  // namespace flexkv
