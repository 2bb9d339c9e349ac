#include "flexkv/cli/tune_text.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/cells.h"
#include "flexkv/cli/text_table.h"
#include "flexkv/index/policies.h"
#include "flexkv/server/config_ssd.h"
#include "flexkv/trace/advice.h"

namespace flexkv::cli {
namespace {

using trace::Cell;
using trace::Grouped;
using trace::OrderedJson;
using trace::Percent;

constexpr const char* kSsdDirectory = "/var/cache/flexkv";
constexpr uint64_t kGiB = 1ull << 30;
constexpr uint64_t kMiB = 1ull << 20;

// The bytes of so many blocks as a person would write them, within the budget.
OrderedJson SizeJson(uint64_t blocks, uint64_t block_bytes, uint64_t budget) {
  const uint64_t bytes = blocks * block_bytes;
  const uint64_t unit = bytes >= 16 * kGiB ? kGiB : kMiB;
  const uint64_t rounded = RoundUp(bytes, unit);
  if (rounded > budget) return OrderedJson(std::max(bytes, std::min(rounded, budget)));
  return OrderedJson(absl::StrCat(rounded / unit, unit == kGiB ? "GiB" : "MiB"));
}

class Editor {
 public:
  explicit Editor(OrderedJson json) : before_(json), after_(std::move(json)) {}
  void Set(const char* key, const OrderedJson& value) { after_[key] = value; }
  void Drop(const char* key) { after_.erase(key); }
  bool Has(const char* key) const { return after_.contains(key); }
  const OrderedJson& json() const { return after_; }

  std::vector<TunedConfig::Change> Changes() const {
    std::vector<TunedConfig::Change> changes;
    for (const auto& [key, value] : before_.items()) {
      if (!after_.contains(key)) changes.push_back({key, trace::Dump(value), ""});
    }
    for (const auto& [key, value] : after_.items()) {
      const bool was = before_.contains(key);
      if (was && before_[key] == value) continue;
      changes.push_back({key, was ? trace::Dump(before_[key]) : "", trace::Dump(value)});
    }
    return changes;
  }

 private:
  const OrderedJson before_;
  OrderedJson after_;
};

void SetSsd(const TuneResult& result, const TuneRequest& request, const std::string& ssd_dir,
            Editor* editor, std::vector<std::string>* notes) {
  const Cell& cell = result.chosen.result.cell;
  if (cell.ssd_blocks == 0) {
    if (editor->Has("enable_ssd")) editor->Set("enable_ssd", false);
    return;
  }
  editor->Set("enable_ssd", true);
  if (!ssd_dir.empty()) {
    editor->Set("ssd_cache_dir", ssd_dir);
  } else if (!editor->Has("ssd_cache_dir")) {
    editor->Set("ssd_cache_dir", kSsdDirectory);
    notes->push_back(absl::StrCat("ssd_cache_dir is ", kSsdDirectory,
                                  ": put a directory on your SSD there (--ssd-dir)"));
  }
  OrderedJson size = SizeJson(cell.ssd_blocks, request.block_bytes, request.ssd_bytes);
  constexpr uint64_t kLeast = kMinSsdShareBytes * 16;
  if (cell.ssd_blocks * request.block_bytes < kLeast) size = absl::StrCat(kLeast / kMiB, "MiB");
  editor->Set("ssd_cache_bytes", size);
  editor->Drop("num_ssd_blocks");
  editor->Set("ssd_admission", SsdAdmissionName(cell.admission));
}

std::string Points(double rate) {
  char text[24];
  std::snprintf(text, sizeof(text), "%+.1f", 100 * rate);
  return text;
}

std::string Seconds(double seconds) {
  return seconds <= 0 ? "0 s" : FormatDuration(static_cast<uint64_t>(seconds * 1e9));
}

std::string SizeText(const Cell& cell, uint64_t block_bytes) {
  std::string text = absl::StrCat(BlocksText(cell.cpu_blocks), " blocks in memory");
  if (cell.cpu_blocks != trace::kInfiniteBlocks) {
    absl::StrAppend(&text, " (", FormatBytes(cell.cpu_blocks * block_bytes), ")");
  }
  if (cell.ssd_blocks != 0) {
    absl::StrAppend(&text, ", ", BlocksText(cell.ssd_blocks), " on SSD (",
                    FormatBytes(cell.ssd_blocks * block_bytes), ")");
  }
  return text;
}

OrderedJson PointJson(const TunePoint& point) {
  OrderedJson json = trace::CellJson(point.result);
  json["admission"] = SsdAdmissionName(point.result.cell.admission);
  json["evict_ratio"] = point.result.cell.evict_ratio;
  json["evict_start_ratio"] = point.result.cell.evict_start_ratio;
  json["prefill_saved_s"] = point.saved_s;
  json["mean_ttft_s"] = point.ttft_s;
  json["cost"] = point.cost;
  json["ssd_written_blocks"] = point.result.ssd_written_blocks;
  return json;
}

OrderedJson VariantsJson(const std::vector<Variant>& variants) {
  OrderedJson list = OrderedJson::array();
  for (const Variant& variant : variants) {
    OrderedJson json = {{"name", variant.name}};
    json.update(PointJson(variant.point));
    list.push_back(std::move(json));
  }
  return list;
}

void AddVariants(const std::vector<Variant>& variants, double rate, TextTable* table) {
  for (const Variant& variant : variants) {
    const trace::CellResult& result = variant.point.result;
    table->Add({variant.name, Percent(result.hit_rate()), Points(result.hit_rate() - rate)});
  }
}

// Whether more memory would help, in words.
std::string TopText(const TuneResult& result, const TuneRequest& request) {
  const double rate = result.chosen.result.hit_rate();
  std::string text =
      absl::StrCat("an infinite cache reaches ", Percent(result.infinite_rate),
                   ", the best possible policy in this size ", Percent(result.ceiling_rate));
  if (result.tops_out) {
    absl::StrAppend(&text, ".\nThe workload tops out: more memory cannot help. ",
                    Grouped(result.enough_blocks), " blocks (",
                    FormatBytes(result.enough_blocks * request.block_bytes),
                    ") are within 0.5 points of the top with LRU");
  } else {
    absl::StrAppend(&text, ".\nTwice the memory brings ",
                    Points(result.sizes[1].point.result.hit_rate() - rate), " points; ",
                    Grouped(result.enough_blocks), " blocks (",
                    FormatBytes(result.enough_blocks * request.block_bytes),
                    ") get all there is to get");
  }
  return text + ".\n";
}

std::string PresentText(const TuneResult& result, const TuneRequest& request) {
  if (!result.present.has_value()) return "";
  const TunePoint& present = *result.present;
  return absl::StrCat("Now:    ", SizeText(present.result.cell, request.block_bytes), ", ",
                      present.result.cell.policy, ": ", Percent(present.result.hit_rate()), " (",
                      Percent(present.result.hit_rate_cpu()), " memory, ",
                      Percent(present.result.hit_rate_ssd()), " SSD), ", Seconds(present.saved_s),
                      " of prefill saved; at their times ", Percent(result.present_timed_rate),
                      "\n");
}

std::string VerifyText(const TuneResult& result) {
  if (!result.verified.has_value()) return "";
  const VerifyResult& verified = *result.verified;
  return absl::StrCat("\nVerified on a daemon with ", BlocksText(verified.cell.cpu_blocks),
                      " small blocks in memory",
                      verified.cell.ssd_blocks == 0
                          ? ""
                          : absl::StrCat(" and ", BlocksText(verified.cell.ssd_blocks), " on SSD"),
                      ", ", Grouped(verified.requests), " lookups in ", Seconds(verified.seconds),
                      ": predicted ", Percent(verified.predicted), ", measured ",
                      Percent(verified.measured), " (", Points(verified.difference()),
                      " points)\n");
}

std::string TargetText(const TuneResult& result, const TuneRequest& request) {
  if (!request.target_value.has_value() || result.target_reached) return "";
  return absl::StrCat(
      "The target ",
      request.target == TuneTarget::kTtft ? Seconds(*request.target_value)
                                          : Percent(*request.target_value),
      " is out of reach within this budget",
      request.target != TuneTarget::kTtft && *request.target_value > result.infinite_rate
          ? ", and for any cache: the workload does not repeat itself enough"
          : "",
      ". What follows comes nearest.\n\n");
}

}  // namespace

absl::StatusOr<TunedConfig> MakeTunedConfig(const TuneResult& result, const TuneRequest& request,
                                            const std::string& present,
                                            const std::string& ssd_dir) {
  OrderedJson json = OrderedJson::object();
  if (!present.empty()) {
    json = OrderedJson::parse(present, nullptr, false, true);
    if (json.is_object() && json.contains("cache_config")) json = OrderedJson(json["cache_config"]);
    if (!json.is_object()) return absl::InvalidArgumentError("--config: not a JSON object");
  }
  const Cell& cell = result.chosen.result.cell;
  Editor editor(json);
  TunedConfig tuned;
  constexpr uint64_t kLeast = 2 * kMiB;  // flexkvd takes no less
  OrderedJson size = SizeJson(cell.cpu_blocks, request.block_bytes, request.memory_bytes);
  if (cell.cpu_blocks * request.block_bytes < kLeast) size = "2MiB";
  editor.Set("cpu_cache_bytes", size);
  editor.Drop("num_cpu_blocks");
  editor.Set("eviction_policy", cell.policy);
  editor.Set("evict_ratio", cell.evict_ratio);
  editor.Set("evict_start_ratio", cell.evict_start_ratio);
  SetSsd(result, request, ssd_dir, &editor, &tuned.notes);
  tuned.json = {{"cache_config", editor.json()}};
  tuned.changes = editor.Changes();
  return tuned;
}

std::string TuneText(const TuneResult& result, const TuneRequest& request,
                     const TunedConfig& config) {
  const TunePoint& chosen = result.chosen;
  const double rate = chosen.result.hit_rate();
  std::string text = TargetText(result, request);
  absl::StrAppend(&text, PresentText(result, request),
                  "Better: ", SizeText(chosen.result.cell, request.block_bytes), ", ",
                  chosen.result.cell.policy, ": ", Percent(rate), " (",
                  Percent(chosen.result.hit_rate_cpu()), " memory, ",
                  Percent(chosen.result.hit_rate_ssd()), " SSD), ", Seconds(chosen.saved_s),
                  " of prefill saved; at their times ", Percent(result.timed_rate), "\n");
  if (result.present.has_value()) {
    absl::StrAppend(&text, "        ", Points(rate - result.present->result.hit_rate()),
                    " points, ", Seconds(std::max(0.0, chosen.saved_s - result.present->saved_s)),
                    " of prefill more saved over the trace; a prompt is ready after ",
                    Seconds(chosen.ttft_s), " instead of ", Seconds(result.present->ttft_s),
                    " (mean)\n");
  }
  absl::StrAppend(&text, "Top:    ", TopText(result, request), VerifyText(result),
                  "\nConfiguration\n", trace::Dump(config.json, 2), "\n");
  for (const std::string& note : config.notes) absl::StrAppend(&text, "note: ", note, "\n");
  if (request.present.has_value() && !config.changes.empty()) {
    text += "\nChanges\n";
    for (const TunedConfig::Change& change : config.changes) {
      if (!change.from.empty()) absl::StrAppend(&text, "  - ", change.key, ": ", change.from, "\n");
      if (!change.to.empty()) absl::StrAppend(&text, "  + ", change.key, ": ", change.to, "\n");
    }
  } else if (request.present.has_value()) {
    text += "\nNothing to change.\n";
  }
  TextTable table({"instead", "hit rate", "points"});
  AddVariants(result.sizes, rate, &table);
  AddVariants(result.policies, rate, &table);
  std::vector<Variant> plain, timed;
  for (const Variant& variant : result.others) {
    (variant.name.ends_with("at their times") ? timed : plain).push_back(variant);
  }
  AddVariants(plain, rate, &table);
  AddVariants(timed, result.timed_rate, &table);
  return absl::StrCat(text, "\nSensitivity\n", table.Text(2));
}

OrderedJson TuneJson(const TuneResult& result, const TuneRequest& request,
                     const TunedConfig& config) {
  OrderedJson changes = OrderedJson::array();
  for (const TunedConfig::Change& change : config.changes) {
    changes.push_back({{"key", change.key}, {"from", change.from}, {"to", change.to}});
  }
  OrderedJson json = {{"config", config.json},
                      {"expected", PointJson(result.chosen)},
                      {"timed_hit_rate", result.timed_rate},
                      {"infinite_hit_rate", result.infinite_rate},
                      {"ceiling_hit_rate", result.ceiling_rate},
                      {"enough_blocks", result.enough_blocks},
                      {"enough_bytes", result.enough_blocks * request.block_bytes},
                      {"tops_out", result.tops_out},
                      {"target_reached", result.target_reached}};
  json["present"] = result.present.has_value() ? PointJson(*result.present) : OrderedJson();
  if (result.present.has_value()) json["present_timed_hit_rate"] = result.present_timed_rate;
  json["verified"] = OrderedJson();
  if (result.verified.has_value()) {
    json["verified"] = {{"requests", result.verified->requests},
                        {"predicted_hit_rate", result.verified->predicted},
                        {"measured_hit_rate", result.verified->measured},
                        {"failed_loads", result.verified->failed_loads},
                        {"seconds", result.verified->seconds}};
  }
  json["sizes"] = VariantsJson(result.sizes);
  json["policies"] = VariantsJson(result.policies);
  json["others"] = VariantsJson(result.others);
  json["changes"] = std::move(changes);
  json["notes"] = config.notes;
  return json;
}

}  // namespace flexkv::cli
