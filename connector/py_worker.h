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
#include <unordered_map>
#include <utility>
#include <vector>

#include "flexkv/client/step_plan.h"
#include "flexkv/client/worker_session.h"

namespace flexkv::python {

namespace nb = nanobind;

class PyWorker {
 public:
  using FailedLoad = std::pair<std::string, std::vector<uint32_t>>;  // request, GPU blocks

  PyWorker() = default;  // no session
  ~PyWorker();

  // Throws ValueError with one sentence when layout or options are not usable; loads are then
  // reported failed.
  void Open(const WorkerOptions& options, const std::vector<TensorView>& tensors,
            uint32_t tokens_per_block, std::string descriptor);
  void Fence(nb::bytes plan);
  void Bind(nb::bytes plan);
  void StepDone();
  // Reduced mode: takes the plans on the board.
  void TakeBoardPlans();
  // Reduced mode: requests whose store the polls since the last call reported as over.
  std::vector<std::string> TakeEndedStores() { return std::exchange(ended_stores_, {}); }
  // (request ids whose load ended, GPU blocks that did not arrive)
  std::pair<std::vector<std::string>, std::vector<uint32_t>> Poll();
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
  ParsedPlan plan_;                                               // reused
  std::unordered_map<std::string, std::vector<uint32_t>> loads_;  // to be reported
  WorkerSession::Report report_;                                  // reused
  std::vector<FailedLoad> failed_;                                // reported by the next Poll
};

}  // namespace flexkv::python
