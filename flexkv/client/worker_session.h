// The worker's half of the connector: one per rank, in the process that holds the rank's KV
// tensors. Owns the DeviceAgent and the ring to the daemon; executes step plans of the scheduler's
// half.
//
// Promise to the engine: every load named by a plan is reported exactly once by Poll, within
// load_timeout, whatever the daemon does; after it is reported failed, no copy touches its blocks
// any more.
//
// Thread: all public methods on the engine's worker thread.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/client/step_plan.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv {

struct WorkerOptions {
  std::string socket_path;
  uint64_t engine_id[2] = {};
  uint32_t rank = 0;
  uint32_t world_size = 1;
  uint32_t load_timeout_ms = 10000;  // in the reduced mode, for stores too
  bool reduced =
      false;  // plans come over the plan board, not through Fence and Bind (plan_board.h)
  // Each rank's shard of a block has the same bytes (MLA under tensor parallelism): the daemon
  // keeps one. All ranks say the same and have the same layout, else the engine never becomes
  // ready.
  bool replicated = false;
  int device = -1;              // CUDA device that holds the KV tensors; -1: host memory
  std::string copy_curve_path;  // measured copy curves by GPU model (copy_route.h); "": not kept
  uint32_t layerwise_wait_ms = 20;  // longest a step waits for the daemon's halves of its loads
  DeviceAgent::Options agent;
};

struct WorkerStats {
  AgentStats agent;
  uint64_t load_timeouts = 0, loads_failed = 0, loads_reported = 0, reattaches = 0, bad_plans = 0;
  uint64_t layer_loads = 0, layer_loads_failed = 0;  // whoever found that they failed
  bool attached = false;
};

class WorkerSession {
 public:
  using Options = WorkerOptions;
  // InvalidArgument: the layout or the options are not usable, or there is no device agent for
  // where the tensors lie; the message says why in one sentence.
  static absl::StatusOr<std::unique_ptr<WorkerSession>> Open(const Options& options,
                                                             KvLayout layout);
  ~WorkerSession();  // waits for a running chunk, says goodbye to the daemon

  // Executes the fences of a plan, before the engine overwrites blocks: stores not yet copied from
  // those blocks are dropped, a running chunk is waited for. Doing it twice for one plan is
  // harmless. `stream`: the compute stream of this step, a cudaStream_t as a number; 0 on CPU.
  void Fence(std::span<const std::byte> plan, uint64_t stream = 0);
  // Submits the plan's loads and stores (after its fences). Twice for one plan is harmless: plans
  // are numbered.
  void Bind(std::span<const std::byte> plan, uint64_t stream = 0);
  // The same for a caller who has parsed the plan; its ops are used up.
  void Bind(ParsedPlan* plan, uint64_t stream = 0);
  // Before the forward of a step whose plan has layerwise loads: waits, at most layerwise_wait_ms,
  // for the daemon's halves of all of them, and starts the first layers.
  void StartLayerLoads();
  // Inside the forward: what the engine does from here on finds this layer view of those loads.
  void WaitForLayer(uint32_t view) { agent_->WaitForLayer(view); }
  // The forward of the last bound plan is over: its stores may read.
  void StepDone();
  // Reduced mode: takes the plans on the board. Their stores may read at once: they are of requests
  // that are over and whose blocks the engine holds until the store is answered.
  void TakeBoardPlans();

  struct Report {
    std::vector<std::string> loads;          // request ids whose load ended, well or not
    std::vector<uint32_t> failed_block_ids;  // GPU blocks whose content did not arrive
    std::vector<std::string>
        stores;  // reduced mode: request ids whose blocks nothing reads any more
    struct LayerEnd {
      OpKey key = 0;
      bool failed = false;
    };
    std::vector<LayerEnd> layer_loads;             // ended, well or not
    std::vector<uint32_t> layer_failed_block_ids;  // of them; not among the blocks above
  };
  void Poll(Report* report);

  WorkerStats stats() const;

 private:
  struct Impl;
  explicit WorkerSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
  DeviceAgent* agent_;
};

// A tensor as the engine describes it (sizes and strides in elements, as torch reports them).
struct TensorView {
  std::string layer;
  uintptr_t data = 0;
  uint32_t element_bytes = 0;
  std::vector<int64_t> shape;
  std::vector<int64_t> strides;
  uint32_t block_dim = 0;  // which dimension counts blocks
};

// Turns tensors into one KV group. Arena order inside a block: dimensions by falling stride, so
// that what is contiguous in the engine stays so. Tensors that are the same memory (layers sharing
// their KV) are taken once. InvalidArgument: overlapping or negative strides, block dimension out
// of range, different block counts. `views`, when given, gets for each tensor which layer view of
// the group it is.
absl::StatusOr<KvGroup> MakeKvGroup(std::span<const TensorView> tensors, uint32_t tokens_per_block,
                                    std::vector<uint32_t>* views = nullptr);

}  // namespace flexkv
