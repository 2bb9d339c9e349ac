// The Python module flexkv._core. Everything here translates; the work is in flexkv/client.
#include <nanobind/nanobind.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/string_view.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include "connector/py_scheduler.h"
#include "connector/py_worker.h"
#include "flexkv/base/fault.h"

namespace flexkv::python {
namespace {

using EngineId = std::pair<uint64_t, uint64_t>;
// layer, address of the first element, bytes per element, shape, strides in elements, block
// dimension
using Tensor = std::tuple<std::string, uintptr_t, uint32_t, std::vector<int64_t>,
                          std::vector<int64_t>, uint32_t>;

std::vector<TensorView> Views(const std::vector<Tensor>& tensors) {
  std::vector<TensorView> views;
  for (const auto& [layer, data, element_bytes, shape, strides, block_dim] : tensors) {
    views.push_back({layer, data, element_bytes, shape, strides, block_dim});
  }
  return views;
}

SchedulerOptions MakeSchedulerOptions(std::string socket_path, EngineId engine_id,
                                      uint32_t world_size, uint32_t tokens_per_block,
                                      std::string label, std::string fingerprint,
                                      uint32_t lookup_wait_us, uint32_t lookup_timeout_ms,
                                      uint32_t load_timeout_ms, int32_t min_load_tokens,
                                      bool block_tables_change, bool reduced,
                                      bool layerwise_loads) {
  SchedulerOptions options;
  options.layerwise_loads = layerwise_loads;
  options.reduced = reduced;
  options.socket_path = std::move(socket_path);
  options.engine_id[0] = engine_id.first;
  options.engine_id[1] = engine_id.second;
  options.world_size = world_size;
  options.tokens_per_block = tokens_per_block;
  options.label = std::move(label);
  options.fingerprint = std::move(fingerprint);
  options.lookup_wait_us = lookup_wait_us;
  options.lookup_timeout_ms = lookup_timeout_ms;
  options.load_timeout_ms = load_timeout_ms;
  options.min_load_tokens = min_load_tokens;
  options.block_tables_change = block_tables_change;
  return options;
}

void OpenWorker(PyWorker& worker, std::string socket_path, EngineId engine_id, uint32_t rank,
                uint32_t world_size, uint32_t load_timeout_ms, uint32_t tokens_per_block,
                const std::vector<Tensor>& tensors, std::string descriptor, bool reduced,
                bool replicated, int device, std::string copy_curve_path,
                uint32_t layerwise_wait_ms) {
  WorkerOptions options;
  options.reduced = reduced;
  options.replicated = replicated;
  options.device = device;
  options.copy_curve_path = std::move(copy_curve_path);
  options.layerwise_wait_ms = layerwise_wait_ms;
  options.socket_path = std::move(socket_path);
  options.engine_id[0] = engine_id.first;
  options.engine_id[1] = engine_id.second;
  options.rank = rank;
  options.world_size = world_size;
  options.load_timeout_ms = load_timeout_ms;
  worker.Open(options, Views(tensors), tokens_per_block, std::move(descriptor));
}

// Per layer view: address, block stride, contiguous bytes, loops (count, stride) from the outside.
using View = std::tuple<uintptr_t, int64_t, uint32_t, std::vector<std::pair<uint32_t, int64_t>>>;

std::vector<View> LayerViews(const std::vector<Tensor>& tensors, uint32_t tokens_per_block) {
  const absl::StatusOr<KvGroup> group = MakeKvGroup(Views(tensors), tokens_per_block);
  if (!group.ok()) throw nb::value_error(std::string(group.status().message()).c_str());
  std::vector<View> views;
  for (const LayerView& layer : group->layers) {
    std::vector<std::pair<uint32_t, int64_t>> loops;
    for (const StridedLoop& loop : layer.outer) loops.emplace_back(loop.count, loop.stride_bytes);
    views.emplace_back(layer.base, layer.block_stride_bytes, layer.fragment_bytes, loops);
  }
  return views;
}

void Arm(const std::string& spec) {
  const absl::Status status = ArmFaults(spec);
  if (!status.ok()) throw nb::value_error(std::string(status.message()).c_str());
}

void BindScheduler(nb::module_& module) {
  nb::class_<PyScheduler>(module, "SchedulerSession")
      .def(
          "__init__",
          [](PyScheduler* self, std::string socket_path, EngineId engine_id, uint32_t world_size,
             uint32_t tokens_per_block, std::string label, std::string fingerprint,
             uint32_t lookup_wait_us, uint32_t lookup_timeout_ms, uint32_t load_timeout_ms,
             int32_t min_load_tokens, bool block_tables_change, bool reduced,
             bool layerwise_loads) {
            new (self) PyScheduler(MakeSchedulerOptions(
                std::move(socket_path), engine_id, world_size, tokens_per_block, std::move(label),
                std::move(fingerprint), lookup_wait_us, lookup_timeout_ms, load_timeout_ms,
                min_load_tokens, block_tables_change, reduced, layerwise_loads));
          },
          nb::kw_only(), nb::arg("socket_path"), nb::arg("engine_id"), nb::arg("world_size"),
          nb::arg("tokens_per_block"), nb::arg("label"), nb::arg("fingerprint"),
          nb::arg("lookup_wait_us"), nb::arg("lookup_timeout_ms"), nb::arg("load_timeout_ms"),
          nb::arg("min_load_tokens"), nb::arg("block_tables_change"), nb::arg("reduced") = false,
          nb::arg("layerwise_loads") = false)
      .def("set_block_table", &PyScheduler::SetBlockTable, nb::arg("block_ids_of"))
      .def("new_request", &PyScheduler::NewRequest, nb::arg("request"), nb::arg("cacheable"),
           nb::arg("continue_p") = -1.0, nb::arg("expected_in_s") = -1.0)
      .def("matched_tokens", &PyScheduler::MatchedTokens, nb::arg("request"),
           nb::arg("num_computed_tokens"))
      .def("blocks_allocated", &PyScheduler::BlocksAllocated, nb::arg("request"), nb::arg("blocks"),
           nb::arg("num_external_tokens"))
      .def("step", &PyScheduler::Step, nb::arg("scheduler_output"))
      .def("layer_loads_ended", &PyScheduler::LayerLoadsEnded, nb::arg("ends"))
      .def("load_ended", &PyScheduler::LoadEnded, nb::arg("request_id"), nb::arg("failed"))
      .def("request_finished", &PyScheduler::RequestFinished, nb::arg("request_id"))
      .def("finish_with_store", &PyScheduler::FinishWithStore, nb::arg("request"),
           nb::arg("block_ids"), nb::arg("num_computed_tokens"))
      .def("load_outstanding", &PyScheduler::LoadOutstanding, nb::arg("request_id"))
      .def("loads_into", &PyScheduler::LoadsInto, nb::arg("block_ids"))
      .def("undelivered_loads", &PyScheduler::UndeliveredLoads)
      .def("reset_cache", &PyScheduler::ResetCache, nb::arg("timeout_ms"))
      .def("wait_ready", &PyScheduler::WaitReady, nb::arg("timeout_ms"))
      .def("stats", &PyScheduler::Stats)
      .def("close", &PyScheduler::Close);
}

void BindWorker(nb::module_& module) {
  nb::class_<PyWorker>(module, "WorkerSession")
      .def(nb::init<>())
      .def("open", &OpenWorker, nb::kw_only(), nb::arg("socket_path"), nb::arg("engine_id"),
           nb::arg("rank"), nb::arg("world_size"), nb::arg("load_timeout_ms"),
           nb::arg("tokens_per_block"), nb::arg("tensors"), nb::arg("descriptor"),
           nb::arg("reduced") = false, nb::arg("replicated") = false, nb::arg("device") = -1,
           nb::arg("copy_curve_path") = "", nb::arg("layerwise_wait_ms") = 20)
      .def("fence", &PyWorker::Fence, nb::arg("plan"), nb::arg("stream") = 0)
      .def("bind", &PyWorker::Bind, nb::arg("plan"), nb::arg("stream") = 0)
      .def("start_layer_loads", &PyWorker::StartLayerLoads)
      .def("wait_for_layer", &PyWorker::WaitForLayer, nb::arg("layer"))
      .def("wait_for_all_layers", &PyWorker::WaitForAllLayers)
      .def("step_done", &PyWorker::StepDone)
      .def("take_board_plans", &PyWorker::TakeBoardPlans)
      .def("take_ended_stores", &PyWorker::TakeEndedStores)
      .def("poll", &PyWorker::Poll)
      .def("fail_loads", &PyWorker::FailLoads, nb::arg("loads"))
      .def("abandon", &PyWorker::Abandon)
      .def("stats", &PyWorker::Stats)
      .def_prop_ro("is_open", &PyWorker::open);
}

}  // namespace
}  // namespace flexkv::python

NB_MODULE(_core, module) {
  flexkv::python::BindScheduler(module);
  flexkv::python::BindWorker(module);
  module.def("layer_views", &flexkv::python::LayerViews, nanobind::arg("tensors"),
             nanobind::arg("tokens_per_block"));
  module.def("arm_faults", &flexkv::python::Arm, nanobind::arg("spec"));
  module.def(
      "fault_count", [](std::string_view name) { return flexkv::FaultCount(name); },
      nanobind::arg("name"));
  // Sessions live as long as the engine; when the interpreter goes down with one still open, that
  // is no leak to report.
  nanobind::set_leak_warnings(false);
}
