// Combinations to simulate, from what stands on a command line or in a daemon's configuration.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/server/config.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::cli {

// Every policy of the daemon, then "min".
std::vector<std::string> AllPolicies();

// "lru,min" or "all"; empty: default, lru, min (default once where it is lru itself).
absl::StatusOr<std::vector<std::string>> ParsePolicies(const std::string& text);
// "1k,3k,inf".
absl::StatusOr<std::vector<uint64_t>> ParseBlockCounts(const std::string& option,
                                                       const std::string& text);
// "always,second_touch".
absl::StatusOr<std::vector<SsdAdmission>> ParseAdmissions(const std::string& text);

// 1, 3, 10, 30, ... blocks: the last six up to what gets within half a point of an infinite cache,
// that itself rounded up to two digits, and infinite.
std::vector<uint64_t> SensibleCapacities(const trace::LruCurve& curve);

// The configuration of a daemon that may belong to another machine: sizes are not compared with
// this one's memory. InvalidArgument, NotFound: as ReadConfigFile; a size that is a percentage.
absl::StatusOr<DaemonConfig> ReadNodeConfig(const std::string& path);
// What it makes of blocks of that size. InvalidArgument: block_bytes is 0 and is needed.
absl::StatusOr<trace::Cell> CellOfConfig(const DaemonConfig& config, uint64_t block_bytes);

// "default" is shown as what it stands for.
std::string CellsText(const std::vector<trace::CellResult>& results);
std::string BlocksText(uint64_t blocks);  // "1,000", "inf"

}  // namespace flexkv::cli
