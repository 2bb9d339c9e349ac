// Bookkeeping of graphs and a lane per (executor, engine, rank).
//
// A ready op waits in its lane until the executor takes it; lanes take turns, one op each, and a
// lane whose executor says "full" sits out the rest of the round. So one engine with a full ring
// holds up nobody else, and ops of one rank start in the order in which they became ready.
//
// What an executor reports is not trusted: unknown or repeated ids are dropped, failed positions
// are sorted, made unique and checked against the op's length.
#include "flexkv/transfer/transfer_engine.h"

#include <algorithm>
#include <deque>
#include <memory>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace flexkv {
namespace {

struct LaneKey {
  uint32_t executor = 0;
  EngineHandle engine = 0;
  uint32_t rank = 0;
  friend bool operator==(const LaneKey&, const LaneKey&) = default;
  template <typename H>
  friend H AbslHashValue(H h, const LaneKey& key) {
    return H::combine(std::move(h), key.executor, key.engine, key.rank);
  }
};

enum class OpState : uint8_t { kBlocked, kReady, kRunning, kEnded };

struct OpEntry {
  TransferOp op;
  uint32_t executor = 0;
  uint32_t num_blocks = 0;  // op.blocks is given up once the executor has its copy
  uint32_t waits_for = 0;   // predecessors not ended yet
  bool doomed = false;      // a predecessor failed
  OpState state = OpState::kBlocked;
  std::vector<uint32_t> successors;
};

struct GraphEntry {
  GraphId id = 0;
  uint64_t tag = 0;
  uint32_t open_ops = 0;
  std::vector<OpEntry> ops;
};

struct OpRef {
  GraphEntry* graph = nullptr;
  uint32_t index = 0;
};

std::vector<uint32_t> AllPositions(uint32_t count) {
  std::vector<uint32_t> all(count);
  for (uint32_t i = 0; i < count; ++i) all[i] = i;
  return all;
}

// Brings a reported result into the form that the header promises.
void Normalise(uint32_t num_blocks, OpResult* result) {
  if (result->status == OpStatus::kOk) {
    result->failed.clear();
    return;
  }
  std::vector<uint32_t>& failed = result->failed;
  std::sort(failed.begin(), failed.end());
  failed.erase(std::unique(failed.begin(), failed.end()), failed.end());
  const bool plausible =
      !failed.empty() && failed.back() < num_blocks && failed.size() < num_blocks;
  if (result->status == OpStatus::kPartial && plausible) return;
  result->status = OpStatus::kFailed;
  failed = AllPositions(num_blocks);
}

}  // namespace

struct TransferEngine::Impl {
  Options options;
  std::vector<Executor*> executors;
  std::vector<uint32_t> unfinished;  // per executor: ops in its lanes or in its hands
  static constexpr size_t kSpareGraphs = 64;
  static constexpr size_t kSpareOps = 16;  // of a graph
  absl::flat_hash_map<GraphId, std::unique_ptr<GraphEntry>> graphs;
  std::vector<std::unique_ptr<GraphEntry>> spare_graphs;
  absl::flat_hash_map<OpId, OpRef> ops;
  absl::flat_hash_map<LaneKey, std::deque<OpRef>> lanes;  // none is empty
  std::deque<LaneKey> turns;                              // every lane once
  OpId next_op = 1;
  GraphId next_graph = 1;
  std::vector<OpResult> results;  // scratch
  Completed ended;                // collected until the next call returns them

  int ExecutorFor(Route route) const;
  absl::Status Prepare(TransferGraph* graph, GraphEntry* entry);
  void MakeReady(GraphEntry* graph, uint32_t index);
  bool TryAtOnce(OpEntry* entry);
  void Pump();
  bool SubmitFront(const LaneKey& key);
  void EndOp(GraphEntry* graph, uint32_t index, OpResult result);
  void EndOnlyOp(GraphEntry* graph, OpResult result);
  void EndGraph(GraphEntry* graph);
  std::unique_ptr<GraphEntry> NewGraph();
  void HandleResults();
  void PollAll(TimeNs timeout_ns);
};

int TransferEngine::Impl::ExecutorFor(Route route) const {
  for (size_t i = 0; i < executors.size(); ++i) {
    if (executors[i]->Supports(route)) return static_cast<int>(i);
  }
  return -1;
}

absl::Status TransferEngine::Impl::Prepare(TransferGraph* graph, GraphEntry* entry) {
  if (graph->ops.empty()) return absl::InvalidArgumentError("transfer graph has no ops");
  if (graph->ops.size() > options.max_queued_ops ||
      ops.size() > options.max_queued_ops - graph->ops.size()) {
    return absl::ResourceExhaustedError("too many transfer ops queued");
  }
  entry->ops.resize(graph->ops.size());
  for (uint32_t i = 0; i < graph->ops.size(); ++i) {
    OpEntry& op = entry->ops[i];
    const int executor = ExecutorFor(graph->ops[i].route);
    if (executor < 0)
      return absl::InvalidArgumentError(absl::StrCat("op ", i, ": no executor for its route"));
    for (uint32_t before : graph->ops[i].after) {
      if (before >= i)
        return absl::InvalidArgumentError(absl::StrCat("op ", i, ": bad predecessor ", before));
      entry->ops[before].successors.push_back(i);
    }
    op.executor = static_cast<uint32_t>(executor);
    op.num_blocks = static_cast<uint32_t>(graph->ops[i].blocks.size());
    op.waits_for = static_cast<uint32_t>(graph->ops[i].after.size());
    op.op = std::move(graph->ops[i]);
  }
  return absl::OkStatus();
}

void TransferEngine::Impl::MakeReady(GraphEntry* graph, uint32_t index) {
  OpEntry& entry = graph->ops[index];
  entry.state = OpState::kReady;
  ++unfinished[entry.executor];
  if (TryAtOnce(&entry)) return;
  const LaneKey key{entry.executor, entry.op.engine, entry.op.rank};
  std::deque<OpRef>& lane = lanes[key];
  if (lane.empty()) turns.push_back(key);
  lane.push_back(OpRef{graph, index});
}

// With nobody waiting the executor may have the op without a lane.
bool TransferEngine::Impl::TryAtOnce(OpEntry* entry) {
  if (!turns.empty() || !executors[entry->executor]->Submit(entry->op)) return false;
  entry->state = OpState::kRunning;
  entry->op.blocks = {};
  return true;
}

// False when the lane is to sit out this round.
bool TransferEngine::Impl::SubmitFront(const LaneKey& key) {
  const OpRef front = lanes.find(key)->second.front();
  OpEntry& entry = front.graph->ops[front.index];
  if (!executors[key.executor]->Submit(entry.op)) return false;
  entry.state = OpState::kRunning;
  entry.op.blocks = {};
  lanes.find(key)->second.pop_front();
  return true;
}

void TransferEngine::Impl::Pump() {
  size_t refused_in_a_row = 0;
  while (!turns.empty() && refused_in_a_row < turns.size()) {
    const LaneKey key = turns.front();
    turns.pop_front();
    if (!SubmitFront(key)) {
      ++refused_in_a_row;
      turns.push_back(key);
      continue;
    }
    refused_in_a_row = 0;
    auto lane = lanes.find(key);
    if (lane->second.empty()) {
      lanes.erase(lane);
    } else {
      turns.push_back(key);
    }
  }
}

std::unique_ptr<GraphEntry> TransferEngine::Impl::NewGraph() {
  if (spare_graphs.empty()) return std::make_unique<GraphEntry>();
  std::unique_ptr<GraphEntry> graph = std::move(spare_graphs.back());
  spare_graphs.pop_back();
  return graph;
}

void TransferEngine::Impl::EndGraph(GraphEntry* graph) {
  ended.graphs.push_back(CompletedGraph{graph->id, graph->tag});
  std::unique_ptr<GraphEntry> over = std::move(graphs.extract(graph->id).mapped());
  if (spare_graphs.size() >= kSpareGraphs || over->ops.capacity() > kSpareOps) return;
  over->ops.clear();
  spare_graphs.push_back(std::move(over));
}

void TransferEngine::Impl::EndOnlyOp(GraphEntry* graph, OpResult result) {
  OpEntry& entry = graph->ops[0];
  Normalise(entry.num_blocks, &result);
  ops.erase(entry.op.id);
  ended.ops.push_back(CompletedOp{graph->id, graph->tag, 0, std::move(result)});
  EndGraph(graph);
}

// Successors that fail with their predecessor end here too: a list, not recursion, so chains may be
// long.
void TransferEngine::Impl::EndOp(GraphEntry* graph, uint32_t first_index, OpResult first_result) {
  if (graph->ops.size() == 1) return EndOnlyOp(graph, std::move(first_result));
  std::vector<std::pair<uint32_t, OpResult>> ending;
  ending.emplace_back(first_index, std::move(first_result));
  std::vector<uint32_t> ready;
  for (size_t at = 0; at < ending.size(); ++at) {
    const uint32_t index = ending[at].first;
    OpResult result = std::move(ending[at].second);
    OpEntry& entry = graph->ops[index];
    Normalise(entry.num_blocks, &result);
    entry.state = OpState::kEnded;
    ops.erase(entry.op.id);
    --graph->open_ops;
    for (uint32_t successor : entry.successors) {
      OpEntry& next = graph->ops[successor];
      next.doomed |= result.status != OpStatus::kOk;
      if (--next.waits_for > 0) continue;
      if (next.doomed) {
        ending.emplace_back(successor,
                            OpResult{.id = next.op.id, .status = OpStatus::kFailed, .failed = {}});
      } else {
        ready.push_back(successor);
      }
    }
    ended.ops.push_back(CompletedOp{graph->id, graph->tag, index, std::move(result)});
  }
  for (uint32_t index : ready) MakeReady(graph, index);
  if (graph->open_ops == 0) EndGraph(graph);
}

void TransferEngine::Impl::HandleResults() {
  std::vector<OpResult> taken;
  taken.swap(results);
  for (OpResult& result : taken) {
    const auto it = ops.find(result.id);
    if (it == ops.end()) continue;
    const OpRef ref = it->second;
    OpEntry& entry = ref.graph->ops[ref.index];
    if (entry.state != OpState::kRunning) continue;  // an id the executor was never given
    --unfinished[entry.executor];
    EndOp(ref.graph, ref.index, std::move(result));
  }
  taken.clear();
  results.swap(taken);  // keeps the capacity
}

void TransferEngine::Impl::PollAll(TimeNs timeout_ns) {
  for (Executor* executor : executors) executor->Poll(0, &results);
  if (!results.empty() || timeout_ns == 0) return;
  const auto busy = static_cast<TimeNs>(std::count_if(unfinished.begin(), unfinished.end(),
                                                      [](uint32_t count) { return count > 0; }));
  for (size_t i = 0; i < executors.size(); ++i) {
    // Only those that have something to finish are worth waiting for; each gets its part of the
    // time.
    if (unfinished[i] == 0 || !results.empty()) continue;
    executors[i]->Poll(timeout_ns / busy, &results);
  }
}

TransferEngine::TransferEngine(Options options, std::vector<Executor*> executors)
    : impl_(std::make_unique<Impl>()) {
  impl_->options = options;
  impl_->unfinished.resize(executors.size());
  impl_->executors = std::move(executors);
}

TransferEngine::~TransferEngine() = default;

absl::StatusOr<GraphId> TransferEngine::SubmitTransferGraph(TransferGraph graph) {
  std::unique_ptr<GraphEntry> entry = impl_->NewGraph();
  if (absl::Status status = impl_->Prepare(&graph, entry.get()); !status.ok()) return status;
  GraphEntry* raw = entry.get();
  raw->id = impl_->next_graph++;
  raw->tag = graph.tag;
  raw->open_ops = static_cast<uint32_t>(raw->ops.size());
  impl_->graphs.emplace(raw->id, std::move(entry));
  for (uint32_t i = 0; i < raw->ops.size(); ++i) {
    raw->ops[i].op.id = impl_->next_op++;
    impl_->ops.emplace(raw->ops[i].op.id, OpRef{raw, i});
  }
  const GraphId id = raw->id;
  for (uint32_t i = 0; i < raw->ops.size(); ++i) {
    if (raw->ops[i].waits_for == 0) impl_->MakeReady(raw, i);
  }
  impl_->Pump();
  return id;
}

TransferEngine::Completed TransferEngine::GetCompletedGraphsAndOps(TimeNs timeout_ns) {
  Completed completed;
  TakeCompleted(timeout_ns, &completed);
  return completed;
}

void TransferEngine::TakeCompleted(TimeNs timeout_ns, Completed* completed) {
  impl_->Pump();
  impl_->PollAll(impl_->ended.ops.empty() ? timeout_ns : 0);
  impl_->HandleResults();
  impl_->Pump();
  completed->ops.clear();
  completed->graphs.clear();
  std::swap(*completed, impl_->ended);
}

uint32_t TransferEngine::queued_ops() const { return static_cast<uint32_t>(impl_->ops.size()); }

}  // namespace flexkv
