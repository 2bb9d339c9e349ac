// The LRU hit curve over all capacities, for whoever reads a trace for other purposes too.
#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/trace/run_tracker.h"
#include "flexkv/trace/simulate.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

class LruCurveBuilder {
 public:
  // ResourceExhausted: more than four billion different blocks.
  absl::Status Add(const RequestBatch& batch);
  // After the last Add, once.
  LruCurve Finish();
  uint64_t bytes() const;

 private:
  void Count(const TraceRequest& request);
  void Widen();
  void CountTokens();

  LruCurve curve_;
  RunTracker runs_;
  std::vector<int64_t> hits_;    // [c]: capacity c gains so much more than c - 1 did
  std::vector<int64_t> tokens_;  // the same in tokens, when blocks differ
};

}  // namespace flexkv::trace
