// The factory: what it asks of the device, what it keeps, what it reports. How the agent copies is
// tested in simulated worlds (cuda_agent_sim_test.cc).
#include "flexkv/transfer/cuda/cuda_agent.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <functional>
#include <thread>
#include <vector>

#include "flexkv/transfer/cuda/copy_route.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using cuda::Error;
using ::testing::HasSubstr;

class NoSegments : public SegmentMapper {
 public:
  std::span<std::byte> Map(SegmentId, TimeNs) override { return {}; }
};

class CudaAgentTest : public ::testing::Test {
 protected:
  CudaAgentTest() : fake_(TestSeed()), engine_(1024) {
    layout_.groups.push_back({.num_blocks = 4, .tokens_per_block = 1});
    layout_.groups[0].layers.push_back({.base = reinterpret_cast<uintptr_t>(engine_.data()),
                                        .block_stride_bytes = 256,
                                        .fragment_bytes = 256});
    fake_.AdoptDevice(engine_);
    fake_.StartThread();
    char name[] = "/tmp/flexkv-cuda-agent-XXXXXX";
    folder_ = mkdtemp(name);
    cache_ = folder_ + "/curves.json";
  }
  ~CudaAgentTest() override {
    fake_.StopThread();
    std::filesystem::remove_all(folder_);
    EXPECT_EQ(fake_.FirstViolation(), "");
  }

  absl::StatusOr<std::unique_ptr<DeviceAgent>> Make(const std::string& cache) {
    return MakeCudaAgent(options_, layout_, &mapper_, fake_.Connect(), cache, nullptr);
  }
  void MeasureNothing() {
    options_.copy.engine[0] = options_.copy.engine[1] = CopyOptions::Engine::kCopyEngine;
  }
  bool Eventually(const std::function<bool()>& condition) {
    for (int i = 0; i < 20000; ++i) {
      if (condition()) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  FakeCuda fake_;
  std::vector<std::byte> engine_;
  KvLayout layout_;
  NoSegments mapper_;
  DeviceAgent::Options options_;
  std::string folder_, cache_;
};

TEST_F(CudaAgentTest, MeasuresOnceAndKeepsTheCurve) {
  auto agent = Make(cache_);
  ASSERT_TRUE(agent.ok()) << agent.status();
  const DeviceReport report = (*agent)->Report();
  EXPECT_EQ(report.device, "Fake GPU");
  EXPECT_FALSE(report.curve.empty());
  EXPECT_EQ(report.problem, "");
  EXPECT_GT(fake_.calls("AllocateDevice"), 0u);
  agent->reset();
  EXPECT_EQ(fake_.open_handles(), 0u);

  const uint64_t before = fake_.calls("AllocateDevice");
  agent = Make(cache_);
  ASSERT_TRUE(agent.ok());
  EXPECT_EQ(fake_.calls("AllocateDevice"), before);
  const DeviceReport again = (*agent)->Report();
  EXPECT_EQ(again.curve.size(), report.curve.size());
  EXPECT_EQ(again.kernel_below[0], report.kernel_below[0]);
  EXPECT_EQ(again.kernel_below[1], report.kernel_below[1]);
}

TEST_F(CudaAgentTest, MeasuresNothingThatNobodyAsksFor) {
  options_.copy.engine[0] = CopyOptions::Engine::kKernel;
  options_.copy.engine[1] = CopyOptions::Engine::kCopyEngine;
  auto agent = Make(cache_);
  ASSERT_TRUE(agent.ok());
  EXPECT_EQ(fake_.calls("AllocateDevice"), 0u);
  EXPECT_FALSE(std::filesystem::exists(cache_));
  EXPECT_EQ((*agent)->Report().kernel_below[0], UINT32_MAX);
  EXPECT_EQ((*agent)->Report().kernel_below[1], 0u);
  (*agent)->SetCopyOptions(CopyOptions{});
  EXPECT_EQ((*agent)->Report().kernel_below[0], cuda::DefaultKernelBelow(Route::kDeviceToCpu));
  EXPECT_EQ((*agent)->Report().kernel_below[1], cuda::DefaultKernelBelow(Route::kCpuToDevice));
}

TEST_F(CudaAgentTest, WithoutAMeasurementTheDefaultsServe) {
  fake_.FailCall("AllocateDevice", 1, Error::kNoMemory);
  auto agent = Make(cache_);
  ASSERT_TRUE(agent.ok()) << agent.status();
  const DeviceReport report = (*agent)->Report();
  EXPECT_TRUE(report.curve.empty());
  EXPECT_THAT(report.problem, HasSubstr("could not be measured"));
  EXPECT_EQ(report.kernel_below[1], cuda::DefaultKernelBelow(Route::kCpuToDevice));
}

TEST_F(CudaAgentTest, CurveThatCannotBeKeptIsSaid) {
  auto agent = Make(folder_ + "/missing/curves.json");
  ASSERT_TRUE(agent.ok()) << agent.status();
  const DeviceReport report = (*agent)->Report();
  EXPECT_FALSE(report.curve.empty());
  if (!std::filesystem::exists(folder_ + "/missing/curves.json")) {
    EXPECT_THAT(report.problem, HasSubstr("not kept"));
  }
}

TEST_F(CudaAgentTest, SegmentsAreRegisteredAndGivenBack) {
  MeasureNothing();
  auto agent = Make("");
  ASSERT_TRUE(agent.ok());
  std::vector<std::byte> memory(100000);
  (*agent)->SegmentMapped(3, memory);
  ASSERT_TRUE(Eventually([&] { return (*agent)->Report().pinned_bytes == memory.size(); }));
  EXPECT_EQ((*agent)->Report().arena_bytes, memory.size());
  EXPECT_EQ(fake_.registered_bytes(), memory.size());
  (*agent)->SegmentGone(3);
  EXPECT_EQ(fake_.registered_bytes(), 0u);
  EXPECT_EQ((*agent)->Report().arena_bytes, 0u);
  agent->reset();
  EXPECT_EQ(fake_.open_handles(), 0u);
}

TEST_F(CudaAgentTest, LostDeviceIsReportedAndLeftAlone) {
  MeasureNothing();
  auto agent = Make("");
  ASSERT_TRUE(agent.ok());
  std::vector<std::byte> memory(100000);
  (*agent)->SegmentMapped(3, memory);
  ASSERT_TRUE(Eventually([&] { return (*agent)->Report().pinned_bytes == memory.size(); }));
  (*agent)->SetBootId(1);
  (*agent)->SetComputeStream(reinterpret_cast<uintptr_t>(fake_.EngineStream()));
  fake_.LoseContext();
  ASSERT_TRUE(
      (*agent)->SubmitEngineHalf({.key = 1, .route = Route::kCpuToDevice, .block_ids = {1}}).ok());
  EXPECT_THAT((*agent)->Report().problem, HasSubstr("restart of the engine"));
  const uint64_t calls = fake_.calls("");
  (*agent)->SegmentGone(3);
  agent->reset();
  EXPECT_EQ(fake_.calls(""), calls);
}

TEST_F(CudaAgentTest, WhatCannotBe) {
  MeasureNothing();
  EXPECT_EQ(MakeCudaAgent(options_, layout_, &mapper_, nullptr, "", nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCudaAgent(options_, layout_, nullptr, fake_.Connect(), "", nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(MakeCudaAgent(options_, {}, &mapper_, fake_.Connect(), "", nullptr).status().code(),
            absl::StatusCode::kInvalidArgument);
  fake_.FailCall("CreateStream", 1, Error::kNoMemory);
  const auto agent = Make("");
  EXPECT_EQ(agent.status().code(), absl::StatusCode::kInternal);
  EXPECT_THAT(std::string(agent.status().message()), HasSubstr("stream"));
  EXPECT_EQ(fake_.open_handles(), 0u);
}

}  // namespace
}  // namespace flexkv
