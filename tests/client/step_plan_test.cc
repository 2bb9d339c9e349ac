#include "flexkv/client/step_plan.h"

#include <gtest/gtest.h>

#include <random>

#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

std::vector<std::byte> Example() {
  PlanBuilder builder;
  builder.Start(7);
  builder.AddFence(3);
  builder.AddOp(11, Route::kCpuToDevice, std::vector<uint32_t>{1, 2, 3}, "request-1", false);
  builder.AddOp(12, Route::kDeviceToCpu, std::vector<uint32_t>{9}, "", false);
  const auto bytes = builder.Finish();
  return {bytes.begin(), bytes.end()};
}

TEST(StepPlanTest, ComesBackAsBuilt) {
  ParsedPlan plan;
  ASSERT_TRUE(ParsePlan(Example(), &plan).ok());
  EXPECT_EQ(plan.number, 7u);
  EXPECT_EQ(plan.fences, (std::vector<uint32_t>{3}));
  ASSERT_EQ(plan.ops.size(), 2u);
  EXPECT_EQ(plan.ops[0].op.key, 11u);
  EXPECT_EQ(plan.ops[0].request_id, "request-1");
  EXPECT_EQ(plan.ops[0].block_ids, (std::vector<uint32_t>{1, 2, 3}));
  EXPECT_EQ(plan.ops[1].block_ids, (std::vector<uint32_t>{9}));
}

TEST(StepPlanTest, NothingToDoIsNoBytes) {
  PlanBuilder builder;
  builder.Start(1);
  EXPECT_TRUE(builder.Finish().empty());
}

TEST(StepPlanTest, EveryTruncationIsRefused) {
  const std::vector<std::byte> whole = Example();
  for (size_t size = 0; size < whole.size(); ++size) {
    ParsedPlan plan;
    EXPECT_FALSE(ParsePlan(std::span(whole).first(size), &plan).ok()) << size;
  }
}

TEST(StepPlanTest, MutatedBytesNeverReadOutOfBounds) {  // meaningful under AddressSanitizer
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  for (int i = 0; i < 20000; ++i) {
    std::vector<std::byte> bytes = Example();
    for (int flips = 1 + static_cast<int>(random() % 4); flips > 0; --flips) {
      bytes[random() % bytes.size()] = static_cast<std::byte>(random());
    }
    bytes.resize(random() % 2 == 0 ? bytes.size() : random() % (bytes.size() + 1));
    ParsedPlan plan;
    ParsePlan(bytes, &plan).IgnoreError();
  }
}

}  // namespace
}  // namespace flexkv
