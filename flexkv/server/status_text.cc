#include "flexkv/server/status_text.h"

#include "absl/strings/str_format.h"
#include "flexkv/base/units.h"
#include "flexkv/server/status_device.h"

namespace flexkv {
namespace {

using admin::v1::Counters;
using admin::v1::StatusReply;

std::string Percent(uint64_t part, uint64_t whole) {
  if (whole == 0) return "-";
  return absl::StrFormat("%.1f %%", 100.0 * static_cast<double>(part) / static_cast<double>(whole));
}

std::string Uptime(uint64_t seconds) {
  if (seconds < 60) return absl::StrFormat("%d s", seconds);
  if (seconds < 3600) return absl::StrFormat("%d min %d s", seconds / 60, seconds % 60);
  return absl::StrFormat("%d h %d min", seconds / 3600, seconds / 60 % 60);
}

// Judgement of a hit rate in the words of the manual.
const char* Verdict(uint64_t taken, uint64_t prompt) {
  if (prompt == 0) return "no requests yet";
  const double rate = static_cast<double>(taken) / static_cast<double>(prompt);
  return rate >= 0.8 ? "excellent" : rate >= 0.5 ? "good" : "needs work";
}

void AddMemory(const StatusReply& status, std::string* out) {
  const admin::v1::Memory& m = status.memory();
  absl::StrAppendFormat(out, "memory      %s of %s taken in %d segment(s), pages: %s\n",
                        FormatBytes(m.segment_bytes()), FormatBytes(m.budget_bytes()), m.segments(),
                        m.page_kind());
  absl::StrAppendFormat(
      out, "            populated %s%s, huge %s, locked %s\n",
      Percent(m.prefaulted_bytes(), m.segment_bytes()), m.prefault() ? "" : " (prefault is off)",
      Percent(m.huge_bytes(), m.segment_bytes()), Percent(m.locked_bytes(), m.segment_bytes()));
  absl::StrAppendFormat(out,
                        "blocks      %d cached (%d ready, %d pinned) in %d of %d slots, index %s\n",
                        m.cached_blocks(), m.ready_blocks(), m.pinned_blocks(), m.used_slots(),
                        m.slots(), FormatBytes(m.index_bytes()));
}

void AddCounters(const Counters& c, const char* indent, std::string* out) {
  absl::StrAppendFormat(
      out,
      "%shit rate    %s of %d prompt tokens taken from here (%s); the engine's own cache: %s\n",
      indent, Percent(c.taken_tokens(), c.prompt_tokens()), c.prompt_tokens(),
      Verdict(c.taken_tokens(), c.prompt_tokens()),
      Percent(c.engine_matched_tokens(), c.prompt_tokens()));
  absl::StrAppendFormat(out, "%stokens      offered %d, taken %d, loaded %d, failed %d\n", indent,
                        c.offered_tokens(), c.taken_tokens(), c.loaded_tokens(), c.failed_tokens());
  absl::StrAppendFormat(out, "%slookups     %d, blocks asked %d, matched %d\n", indent, c.lookups(),
                        c.lookup_blocks(), c.matched_blocks());
  absl::StrAppendFormat(out, "%sloads       %d (%d refused), blocks %d (%d failed), %s\n", indent,
                        c.loads(), c.loads_refused(), c.load_blocks(), c.load_blocks_failed(),
                        FormatBytes(c.load_bytes()));
  absl::StrAppendFormat(out,
                        "%sputs        %d, blocks offered %d, held %d, accepted %d, refused %d, "
                        "ready %d, failed %d, %s\n",
                        indent, c.puts(), c.put_blocks_offered(), c.put_blocks_held(),
                        c.put_blocks_accepted(), c.put_blocks_refused(), c.put_blocks_ready(),
                        c.put_blocks_failed(), FormatBytes(c.store_bytes()));
  absl::StrAppendFormat(out, "%sevicted     %d blocks; leases expired %d; resets %d\n", indent,
                        c.evicted_blocks(), c.leases_expired(), c.resets());
}

// Of the cache's lookups that found blocks, what came from SSD is in "loaded"; per device below.
void AddSsd(const StatusReply& status, std::string* out) {
  const admin::v1::SsdTier& t = status.ssd();
  const Counters& c = status.counters();
  uint64_t quota = 0, files = 0;
  for (const admin::v1::SsdDevice& d : status.ssd_devices()) {
    quota += d.quota_bytes();
    files += d.file_bytes();
  }
  absl::StrAppendFormat(
      out, "ssd         %s of %s taken on %d device(s) in %d segment(s)%s%s\n", FormatBytes(files),
      FormatBytes(quota), status.ssd_devices_size(), t.segments(),
      t.closed_segments() == 0 ? std::string()
                               : absl::StrFormat(", %d of them retired", t.closed_segments()),
      t.out_of_space() ? "; NO SPACE for more" : "");
  absl::StrAppendFormat(
      out,
      "            %d blocks (%d in memory too, %d damaged) in %d of %d slots; recovered %d, "
      "orphaned %d\n",
      t.blocks(), t.copies_in_memory(), t.damaged_blocks(), t.used_slots(), t.slots(),
      t.recovered_blocks(), t.orphaned_blocks());
  absl::StrAppendFormat(
      out,
      "            loaded %d blocks (%d failed), written %d (%d failed, %d skipped), evicted %d\n",
      c.ssd_load_blocks(), c.ssd_read_failed_blocks(), c.ssd_written_blocks(),
      c.ssd_write_failed_blocks(), c.ssd_skipped_blocks(), c.ssd_evicted_blocks());
  absl::StrAppendFormat(out,
                        "            queue: reads %d waiting, %d under way; writes %d waiting, %d "
                        "under way; frees %d\n",
                        t.reads_waiting(), t.reads_in_flight(), t.writes_waiting(),
                        t.writes_in_flight(), t.frees_in_flight());
}

void AddSsdTraffic(const char* name, const admin::v1::SsdTraffic& traffic, std::string* out) {
  absl::StrAppendFormat(
      out, "            %s %d blocks (%d failed), %s, %s/s lately, p50 %s, p99 %s\n", name,
      traffic.ops(), traffic.failed_ops(), FormatBytes(traffic.bytes()),
      FormatBytes(static_cast<uint64_t>(traffic.bytes_per_s())),
      FormatDuration(traffic.latency().p50_ns()), FormatDuration(traffic.latency().p99_ns()));
}

void AddSsdDevices(const StatusReply& status, std::string* out) {
  for (const admin::v1::SsdDevice& d : status.ssd_devices()) {
    absl::StrAppendFormat(out, "\nssd device  %s: %s, %s, %s of %s, %d blocks\n", d.directory(),
                          d.backend(), d.direct() ? "direct I/O" : "buffered I/O",
                          FormatBytes(d.file_bytes()), FormatBytes(d.quota_bytes()), d.blocks());
    AddSsdTraffic("reads", d.reads(), out);
    AddSsdTraffic("writes", d.writes(), out);
    absl::StrAppendFormat(out,
                          "            segments: %d open, %d retired, %d unreadable, %d rebuilt; "
                          "quarantined slots %d\n",
                          d.open_segments(), d.retired_segments(), d.unreadable_segments(),
                          d.rebuilt_segments(), d.quarantined_slots());
    absl::StrAppendFormat(out,
                          "            errors: corrupt blocks %d, read %d, write %d, sync %d; %d "
                          "commands under way\n",
                          d.corrupt_blocks(), d.read_errors(), d.write_errors(), d.sync_errors(),
                          d.commands());
    absl::StrAppendFormat(out,
                          "            recovered %d blocks in %s (%d records dropped); memory "
                          "registered %s of %s\n",
                          d.recovered_blocks(), FormatDuration(d.recovery_ns()),
                          d.dropped_records(), FormatBytes(d.registered_bytes()),
                          FormatBytes(d.memory_bytes()));
  }
}

void AddLatencies(const StatusReply& status, std::string* out) {
  absl::StrAppendFormat(out, "match       p50 %s, p99 %s (%d lookups)\n",
                        FormatDuration(status.match_latency().p50_ns()),
                        FormatDuration(status.match_latency().p99_ns()),
                        status.match_latency().count());
  for (const admin::v1::Route& route : status.routes()) {
    absl::StrAppendFormat(
        out, "%-11s %d ops (%d failed), %s, p50 %s, p99 %s; copying p50 %s, p99 %s\n",
        route.name() == "device_to_cpu" ? "stores" : "loads", route.ops(), route.failed_ops(),
        FormatBytes(route.bytes()), FormatDuration(route.latency().p50_ns()),
        FormatDuration(route.latency().p99_ns()), FormatDuration(route.copy().p50_ns()),
        FormatDuration(route.copy().p99_ns()));
  }
}

void AddTrace(const admin::v1::Trace& t, std::string* out) {
  absl::StrAppendFormat(out, "trace       %s: %d records, %s in %d file(s); %d held\n", t.path(),
                        t.records(), FormatBytes(t.written_bytes()), t.files(), t.open_records());
  if (t.dropped() + t.lost() + t.disk_errors() + t.unfinished() + t.skipped() == 0) return;
  absl::StrAppendFormat(out,
                        "            NOT COMPLETE: %d dropped, %d lost in %d disk error(s), %d "
                        "unfinished, %d requests skipped\n",
                        t.dropped(), t.lost(), t.disk_errors(), t.unfinished(), t.skipped());
}

void AddEngines(const StatusReply& status, std::string* out) {
  for (const admin::v1::Engine& e : status.engines()) {
    absl::StrAppendFormat(out, "\nengine      %s: %s, %d of %d rank(s), scheduler pid %d\n",
                          e.label(),
                          e.ready() ? "ready for " + Uptime(e.attached_for_s()) : "not complete",
                          e.ranks_present(), e.world_size(), e.scheduler_pid());
    absl::StrAppendFormat(out,
                          "            block of %d tokens, %s; prefill %.0f tokens/s, step %.1f "
                          "ms, load %.0f tokens/s, least load %d tokens\n",
                          e.tokens_per_block(), FormatBytes(e.block_bytes()),
                          e.prefill_tokens_per_s(), e.step_ms(), e.load_tokens_per_s(),
                          e.min_load_tokens());
    absl::StrAppendFormat(out,
                          "            late lookups %d, failed loads %d, breaker opened %d, errors "
                          "kept from the engine %d\n",
                          e.lookup_timeouts(), e.load_failures(), e.breaker_opens(),
                          e.swallowed_errors());
    AppendDevices(e, out);
  }
}

}  // namespace

std::string StatusText(const StatusReply& status) {
  std::string out = absl::StrFormat("flexkvd %s  pid %d, up %s, boot id %016x, %s\n",
                                    status.version(), status.pid(), Uptime(status.uptime_s()),
                                    status.boot_id(), status.socket_dir());
  AddMemory(status, &out);
  if (status.ssd_devices_size() > 0) AddSsd(status, &out);
  AddCounters(status.counters(), "", &out);
  AddLatencies(status, &out);
  if (status.trace().enabled()) AddTrace(status.trace(), &out);
  absl::StrAppendFormat(&out, "now         %d leases, %d copies under way, %d requests known\n",
                        status.leases(), status.ops_in_flight(), status.requests());
  absl::StrAppendFormat(&out,
                        "clients     %d attached; %d accepted, %d rejected (%d for their uid), %d "
                        "without hello, %d cut off\n",
                        status.clients(), status.clients_accepted(), status.clients_rejected(),
                        status.clients_refused_uid(), status.handshakes_timed_out(),
                        status.clients_dropped());
  for (const admin::v1::Namespace& n : status.namespaces()) {
    absl::StrAppendFormat(
        &out, "\nnamespace   %s (epoch %d): %d engine(s), block of %d tokens, %s\n", n.label(),
        n.epoch(), n.engines(), n.tokens_per_block(), FormatBytes(n.block_bytes()));
    AddCounters(n.counters(), "  ", &out);
  }
  AddSsdDevices(status, &out);
  AddEngines(status, &out);
  return out;
}

}  // namespace flexkv
