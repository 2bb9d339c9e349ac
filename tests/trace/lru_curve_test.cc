// The LRU curve against the manager itself at every capacity, and against a plain stack.
#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/run_tracker.h"
#include "flexkv/trace/simulate.h"
#include "tests/trace/random_trace.h"

namespace flexkv::trace {
namespace {

LruCurve CurveOf(const RequestBatch& batch) {
  auto curve = ComputeLruCurve(MakeMemorySource(batch).get());
  EXPECT_TRUE(curve.ok()) << curve.status();
  return *std::move(curve);
}

// Hits per capacity from a stack that is searched block by block.
std::vector<uint64_t> PlainCurve(const RequestBatch& batch) {
  std::vector<uint64_t> stack;
  std::vector<uint64_t> hits(batch.blocks.size() + 2, 0);
  for (const TraceRequest& request : batch.requests) {
    const auto ids = batch.BlocksOf(request);
    for (uint64_t id : ids) {
      const auto at = std::find(stack.begin(), stack.end(), id);
      if (at != stack.end()) ++hits[static_cast<size_t>(std::distance(stack.begin(), at)) + 1];
    }
    std::vector<uint64_t> now(ids.begin(), ids.end());
    for (uint64_t id : stack) {
      if (std::find(ids.begin(), ids.end(), id) == ids.end()) now.push_back(id);
    }
    stack = std::move(now);
  }
  for (size_t c = 1; c < hits.size(); ++c) hits[c] += hits[c - 1];
  return hits;
}

TEST(LruCurveTest, EqualsTheManagerAtEveryCapacity) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 6; ++round) {
    const RequestBatch batch = RandomTrace(
        {.requests = 60, .longest = 4 + rng.Below(20), .labels = 2 + rng.Below(4)}, &rng);
    const LruCurve curve = CurveOf(batch);
    std::vector<Cell> cells;
    for (uint64_t c = 1; c <= curve.unique_blocks + 2; ++c)
      cells.push_back({.policy = "lru", .cpu_blocks = c});
    cells.push_back({.policy = "lru"});
    auto source = MakeMemorySource(batch);
    const auto results = Simulate(source.get(), cells, {.max_memory_bytes = 4ull << 30});
    ASSERT_TRUE(results.ok()) << results.status();
    for (const CellResult& result : *results) {
      ASSERT_EQ(result.hit_tokens_cpu, curve.HitsAt(result.cell.cpu_blocks))
          << "round " << round << ", " << result.cell.cpu_blocks << " blocks of "
          << curve.unique_blocks;
      ASSERT_DOUBLE_EQ(result.hit_rate(), curve.HitRateAt(result.cell.cpu_blocks));
    }
  }
}

TEST(LruCurveTest, EqualsAPlainStackOnLongerTraces) {
  TestRng rng(TestSeed() + 1);
  for (int round = 0; round < 3; ++round) {
    // Enough requests for runs and chains to be moved together a few times.
    const RequestBatch batch =
        RandomTrace({.requests = 2500, .longest = 10 + rng.Below(20), .labels = 3}, &rng);
    const LruCurve curve = CurveOf(batch);
    const std::vector<uint64_t> plain = PlainCurve(batch);
    for (uint64_t c = 0; c < plain.size(); ++c) ASSERT_EQ(curve.HitsAt(c), plain[c]) << c;
    EXPECT_EQ(curve.requests, batch.requests.size());
    EXPECT_EQ(curve.block_accesses, batch.blocks.size());
    EXPECT_EQ(curve.unique_blocks,
              std::set<uint64_t>(batch.blocks.begin(), batch.blocks.end()).size());
  }
}

TEST(LruCurveTest, ACacheSmallerThanARequestKeepsItsPrefix) {
  ChainMaker ids;
  const std::vector<uint64_t> chain = ids.Chain({1, 2, 3, 4, 5});
  RequestBatch batch;
  AddRequest(chain, &batch);
  AddRequest(chain, &batch);
  const LruCurve curve = CurveOf(batch);
  const std::vector<std::pair<uint64_t, uint64_t>> expected = {
      {1, 1}, {2, 2}, {3, 3}, {4, 4}, {5, 5}};
  EXPECT_EQ(curve.steps, expected);
  EXPECT_EQ(curve.HitsAt(0), 0u);
  EXPECT_EQ(curve.HitsAt(kInfiniteBlocks), 5u);
}

TEST(LruCurveTest, CountsTokensWhereBlocksDiffer) {
  ChainMaker ids;
  RequestBatch batch;
  for (int i = 0; i < 2; ++i) AddRequest(ids.Chain({1, 2}), &batch, RequestKind::kGetPut, 16);
  for (int i = 0; i < 2; ++i) AddRequest(ids.Chain({7, 8, 9}), &batch, RequestKind::kGetPut, 64);
  const LruCurve curve = CurveOf(batch);
  EXPECT_EQ(curve.prompt_tokens, 2u * (2 * 16 + 3 * 64));
  EXPECT_DOUBLE_EQ(curve.HitRateAt(1), (16.0 + 64) / (2 * (2 * 16 + 3 * 64)));
  EXPECT_DOUBLE_EQ(curve.HitRateAt(100), 0.5);
  EXPECT_EQ(curve.step_tokens.size(), curve.steps.size());
}

TEST(LruCurveTest, NothingIsNothing) {
  EXPECT_EQ(CurveOf({}).HitsAt(10), 0u);
  EXPECT_EQ(CurveOf({}).HitRateAt(10), 0);
  RequestBatch batch;
  AddRequest({}, &batch);
  EXPECT_EQ(CurveOf(batch).requests, 1u);
  EXPECT_EQ(CurveOf(batch).HitRateAt(10), 0);
}

TEST(LruCurveTest, SaysWhenMemoryDoesNotSuffice) {
  TestRng rng(TestSeed() + 2);
  const RequestBatch batch = RandomTrace({.requests = 5000, .longest = 40, .labels = 50}, &rng);
  const auto curve = ComputeLruCurve(MakeMemorySource(batch).get(), 1 << 20);
  ASSERT_FALSE(curve.ok());
  EXPECT_EQ(curve.status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_NE(std::string(curve.status().message()).find("MiB"), std::string::npos);
}

// Ids that are not chained, or twice in one chain, are a reader's fault: some answer, no crash.
TEST(RunTrackerTest, SurvivesIdsThatAreNotChained) {
  TestRng rng(TestSeed() + 3);
  for (int round = 0; round < 20; ++round) {
    RunTracker runs(true);
    for (int i = 0; i < 2000; ++i) {
      std::vector<uint64_t> ids(rng.Below(20));
      for (uint64_t& id : ids) id = rng.Below(30);
      runs.Access(ids, !rng.OneIn(3));
      ASSERT_LE(runs.known_blocks(), ids.size());
      for (uint32_t number : runs.numbers()) ASSERT_LT(number, runs.unique_blocks());
    }
  }
}

TEST(RunTrackerTest, NumbersBlocksInTheOrderOfTheirFirstUse) {
  TestRng rng(TestSeed() + 4);
  const RequestBatch batch = RandomTrace({.requests = 5000, .longest = 30, .labels = 3}, &rng);
  std::map<uint64_t, uint32_t> numbers;
  RunTracker runs(true);
  for (const TraceRequest& request : batch.requests) {
    const auto ids = batch.BlocksOf(request);
    runs.Access(ids, true);
    ASSERT_EQ(runs.numbers().size(), ids.size());
    for (size_t i = 0; i < ids.size(); ++i) {
      const auto number =
          numbers.try_emplace(ids[i], static_cast<uint32_t>(numbers.size())).first->second;
      ASSERT_EQ(runs.numbers()[i], number);
    }
  }
  EXPECT_EQ(runs.unique_blocks(), numbers.size());
}

}  // namespace
}  // namespace flexkv::trace
