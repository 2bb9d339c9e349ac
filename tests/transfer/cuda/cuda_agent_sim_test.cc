// Many small worlds around the CUDA agent; see cuda_agent_sim.h. A failure names its seed:
// FLEXKV_TEST_SEED=that FLEXKV_TEST_REPEATS=1 runs it again (the agent's own threads are real, so
// it may take a few tries). FLEXKV_TEST_REPEATS: how many worlds of the first kind (100), and of
// the others in proportion.
#include "tests/transfer/cuda/cuda_agent_sim.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <functional>

#include "gtest/gtest.h"
#include "tests/support/sanitized.h"

namespace flexkv {
namespace {

using SimOptions = CudaAgentSim::Options;

// Of a kind of which there are usually so many, when there are usually 100 of the first kind.
int Repeats(int usual) {
  const char* given = std::getenv("FLEXKV_TEST_REPEATS");
  if (given != nullptr && std::atoi(given) > 0) return (std::atoi(given) * usual + 99) / 100;
  return kSanitized ? (usual + 3) / 4 : usual;
}

struct Totals {
  uint64_t stored = 0, loaded = 0, layers = 0, layer_loads = 0, failed = 0, captured = 0;
};

Totals RunWorlds(int worlds, SimOptions options) {
  Totals totals;
  const uint64_t first = TestSeed();
  for (int world = 0; world < worlds && !testing::Test::HasFailure(); ++world) {
    options.seed = first + static_cast<uint64_t>(world);
    CudaAgentSim sim(options);
    sim.Run();
    EXPECT_EQ(sim.Summary(), "") << "FLEXKV_TEST_SEED=" << options.seed;
    totals.stored += sim.stored_ok;
    totals.loaded += sim.loaded_ok;
    totals.layers += sim.layers_ok;
    totals.layer_loads += sim.layer_loads_ok;
    totals.failed += sim.failed;
    totals.captured += sim.captured;
  }
  std::printf("stored %lu, loaded %lu blocks, %lu of them by %lu layers; %lu failed, %lu graphs\n",
              totals.stored, totals.loaded, totals.layer_loads, totals.layers, totals.failed,
              totals.captured);
  return totals;
}

TEST(CudaAgentSimTest, KeepsEveryPromise) {
  const Totals totals = RunWorlds(Repeats(100), {});
  EXPECT_GT(totals.stored, 0u);
  EXPECT_GT(totals.loaded, 0u);
  EXPECT_GT(totals.layer_loads, 0u);
}

TEST(CudaAgentSimTest, KeepsEveryPromiseWhileCallsFail) {
  const Totals totals = RunWorlds(Repeats(60), {.faults = true});
  EXPECT_GT(totals.stored, 0u);
  EXPECT_GT(totals.failed, 0u);
}

TEST(CudaAgentSimTest, KeepsEveryPromiseWithNothingLockedInMemory) {
  const Totals totals = RunWorlds(Repeats(40), {.staging = true});
  EXPECT_GT(totals.stored, 0u);
  EXPECT_GT(totals.loaded, 0u);
}

TEST(CudaAgentSimTest, EndsEverythingWhenTheDeviceIsLost) {
  RunWorlds(Repeats(40), {.faults = true, .lose = true});
}

// Graphs captured, in all three modes, while segments are registered and copies are under way.
TEST(CudaAgentSimTest, CapturesOfGraphsStayWhole) {
  const Totals totals = RunWorlds(std::max(Repeats(10), 6), {.steps = 80, .captures = 10});
  EXPECT_GE(totals.captured, 50u);
}

// --- does the simulation see what it is there to see? --------------------------------------------

// Whether a mistake, made by the fake at its nth chance, is noticed in one of so many worlds.
void ExpectNoticed(int worlds, SimOptions options,
                   const std::function<void(FakeCuda*, uint64_t)>& mutate) {
  const uint64_t first = TestSeed();
  int made = 0;
  for (int world = 0; world < worlds; ++world) {
    options.seed = first + static_cast<uint64_t>(world);
    CudaAgentSim sim(options);
    mutate(&sim.fake(), 1 + static_cast<uint64_t>(world) % 13);
    sim.Run();
    made += sim.fake().mutated();
    if (sim.fake().mutated() && !sim.Summary().empty()) {
      std::printf("noticed in world %d (%d with the mistake): %s", world, made,
                  sim.Summary().substr(0, 200).c_str());
      return;
    }
  }
  ADD_FAILURE() << "not noticed; made in " << made << " of " << worlds << " worlds";
}

TEST(CudaAgentSimMistakes, ACopyThatDoesNotWaitForItsMark) {
  ExpectNoticed(300, {}, [](FakeCuda* fake, uint64_t nth) {
    fake->DropWait(nth, [](cuda::Stream stream) { return !FakeCuda::IsEngines(stream); });
  });
}

TEST(CudaAgentSimMistakes, AFenceThatDoesNotHoldTheComputeStream) {
  ExpectNoticed(300, {.layerwise = false},
                [](FakeCuda* fake, uint64_t nth) { fake->DropWait(nth, FakeCuda::IsEngines); });
}

TEST(CudaAgentSimMistakes, ALayerThatIsNotWaitedFor) {
  ExpectNoticed(300, {}, [](FakeCuda* fake, uint64_t) { fake->DropAllWaits(FakeCuda::IsEngines); });
}

TEST(CudaAgentSimMistakes, AnEndThatIsToldTooEarly) {
  ExpectNoticed(300, {}, [](FakeCuda* fake, uint64_t nth) { fake->LieOnQuery(nth); });
}

TEST(CudaAgentSimMistakes, AStagingBufferThatIsUsedTooEarly) {
  ExpectNoticed(300, {.staging = true},
                [](FakeCuda* fake, uint64_t nth) { fake->LieOnQuery(nth); });
}

}  // namespace
}  // namespace flexkv
