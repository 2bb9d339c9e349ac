#include "flexkv/cli/tuner.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/index/policies.h"
#include "flexkv/server/config_ssd.h"
#include "flexkv/trace/advice.h"
#include "flexkv/trace/regroup.h"

namespace flexkv::cli {
namespace {

using trace::Cell;
using trace::CellResult;
using trace::LruCurve;

constexpr double kFlat = 0.005;         // half a point: not worth money
constexpr double kPolicyGain = 0.003;   // what another policy than the default must bring
constexpr double kSettingGain = 0.001;  // what another setting must bring

class Search {
 public:
  Search(trace::TraceSource* source, const TuneRequest& request)
      : source_(source), request_(request) {}

  absl::StatusOr<TuneResult> Run() {
    if (absl::Status status = LookAtCurve(); !status.ok()) return status;
    if (absl::Status status = ChoosePolicy(); !status.ok()) return status;
    if (absl::Status status = ChooseSize(); !status.ok()) return status;
    if (absl::Status status = ChooseAdmission(); !status.ok()) return status;
    if (absl::Status status = LookAround(); !status.ok()) return status;
    if (absl::Status status = ChooseEviction(); !status.ok()) return status;
    if (absl::Status status = LookAtBlockSizes(); !status.ok()) return status;
    return std::move(out_);
  }

 private:
  absl::Status LookAtCurve();
  absl::Status ChoosePolicy();
  absl::Status ChooseSize();
  absl::Status ChooseAdmission();
  absl::Status LookAround();
  absl::Status ChooseEviction();
  absl::Status LookAtBlockSizes();

  absl::StatusOr<std::vector<TunePoint>> Points(const std::vector<Cell>& cells, bool timed = false);
  TunePoint PointOf(const CellResult& result) const;
  size_t Best(const std::vector<TunePoint>& points);
  // What the target counts, more is better.
  double Worth(const TunePoint& point) const;

  trace::TraceSource* source_;
  const TuneRequest& request_;
  TuneResult out_;
  std::string policy_;
  uint64_t most_cpu_ = 0, most_ssd_ = 0;  // blocks worth looking at
};

absl::Status Search::LookAtCurve() {
  absl::StatusOr<LruCurve> curve =
      trace::ComputeLruCurve(source_, request_.simulate.max_memory_bytes);
  if (!curve.ok()) return curve.status();
  if (curve->unique_blocks == 0) {
    return absl::InvalidArgumentError("the trace has no full block: there is nothing to tune");
  }
  out_.curve = std::move(*curve);
  out_.infinite_rate = out_.curve.HitRateAt(trace::kInfiniteBlocks);
  out_.enough_blocks = std::max<uint64_t>(1, SufficientBlocks(out_.curve, kFlat));
  const uint64_t memory = request_.memory_bytes / request_.block_bytes;
  const uint64_t ssd = request_.ssd_bytes / request_.block_bytes;
  if (memory == 0) {
    return absl::InvalidArgumentError("--memory: holds no block of that size");
  }
  most_cpu_ = std::min(memory, out_.enough_blocks);
  // With room for what is being written while something else gives way.
  most_ssd_ = std::min(ssd, out_.enough_blocks + out_.enough_blocks / 8 + 64);
  return absl::OkStatus();
}

TunePoint Search::PointOf(const CellResult& result) const {
  TunePoint point;
  point.result = result;
  const auto bytes = static_cast<double>(request_.block_bytes);
  constexpr double kGb = 1e9;
  point.cost = (static_cast<double>(result.cell.cpu_blocks) * request_.memory_price +
                static_cast<double>(result.cell.ssd_blocks) * request_.ssd_price) *
               bytes / kGb;
  const auto hit = static_cast<double>(result.hit_tokens_cpu + result.hit_tokens_ssd);
  const auto prompt = static_cast<double>(result.prompt_tokens);
  const double tokens = std::max<double>(1, out_.curve.tokens_per_block);
  const trace::SimulateOptions& speeds = request_.simulate;
  const double load = hit / tokens * bytes / speeds.load_bytes_per_s;
  const double ssd =
      static_cast<double>(result.hit_tokens_ssd) / tokens * bytes / speeds.ssd_bytes_per_s;
  point.saved_s = hit / speeds.prefill_tokens_per_s;
  point.ttft_s = ((prompt - hit) / speeds.prefill_tokens_per_s + load + ssd) /
                 std::max<double>(1, static_cast<double>(result.requests));
  return point;
}

absl::StatusOr<std::vector<TunePoint>> Search::Points(const std::vector<Cell>& cells, bool timed) {
  if (absl::Status status = source_->Rewind(); !status.ok()) return status;
  trace::SimulateOptions options = request_.simulate;
  options.timed = timed;
  options.block_bytes = request_.block_bytes;
  const absl::StatusOr<std::vector<CellResult>> results = trace::Simulate(source_, cells, options);
  if (!results.ok()) return results.status();
  std::vector<TunePoint> points;
  for (const CellResult& result : *results) points.push_back(PointOf(result));
  return points;
}

double Search::Worth(const TunePoint& point) const {
  return request_.target == TuneTarget::kTtft ? -point.ttft_s : point.result.hit_rate();
}

// The default policy stays unless another one brings something everywhere.
absl::Status Search::ChoosePolicy() {
  std::vector<Cell> cells;
  std::vector<uint64_t> sizes = {most_cpu_};
  // Where less than all of the budget may do, a smaller size counts as well.
  const bool may_be_small =
      request_.target == TuneTarget::kCost || request_.target_value.has_value();
  if (may_be_small && most_cpu_ >= 4) sizes.push_back(most_cpu_ / 4);
  for (const std::string& policy : request_.policies) {
    for (const uint64_t size : sizes) {
      Cell cell;
      cell.policy = policy;
      cell.cpu_blocks = size;
      cell.ssd_blocks = most_ssd_;
      cells.push_back(cell);
    }
  }
  const absl::StatusOr<std::vector<TunePoint>> points = Points(cells);
  if (!points.ok()) return points.status();
  double best = -1, standard = -1;
  for (size_t i = 0; i < request_.policies.size(); ++i) {
    double mean = 0;
    for (size_t j = 0; j < sizes.size(); ++j) {
      mean += (*points)[i * sizes.size() + j].result.hit_rate() / static_cast<double>(sizes.size());
    }
    if (request_.policies[i] == kDefaultPolicy) standard = mean;
    if (mean > best) {
      best = mean;
      policy_ = request_.policies[i];
    }
  }
  if (standard >= 0 && best - standard < kPolicyGain) policy_ = kDefaultPolicy;
  return absl::OkStatus();
}

size_t Search::Best(const std::vector<TunePoint>& points) {
  double best = Worth(points.front());
  for (const TunePoint& point : points) best = std::max(best, Worth(point));
  double wanted = request_.target == TuneTarget::kTtft ? best * 1.01  // both are negative
                                                       : best - kFlat;
  if (request_.target_value.has_value()) {
    const double value =
        request_.target == TuneTarget::kTtft ? -*request_.target_value : *request_.target_value;
    out_.target_reached = value <= best + 1e-9;
    wanted = out_.target_reached ? value : wanted;
  } else if (request_.target == TuneTarget::kCost) {
    wanted = 0.9 * best;
  }
  size_t chosen = points.size();
  for (size_t i = 0; i < points.size(); ++i) {
    if (Worth(points[i]) + 1e-9 < wanted) continue;
    if (chosen == points.size() || points[i].cost < points[chosen].cost ||
        (points[i].cost == points[chosen].cost && Worth(points[i]) > Worth(points[chosen]))) {
      chosen = i;
    }
  }
  return chosen == points.size() ? 0 : chosen;
}

absl::Status Search::ChooseSize() {
  std::set<std::pair<uint64_t, uint64_t>> sizes;
  std::vector<uint64_t> ssd_sizes = {0};
  for (uint64_t part = 1; most_ssd_ != 0 && part <= 4; part *= 2) {
    ssd_sizes.push_back(std::max<uint64_t>(1, most_ssd_ / part));
  }
  constexpr double kStep = 0.8;
  for (const uint64_t ssd : ssd_sizes) {
    double size = static_cast<double>(most_cpu_);
    for (int i = 0; i < 12 && size >= 1; ++i, size *= i < 4 ? kStep : kStep * kStep) {
      sizes.insert({static_cast<uint64_t>(size), ssd});
    }
  }
  std::vector<Cell> cells;
  for (const auto& [cpu, ssd] : sizes) {
    Cell cell;
    cell.policy = policy_;
    cell.cpu_blocks = cpu;
    cell.ssd_blocks = ssd;
    cells.push_back(cell);
  }
  const absl::StatusOr<std::vector<TunePoint>> points = Points(cells);
  if (!points.ok()) return points.status();
  for (const TunePoint& point : *points) {
    out_.best_rate = std::max(out_.best_rate, point.result.hit_rate());
  }
  if (most_ssd_ == 0) {
    out_.chosen = (*points)[Best(*points)];
    return absl::OkStatus();
  }
  // With an SSD, little memory looks as good as much until requests take time: then what is on
  // its way from the SSD needs room.
  const absl::StatusOr<std::vector<TunePoint>> timed = Points(cells, true);
  if (!timed.ok()) return timed.status();
  out_.chosen = (*points)[Best(*timed)];
  return absl::OkStatus();
}

absl::Status Search::ChooseAdmission() {
  if (out_.chosen.result.cell.ssd_blocks == 0) return absl::OkStatus();
  Cell cell = out_.chosen.result.cell;
  cell.admission = SsdAdmission::kSecondTouch;
  const absl::StatusOr<std::vector<TunePoint>> points = Points({cell});
  if (!points.ok()) return points.status();
  const TunePoint& point = points->front();
  const double lost = out_.chosen.result.hit_rate() - point.result.hit_rate();
  TunePoint other = point;
  // It spares the device; worth it where it costs next to nothing.
  if (lost < kSettingGain &&
      point.result.ssd_written_blocks * 10 < out_.chosen.result.ssd_written_blocks * 9) {
    other = out_.chosen;
    out_.chosen = point;
  }
  out_.others.push_back(
      {absl::StrCat("ssd_admission ", SsdAdmissionName(other.result.cell.admission)), other});
  return absl::OkStatus();
}

absl::Status Search::LookAround() {
  const Cell chosen = out_.chosen.result.cell;
  std::vector<Cell> cells;
  std::vector<std::pair<std::vector<Variant>*, std::string>> places;
  const auto add = [&](std::vector<Variant>* list, const std::string& name, const Cell& cell) {
    cells.push_back(cell);
    places.emplace_back(list, name);
  };
  Cell cell = chosen;
  cell.cpu_blocks = std::max<uint64_t>(1, chosen.cpu_blocks / 2);
  add(&out_.sizes, "half the memory", cell);
  cell.cpu_blocks = chosen.cpu_blocks * 2;
  add(&out_.sizes, "twice the memory", cell);
  cell = chosen;
  if (chosen.ssd_blocks != 0) {
    cell.ssd_blocks = 0;
    add(&out_.sizes, "without SSD", cell);
    cell.ssd_blocks = chosen.ssd_blocks * 2;
    add(&out_.sizes, "twice the SSD", cell);
  }
  for (const std::string& policy : request_.policies) {
    if (policy == chosen.policy) continue;
    cell = chosen;
    cell.policy = policy;
    add(&out_.policies, policy, cell);
  }
  cell = chosen;
  cell.policy = "min";
  // The ceiling of what SSD and memory hold together: blocks on SSD may be in memory as well.
  cell.cpu_blocks = std::max(chosen.cpu_blocks, chosen.ssd_blocks);
  cell.ssd_blocks = 0;
  cells.push_back(cell);
  if (request_.present.has_value()) cells.push_back(*request_.present);
  const absl::StatusOr<std::vector<TunePoint>> points = Points(cells);
  if (!points.ok()) return points.status();
  for (size_t i = 0; i < places.size(); ++i) {
    places[i].first->push_back({places[i].second, (*points)[i]});
  }
  out_.ceiling_rate = (*points)[places.size()].result.hit_rate();
  if (request_.present.has_value()) out_.present = points->back();
  out_.tops_out = out_.infinite_rate - out_.chosen.result.hit_rate() < 2 * kFlat;
  return absl::OkStatus();
}

// Only seen at the requests' times: eviction ahead of need leaves slots empty.
absl::Status Search::ChooseEviction() {
  Cell cell = out_.chosen.result.cell;
  std::vector<Cell> cells = {cell};
  constexpr std::pair<double, double> kOthers[] = {{0.002, 0.99}, {0.05, 0.98}, {0.05, 0.7}};
  for (const auto& [ratio, start] : kOthers) {
    cell.evict_ratio = ratio;
    cell.evict_start_ratio = start;
    cells.push_back(cell);
  }
  if (request_.present.has_value()) cells.push_back(*request_.present);
  const absl::StatusOr<std::vector<TunePoint>> points = Points(cells, true);
  if (!points.ok()) return points.status();
  out_.timed_rate = points->front().result.hit_rate();
  if (request_.present.has_value()) out_.present_timed_rate = points->back().result.hit_rate();
  for (size_t i = 1; i <= std::size(kOthers); ++i) {
    const Cell& other = (*points)[i].result.cell;
    const double rate = (*points)[i].result.hit_rate();
    if (rate > out_.timed_rate + kSettingGain) {
      out_.timed_rate = rate;
      out_.chosen.result.cell.evict_ratio = other.evict_ratio;
      out_.chosen.result.cell.evict_start_ratio = other.evict_start_ratio;
    }
    out_.others.push_back({absl::StrCat("evict_ratio ", other.evict_ratio, ", evict_start_ratio ",
                                        other.evict_start_ratio, ", at their times"),
                           (*points)[i]});
  }
  return absl::OkStatus();
}

// The same memory cut into larger blocks, by the exact curve.
absl::Status Search::LookAtBlockSizes() {
  const Cell& chosen = out_.chosen.result.cell;
  const uint64_t blocks = std::max(chosen.cpu_blocks, chosen.ssd_blocks);
  for (const uint32_t factor : {2u, 4u}) {
    if (absl::Status status = source_->Rewind(); !status.ok()) return status;
    const std::unique_ptr<trace::TraceSource> larger = trace::MakeRegroupedSource(source_, factor);
    const absl::StatusOr<LruCurve> curve =
        trace::ComputeLruCurve(larger.get(), request_.simulate.max_memory_bytes);
    if (!curve.ok()) return curve.status();
    Variant variant;
    variant.name = absl::StrCat("blocks of ", curve->tokens_per_block, " tokens, lru");
    variant.point.result.cell = chosen;
    variant.point.result.cell.policy = "lru";
    variant.point.result.requests = curve->requests;
    variant.point.result.prompt_tokens = curve->prompt_tokens;
    variant.point.result.hit_tokens_cpu = curve->HitsAt(blocks / factor) * curve->tokens_per_block;
    out_.others.push_back(variant);
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<TuneResult> Tune(trace::TraceSource* source, const TuneRequest& request) {
  return Search(source, request).Run();
}

}  // namespace flexkv::cli
