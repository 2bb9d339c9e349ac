#include "flexkv/server/status_proto.h"

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
  for (const EngineSnapshot& item : snapshot.engines) Fill(item, reply->add_engines());
  Fill(snapshot.match_latency_ns, reply->mutable_match_latency());
  for (const RouteSnapshot& item : snapshot.routes) {
    admin::v1::Route* route = reply->add_routes();
    route->set_name(item.route);
    route->set_ops(item.ops);
    route->set_failed_ops(item.failed_ops);
    route->set_bytes(item.bytes);
    Fill(item.latency_ns, route->mutable_latency());
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
}

}  // namespace flexkv
