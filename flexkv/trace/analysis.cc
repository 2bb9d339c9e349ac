// The curve is computed by ComputeLruCurve, which pulls the trace through a source that shows every
// batch to the collector on its way: one pass over the file serves both.
#include "flexkv/trace/analysis.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/trace/prefix_table.h"

namespace flexkv::trace {
namespace {

constexpr TimeNs kFirstBucket = 10 * kNsPerMs;
constexpr size_t kMaxBuckets = 120;
constexpr size_t kMaxNamespaces = 4096;  // the rest share the last row
constexpr uint64_t kBatchBlocks = 1 << 18;

// Rows of time that grow in width so that there never are more than kMaxBuckets.
class TimeLine {
 public:
  TimeBucket& At(TimeNs time) {
    while (time / width_ >= kMaxBuckets) Widen();
    const size_t index = time / width_;
    while (rows_.size() <= index) {
      rows_.push_back({.start_ns = static_cast<TimeNs>(rows_.size()) * width_});
    }
    return rows_[index];
  }
  TimeNs width() const { return width_; }
  std::vector<TimeBucket> Take() { return std::move(rows_); }

 private:
  void Widen() {
    width_ *= 2;
    for (size_t i = 0; i < rows_.size(); i += 2) {
      TimeBucket merged = rows_[i];
      if (i + 1 < rows_.size()) {
        merged.tokens.Add(rows_[i + 1].tokens);
        merged.evicted_blocks += rows_[i + 1].evicted_blocks;
      }
      rows_[i / 2] = merged;
    }
    rows_.resize((rows_.size() + 1) / 2);
  }
  TimeNs width_ = kFirstBucket;
  std::vector<TimeBucket> rows_;
};

class Collector {
 public:
  Collector(const AnalyzeOptions& options, uint64_t table_bytes)
      : options_(options), table_(table_bytes) {}

  void Add(const RequestBatch& batch) {
    for (const TraceRequest& request : batch.requests) AddRequest(batch, request);
    for (const TraceEviction& eviction : batch.evictions) {
      line_.At(eviction.time_ns).evicted_blocks += eviction.blocks;
      if (eviction.tier < out_.evicted_blocks.size()) {
        out_.evicted_blocks[eviction.tier] += eviction.blocks;
      }
    }
  }

  Analysis Finish(const TraceInfo& info) {
    out_.info = info;
    out_.bucket_ns = line_.width();
    out_.over_time = line_.Take();
    std::sort(out_.slowest.begin(), out_.slowest.end(), Slower);
    if (out_.slowest.size() > options_.top) out_.slowest.resize(options_.top);
    out_.unique_blocks = table_.blocks();
    out_.roots = table_.roots();
    out_.never_read_blocks = table_.never_read();
    out_.sample_shift = table_.sample_shift();
    out_.fan_out = table_.FanOut();
    TakeTree();
    return std::move(out_);
  }

 private:
  static bool Slower(const SlowOperation& a, const SlowOperation& b) {
    return a.total_ns() > b.total_ns();
  }

  void AddRequest(const RequestBatch& batch, const TraceRequest& request) {
    ++out_.records;
    out_.duration_ns = std::max(out_.duration_ns, request.time_ns);
    if (tokens_per_block_ == 0) tokens_per_block_ = request.tokens_per_block;
    const std::span<const uint64_t> ids = batch.BlocksOf(request);
    if (request.kind != RequestKind::kPut) AddLookup(request, ids);
    if (request.kind != RequestKind::kGet) table_.Insert(ids, request.time_ns);
    if (request.measured.present) AddMeasured(request);
  }

  void AddLookup(const TraceRequest& request, std::span<const uint64_t> ids) {
    const Measured& measured = request.measured;
    TokenCounts tokens;
    tokens.requests = 1;
    tokens.prompt_tokens = request.prompt_tokens;
    tokens.engine_tokens = measured.engine_tokens;
    tokens.cpu_tokens = measured.cpu_tokens;
    tokens.ssd_tokens = measured.ssd_tokens;
    tokens.remote_tokens = measured.remote_tokens;
    const uint64_t found = table_.Lookup(ids, request.time_ns, &out_.reuse_gap_ns);
    tokens.reachable_tokens =
        std::min<uint64_t>(found * request.tokens_per_block, request.prompt_tokens);
    out_.total.Add(tokens);
    line_.At(request.time_ns).tokens.Add(tokens);
    const size_t ns = std::min<size_t>(request.ns, kMaxNamespaces - 1);
    if (out_.by_namespace.size() <= ns) out_.by_namespace.resize(ns + 1);
    out_.by_namespace[ns].Add(tokens);
    out_.prompt_blocks.Add(request.num_blocks);
    out_.block_accesses += request.num_blocks;
    if (request.tokens_per_block != 0) {
      out_.partial_tokens += request.prompt_tokens % request.tokens_per_block;
    }
  }

  void AddMeasured(const TraceRequest& request) {
    const Measured& m = request.measured;
    out_.measured = true;
    ++out_.results[std::min<size_t>(static_cast<size_t>(m.result), out_.results.size() - 1)];
    const uint32_t tokens = std::max<uint32_t>(1, request.tokens_per_block);
    if (request.kind != RequestKind::kPut) {
      out_.match_ns.Add(m.match_ns);
      if (m.load_ns != 0) out_.queue_ns.Add(m.queue_ns);
    }
    if (request.kind != RequestKind::kGet) {
      ++out_.puts.puts;
      out_.puts.accepted_blocks += m.accepted_blocks;
      out_.puts.held_blocks += m.held_blocks;
      out_.puts.refused_blocks += m.refused_blocks;
    }
    AddLeg(Leg::kLoad, m.load_ns, m.load_bytes, m.loaded_tokens / tokens);
    AddLeg(Leg::kSsd, m.ssd_ns, m.ssd_bytes, m.ssd_tokens / tokens);
    AddLeg(Leg::kStore, m.store_ns, m.store_bytes, m.accepted_blocks);
    KeepSlow(request);
  }

  void AddLeg(Leg which, uint64_t ns, uint64_t bytes, uint64_t blocks) {
    if (ns == 0) return;
    LegStats& leg = out_.legs[static_cast<size_t>(which)];
    const uint64_t shares = std::max<uint64_t>(1, blocks);
    const uint64_t each = ns / shares;
    leg.ns_per_block.Add(each);
    ++leg.operations;
    leg.blocks += blocks;
    leg.bytes += bytes;
    leg.total_ns += ns;
    if (each > TargetNs(which)) ++leg.late_operations;
  }

  // Keeps a few times as many as are wanted and throws the quicker half out now and then.
  void KeepSlow(const TraceRequest& request) {
    const Measured& m = request.measured;
    SlowOperation operation{.ordinal = out_.records,
                            .time_ns = request.time_ns,
                            .kind = request.kind,
                            .ns = request.ns,
                            .prompt_tokens = request.prompt_tokens,
                            .blocks = request.num_blocks,
                            .match_ns = m.match_ns,
                            .queue_ns = m.queue_ns,
                            .load_ns = m.load_ns,
                            .ssd_ns = m.ssd_ns,
                            .store_ns = m.store_ns};
    if (operation.total_ns() <= slow_bound_) return;
    out_.slowest.push_back(operation);
    const size_t keep = std::max<size_t>(1, options_.top);
    if (out_.slowest.size() < 4 * keep) return;
    std::nth_element(out_.slowest.begin(), out_.slowest.begin() + static_cast<int64_t>(keep),
                     out_.slowest.end(), Slower);
    out_.slowest.resize(keep);
    slow_bound_ =
        std::min_element(out_.slowest.begin(), out_.slowest.end(),
                         [](const auto& a, const auto& b) { return a.total_ns() < b.total_ns(); })
            ->total_ns();
  }

  SharedPrefix PrefixOf(const PrefixTable::Segment& segment, int parent) const {
    return {segment.id,      parent,       segment.depth_blocks,
            segment.blocks,  segment.uses, segment.saved_blocks * tokens_per_block_,
            segment.children};
  }

  void TakeTree() {
    const std::vector<PrefixTable::Segment> segments = table_.SharedSegments();
    std::vector<uint32_t> order(segments.size());
    std::iota(order.begin(), order.end(), 0u);
    const size_t wanted =
        std::min<size_t>(order.size(), std::max(options_.top, options_.tree_segments));
    std::partial_sort(order.begin(), order.begin() + static_cast<int64_t>(wanted), order.end(),
                      [&](uint32_t a, uint32_t b) {
                        return segments[a].saved_blocks != segments[b].saved_blocks
                                   ? segments[a].saved_blocks > segments[b].saved_blocks
                                   : a < b;
                      });
    uint64_t top_tokens = 0;
    std::vector<uint32_t> shown;
    for (size_t i = 0; i < wanted; ++i) {
      if (i < options_.top) {
        out_.top_prefixes.push_back(PrefixOf(segments[order[i]], -1));
        top_tokens += out_.top_prefixes.back().saved_tokens;
      }
      for (uint32_t at = order[i]; at != PrefixTable::kNone; at = segments[at].parent) {
        shown.push_back(at);  // and all above it
      }
    }
    if (out_.total.reachable_tokens != 0) {
      out_.top_share = std::min(
          1.0, static_cast<double>(top_tokens) / static_cast<double>(out_.total.reachable_tokens));
    }
    FillTree(segments, std::move(shown));
  }

  void FillTree(const std::vector<PrefixTable::Segment>& segments, std::vector<uint32_t> shown) {
    std::sort(shown.begin(), shown.end());
    shown.erase(std::unique(shown.begin(), shown.end()), shown.end());
    for (const uint32_t at : shown) {
      int parent = -1;
      if (segments[at].parent != PrefixTable::kNone) {
        const auto it = std::lower_bound(shown.begin(), shown.end(), segments[at].parent);
        parent = static_cast<int>(it - shown.begin());
      }
      out_.tree.push_back(PrefixOf(segments[at], parent));
    }
  }

  const AnalyzeOptions& options_;
  PrefixTable table_;
  TimeLine line_;
  Analysis out_;
  uint32_t tokens_per_block_ = 0;
  uint64_t slow_bound_ = 0;
};

class ObservedSource : public TraceSource {
 public:
  ObservedSource(TraceSource* inner, Collector* collector, const AnalyzeOptions& options)
      : inner_(inner), collector_(collector), options_(options) {}

  absl::StatusOr<bool> Next(uint64_t max_blocks, RequestBatch* batch) override {
    absl::StatusOr<bool> more = inner_->Next(max_blocks, batch);
    if (!more.ok()) {
      error_ = more.status();
    } else if (*more) {
      collector_->Add(*batch);
      if (options_.progress) options_.progress(inner_->progress());
    } else {
      ended_ = true;
    }
    return more;
  }
  absl::Status Rewind() override {
    return absl::FailedPreconditionError("the curve takes one pass");
  }
  const TraceInfo& info() const override { return inner_->info(); }
  double progress() const override { return inner_->progress(); }

  const absl::Status& error() const { return error_; }
  bool ended() const { return ended_; }

 private:
  TraceSource* inner_;
  Collector* collector_;
  const AnalyzeOptions& options_;
  absl::Status error_;
  bool ended_ = false;
};

std::vector<ReuseDistance> DistancesOf(const LruCurve& curve) {
  std::vector<ReuseDistance> distances;
  uint64_t before = 0;
  for (uint64_t to = 1; to != 0; to *= 2) {
    const uint64_t hits = curve.HitsAt(to);
    if (hits != before || !distances.empty()) distances.push_back({to, hits - before});
    before = hits;
    if (to >= curve.unique_blocks) break;
  }
  while (!distances.empty() && distances.back().hits == 0) distances.pop_back();
  return distances;
}

}  // namespace

void TokenCounts::Add(const TokenCounts& other) {
  requests += other.requests;
  prompt_tokens += other.prompt_tokens;
  engine_tokens += other.engine_tokens;
  cpu_tokens += other.cpu_tokens;
  ssd_tokens += other.ssd_tokens;
  remote_tokens += other.remote_tokens;
  reachable_tokens += other.reachable_tokens;
}

const char* NameOf(Leg leg) {
  constexpr std::array<const char*, kNumLegs> kNames = {"load", "store", "ssd", "remote"};
  return kNames[static_cast<size_t>(leg)];
}

const char* TitleOf(Leg leg) {
  constexpr std::array<const char*, kNumLegs> kTitles = {"CPU to GPU", "GPU to CPU", "SSD to CPU",
                                                         "remote to CPU"};
  return kTitles[static_cast<size_t>(leg)];
}

uint64_t TargetNs(Leg leg) {
  constexpr std::array<uint64_t, kNumLegs> kTargetsMs = {10, 10, 50, 500};
  return kTargetsMs[static_cast<size_t>(leg)] * kNsPerMs;
}

const char* WordsOf(Verdict verdict) {
  constexpr std::array<const char*, 4> kWords = {"excellent", "good", "needs work",
                                                 "nothing to find"};
  return kWords[static_cast<size_t>(verdict)];
}

double Analysis::reachable_rate() const {
  return curve.has_value() ? curve->HitRateAt(kInfiniteBlocks) : total.reachable_rate();
}

Verdict Analysis::verdict() const {
  if (total.prompt_tokens == 0) return Verdict::kNothingToFind;
  if (rate() > 0.8) return Verdict::kExcellent;
  return rate() >= 0.5 ? Verdict::kGood : Verdict::kNeedsWork;
}

uint64_t Analysis::block_bytes() const {
  uint64_t blocks = 0, bytes = 0;
  for (const Leg which : {Leg::kLoad, Leg::kStore}) {
    blocks += leg(which).blocks;
    bytes += leg(which).bytes;
  }
  return blocks == 0 ? 0 : bytes / blocks;
}

absl::StatusOr<Analysis> Analyze(TraceSource* source, const AnalyzeOptions& options) {
  Collector collector(options, options.max_memory_bytes / 2);
  ObservedSource observed(source, &collector, options);
  std::optional<LruCurve> curve;
  std::string no_curve = "not asked for";
  if (options.curve) {
    absl::StatusOr<LruCurve> computed = ComputeLruCurve(&observed, options.max_memory_bytes / 2);
    if (!observed.error().ok()) return observed.error();
    if (computed.ok()) {
      curve = std::move(*computed);
      no_curve.clear();
    } else {
      no_curve = std::string(computed.status().message());
    }
  }
  RequestBatch batch;
  while (!observed.ended()) {
    const absl::StatusOr<bool> more = observed.Next(kBatchBlocks, &batch);
    if (!more.ok()) return more.status();
  }
  Analysis analysis = collector.Finish(source->info());
  if (curve.has_value()) analysis.reuse_distance = DistancesOf(*curve);
  analysis.curve = std::move(curve);
  analysis.no_curve = std::move(no_curve);
  return analysis;
}

}  // namespace flexkv::trace
