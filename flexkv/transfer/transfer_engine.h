// Gives ready ops to executors, bounds what is in flight, reports completions. A state machine
// without threads: whoever owns it calls it from the control thread.
#pragma once

#include <cstdint>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv {

// Runs the ops of one or more routes. An accepted op ends in exactly one result, whatever happens
// to the process or device behind it; until then its arena places belong to the copy.
class Executor {
 public:
  virtual ~Executor() = default;
  virtual bool Supports(Route route) const = 0;
  // False: the queue is full, try again later. The op is copied.
  virtual bool Submit(const TransferOp& op) = 0;
  // Appends finished ops. Waits at most timeout_ns for the first one (0 = never waits).
  virtual void Poll(TimeNs timeout_ns, std::vector<OpResult>* results) = 0;
};

class TransferEngine {
 public:
  struct Options {
    uint32_t max_queued_ops = 4096;  // ops accepted and not yet finished, all routes
  };
  // Executors outlive the engine; the first that supports a route gets its ops.
  TransferEngine(Options options, std::vector<Executor*> executors);
  ~TransferEngine();

  // Whole graph or nothing. InvalidArgument: empty graph, an op without executor, a predecessor
  // index out of range or not smaller than the op's own. ResourceExhausted: max_queued_ops would be
  // exceeded.
  absl::StatusOr<GraphId> SubmitTransferGraph(TransferGraph graph);

  struct Completed {
    std::vector<CompletedOp> ops;
    std::vector<CompletedGraph> graphs;  // every op of it is in `ops` of this or an earlier call
  };
  // Polls executors, starts successors, returns what ended. Successors of a failed or partial op
  // fail without running (kFailed). Waits at most timeout_ns for a first completion.
  Completed GetCompletedGraphsAndOps(TimeNs timeout_ns);
  // The same into what the caller keeps for it, whose memory is used again.
  void TakeCompleted(TimeNs timeout_ns, Completed* completed);

  uint32_t queued_ops() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
