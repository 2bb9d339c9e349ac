// Loads whose daemon half comes in parts.
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
constexpr bool kMore = true, kLast = false;
constexpr OpKey kKey = 1;

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

// Slot n holds content 100 + n, block n content n. The op's blocks are 4, 5, 6, ...
class AgentPartsTest : public testing::Test {
 protected:
  explicit AgentPartsTest(DeviceAgent::Options options = {}) : harness(AllShapes()[0], options) {
    for (uint32_t slot = 0; slot < 16; ++slot)
      FillContent(HashFromNumber(100 + slot), 0, harness.Slot(slot));
  }
  void TearDown() override { ASSERT_TRUE(ArmFaults("").ok()); }

  void Load(std::vector<uint32_t> blocks) {
    ASSERT_TRUE(harness.Engine(kKey, kLoad, std::move(blocks)).ok());
  }
  void Refuse(uint32_t part) {
    harness.agent->SubmitDaemonHalf(
        {.boot_id = kBoot, .key = kKey, .route = kLoad, .refused = true, .part = part});
  }
  void ExpectPart(uint32_t part, OpStatus status) {
    const AgentResult result = harness.WaitDaemon(kKey);
    EXPECT_EQ(result.part, part);
    EXPECT_EQ(result.status, status) << "part " << part;
  }
  std::vector<uint32_t> WaitFailedBlocks() {
    const AgentResult result = harness.WaitEngine(kKey);
    EXPECT_EQ(result.status == OpStatus::kOk, result.failed_engine_blocks.empty());
    return result.failed_engine_blocks;
  }
  void ExpectNothingMore() {
    SleepMs(10);
    EXPECT_FALSE(harness.HasDaemonResult(kKey));
    EXPECT_FALSE(harness.HasEngineResult(kKey));
    EXPECT_FALSE(harness.agent->Busy());
  }
  void ExpectHolds(uint32_t block, uint64_t content) {
    EXPECT_TRUE(harness.memory.Holds(block, HashFromNumber(content))) << "block " << block;
  }

  AgentHarness harness;
};

TEST_F(AgentPartsTest, EachIsAnsweredAtOnceAndTheEngineWhenTheLastIsDone) {
  Load({4, 5, 6, 7});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  EXPECT_FALSE(harness.agent->Busy()) << "its segment may go, the op is still open";
  EXPECT_FALSE(harness.HasEngineResult(kKey));
  ExpectHolds(4, 100);
  harness.Part(kKey, 1, kMore, {1, 2}, 1);
  const AgentResult second = harness.WaitDaemon(kKey);
  EXPECT_EQ(second.part, 1u);
  EXPECT_EQ(second.bytes, 2 * harness.shard_bytes);
  EXPECT_FALSE(harness.HasEngineResult(kKey));
  harness.Part(kKey, 2, kLast, {3}, 3);
  ExpectPart(2, OpStatus::kOk);
  const AgentResult all = harness.WaitEngine(kKey);
  EXPECT_EQ(all.status, OpStatus::kOk);
  EXPECT_EQ(all.bytes, 4 * harness.shard_bytes);
  for (uint32_t i = 0; i < 4; ++i) ExpectHolds(4 + i, 100 + i);
  EXPECT_EQ(harness.agent->stats().loads, 1u);
  EXPECT_EQ(harness.agent->stats().load_bytes, 4 * harness.shard_bytes);
  EXPECT_EQ(harness.agent->stats().failed, 0u);
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, TheEngineHalfMayComeAfterSeveral) {
  harness.Part(kKey, 0, kMore, {0}, 0);
  harness.Part(kKey, 1, kMore, {1}, 1);
  SleepMs(10);
  EXPECT_FALSE(harness.HasDaemonResult(kKey));
  EXPECT_TRUE(harness.agent->Busy());
  Load({4, 5, 6});
  ExpectPart(0, OpStatus::kOk);
  ExpectPart(1, OpStatus::kOk);
  harness.Part(kKey, 2, kLast, {2}, 2);
  ExpectPart(2, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), IsEmpty());
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, AnEmptyLastOneClosesTheOp) {
  Load({4, 5, 6});
  harness.Part(kKey, 0, kMore, {0, 1}, 0);
  ExpectPart(0, OpStatus::kOk);
  harness.Part(kKey, 1, kLast, {}, 0);
  const AgentResult closing = harness.WaitDaemon(kKey);
  EXPECT_EQ(closing.part, 1u);
  EXPECT_EQ(closing.status, OpStatus::kOk);
  EXPECT_THAT(closing.failed, IsEmpty());
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(6));
  ExpectHolds(6, 6);
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, BlocksInAnyOrderAndPartsWithinOneChunk) {
  Load({4, 5, 6, 7});
  harness.mapper.Hold();  // all are here before the first is copied
  harness.Part(kKey, 0, kMore, {3}, 3);
  harness.Part(kKey, 1, kMore, {1, 2}, 1);
  harness.Part(kKey, 2, kMore, {0}, 0);
  harness.Part(kKey, 3, kLast, {}, 0);
  harness.mapper.Release();
  for (uint32_t part = 0; part < 4; ++part) ExpectPart(part, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), IsEmpty());
  for (uint32_t i = 0; i < 4; ++i) ExpectHolds(4 + i, 100 + i);
}

TEST_F(AgentPartsTest, ABlockNamedByTwoIsNotCalledGood) {
  Load({4, 5, 6});
  harness.Part(kKey, 0, kMore, {0, 1}, 0);
  harness.Part(kKey, 1, kMore, {8, 9}, 1);  // block 5 again, and 6
  harness.Part(kKey, 2, kMore, {7}, 1);     // and again
  harness.Part(kKey, 3, kLast, {6}, 2);     // 6 was named by a part that failed
  ExpectPart(0, OpStatus::kOk);
  ExpectPart(1, OpStatus::kFailed);
  ExpectPart(2, OpStatus::kFailed);
  ExpectPart(3, OpStatus::kFailed);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5, 6));
  ExpectHolds(4, 100);
  ExpectHolds(5, 101);  // not overwritten all the same
  ExpectHolds(6, 6);
  EXPECT_EQ(harness.agent->stats().failed, 1u) << "ops, not parts";
}

TEST_F(AgentPartsTest, AWrongPlaceFailsItsPartOnly) {
  Load({4, 5, 6});
  harness.Part(kKey, 0, kMore, {0}, 0);
  DaemonHalf wrong{.boot_id = kBoot, .key = kKey, .route = kLoad, .part = 1, .more = true};
  wrong.blocks = {{.segment = 99, .engine_index = 1, .offset_bytes = 0}};
  harness.agent->SubmitDaemonHalf(wrong);
  wrong.part = 2;
  wrong.blocks = {harness.PlaceOf(1, 77)};
  harness.agent->SubmitDaemonHalf(wrong);
  harness.Part(kKey, 3, kLast, {2}, 2);
  ExpectPart(0, OpStatus::kOk);
  ExpectPart(1, OpStatus::kFailed);
  ExpectPart(2, OpStatus::kFailed);
  ExpectPart(3, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, AGapADuplicateOrAnotherRouteCloseTheOp) {
  for (int kind = 0; kind < 3; ++kind) {
    SCOPED_TRACE(kind);
    Load({4, 5, 6});
    harness.Part(kKey, 0, kMore, {0}, 0);
    ExpectPart(0, OpStatus::kOk);
    DaemonHalf wrong{.boot_id = kBoot, .key = kKey, .route = kLoad, .part = 1, .more = true};
    wrong.blocks = {harness.PlaceOf(1, 1)};
    if (kind == 0) wrong.part = 2;
    if (kind == 1) wrong.part = 0;
    if (kind == 2) wrong.route = kStore;
    harness.agent->SubmitDaemonHalf(wrong);
    ExpectPart(wrong.part, OpStatus::kFailed);
    EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5, 6));
    harness.Part(kKey, 1, kLast, {1}, 1);  // the right one comes too late
    ExpectPart(1, OpStatus::kFailed);
    harness.agent->SetBootId(kBoot + 1);  // forgets the key
    harness.agent->SetBootId(kBoot);
    ExpectNothingMore();
  }
  ExpectHolds(5, 5);
}

TEST_F(AgentPartsTest, NothingFollowsTheLast) {
  harness.mapper.Hold();
  Load({4, 5});
  harness.Part(kKey, 0, kMore, {0}, 0);
  harness.Part(kKey, 1, kLast, {}, 0);
  harness.Part(kKey, 2, kLast, {1}, 1);
  EXPECT_EQ(harness.WaitDaemon(kKey).part, 2u);
  harness.mapper.Release();
  ExpectPart(0, OpStatus::kOk);
  ExpectPart(1, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  harness.Part(kKey, 3, kLast, {1}, 1);
  ExpectPart(3, OpStatus::kFailed);
  ExpectHolds(5, 5);
}

TEST_F(AgentPartsTest, PartsThatNoOpHasAreAnswered) {
  harness.Part(kKey, 1, kLast, {0}, 0);  // its first one never came
  ExpectPart(1, OpStatus::kFailed);
  Load({4});  // told at once, not after its deadline
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(4));
  ASSERT_TRUE(harness.Engine(2, kLoad, {5}).ok());
  harness.Part(2, 0, kMore, {}, 0);  // empty, and yet more to come
  EXPECT_EQ(harness.WaitDaemon(2).status, OpStatus::kFailed);
  EXPECT_EQ(harness.WaitEngine(2).status, OpStatus::kFailed);
  ASSERT_TRUE(harness.Engine(3, kLoad, {5}).ok());
  harness.Part(3, 0, kLast, {}, 0);
  EXPECT_EQ(harness.WaitDaemon(3).status, OpStatus::kFailed);
  EXPECT_THAT(harness.WaitEngine(3).failed_engine_blocks, ElementsAre(5));
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, StoresHaveOne) {
  const DaemonHalf halves[] = {
      {.boot_id = kBoot, .key = kKey, .route = kStore, .more = true},
      {.boot_id = kBoot, .key = kKey + 1, .route = kStore, .part = 1},
  };
  for (DaemonHalf half : halves) {
    ASSERT_TRUE(harness.Engine(half.key, kStore, {4}).ok());
    harness.agent->StepDone();
    half.blocks = {harness.PlaceOf(0, 0)};
    harness.agent->SubmitDaemonHalf(half);
    EXPECT_EQ(harness.WaitDaemon(half.key).status, OpStatus::kFailed);
  }
  EXPECT_TRUE(harness.SlotHolds(0, HashFromNumber(100)));
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, ARefusalEndsWhatIsNotThereYet) {
  Load({4, 5, 6});
  harness.mapper.Hold();
  harness.Part(kKey, 0, kMore, {0}, 0);
  harness.Part(kKey, 1, kMore, {1}, 1);
  Refuse(2);
  EXPECT_EQ(harness.WaitDaemon(kKey).part, 2u);
  EXPECT_FALSE(harness.HasEngineResult(kKey));
  harness.mapper.Release();
  ExpectPart(0, OpStatus::kOk);
  ExpectPart(1, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(6));
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, ARefusalOfAnOpThatWaits) {
  Load({4, 5});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  Refuse(1);
  ExpectPart(1, OpStatus::kFailed);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  EXPECT_EQ(harness.agent->stats().failed, 1u);
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, ARefusalBeforeTheEngineHalf) {
  harness.Part(kKey, 0, kMore, {0}, 0);
  Refuse(1);
  ExpectPart(1, OpStatus::kFailed);
  Load({4, 5});
  ExpectPart(0, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  ExpectHolds(4, 100);
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, ARevokedOpsLaterPartsAreAnsweredAndTouchNothing) {
  Load({4, 5, 6});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  harness.agent->Revoke(kKey);  // while it waits
  for (uint32_t block : {4, 5, 6}) harness.memory.Fill(block, HashFromNumber(500 + block));
  harness.Part(kKey, 1, kMore, {1}, 1);
  harness.Part(kKey, 2, kLast, {2}, 2);
  ExpectPart(1, OpStatus::kFailed);
  ExpectPart(2, OpStatus::kFailed);
  SleepMs(10);
  for (uint32_t block : {4, 5, 6}) ExpectHolds(block, 500 + block);
  ExpectNothingMore();
}

TEST_F(AgentPartsTest, RevokedBeforeTheEngineHalfCame) {
  harness.Part(kKey, 0, kMore, {0}, 0);
  harness.Part(kKey, 1, kMore, {1}, 1);
  harness.agent->Revoke(kKey);
  harness.Part(kKey, 2, kLast, {2}, 2);
  for (uint32_t part = 0; part < 3; ++part) ExpectPart(part, OpStatus::kFailed);
  EXPECT_TRUE(harness.Engine(kKey, kLoad, {4, 5, 6}).ok());
  ExpectNothingMore();
  ExpectHolds(4, 4);
}

TEST_F(AgentPartsTest, PartsWithoutEngineHalfEndAfterTheOrphanTimeout) {
  AgentHarness hasty(AllShapes()[0], {.orphan_timeout_ns = 20 * kNsPerMs});
  hasty.Part(kKey, 0, kMore, {0}, 0);
  hasty.Part(kKey, 1, kMore, {1, 2}, 1);
  EXPECT_THAT(hasty.WaitDaemon(kKey).failed, ElementsAre(0));
  EXPECT_THAT(hasty.WaitDaemon(kKey).failed, ElementsAre(0, 1));
  hasty.Part(kKey, 2, kLast, {3}, 3);
  EXPECT_EQ(hasty.WaitDaemon(kKey).part, 2u);
  ASSERT_TRUE(hasty.Engine(kKey, kLoad, {3, 4, 5, 6}).ok());
  EXPECT_THAT(hasty.WaitEngine(kKey).failed_engine_blocks, ElementsAre(3, 4, 5, 6));
  EXPECT_FALSE(hasty.agent->Busy());
}

TEST_F(AgentPartsTest, AnOpenOpWaitsForAsLongAsTheEngineDoes) {
  AgentHarness hasty(AllShapes()[0], {.orphan_timeout_ns = 10 * kNsPerMs});
  ASSERT_TRUE(hasty.Engine(kKey, kLoad, {4, 5}).ok());
  hasty.Part(kKey, 0, kMore, {0}, 0);
  EXPECT_EQ(hasty.WaitDaemon(kKey).status, OpStatus::kOk);
  SleepMs(60);
  EXPECT_FALSE(hasty.HasEngineResult(kKey));
  hasty.Part(kKey, 1, kLast, {1}, 1);
  EXPECT_EQ(hasty.WaitEngine(kKey).status, OpStatus::kOk);
}

TEST_F(AgentPartsTest, DaemonHalvesAreBoundedWithTheirParts) {
  AgentHarness small(AllShapes()[0], {.max_ops = 2});
  for (uint32_t part = 0; part < 3; ++part) small.Part(kKey, part, kMore, {part}, part);
  EXPECT_EQ(small.WaitDaemon(kKey).part, 2u);
  ASSERT_TRUE(small.Engine(kKey, kLoad, {4, 5, 6}).ok());
  EXPECT_EQ(small.WaitDaemon(kKey).status, OpStatus::kOk);
  EXPECT_EQ(small.WaitDaemon(kKey).status, OpStatus::kOk);
  EXPECT_THAT(small.WaitEngine(kKey).failed_engine_blocks, ElementsAre(6));
}

TEST_F(AgentPartsTest, AFailingPartLeavesTheOthers) {
  Load({4, 5, 6});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  ASSERT_TRUE(ArmFaults("agent.fail_op").ok());
  harness.Part(kKey, 1, kMore, {1}, 1);
  ExpectPart(1, OpStatus::kFailed);
  ASSERT_TRUE(ArmFaults("").ok());
  harness.Part(kKey, 2, kLast, {2}, 2);
  ExpectPart(2, OpStatus::kOk);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  EXPECT_EQ(harness.agent->stats().failed, 1u);
}

class AgentSlowPartsTest : public AgentPartsTest {
 protected:
  AgentSlowPartsTest() : AgentPartsTest({.chunk_bytes = 1}) {
    EXPECT_TRUE(ArmFaults("agent.slow_chunk").ok());
  }
};

TEST_F(AgentSlowPartsTest, RevokeWaitsForTheRunningChunkOfAPart) {
  Load({4, 5, 6, 7});
  harness.Part(kKey, 0, kMore, {0, 1}, 0);
  harness.Part(kKey, 1, kMore, {2}, 2);
  SleepMs(30);
  harness.agent->Revoke(kKey);
  for (uint32_t block : {4, 5, 6, 7}) harness.memory.Fill(block, HashFromNumber(500 + block));
  harness.Part(kKey, 2, kLast, {3}, 3);
  SleepMs(60);
  for (uint32_t block : {4, 5, 6, 7}) ExpectHolds(block, 500 + block);
  std::vector<uint32_t> parts;
  for (int i = 0; i < 3; ++i) parts.push_back(harness.WaitDaemon(kKey).part);
  EXPECT_THAT(parts, testing::UnorderedElementsAre(0, 1, 2));
  ExpectNothingMore();
}

TEST_F(AgentSlowPartsTest, NewBootIdEndsAnOpWithItsPartsAndTellsWhatArrived) {
  Load({4, 5, 6, 7, 8, 9, 10});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  harness.Part(kKey, 1, kMore, {1, 2, 3, 4, 5}, 1);
  harness.Part(kKey, 2, kLast, {6}, 6);
  SleepMs(30);
  harness.agent->SetBootId(kBoot + 1);
  const AgentResult running = harness.WaitDaemon(kKey), waiting = harness.WaitDaemon(kKey);
  EXPECT_EQ(running.part, 1u);
  EXPECT_NE(running.status, OpStatus::kOk);
  EXPECT_EQ(waiting.part, 2u);
  EXPECT_EQ(waiting.status, OpStatus::kFailed);
  std::vector<uint32_t> expected;
  for (uint32_t at : running.failed) expected.push_back(5 + at);
  expected.push_back(10);
  EXPECT_EQ(WaitFailedBlocks(), expected);
  ExpectHolds(4, 100);
  ExpectNothingMore();
}

TEST_F(AgentSlowPartsTest, NewBootIdEndsAnOpThatWaits) {
  Load({4, 5});
  harness.Part(kKey, 0, kMore, {0}, 0);
  ExpectPart(0, OpStatus::kOk);
  harness.agent->SetBootId(kBoot + 1);
  EXPECT_THAT(WaitFailedBlocks(), ElementsAre(5));
  harness.Part(kKey, 1, kLast, {1}, 1);  // of the old daemon
  ExpectPart(1, OpStatus::kFailed);
  ExpectNothingMore();
  ExpectHolds(5, 5);
}

}  // namespace
}  // namespace flexkv
