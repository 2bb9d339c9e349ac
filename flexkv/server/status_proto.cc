#include "flexkv/server/status_proto.h"

#include "flexkv/server/config_ssd.h"
#include "flexkv/server/status_device.h"

namespace flexkv {
namespace {

void Fill(const CacheCounters& from, admin::v1::Counters* to) {
  to->set_lookups(from.lookups);
  to->set_lookup_blocks(from.lookup_blocks);
  to->set_matched_blocks(from.matched_blocks);
  to->set_puts(from.puts);
  to->set_put_blocks_offered(from.put_blocks_offered);
  to->set_put_blocks_held(from.put_blocks_held);
  to->set_put_blocks_accepted(from.put_blocks_accepted);
  to->set_put_blocks_refused(from.put_blocks_refused);
  to->set_put_blocks_ready(from.put_blocks_ready);
  to->set_put_blocks_failed(from.put_blocks_failed);
  to->set_loads(from.loads);
  to->set_loads_refused(from.loads_refused);
  to->set_load_blocks(from.load_blocks);
  to->set_load_blocks_failed(from.load_blocks_failed);
  to->set_evicted_blocks(from.evicted_blocks);
  to->set_leases_expired(from.leases_expired);
  to->set_resets(from.resets);
  to->set_gets(from.gets);
  to->set_prompt_tokens(from.prompt_tokens);
  to->set_engine_matched_tokens(from.engine_matched_tokens);
  to->set_offered_tokens(from.offered_tokens);
  to->set_taken_tokens(from.taken_tokens);
  to->set_loaded_tokens(from.loaded_tokens);
  to->set_failed_tokens(from.failed_tokens);
  to->set_load_bytes(from.load_bytes);
  to->set_store_bytes(from.store_bytes);
  to->set_ssd_load_blocks(from.ssd_load_blocks);
  to->set_ssd_read_failed_blocks(from.ssd_read_failed_blocks);
  to->set_ssd_written_blocks(from.ssd_written_blocks);
  to->set_ssd_write_failed_blocks(from.ssd_write_failed_blocks);
  to->set_ssd_skipped_blocks(from.ssd_skipped_blocks);
  to->set_ssd_evicted_blocks(from.ssd_evicted_blocks);
}

void Fill(const Histogram::Snapshot& from, admin::v1::Latency* to) {
  to->set_count(from.count);
  to->set_p50_ns(from.Quantile(0.5));
  to->set_p99_ns(from.Quantile(0.99));
  to->set_sum_ns(from.sum);
}

void Fill(const DaemonSnapshot& from, admin::v1::Memory* to) {
  to->set_budget_bytes(from.cache.budget_bytes);
  to->set_segment_bytes(from.memory.bytes);
  to->set_prefaulted_bytes(from.memory.prefaulted_bytes);
  to->set_locked_bytes(from.memory.locked_bytes);
  to->set_huge_bytes(from.memory.huge_bytes);
  to->set_segments(from.memory.segments);
  to->set_page_kind(PageKindName(from.memory.page_kind));
  to->set_slots(from.cache.slots);
  to->set_used_slots(from.cache.used_slots);
  to->set_cached_blocks(from.cache.cached_blocks);
  to->set_ready_blocks(from.cache.ready_blocks);
  to->set_pinned_blocks(from.cache.pinned_blocks);
  to->set_index_bytes(from.cache.index_bytes);
  to->set_prefault(from.prefault);
}

void Fill(const NamespaceStatus& from, admin::v1::Namespace* to) {
  to->set_label(from.label);
  to->set_id(from.id);
  to->set_epoch(from.epoch);
  to->set_engines(from.engines);
  to->set_tokens_per_block(from.tokens_per_block);
  to->set_block_bytes(from.block_bytes);
  Fill(from.counters, to->mutable_counters());
}

void Fill(const EngineSnapshot& from, admin::v1::Engine* to) {
  to->set_label(from.label);
  to->set_ready(from.ready);
  to->set_world_size(from.world_size);
  to->set_ranks_present(from.ranks_present);
  to->set_tokens_per_block(from.tokens_per_block);
  to->set_block_bytes(from.block_bytes);
  to->set_attached_for_s(from.attached_for_s);
  to->set_scheduler_pid(from.scheduler_pid);
  to->set_prefill_tokens_per_s(from.stats.prefill_tokens_per_s);
  to->set_step_ms(from.stats.step_ms);
  to->set_load_tokens_per_s(from.stats.load_tokens_per_s);
  to->set_min_load_tokens(from.stats.min_load_tokens);
  to->set_lookup_timeouts(from.stats.lookup_timeouts);
  to->set_load_failures(from.stats.load_failures);
  to->set_breaker_opens(from.stats.breaker_opens);
  to->set_swallowed_errors(from.stats.swallowed_errors);
}

void Fill(const SsdTierStatus& from, admin::v1::SsdTier* to) {
  to->set_devices(from.devices);
  to->set_segments(from.segments);
  to->set_closed_segments(from.closed_segments);
  to->set_slots(from.slots);
  to->set_used_slots(from.used_slots);
  to->set_blocks(from.blocks);
  to->set_copies_in_memory(from.copies_in_memory);
  to->set_writes_waiting(from.writes_waiting);
  to->set_writes_in_flight(from.writes_in_flight);
  to->set_reads_waiting(from.reads_waiting);
  to->set_reads_in_flight(from.reads_in_flight);
  to->set_frees_in_flight(from.frees_in_flight);
  to->set_recovered_blocks(from.recovered_blocks);
  to->set_orphaned_blocks(from.orphaned_blocks);
  to->set_out_of_space(from.out_of_space);
  to->set_damaged_blocks(from.damaged_blocks);
}

void Fill(const SsdTrafficSnapshot& from, admin::v1::SsdTraffic* to) {
  to->set_ops(from.ops);
  to->set_failed_ops(from.failed_ops);
  to->set_bytes(from.bytes);
  to->set_bytes_per_s(from.bytes_per_s);
  Fill(from.latency_ns, to->mutable_latency());
}

void Fill(const SsdStoreStats& from, admin::v1::SsdDevice* to) {
  to->set_file_bytes(from.file_bytes);
  to->set_inflight_bytes(from.inflight_bytes);
  to->set_corrupt_blocks(from.corrupt_blocks);
  to->set_read_errors(from.read_errors);
  to->set_write_errors(from.write_errors);
  to->set_sync_errors(from.sync_errors);
  to->set_recovered_blocks(from.recovered_blocks);
  to->set_dropped_records(from.dropped_records);
}

void Fill(const SsdDeviceSnapshot& from, admin::v1::SsdDevice* to) {
  to->set_directory(from.directory);
  to->set_backend(SsdBackendName(from.status.backend));
  to->set_direct(from.status.direct);
  to->set_quota_bytes(from.quota_bytes);
  to->set_blocks(from.blocks);
  to->set_open_segments(from.open_segments);
  to->set_retired_segments(from.retired_segments);
  to->set_unreadable_segments(from.unreadable_segments);
  to->set_rebuilt_segments(from.rebuilt_segments);
  to->set_quarantined_slots(from.quarantined_slots);
  Fill(from.read, to->mutable_reads());
  Fill(from.write, to->mutable_writes());
  to->set_commands(from.status.commands);
  Fill(from.status.store, to);
  to->set_recovery_ns(from.recovery_ns);
  to->set_memory_bytes(from.status.memory_bytes);
  to->set_registered_bytes(from.status.registered_bytes);
  to->set_unregistered_transfers(from.status.disk.unregistered);
  to->set_device_reads(from.status.disk.reads);
  to->set_device_writes(from.status.disk.writes);
  to->set_device_syncs(from.status.disk.syncs);
  to->set_device_read_bytes(from.status.disk.read_bytes);
  to->set_device_written_bytes(from.status.disk.written_bytes);
}

void Fill(const TraceSnapshot& from, admin::v1::Trace* to) {
  to->set_enabled(from.enabled);
  to->set_path(from.path);
  to->set_records(from.writer.records);
  to->set_dropped(from.writer.dropped);
  to->set_lost(from.writer.lost);
  to->set_written_bytes(from.writer.written_bytes);
  to->set_files(from.writer.files);
  to->set_disk_errors(from.writer.disk_errors);
  to->set_open_records(from.open_records);
  to->set_unfinished(from.unfinished);
  to->set_skipped(from.skipped);
}

}  // namespace

const char* PageKindName(PageKind kind) {
  switch (kind) {
    case PageKind::k4KiB:
      return "4 KiB";
    case PageKind::kTransparentHuge:
      return "transparent huge";
    case PageKind::kHugetlb:
      return "hugetlb";
    case PageKind::kUnknown:
      break;
  }
  return "unknown";
}

void ToProto(const DaemonSnapshot& snapshot, admin::v1::StatusReply* reply) {
  reply->set_version(snapshot.version);
  reply->set_boot_id(snapshot.boot_id);
  reply->set_pid(snapshot.pid);
  reply->set_uptime_s(snapshot.uptime_s);
  reply->set_socket_dir(snapshot.socket_dir);
  Fill(snapshot, reply->mutable_memory());
  Fill(snapshot.cache.counters, reply->mutable_counters());
  for (const NamespaceStatus& item : snapshot.cache.namespaces) Fill(item, reply->add_namespaces());
  for (const EngineSnapshot& item : snapshot.engines) {
    admin::v1::Engine* engine = reply->add_engines();
    Fill(item, engine);
    AddDevices(item, engine);
  }
  Fill(snapshot.match_latency_ns, reply->mutable_match_latency());
  for (const RouteSnapshot& item : snapshot.routes) {
    admin::v1::Route* route = reply->add_routes();
    route->set_name(item.route);
    route->set_ops(item.ops);
    route->set_failed_ops(item.failed_ops);
    route->set_bytes(item.bytes);
    Fill(item.latency_ns, route->mutable_latency());
    Fill(item.copy_ns, route->mutable_copy());
  }
  reply->set_clients(snapshot.clients);
  reply->set_clients_accepted(snapshot.clients_accepted);
  reply->set_clients_rejected(snapshot.clients_rejected);
  reply->set_clients_refused_uid(snapshot.clients_refused_uid);
  reply->set_handshakes_timed_out(snapshot.handshakes_timed_out);
  reply->set_clients_dropped(snapshot.clients_dropped);
  reply->set_leases(snapshot.cache.leases);
  reply->set_ops_in_flight(snapshot.cache.ops_in_flight);
  reply->set_requests(snapshot.cache.requests);
  Fill(snapshot.cache.ssd, reply->mutable_ssd());
  for (const SsdDeviceSnapshot& item : snapshot.ssd_devices) Fill(item, reply->add_ssd_devices());
  Fill(snapshot.trace, reply->mutable_trace());
}

}  // namespace flexkv
