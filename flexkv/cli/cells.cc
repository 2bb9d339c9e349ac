#include "flexkv/cli/cells.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <set>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "flexkv/cli/text_table.h"
#include "flexkv/index/policies.h"
#include "flexkv/trace/advice.h"

namespace flexkv::cli {
namespace {

using trace::Cell;
using trace::CellResult;
using trace::kInfiniteBlocks;

constexpr size_t kMaxListed = 64;

std::vector<std::string> Split(const std::string& text) {
  return absl::StrSplit(text, ',', absl::SkipWhitespace());
}

std::string Points(double rate) {
  char text[16];
  std::snprintf(text, sizeof(text), "%.1f", 100 * rate);
  return text;
}

std::string RowName(const Cell& cell) {
  std::string name = cell.policy;
  if (name == "default") name = absl::StrCat("default (", std::string(kDefaultPolicy), ")");
  if (cell.ssd_blocks == 0) return name;
  absl::StrAppend(&name, " + SSD ", BlocksText(cell.ssd_blocks));
  if (cell.admission == SsdAdmission::kSecondTouch) name += " second_touch";
  return name;
}

}  // namespace

std::vector<std::string> AllPolicies() {
  std::vector<std::string> names;
  for (const std::string_view name : PolicyNames()) names.emplace_back(name);
  names.emplace_back("min");
  return names;
}

absl::StatusOr<std::vector<std::string>> ParsePolicies(const std::string& text) {
  if (text.empty()) {
    std::vector<std::string> names = {"default"};
    if (kDefaultPolicy != "lru") names.emplace_back("lru");
    names.emplace_back("min");
    return names;
  }
  std::vector<std::string> known = AllPolicies();
  std::vector<std::string> names;
  for (const std::string& name : Split(text)) {
    if (name == "all") {
      names.insert(names.end(), known.begin(), known.end());
    } else if (name == "default" || std::find(known.begin(), known.end(), name) != known.end()) {
      names.push_back(name);
    } else {
      const std::string nearest = NearestName(name, known);
      return absl::InvalidArgumentError(
          absl::StrCat("--policy: no policy '", Printable(name), "'",
                       nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"),
                       " There are ", absl::StrJoin(known, ", "), ", default and all"));
    }
  }
  std::set<std::string> seen;
  std::erase_if(names, [&](const std::string& name) { return !seen.insert(name).second; });
  if (names.empty()) return absl::InvalidArgumentError("--policy: names no policy");
  return names;
}

absl::StatusOr<std::vector<uint64_t>> ParseBlockCounts(const std::string& option,
                                                       const std::string& text) {
  std::vector<uint64_t> counts;
  for (const std::string& word : Split(text)) {
    const absl::StatusOr<uint64_t> count = trace::ParseBlockCount(word);
    if (!count.ok()) {
      return absl::InvalidArgumentError(absl::StrCat(option, ": ", count.status().message()));
    }
    counts.push_back(*count);
  }
  if (counts.empty() || counts.size() > kMaxListed) {
    return absl::InvalidArgumentError(
        absl::StrCat(option, ": name 1 to ", kMaxListed, " sizes, such as 1k,3k,inf"));
  }
  return counts;
}

absl::StatusOr<std::vector<SsdAdmission>> ParseAdmissions(const std::string& text) {
  std::vector<SsdAdmission> admissions;
  for (const std::string& word : Split(text)) {
    if (word == SsdAdmissionName(SsdAdmission::kAlways)) {
      admissions.push_back(SsdAdmission::kAlways);
    } else if (word == SsdAdmissionName(SsdAdmission::kSecondTouch)) {
      admissions.push_back(SsdAdmission::kSecondTouch);
    } else {
      return absl::InvalidArgumentError(
          absl::StrCat("--admission: '", Printable(word), "' is neither always nor second_touch"));
    }
  }
  if (admissions.empty()) return absl::InvalidArgumentError("--admission: names nothing");
  return admissions;
}

std::vector<uint64_t> SensibleCapacities(const trace::LruCurve& curve) {
  const uint64_t enough = std::max<uint64_t>(1, SufficientBlocks(curve));
  std::vector<uint64_t> capacities;
  for (uint64_t ten = 1; ten <= enough; ten *= 10) {
    for (const uint64_t step : {ten, 3 * ten}) {
      if (step < enough) capacities.push_back(step);
    }
    if (ten > UINT64_MAX / 30) break;
  }
  constexpr size_t kMost = 6;
  if (capacities.size() > kMost) {
    capacities.erase(capacities.begin(), capacities.end() - static_cast<int64_t>(kMost));
  }
  uint64_t unit = 1;
  while (enough / unit >= 100) unit *= 10;
  capacities.push_back((enough + unit - 1) / unit * unit);
  capacities.push_back(kInfiniteBlocks);
  return capacities;
}

absl::StatusOr<DaemonConfig> ReadNodeConfig(const std::string& path) {
  ConfigContext context = SystemConfigContext();
  context.available_memory_bytes = 0;
  absl::StatusOr<DaemonConfig> config = ReadConfigFile(path, context);
  if (!config.ok()) {  // a percentage: then of this machine
    const absl::StatusOr<DaemonConfig> here = ReadConfigFile(path, SystemConfigContext());
    if (here.ok()) config = here;
  }
  return config;
}

absl::StatusOr<Cell> CellOfConfig(const DaemonConfig& config, uint64_t block_bytes) {
  Cell cell;
  cell.policy = config.eviction_policy;
  cell.evict_ratio = config.evict_ratio;
  cell.evict_start_ratio = config.evict_start_ratio;
  cell.admission = config.ssd.admission;
  cell.cpu_blocks = config.num_cpu_blocks;
  if (cell.cpu_blocks == 0) {
    if (block_bytes == 0) {
      return absl::InvalidArgumentError(
          "--config: say how many bytes a block has (--block-bytes 2MiB), or give num_cpu_blocks "
          "in the file");
    }
    cell.cpu_blocks = config.cpu_cache_bytes / block_bytes;
  }
  if (!config.ssd.enabled) return cell;
  SsdConfig ssd = config.ssd;
  if (ssd.cache_bytes == 0 && ssd.num_blocks == 0) {
    if (!ResolveSsd(SsdResolve::kCheck, &ssd).ok() || ssd.cache_bytes == 0) {
      return absl::InvalidArgumentError(
          "--config: give ssd_cache_bytes as a size; what it is a share of is not on this machine");
    }
  }
  if (ssd.cache_bytes != 0 && block_bytes == 0 && ssd.num_blocks == 0) {
    return absl::InvalidArgumentError(
        "--config: say how many bytes a block has (--block-bytes 2MiB) for ssd_cache_bytes");
  }
  cell.ssd_blocks = block_bytes == 0 ? ssd.num_blocks : ssd.cache_bytes / block_bytes;
  if (ssd.num_blocks != 0 && ssd.cache_bytes != 0) {
    cell.ssd_blocks = std::min(cell.ssd_blocks, ssd.num_blocks);
  } else if (ssd.num_blocks != 0) {
    cell.ssd_blocks = ssd.num_blocks;
  }
  return cell;
}

std::string BlocksText(uint64_t blocks) {
  return blocks == kInfiniteBlocks ? "inf" : trace::Grouped(blocks);
}

std::string CellsText(const std::vector<CellResult>& results) {
  std::vector<std::string> rows;
  std::set<uint64_t> sizes;
  std::map<std::pair<std::string, uint64_t>, std::string> cells;
  bool ssd = false;
  for (const CellResult& result : results) {
    const std::string name = RowName(result.cell);
    if (std::find(rows.begin(), rows.end(), name) == rows.end()) rows.push_back(name);
    sizes.insert(result.cell.cpu_blocks);
    std::string text = Points(result.hit_rate());
    if (result.cell.ssd_blocks != 0 && result.cell.policy != "min") {
      ssd = true;
      absl::StrAppend(&text, " (", Points(result.hit_rate_cpu()), "+",
                      Points(result.hit_rate_ssd()), ")");
    }
    cells[{name, result.cell.cpu_blocks}] = text;
  }
  std::vector<std::string> head = {"policy"};
  for (const uint64_t size : sizes) head.push_back(BlocksText(size));
  TextTable table(head);
  for (const std::string& name : rows) {
    std::vector<std::string> row = {name};
    for (const uint64_t size : sizes) {
      const auto it = cells.find({name, size});
      row.push_back(it == cells.end() ? "" : it->second);
    }
    table.Add(row);
  }
  return absl::StrCat("Hit rate in % of prompt tokens by blocks in memory",
                      ssd ? "; in brackets from memory + from SSD" : "", "\n\n", table.Text(2));
}

}  // namespace flexkv::cli
