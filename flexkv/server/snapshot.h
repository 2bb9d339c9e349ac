// What the daemon tells about itself, taken at one moment on the control thread and rendered
// elsewhere.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "flexkv/base/metrics.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/storage/segment_store.h"
#include "flexkv/storage/ssd/ssd_device.h"
#include "flexkv/trace/trace_writer.h"
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
  std::map<uint32_t, shm::DeviceReportBody> devices;  // by rank, of those that have reported
};

struct RouteSnapshot {
  std::string route;  // "device_to_cpu", "cpu_to_device"
  uint64_t ops = 0, failed_ops = 0, bytes = 0;
  Histogram::Snapshot latency_ns;
  Histogram::Snapshot copy_ns;  // of that, copying, as the rank says
};

// Reads or writes of one SSD device, as commands of the core.
struct SsdTrafficSnapshot {
  uint64_t ops = 0, failed_ops = 0;
  uint64_t bytes = 0;              // of those that went well
  double bytes_per_s = 0;          // over the last seconds
  Histogram::Snapshot latency_ns;  // from the command to its result
};

struct SsdDeviceSnapshot {
  std::string directory;
  uint64_t quota_bytes = 0;
  TimeNs recovery_ns = 0;  // the device's opening took
  SsdDeviceStatus status;
  uint32_t open_segments = 0, retired_segments = 0, unreadable_segments = 0, rebuilt_segments = 0;
  uint64_t quarantined_slots = 0;
  uint64_t blocks = 0;  // committed
  SsdTrafficSnapshot read, write;
};

struct TraceSnapshot {
  bool enabled = false;
  std::string path;  // of the first file
  trace::TraceWriterStats writer;
  uint64_t open_records = 0;  // held until they are complete
  uint64_t unfinished = 0;    // handed on as they stood
  uint64_t skipped = 0;       // not recorded: too many requests at a time
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
  std::vector<SsdDeviceSnapshot> ssd_devices;
  TraceSnapshot trace;
};

}  // namespace flexkv
