// The eviction policies by name.
#pragma once

#include <memory>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "flexkv/index/eviction_policy.h"

namespace flexkv {

// What a daemon uses that was told nothing else.
inline constexpr std::string_view kDefaultPolicy = "hazard";

std::span<const std::string_view> PolicyNames();

// InvalidArgument: no policy has this name; the message lists those there are.
absl::StatusOr<std::unique_ptr<EvictionPolicy>> NewEvictionPolicy(
    std::string_view name, EvictionObjective objective = EvictionObjective::kTokens);

}  // namespace flexkv
