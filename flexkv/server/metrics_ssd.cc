#include "flexkv/server/metrics_ssd.h"

#include <array>
#include <string>

namespace flexkv {
namespace {

using Labels = PrometheusText::Labels;

struct TierRow {
  const char* name;
  const char* help;
  uint64_t (*value)(const SsdTierStatus&);
};

struct DeviceRow {
  const char* name;
  const char* help;
  uint64_t (*value)(const SsdDeviceSnapshot&);
};

struct TrafficRow {
  const char* name;
  const char* help;
  uint64_t SsdTrafficSnapshot::*field;
};

constexpr std::array<TierRow, 15> kTierGauges = {{
    {"flexkv_ssd_segments", "Files of blocks on SSD.",
     [](const SsdTierStatus& s) -> uint64_t { return s.segments; }},
    {"flexkv_ssd_closed_segments", "Of those, retired by a failed write and being emptied.",
     [](const SsdTierStatus& s) -> uint64_t { return s.closed_segments; }},
    {"flexkv_ssd_slots", "Blocks there is room for in the segments made so far.",
     [](const SsdTierStatus& s) { return s.slots; }},
    {"flexkv_ssd_used_slots", "Slots in use.", [](const SsdTierStatus& s) { return s.used_slots; }},
    {"flexkv_ssd_blocks", "Blocks in the index that are on SSD.",
     [](const SsdTierStatus& s) { return s.blocks; }},
    {"flexkv_ssd_copies_in_memory", "Of those, in the CPU tier too.",
     [](const SsdTierStatus& s) { return s.copies_in_memory; }},
    {"flexkv_ssd_writes_waiting", "Blocks to be written back.",
     [](const SsdTierStatus& s) { return s.writes_waiting; }},
    {"flexkv_ssd_writes_in_flight", "Blocks being written.",
     [](const SsdTierStatus& s) { return s.writes_in_flight; }},
    {"flexkv_ssd_reads_waiting", "Loads that wait for a device or for room in memory.",
     [](const SsdTierStatus& s) { return s.reads_waiting; }},
    {"flexkv_ssd_reads_in_flight", "Blocks being read.",
     [](const SsdTierStatus& s) { return s.reads_in_flight; }},
    {"flexkv_ssd_frees_in_flight", "Places being freed.",
     [](const SsdTierStatus& s) { return s.frees_in_flight; }},
    {"flexkv_ssd_recovered_blocks", "Blocks found at start.",
     [](const SsdTierStatus& s) { return s.recovered_blocks; }},
    {"flexkv_ssd_orphaned_blocks", "Of those, without a parent.",
     [](const SsdTierStatus& s) { return s.orphaned_blocks; }},
    {"flexkv_ssd_damaged_blocks", "Blocks that did not read back and are still in the index.",
     [](const SsdTierStatus& s) { return s.damaged_blocks; }},
    {"flexkv_ssd_out_of_space", "1 when a segment could not be made a moment ago.",
     [](const SsdTierStatus& s) -> uint64_t { return s.out_of_space ? 1 : 0; }},
}};

constexpr std::array<DeviceRow, 12> kDeviceGauges = {{
    {"flexkv_ssd_device_quota_bytes", "Limit of the device's files.",
     [](const SsdDeviceSnapshot& d) { return d.quota_bytes; }},
    {"flexkv_ssd_device_file_bytes", "Size of the device's files.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.file_bytes; }},
    {"flexkv_ssd_device_blocks", "Committed blocks.",
     [](const SsdDeviceSnapshot& d) { return d.blocks; }},
    {"flexkv_ssd_device_open_segments", "Segments that are read and written.",
     [](const SsdDeviceSnapshot& d) -> uint64_t { return d.open_segments; }},
    {"flexkv_ssd_device_retired_segments", "Segments that are only read, after a failed write.",
     [](const SsdDeviceSnapshot& d) -> uint64_t { return d.retired_segments; }},
    {"flexkv_ssd_device_unreadable_segments", "Segments of which nothing is served.",
     [](const SsdDeviceSnapshot& d) -> uint64_t { return d.unreadable_segments; }},
    {"flexkv_ssd_device_quarantined_slots", "Places never written again.",
     [](const SsdDeviceSnapshot& d) { return d.quarantined_slots; }},
    {"flexkv_ssd_device_commands", "Commands under way.",
     [](const SsdDeviceSnapshot& d) -> uint64_t { return d.status.commands; }},
    {"flexkv_ssd_device_inflight_bytes", "Bytes of transfers under way.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.inflight_bytes; }},
    {"flexkv_ssd_device_registered_bytes", "Arena memory registered with the kernel.",
     [](const SsdDeviceSnapshot& d) { return d.status.registered_bytes; }},
    {"flexkv_ssd_device_direct", "1 when transfers bypass the page cache.",
     [](const SsdDeviceSnapshot& d) -> uint64_t { return d.status.direct ? 1 : 0; }},
    {"flexkv_ssd_device_recovered_blocks", "Blocks found at start.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.recovered_blocks; }},
}};

constexpr std::array<DeviceRow, 10> kDeviceCounters = {{
    {"flexkv_ssd_device_corrupt_blocks_total", "Blocks whose bytes did not verify.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.corrupt_blocks; }},
    {"flexkv_ssd_device_read_errors_total", "Read errors of the device.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.read_errors; }},
    {"flexkv_ssd_device_write_errors_total", "Write errors of the device.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.write_errors; }},
    {"flexkv_ssd_device_sync_errors_total", "Failed syncs of the device.",
     [](const SsdDeviceSnapshot& d) { return d.status.store.sync_errors; }},
    {"flexkv_ssd_device_unregistered_transfers_total", "Transfers of memory not registered.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.unregistered; }},
    {"flexkv_ssd_device_read_transfers_total", "Read transfers, logs included.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.reads; }},
    {"flexkv_ssd_device_write_transfers_total", "Write transfers, logs included.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.writes; }},
    {"flexkv_ssd_device_syncs_total", "Syncs.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.syncs; }},
    {"flexkv_ssd_device_transferred_read_bytes_total", "Bytes read, logs included.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.read_bytes; }},
    {"flexkv_ssd_device_transferred_written_bytes_total", "Bytes written, logs included.",
     [](const SsdDeviceSnapshot& d) { return d.status.disk.written_bytes; }},
}};

constexpr std::array<TrafficRow, 3> kTraffic = {{
    {"flexkv_ssd_ops_total", "Blocks read or written.", &SsdTrafficSnapshot::ops},
    {"flexkv_ssd_failed_ops_total", "Of those, failed.", &SsdTrafficSnapshot::failed_ops},
    {"flexkv_ssd_bytes_total", "Bytes of blocks read or written.", &SsdTrafficSnapshot::bytes},
}};

// For every device and both directions.
template <typename Function>
void ForEachTraffic(const DaemonSnapshot& snapshot, Function function) {
  for (const SsdDeviceSnapshot& device : snapshot.ssd_devices) {
    function(device.read, Labels{{"device", device.directory}, {"kind", "read"}});
    function(device.write, Labels{{"device", device.directory}, {"kind", "write"}});
  }
}

}  // namespace

void AddSsdMetrics(const DaemonSnapshot& snapshot, PrometheusText* page) {
  page->Gauge("flexkv_ssd_devices", "Devices of the SSD tier.",
              static_cast<double>(snapshot.ssd_devices.size()));
  if (snapshot.ssd_devices.empty()) return;
  for (const TierRow& row : kTierGauges) {
    page->Gauge(row.name, row.help, static_cast<double>(row.value(snapshot.cache.ssd)));
  }
  for (const DeviceRow& row : kDeviceGauges) {
    for (const SsdDeviceSnapshot& device : snapshot.ssd_devices) {
      page->Gauge(row.name, row.help, static_cast<double>(row.value(device)),
                  {{"device", device.directory}});
    }
  }
  for (const DeviceRow& row : kDeviceCounters) {
    for (const SsdDeviceSnapshot& device : snapshot.ssd_devices) {
      page->Counter(row.name, row.help, row.value(device), {{"device", device.directory}});
    }
  }
  for (const TrafficRow& row : kTraffic) {
    ForEachTraffic(snapshot, [&](const SsdTrafficSnapshot& traffic, const Labels& labels) {
      page->Counter(row.name, row.help, traffic.*row.field, labels);
    });
  }
  ForEachTraffic(snapshot, [&](const SsdTrafficSnapshot& traffic, const Labels& labels) {
    page->Gauge("flexkv_ssd_bytes_per_second", "Rate over the last seconds.", traffic.bytes_per_s,
                labels);
  });
  ForEachTraffic(snapshot, [&](const SsdTrafficSnapshot& traffic, const Labels& labels) {
    page->Histo("flexkv_ssd_latency_seconds", "From a command to its result.", traffic.latency_ns,
                1e-9, labels);
  });
}

}  // namespace flexkv
