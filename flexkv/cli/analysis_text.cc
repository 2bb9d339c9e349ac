#include "flexkv/cli/analysis_text.h"

#include <algorithm>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/text_table.h"

namespace flexkv::cli {
namespace {

using trace::Analysis;
using trace::Grouped;
using trace::Leg;
using trace::LegStats;
using trace::Percent;

constexpr size_t kTimeRows = 12;
constexpr size_t kNamespaceRows = 10;

std::string Heading(const std::string& text) { return absl::StrCat("\n", text, "\n"); }

std::string Span(TimeNs ns) {
  const double seconds = static_cast<double>(ns) / 1e9;
  char text[48];
  if (seconds < 120) {
    std::snprintf(text, sizeof(text), "%.1f s", seconds);
  } else if (seconds < 7200) {
    std::snprintf(text, sizeof(text), "%.1f min", seconds / 60);
  } else {
    std::snprintf(text, sizeof(text), "%.1f h", seconds / 3600);
  }
  return text;
}

std::string HeadText(const Analysis& a) {
  std::string text =
      absl::StrCat("Trace: ", NameOf(a.info.format), ", ", Grouped(a.total.requests), " lookups, ",
                   Grouped(a.total.prompt_tokens), " prompt tokens, ", Span(a.duration_ns),
                   ", blocks of ", a.info.tokens_per_block, " tokens\n");
  absl::StrAppend(&text, BadLinesText(a.info));
  if (a.info.dropped_records != 0) {
    absl::StrAppend(&text, Grouped(a.info.dropped_records),
                    " records were dropped when it was written\n");
  }
  return text;
}

std::string RateText(const Analysis& a) {
  if (a.total.prompt_tokens == 0) return Heading("Hit rate: no prompt tokens in this trace");
  std::string text;
  if (a.measured) {
    text = Heading(absl::StrCat("Hit rate ", Percent(a.rate()), ": ", WordsOf(a.verdict())));
    absl::StrAppend(&text, "  in memory ", Percent(a.total.RateOf(a.total.cpu_tokens)), ", on SSD ",
                    Percent(a.total.RateOf(a.total.ssd_tokens)), ", remote ",
                    Percent(a.total.RateOf(a.total.remote_tokens)), "; the engine's own cache ",
                    Percent(a.total.RateOf(a.total.engine_tokens)), "\n");
  } else {
    text = Heading(absl::StrCat("Hit rate that can be reached: ", Percent(a.rate()), ": ",
                                WordsOf(a.verdict())));
    text += "  what a cache really found is not in this format\n";
  }
  if (!a.info.has_blocks) {
    return text + "  recorded without block hashes: what could be reached is not known\n";
  }
  absl::StrAppend(&text, "  an infinite cache reaches ", Percent(a.reachable_rate()), "\n");
  return text;
}

std::string CurveText(const Analysis& a) {
  if (!a.curve.has_value()) {
    return a.info.has_blocks ? absl::StrCat("  no curve: ", Printable(a.no_curve, 200), "\n") : "";
  }
  const uint64_t enough = SufficientBlocks(*a.curve);
  if (enough == 0) return "";
  std::string text = Heading("LRU by capacity (exact)");
  TextTable table({"blocks", "hit rate", ""});
  for (const uint64_t share : {64, 16, 4, 2, 1}) {
    const uint64_t blocks = enough / share;
    if (blocks == 0) continue;
    table.Add({Grouped(blocks), Percent(a.curve->HitRateAt(blocks)),
               share == 1 ? "more cannot help: within 0.5 points of infinite" : ""});
  }
  return text + table.Text(2);
}

std::string NamespacesText(const Analysis& a) {
  if (a.by_namespace.size() < 2) return "";
  std::vector<size_t> order(a.by_namespace.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
    return a.by_namespace[x].prompt_tokens > a.by_namespace[y].prompt_tokens;
  });
  TextTable table({"namespace", "lookups", "prompt tokens", "hit rate", "reachable"});
  for (size_t i = 0; i < std::min(order.size(), kNamespaceRows); ++i) {
    const trace::TokenCounts& row = a.by_namespace[order[i]];
    table.Add({order[i] < a.info.namespaces.size() ? Printable(a.info.namespaces[order[i]]) : "?",
               Grouped(row.requests), Grouped(row.prompt_tokens),
               a.measured ? Percent(row.hit_rate()) : "-",
               a.info.has_blocks ? Percent(row.reachable_rate()) : "-"});
  }
  std::string text = Heading("By namespace") + table.Text(2);
  if (order.size() > kNamespaceRows) {
    absl::StrAppend(&text, "  and ", order.size() - kNamespaceRows, " more\n");
  }
  return text;
}

std::string TimeText(const Analysis& a) {
  if (a.over_time.size() < 2) return "";
  const size_t each = (a.over_time.size() + kTimeRows - 1) / kTimeRows;
  TextTable table({"from", "lookups", "hit rate", "memory", "SSD", "reachable"});
  for (size_t first = 0; first < a.over_time.size(); first += each) {
    trace::TokenCounts sum;
    for (size_t i = first; i < std::min(first + each, a.over_time.size()); ++i) {
      sum.Add(a.over_time[i].tokens);
    }
    const bool some = a.measured && sum.prompt_tokens != 0;
    table.Add({Span(a.over_time[first].start_ns), Grouped(sum.requests),
               some ? Percent(sum.hit_rate()) : "-",
               some ? Percent(sum.RateOf(sum.cpu_tokens)) : "-",
               some ? Percent(sum.RateOf(sum.ssd_tokens)) : "-",
               a.info.has_blocks ? Percent(sum.reachable_rate()) : "-"});
  }
  return Heading("Over time") + table.Text(2);
}

std::string LegsText(const Analysis& a) {
  if (!a.measured) return "";
  TextTable table(
      {"transfer, a block", "operations", "p50", "p90", "p99", "max", "target", "late", "rate"});
  bool some = false;
  for (size_t i = 0; i < trace::kNumLegs; ++i) {
    const LegStats& leg = a.legs[i];
    const Leg which = static_cast<Leg>(i);
    if (leg.operations == 0) continue;
    some = true;
    const auto at = [&](double q) { return FormatDuration(leg.ns_per_block.Percentile(q)); };
    table.Add(
        {TitleOf(which), Grouped(leg.operations), at(0.5), at(0.9), at(0.99),
         FormatDuration(leg.ns_per_block.max()), FormatDuration(TargetNs(which)),
         Percent(static_cast<double>(leg.late_operations) / static_cast<double>(leg.operations)),
         absl::StrCat(FormatBytes(static_cast<uint64_t>(leg.bytes_per_s())), "/s")});
  }
  std::string text = Heading("Latency (percentiles are within 1.6 %)");
  text += some ? table.Text(2) : "  nothing was moved\n";
  if (a.match_ns.count() != 0) {
    absl::StrAppend(&text, "  lookup p50 ", FormatDuration(a.match_ns.Percentile(0.5)), ", p99 ",
                    FormatDuration(a.match_ns.Percentile(0.99)), ", max ",
                    FormatDuration(a.match_ns.max()), "\n");
  }
  return text;
}

std::string WhereText(const Analysis& a) {
  if (!a.measured) return "";
  const std::pair<const char*, double> parts[] = {
      {"lookup", a.match_ns.sum()},
      {"waiting", a.queue_ns.sum()},
      {"load", static_cast<double>(a.leg(Leg::kLoad).total_ns)},
      {"ssd", static_cast<double>(a.leg(Leg::kSsd).total_ns)},
      {"store", static_cast<double>(a.leg(Leg::kStore).total_ns)}};
  double sum = 0;
  for (const auto& part : parts) sum += part.second;
  if (sum == 0) return "";
  std::string text = Heading("Where time goes") + " ";
  for (const auto& [name, ns] : parts) {
    absl::StrAppend(&text, " ", name, " ", Percent(ns / sum), " (",
                    FormatDuration(static_cast<uint64_t>(ns)), ")");
  }
  return text + "\n";
}

std::string SlowestText(const Analysis& a) {
  if (a.slowest.empty()) return "";
  TextTable table(
      {"slowest", "at", "tokens", "total", "lookup", "waiting", "load", "ssd", "store"});
  for (const trace::SlowOperation& slow : a.slowest) {
    table.Add(
        {absl::StrCat(slow.kind == trace::RequestKind::kPut ? "put" : "get", " #", slow.ordinal),
         Span(slow.time_ns), Grouped(slow.prompt_tokens), FormatDuration(slow.total_ns()),
         FormatDuration(slow.match_ns), FormatDuration(slow.queue_ns), FormatDuration(slow.load_ns),
         FormatDuration(slow.ssd_ns), FormatDuration(slow.store_ns)});
  }
  return Heading("Slowest operations") + table.Text(2);
}

std::string ReuseText(const Analysis& a) {
  if (!a.info.has_blocks || a.unique_blocks == 0) return "";
  std::string text = Heading("Reuse");
  const double unread =
      static_cast<double>(a.never_read_blocks) / static_cast<double>(a.unique_blocks);
  absl::StrAppend(&text, "  ", Grouped(a.unique_blocks), " different blocks, ", Percent(unread),
                  " are never read again");
  if (a.sample_shift != 0) {
    absl::StrAppend(&text, " (from one block in ", 1ull << a.sample_shift, ")");
  }
  absl::StrAppend(&text, "\n");
  if (a.reuse_gap_ns.count() != 0) {
    absl::StrAppend(&text, "  until the next use: p50 ",
                    Span(static_cast<TimeNs>(a.reuse_gap_ns.Percentile(0.5))), ", p90 ",
                    Span(static_cast<TimeNs>(a.reuse_gap_ns.Percentile(0.9))), ", max ",
                    Span(static_cast<TimeNs>(a.reuse_gap_ns.max())), "\n");
  }
  uint64_t all = 0, most = 0;
  for (const auto& row : a.reuse_distance) {
    all += row.hits;
    most = std::max(most, row.hits);
  }
  if (all == 0) return text;
  text += "  reuse distance: blocks of LRU cache that a hit needs\n";
  for (const auto& row : a.reuse_distance) {
    if (row.hits * 200 < all) continue;
    char line[96];
    std::snprintf(line, sizeof(line), "    up to %12s %7s  ", Grouped(row.to_blocks).c_str(),
                  Percent(static_cast<double>(row.hits) / static_cast<double>(all)).c_str());
    text += line + std::string(static_cast<size_t>(30 * row.hits / most), '#') + "\n";
  }
  return text;
}

std::string PrefixText(const Analysis& a) {
  if (a.top_prefixes.empty()) return "";
  std::string text = Heading("Shared prefixes");
  absl::StrAppend(&text, "  ", Grouped(a.roots), a.sample_shift == 0 ? "" : " (of a sample)",
                  " different beginnings; prompts p50 ", a.prompt_blocks.Percentile(0.5), ", p90 ",
                  a.prompt_blocks.Percentile(0.9), ", max ", a.prompt_blocks.max(),
                  " blocks; a block has p50 ", a.fan_out.Percentile(0.5), ", max ", a.fan_out.max(),
                  " successors\n");
  absl::StrAppend(&text, "  the first ", a.top_prefixes.size(), " are ", Percent(a.top_share),
                  " of all tokens that can be found\n");
  TextTable table({"ends with block", "depth", "blocks", "found", "tokens saved", "branches"});
  for (const trace::SharedPrefix& prefix : a.top_prefixes) {
    char id[24];
    std::snprintf(id, sizeof(id), "%016llx", static_cast<unsigned long long>(prefix.id));
    table.Add({id, Grouped(prefix.depth_blocks), Grouped(prefix.blocks), Grouped(prefix.uses),
               Grouped(prefix.saved_tokens), Grouped(prefix.branches)});
  }
  return text + table.Text(2);
}

std::string PutsText(const Analysis& a) {
  if (a.puts.puts == 0) return "";
  std::string text = Heading("Stores");
  absl::StrAppend(&text, "  blocks stored ", Grouped(a.puts.accepted_blocks), ", already there ",
                  Grouped(a.puts.held_blocks), ", refused ", Grouped(a.puts.refused_blocks),
                  "; evicted from memory ",
                  Grouped(a.evicted_blocks[static_cast<size_t>(Tier::kCpu)]), ", from SSD ",
                  Grouped(a.evicted_blocks[static_cast<size_t>(Tier::kSsd)]), "; failed ",
                  Grouped(a.results[static_cast<size_t>(trace::Result::kFailed)]), " operations\n");
  return text;
}

}  // namespace

std::string BadLinesText(const trace::TraceInfo& info) {
  if (info.bad_lines == 0) return "";
  std::string text = absl::StrCat(Grouped(info.bad_lines), " bad lines of ", Grouped(info.lines),
                                  " were left out:\n");
  for (const trace::BadLine& line : info.first_bad_lines) {
    absl::StrAppend(&text, "  ", Printable(line.file, 80), ":", line.number, ": ",
                    Printable(line.reason, 120), "\n");
  }
  if (info.bad_lines > info.first_bad_lines.size()) absl::StrAppend(&text, "  ...\n");
  return text;
}

std::string AdviceText(const std::vector<trace::Advice>& advice) {
  if (advice.empty()) return Heading("Next steps: none; nothing stands out");
  std::string text = Heading("Next steps");
  for (size_t i = 0; i < advice.size(); ++i) {
    absl::StrAppend(&text, "  ", i + 1, ". ", advice[i].title, "\n     do:  ", advice[i].action,
                    "\n     why: ", advice[i].evidence, "\n");
  }
  return text;
}

std::string AnalysisText(const Analysis& a, const std::vector<trace::Advice>& advice) {
  return HeadText(a) + RateText(a) + AdviceText(advice) + CurveText(a) + NamespacesText(a) +
         TimeText(a) + LegsText(a) + WhereText(a) + SlowestText(a) + PutsText(a) + ReuseText(a) +
         PrefixText(a);
}

}  // namespace flexkv::cli
