#include "flexkv/cache/planner.h"

#include <numeric>
#include <string>
#include <vector>

#include "flexkv/storage/segment_store.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv {
namespace {

constexpr uint64_t kKiB = 1024;
constexpr uint64_t kMiB = 1024 * kKiB;
constexpr uint64_t kGiB = 1024 * kMiB;

// --- geometry ------------------------------------------------------------------------------------

TEST(GeometryTest, StrideIsAPageOrACacheLine) {
  EXPECT_EQ(ShardStride(1), 64u);
  EXPECT_EQ(ShardStride(64), 64u);
  EXPECT_EQ(ShardStride(4095), 4096u);
  EXPECT_EQ(ShardStride(100), 128u);
  EXPECT_EQ(ShardStride(4096), 4096u);
  EXPECT_EQ(ShardStride(4097), 8192u);
}

struct GeometryCase {
  std::string name;
  std::vector<uint64_t> shards;
  uint64_t segment_bytes;
  uint64_t budget_bytes;
};

class GeometryCaseTest : public ::testing::TestWithParam<GeometryCase> {};

TEST_P(GeometryCaseTest, FitsAndWastesLittle) {
  const GeometryCase& c = GetParam();
  const auto cut = PlanGeometry(c.shards, c.segment_bytes, c.budget_bytes);
  ASSERT_TRUE(cut.has_value());
  uint64_t block = 0;
  for (size_t r = 0; r < c.shards.size(); ++r) {
    block += cut->strides[r];
    EXPECT_EQ(cut->segment_bytes[r] % kSegmentAlign, 0u);
    EXPECT_GE(cut->segment_bytes[r], cut->slots_per_group * cut->strides[r]);
  }
  EXPECT_GE(cut->slots_per_group, 1u);
  EXPECT_GE(cut->max_groups, 1u);
  EXPECT_LE(cut->max_groups * cut->group_bytes, c.budget_bytes);
  const uint64_t slots = uint64_t{cut->max_groups} * cut->slots_per_group;
  if (c.budget_bytes >= 100 * block) {
    EXPECT_GE(static_cast<double>(slots * block), 0.85 * static_cast<double>(c.budget_bytes))
        << slots;
    EXPECT_GE(cut->max_groups, kMinGroups);
  }
}

INSTANTIATE_TEST_SUITE_P(
    Layouts, GeometryCaseTest,
    ::testing::Values(GeometryCase{"Small", {16 * kKiB}, kGiB, kMiB},
                      GeometryCase{"OneGiB", {256 * kKiB}, kGiB, kGiB},
                      GeometryCase{"Large", {2 * kMiB, 2 * kMiB}, kGiB, 100 * kGiB},
                      GeometryCase{"Uneven", {300 * kKiB, 4 * kKiB, 77}, 64 * kMiB, kGiB},
                      GeometryCase{"OneBlock", {3 * kMiB}, kGiB, 3 * kMiB},
                      GeometryCase{"MostOfIt", {6 * kMiB}, kGiB, 10 * kMiB},
                      GeometryCase{"Tiny", {64}, kGiB, 64}),
    [](const auto& param_info) { return param_info.param.name; });

TEST(GeometryTest, ImpossibleSizesAreRefused) {
  EXPECT_FALSE(PlanGeometry(std::vector<uint64_t>{}, kGiB, kGiB).has_value());
  EXPECT_FALSE(PlanGeometry(std::vector<uint64_t>{0}, kGiB, kGiB).has_value());
  EXPECT_FALSE(PlanGeometry(std::vector<uint64_t>{2 * kGiB}, kGiB, kGiB).has_value());
  EXPECT_FALSE(PlanGeometry(std::vector<uint64_t>{UINT64_MAX, 2}, kGiB, UINT64_MAX).has_value());
  EXPECT_FALSE(PlanGeometry(std::vector<uint64_t>{4096}, kGiB, 0).has_value());
  EXPECT_TRUE(PlanGeometry(std::vector<uint64_t>{4096}, 0, kGiB).has_value());
  EXPECT_TRUE(PlanGeometry(std::vector<uint64_t>{64}, UINT64_MAX, UINT64_MAX).has_value());
}

TEST(GeometryTest, BudgetInBlocksHoldsThem) {
  for (uint64_t blocks : {1u, 7u, 10u, 100u, 1000u, 12345u}) {
    for (uint64_t shard : std::vector<uint64_t>{64, 5000, 64 * kKiB, 3 * kMiB}) {
      const std::vector<uint64_t> shards = {shard, shard};
      const auto budget = BudgetForBlocks(shards, kGiB, blocks);
      ASSERT_TRUE(budget.has_value());
      const auto cut = PlanGeometry(shards, kGiB, *budget);
      ASSERT_TRUE(cut.has_value());
      EXPECT_GE(uint64_t{cut->max_groups} * cut->slots_per_group, blocks)
          << blocks << " of " << shard;
      EXPECT_LE(*budget, 2 * blocks * 2 * ShardStride(shard) + 16 * kSegmentAlign);
    }
  }
  EXPECT_FALSE(BudgetForBlocks(std::vector<uint64_t>{4096}, kGiB, UINT64_MAX).has_value());
  EXPECT_FALSE(BudgetForBlocks(std::vector<uint64_t>{4096}, kGiB, 0).has_value());
}

// --- put -----------------------------------------------------------------------------------------

struct PutCase {
  std::string name;
  PutOffer offer;
  PutRoom room;
  PutPlan plan;
};

class PlanPutTest : public ::testing::TestWithParam<PutCase> {};

TEST_P(PlanPutTest, Plans) {
  const PutCase& c = GetParam();
  const PutPlan plan = PlanPut(c.offer, c.room);
  EXPECT_EQ(plan.verdict, c.plan.verdict);
  EXPECT_EQ(plan.held, c.plan.held);
  EXPECT_EQ(plan.wanted, c.plan.wanted);
  EXPECT_EQ(plan.new_groups, c.plan.new_groups);
  EXPECT_EQ(plan.evictions, c.plan.evictions);
  if (plan.verdict == PutVerdict::kCopy) {
    EXPECT_EQ(plan.start, c.offer.first + plan.held);
  }
}

constexpr PutVerdict kCopy = PutVerdict::kCopy;
INSTANTIATE_TEST_SUITE_P(
    Cases, PlanPutTest,
    ::testing::Values(
        PutCase{"AllNewAllFree", {0, 4, 0}, {10, 0, 8}, {kCopy, 0, 0, 4, 0, 0}},
        PutCase{"SomeHeld", {2, 4, 3}, {10, 0, 8}, {kCopy, 1, 3, 3, 0, 0}},
        PutCase{"AllHeld", {2, 4, 6}, {0, 0, 8}, {PutVerdict::kNothingNew, 4, 6, 0, 0, 0}},
        PutCase{"MorePresentThanOffered",
                {2, 4, 99},
                {0, 0, 8},
                {PutVerdict::kNothingNew, 4, 6, 0, 0, 0}},
        PutCase{"HeldEvenWhenBusy",
                {0, 4, 4},
                {0, 0, 8, true},
                {PutVerdict::kNothingNew, 4, 4, 0, 0, 0}},
        PutCase{
            "ParentMissing", {2, 4, 1}, {10, 0, 8}, {PutVerdict::kParentMissing, 0, 0, 0, 0, 0}},
        PutCase{"Busy", {0, 4, 1}, {10, 0, 8, true}, {PutVerdict::kBusy, 1, 0, 0, 0, 0}},
        PutCase{"OneGroup", {0, 4, 0}, {0, 3, 8}, {kCopy, 0, 0, 4, 1, 0}},
        PutCase{"FreeThenGroups", {0, 20, 0}, {3, 3, 8}, {kCopy, 0, 0, 20, 3, 0}},
        PutCase{"FreeThenGroupsThenEvict", {0, 40, 0}, {3, 3, 8}, {kCopy, 0, 0, 40, 3, 13}},
        PutCase{"EvictOnly", {0, 4, 0}, {1, 0, 8}, {kCopy, 0, 0, 4, 0, 3}},
        PutCase{"HugeOffer",
                {0, UINT32_MAX, 0},
                {0, 1, 8},
                {kCopy, 0, 0, UINT32_MAX, 1, UINT32_MAX - 8}}),
    [](const auto& param_info) { return param_info.param.name; });

TEST(PlanLoadTest, RangeMustLieInTheLease) {
  EXPECT_TRUE(RangeInLease(0, 4, 4));
  EXPECT_TRUE(RangeInLease(3, 1, 4));
  EXPECT_FALSE(RangeInLease(0, 0, 4));
  EXPECT_FALSE(RangeInLease(0, 5, 4));
  EXPECT_FALSE(RangeInLease(4, 1, 4));
  EXPECT_FALSE(RangeInLease(UINT32_MAX, UINT32_MAX, 4));
  EXPECT_FALSE(RangeInLease(2, UINT32_MAX, 4));
}

// --- memory between classes ----------------------------------------------------------------------

TEST(ShareTest, AloneAClassMayHaveEverything) {
  std::vector<ClassShare> classes = {{.bytes = 0, .group_bytes = 10, .entitled = true}};
  for (; classes[0].bytes < 100; classes[0].bytes += 10) EXPECT_TRUE(MayGrow(classes, 0, 100));
  EXPECT_FALSE(MayGrow(classes, 0, 100));
  EXPECT_EQ(PlanDonor(classes, 0, 100), std::nullopt);
}

TEST(ShareTest, FreedBudgetIsLeftToThoseWaiting) {
  std::vector<ClassShare> classes = {
      {.bytes = 90, .group_bytes = 10, .entitled = true},
      {.bytes = 0, .group_bytes = 10, .entitled = true, .waiting = true}};
  EXPECT_FALSE(MayGrow(classes, 0, 100));
  EXPECT_TRUE(MayGrow(classes, 1, 100));
  classes[1].waiting = false;
  EXPECT_TRUE(MayGrow(classes, 0, 100));
  classes[1].waiting = true;
  classes[0].bytes = 60;  // enough for both
  EXPECT_TRUE(MayGrow(classes, 0, 100));
}

TEST(ShareTest, TheOneFurthestAboveItsShareGives) {
  std::vector<ClassShare> classes = {
      {.bytes = 40, .group_bytes = 10, .entitled = true},
      {.bytes = 60, .group_bytes = 10, .entitled = true},
      {.bytes = 0, .group_bytes = 10, .entitled = true, .waiting = true}};
  EXPECT_EQ(PlanDonor(classes, 2, 100), std::optional<size_t>(1));
  EXPECT_EQ(PlanDonor(classes, 1, 100), std::nullopt);  // has its share
  classes[0].entitled = false;  // nobody uses it any more: all of it is excess
  EXPECT_EQ(PlanDonor(classes, 2, 100), std::optional<size_t>(0));
}

TEST(ShareTest, NobodyGivesBelowItsShareExceptToOneWithNothing) {
  std::vector<ClassShare> classes = {
      {.bytes = 50, .group_bytes = 10, .entitled = true},
      {.bytes = 45, .group_bytes = 15, .entitled = true, .waiting = true}};
  EXPECT_EQ(PlanDonor(classes, 1, 100), std::nullopt);
  classes[1] = {.bytes = 0, .group_bytes = 60, .entitled = true, .waiting = true};
  EXPECT_EQ(PlanDonor(classes, 1, 100), std::optional<size_t>(0));
  classes[0].bytes = 40;  // 60 are free now
  EXPECT_EQ(PlanDonor(classes, 1, 100), std::nullopt);
}

TEST(EvictAheadTest, OnlyNearFullAndOnlyWhenItCannotGrow) {
  EXPECT_EQ(PlanEvictAhead(990, 1000, false, 0.98, 0.01), 10u);
  EXPECT_EQ(PlanEvictAhead(980, 1000, false, 0.98, 0.01), 0u);
  EXPECT_EQ(PlanEvictAhead(990, 1000, true, 0.98, 0.01), 0u);
  EXPECT_EQ(PlanEvictAhead(1000, 1000, false, 0.98, 0.0), 0u);
  EXPECT_EQ(PlanEvictAhead(10, 10, false, 0.98, 0.01), 0u);
  EXPECT_EQ(PlanEvictAhead(0, 0, false, 0.98, 0.5), 0u);
  EXPECT_EQ(PlanEvictAhead(10, 10, false, 0.5, 7.0), 10u);
}

// Puts take turns, also when every other key, or every fourth, is a load's.
TEST(StoreRankTest, ReplicasTakeTurns) {
  for (const uint32_t ranks : {1u, 2u, 3u, 4u, 8u, 256u}) {
    for (const uint64_t step : {1u, 2u, 4u}) {
      std::vector<uint32_t> puts(ranks);
      for (uint64_t i = 0; i < 1000ull * ranks; ++i) {
        const uint32_t rank = RankOfStore(1 + i * step, ranks);
        ASSERT_LT(rank, ranks);
        ASSERT_EQ(rank, RankOfStore(1 + i * step, ranks));
        ++puts[rank];
      }
      for (const uint32_t count : puts) {
        EXPECT_GT(count, 900u) << ranks << " ranks, every " << step;
        EXPECT_LT(count, 1100u) << ranks << " ranks, every " << step;
      }
    }
  }
  EXPECT_LT(RankOfStore(UINT64_MAX, 256), 256u);
}

}  // namespace
}  // namespace flexkv
