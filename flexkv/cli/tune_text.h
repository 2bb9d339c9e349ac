// What `flexkv tune` found, as a configuration, as text and as JSON.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/cli/tuner.h"
#include "flexkv/trace/analysis_json.h"

namespace flexkv::cli {

struct TunedConfig {
  trace::OrderedJson json;  // {"cache_config": {...}}, for flexkvd --config
  struct Change {
    std::string key, from, to;  // as JSON; "" where it was not there or no longer is
  };
  std::vector<Change> changes;
  std::vector<std::string> notes;  // what a person has to look at
};

// `present` is the text of the configuration file to start from, or "". Keys that the search did
// not look at stay as they are. InvalidArgument: not an object.
absl::StatusOr<TunedConfig> MakeTunedConfig(const TuneResult& result, const TuneRequest& request,
                                            const std::string& present, const std::string& ssd_dir);

std::string TuneText(const TuneResult& result, const TuneRequest& request,
                     const TunedConfig& config);
trace::OrderedJson TuneJson(const TuneResult& result, const TuneRequest& request,
                            const TunedConfig& config);

}  // namespace flexkv::cli
