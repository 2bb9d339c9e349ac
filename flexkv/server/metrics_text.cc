#include <array>

#include "flexkv/server/metrics_server.h"
#include "flexkv/server/metrics_ssd.h"
#include "flexkv/server/status_device.h"

namespace flexkv {
namespace {

using Labels = PrometheusText::Labels;

struct CounterRow {
  const char* name;
  const char* help;
  uint64_t CacheCounters::*field;
};

constexpr std::array<CounterRow, 32> kCounters = {{
    {"flexkv_lookups_total", "Prefix lookups.", &CacheCounters::lookups},
    {"flexkv_lookup_blocks_total", "Blocks that lookups asked for.", &CacheCounters::lookup_blocks},
    {"flexkv_matched_blocks_total", "Blocks that lookups found ready.",
     &CacheCounters::matched_blocks},
    {"flexkv_puts_total", "Offers of new blocks.", &CacheCounters::puts},
    {"flexkv_put_blocks_offered_total", "Blocks offered.", &CacheCounters::put_blocks_offered},
    {"flexkv_put_blocks_held_total", "Offered blocks that were here or arriving already.",
     &CacheCounters::put_blocks_held},
    {"flexkv_put_blocks_accepted_total", "Offered blocks taken.",
     &CacheCounters::put_blocks_accepted},
    {"flexkv_put_blocks_refused_total", "Offered blocks refused.",
     &CacheCounters::put_blocks_refused},
    {"flexkv_put_blocks_ready_total", "Accepted blocks that arrived.",
     &CacheCounters::put_blocks_ready},
    {"flexkv_put_blocks_failed_total", "Accepted blocks that did not arrive.",
     &CacheCounters::put_blocks_failed},
    {"flexkv_loads_total", "Loads launched.", &CacheCounters::loads},
    {"flexkv_loads_refused_total", "Loads refused.", &CacheCounters::loads_refused},
    {"flexkv_load_blocks_total", "Blocks sent on their way to engines.",
     &CacheCounters::load_blocks},
    {"flexkv_load_blocks_failed_total", "Blocks that did not reach the engine.",
     &CacheCounters::load_blocks_failed},
    {"flexkv_evicted_blocks_total", "Blocks that gave way to others.",
     &CacheCounters::evicted_blocks},
    {"flexkv_leases_expired_total", "Leases that ran out unused.", &CacheCounters::leases_expired},
    {"flexkv_resets_total", "Namespace epochs begun.", &CacheCounters::resets},
    {"flexkv_gets_total", "Requests that engines gave an account of.", &CacheCounters::gets},
    {"flexkv_prompt_tokens_total", "Prompt tokens of those requests.",
     &CacheCounters::prompt_tokens},
    {"flexkv_engine_matched_tokens_total", "Prompt tokens in the engine's own cache.",
     &CacheCounters::engine_matched_tokens},
    {"flexkv_offered_tokens_total", "Prompt tokens offered beyond the engine's own.",
     &CacheCounters::offered_tokens},
    {"flexkv_taken_tokens_total", "Offered tokens that engines took.",
     &CacheCounters::taken_tokens},
    {"flexkv_loaded_tokens_total", "Taken tokens that arrived.", &CacheCounters::loaded_tokens},
    {"flexkv_failed_tokens_total", "Taken tokens that were recomputed after all.",
     &CacheCounters::failed_tokens},
    {"flexkv_load_bytes_total", "Bytes loaded into engines.", &CacheCounters::load_bytes},
    {"flexkv_store_bytes_total", "Bytes stored from engines.", &CacheCounters::store_bytes},
    {"flexkv_ssd_load_blocks_total", "Blocks read from SSD.", &CacheCounters::ssd_load_blocks},
    {"flexkv_ssd_read_failed_blocks_total", "Reads from SSD that failed: misses.",
     &CacheCounters::ssd_read_failed_blocks},
    {"flexkv_ssd_written_blocks_total", "Blocks written back to SSD.",
     &CacheCounters::ssd_written_blocks},
    {"flexkv_ssd_write_failed_blocks_total", "Writes back that failed.",
     &CacheCounters::ssd_write_failed_blocks},
    {"flexkv_ssd_skipped_blocks_total", "Blocks not written back.",
     &CacheCounters::ssd_skipped_blocks},
    {"flexkv_ssd_evicted_blocks_total", "Blocks that gave way to others on SSD.",
     &CacheCounters::ssd_evicted_blocks},
}};

void AddNamespaces(const DaemonSnapshot& snapshot, PrometheusText* page) {
  for (const CounterRow& row : kCounters) {
    page->Counter(row.name, row.help, snapshot.cache.counters.*row.field);
  }
  // Per namespace under names of their own, so that a sum over a name counts nothing twice.
  for (const CounterRow& row : kCounters) {
    const std::string name = std::string("flexkv_namespace_") + (row.name + sizeof("flexkv_") - 1);
    for (const NamespaceStatus& item : snapshot.cache.namespaces) {
      // Two namespaces may carry one label (same model, other layout): the number tells them apart.
      page->Counter(name, row.help, item.counters.*row.field,
                    {{"namespace", item.label}, {"id", std::to_string(item.id)}});
    }
  }
}

void AddMemory(const DaemonSnapshot& s, PrometheusText* page) {
  const auto gauge = [page](const char* name, const char* help, uint64_t value) {
    page->Gauge(name, help, static_cast<double>(value));
  };
  gauge("flexkv_cpu_budget_bytes", "Limit of the CPU tier.", s.cache.budget_bytes);
  gauge("flexkv_cpu_segment_bytes", "Memory taken for the CPU tier.", s.memory.bytes);
  gauge("flexkv_cpu_prefaulted_bytes", "Of that, populated.", s.memory.prefaulted_bytes);
  gauge("flexkv_cpu_locked_bytes", "Of that, locked.", s.memory.locked_bytes);
  gauge("flexkv_cpu_huge_bytes", "Of that, on huge pages.", s.memory.huge_bytes);
  gauge("flexkv_slots", "Slots in the memory taken.", s.cache.slots);
  gauge("flexkv_used_slots", "Slots in use.", s.cache.used_slots);
  gauge("flexkv_cached_blocks", "Blocks in the index.", s.cache.cached_blocks);
  gauge("flexkv_ready_blocks", "Complete blocks.", s.cache.ready_blocks);
  gauge("flexkv_pinned_blocks", "Blocks that cannot be evicted now.", s.cache.pinned_blocks);
  gauge("flexkv_index_bytes", "Memory of the index.", s.cache.index_bytes);
  gauge("flexkv_leases", "Leases held.", s.cache.leases);
  gauge("flexkv_ops_in_flight", "Copies under way.", s.cache.ops_in_flight);
  gauge("flexkv_requests", "Requests whose hash chain is kept.", s.cache.requests);
  gauge("flexkv_uptime_seconds", "Seconds since the daemon started.", s.uptime_s);
  gauge("flexkv_clients", "Attached clients.", s.clients);
}

void AddClients(const DaemonSnapshot& s, PrometheusText* page) {
  page->Counter("flexkv_clients_accepted_total", "Handshakes in order.", s.clients_accepted);
  page->Counter("flexkv_clients_rejected_total", "Handshakes turned away.", s.clients_rejected);
  page->Counter("flexkv_clients_refused_uid_total", "Handshakes turned away for their user id.",
                s.clients_refused_uid);
  page->Counter("flexkv_handshakes_timed_out_total", "Handshakes without a hello.",
                s.handshakes_timed_out);
  page->Counter("flexkv_clients_dropped_total", "Clients cut off.", s.clients_dropped);
}

void AddRoutes(const DaemonSnapshot& s, PrometheusText* page) {
  for (const RouteSnapshot& r : s.routes) {
    page->Counter("flexkv_transfer_ops_total", "Copies ended, one per rank.", r.ops,
                  {{"route", r.route}});
  }
  for (const RouteSnapshot& r : s.routes) {
    page->Counter("flexkv_transfer_failed_ops_total", "Copies failed.", r.failed_ops,
                  {{"route", r.route}});
  }
  for (const RouteSnapshot& r : s.routes) {
    page->Counter("flexkv_transfer_bytes_total", "Bytes copied.", r.bytes, {{"route", r.route}});
  }
  for (const RouteSnapshot& r : s.routes) {
    page->Histo("flexkv_transfer_latency_seconds", "From sending an op to hearing of its end.",
                r.latency_ns, 1e-9, {{"route", r.route}});
  }
  for (const RouteSnapshot& r : s.routes) {
    page->Histo("flexkv_transfer_copy_seconds", "Time that the rank spent copying.", r.copy_ns,
                1e-9, {{"route", r.route}});
  }
  page->Histo("flexkv_match_latency_seconds", "Time of a lookup in the daemon.", s.match_latency_ns,
              1e-9);
}

void AddTrace(const TraceSnapshot& t, PrometheusText* page) {
  page->Gauge("flexkv_trace_enabled", "1 when requests are recorded.", t.enabled ? 1 : 0);
  if (!t.enabled) return;
  page->Counter("flexkv_trace_records_total", "Records given to the writer.", t.writer.records);
  page->Counter("flexkv_trace_dropped_total", "Records the writer could not keep up with.",
                t.writer.dropped);
  page->Counter("flexkv_trace_lost_total", "Records that the disk did not take.", t.writer.lost);
  page->Counter("flexkv_trace_written_bytes_total", "Bytes of trace, as stored.",
                t.writer.written_bytes);
  page->Counter("flexkv_trace_files_total", "Files made.", t.writer.files);
  page->Counter("flexkv_trace_disk_errors_total", "Failures of the trace's disk.",
                t.writer.disk_errors);
  page->Counter("flexkv_trace_unfinished_total", "Records handed on as they stood.", t.unfinished);
  page->Counter("flexkv_trace_skipped_total", "Requests not recorded.", t.skipped);
  page->Gauge("flexkv_trace_open_records", "Records held until they are complete.",
              static_cast<double>(t.open_records));
}

void AddEngines(const DaemonSnapshot& s, PrometheusText* page) {
  struct Row {
    const char* name;
    const char* help;
    double (*value)(const EngineSnapshot&);
  };
  constexpr std::array<Row, 9> kRows = {{
      {"flexkv_engine_ready", "1 when scheduler and all ranks are attached.",
       [](const EngineSnapshot& e) { return e.ready ? 1.0 : 0.0; }},
      {"flexkv_engine_prefill_tokens_per_second", "Prefill rate as measured by the client.",
       [](const EngineSnapshot& e) { return e.stats.prefill_tokens_per_s; }},
      {"flexkv_engine_step_seconds", "Step time as measured by the client.",
       [](const EngineSnapshot& e) { return e.stats.step_ms / 1e3; }},
      {"flexkv_engine_load_tokens_per_second", "Load rate as measured by the client.",
       [](const EngineSnapshot& e) { return e.stats.load_tokens_per_s; }},
      {"flexkv_engine_min_load_tokens", "Shorter hits are not loaded.",
       [](const EngineSnapshot& e) { return static_cast<double>(e.stats.min_load_tokens); }},
      {"flexkv_engine_lookup_timeouts", "Lookups answered too late.",
       [](const EngineSnapshot& e) { return static_cast<double>(e.stats.lookup_timeouts); }},
      {"flexkv_engine_load_failures", "Loads that ended badly or too late.",
       [](const EngineSnapshot& e) { return static_cast<double>(e.stats.load_failures); }},
      {"flexkv_engine_breaker_opens", "Times the client stopped asking.",
       [](const EngineSnapshot& e) { return static_cast<double>(e.stats.breaker_opens); }},
      {"flexkv_engine_swallowed_errors", "Errors kept from the engine.",
       [](const EngineSnapshot& e) { return static_cast<double>(e.stats.swallowed_errors); }},
  }};
  for (const Row& row : kRows) {
    int number = 0;
    for (const EngineSnapshot& engine : s.engines) {
      page->Gauge(row.name, row.help, row.value(engine),
                  {{"engine", engine.label}, {"number", std::to_string(number++)}});
    }
  }
}

}  // namespace

std::string MetricsText(const DaemonSnapshot& snapshot) {
  PrometheusText page;
  page.Gauge("flexkv_build_info", "The daemon's version, as a label.", 1,
             {{"version", snapshot.version}});
  AddMemory(snapshot, &page);
  AddNamespaces(snapshot, &page);
  AddRoutes(snapshot, &page);
  AddSsdMetrics(snapshot, &page);
  AddTrace(snapshot.trace, &page);
  AddClients(snapshot, &page);
  AddEngines(snapshot, &page);
  AddDeviceMetrics(snapshot, &page);
  return page.text();
}

}  // namespace flexkv
