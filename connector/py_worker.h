// WorkerSession as Python sees it, with one promise added: whatever breaks, a load that a plan
// named is reported exactly once. So this class, not Python, remembers the loads that are still to
// be reported, and works without a session too (unknown layout, after a failure): then every load
// is reported as failed.
//
// Fence gives the interpreter lock up only when the plan has fences: it may wait for a running
// chunk.
#pragma once

#include <nanobind/nanobind.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "flexkv/client/step_plan.h"
#include "flexkv/client/worker_session.h"

namespace flexkv::python {

namespace nb = nanobind;

class PyWorker {
 public:
  // Request, GPU blocks, whether layerwise.
  using FailedLoad = std::tuple<std::string, std::vector<uint32_t>, bool>;
  // Asynchronous loads: request ids that ended, GPU blocks that did not arrive. Layerwise loads:
  // (op, failed), GPU blocks that did not arrive.
  using Ends = std::tuple<std::vector<std::string>, std::vector<uint32_t>,
                          std::vector<std::pair<uint64_t, bool>>, std::vector<uint32_t>>;

  PyWorker() = default;  // no session
  ~PyWorker();

  // Throws ValueError with one sentence when layout or options are not usable; loads are then
  // reported failed. A session that is open is ended first: the daemon sees the rank go and come
  // again.
  void Open(const WorkerOptions& options, const std::vector<TensorView>& tensors,
            uint32_t tokens_per_block, std::string descriptor);
  // `stream`: the compute stream as a number, 0 on CPU.
  void Fence(nb::bytes plan, uint64_t stream);
  void Bind(nb::bytes plan, uint64_t stream);
  void StepDone();
  // Before the forward. True when layers must be waited for in it.
  bool StartLayerLoads();
  // What the engine does from here on finds this layer of the loads just started; all layers, when
  // the name is not one of the engine's KV layers. Waits on CPU (the interpreter lock is held:
  // giving it up and taking it back can cost more than the wait).
  void WaitForLayer(std::string_view layer);
  void WaitForAllLayers();
  // Reduced mode: takes the plans on the board.
  void TakeBoardPlans();
  // Reduced mode: requests whose store the polls since the last call reported as over.
  std::vector<std::string> TakeEndedStores() { return std::exchange(ended_stores_, {}); }
  Ends Poll();
  // Loads that the scheduler's side promised but could not plan.
  void FailLoads(const std::vector<FailedLoad>& loads);
  // Ends the session: no copy touches the engine's memory afterwards, and all loads under way count
  // as failed.
  void Abandon();
  nb::dict Stats() const;
  bool open() const { return session_ != nullptr; }

 private:
  void FailAll();

  bool reduced_ = false;
  std::vector<std::string> ended_stores_;
  std::unique_ptr<WorkerSession> session_;
  uint64_t bound_plan_ = 0;
  bool layers_bound_ = false;  // layerwise loads that are not started yet
  ParsedPlan plan_;            // reused
  std::unordered_map<std::string, std::vector<uint32_t>> loads_;  // to be reported
  std::unordered_map<OpKey, std::vector<uint32_t>> layer_loads_;  // to be reported
  std::unordered_map<std::string, uint32_t> layer_views_;         // by layer name
  uint32_t num_views_ = 0;
  WorkerSession::Report report_;  // reused
  Ends failed_;                   // reported by the next Poll
};

}  // namespace flexkv::python
