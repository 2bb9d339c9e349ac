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
  economics.RecordLoad(4096, 10 * kNsPerMs);             // next to nothing beside prefill
  EXPECT_NEAR(economics.MinLoadTokens(kBlock), 103, 2);  // 4096 * 0.025, and 1 % more
}

// One slow load must not end loading for good: the limit is small enough for others to correct it.
TEST(LoadEconomics, LoadsSlowerThanPrefillAreTakenFromSixteenBlocksOn) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, kNsPerSecond / 2);
  economics.RecordLoad(4096, 10 * kNsPerSecond);
  EXPECT_EQ(economics.MinLoadTokens(kBlock), 16 * kBlock);
}

TEST(LoadEconomics, ImpossibleMeasurementsAreIgnored) {
  LoadEconomics economics;
  economics.RecordStep(2048, 1, 0);
  economics.RecordStep(0, 0, kNsPerSecond);
  economics.RecordStep(2048, 1, 120 * kNsPerSecond);
  economics.RecordLoad(4096, 0);
  EXPECT_EQ(economics.prefill_tokens_per_s(), 0);
  EXPECT_EQ(economics.load_tokens_per_s(), 0);
}

}  // namespace
}  // namespace flexkv
