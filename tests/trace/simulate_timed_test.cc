// Simulation with durations.
#include <gtest/gtest.h>

#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/simulate.h"
#include "tests/trace/random_trace.h"

namespace flexkv::trace {
namespace {

CellResult RunCell(const RequestBatch& batch, const Cell& cell, SimulateOptions options) {
  options.max_memory_bytes = 1ull << 30;
  auto source = MakeMemorySource(batch);
  auto results = Simulate(source.get(), {cell}, options);
  EXPECT_TRUE(results.ok()) << results.status();
  return results.ok() ? (*results)[0] : CellResult{};
}

RequestBatch Twice(TimeNs apart) {
  ChainMaker ids;
  RequestBatch batch;
  for (int i = 0; i < 2; ++i)
    AddRequest(ids.Chain({1, 2, 3, 4}), &batch, RequestKind::kGetPut, 100);
  batch.requests[1].time_ns = apart;
  return batch;
}

TEST(SimulateTimedTest, NothingTakesTimeIsTheSameAsWithoutTime) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 6; ++round) {
    const RequestBatch batch = RandomTrace(
        {.requests = 500, .longest = 12, .labels = 3, .all_kinds = round % 2 == 1}, &rng);
    for (uint64_t ssd : {0, 300}) {
      const Cell cell{.policy = "lru", .cpu_blocks = 50, .ssd_blocks = ssd, .evict_ratio = 0};
      const CellResult plain = RunCell(batch, cell, {});
      const CellResult timed = RunCell(
          batch, cell,
          {.timed = true, .prefill_tokens_per_s = 0, .load_bytes_per_s = 0, .ssd_bytes_per_s = 0});
      ASSERT_EQ(timed.requests, plain.requests);
      if (ssd > 0) continue;  // writes to the SSD overlap with what follows
      ASSERT_EQ(timed.hit_tokens_cpu, plain.hit_tokens_cpu) << round;
      ASSERT_EQ(timed.inserted_blocks, plain.inserted_blocks);
      ASSERT_EQ(timed.never_read_blocks, plain.never_read_blocks);
    }
  }
}

TEST(SimulateTimedTest, APromptIsFoundOnceItIsComputed) {
  // 400 tokens at 1,000 a second.
  const SimulateOptions options{.timed = true, .prefill_tokens_per_s = 1000};
  const Cell cell{.policy = "lru", .cpu_blocks = 100};
  EXPECT_EQ(RunCell(Twice(399 * kNsPerMs), cell, options).hit_tokens_cpu, 0u);
  EXPECT_EQ(RunCell(Twice(401 * kNsPerMs), cell, options).hit_tokens_cpu, 400u);
  EXPECT_EQ(RunCell(Twice(0), cell, options).hit_tokens_cpu, 0u);
  EXPECT_EQ(RunCell(Twice(0), cell, options).inserted_blocks, 4u);
}

TEST(SimulateTimedTest, StoringTakesTimeToo) {
  // Four blocks of 1 MiB at 4 MiB a second.
  SimulateOptions options{.timed = true, .prefill_tokens_per_s = 0};
  options.load_bytes_per_s = 4 << 20;
  const Cell cell{.policy = "lru", .cpu_blocks = 100};
  EXPECT_EQ(RunCell(Twice(990 * kNsPerMs), cell, options).hit_tokens_cpu, 0u);
  EXPECT_EQ(RunCell(Twice(1010 * kNsPerMs), cell, options).hit_tokens_cpu, 400u);
}

TEST(SimulateTimedTest, HeadroomCostsHits) {
  TestRng rng(TestSeed() + 1);
  const RequestBatch batch = RandomTrace({.requests = 3000, .longest = 20, .labels = 3}, &rng);
  const SimulateOptions options{.timed = true, .prefill_tokens_per_s = 0, .load_bytes_per_s = 0};
  const Cell full{.policy = "lru", .cpu_blocks = 400, .evict_ratio = 0};
  Cell roomy = full;
  roomy.evict_ratio = 0.5;
  roomy.evict_start_ratio = 0.5;
  EXPECT_LT(RunCell(batch, roomy, options).hit_tokens_cpu,
            RunCell(batch, full, options).hit_tokens_cpu);
}

TEST(SimulateTimedTest, SsdTierServesWhatMemoryLost) {
  TestRng rng(TestSeed() + 2);
  const RequestBatch batch = RandomTrace({.requests = 2000, .longest = 12, .labels = 4}, &rng);
  const SimulateOptions options{.timed = true, .block_bytes = 1 << 16};
  const CellResult one = RunCell(batch, {.policy = "lru", .cpu_blocks = 60}, options);
  const CellResult two =
      RunCell(batch, {.policy = "lru", .cpu_blocks = 60, .ssd_blocks = 5000}, options);
  EXPECT_GT(two.hit_tokens_ssd, 0u);
  EXPECT_GT(two.hit_tokens_cpu + two.hit_tokens_ssd, one.hit_tokens_cpu);
  EXPECT_LE(two.ssd_written_blocks, two.inserted_blocks);
}

}  // namespace
}  // namespace flexkv::trace
