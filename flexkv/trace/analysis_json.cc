#include "flexkv/trace/analysis_json.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <string>

namespace flexkv::trace {
namespace {

double Rounded(double value) { return std::round(value * 1e6) / 1e6; }
double Seconds(TimeNs ns) { return Rounded(static_cast<double>(ns) / 1e9); }
double Ms(uint64_t ns) { return Rounded(static_cast<double>(ns) / 1e6); }

std::string Hex(uint64_t id) {
  char text[24];
  std::snprintf(text, sizeof(text), "%016llx", static_cast<unsigned long long>(id));
  return text;
}

OrderedJson Blocks(uint64_t blocks) {
  return blocks == kInfiniteBlocks ? OrderedJson("inf") : OrderedJson(blocks);
}

OrderedJson TokensJson(const TokenCounts& tokens) {
  return {{"requests", tokens.requests},
          {"prompt_tokens", tokens.prompt_tokens},
          {"hit_rate", Rounded(tokens.hit_rate())},
          {"hit_rate_cpu", Rounded(tokens.RateOf(tokens.cpu_tokens))},
          {"hit_rate_ssd", Rounded(tokens.RateOf(tokens.ssd_tokens))},
          {"hit_rate_remote", Rounded(tokens.RateOf(tokens.remote_tokens))},
          {"engine_hit_rate", Rounded(tokens.RateOf(tokens.engine_tokens))},
          {"reachable_rate", Rounded(tokens.reachable_rate())}};
}

OrderedJson PercentilesJson(const LogHistogram& histogram) {
  return {{"count", histogram.count()},
          {"p50_ms", Ms(histogram.Percentile(0.5))},
          {"p90_ms", Ms(histogram.Percentile(0.9))},
          {"p99_ms", Ms(histogram.Percentile(0.99))},
          {"max_ms", Ms(histogram.max())}};
}

// Bars of a histogram of times, in quarters of a power of two.
OrderedJson BarsJson(const LogHistogram& histogram) {
  OrderedJson bars = OrderedJson::array();
  histogram.ForEachQuarter([&](uint64_t low, uint64_t high, uint64_t count) {
    bars.push_back({Ms(low), Ms(high), count});
  });
  return bars;
}

OrderedJson OctavesJson(const LogHistogram& histogram) {
  OrderedJson rows = OrderedJson::array();
  histogram.ForEachOctave([&](uint64_t low, uint64_t high, uint64_t count) {
    rows.push_back({low, high, count});
  });
  return rows;
}

OrderedJson LegsJson(const Analysis& a) {
  OrderedJson legs = OrderedJson::array();
  for (size_t i = 0; i < kNumLegs; ++i) {
    const Leg which = static_cast<Leg>(i);
    const LegStats& leg = a.leg(which);
    OrderedJson json = {{"leg", NameOf(which)},
                        {"title", TitleOf(which)},
                        {"target_ms", Ms(TargetNs(which))},
                        {"operations", leg.operations},
                        {"blocks", leg.blocks},
                        {"bytes", leg.bytes},
                        {"bytes_per_s", std::round(leg.bytes_per_s())},
                        {"late_operations", leg.late_operations},
                        {"per_block", PercentilesJson(leg.ns_per_block)}};
    json["histogram"] = BarsJson(leg.ns_per_block);
    legs.push_back(std::move(json));
  }
  return legs;
}

OrderedJson PrefixJson(const SharedPrefix& prefix) {
  return {{"id", Hex(prefix.id)},
          {"depth_blocks", prefix.depth_blocks},
          {"blocks", prefix.blocks},
          {"uses", prefix.uses},
          {"saved_tokens", prefix.saved_tokens},
          {"branches", prefix.branches},
          {"parent", prefix.parent}};
}

OrderedJson SlowestJson(const Analysis& a) {
  OrderedJson slowest = OrderedJson::array();
  for (const SlowOperation& slow : a.slowest) {
    slowest.push_back({{"record", slow.ordinal},
                       {"time_s", Seconds(slow.time_ns)},
                       {"kind", slow.kind == RequestKind::kPut ? "put" : "get"},
                       {"namespace", slow.ns < a.info.namespaces.size() ? a.info.namespaces[slow.ns]
                                                                        : std::string()},
                       {"prompt_tokens", slow.prompt_tokens},
                       {"blocks", slow.blocks},
                       {"total_ms", Ms(slow.total_ns())},
                       {"match_ms", Ms(slow.match_ns)},
                       {"queue_ms", Ms(slow.queue_ns)},
                       {"load_ms", Ms(slow.load_ns)},
                       {"ssd_ms", Ms(slow.ssd_ns)},
                       {"store_ms", Ms(slow.store_ns)}});
  }
  return slowest;
}

OrderedJson TraceJson(const Analysis& a) {
  OrderedJson bad = OrderedJson::array();
  for (const BadLine& line : a.info.first_bad_lines) {
    bad.push_back({{"file", line.file}, {"line", line.number}, {"reason", line.reason}});
  }
  return {{"format", NameOf(a.info.format)},
          {"lines", a.info.lines},
          {"bytes", a.info.bytes_read},
          {"bad_lines", a.info.bad_lines},
          {"first_bad_lines", bad},
          {"dropped_records", a.info.dropped_records},
          {"has_blocks", a.info.has_blocks},
          {"tokens_per_block", a.info.tokens_per_block},
          {"records", a.records},
          {"duration_s", Seconds(a.duration_ns)}};
}

OrderedJson ShapeJson(const Analysis& a) {
  OrderedJson top = OrderedJson::array(), tree = OrderedJson::array();
  for (const SharedPrefix& prefix : a.top_prefixes) top.push_back(PrefixJson(prefix));
  for (const SharedPrefix& prefix : a.tree) tree.push_back(PrefixJson(prefix));
  OrderedJson json = {
      {"block_accesses", a.block_accesses},
      {"unique_blocks", a.unique_blocks},
      {"roots", a.roots},
      {"never_read_blocks", a.never_read_blocks},
      {"never_read_share", a.unique_blocks == 0 ? 0
                                                : Rounded(static_cast<double>(a.never_read_blocks) /
                                                          static_cast<double>(a.unique_blocks))},
      {"sampled_one_in", 1ull << std::min<uint32_t>(63, a.sample_shift)},
      {"partial_block_tokens", a.partial_tokens},
      {"prompt_blocks_p50", a.prompt_blocks.Percentile(0.5)},
      {"prompt_blocks_p90", a.prompt_blocks.Percentile(0.9)},
      {"prompt_blocks_max", a.prompt_blocks.max()},
      {"top_prefixes_share", Rounded(a.top_share)}};
  json["prompt_blocks"] = OctavesJson(a.prompt_blocks);
  json["fan_out"] = OctavesJson(a.fan_out);
  json["top_prefixes"] = std::move(top);
  json["tree"] = std::move(tree);
  return json;
}

OrderedJson TimesJson(const Analysis& a) {
  return {{"match_ms", Rounded(a.match_ns.sum() / 1e6)},
          {"queue_ms", Rounded(a.queue_ns.sum() / 1e6)},
          {"load_ms", Ms(a.leg(Leg::kLoad).total_ns)},
          {"ssd_ms", Ms(a.leg(Leg::kSsd).total_ns)},
          {"store_ms", Ms(a.leg(Leg::kStore).total_ns)}};
}

OrderedJson RowsJson(const Analysis& a) {
  OrderedJson rows = OrderedJson::array();
  for (const TimeBucket& bucket : a.over_time) {
    OrderedJson row = TokensJson(bucket.tokens);
    row["time_s"] = Seconds(bucket.start_ns);
    row["evicted_blocks"] = bucket.evicted_blocks;
    rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace

OrderedJson CurveJson(const LruCurve& curve, size_t points) {
  OrderedJson rows = OrderedJson::array();
  if (curve.unique_blocks == 0) return rows;
  const double most = std::log(static_cast<double>(curve.unique_blocks));
  uint64_t before = 0;
  for (size_t i = 0; i < points; ++i) {
    const double share = points < 2 ? 1 : static_cast<double>(i) / static_cast<double>(points - 1);
    const uint64_t at =
        std::max<uint64_t>(before + 1, static_cast<uint64_t>(std::llround(std::exp(most * share))));
    if (at > curve.unique_blocks) break;
    rows.push_back({at, Rounded(curve.HitRateAt(at))});
    before = at;
  }
  return rows;
}

OrderedJson CellJson(const CellResult& result) {
  return {{"policy", result.cell.policy},
          {"cpu_blocks", Blocks(result.cell.cpu_blocks)},
          {"ssd_blocks", Blocks(result.cell.ssd_blocks)},
          {"hit_rate", result.hit_rate()},
          {"hit_rate_cpu", result.hit_rate_cpu()},
          {"hit_rate_ssd", result.hit_rate_ssd()},
          {"requests", result.requests},
          {"prompt_tokens", result.prompt_tokens}};
}

OrderedJson AnalysisJson(const Analysis& a, const std::vector<Advice>& advice) {
  OrderedJson json = {
      {"trace", TraceJson(a)},           {"measured", a.measured},
      {"hit_rate", Rounded(a.rate())},   {"reachable_rate", Rounded(a.reachable_rate())},
      {"verdict", WordsOf(a.verdict())}, {"total", TokensJson(a.total)}};
  OrderedJson namespaces = OrderedJson::array();
  for (size_t i = 0; i < a.by_namespace.size(); ++i) {
    OrderedJson row = TokensJson(a.by_namespace[i]);
    row["namespace"] = i < a.info.namespaces.size() ? a.info.namespaces[i] : std::string();
    namespaces.push_back(std::move(row));
  }
  json["namespaces"] = std::move(namespaces);
  json["bucket_s"] = Seconds(a.bucket_ns);
  json["over_time"] = RowsJson(a);
  json["legs"] = LegsJson(a);
  json["match"] = PercentilesJson(a.match_ns);
  json["queue"] = PercentilesJson(a.queue_ns);
  json["time_spent"] = TimesJson(a);
  json["results"] = {{"ok", a.results[0]},
                     {"partial", a.results[1]},
                     {"failed", a.results[2]},
                     {"refused", a.results[3]}};
  json["puts"] = {{"puts", a.puts.puts},
                  {"accepted_blocks", a.puts.accepted_blocks},
                  {"held_blocks", a.puts.held_blocks},
                  {"refused_blocks", a.puts.refused_blocks}};
  json["evicted_blocks"] = {{"cpu", a.evicted_blocks[static_cast<size_t>(Tier::kCpu)]},
                            {"ssd", a.evicted_blocks[static_cast<size_t>(Tier::kSsd)]}};
  json["slowest"] = SlowestJson(a);
  OrderedJson distance = OrderedJson::array();
  for (const ReuseDistance& row : a.reuse_distance) distance.push_back({row.to_blocks, row.hits});
  json["reuse_distance_blocks"] = std::move(distance);
  json["reuse_gap"] = PercentilesJson(a.reuse_gap_ns);
  json["prefixes"] = ShapeJson(a);
  json["curve"] = a.curve.has_value() ? CurveJson(*a.curve, 200) : OrderedJson::array();
  json["no_curve"] = a.no_curve;
  OrderedJson pieces = OrderedJson::array();
  for (const Advice& piece : advice) {
    pieces.push_back(
        {{"title", piece.title}, {"action", piece.action}, {"evidence", piece.evidence}});
  }
  json["advice"] = std::move(pieces);
  return json;
}

std::string Dump(const OrderedJson& json, int indent) {
  return json.dump(indent, ' ', true, OrderedJson::error_handler_t::replace);
}

}  // namespace flexkv::trace
