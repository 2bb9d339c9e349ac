// The simulated worlds of cuda_agent_sim.h with threads for everything that has one in an engine:
// the GPU, the link to the daemon, the engine itself, and the agent's own. Meant for
// ThreadSanitizer, and for what only real timing finds.
#include "gtest/gtest.h"
#include "tests/support/sanitized.h"
#include "tests/transfer/cuda/cuda_agent_sim.h"

namespace flexkv {
namespace {

void RunThreaded(int worlds, CudaAgentSim::Options options) {
  options.threaded = true;
  options.steps = kSanitized ? 60 : 120;
  const uint64_t first = TestSeed();
  uint64_t stored = 0, loaded = 0;
  for (int world = 0; world < worlds && !testing::Test::HasFailure(); ++world) {
    options.seed = first + static_cast<uint64_t>(world);
    CudaAgentSim sim(options);
    sim.Run();
    EXPECT_EQ(sim.Summary(), "") << "FLEXKV_TEST_SEED=" << options.seed;
    stored += sim.stored_ok;
    loaded += sim.loaded_ok;
  }
  EXPECT_GT(stored, 0u);
  EXPECT_GT(loaded, 0u);
}

TEST(CudaAgentStressTest, Plain) { RunThreaded(20, {}); }
TEST(CudaAgentStressTest, CallsFail) { RunThreaded(12, {.faults = true}); }
TEST(CudaAgentStressTest, NothingLockedInMemory) { RunThreaded(8, {.staging = true}); }
TEST(CudaAgentStressTest, GraphsAreCaptured) { RunThreaded(8, {.captures = 15}); }
TEST(CudaAgentStressTest, DeviceIsLost) { RunThreaded(8, {.lose = true}); }

}  // namespace
}  // namespace flexkv
