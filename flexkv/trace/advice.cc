#include "flexkv/trace/advice.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"

namespace flexkv::trace {
namespace {

using Json = nlohmann::json;

constexpr double kTopsOut = 0.01;  // this near to the ceiling nothing is worth advice

std::string SizeText(uint64_t blocks, uint64_t block_bytes) {
  if (blocks == kInfiniteBlocks) return "an infinite cache";
  std::string text = absl::StrCat(Grouped(blocks), " blocks");
  if (block_bytes != 0 && blocks < UINT64_MAX / block_bytes) {
    absl::StrAppend(&text, " (", FormatBytes(blocks * block_bytes), ")");
  }
  return text;
}

std::string Milliseconds(uint64_t ns) { return FormatDuration(ns); }

struct Sizes {
  uint64_t now = 0;      // blocks held at present, 0: not known
  bool guessed = false;  // from the measured rate
};

Sizes PresentSize(const Analysis& a, const CacheFacts& facts) {
  if (facts.cpu_blocks != 0) return {facts.cpu_blocks + facts.ssd_blocks, false};
  if (!a.measured || !a.curve.has_value()) return {};
  const uint64_t like = BlocksForRate(*a.curve, a.rate());
  return like == kInfiniteBlocks || like == 0 ? Sizes{} : Sizes{like, true};
}

std::string LowRateTitle(const Analysis& a) {
  return absl::StrCat("Hit rate ", Percent(a.rate()), ", where ", Percent(a.reachable_rate()),
                      " can be reached");
}

void AdviseTopsOut(const Analysis& a, std::vector<Advice>* out) {
  const double missing = 1 - a.reachable_rate();
  out->push_back({"The workload tops out; more memory cannot help",
                  a.never_read_blocks * 2 > a.unique_blocks
                      ? "Raise what prompts share: stable text first, what changes last; send one "
                        "conversation to one node."
                      : "Nothing to do for the hit rate; a smaller cache may be enough (see the "
                        "curve).",
                  absl::StrCat("measured ", Percent(a.rate()), ", an infinite cache reaches ",
                               Percent(a.reachable_rate()), "; the other ", Percent(missing),
                               " of prompt tokens are asked for the first time"),
                  5});
}

// More blocks, where the curve says what they bring.
void AdviseCapacity(const Analysis& a, const CacheFacts& facts, std::vector<Advice>* out) {
  const LruCurve& curve = *a.curve;
  const uint64_t enough = SufficientBlocks(curve);
  const Sizes sizes = PresentSize(a, facts);
  if (sizes.now == 0) {
    const uint64_t half = std::max<uint64_t>(1, enough / 2);
    out->push_back({absl::StrCat("A cache of ", SizeText(enough, facts.block_bytes),
                                 " gets all there is to get"),
                    "Give it that many (num_cpu_blocks, or memory and SSD together); more cannot "
                    "help.",
                    absl::StrCat("LRU reaches ", Percent(curve.HitRateAt(enough)), " with it, ",
                                 Percent(curve.HitRateAt(half)), " with half of it, ",
                                 Percent(a.reachable_rate()), " with infinite memory"),
                    100 * a.reachable_rate()});
    return;
  }
  const double now_rate = a.measured ? a.rate() : curve.HitRateAt(sizes.now);
  const double gain = curve.HitRateAt(enough) - now_rate;
  if (gain < kTopsOut || enough <= sizes.now) return;
  const uint64_t twice = std::min(enough, sizes.now * 2);
  const bool ssd_helps = facts.known && !facts.ssd_enabled;
  out->push_back(
      {a.measured ? LowRateTitle(a) : "More blocks raise the hit rate",
       absl::StrCat("Give the cache ", SizeText(enough, facts.block_bytes),
                    ssd_helps ? ": raise cpu_cache_bytes, or switch the SSD tier on (enable_ssd, "
                                "ssd_cache_dir) for what memory cannot hold."
                              : " of memory and SSD together (cpu_cache_bytes, ssd_cache_bytes).",
                    " More than that cannot help."),
       absl::StrCat(sizes.guessed ? "it works like an LRU cache of " : "it holds ",
                    SizeText(sizes.now, facts.block_bytes), "; LRU reaches ",
                    Percent(curve.HitRateAt(twice)), " with ", SizeText(twice, facts.block_bytes),
                    ", ", Percent(curve.HitRateAt(enough)), " with ",
                    SizeText(enough, facts.block_bytes)),
       100 * gain});
}

// The cache gets less than LRU would from its size: blocks leave before they have to.
void AdviseEviction(const Analysis& a, const CacheFacts& facts, std::vector<Advice>* out) {
  if (!facts.known) return;
  const double kept = std::clamp(facts.evict_start_ratio - facts.evict_ratio / 2, 0.01, 1.0);
  if (facts.evict_ratio <= 0.02 && facts.evict_start_ratio >= 0.95) return;
  double gain = 0.02;
  std::string evidence =
      absl::StrCat("evict_start_ratio ", facts.evict_start_ratio, " and evict_ratio ",
                   facts.evict_ratio, " leave the cache about ", Percent(kept), " full");
  if (a.curve.has_value() && facts.cpu_blocks != 0) {
    const auto used = static_cast<uint64_t>(static_cast<double>(facts.cpu_blocks) * kept);
    gain = a.curve->HitRateAt(facts.cpu_blocks + facts.ssd_blocks) -
           a.curve->HitRateAt(used + facts.ssd_blocks);
    absl::StrAppend(&evidence, "; the curve says that this costs ", Percent(gain),
                    " of prompt tokens");
  }
  if (gain < 0.002) return;
  out->push_back({"Blocks are evicted before there is need",
                  "Lower evict_ratio to 0.01 and raise evict_start_ratio to 0.98.", evidence,
                  100 * gain + 1});
}

void AdviseRefused(const Analysis& a, std::vector<Advice>* out) {
  const uint64_t offered = a.puts.accepted_blocks + a.puts.refused_blocks;
  if (offered == 0 || a.puts.refused_blocks * 50 < offered) return;
  const double share = static_cast<double>(a.puts.refused_blocks) / static_cast<double>(offered);
  out->push_back({"Blocks were refused: there was no room for them when they came",
                  "Look at leases that are held long and at bursts; raise cpu_cache_bytes or "
                  "evict_ratio so that room is made ahead.",
                  absl::StrCat(Grouped(a.puts.refused_blocks), " of ", Grouped(offered),
                               " new blocks (", Percent(share), ") were refused"),
                  100 * share * a.reachable_rate()});
}

void AdviseFailures(const Analysis& a, std::vector<Advice>* out) {
  const uint64_t failed = a.results[static_cast<size_t>(Result::kFailed)];
  if (failed == 0) return;
  const double share = static_cast<double>(failed) / static_cast<double>(a.records);
  out->push_back({"Transfers failed",
                  "See the daemon's log and `flexkv status`; `flexkv ssd verify` if an SSD is "
                  "behind them.",
                  absl::StrCat(Grouped(failed), " of ", Grouped(a.records), " operations failed (",
                               Percent(share), ")"),
                  5 + 100 * share});
}

const char* CureOf(Leg leg) {
  switch (leg) {
    case Leg::kSsd:
      return "Let more be served from memory (cpu_cache_bytes), spread the SSD tier over more "
             "devices (ssd_cache_dir takes a list), use ssd_backend io_uring, hold write-back "
             "down with ssd_write_budget.";
    case Leg::kRemote:
      return "Keep more on this machine, or look at the network.";
    case Leg::kLoad:
    case Leg::kStore:
      break;
  }
  return "Use huge pages (use_hugetlb, use_thp) and lock_memory, put the cache on the device's "
         "NUMA "
         "node (numa_node), and look whether other work takes the cores that copy.";
}

void AdviseLegs(const Analysis& a, std::vector<Advice>* out) {
  for (size_t i = 0; i < kNumLegs; ++i) {
    const LegStats& leg = a.legs[i];
    const Leg which = static_cast<Leg>(i);
    if (leg.operations == 0 || leg.ns_per_block.Percentile(0.9) <= TargetNs(which)) continue;
    const double late =
        static_cast<double>(leg.late_operations) / static_cast<double>(leg.operations);
    out->push_back(
        {absl::StrCat(TitleOf(which), " is slow"), CureOf(which),
         absl::StrCat("p50 ", Milliseconds(leg.ns_per_block.Percentile(0.5)), ", p90 ",
                      Milliseconds(leg.ns_per_block.Percentile(0.9)), " a block, target ",
                      Milliseconds(TargetNs(which)), "; ", Percent(late), " of ",
                      Grouped(leg.operations), " operations are late; ",
                      FormatBytes(static_cast<uint64_t>(leg.bytes_per_s())), "/s"),
         10 + 40 * late});
  }
}

void AdviseQueue(const Analysis& a, std::vector<Advice>* out) {
  const LegStats& load = a.leg(Leg::kLoad);
  const double waited = a.queue_ns.sum();
  const double moved = static_cast<double>(load.total_ns);
  if (load.operations == 0 || waited < moved || a.queue_ns.Percentile(0.9) < 5 * kNsPerMs) return;
  out->push_back({"Loads wait longer than they take",
                  "More room in flight does not help a busy link: look at what runs beside it "
                  "(stores, SSD reads), and at how many requests start at once.",
                  absl::StrCat("waiting p50 ", Milliseconds(a.queue_ns.Percentile(0.5)), ", p90 ",
                               Milliseconds(a.queue_ns.Percentile(0.9)), "; ",
                               Percent(waited / (waited + moved)), " of the time of loads"),
                  15});
}

void AdviseUnread(const Analysis& a, const CacheFacts& facts, std::vector<Advice>* out) {
  if (a.unique_blocks == 0 || !facts.ssd_enabled || facts.admission == "second_touch") return;
  const double share =
      static_cast<double>(a.never_read_blocks) / static_cast<double>(a.unique_blocks);
  if (share < 0.5) return;
  out->push_back({"Most of what goes to SSD is never read",
                  "ssd_admission second_touch writes only what was asked for twice; compare with "
                  "flexkv trace simulate --admission second_touch before.",
                  absl::StrCat(Percent(share), " of ", Grouped(a.unique_blocks),
                               " blocks are never asked for again, whatever the cache's size"),
                  4 * share});
}

void AdvisePartial(const Analysis& a, std::vector<Advice>* out) {
  const double share = a.total.RateOf(a.partial_tokens);
  if (share < 0.05 || a.info.tokens_per_block <= 64) return;
  out->push_back({"Blocks are large for these prompts",
                  absl::StrCat("A smaller block size in the engine (now ", a.info.tokens_per_block,
                               " tokens) finds part of them."),
                  absl::StrCat(Percent(share),
                               " of prompt tokens lie in last blocks that are not "
                               "full and are never cached"),
                  30 * share});
}

void AdviseTrace(const Analysis& a, std::vector<Advice>* out) {
  if (!a.info.has_blocks && a.measured) {
    out->push_back({"The trace has no block hashes",
                    "Record with hashes (trace_hashes \"short\") to see what could be reached.",
                    "without them nothing can be replayed", 3});
  }
  if (a.info.dropped_records > 0 && a.info.dropped_records * 100 > a.records) {
    out->push_back({"The trace has gaps",
                    "Put trace_file_path on a disk that keeps up; rates below are of what was "
                    "kept.",
                    absl::StrCat(Grouped(a.info.dropped_records), " records were dropped, ",
                                 Grouped(a.records), " kept"),
                    4});
  }
}

uint64_t NumberAt(const Json& object, const char* key) {
  const auto it = object.find(key);
  if (it == object.end()) return 0;
  if (it->is_number_unsigned()) return it->get<uint64_t>();
  if (!it->is_string()) return 0;
  const absl::StatusOr<uint64_t> bytes = ParseBytes(it->get<std::string>(), 0);
  return bytes.ok() ? *bytes : 0;
}

double RatioAt(const Json& object, const char* key, double otherwise) {
  const auto it = object.find(key);
  return it != object.end() && it->is_number() ? it->get<double>() : otherwise;
}

std::string TextAt(const Json& object, const char* key) {
  const auto it = object.find(key);
  return it != object.end() && it->is_string() ? it->get<std::string>() : std::string();
}

}  // namespace

CacheFacts FactsOfConfig(std::string_view text, uint64_t block_bytes) {
  CacheFacts facts;
  Json json = Json::parse(text.begin(), text.end(), nullptr, false, true);
  if (json.is_object() && json.contains("cache_config")) json = Json(json["cache_config"]);
  if (!json.is_object() || json.empty()) return facts;
  facts.known = true;
  facts.block_bytes = block_bytes;
  facts.cpu_bytes = NumberAt(json, "cpu_cache_bytes");
  facts.cpu_blocks = NumberAt(json, "num_cpu_blocks");
  const auto enabled = json.find("enable_ssd");
  facts.ssd_enabled = enabled != json.end() && enabled->is_boolean() && enabled->get<bool>();
  facts.evict_ratio = RatioAt(json, "evict_ratio", facts.evict_ratio);
  facts.evict_start_ratio = RatioAt(json, "evict_start_ratio", facts.evict_start_ratio);
  facts.policy = TextAt(json, "eviction_policy");
  facts.admission = TextAt(json, "ssd_admission");
  if (facts.cpu_blocks == 0 && block_bytes != 0) facts.cpu_blocks = facts.cpu_bytes / block_bytes;
  if (facts.ssd_enabled) {
    facts.ssd_bytes = NumberAt(json, "ssd_cache_bytes");
    const uint64_t limit = NumberAt(json, "num_ssd_blocks");
    facts.ssd_blocks = block_bytes == 0 ? limit : facts.ssd_bytes / block_bytes;
    if (limit != 0) facts.ssd_blocks = std::min(facts.ssd_blocks, limit);
  }
  return facts;
}

CacheFacts FactsOf(const Analysis& analysis) {
  CacheFacts facts = FactsOfConfig(analysis.info.config_json, analysis.block_bytes());
  facts.block_bytes = analysis.block_bytes();
  return facts;
}

std::vector<Advice> Advise(const Analysis& a, const CacheFacts& facts, size_t most) {
  std::vector<Advice> all;
  if (a.total.prompt_tokens == 0) {
    return {{"No lookups in this trace", "Record while the engine serves requests.",
             absl::StrCat(Grouped(a.records), " records, no prompt tokens"), 1}};
  }
  if (a.info.has_blocks) {
    const bool tops_out = a.measured && a.reachable_rate() - a.rate() < kTopsOut;
    if (tops_out) {
      AdviseTopsOut(a, &all);
    } else if (a.curve.has_value()) {
      AdviseCapacity(a, facts, &all);
      AdviseEviction(a, facts, &all);
    }
    if (!a.measured && a.reachable_rate() < 0.5) AdviseTopsOut(a, &all);
  }
  AdviseRefused(a, &all);
  AdviseFailures(a, &all);
  AdviseLegs(a, &all);
  AdviseQueue(a, &all);
  AdviseUnread(a, facts, &all);
  AdvisePartial(a, &all);
  AdviseTrace(a, &all);
  std::stable_sort(all.begin(), all.end(),
                   [](const Advice& x, const Advice& y) { return x.weight > y.weight; });
  if (all.size() > most) all.resize(most);
  return all;
}

uint64_t BlocksForRate(const LruCurve& curve, double rate) {
  if (rate <= 0) return 0;
  const double tokens = std::max<double>(1, curve.tokens_per_block);
  const double wanted = rate * static_cast<double>(curve.prompt_tokens) / tokens;
  for (const auto& [capacity, hits] : curve.steps) {
    if (static_cast<double>(hits) + 1e-6 >= wanted) return capacity;
  }
  return kInfiniteBlocks;
}

uint64_t SufficientBlocks(const LruCurve& curve, double within) {
  const double top = curve.HitRateAt(kInfiniteBlocks);
  return BlocksForRate(curve, std::max(0.0, top - within));
}

std::string Grouped(uint64_t number) {
  const std::string digits = absl::StrCat(number);
  std::string text;
  for (size_t i = 0; i < digits.size(); ++i) {
    if (i != 0 && (digits.size() - i) % 3 == 0) text.push_back(',');
    text.push_back(digits[i]);
  }
  return text;
}

std::string Percent(double share) {
  char text[32];
  std::snprintf(text, sizeof(text), "%.1f %%", 100 * share);
  return text;
}

}  // namespace flexkv::trace
