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

}  // namespace

PyWorker::~PyWorker() {
  if (session_ == nullptr) return;
  nb::gil_scoped_release unlocked;
  session_.reset();
}

void PyWorker::Open(const WorkerOptions& options, const std::vector<TensorView>& tensors,
                    uint32_t tokens_per_block, std::string descriptor) {
  absl::StatusOr<KvGroup> group = MakeKvGroup(tensors, tokens_per_block);
  if (!group.ok()) throw nb::value_error(std::string(group.status().message()).c_str());
  KvLayout layout;
  layout.groups.push_back(*std::move(group));
  layout.descriptor = std::move(descriptor);
  absl::StatusOr<std::unique_ptr<WorkerSession>> session =
      WorkerSession::Open(options, std::move(layout));
  if (!session.ok()) throw nb::value_error(std::string(session.status().message()).c_str());
  session_ = *std::move(session);
  reduced_ = options.reduced;
}

void PyWorker::Fence(nb::bytes plan) {
  const std::span<const std::byte> view = View(plan);
  if (session_ == nullptr || Header(view).num_fences == 0) return;
  nb::gil_scoped_release unlocked;
  session_->Fence(view);
}

void PyWorker::Bind(nb::bytes plan) {
  const std::span<const std::byte> view = View(plan);
  if (Header(view).num_ops == 0 && Header(view).num_fences == 0) return;
  if (!ParsePlan(view, &plan_).ok()) {
    if (session_ != nullptr) session_->Bind(view);  // counts it
    return;
  }
  if (plan_.number > bound_plan_) {
    bound_plan_ = plan_.number;
    for (const PlanOpView& op : plan_.ops) {
      if (op.op.id_bytes == 0) continue;  // a store
      if (session_ == nullptr) {
        failed_.emplace_back(op.request_id, op.block_ids);
      } else {
        loads_[op.request_id] = op.block_ids;
      }
    }
  }
  if (session_ != nullptr) session_->Bind(&plan_);
}

void PyWorker::StepDone() {
  if (session_ != nullptr) session_->StepDone();
}

void PyWorker::TakeBoardPlans() {
  if (session_ != nullptr) session_->TakeBoardPlans();
}

std::pair<std::vector<std::string>, std::vector<uint32_t>> PyWorker::Poll() {
  std::pair<std::vector<std::string>, std::vector<uint32_t>> ended;
  for (FailedLoad& load : failed_) {
    ended.first.push_back(std::move(load.first));
    ended.second.insert(ended.second.end(), load.second.begin(), load.second.end());
  }
  failed_.clear();
  if (session_ == nullptr || (loads_.empty() && !reduced_)) return ended;
  report_.loads.clear();
  report_.failed_block_ids.clear();
  session_->Poll(&report_);
  ended_stores_.insert(ended_stores_.end(), report_.stores.begin(), report_.stores.end());
  for (std::string& id : report_.loads) {
    if (loads_.erase(id) != 0 || reduced_)
      ended.first.push_back(std::move(id));  // else reported before: never twice
  }
  ended.second.insert(ended.second.end(), report_.failed_block_ids.begin(),
                      report_.failed_block_ids.end());
  return ended;
}

void PyWorker::FailLoads(const std::vector<FailedLoad>& loads) {
  for (const FailedLoad& load : loads) {
    loads_.erase(load.first);
    failed_.push_back(load);
  }
}

void PyWorker::FailAll() {
  for (auto& [id, block_ids] : loads_) failed_.emplace_back(id, std::move(block_ids));
  loads_.clear();
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
  out["load_timeouts"] = stats.load_timeouts;
  out["loads_failed"] = stats.loads_failed;
  out["loads_reported"] = stats.loads_reported;
  out["reattaches"] = stats.reattaches;
  out["bad_plans"] = stats.bad_plans;
  out["attached"] = stats.attached;
  return out;
}

}  // namespace flexkv::python
