#include "flexkv/index/policies.h"

#include <array>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace flexkv {
namespace {

struct Entry {
  std::string_view name;
  std::unique_ptr<EvictionPolicy> (*make)(EvictionObjective objective);
};

constexpr std::array kPolicies = {
    Entry{"lru", [](EvictionObjective) { return MakeLruPolicy(); }},
    Entry{"lfu", [](EvictionObjective) { return MakeLfuPolicy(); }},
    Entry{"lrfu", [](EvictionObjective) { return MakeLrfuPolicy(); }},
    Entry{"s3fifo", [](EvictionObjective) { return MakeS3FifoPolicy(); }},
    Entry{"arc", [](EvictionObjective) { return MakeArcPolicy(); }},
    Entry{"gdsf", [](EvictionObjective objective) { return MakeGdsfPolicy(objective); }},
    Entry{"a2cr", [](EvictionObjective) { return MakeA2crPolicy(); }},
    Entry{"hazard", [](EvictionObjective objective) { return MakeHazardPolicy(objective); }},
};

constexpr auto kNames = [] {
  std::array<std::string_view, kPolicies.size()> names;
  for (size_t i = 0; i < names.size(); ++i) names[i] = kPolicies[i].name;
  return names;
}();

}  // namespace

std::span<const std::string_view> PolicyNames() { return kNames; }

absl::StatusOr<std::unique_ptr<EvictionPolicy>> NewEvictionPolicy(std::string_view name,
                                                                  EvictionObjective objective) {
  std::string known;
  for (const Entry& entry : kPolicies) {
    if (entry.name == name) return entry.make(objective);
    absl::StrAppend(&known, known.empty() ? "" : ", ", std::string(entry.name));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("no eviction policy \"", std::string(name), "\"; there are ", known));
}

}  // namespace flexkv
