// The proof of a prediction: a daemon of its own, on a socket directory of its own, with small
// blocks and the cell's sizes, is asked what the trace asks, through the protocol that engines
// speak. What it answers is laid beside what the simulator says.
#pragma once

#include <cstdint>
#include <functional>

#include "absl/status/statusor.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::cli {

struct VerifyOptions {
  uint64_t max_requests = 20000;  // of the trace, from its beginning
  uint64_t max_memory_bytes = 8ull << 30;
  std::function<void(double)> progress;  // 0..1; may be empty
};

struct VerifyResult {
  trace::Cell cell;       // what was compared: sizes in whole segments of the small blocks
  uint64_t requests = 0;  // of both
  double predicted = 0;   // by the simulator; requests as fast as the daemon takes them
  double measured = 0;    // by the daemon's answers
  uint64_t failed_loads = 0;
  double seconds = 0;
  double difference() const { return measured - predicted; }
};

// Both evict exactly when full. ResourceExhausted: the small blocks do not fit into memory; errors
// of the daemon, of the source and of Simulate.
absl::StatusOr<VerifyResult> VerifyLive(trace::TraceSource* source, const trace::Cell& cell,
                                        const VerifyOptions& options = {});

}  // namespace flexkv::cli
