#include "flexkv/transfer/transfer_engine.h"

#include <algorithm>
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// Holds what it is given until the test ends it.
class HeldExecutor : public Executor {
 public:
  explicit HeldExecutor(std::set<Route> routes = {Route::kDeviceToCpu, Route::kCpuToDevice})
      : routes_(std::move(routes)) {}

  bool Supports(Route route) const override { return routes_.count(route) > 0; }
  bool Submit(const TransferOp& op) override {
    if (held.size() >= room || full_engines.count(op.engine) > 0) return false;
    held.push_back(op);
    order.push_back(op.key);
    return true;
  }
  void Poll(TimeNs timeout_ns, std::vector<OpResult>* results) override {
    waited_ns += timeout_ns;
    results->insert(results->end(), done.begin(), done.end());
    done.clear();
  }

  void End(OpKey key, OpStatus status = OpStatus::kOk, std::vector<uint32_t> failed = {}) {
    auto it =
        std::find_if(held.begin(), held.end(), [&](const TransferOp& op) { return op.key == key; });
    ASSERT_NE(it, held.end());
    done.push_back(OpResult{it->id, status, std::move(failed)});
    held.erase(it);
  }

  size_t room = 1000;
  std::set<EngineHandle> full_engines;
  std::vector<TransferOp> held;
  std::vector<OpKey> order;
  std::vector<OpResult> done;
  TimeNs waited_ns = 0;

 private:
  std::set<Route> routes_;
};

TransferOp Op(OpKey key, std::vector<uint32_t> after = {}, EngineHandle engine = 1,
              uint32_t blocks = 3, Route route = Route::kDeviceToCpu) {
  TransferOp op;
  op.key = key;
  op.engine = engine;
  op.route = route;
  op.blocks.resize(blocks);
  op.after = std::move(after);
  return op;
}

TransferGraph Graph(uint64_t tag, std::vector<TransferOp> ops) {
  return TransferGraph{tag, std::move(ops)};
}

TEST(TransferEngineTest, RunsAnOpAndReportsItOnce) {
  HeldExecutor executor;
  TransferEngine engine({}, {&executor});
  auto id = engine.SubmitTransferGraph(Graph(7, {Op(1)}));
  ASSERT_TRUE(id.ok());
  EXPECT_EQ(engine.queued_ops(), 1u);
  executor.End(1);
  auto completed = engine.GetCompletedGraphsAndOps(0);
  ASSERT_THAT(completed.ops, SizeIs(1));
  EXPECT_EQ(completed.ops[0].tag, 7u);
  EXPECT_EQ(completed.ops[0].result.status, OpStatus::kOk);
  ASSERT_THAT(completed.graphs, SizeIs(1));
  EXPECT_EQ(completed.graphs[0].graph, *id);
  EXPECT_EQ(engine.queued_ops(), 0u);
  EXPECT_THAT(engine.GetCompletedGraphsAndOps(0).ops, IsEmpty());
}

TEST(TransferEngineTest, RefusesBadGraphsWhole) {
  HeldExecutor executor({Route::kDeviceToCpu});
  TransferEngine engine({.max_queued_ops = 2}, {&executor});
  EXPECT_EQ(engine.SubmitTransferGraph({}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2, {}, 1, 1, Route::kCpuToDevice)}))
                .status()
                .code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.SubmitTransferGraph(Graph(1, {Op(1, {0})})).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2, {5})})).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2), Op(3)})).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_THAT(executor.held, IsEmpty());
  EXPECT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2)})).ok());
  EXPECT_EQ(engine.SubmitTransferGraph(Graph(1, {Op(3)})).status().code(),
            absl::StatusCode::kResourceExhausted);
}

TEST(TransferEngineTest, SuccessorsWaitAndFailWithTheirPredecessor) {
  HeldExecutor executor;
  TransferEngine engine({}, {&executor});
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2, {0}), Op(3, {1}), Op(4)})).ok());
  EXPECT_THAT(executor.order, ElementsAre(1, 4));
  executor.End(1);
  EXPECT_THAT(engine.GetCompletedGraphsAndOps(0).ops, SizeIs(1));
  EXPECT_THAT(executor.order, ElementsAre(1, 4, 2));
  executor.End(2, OpStatus::kPartial, {1});
  auto completed = engine.GetCompletedGraphsAndOps(0);
  ASSERT_THAT(completed.ops, SizeIs(2));
  EXPECT_THAT(completed.ops[0].result.failed, ElementsAre(1));
  EXPECT_EQ(completed.ops[1].op_index, 2u);
  EXPECT_EQ(completed.ops[1].result.status, OpStatus::kFailed);
  EXPECT_THAT(completed.ops[1].result.failed, ElementsAre(0, 1, 2));
  EXPECT_THAT(completed.graphs, IsEmpty());
  executor.End(4);
  EXPECT_THAT(engine.GetCompletedGraphsAndOps(0).graphs, SizeIs(1));
}

TEST(TransferEngineTest, RepeatedPredecessorCountsOnce) {
  HeldExecutor executor;
  TransferEngine engine({}, {&executor});
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2, {0, 0})})).ok());
  executor.End(1);
  engine.GetCompletedGraphsAndOps(0);
  EXPECT_THAT(executor.order, ElementsAre(1, 2));
}

TEST(TransferEngineTest, OneFullEngineHoldsUpNobodyElse) {
  HeldExecutor executor;
  executor.full_engines = {1};
  TransferEngine engine({}, {&executor});
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1, {}, 1), Op(2, {}, 1)})).ok());
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(2, {Op(3, {}, 2)})).ok());
  EXPECT_THAT(executor.order, ElementsAre(3));
  executor.full_engines.clear();
  engine.GetCompletedGraphsAndOps(0);
  EXPECT_THAT(executor.order, ElementsAre(3, 1, 2));
}

TEST(TransferEngineTest, LanesTakeTurns) {
  HeldExecutor executor;
  executor.room = 0;
  TransferEngine engine({}, {&executor});
  ASSERT_TRUE(
      engine.SubmitTransferGraph(Graph(1, {Op(1, {}, 1), Op(2, {}, 1), Op(3, {}, 1)})).ok());
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(2, {Op(4, {}, 2)})).ok());
  executor.room = 2;
  engine.GetCompletedGraphsAndOps(0);
  std::vector<OpKey> first = executor.order;
  std::sort(first.begin(), first.end());
  EXPECT_THAT(first, ElementsAre(1, 4));
}

TEST(TransferEngineTest, DoesNotTrustReports) {
  HeldExecutor executor;
  TransferEngine engine({}, {&executor});
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1), Op(2), Op(3, {0})})).ok());
  const OpId first = executor.held[0].id;
  const OpId blocked = first + 2;
  executor.done = {OpResult{999, OpStatus::kOk, {}}, OpResult{0, OpStatus::kOk, {}},
                   OpResult{blocked, OpStatus::kOk, {}}};
  EXPECT_THAT(engine.GetCompletedGraphsAndOps(0).ops, IsEmpty());
  executor.End(2, OpStatus::kPartial, {2, 0, 2});
  auto completed = engine.GetCompletedGraphsAndOps(0);
  ASSERT_THAT(completed.ops, SizeIs(1));
  EXPECT_THAT(completed.ops[0].result.failed, ElementsAre(0, 2));
  executor.End(1, OpStatus::kPartial, {77});  // out of range: nothing of it is believed
  completed = engine.GetCompletedGraphsAndOps(0);
  ASSERT_THAT(completed.ops, SizeIs(2));
  EXPECT_EQ(completed.ops[0].result.status, OpStatus::kFailed);
  EXPECT_THAT(completed.ops[0].result.failed, ElementsAre(0, 1, 2));
  executor.done = {OpResult{first, OpStatus::kOk, {}}};  // a replay
  EXPECT_THAT(engine.GetCompletedGraphsAndOps(0).ops, IsEmpty());
}

// The last part of a load may be empty: it closes the op. It can end well or not, without
// positions.
TEST(TransferEngineTest, AnOpWithoutBlocksEndsAsItsExecutorSays) {
  HeldExecutor executor;
  TransferEngine engine({}, {&executor});
  const auto end = [&](OpKey key, OpStatus status, std::vector<uint32_t> failed) {
    TransferOp op = Op(key, {}, 1, 0, Route::kCpuToDevice);
    op.part = 3;
    EXPECT_TRUE(engine.SubmitTransferGraph(Graph(1, {op})).ok());
    EXPECT_EQ(executor.held.at(0).part, 3u);
    executor.End(key, status, std::move(failed));
    auto completed = engine.GetCompletedGraphsAndOps(0);
    EXPECT_THAT(completed.ops, SizeIs(1));
    EXPECT_THAT(completed.graphs, SizeIs(1));
    EXPECT_THAT(completed.ops.at(0).result.failed, IsEmpty());
    return completed.ops.at(0).result.status;
  };
  EXPECT_EQ(end(1, OpStatus::kOk, {}), OpStatus::kOk);
  EXPECT_EQ(end(2, OpStatus::kFailed, {}), OpStatus::kFailed);
  EXPECT_EQ(end(3, OpStatus::kPartial, {}), OpStatus::kFailed);
  EXPECT_EQ(end(4, OpStatus::kPartial, {0}), OpStatus::kFailed);
}

TEST(TransferEngineTest, PartsStartInTheOrderOfTheirSubmission) {
  HeldExecutor executor;
  executor.room = 1;
  TransferEngine engine({}, {&executor});
  for (uint32_t part = 0; part < 4; ++part) {
    TransferOp op = Op(7, {}, 1, part < 3 ? 2 : 0, Route::kCpuToDevice);
    op.part = part;
    op.more = part < 3;
    ASSERT_TRUE(engine.SubmitTransferGraph(Graph(part, {op})).ok());
  }
  for (uint32_t part = 0; part < 4; ++part) {
    ASSERT_THAT(executor.held, SizeIs(1));
    EXPECT_EQ(executor.held[0].part, part);
    EXPECT_EQ(executor.held[0].more, part < 3);
    // One that fails does not keep the next from being sent: they are ops of their own.
    executor.End(7, part == 1 ? OpStatus::kFailed : OpStatus::kOk);
    EXPECT_EQ(engine.GetCompletedGraphsAndOps(0).ops.at(0).tag, part);
  }
}

TEST(TransferEngineTest, WaitsOnlyForExecutorsThatAreBusy) {
  HeldExecutor stores({Route::kDeviceToCpu});
  HeldExecutor loads({Route::kCpuToDevice});
  TransferEngine engine({}, {&stores, &loads});
  engine.GetCompletedGraphsAndOps(1000);
  EXPECT_EQ(stores.waited_ns + loads.waited_ns, 0u);
  ASSERT_TRUE(engine.SubmitTransferGraph(Graph(1, {Op(1)})).ok());
  engine.GetCompletedGraphsAndOps(1000);
  EXPECT_EQ(stores.waited_ns, 1000u);
  EXPECT_EQ(loads.waited_ns, 0u);
}

TEST(TransferEngineTest, RandomGraphsEndExactlyOnce) {
  const char* given = std::getenv("FLEXKV_TEST_SEED");
  const uint64_t seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  SCOPED_TRACE("FLEXKV_TEST_SEED=" + std::to_string(seed));
  std::mt19937_64 rng(seed);
  HeldExecutor executor;
  executor.room = 5;
  TransferEngine engine({.max_queued_ops = 64}, {&executor});
  std::map<GraphId, uint32_t> open;  // ops not reported yet
  uint64_t next_key = 1;
  auto collect = [&] {
    auto completed = engine.GetCompletedGraphsAndOps(0);
    for (const CompletedOp& op : completed.ops) --open.at(op.graph);
    for (const CompletedGraph& graph : completed.graphs) {
      EXPECT_EQ(open.at(graph.graph), 0u);
      open.erase(graph.graph);
    }
  };
  for (int step = 0; step < 20000; ++step) {
    if (rng() % 3 == 0) {
      TransferGraph graph;
      const uint32_t size = 1 + rng() % 6;
      for (uint32_t i = 0; i < size; ++i) {
        std::vector<uint32_t> after;
        for (uint32_t j = 0; j < i; ++j) {
          if (rng() % 3 == 0) after.push_back(j);
        }
        graph.ops.push_back(Op(next_key++, after, rng() % 3, rng() % 4));
      }
      auto id = engine.SubmitTransferGraph(std::move(graph));
      if (id.ok()) open[*id] = size;
    } else if (!executor.held.empty()) {
      executor.End(executor.held[rng() % executor.held.size()].key,
                   static_cast<OpStatus>(rng() % 3), {static_cast<uint32_t>(rng() % 5)});
    }
    collect();
    uint32_t unreported = 0;
    for (const auto& [id, count] : open) unreported += count;
    ASSERT_EQ(engine.queued_ops(), unreported);
  }
  while (!executor.held.empty()) {
    executor.End(executor.held[0].key);
    collect();
  }
  EXPECT_EQ(engine.queued_ops(), 0u);
  EXPECT_THAT(open, IsEmpty());
}

}  // namespace
}  // namespace flexkv
