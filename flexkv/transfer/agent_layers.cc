// Loads layer by layer: the engine computes in the step that loads, layer view after layer view.
// See agent_core.h.
//
// The engine's thread starts a layer as one chunk of all the step's loads, at most `layers_ahead`
// before the one that it asks for, and makes the compute stream wait for each when asked. The
// agent's thread only collects the ends. From StartLayerLoads on the engine counts on these loads:
// a daemon that is lost does not end them (the arena stays mapped while the agent is busy); then
// the agent's thread starts what is left too, since an engine that has stopped must not keep the
// agent busy for ever.
#include <algorithm>
#include <chrono>
#include <utility>

#include "flexkv/transfer/agent_core.h"

namespace flexkv::internal {
namespace {
constexpr TimeNs kLongestWaitNs = 3600 * kNsPerSecond;
}

void AgentCore::StartLayerLoads(TimeNs wait_ns) {
  if (layer_step_open_.load(std::memory_order_relaxed)) WaitForLayer(UINT32_MAX);
  Lock lock(mutex_);
  if (layer_pending_.empty()) return;
  const TimeNs deadline = clock_.Now() + std::min(wait_ns, kLongestWaitNs);
  layer_half_came_.wait_for(lock, std::chrono::nanoseconds(std::min(wait_ns, kLongestWaitNs)),
                            [this] { return LayerLoadsAreHere(); });
  layer_step_ = {};
  layer_step_.tickets.resize(map_.layers.size());
  while (!layer_pending_.empty()) BeginLayerLoad(layer_pending_.front(), deadline, lock);
  if (layer_step_.ops.empty()) return;
  layer_step_open_.store(true, std::memory_order_relaxed);
  StartAndHoldLayers(layers_ahead_, 0, lock);
}

void AgentCore::WaitForLayer(uint32_t layer) {
  if (!layer_step_open_.load(std::memory_order_relaxed)) return;
  Lock lock(mutex_);
  const uint64_t end = uint64_t{layer} + 1;
  StartAndHoldLayers(end + layers_ahead_, end, lock);
}

bool AgentCore::LayerLoadsAreHere() const {
  return std::ranges::all_of(layer_pending_, [](const AgentOp* op) { return op->has_part; });
}

// Takes the op out of layer_pending_: into the layer step, or it has failed.
void AgentCore::BeginLayerLoad(AgentOp* op, TimeNs deadline, Lock& lock) {
  if (!op->IsWhole()) {
    ended_.Add(op->key, EndedKeys::Why::kFailed);
    EndOp(op);
    return;
  }
  const TimeNs now = clock_.Now();
  Check(op, deadline > now ? deadline - now : 0, lock);
  if (op->cancelled || !op->usable) {
    EndOp(op);
    return;
  }
  op->layers_begun = true;
  MoveTo(nullptr, op);
  layer_step_.ops.push_back(op);
}

// Those that nobody started in their step: the engine has computed without them.
void AgentCore::FailLayerLoads() {
  while (!layer_pending_.empty()) {
    AgentOp* op = layer_pending_.front();
    ended_.Add(op->key, EndedKeys::Why::kFailed);
    EndOp(op);
  }
}

// The op ends.
void AgentCore::LeaveLayers(AgentOp* op, bool failed) {
  std::erase(layer_step_.ops, op);
  layer_half_came_.notify_all();
  if (op->engine_hears) ++(failed ? stats_.layer_loads_failed : stats_.layer_loads);
}

void AgentCore::StartNextLayer(Lane lane, Lock& lock) {
  const uint32_t layer = layer_step_.next++;
  Chunk chunk = NewChunk();
  chunk.of_layers = true;
  chunk.job.route = Route::kCpuToDevice;
  chunk.job.lane = lane;
  for (AgentOp* op : layer_step_.ops) {
    if (op->cancelled) continue;
    const uint32_t blocks = static_cast<uint32_t>(op->places.size());
    for (uint32_t at = 0; at < blocks; ++at) AddPiece(op, {at, layer, layer + 1}, &chunk);
    if (layer_step_.next == map_.layers.size()) op->position = blocks;
    chunk.job.op = op->key;
    chunk.job.after = std::max(chunk.job.after, op->mark);
    chunk.ops.push_back(op);
  }
  if (layer_step_.next == map_.layers.size()) layer_step_.ops.clear();
  if (chunk.ops.empty()) return;
  layer_step_.tickets[layer] = last_ticket_ + 1;
  StartChunk(std::move(chunk), lock);
}

bool AgentCore::StartLeftLayer(Lock& lock) {
  if (!layer_step_.left_to_thread || layer_step_.ops.empty()) return false;
  StartNextLayer(Lane::kBackground, lock);
  return true;
}

// Layers before the two ends.
void AgentCore::StartAndHoldLayers(uint64_t start_end, uint64_t hold_end, Lock& lock) {
  const uint64_t num_layers = map_.layers.size();
  while (layer_step_.next < std::min(start_end, num_layers)) StartNextLayer(Lane::kLayer, lock);
  std::vector<ChunkTicket> tickets;
  while (layer_step_.held < std::min(hold_end, num_layers)) {
    const ChunkTicket ticket = layer_step_.tickets[layer_step_.held++];
    if (ticket != 0) tickets.push_back(ticket);
  }
  if (layer_step_.held == num_layers) layer_step_open_.store(false, std::memory_order_relaxed);
  HoldChunks(std::move(tickets), lock);
}

}  // namespace flexkv::internal
