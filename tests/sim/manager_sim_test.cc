#include "tests/sim/manager_sim.h"

#include <cstdio>

#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

constexpr uint64_t kSteps = kSanitized ? 20'000 : 100'000;

void RunWith(uint64_t seed, uint64_t steps, bool with_ssd) {
  ManagerSim sim(seed, with_ssd);
  const absl::Status status = sim.Run(steps);
  EXPECT_TRUE(status.ok()) << status << "\nreplay: flexkv_sim --seed " << seed << " --steps "
                           << steps << " --ssd " << with_ssd;
  std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed),
              sim.stats().ToString().c_str());
  // The run is worth something only when everything really happened.
  EXPECT_GT(sim.stats().loads_checked, steps / 10);
  EXPECT_GT(sim.stats().evicted, steps / 100);
  EXPECT_GT(sim.stats().deaths, 0u);
  EXPECT_GT(sim.stats().resets, 0u);
  EXPECT_GT(sim.stats().expired, 0u);
  EXPECT_GT(sim.stats().replica_stores, steps / 500);
  if (!with_ssd) return;
  EXPECT_GT(sim.stats().ssd_written, steps / 20);
  EXPECT_GT(sim.stats().ssd_read, steps / 100);
  EXPECT_GT(sim.stats().ssd_evicted, 0u);
  EXPECT_GT(sim.stats().ssd_faults, 0u);
  EXPECT_GT(sim.stats().restarts, 0u);
  EXPECT_GT(sim.stats().recovered, 0u);
}

TEST(ManagerSimTest, FixedSeed) { RunWith(1, kSteps, false); }

TEST(ManagerSimTest, FreshSeed) { RunWith(TestSeed(), kSteps, false); }

TEST(ManagerSimTest, FixedSeedWithSsd) { RunWith(1, kSteps, true); }

TEST(ManagerSimTest, FreshSeedWithSsd) { RunWith(TestSeed(), kSteps, true); }

TEST(ManagerSimTest, ManyShortRuns) {
  for (uint64_t i = 0; i < 10; ++i) {
    ManagerSim sim(TestSeed() + 1 + i);
    const absl::Status status = sim.Run(1000);
    EXPECT_TRUE(status.ok()) << status << "\nreplay: flexkv_sim --seed " << TestSeed() + 1 + i
                             << " --steps 1000";
  }
}

// The same seed gives the same run: a failure can be replayed.
TEST(ManagerSimTest, ReplaysFromItsSeed) {
  ManagerSim first(42);
  ManagerSim second(42);
  ASSERT_TRUE(first.Run(3000).ok());
  ASSERT_TRUE(second.Run(3000).ok());
  EXPECT_EQ(first.stats().ToString(), second.stats().ToString());
}

}  // namespace
}  // namespace flexkv
