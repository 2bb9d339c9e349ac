// Searches for the cache that a trace is served best by, within a budget.
//
// First the exact LRU curve over all sizes (one pass): it says where more memory stops to help, so
// nothing larger is looked at. Then the daemon's own core at candidates: every policy at a few
// sizes, the best one over a grid of sizes, then admission and the way of evicting.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/cli/verify.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::cli {

enum class TuneTarget : uint8_t {
  kHitRate,  // the highest rate (or target_value), then the cheapest way there
  kTtft,     // the least time until prompts are computed or loaded, then the cheapest way there
  kCost,     // the cheapest that reaches target_value (or nine tenths of the best)
};

struct TuneRequest {
  TuneTarget target = TuneTarget::kHitRate;
  std::optional<double> target_value;        // a hit rate, 0..1; of kTtft: seconds a request
  uint64_t memory_bytes = 0, ssd_bytes = 0;  // the budget
  uint64_t block_bytes = 0;
  double memory_price = 4, ssd_price = 0.1;  // of a GB, in any unit
  std::vector<std::string> policies;         // to choose from
  std::optional<trace::Cell> present;
  trace::SimulateOptions simulate;  // its speeds are those of the machine
};

struct TunePoint {
  trace::CellResult result;
  double cost = 0;
  double saved_s = 0;  // of prefill, over the trace
  double ttft_s = 0;   // mean time until a prompt is computed or loaded
};

struct Variant {
  std::string name;
  TunePoint point;
};

struct TuneResult {
  trace::LruCurve curve;
  double duration_s = 0;
  uint64_t enough_blocks = 0;  // LRU: more gains less than half a point
  double infinite_rate = 0;
  double ceiling_rate = 0;  // of `min` with the chosen size
  double best_rate = 0;     // that the search saw
  TunePoint chosen;
  std::optional<TunePoint> present;
  bool target_reached = true;
  bool tops_out = false;  // an infinite cache gains less than a point
  // At their times, with the daemon's eviction ahead of need.
  double timed_rate = 0, present_timed_rate = 0;
  std::optional<VerifyResult> verified;          // by whoever wants it; Tune leaves it empty
  std::vector<Variant> sizes, policies, others;  // around the chosen one
};

// Errors as Simulate; InvalidArgument: the budget holds no block, or the trace has no full block.
absl::StatusOr<TuneResult> Tune(trace::TraceSource* source, const TuneRequest& request);

}  // namespace flexkv::cli
