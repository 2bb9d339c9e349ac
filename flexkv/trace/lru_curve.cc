// The LRU hit curve over all capacities in one pass.
//
// LRU keeps a stack: an LRU cache of c blocks holds the first c of it. A request puts its chain on
// top, the block nearest to the root first, for leaves go first: of the blocks that one request
// used, the deepest is the next to give way. That also says what a cache smaller than the request
// keeps of it, its first c blocks, which is what the manager's put does when no more room can be
// made. A block at position p of the stack is a hit for every capacity above p. The positions along
// a chain only rise, so hits are a prefix at every capacity.
//
// Blocks that lie side by side in the stack and on the chain are hits from one capacity on each:
// a segment of n blocks at position p adds one hit at each of the capacities p + 1 .. p + n, which
// is two changes in an array of differences. RunTracker finds the segments.
#include "flexkv/trace/lru_curve.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv::trace {
namespace {

constexpr uint64_t kBatchBlocks = 1 << 16;

}  // namespace

absl::Status LruCurveBuilder::Add(const RequestBatch& batch) {
  if (runs_.unique_blocks() + batch.blocks.size() > RunTracker::kMaxBlocks)
    return absl::ResourceExhaustedError("the trace has more than 4 billion different blocks");
  constexpr size_t kFar = 4, kNear = 2;
  const std::vector<TraceRequest>& requests = batch.requests;
  for (size_t i = 0; i < requests.size(); ++i) {
    if (i + kFar < requests.size()) runs_.PrefetchFar(batch.BlocksOf(requests[i + kFar]));
    if (i + kNear < requests.size()) runs_.PrefetchNear(batch.BlocksOf(requests[i + kNear]));
    runs_.Access(batch.BlocksOf(requests[i]), requests[i].kind != RequestKind::kGet);
    if (requests[i].kind != RequestKind::kPut) Count(requests[i]);
  }
  return absl::OkStatus();
}

uint64_t LruCurveBuilder::bytes() const {
  return runs_.bytes() + (hits_.capacity() + tokens_.capacity()) * sizeof(int64_t);
}

LruCurve LruCurveBuilder::Finish() {
  curve_.unique_blocks = runs_.unique_blocks();
  curve_.steps.reserve(std::min<size_t>(hits_.size(), curve_.unique_blocks + 1));
  uint64_t hits = 0, token_hits = 0;
  int64_t gained = 0, gained_tokens = 0;
  for (size_t c = 0; c < hits_.size(); ++c) {
    if (!tokens_.empty()) gained_tokens += tokens_[c];
    gained += hits_[c];
    if (gained == 0) continue;
    hits += static_cast<uint64_t>(gained);
    curve_.steps.emplace_back(c, hits);
    if (tokens_.empty()) continue;
    token_hits += static_cast<uint64_t>(gained_tokens);
    curve_.step_tokens.push_back(token_hits);
  }
  return std::move(curve_);
}

void LruCurveBuilder::Count(const TraceRequest& request) {
  ++curve_.requests;
  curve_.prompt_tokens += request.prompt_tokens;
  curve_.block_accesses += request.num_blocks;
  if (runs_.segments().empty()) return;
  if (hits_.size() < runs_.unique_blocks() + 2) Widen();
  if (curve_.tokens_per_block == 0) curve_.tokens_per_block = request.tokens_per_block;
  if (request.tokens_per_block != curve_.tokens_per_block && tokens_.empty()) CountTokens();
  for (const RunTracker::Segment& segment : runs_.segments()) {
    const uint64_t from = segment.position + 1;
    ++hits_[from];
    --hits_[from + segment.blocks];
    if (tokens_.empty()) continue;
    tokens_[from] += request.tokens_per_block;
    tokens_[from + segment.blocks] -= request.tokens_per_block;
  }
}

void LruCurveBuilder::Widen() {
  hits_.resize(std::max<size_t>(2 * hits_.size(), runs_.unique_blocks() + 1024));
  if (!tokens_.empty()) tokens_.resize(hits_.size());
}

// Blocks differ in tokens: from now on both are counted.
void LruCurveBuilder::CountTokens() {
  tokens_ = hits_;
  for (int64_t& value : tokens_) value *= curve_.tokens_per_block;
}

absl::StatusOr<LruCurve> ComputeLruCurve(TraceSource* source, uint64_t max_memory_bytes) {
  LruCurveBuilder curve;
  RequestBatch batch;
  while (true) {
    absl::StatusOr<bool> more = source->Next(kBatchBlocks, &batch);
    if (!more.ok()) return more.status();
    if (!*more) break;
    if (!source->info().has_blocks)
      return absl::InvalidArgumentError("the trace was recorded without block hashes");
    if (absl::Status status = curve.Add(batch); !status.ok()) return status;
    const uint64_t bytes = curve.bytes() + batch.bytes();
    if (bytes > max_memory_bytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the LRU curve needs more than ", max_memory_bytes >> 20, " MiB of memory: ", bytes >> 20,
          " MiB after ", static_cast<int>(100 * source->progress()), " % of the trace"));
    }
  }
  LruCurve done = curve.Finish();
  if (done.tokens_per_block == 0) done.tokens_per_block = source->info().tokens_per_block;
  return done;
}

namespace {

// Index of the step that holds at this capacity; nullopt-like SIZE_MAX below the first.
size_t StepAt(const LruCurve& curve, uint64_t capacity) {
  const auto above =
      std::upper_bound(curve.steps.begin(), curve.steps.end(), capacity,
                       [](uint64_t wanted, const auto& step) { return wanted < step.first; });
  return static_cast<size_t>(above - curve.steps.begin()) - 1;
}

}  // namespace

uint64_t LruCurve::HitsAt(uint64_t capacity_blocks) const {
  const size_t step = StepAt(*this, capacity_blocks);
  return step < steps.size() ? steps[step].second : 0;
}

double LruCurve::HitRateAt(uint64_t capacity_blocks) const {
  const size_t step = StepAt(*this, capacity_blocks);
  if (step >= steps.size() || prompt_tokens == 0) return 0;
  const uint64_t tokens =
      step_tokens.empty() ? steps[step].second * tokens_per_block : step_tokens[step];
  return static_cast<double>(tokens) / static_cast<double>(prompt_tokens);
}

}  // namespace flexkv::trace
