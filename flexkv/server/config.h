// The daemon's configuration: one JSON file, read once, every key checked, unknown ones refused.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/index/policies.h"
#include "flexkv/server/config_ssd.h"
#include "flexkv/server/config_trace.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv {

struct DaemonConfig {
  // Memory. Budget of the CPU tier; a quarter of what is available by default.
  uint64_t cpu_cache_bytes = 0;  // ParseConfig and Finish set the default
  uint64_t num_cpu_blocks = 0;   // not 0: the budget counted in blocks of the first engine's layout
  uint64_t segment_bytes = 1ull << 30;  // granularity in which memory is taken and given back
  bool use_hugetlb = true;              // 2 MiB hugetlb pages when the system has free ones
  bool use_thp = true;                  // else transparent huge pages
  bool lock_memory = true;              // mlock as far as RLIMIT_MEMLOCK allows
  bool prefault = true;                 // populate memory in the background
  int numa_node = -1;                   // -1: wherever the kernel puts it

  SsdConfig ssd;
  TraceConfig trace;
  CopyOptions copy;  // between GPU and arena; told to workers when they attach

  // Policy.
  std::string eviction_policy{kDefaultPolicy};
  EvictionObjective eviction_objective = EvictionObjective::kTokens;
  double evict_ratio =
      0.01;  // share of a full size class evicted ahead per round; 0 = only what is needed
  double evict_start_ratio = 0.98;    // background eviction starts above this share of slots used
  uint32_t tokens_per_block = 0;      // 0: the engine's block size
  uint64_t lease_timeout_ms = 30000;  // a lease on which nothing was launched ends then

  // Who may talk to the daemon, and where.
  std::string socket_dir;           // "" = DefaultSocketDir()
  std::vector<uid_t> allowed_uids;  // ParseConfig and Finish put the own uid into an empty list
  uint32_t max_engines = 64;
  std::string metrics;  // "" = Unix socket only, else "127.0.0.1:PORT"

  // Running.
  uint64_t idle_exit_s = 0;  // exit after this long without clients; 0 = never
  uint32_t spin_us = 20;     // the control thread polls this long after work before it sleeps
  std::string log_level = "info";
};

// What the checks compare against, so that tests need not own a machine.
struct ConfigContext {
  uint64_t available_memory_bytes = 0;  // 0: not known, sizes are not compared with it
  uid_t own_uid = 0;
};
ConfigContext SystemConfigContext();

// Fills in defaults that depend on the machine.
void FinishConfig(const ConfigContext& context, DaemonConfig* config);

// `text` is the JSON of an object, or of an object whose only key "cache_config" holds it.
// InvalidArgument: one sentence on one line that names the key.
absl::StatusOr<DaemonConfig> ParseConfig(std::string_view text, const ConfigContext& context);
// The same from a file; messages start with its path. NotFound: no such file.
absl::StatusOr<DaemonConfig> ReadConfigFile(const std::string& path, const ConfigContext& context);

// "TEXT" as the value of cpu_cache_bytes, as given on the command line.
absl::Status SetCpuCacheBytes(std::string_view text, const ConfigContext& context,
                              DaemonConfig* config);

// Effective values as JSON that ParseConfig reads back.
std::string ConfigToJson(const DaemonConfig& config);

// The known name nearest to `name` by edit distance, "" when none is near.
std::string NearestName(std::string_view name, const std::vector<std::string>& known);

// 127.0.0.1, ::1 or localhost with a port. InvalidArgument otherwise.
struct HostPort {
  std::string host;
  int port = 0;
};
absl::StatusOr<HostPort> ParseLoopback(const std::string& text);

}  // namespace flexkv
