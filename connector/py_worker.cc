#include "connector/py_worker.h"

#include <cstring>
#include <span>

namespace flexkv::python {
namespace {

std::span<const std::byte> View(const nb::bytes& bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.c_str()), bytes.size()};
}

PlanHeader Header(std::span<const std::byte> plan) {
  PlanHeader header;
  header.num_fences = header.num_ops = 0;
  if (plan.size() >= sizeof(header))
    std::memcpy(static_cast<void*>(&header), plan.data(), sizeof(header));
  return header;
}

void Append(const std::vector<uint32_t>& blocks, std::vector<uint32_t>* all) {
  all->insert(all->end(), blocks.begin(), blocks.end());
}

}  // namespace

PyWorker::~PyWorker() {
  if (session_ == nullptr) return;
  nb::gil_scoped_release unlocked;
  session_.reset();
}

void PyWorker::Open(const WorkerOptions& options, const std::vector<TensorView>& tensors,
                    uint32_t tokens_per_block, std::string descriptor) {
  Abandon();  // of other tensors: nothing is copied to or from them any more
  std::vector<uint32_t> layer_views;
  absl::StatusOr<KvGroup> group = MakeKvGroup(tensors, tokens_per_block, &layer_views);
  if (!group.ok()) throw nb::value_error(std::string(group.status().message()).c_str());
  layer_views_.clear();
  for (size_t i = 0; i < tensors.size(); ++i) layer_views_[tensors[i].layer] = layer_views[i];
  num_views_ = static_cast<uint32_t>(group->layers.size());
  KvLayout layout;
  layout.groups.push_back(*std::move(group));
  layout.descriptor = std::move(descriptor);
  absl::StatusOr<std::unique_ptr<WorkerSession>> session =
      WorkerSession::Open(options, std::move(layout));
  if (!session.ok()) throw nb::value_error(std::string(session.status().message()).c_str());
  session_ = *std::move(session);
  reduced_ = options.reduced;
}

void PyWorker::Fence(nb::bytes plan, uint64_t stream) {
  const std::span<const std::byte> view = View(plan);
  if (session_ == nullptr || Header(view).num_fences == 0) return;
  nb::gil_scoped_release unlocked;
  session_->Fence(view, stream);
}

void PyWorker::Bind(nb::bytes plan, uint64_t stream) {
  const std::span<const std::byte> view = View(plan);
  if (Header(view).num_ops == 0 && Header(view).num_fences == 0) return;
  if (!ParsePlan(view, &plan_).ok()) {
    if (session_ != nullptr) session_->Bind(view, stream);  // counts it
    return;
  }
  if (plan_.number > bound_plan_) {
    bound_plan_ = plan_.number;
    for (const PlanOpView& op : plan_.ops) {
      if (op.op.id_bytes == 0) continue;  // a store
      if (op.op.layerwise != 0) {
        layer_loads_[op.op.key] = op.block_ids;
        layers_bound_ = true;
      } else {
        loads_[op.request_id] = op.block_ids;
      }
    }
    if (session_ == nullptr) FailAll();
  }
  if (session_ != nullptr) session_->Bind(&plan_, stream);
}

bool PyWorker::StartLayerLoads() {
  if (!std::exchange(layers_bound_, false) || session_ == nullptr) return false;
  session_->StartLayerLoads();
  return true;
}

void PyWorker::WaitForLayer(std::string_view layer) {
  if (session_ == nullptr) return;
  const auto view = layer_views_.find(std::string(layer));
  if (view == layer_views_.end()) return WaitForAllLayers();
  session_->WaitForLayer(view->second);
}

void PyWorker::WaitForAllLayers() {
  if (session_ == nullptr) return;
  for (uint32_t view = 0; view < num_views_; ++view) session_->WaitForLayer(view);
}

void PyWorker::StepDone() {
  if (session_ != nullptr) session_->StepDone();
}

void PyWorker::TakeBoardPlans() {
  if (session_ != nullptr) session_->TakeBoardPlans();
}

PyWorker::Ends PyWorker::Poll() {
  Ends all = std::exchange(failed_, {});
  if (session_ == nullptr || (loads_.empty() && layer_loads_.empty() && !reduced_)) return all;
  auto& [ended, failed_blocks, layer_ends, layer_blocks] = all;
  session_->Poll(&report_);
  ended_stores_.insert(ended_stores_.end(), report_.stores.begin(), report_.stores.end());
  for (std::string& id : report_.loads) {
    if (loads_.erase(id) != 0 || reduced_)
      ended.push_back(std::move(id));  // else reported before: never twice
  }
  Append(report_.failed_block_ids, &failed_blocks);
  for (const WorkerSession::Report::LayerEnd& end : report_.layer_loads) {
    if (layer_loads_.erase(end.key) != 0) layer_ends.emplace_back(end.key, end.failed);
  }
  Append(report_.layer_failed_block_ids, &layer_blocks);
  return all;
}

void PyWorker::FailLoads(const std::vector<FailedLoad>& loads) {
  auto& [ended, failed_blocks, layer_ends, layer_blocks] = failed_;
  for (const auto& [id, blocks, layerwise] : loads) {
    if (layerwise) {  // no plan named it, and the scheduler's side waits for nothing any more
      Append(blocks, &layer_blocks);
      continue;
    }
    loads_.erase(id);
    ended.push_back(id);
    Append(blocks, &failed_blocks);
  }
}

void PyWorker::FailAll() {
  auto& [ended, failed_blocks, layer_ends, layer_blocks] = failed_;
  for (const auto& [id, blocks] : loads_) {
    ended.push_back(id);
    Append(blocks, &failed_blocks);
  }
  for (const auto& [key, blocks] : layer_loads_) {
    layer_ends.emplace_back(key, true);
    Append(blocks, &layer_blocks);
  }
  loads_.clear();
  layer_loads_.clear();
}

void PyWorker::Abandon() {
  if (session_ != nullptr) {
    nb::gil_scoped_release unlocked;
    session_.reset();
  }
  FailAll();
}

nb::dict PyWorker::Stats() const {
  nb::dict out;
  out["open"] = open();
  if (session_ == nullptr) return out;
  const WorkerStats stats = session_->stats();
  out["loads"] = stats.agent.loads;
  out["stores"] = stats.agent.stores;
  out["load_bytes"] = stats.agent.load_bytes;
  out["store_bytes"] = stats.agent.store_bytes;
  out["load_copy_ns"] = stats.agent.load_copy_ns;
  out["store_copy_ns"] = stats.agent.store_copy_ns;
  out["revoked"] = stats.agent.revoked;
  out["fenced_blocks"] = stats.agent.fenced_blocks;
  out["orphans"] = stats.agent.orphans;
  out["refused"] = stats.agent.refused;
  out["failed_ops"] = stats.agent.failed;
  out["layer_loads"] = stats.layer_loads;
  out["layer_loads_failed"] = stats.layer_loads_failed;
  out["load_timeouts"] = stats.load_timeouts;
  out["loads_failed"] = stats.loads_failed;
  out["loads_reported"] = stats.loads_reported;
  out["reattaches"] = stats.reattaches;
  out["bad_plans"] = stats.bad_plans;
  out["attached"] = stats.attached;
  return out;
}

}  // namespace flexkv::python
