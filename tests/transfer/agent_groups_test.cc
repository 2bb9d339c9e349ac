// Several KV groups: a block has an id of its own in each.
#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/transfer/scripted_copier.h"

namespace flexkv {
namespace {

using testing::ElementsAre;

constexpr Route kStore = Route::kDeviceToCpu;
constexpr Route kLoad = Route::kCpuToDevice;
constexpr uint32_t kBlockBytes = 64;  // of a layer

// Group 0: one layer, 4 blocks. Group 1: two layers, 8 blocks.
class TwoGroups {
 public:
  TwoGroups() : memory_(kBlockBytes * (4 + 8 + 8)) {
    layout.groups = {{.num_blocks = 4, .tokens_per_block = 1, .layers = {View(0)}},
                     {.num_blocks = 8, .tokens_per_block = 1, .layers = {View(4), View(12)}}};
    layout.descriptor = "two groups";
  }
  void Fill(uint32_t layer, uint32_t block, int value) {
    std::memset(At(layer, block), value, kBlockBytes);
  }
  int Value(uint32_t layer, uint32_t block) {
    const std::byte* at = At(layer, block);
    for (uint32_t i = 1; i < kBlockBytes; ++i) EXPECT_EQ(at[i], at[0]);
    return static_cast<int>(at[0]);
  }

  KvLayout layout;

 private:
  LayerView View(uint32_t first_block) {
    return {.base = reinterpret_cast<uintptr_t>(memory_.data()) + first_block * kBlockBytes,
            .block_stride_bytes = kBlockBytes,
            .fragment_bytes = kBlockBytes};
  }
  std::byte* At(uint32_t layer, uint32_t block) {
    const uint32_t first_block[] = {0, 4, 12};
    return memory_.data() + (first_block[layer] + block) * kBlockBytes;
  }
  std::vector<std::byte> memory_;
};

class AgentGroupsTest : public testing::TestWithParam<bool> {
 protected:
  void SetUp() override {
    auto made = MakeHostAgent({.chunk_bytes = 100}, groups.layout, &mapper, nullptr);
    ASSERT_TRUE(made.ok());
    agent = *std::move(made);
    agent->SetBootId(kBoot);
  }
  void Daemon(OpKey key, Route route, uint32_t blocks) {
    DaemonHalf half{.boot_id = kBoot, .key = key, .route = route};
    for (uint32_t i = 0; i < blocks; ++i) {
      half.blocks.push_back({.segment = 1, .engine_index = i, .offset_bytes = i * 3 * kBlockBytes});
    }
    agent->SubmitDaemonHalf(std::move(half));
  }
  AgentResult Wait(void (DeviceAgent::*take)(std::vector<AgentResult>*)) {
    std::vector<AgentResult> results;
    for (int i = 0; i < 10000 && results.empty(); ++i) {
      (agent.get()->*take)(&results);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    EXPECT_EQ(results.size(), 1u);
    return results.empty() ? AgentResult{} : results[0];
  }

  TwoGroups groups;
  TestMapper mapper{1, 3 * kBlockBytes * 4};
  std::unique_ptr<DeviceAgent> agent;
};

TEST_P(AgentGroupsTest, EachGroupHasItsOwnIds) {
  const bool layerwise = GetParam();
  const uint32_t ids[2][2] = {{1, 3}, {7, 2}};  // by group, by block
  for (uint32_t i = 0; i < 2; ++i) {
    groups.Fill(0, ids[0][i], 10 + static_cast<int>(i));
    groups.Fill(1, ids[1][i], 20 + static_cast<int>(i));
    groups.Fill(2, ids[1][i], 30 + static_cast<int>(i));
  }
  ASSERT_TRUE(agent->SubmitEngineHalf({.key = 1, .route = kStore, .block_ids = {1, 3, 7, 2}}).ok());
  Daemon(1, kStore, 2);
  agent->StepDone();
  EXPECT_EQ(Wait(&DeviceAgent::TakeDaemonResults).status, OpStatus::kOk);

  ASSERT_TRUE(agent
                  ->SubmitEngineHalf(
                      {.key = 2, .route = kLoad, .block_ids = {0, 2, 5, 6}, .layerwise = layerwise})
                  .ok());
  Daemon(2, kLoad, 2);
  if (layerwise) {
    agent->StartLayerLoads(kNsPerSecond);
    for (uint32_t layer = 0; layer < 3; ++layer) agent->WaitForLayer(layer);
    agent->StepDone();
  }
  EXPECT_EQ(Wait(&DeviceAgent::TakeEngineResults).status, OpStatus::kOk);
  const uint32_t targets[2][2] = {{0, 2}, {5, 6}};
  for (uint32_t i = 0; i < 2; ++i) {
    EXPECT_EQ(groups.Value(0, targets[0][i]), 10 + static_cast<int>(i));
    EXPECT_EQ(groups.Value(1, targets[1][i]), 20 + static_cast<int>(i));
    EXPECT_EQ(groups.Value(2, targets[1][i]), 30 + static_cast<int>(i));
  }
}
INSTANTIATE_TEST_SUITE_P(WaysToLoad, AgentGroupsTest, testing::Bool());

TEST_F(AgentGroupsTest, IdsAreCheckedByGroup) {
  const auto code = [&](OpKey key, std::vector<uint32_t> ids) {
    return agent->SubmitEngineHalf({.key = key, .route = kLoad, .block_ids = std::move(ids)})
        .code();
  };
  EXPECT_EQ(code(1, {3, 7}), absl::StatusCode::kOk);
  EXPECT_EQ(code(2, {4, 7}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(3, {3, 8}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(4, {3}), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(5, {0, 1, 2}), absl::StatusCode::kInvalidArgument);
  agent->Revoke(1);
}

TEST_F(AgentGroupsTest, AFenceMatchesInAnyGroup) {
  for (OpKey key = 1; key <= 3; ++key) {
    ASSERT_TRUE(
        agent->SubmitEngineHalf({.key = key, .route = kStore, .block_ids = {1, 3, 7, 2}}).ok());
    Daemon(key, kStore, 2);
    const uint32_t fenced[][2] = {{7, 99}, {3, 99}, {0, 6}};
    agent->FenceBlocks(fenced[key - 1]);
    agent->StepDone();
    const AgentResult result = Wait(&DeviceAgent::TakeDaemonResults);
    const std::vector<uint32_t> failed[] = {{0}, {1}, {}};
    EXPECT_EQ(result.failed, failed[key - 1]);
  }
}

TEST_F(AgentGroupsTest, AFailedBlockIsNamedInAllGroups) {
  ASSERT_TRUE(agent->SubmitEngineHalf({.key = 1, .route = kLoad, .block_ids = {1, 3, 7, 2}}).ok());
  Daemon(1, kLoad, 1);
  const AgentResult result = Wait(&DeviceAgent::TakeEngineResults);
  EXPECT_EQ(result.status, OpStatus::kPartial);
  EXPECT_THAT(result.failed_engine_blocks, ElementsAre(3, 2));
}

}  // namespace
}  // namespace flexkv
