#include "flexkv/transfer/device_agent.h"

#include <sched.h>

#include <filesystem>
#include <fstream>
#include <string>

#include "flexkv/base/fault.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/transfer/agent_harness.h"

namespace flexkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

constexpr Route kStore = Route::kDeviceToCpu;
constexpr Route kLoad = Route::kCpuToDevice;

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class DeviceAgentTest : public testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(ArmFaults("").ok()); }

  // A chunk is one block of this shape.
  static DeviceAgent::Options OneBlockChunks() { return {.chunk_bytes = 1}; }
};

class AgentShapeTest : public testing::TestWithParam<std::tuple<Shape, uint64_t>> {};

TEST_P(AgentShapeTest, EveryByteGoesDownAndComesBack) {
  const auto& [shape, chunk_bytes] = GetParam();
  AgentHarness harness(shape, {.chunk_bytes = chunk_bytes});
  ASSERT_TRUE(harness.Engine(1, kStore, {3, 4, 5, 0, 15}).ok());
  harness.Daemon(1, kStore, {9, 8, 0, 1, 31});
  harness.agent->StepDone();
  const AgentResult stored = harness.WaitDaemon(1);
  EXPECT_EQ(stored.status, OpStatus::kOk);
  EXPECT_EQ(stored.bytes, 5 * harness.shard_bytes);
  EXPECT_THAT(stored.failed, IsEmpty());
  const uint32_t slots[] = {9, 8, 0, 1, 31}, blocks[] = {3, 4, 5, 0, 15};
  for (int i = 0; i < 5; ++i) EXPECT_TRUE(harness.SlotHolds(slots[i], HashFromNumber(blocks[i])));

  harness.Daemon(2, kLoad, {9, 8, 0, 1, 31});  // the daemon half first this time
  ASSERT_TRUE(harness.Engine(2, kLoad, {10, 6, 7, 11, 3}).ok());
  EXPECT_EQ(harness.WaitDaemon(2).status, OpStatus::kOk);
  const AgentResult loaded = harness.WaitEngine(2);
  EXPECT_EQ(loaded.status, OpStatus::kOk);
  EXPECT_THAT(loaded.failed_engine_blocks, IsEmpty());
  const uint32_t targets[] = {10, 6, 7, 11, 3};
  for (int i = 0; i < 5; ++i)
    EXPECT_TRUE(harness.memory.Holds(targets[i], HashFromNumber(blocks[i])));
  for (uint32_t block : {0, 1, 2, 4, 5, 8, 9, 12, 13, 14, 15}) {
    EXPECT_TRUE(harness.memory.Holds(block, HashFromNumber(block)));
  }
  EXPECT_TRUE(harness.memory.PaddingIntact());
  EXPECT_FALSE(harness.agent->Busy());
  EXPECT_GT(harness.bells(), 0);
  const AgentStats stats = harness.agent->stats();
  EXPECT_EQ(stats.loads, 1u);
  EXPECT_EQ(stats.stores, 1u);
  EXPECT_EQ(stats.load_bytes, 5 * harness.shard_bytes);
}

// Chunks of a part, of about a block and of everything.
INSTANTIATE_TEST_SUITE_P(Shapes, AgentShapeTest,
                         testing::Combine(testing::ValuesIn(AllShapes()),
                                          testing::Values(1, 2500, 4 << 20)),
                         [](const auto& param) {
                           return std::get<0>(param.param).name +
                                  std::to_string(std::get<1>(param.param));
                         });

TEST_F(DeviceAgentTest, StoreWaitsForTheStepInWhichItWasSubmitted) {
  AgentHarness harness(AllShapes()[0]);
  harness.agent->StepDone();  // of an earlier step
  ASSERT_TRUE(harness.Engine(1, kStore, {2}).ok());
  harness.Daemon(1, kStore, {0});
  SleepMs(30);
  EXPECT_FALSE(harness.HasDaemonResult(1));
  EXPECT_TRUE(harness.agent->Busy());
  harness.memory.Fill(2, HashFromNumber(200));  // the forward runs now
  harness.agent->StepDone();
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kOk);
  EXPECT_TRUE(harness.SlotHolds(0, HashFromNumber(200)));
}

TEST_F(DeviceAgentTest, RevokedOpNeverTouchesEngineMemory) {
  AgentHarness harness(AllShapes()[0]);
  ASSERT_TRUE(harness.Engine(1, kLoad, {2}).ok());
  harness.agent->Revoke(1);
  harness.Daemon(1, kLoad, {0});
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kFailed);

  harness.agent->Revoke(2);  // before either half
  harness.Daemon(2, kLoad, {0});
  EXPECT_TRUE(harness.Engine(2, kLoad, {2}).ok());
  EXPECT_THAT(harness.WaitDaemon(2).failed, ElementsAre(0));

  harness.Daemon(3, kLoad, {0, 1});  // only the daemon half is there
  harness.agent->Revoke(3);
  EXPECT_THAT(harness.WaitDaemon(3).failed, ElementsAre(0, 1));
  SleepMs(10);
  EXPECT_TRUE(harness.memory.Holds(2, HashFromNumber(2)));
  for (OpKey key : {1, 2, 3}) EXPECT_FALSE(harness.HasEngineResult(key));
  EXPECT_FALSE(harness.agent->Busy());
}

TEST_F(DeviceAgentTest, RevokeWaitsForTheRunningChunkOnly) {
  AgentHarness harness(AllShapes()[0], OneBlockChunks());
  for (uint32_t slot = 0; slot < 16; ++slot)
    FillContent(HashFromNumber(100 + slot), 0, harness.Slot(slot));
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  std::vector<uint32_t> blocks, slots;
  for (uint32_t i = 0; i < 16; ++i) {
    blocks.push_back(i);
    slots.push_back(i);
  }
  ASSERT_TRUE(harness.Engine(1, kLoad, blocks).ok());
  harness.Daemon(1, kLoad, slots);
  SleepMs(50);
  const auto start = std::chrono::steady_clock::now();
  harness.agent->Revoke(1);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(200));
  for (uint32_t block : blocks) harness.memory.Fill(block, HashFromNumber(500 + block));
  const AgentResult result = harness.WaitDaemon(1);
  EXPECT_NE(result.status, OpStatus::kOk);
  EXPECT_FALSE(result.failed.empty());
  SleepMs(60);
  for (uint32_t block : blocks)
    EXPECT_TRUE(harness.memory.Holds(block, HashFromNumber(500 + block)));
  EXPECT_FALSE(harness.HasEngineResult(1));
}

TEST_F(DeviceAgentTest, RevokeTakesBackAResultNobodyTookYet) {
  AgentHarness harness(AllShapes()[0]);
  ASSERT_TRUE(harness.Engine(1, kLoad, {2}).ok());
  harness.Daemon(1, kLoad, {0});
  while (harness.agent->Busy()) SleepMs(1);
  harness.agent->Revoke(1);
  EXPECT_FALSE(harness.HasEngineResult(1)) << "it would be reported twice";
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kOk);
}

TEST_F(DeviceAgentTest, FencedBlocksOfStoresAreDroppedWhereverTheStoreIs) {
  AgentHarness harness(AllShapes()[0]);
  harness.mapper.Hold();
  ASSERT_TRUE(harness.Engine(1, kStore, {0, 1, 2}).ok());  // being prepared
  harness.Daemon(1, kStore, {0, 1, 2});
  harness.agent->StepDone();
  harness.mapper.WaitUntilHeld();
  ASSERT_TRUE(harness.Engine(2, kStore, {1, 3}).ok());  // matched, waits for its step
  harness.Daemon(2, kStore, {3, 4});
  ASSERT_TRUE(harness.Engine(3, kStore, {1}).ok());  // daemon half still to come
  const uint32_t fenced[] = {1, 77777};
  harness.agent->FenceBlocks(fenced);
  harness.memory.Fill(1, HashFromNumber(999));
  harness.Daemon(3, kStore, {5});
  harness.mapper.Release();
  harness.agent->StepDone();
  const AgentResult first = harness.WaitDaemon(1), second = harness.WaitDaemon(2);
  EXPECT_EQ(first.status, OpStatus::kPartial);
  EXPECT_THAT(first.failed, ElementsAre(1));
  EXPECT_THAT(second.failed, ElementsAre(0));
  EXPECT_EQ(harness.WaitDaemon(3).status, OpStatus::kFailed);
  EXPECT_TRUE(harness.SlotHolds(0, HashFromNumber(0)));
  EXPECT_TRUE(harness.SlotHolds(2, HashFromNumber(2)));
  EXPECT_TRUE(harness.SlotHolds(4, HashFromNumber(3)));
  EXPECT_EQ(harness.agent->stats().fenced_blocks, 3u);
  // The fence was for what was there; a store submitted after it is taken.
  ASSERT_TRUE(harness.Engine(4, kStore, {1}).ok());
  harness.Daemon(4, kStore, {6});
  harness.agent->StepDone();
  EXPECT_EQ(harness.WaitDaemon(4).status, OpStatus::kOk);
  EXPECT_TRUE(harness.SlotHolds(6, HashFromNumber(999)));
}

TEST_F(DeviceAgentTest, FenceWaitsForARunningChunkThatReadsTheBlock) {
  AgentHarness harness(AllShapes()[0], {.chunk_bytes = 1 << 20});
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  for (int repeat = 0; repeat < 10; ++repeat) {
    const OpKey key = static_cast<OpKey>(repeat) + 1;
    harness.memory.Fill(5, HashFromNumber(5));
    ASSERT_TRUE(harness.Engine(key, kStore, {4, 5, 6}).ok());
    harness.Daemon(key, kStore, {0, 1, 2});
    harness.agent->StepDone();
    SleepMs(repeat * 3);
    const uint32_t fenced[] = {5};
    harness.agent->FenceBlocks(fenced);
    harness.memory.Fill(5, HashFromNumber(666));
    const AgentResult result = harness.WaitDaemon(key);
    if (result.status == OpStatus::kOk) {
      EXPECT_TRUE(harness.SlotHolds(1, HashFromNumber(5)));
    } else {
      EXPECT_THAT(result.failed, ElementsAre(1));
    }
  }
}

TEST_F(DeviceAgentTest, NewBootIdEndsEverythingOfTheOldOne) {
  AgentHarness harness(AllShapes()[0], OneBlockChunks());
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  ASSERT_TRUE(harness.Engine(1, kLoad, {0, 1, 2, 3}).ok());  // will be running
  harness.Daemon(1, kLoad, {0, 1, 2, 3});
  ASSERT_TRUE(harness.Engine(2, kLoad, {4, 5}).ok());
  ASSERT_TRUE(harness.Engine(3, kStore, {6}).ok());
  harness.Daemon(4, kLoad, {5});
  SleepMs(30);
  harness.agent->SetBootId(kBoot + 1);
  EXPECT_NE(harness.WaitEngine(1).status, OpStatus::kOk);
  EXPECT_THAT(harness.WaitEngine(2).failed_engine_blocks, ElementsAre(4, 5));
  EXPECT_NE(harness.WaitDaemon(1).status, OpStatus::kOk);
  EXPECT_EQ(harness.WaitDaemon(4).status, OpStatus::kFailed);
  harness.Daemon(3, kStore, {0});  // old daemon
  EXPECT_EQ(harness.WaitDaemon(3).status, OpStatus::kFailed);
  EXPECT_FALSE(harness.agent->Busy());
  // Keys of the old attachment mean nothing any more.
  ASSERT_TRUE(harness.Engine(2, kLoad, {4}).ok());
  harness.Daemon(2, kLoad, {0}, kBoot + 1);
  EXPECT_EQ(harness.WaitEngine(2).status, OpStatus::kOk);

  // A late half of the old daemon does not meet a new engine half, nor does it harm it.
  ASSERT_TRUE(harness.Engine(20, kLoad, {7}).ok());
  harness.Daemon(20, kLoad, {0}, kBoot);
  EXPECT_EQ(harness.WaitDaemon(20).status, OpStatus::kFailed);
  EXPECT_FALSE(harness.HasEngineResult(20));
  EXPECT_TRUE(harness.memory.Holds(7, HashFromNumber(7)));
  harness.Daemon(20, kLoad, {0}, kBoot + 1);
  EXPECT_EQ(harness.WaitEngine(20).status, OpStatus::kOk);

  harness.agent->SetBootId(0);  // detached: nothing is promised
  ASSERT_TRUE(harness.Engine(9, kLoad, {4}).ok());
  EXPECT_EQ(harness.WaitEngine(9).status, OpStatus::kFailed);
  harness.Daemon(10, kLoad, {0}, 0);
  EXPECT_EQ(harness.WaitDaemon(10).status, OpStatus::kFailed);
}

TEST_F(DeviceAgentTest, RefusedHalvesEndAtOnceInEitherOrder) {
  AgentHarness harness(AllShapes()[0]);
  ASSERT_TRUE(harness.Engine(1, kLoad, {2, 3}).ok());
  harness.agent->SubmitDaemonHalf({.boot_id = kBoot, .key = 1, .route = kLoad, .refused = true});
  EXPECT_THAT(harness.WaitEngine(1).failed_engine_blocks, ElementsAre(2, 3));
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kFailed);
  harness.agent->SubmitDaemonHalf({.boot_id = kBoot, .key = 2, .route = kLoad, .refused = true});
  EXPECT_EQ(harness.WaitDaemon(2).status, OpStatus::kFailed);
  ASSERT_TRUE(harness.Engine(2, kLoad, {4}).ok());
  EXPECT_THAT(harness.WaitEngine(2).failed_engine_blocks, ElementsAre(4));
  EXPECT_EQ(harness.agent->stats().refused, 2u);
}

TEST_F(DeviceAgentTest, HalvesWithoutPartnerEndAfterTheOrphanTimeout) {
  AgentHarness harness(AllShapes()[0], {.orphan_timeout_ns = 20 * kNsPerMs});
  harness.Daemon(1, kLoad, {0, 1});
  EXPECT_THAT(harness.WaitDaemon(1).failed, ElementsAre(0, 1));
  ASSERT_TRUE(harness.Engine(1, kLoad, {3}).ok());  // comes too late: told at once
  EXPECT_THAT(harness.WaitEngine(1).failed_engine_blocks, ElementsAre(3));
  ASSERT_TRUE(harness.Engine(2, kStore, {3}).ok());
  SleepMs(60);
  EXPECT_EQ(harness.agent->stats().orphans, 2u);
  harness.Daemon(2, kStore, {0});
  EXPECT_EQ(harness.WaitDaemon(2).status, OpStatus::kFailed);
}

TEST_F(DeviceAgentTest, WhatTheDaemonSaysIsCheckedBeforeAByteMoves) {
  AgentHarness harness(AllShapes()[0]);
  const uint64_t end = harness.mapper.At(1).size();
  const ArenaPlace good = harness.PlaceOf(0, 0);
  const ArenaPlace bad[] = {
      {.segment = 99, .engine_index = 1, .offset_bytes = 0},
      {.segment = 1, .engine_index = 1, .offset_bytes = end - harness.shard_bytes + 1},
      {.segment = 1, .engine_index = 1, .offset_bytes = UINT64_MAX - 10},
      {.segment = 1, .engine_index = 2, .offset_bytes = 0},
      {.segment = 1, .engine_index = UINT32_MAX, .offset_bytes = 0},
      {.segment = 1,
       .engine_index = 0,
       .offset_bytes = harness.shard_bytes},  // the same block twice
  };
  FillContent(HashFromNumber(400), 0, harness.Slot(0));
  OpKey key = 0;
  for (const ArenaPlace& place : bad) {
    ++key;
    ASSERT_TRUE(harness.Engine(key, kLoad, {2, 3}).ok());
    harness.agent->SubmitDaemonHalf(
        {.boot_id = kBoot, .key = key, .route = kLoad, .blocks = {good, place}});
    EXPECT_THAT(harness.WaitDaemon(key).failed, ElementsAre(0, 1));
    EXPECT_THAT(harness.WaitEngine(key).failed_engine_blocks, ElementsAre(2, 3));
    EXPECT_TRUE(harness.memory.Holds(2, HashFromNumber(2))) << "nothing is copied, case " << key;
  }
}

TEST_F(DeviceAgentTest, BadEngineHalvesAreRefusedAndTheirDaemonHalvesAnswered) {
  AgentHarness harness(AllShapes()[0], {.max_ops = 2});
  EXPECT_EQ(harness.Engine(0, kLoad, {1}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.Engine(1, kLoad, {16}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.Engine(2, kLoad, {}).code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(harness.Engine(3, Route::kNumRoutes, {1}).code(), absl::StatusCode::kInvalidArgument);
  harness.Daemon(1, kLoad, {0});
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kFailed);

  ASSERT_TRUE(harness.Engine(4, kLoad, {1}).ok());
  EXPECT_EQ(harness.Engine(4, kLoad, {1}).code(), absl::StatusCode::kInvalidArgument);
  ASSERT_TRUE(harness.Engine(5, kLoad, {2}).ok());
  EXPECT_EQ(harness.Engine(6, kLoad, {3}).code(), absl::StatusCode::kResourceExhausted);
  harness.Daemon(6, kLoad, {0});
  EXPECT_EQ(harness.WaitDaemon(6).status, OpStatus::kFailed);

  harness.Daemon(5, kStore, {0});  // the halves disagree
  EXPECT_EQ(harness.WaitDaemon(5).status, OpStatus::kFailed);
  EXPECT_EQ(harness.WaitEngine(5).status, OpStatus::kFailed);
  EXPECT_FALSE(harness.HasEngineResult(4));
  EXPECT_FALSE(harness.HasEngineResult(6)) << "not taken, so the caller answers for it";
}

TEST_F(DeviceAgentTest, ManyDaemonHalvesAndDuplicatesAreAnswered) {
  AgentHarness harness(AllShapes()[0], {.max_ops = 2});
  for (OpKey key : {1, 2, 3}) harness.Daemon(key, kLoad, {0});
  EXPECT_EQ(harness.WaitDaemon(3).status, OpStatus::kFailed);
  EXPECT_FALSE(harness.HasDaemonResult(1));
  harness.Daemon(1, kLoad, {1});
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kFailed) << "the second of its key";
  ASSERT_TRUE(harness.Engine(1, kLoad, {0}).ok());
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kOk) << "the first is unharmed";
}

TEST_F(DeviceAgentTest, BlocksTheDaemonDoesNotBringAreReportedToTheEngine) {
  AgentHarness harness(AllShapes()[0]);
  ASSERT_TRUE(harness.Engine(1, kLoad, {5, 6, 7}).ok());
  harness.agent->SubmitDaemonHalf(
      {.boot_id = kBoot, .key = 1, .route = kLoad, .blocks = {harness.PlaceOf(3, 1)}});
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kOk);
  const AgentResult result = harness.WaitEngine(1);
  EXPECT_EQ(result.status, OpStatus::kPartial);
  EXPECT_THAT(result.failed_engine_blocks, ElementsAre(5, 7));
}

TEST_F(DeviceAgentTest, LoadsGoFirstButAStoreIsNotStarved) {
  AgentHarness harness(AllShapes()[0], OneBlockChunks());
  harness.mapper.Hold();
  for (OpKey key = 1; key <= 40; ++key) {
    ASSERT_TRUE(harness.Engine(key, kLoad, {static_cast<uint32_t>(key % 16)}).ok());
    harness.Daemon(key, kLoad, {static_cast<uint32_t>(key % 16)});
  }
  harness.mapper.WaitUntilHeld();
  ASSERT_TRUE(harness.Engine(100, kStore, {0}).ok());
  harness.Daemon(100, kStore, {20});
  harness.agent->StepDone();
  harness.mapper.Release();
  harness.WaitDaemon(100);
  for (OpKey key = 1; key <= 40; ++key) harness.WaitDaemon(key);
  const auto place =
      std::find(harness.order.begin(), harness.order.end(), 100) - harness.order.begin();
  EXPECT_GT(place, 3);
  EXPECT_LT(place, 30);
}

TEST_F(DeviceAgentTest, FaultPointsDoWhatTheySay) {
  AgentHarness harness(AllShapes()[0]);
  for (uint32_t slot = 0; slot < 3; ++slot)
    FillContent(HashFromNumber(50 + slot), 0, harness.Slot(slot));
  const auto load = [&](OpKey key, const char* fault) {
    EXPECT_TRUE(ArmFaults(fault).ok());
    EXPECT_TRUE(harness.Engine(key, kLoad, {0, 1, 2}).ok());
    harness.Daemon(key, kLoad, {0, 1, 2});
    const AgentResult result = harness.WaitEngine(key);
    EXPECT_GE(FaultCount(fault), 1u);
    return result.status;
  };
  EXPECT_EQ(load(1, "agent.swap_blocks"), OpStatus::kOk);
  EXPECT_TRUE(harness.memory.Holds(0, HashFromNumber(51)));
  EXPECT_TRUE(harness.memory.Holds(1, HashFromNumber(50)));
  EXPECT_TRUE(harness.memory.Holds(2, HashFromNumber(52)));
  EXPECT_EQ(load(2, "agent.flip_byte"), OpStatus::kOk);
  EXPECT_FALSE(harness.memory.Holds(0, HashFromNumber(50)));
  EXPECT_TRUE(harness.memory.Holds(1, HashFromNumber(51)));
  EXPECT_EQ(load(3, "agent.fail_op"), OpStatus::kFailed);
  EXPECT_EQ(harness.WaitDaemon(3).status, OpStatus::kFailed);
  EXPECT_EQ(load(4, "agent.drop_done"), OpStatus::kOk);
  SleepMs(10);
  EXPECT_FALSE(harness.HasDaemonResult(4));
  EXPECT_FALSE(harness.agent->Busy());
}

// Cores of the thread that makes an agent are not those of the agent's thread.
TEST_F(DeviceAgentTest, ThreadIsNamedAndUsesAllAllowedCores) {
  cpu_set_t allowed, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(allowed), &allowed), 0);
  CPU_ZERO(&one);
  for (int core = 0; core < CPU_SETSIZE; ++core) {
    if (CPU_ISSET(core, &allowed)) {
      CPU_SET(core, &one);
      break;
    }
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  AgentHarness harness(AllShapes()[0]);
  ASSERT_EQ(sched_setaffinity(0, sizeof(allowed), &allowed), 0);
  ASSERT_TRUE(harness.Engine(1, kLoad, {0}).ok());
  harness.Daemon(1, kLoad, {0});
  harness.WaitDaemon(1);  // so the thread is past its start
  bool found = false;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (name != "flexkv-agent") continue;
    found = true;
    cpu_set_t cores;
    ASSERT_EQ(sched_getaffinity(std::stoi(task.path().filename()), sizeof(cores), &cores), 0);
    EXPECT_GE(CPU_COUNT(&cores), CPU_COUNT(&allowed));
  }
  EXPECT_TRUE(found);
}

TEST_F(DeviceAgentTest, UnusableOptionsAreRefused) {
  EngineMemory memory(AllShapes()[0], 4);
  TestMapper mapper(1, 100);
  EXPECT_FALSE(MakeHostAgent({}, KvLayout{}, &mapper, nullptr).ok());
  EXPECT_FALSE(MakeHostAgent({}, memory.layout(), nullptr, nullptr).ok());
  EXPECT_FALSE(MakeHostAgent({.chunk_bytes = 0}, memory.layout(), &mapper, nullptr).ok());
  EXPECT_TRUE(MakeHostAgent({}, memory.layout(), &mapper, nullptr).ok());
}

}  // namespace
}  // namespace flexkv
