// What the daemon tells about itself, taken at one moment on the control thread and rendered
// elsewhere.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <vector>

#include "flexkv/base/metrics.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/storage/segment_store.h"
#include "proto/shm_layout.h"

namespace flexkv {

struct EngineSnapshot {
  std::string label;
  bool ready = false;
  uint32_t world_size = 0, ranks_present = 0, tokens_per_block = 0;
  uint64_t block_bytes = 0;
  uint64_t attached_for_s = 0;
  int64_t scheduler_pid = 0;
  shm::EngineStatsBody stats;
};

struct RouteSnapshot {
  std::string route;  // "device_to_cpu", "cpu_to_device"
  uint64_t ops = 0, failed_ops = 0, bytes = 0;
  Histogram::Snapshot latency_ns;
};

struct DaemonSnapshot {
  std::string version;
  uint64_t boot_id = 0;
  int64_t pid = 0;
  uint64_t uptime_s = 0;
  std::string socket_dir;
  uint32_t clients = 0;
  uint64_t clients_accepted = 0, clients_rejected = 0, clients_refused_uid = 0,
           handshakes_timed_out = 0;
  uint64_t clients_dropped = 0;  // for a broken protocol or a ring they did not read
  ManagerStatus cache;
  SegmentStoreStats memory;
  bool prefault = false;
  Histogram::Snapshot match_latency_ns;
  std::array<RouteSnapshot, 2> routes;
  std::vector<EngineSnapshot> engines;
};

}  // namespace flexkv
