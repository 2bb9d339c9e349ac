// Loads layer by layer, over the scripted copier (what is started and held when) and over the
// processor (the bytes).
#include <functional>

#include "flexkv/base/fault.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/transfer/scripted_copier.h"

namespace flexkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr Route kLoad = Route::kCpuToDevice;
constexpr TimeNs kWaitNs = 5 * kNsPerSecond;

Shape Layers(uint32_t layers) { return {.name = "Layers", .layers = layers}; }

void SleepMs(int ms) { std::this_thread::sleep_for(std::chrono::milliseconds(ms)); }

class LayerLoadTest : public testing::Test {
 protected:
  void SetUp() override { FillSlots(&agent.harness); }
  void TearDown() override { ASSERT_TRUE(ArmFaults("").ok()); }
  static void FillSlots(AgentHarness* harness) {
    for (uint32_t slot = 0; slot < 16; ++slot) {
      FillContent(HashFromNumber(100 + slot), 0, harness->Slot(slot));
    }
  }
  void Submit(OpKey key, std::vector<uint32_t> blocks) {
    ASSERT_TRUE(agent.harness.LayerLoad(key, blocks).ok());
    agent.harness.Daemon(key, kLoad, blocks);
  }
  void ExpectFailed(OpKey key, const std::vector<uint32_t>& blocks) {
    const AgentResult result = agent.harness.WaitEngine(key);
    EXPECT_EQ(result.status, OpStatus::kFailed);
    EXPECT_EQ(result.failed_engine_blocks, blocks);
  }

  ScriptedAgent agent{Layers(6), {.copy = {.layers_ahead = 2}}};
};

TEST_F(LayerLoadTest, LayersAreStartedAheadAndHeldWhenAskedFor) {
  Submit(1, {0, 1});
  Submit(2, {2});
  agent.copier->WaitStarts(0);  // not the agent's thread's to run
  agent->StartLayerLoads(kWaitNs);
  const std::vector<ScriptedChunk> first = agent.copier->WaitStarts(2);
  for (uint32_t layer : {0, 1}) {
    const ScriptedChunk& chunk = first[layer];
    EXPECT_EQ(chunk.lane, Lane::kLayer);
    EXPECT_EQ(chunk.route, kLoad);
    EXPECT_EQ(chunk.after, 1u);
    ASSERT_THAT(chunk.pieces, SizeIs(3)) << "of both loads";
    for (const ChunkPiece& piece : chunk.pieces) {
      EXPECT_EQ(piece.first_layer, layer);
      EXPECT_EQ(piece.end_layer, layer + 1);
    }
  }
  EXPECT_THAT(agent.copier->holds(), IsEmpty());
  agent->WaitForLayer(0);
  agent.copier->WaitStarts(3);
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1)));
  agent->WaitForLayer(0);
  agent.copier->WaitStarts(3);
  agent->WaitForLayer(2);
  agent.copier->WaitStarts(5);
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1), ElementsAre(2, 3)));
  agent->StepDone();
  agent.copier->WaitStarts(6);
  EXPECT_THAT(agent.copier->holds(),
              ElementsAre(ElementsAre(1), ElementsAre(2, 3), ElementsAre(4, 5, 6)));
  agent->WaitForLayer(5);
  agent->StepDone();
  EXPECT_THAT(agent.copier->holds(), SizeIs(3)) << "nothing is left";
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
  EXPECT_TRUE(agent->Busy());
  agent.copier->EndAll();
  for (OpKey key : {1, 2}) {
    EXPECT_EQ(agent.harness.WaitDaemon(key).status, OpStatus::kOk);
    EXPECT_EQ(agent.harness.WaitEngine(key).status, OpStatus::kOk);
  }
  for (uint32_t block : {0, 1, 2}) {
    EXPECT_TRUE(agent.harness.memory.Holds(block, HashFromNumber(100 + block)));
  }
  EXPECT_FALSE(agent->Busy());
  EXPECT_EQ(agent->stats().layer_loads, 2u);
  EXPECT_EQ(agent->stats().layer_loads_failed, 0u);
  EXPECT_EQ(agent->stats().load_bytes, 3 * agent.harness.shard_bytes);
}

TEST_F(LayerLoadTest, LayersThatHaveEndedAreNotHeld) {
  Submit(1, {0});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->EndByItself();
  const uint64_t layer_bytes = agent.harness.shard_bytes / 6;
  while (agent->stats().load_bytes < 2 * layer_bytes) SleepMs(1);
  agent->WaitForLayer(0);
  EXPECT_THAT(agent.copier->holds(), IsEmpty());
}

TEST_F(LayerLoadTest, LayersAheadFollowTheOptions) {
  agent->SetCopyOptions({.layers_ahead = 4});
  Submit(1, {0});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->WaitStarts(4);
  agent->SetCopyOptions({.layers_ahead = 0});
  agent->WaitForLayer(3);
  agent.copier->WaitStarts(5);
}

TEST_F(LayerLoadTest, WaitsForTheDaemonHalfButNotForEver) {
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0, 1}).ok());
  ASSERT_TRUE(agent.harness.LayerLoad(2, {2}).ok());
  std::thread daemon([&] {
    SleepMs(20);
    agent.harness.Daemon(1, kLoad, {0, 1});
  });
  agent->StartLayerLoads(300 * kNsPerMs);
  daemon.join();
  EXPECT_THAT(agent.copier->WaitStarts(2)[0].pieces, SizeIs(2));
  ExpectFailed(2, {2});
  EXPECT_EQ(agent->stats().layer_loads_failed, 1u);
  agent.harness.Daemon(2, kLoad, {2});
  EXPECT_EQ(agent.harness.WaitDaemon(2).status, OpStatus::kFailed) << "too late";
}

TEST_F(LayerLoadTest, ARefusalEndsTheWait) {
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0}).ok());
  std::thread daemon([&] {
    SleepMs(20);
    agent->SubmitDaemonHalf({.boot_id = kBoot, .key = 1, .route = kLoad, .refused = true});
  });
  agent->StartLayerLoads(3600 * kNsPerSecond);
  daemon.join();
  ExpectFailed(1, {0});
  agent->WaitForLayer(0);
}

TEST_F(LayerLoadTest, OnlyAWholePartWithGoodPlacesIsStarted) {
  for (OpKey key = 1; key <= 4; ++key) ASSERT_TRUE(agent.harness.LayerLoad(key, {2, 3}).ok());
  agent.harness.Part(1, 0, true, {0}, 0);   // in parts
  agent.harness.Part(2, 0, false, {0}, 1);  // a block missing
  const ArenaPlace place = agent.harness.PlaceOf(0, 0);
  agent->SubmitDaemonHalf({.boot_id = kBoot, .key = 3, .route = kLoad, .blocks = {place, place}});
  ArenaPlace nowhere = agent.harness.PlaceOf(0, 1);
  nowhere.segment = 99;
  agent->SubmitDaemonHalf({.boot_id = kBoot, .key = 4, .route = kLoad, .blocks = {place, nowhere}});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->WaitStarts(0);
  for (OpKey key = 1; key <= 4; ++key) {
    ExpectFailed(key, {2, 3});
    EXPECT_EQ(agent.harness.WaitDaemon(key).status, OpStatus::kFailed);
  }
  EXPECT_EQ(agent->stats().layer_loads_failed, 4u);
  EXPECT_FALSE(agent->Busy());
}

TEST_F(LayerLoadTest, TheDaemonHalfMayBeFirst) {
  agent.harness.Daemon(1, kLoad, {0});
  SleepMs(5);
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0}).ok());
  agent->StartLayerLoads(0);
  agent.copier->WaitStarts(2);
}

TEST_F(LayerLoadTest, AFailedLayerFailsTheWholeLoadOnce) {
  Submit(1, {0, 1});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->End(1);
  agent.copier->End(2, false);
  ExpectFailed(1, {0, 1});
  agent->WaitForLayer(5);  // nothing more is worth starting
  agent.copier->WaitStarts(2);
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(0, 1));
  EXPECT_EQ(agent->stats().layer_loads_failed, 1u);
  agent->StepDone();
}

TEST_F(LayerLoadTest, TheLastLayerMayFail) {
  Submit(1, {0});
  agent->StartLayerLoads(kWaitNs);
  agent->StepDone();
  agent.copier->WaitStarts(6);
  agent.copier->End(6, false);
  agent.copier->EndAll();
  ExpectFailed(1, {0});
  EXPECT_THAT(agent.harness.WaitDaemon(1).failed, ElementsAre(0));
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
}

TEST_F(LayerLoadTest, ARevokedLoadGetsNoFurtherLayers) {
  Submit(1, {0, 1});
  Submit(2, {2});
  agent->StartLayerLoads(kWaitNs);
  agent->Revoke(1);
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1, 2)));
  agent->WaitForLayer(0);
  EXPECT_THAT(agent.copier->WaitStarts(3)[2].pieces, SizeIs(1));
  agent->StepDone();
  agent.copier->EndAll();
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kOk);
  EXPECT_EQ(agent.harness.WaitDaemon(1).status, OpStatus::kFailed);
  EXPECT_FALSE(agent.harness.HasEngineResult(1));
}

TEST_F(LayerLoadTest, ARevokedLoadBetweenItsLayers) {
  Submit(1, {0});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->EndByItself();
  SleepMs(10);
  agent->Revoke(1);
  EXPECT_EQ(agent.harness.WaitDaemon(1).status, OpStatus::kFailed);
  agent->StepDone();
  agent.copier->WaitStarts(2);
  Submit(2, {0});
  agent->StartLayerLoads(kWaitNs);
  agent->StepDone();
  EXPECT_EQ(agent.harness.WaitEngine(2).status, OpStatus::kOk);
}

TEST_F(LayerLoadTest, ABootIdEndsWhatTheEngineWasNotToldOf) {
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0}).ok());
  Submit(2, {1});
  agent->SetBootId(0);
  ExpectFailed(1, {0});
  ExpectFailed(2, {1});
  agent->StartLayerLoads(kWaitNs);
  agent->StepDone();
  EXPECT_FALSE(agent->Busy());
}

TEST_F(LayerLoadTest, ADaemonLostDuringTheWaitFailsTheLoad) {
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0}).ok());
  std::thread link([&] {
    SleepMs(20);
    agent->SetBootId(0);
  });
  agent->StartLayerLoads(3600 * kNsPerSecond);
  link.join();
  ExpectFailed(1, {0});
}

// An engine that computes with the load is given all of it, and one that has stopped does not keep
// the agent busy: the agent's thread starts what is left.
TEST_F(LayerLoadTest, ADaemonLostLaterDoesNotFailTheLoad) {
  Submit(1, {0, 1});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->WaitStarts(2);
  agent->SetBootId(0);
  EXPECT_EQ(agent.copier->WaitStarts(6)[5].lane, Lane::kBackground);
  EXPECT_TRUE(agent->Busy());
  agent->WaitForLayer(3);
  EXPECT_THAT(agent.copier->holds(), ElementsAre(ElementsAre(1, 2, 3, 4)));
  agent.copier->EndAll();
  EXPECT_EQ(agent.harness.WaitEngine(1).status, OpStatus::kOk);
  EXPECT_EQ(agent.harness.WaitDaemon(1).status, OpStatus::kOk);
  EXPECT_FALSE(agent->Busy());
  agent->StepDone();
  EXPECT_TRUE(agent.harness.memory.Holds(0, HashFromNumber(100)));
}

TEST_F(LayerLoadTest, LoadsThatNobodyStartsFailWithTheStep) {
  Submit(1, {0});
  agent->StepDone();
  ExpectFailed(1, {0});
  EXPECT_EQ(agent.harness.WaitDaemon(1).status, OpStatus::kFailed);
}

TEST_F(LayerLoadTest, AStepMayFollowBeforeTheCopiesHaveEnded) {
  Submit(1, {0});
  agent->StartLayerLoads(kWaitNs);
  agent->StepDone();
  Submit(2, {1});
  agent->StartLayerLoads(kWaitNs);
  agent.copier->WaitStarts(8);
  Submit(3, {2});
  agent->StartLayerLoads(kWaitNs);  // twice in a step: the first is finished before
  agent.copier->WaitStarts(14);
  agent.copier->EndByItself();
  agent->StepDone();
  for (OpKey key : {1, 2, 3}) EXPECT_EQ(agent.harness.WaitEngine(key).status, OpStatus::kOk);
}

TEST_F(LayerLoadTest, DetachedItFailsAtOnce) {
  agent->SetBootId(0);
  ASSERT_TRUE(agent.harness.LayerLoad(1, {0}).ok());
  ExpectFailed(1, {0});
  EXPECT_EQ(agent->stats().layer_loads_failed, 1u);
}

// On the processor the bytes of a layer are there when WaitForLayer returns.
TEST(HostLayerLoadTest, EveryLayerIsThereWhenAskedFor) {
  for (const Shape& shape : AllShapes()) {
    AgentHarness harness(shape);
    for (uint32_t slot = 0; slot < 16; ++slot) {
      FillContent(HashFromNumber(100 + slot), 0, harness.Slot(slot));
    }
    ASSERT_TRUE(harness.LayerLoad(1, {3, 4, 5}).ok());
    harness.Daemon(1, kLoad, {7, 8, 9});
    harness.agent->StartLayerLoads(kWaitNs);
    const uint32_t views = static_cast<uint32_t>(harness.memory.layout().groups[0].layers.size());
    for (uint32_t layer = 0; layer < views; ++layer) harness.agent->WaitForLayer(layer);
    for (uint32_t i = 0; i < 3; ++i) {
      EXPECT_TRUE(harness.memory.Holds(3 + i, HashFromNumber(107 + i))) << shape.name;
    }
    harness.agent->StepDone();
    EXPECT_EQ(harness.WaitEngine(1).status, OpStatus::kOk);
    EXPECT_EQ(harness.WaitDaemon(1).bytes, 3 * harness.shard_bytes);
    EXPECT_TRUE(harness.memory.PaddingIntact());
    EXPECT_FALSE(harness.agent->Busy());
  }
}

TEST(HostLayerLoadTest, BackgroundOpsGoOnMeanwhile) {
  AgentHarness harness(Layers(4));
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  ASSERT_TRUE(harness.Engine(1, Route::kDeviceToCpu, {0}).ok());
  harness.Daemon(1, Route::kDeviceToCpu, {0});
  harness.agent->StepDone();
  ASSERT_TRUE(harness.LayerLoad(2, {1}).ok());
  harness.Daemon(2, kLoad, {1});
  harness.agent->StartLayerLoads(kWaitNs);
  harness.agent->StepDone();
  EXPECT_EQ(harness.WaitEngine(2).status, OpStatus::kOk);
  EXPECT_EQ(harness.WaitDaemon(1).status, OpStatus::kOk);
  ASSERT_TRUE(ArmFaults("").ok());
}

}  // namespace
}  // namespace flexkv
