// The core over a copier that ends chunks when the test says so: what is under way at a time, and
// what revocations, fences, boot ids and steps do to it.
#include "flexkv/transfer/agent_core.h"

#include <atomic>
#include <future>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/transfer/scripted_copier.h"

namespace flexkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;
using testing::UnorderedElementsAre;

constexpr Route kStore = Route::kDeviceToCpu;
constexpr Route kLoad = Route::kCpuToDevice;

// One layer with one fragment a block: a chunk of one byte is a block.
Shape OneLayer() { return {.name = "OneLayer", .layers = 1, .kv_apart = false}; }

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class AgentCoreTest : public testing::Test {
 protected:
  void SetUp() override {
    for (uint32_t slot = 0; slot < 16; ++slot) {
      FillContent(HashFromNumber(100 + slot), 0, agent.harness.Slot(slot));
    }
  }
  // Both halves; blocks n.. to or from slots n...
  void Submit(OpKey key, Route route, std::vector<uint32_t> blocks) {
    ASSERT_TRUE(agent.harness.Engine(key, route, blocks).ok());
    agent.harness.Daemon(key, route, blocks);
  }
  // Calls and expects that the call waits until `release` was called.
  void ExpectWaits(const std::function<void()>& call, const std::function<void()>& release) {
    std::atomic<bool> returned{false};
    std::thread thread([&] {
      call();
      returned = true;
    });
    SleepMs(20);
    EXPECT_FALSE(returned);
    release();
    thread.join();
  }

  ScriptedAgent agent{OneLayer()};
  const uint64_t block_bytes = agent.harness.shard_bytes;
};

TEST_F(AgentCoreTest, ChunksOfSeveralOpsAreUnderWayBoundedByDirection) {
  agent.copier->SetMaxBytes(3 * block_bytes);
  Submit(1, kLoad, {0, 1});
  Submit(2, kLoad, {2, 3});
  Submit(3, kStore, {4, 5, 6, 7});
  agent->StepDone();
  const std::vector<ScriptedChunk> first = agent.copier->WaitStarts(6);
  EXPECT_EQ(std::ranges::count(first, kLoad, &ScriptedChunk::route), 3);
  EXPECT_EQ(std::ranges::count(first, OpKey{2}, &ScriptedChunk::op), 1);
  EXPECT_EQ(std::ranges::count(first, kStore, &ScriptedChunk::route), 3);
  for (const ScriptedChunk& chunk : first) {
    if (chunk.route == kLoad) agent.copier->End(chunk.ticket);
  }
  EXPECT_EQ(agent.copier->WaitStarts(7).back().op, 2u) << "room for loads is not room for stores";
  EXPECT_EQ(agent.harness.WaitEngine(1).status, OpStatus::kOk);
  agent.copier->EndByItself();
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kOk);
  EXPECT_EQ(agent.harness.WaitDaemon(3).status, OpStatus::kOk);
  for (uint32_t block : {0, 1, 2, 3}) {
    EXPECT_TRUE(agent.harness.memory.Holds(block, HashFromNumber(100 + block)));
  }
  for (uint32_t slot : {4, 5, 6, 7}) {
    EXPECT_TRUE(agent.harness.SlotHolds(slot, HashFromNumber(slot)));
  }
}

TEST_F(AgentCoreTest, AFirstChunkAlwaysMay) {
  agent.copier->SetMaxBytes(0);
  Submit(1, kLoad, {0, 1});
  Submit(2, kStore, {2});
  agent->StepDone();
  agent.copier->WaitStarts(2);
  agent.copier->EndAll();
  agent.copier->WaitStarts(3);
}

TEST_F(AgentCoreTest, AnOpEndsWithTheLastOfItsChunks) {
  Submit(1, kLoad, {0, 1, 2});
  agent.copier->WaitStarts(3);
  agent.copier->End(3);
  agent.copier->End(1);
  SleepMs(5);
  EXPECT_FALSE(agent.harness.HasDaemonResult(1));
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
  EXPECT_TRUE(agent->Busy());
  agent.copier->End(2);
  const AgentResult result = agent.harness.WaitDaemon(1);
  EXPECT_EQ(result.status, OpStatus::kOk);
  EXPECT_EQ(result.bytes, 3 * block_bytes);
  EXPECT_EQ(result.copy_ns, 3000u);
  EXPECT_EQ(agent.harness.WaitEngine(1).status, OpStatus::kOk);
  EXPECT_FALSE(agent->Busy());
}

TEST_F(AgentCoreTest, AFailedChunkFailsItsBlocks) {
  Submit(1, kLoad, {4, 5, 6});
  Submit(2, kStore, {7, 8, 9});
  agent->StepDone();
  for (const ScriptedChunk& chunk : agent.copier->WaitStarts(6)) {
    const uint32_t block = chunk.block_ids[0][0];
    agent.copier->End(chunk.ticket, block != 4 && block != 6 && block != 8);
  }
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(0, 2));
  const AgentResult load = agent.harness.WaitEngine(1);
  EXPECT_EQ(load.status, OpStatus::kPartial);
  EXPECT_THAT(load.failed_engine_blocks, ElementsAre(4, 6));
  const AgentResult store = agent.harness.WaitDaemon(2);
  EXPECT_EQ(store.status, OpStatus::kPartial);
  EXPECT_THAT(store.failed, ElementsAre(1));
  EXPECT_EQ(store.bytes, 2 * block_bytes);
  EXPECT_EQ(agent->stats().failed, 2u);
}

TEST(AgentCoreLayersTest, ABlockOfSeveralChunksFailsOnce) {
  ScriptedAgent agent({.name = "Layers", .layers = 3});
  ASSERT_TRUE(agent.harness.Engine(1, kLoad, {4, 5}).ok());
  agent.harness.Daemon(1, kLoad, {0, 1});
  agent.copier->WaitStarts(6);
  agent.copier->End(4, false);
  agent.copier->End(6, false);
  agent.copier->EndAll();
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(1));
  EXPECT_THAT(agent.harness.WaitEngine(1).failed_engine_blocks, ElementsAre(5));
}

TEST_F(AgentCoreTest, RevokeHoldsComputeForStartedChunksAndDropsTheRest) {
  agent.copier->SetMaxBytes(2 * block_bytes);
  Submit(1, kLoad, {0, 1, 2, 3});
  agent.copier->WaitStarts(2);
  agent->Revoke(1);  // returns though nothing has ended
  ASSERT_THAT(agent.copier->holds(), SizeIs(1));
  EXPECT_THAT(agent.copier->holds()[0], UnorderedElementsAre(1, 2));
  SleepMs(5);
  EXPECT_FALSE(agent.harness.HasDaemonResult(1)) << "its slots are still being read";
  EXPECT_TRUE(agent->Busy());
  agent.copier->EndAll();
  const AgentResult result = agent.harness.WaitDaemon(1);
  EXPECT_EQ(result.status, OpStatus::kPartial);
  EXPECT_THAT(result.failed, ElementsAre(2, 3));
  agent.copier->WaitStarts(2);
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
  EXPECT_FALSE(agent->Busy());
}

TEST_F(AgentCoreTest, RevokeWaitsWhileAChunkIsBeingStarted) {
  agent.copier->HoldStarts(true);
  Submit(1, kLoad, {0, 1});
  agent.copier->WaitStarts(1);
  ExpectWaits([&] { agent->Revoke(1); }, [&] { agent.copier->HoldStarts(false); });
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1)));
  agent.copier->WaitStarts(1);
  agent.copier->EndAll();
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(1));
}

TEST_F(AgentCoreTest, RevokeWaitsForTheEndWhereTheCopierCannotHold) {
  agent.copier->SetCanHold(false);
  Submit(1, kLoad, {0, 1});
  agent.copier->WaitStarts(2);
  ExpectWaits([&] { agent->Revoke(1); },
              [&] {
                agent.copier->End(1);
                SleepMs(5);
                agent.copier->End(2);
              });
  EXPECT_EQ(agent.harness.WaitDaemon(1).status, OpStatus::kOk);
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
}

TEST_F(AgentCoreTest, RevokeOfWhatIsNotStartedHoldsNothing) {
  agent.copier->SetMaxBytes(0);
  Submit(1, kLoad, {0});
  agent.copier->WaitStarts(1);
  Submit(2, kLoad, {1});
  agent->Revoke(2);
  EXPECT_THAT(agent.harness.WaitDaemon(2).failed, ElementsAre(0));
  EXPECT_THAT(agent.copier->holds(), IsEmpty());
}

TEST_F(AgentCoreTest, FencesHoldForStartedStoresOfTheseBlocksOnly) {
  agent.copier->SetMaxBytes(3 * block_bytes);
  Submit(1, kStore, {0, 1, 2, 3});
  Submit(2, kLoad, {4, 5});
  agent->StepDone();
  const std::vector<ScriptedChunk> chunks = agent.copier->WaitStarts(5);
  const uint32_t fenced[] = {1, 3, 5};
  agent->FenceBlocks(fenced);
  const auto reader =
      std::ranges::find_if(chunks, [](const auto& chunk) { return chunk.block_ids[0][0] == 1; });
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(reader->ticket)));
  EXPECT_EQ(agent->stats().fenced_blocks, 1u) << "of those not started";
  agent.copier->EndByItself();
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(3));
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kOk);
  agent->FenceBlocks(fenced);
  EXPECT_THAT(agent.copier->holds(), SizeIs(1)) << "nothing is under way";
}

TEST_F(AgentCoreTest, FencesWaitWhileTheChunkIsBeingStarted) {
  agent.copier->HoldStarts(true);
  Submit(1, kStore, {0});
  agent->StepDone();
  agent.copier->WaitStarts(1);
  const uint32_t other[] = {1}, fenced[] = {0};
  agent->FenceBlocks(other);
  ExpectWaits([&] { agent->FenceBlocks(fenced); }, [&] { agent.copier->HoldStarts(false); });
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1)));
}

TEST_F(AgentCoreTest, ANewBootIdEndsOpsBehindTheirChunks) {
  agent.copier->SetMaxBytes(2 * block_bytes);
  Submit(1, kLoad, {0, 1, 2});
  Submit(2, kLoad, {3});
  agent.copier->WaitStarts(2);
  agent->SetBootId(kBoot + 1);
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kFailed);
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
  EXPECT_TRUE(agent->Busy());
  agent.copier->EndAll();
  EXPECT_THAT(agent.harness.WaitEngine(1).failed_engine_blocks, ElementsAre(2));
  EXPECT_THAT(agent.copier->holds(), IsEmpty());
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(2));
  EXPECT_FALSE(agent->Busy());
}

TEST_F(AgentCoreTest, PartsFollowWhenTheChunksOfTheOneBeforeHaveEnded) {
  ASSERT_TRUE(agent.harness.Engine(1, kLoad, {0, 1, 2}).ok());
  agent.harness.Part(1, 0, true, {0, 1}, 0);
  agent.harness.Part(1, 1, false, {2}, 2);
  agent.copier->WaitStarts(2);
  agent.copier->End(2, false);
  agent.copier->End(1);
  agent.copier->WaitStarts(3);
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(1));
  agent.copier->EndAll();
  EXPECT_EQ(agent.harness.WaitDaemon(1).part, 1u);
  EXPECT_THAT(agent.harness.WaitEngine(1).failed_engine_blocks, ElementsAre(1));
}

TEST_F(AgentCoreTest, LoadsFirstWithAStoreForEveryEight) {
  agent.harness.mapper.Hold();
  std::vector<uint32_t> blocks(16);
  for (uint32_t block = 0; block < 16; ++block) blocks[block] = block;
  Submit(1, kLoad, {0});
  agent.harness.mapper.WaitUntilHeld();
  Submit(2, kLoad, blocks);
  Submit(3, kStore, {1, 2, 3, 4});
  agent->StepDone();
  agent.harness.mapper.Release();
  std::vector<size_t> at;
  const std::vector<ScriptedChunk> chunks = agent.copier->WaitStarts(21);
  for (size_t i = 0; i < chunks.size(); ++i) {
    if (chunks[i].route == kStore) at.push_back(i);
  }
  EXPECT_EQ(at, (std::vector<size_t>{9, 18, 19, 20})) << "one load, then eight and a store, ...";
}

TEST_F(AgentCoreTest, MarksOfLoadsAndStores) {
  agent->SetComputeStream(77);
  EXPECT_THAT(agent.copier->streams(), ElementsAre(77));
  Submit(1, kLoad, {0});
  Submit(2, kLoad, {1});
  agent->StepDone();
  EXPECT_EQ(agent.copier->marks(), 1u) << "one for all loads, none where no store waits";
  ASSERT_TRUE(agent.harness.Engine(3, kStore, {2}).ok());  // its other half comes too late
  Submit(4, kStore, {3});
  agent->StepDone();
  EXPECT_EQ(agent.copier->marks(), 2u);
  Submit(5, kLoad, {4});
  agent->SetComputeStream(78);
  Submit(6, kLoad, {5});
  Submit(7, kStore, {6});
  agent->StepDone();
  agent.harness.Daemon(3, kStore, {2});
  std::map<OpKey, ComputeMark> after;
  for (const ScriptedChunk& chunk : agent.copier->WaitStarts(7)) after[chunk.op] = chunk.after;
  EXPECT_THAT(after, ElementsAre(std::pair(1, 1), std::pair(2, 1), std::pair(3, 2), std::pair(4, 2),
                                 std::pair(5, 3), std::pair(6, 4), std::pair(7, 5)));
}

// A load may write what the chunk of a revoked one still writes: it must be ordered behind the
// hold.
TEST_F(AgentCoreTest, AHoldMakesTheMarkOfLaterLoadsNew) {
  Submit(1, kLoad, {0});
  Submit(2, kStore, {1});
  agent->StepDone();
  agent.copier->WaitStarts(2);
  ASSERT_TRUE(agent.harness.Engine(3, kLoad, {5}).ok());
  EXPECT_EQ(agent.copier->marks(), 3u);
  agent->Revoke(1);
  Submit(4, kLoad, {0});
  EXPECT_EQ(agent.copier->WaitStarts(3).back().after, 4u);
  const uint32_t fenced[] = {1};
  agent->FenceBlocks(fenced);
  Submit(5, kLoad, {1});
  EXPECT_EQ(agent.copier->WaitStarts(4).back().after, 5u);
}

TEST_F(AgentCoreTest, AStoreLateByManyStepsGetsALaterMark) {
  ASSERT_TRUE(agent.harness.Engine(1, kStore, {0}).ok());
  for (OpKey key = 2; key < 102; ++key) {
    agent->StepDone();
    ASSERT_TRUE(agent.harness.Engine(key, kStore, {1}).ok());
  }
  agent->StepDone();
  agent.harness.Daemon(1, kStore, {0});
  EXPECT_GE(agent.copier->WaitStarts(1)[0].after, 1u);
}

// A copier may see the end of a chunk before its Start has returned to the other lane.
TEST_F(AgentCoreTest, TheEndOfAChunkMayBeSeenBeforeStartReturned) {
  Submit(1, kLoad, {0});
  agent.copier->WaitStarts(1);
  agent.copier->HoldStarts(true);
  ASSERT_TRUE(agent.harness.LayerLoad(2, {1}).ok());
  agent.harness.Daemon(2, kLoad, {1});
  std::thread engine([&] { agent->StartLayerLoads(kNsPerSecond); });
  agent.copier->WaitStarts(2);
  agent.copier->EndAll();
  EXPECT_EQ(agent.harness.WaitEngine(1).status, OpStatus::kOk);
  SleepMs(5);
  EXPECT_FALSE(agent.harness.HasEngineResult(2));
  agent.copier->HoldStarts(false);
  engine.join();
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kOk);
}

TEST_F(AgentCoreTest, EndsWithItsChunks) {
  Submit(1, kLoad, {0, 1});
  agent.copier->WaitStarts(2);
  ExpectWaits([&] { agent.harness.agent.reset(); }, [&] { agent.copier->EndAll(); });
}

TEST_F(AgentCoreTest, ReportAndUnusableArguments) {
  EXPECT_EQ(agent->Report().device, "scripted");
  TestMapper mapper(1, 100);
  EXPECT_FALSE(
      internal::MakeAgent({}, agent.harness.memory.layout(), &mapper, nullptr, nullptr).ok());
}

}  // namespace
}  // namespace flexkv
