// What the tables of refused configurations share: a case, and what its message must be.
#pragma once

#include <string>

#include "flexkv/server/config.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv {

inline constexpr ConfigContext kConfigContext{100ull << 30, 1000};

struct ErrorCase {
  const char* json;
  const char* key;  // the message starts with it
  const char* contains;
};

inline void ExpectOneClearLine(const ErrorCase& refused) {
  const absl::StatusOr<DaemonConfig> config = ParseConfig(refused.json, kConfigContext);
  ASSERT_FALSE(config.ok()) << refused.json;
  EXPECT_EQ(config.status().code(), absl::StatusCode::kInvalidArgument);
  const std::string message(config.status().message());
  EXPECT_EQ(message.find('\n'), std::string::npos);
  EXPECT_EQ(message.rfind(refused.key, 0), 0u) << message;
  EXPECT_THAT(message, testing::HasSubstr(refused.contains));
}

}  // namespace flexkv
