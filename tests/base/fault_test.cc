// Fault points: refused when misspelt, seeded, counted, silent when nothing is armed.
#include "flexkv/base/fault.h"

#include <gtest/gtest.h>

#include <set>
#include <string>
#include <thread>
#include <vector>

namespace flexkv {
namespace {

class FaultTest : public ::testing::Test {
 protected:
  ~FaultTest() override { EXPECT_TRUE(ArmFaults("").ok()); }

  static std::vector<bool> Fire(std::string_view name, int times) {
    std::vector<bool> fired;
    for (int i = 0; i < times; ++i) fired.push_back(FaultFires(name));
    return fired;
  }
};

TEST_F(FaultTest, NothingFiresUnlessArmed) {
  EXPECT_FALSE(FaultFires("agent.flip_byte"));
  ASSERT_TRUE(ArmFaults("agent.fail_op").ok());
  EXPECT_FALSE(FaultFires("agent.flip_byte"));
  EXPECT_EQ(FaultCount("agent.flip_byte"), 0u);
}

TEST_F(FaultTest, AnArmedPointFiresAlwaysAndIsCounted) {
  ASSERT_TRUE(ArmFaults("agent.flip_byte").ok());
  EXPECT_EQ(Fire("agent.flip_byte", 3), std::vector<bool>(3, true));
  EXPECT_EQ(FaultCount("agent.flip_byte"), 3u);
  ASSERT_TRUE(ArmFaults("").ok());
  EXPECT_FALSE(FaultFires("agent.flip_byte"));
  EXPECT_EQ(FaultCount("agent.flip_byte"), 0u);
}

TEST_F(FaultTest, ARateIsReplayedByItsSeed) {
  ASSERT_TRUE(ArmFaults("manager.refuse_put:4:7").ok());
  const std::vector<bool> first = Fire("manager.refuse_put", 1000);
  const uint64_t count = FaultCount("manager.refuse_put");
  EXPECT_GT(count, 180u);
  EXPECT_LT(count, 320u);
  ASSERT_TRUE(ArmFaults("manager.refuse_put:4:7").ok());
  EXPECT_EQ(Fire("manager.refuse_put", 1000), first);
  ASSERT_TRUE(ArmFaults("manager.refuse_put:4:8").ok());
  EXPECT_NE(Fire("manager.refuse_put", 1000), first);
}

TEST_F(FaultTest, SeveralPointsAtOnce) {
  ASSERT_TRUE(ArmFaults("agent.fail_op,client.ring_full:1:3,").ok());
  EXPECT_TRUE(FaultFires("agent.fail_op"));
  EXPECT_TRUE(FaultFires("client.ring_full"));
}

TEST_F(FaultTest, BadSpecsAreRefusedAndLeaveWhatIsArmed) {
  ASSERT_TRUE(ArmFaults("agent.fail_op").ok());
  for (const char* bad : {"agent.fail_opp", "agent.fail_op:0", "agent.fail_op:x",
                          "agent.fail_op:1:y", "agent.fail_op:-1", ":1", "agent.fail_op,nope"}) {
    EXPECT_EQ(ArmFaults(bad).code(), absl::StatusCode::kInvalidArgument) << bad;
  }
  EXPECT_TRUE(FaultFires("agent.fail_op"));
}

TEST_F(FaultTest, NamesAreUniqueAndEachCanBeArmed) {
  const std::vector<std::string_view> names = FaultPointNames();
  EXPECT_EQ(std::set<std::string_view>(names.begin(), names.end()).size(), names.size());
  for (std::string_view name : names) {
    EXPECT_TRUE(ArmFaults(name).ok()) << name;
    EXPECT_TRUE(FaultFires(name)) << name;
  }
}

TEST_F(FaultTest, PointsFireOnManyThreads) {
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([] {
      for (int n = 0; n < 1000; ++n) FaultFires("agent.slow_chunk");
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(FaultCount("agent.slow_chunk"), 4000u);
}

}  // namespace
}  // namespace flexkv
