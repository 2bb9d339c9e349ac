// What a trace would have got from other capacities and policies. Cells run the daemon's own core
// (CacheManager with executors that move nothing) and share one pass over the trace.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

inline constexpr uint64_t kInfiniteBlocks = UINT64_MAX;

// One combination to simulate.
struct Cell {
  // A name of NewEvictionPolicy (index/policies.h), "default" (the daemon's), or "min": the offline
  // optimum by furthest next use with bypass, of one tier of cpu_blocks + ssd_blocks.
  std::string policy = "default";
  uint64_t cpu_blocks = kInfiniteBlocks;
  uint64_t ssd_blocks = 0;
  SsdAdmission admission = SsdAdmission::kAlways;
  // Only used with SimulateOptions::timed; else eviction takes place exactly when a tier is full.
  double evict_ratio = 0.01;
  double evict_start_ratio = 0.98;
};

struct SimulateOptions {
  // Requests start at their times and take time: a prompt is found by later ones only once it has
  // been computed and stored. False: arrival order, lookup then insert, no overlap.
  bool timed = false;
  double prefill_tokens_per_s = 20000;                    // timed: how long what was missed takes
  double load_bytes_per_s = 20e9, ssd_bytes_per_s = 5e9;  // timed
  uint64_t block_bytes = 1 << 20;                         // timed
  // A one-bit hint read from the future, right with this probability (0: off): continue_p is 0.9 or
  // 0.1. The truth of a request: its last full block is asked for again by a later request.
  double hint_oracle = 0;
  uint64_t hint_seed = 1;
  bool use_trace_hints = true;             // hints in the trace reach the policies
  uint64_t max_memory_bytes = 8ull << 30;  // of batch, cells and next uses together
  uint32_t threads = 0;                    // 0: one per core
  std::function<void(double)> progress;    // 0..1, from the calling thread; may be empty
};

struct CellResult {
  Cell cell;
  uint64_t requests = 0;        // lookups
  uint64_t prompt_tokens = 0;   // of them, partial blocks included
  uint64_t hit_tokens_cpu = 0;  // full blocks only
  uint64_t hit_tokens_ssd = 0;
  uint64_t inserted_blocks = 0, evicted_blocks = 0, ssd_written_blocks = 0;
  uint64_t never_read_blocks = 0;  // of inserted ones: left, or still there at the end, unread
  double hit_rate() const { return Rate(hit_tokens_cpu + hit_tokens_ssd); }
  double hit_rate_cpu() const { return Rate(hit_tokens_cpu); }
  double hit_rate_ssd() const { return Rate(hit_tokens_ssd); }

 private:
  double Rate(uint64_t tokens) const {
    return prompt_tokens == 0 ? 0
                              : static_cast<double>(tokens) / static_cast<double>(prompt_tokens);
  }
};

// Results in the order of `cells`. InvalidArgument: unknown policy, no blocks recorded;
// ResourceExhausted: needs more than max_memory_bytes, says how much; errors of the source.
absl::StatusOr<std::vector<CellResult>> Simulate(TraceSource* source,
                                                 const std::vector<Cell>& cells,
                                                 const SimulateOptions& options = {});

// The exact LRU hit rate at every capacity, from one pass (lru_curve.cc has the algorithm): what
// Simulate with policy "lru" says without `timed`, block for block, where each request looks up and
// inserts (kGetPut). Of recorded lookups and inserts apart it takes an insert for a use of all its
// blocks, and a lookup for a use of those seen before, as if they were here at every capacity.
struct LruCurve {
  uint64_t requests = 0, prompt_tokens = 0, block_accesses = 0, unique_blocks = 0;
  uint32_t tokens_per_block = 0;
  // hits[c]: hits in blocks of an LRU cache of c blocks, at the capacities where it changes:
  // ascending pairs (capacity, hits from that capacity on).
  std::vector<std::pair<uint64_t, uint64_t>> steps;
  // The same hits in tokens, beside each step; empty when all blocks have tokens_per_block.
  std::vector<uint64_t> step_tokens;
  uint64_t HitsAt(uint64_t capacity_blocks) const;
  double HitRateAt(uint64_t capacity_blocks) const;  // over prompt_tokens
};
absl::StatusOr<LruCurve> ComputeLruCurve(TraceSource* source,
                                         uint64_t max_memory_bytes = 8ull << 30);

// "1k", "3M", "inf"; InvalidArgument says what was read.
absl::StatusOr<uint64_t> ParseBlockCount(std::string_view text);

}  // namespace flexkv::trace
