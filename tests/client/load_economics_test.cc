#include "flexkv/client/load_economics.h"

#include "gtest/gtest.h"

namespace flexkv {
namespace {

constexpr uint32_t kBlock = 32;

TEST(LoadEconomics, OneBlockUntilSomethingIsMeasured) {
  EXPECT_EQ(LoadEconomics().MinLoadTokens(kBlock), kBlock);
}

TEST(LoadEconomics, AStepBuysWhatPrefillWouldHaveComputed) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, kNsPerSecond / 2);       // 4096 tokens a second
  economics.RecordStep(4, 4, 25 * kNsPerMs);             // a decode step
  economics.RecordLoad(4096, 0, 10 * kNsPerMs);          // next to nothing beside prefill
  EXPECT_NEAR(economics.MinLoadTokens(kBlock), 103, 2);  // 4096 * 0.025, and 1 % more
}

// One slow load must not end loading for good: the limit is small enough for others to correct it.
TEST(LoadEconomics, LoadsSlowerThanPrefillAreTakenFromSixteenBlocksOn) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, kNsPerSecond / 2);
  economics.RecordLoad(4096, 0, 10 * kNsPerSecond);
  EXPECT_EQ(economics.MinLoadTokens(kBlock), 16 * kBlock);
}

TEST(LoadEconomics, AColdPartIsLeftWhereComputingIsFaster) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, kNsPerSecond / 2);  // 4096 tokens a second
  economics.RecordStep(4, 4, 25 * kNsPerMs);
  economics.RecordLoad(4096, 0, 10 * kNsPerMs);
  EXPECT_EQ(economics.WorthLoading(4096, 0, kBlock), 4096u) << "not measured yet: it is tried";
  economics.RecordLoad(4096, 4096, 2 * kNsPerSecond);  // half as fast as computing
  EXPECT_EQ(economics.WorthLoading(4096, 4096, kBlock), 4096u);
  EXPECT_EQ(economics.WorthLoading(4096, 2048, kBlock), 2048u);
  EXPECT_EQ(economics.WorthLoading(4096, 64, kBlock), 0u);
  EXPECT_EQ(economics.WorthLoading(64, 64, kBlock), 0u);
  int left = 0;
  for (; economics.WorthLoading(4096, 0, kBlock) == 0; ++left) economics.NoteColdLeft();
  EXPECT_GT(left, 10);
  EXPECT_LT(left, 100) << "it is tried again";
}

TEST(LoadEconomics, AFastDeviceIsUsedWholly) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, kNsPerSecond / 2);
  economics.RecordLoad(4096, 0, 10 * kNsPerMs);
  economics.RecordLoad(4096, 3072, 100 * kNsPerMs);
  EXPECT_NEAR(economics.cold_tokens_per_s(), 3072 / 0.0975, 1);  // less the time of the warm part
  EXPECT_EQ(economics.WorthLoading(4096, 1024, kBlock), 4096u);
}

TEST(LoadEconomics, ImpossibleMeasurementsAreIgnored) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, 0);
  economics.RecordStep(0, 0, kNsPerSecond);
  economics.RecordStep(2048, 1, 120 * kNsPerSecond);
  economics.RecordLoad(4096, 0, 0);
  EXPECT_EQ(economics.prefill_tokens_per_s(), 0);
  EXPECT_EQ(economics.load_tokens_per_s(), 0);
}

}  // namespace
}  // namespace flexkv
