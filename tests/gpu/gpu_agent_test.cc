// The whole agent on a GPU: bytes by the content oracle, order against the compute stream.
#include <atomic>
#include <cstring>
#include <thread>

#include "tests/gpu/gpu_harness.h"
#include "tests/gpu/gpu_kernels.h"

namespace flexkv::gpu {
namespace {

using Engine = CopyOptions::Engine;

GpuHarness::Options With(Engine engine, bool pinned = true) {
  GpuHarness::Options options;
  options.pinned = pinned;
  options.agent.copy.engine[0] = options.agent.copy.engine[1] = engine;
  return options;
}

// All blocks down into the arena and, over other content, up again into other blocks.
void RoundTrip(const Shape& shape, const GpuHarness::Options& options) {
  DeviceTensors tensors(shape, options.blocks);
  GpuHarness harness(tensors.layout(), options);
  const std::vector<uint32_t> blocks = Numbers(options.blocks);
  for (uint32_t block : blocks) tensors.mirror().Fill(block, HashFromNumber(block));
  tensors.Upload();
  harness.Engine(1, Route::kDeviceToCpu, blocks);
  harness.Daemon(1, Route::kDeviceToCpu, blocks);
  harness.agent->StepDone();
  ASSERT_EQ(OpStatus::kOk, harness.DaemonResult(1).status);
  for (uint32_t block : blocks) {
    ASSERT_TRUE(ContentMatches(HashFromNumber(block), 0, harness.Slot(block)))
        << shape.name << ", stored block " << block;
  }

  for (uint32_t block : blocks) tensors.mirror().Fill(block, HashFromNumber(1000 + block));
  tensors.Upload();
  std::vector<uint32_t> turned(blocks.rbegin(), blocks.rend());
  harness.Engine(2, Route::kCpuToDevice, turned);
  harness.Daemon(2, Route::kCpuToDevice, blocks);
  const AgentResult loaded = harness.EngineResult(2);
  ASSERT_EQ(OpStatus::kOk, loaded.status);
  EXPECT_TRUE(loaded.failed_engine_blocks.empty());
  ASSERT_EQ(OpStatus::kOk, harness.DaemonResult(2).status);
  tensors.Download();
  for (uint32_t block : blocks) {
    ASSERT_TRUE(tensors.mirror().Holds(turned[block], HashFromNumber(block)))
        << shape.name << ", loaded block " << turned[block];
  }
  EXPECT_TRUE(tensors.mirror().PaddingIntact()) << shape.name;
}

class GpuRoundTrip : public GpuTest, public ::testing::WithParamInterface<Shape> {};

TEST_P(GpuRoundTrip, ByCopyEngine) { RoundTrip(GetParam(), With(Engine::kCopyEngine)); }
TEST_P(GpuRoundTrip, ByKernel) { RoundTrip(GetParam(), With(Engine::kKernel)); }
TEST_P(GpuRoundTrip, BySize) { RoundTrip(GetParam(), With(Engine::kAuto)); }
TEST_P(GpuRoundTrip, WithoutRegisteredMemory) {
  RoundTrip(GetParam(), With(Engine::kAuto, /*pinned=*/false));
}
TEST_P(GpuRoundTrip, InSmallChunks) {
  GpuHarness::Options options = With(Engine::kAuto);
  options.agent.chunk_bytes = 4096;
  options.agent.copy.batch_copies = 3;
  RoundTrip(GetParam(), options);
}

INSTANTIATE_TEST_SUITE_P(Shapes, GpuRoundTrip, ::testing::ValuesIn(AllShapes()),
                         [](const auto& shape) { return shape.param.name; });

class GpuAgent : public GpuTest {
 protected:
  // A shape whose copies take long enough to be overtaken.
  static Shape Large() {
    return {.name = "Large", .layers = 8, .heads = 8, .tokens = 16, .head_bytes = 256};
  }
};

TEST_F(GpuAgent, ALoadLayerByLayerIsThereWhenItsLayerIsAskedFor) {
  const Shape shape = Large();
  GpuHarness::Options options = With(Engine::kAuto);
  options.blocks = options.slots = 64;
  DeviceTensors tensors(shape, options.blocks);
  tensors.Upload();
  GpuHarness harness(tensors.layout(), options);
  const std::vector<uint32_t> blocks = Numbers(options.blocks);
  for (uint32_t block : blocks) FillContent(HashFromNumber(block), 0, harness.Slot(block));
  const uint64_t layer_bytes = harness.shard_bytes / shape.layers;
  // The engine reads each layer on its compute stream, right after asking for it.
  Buffer seen(Buffer::Where::kHost, harness.shard_bytes * options.blocks);
  const KvGroup& group = tensors.layout().groups[0];
  harness.Engine(1, Route::kCpuToDevice, blocks, /*layerwise=*/true);
  harness.Daemon(1, Route::kCpuToDevice, blocks);
  harness.agent->StartLayerLoads(kNsPerSecond);
  for (uint32_t layer = 0; layer < shape.layers; ++layer) {
    harness.agent->WaitForLayer(layer);
    const LayerView& view = group.layers[layer];
    for (uint32_t block : blocks) {
      std::byte* const to = seen.data() + block * harness.shard_bytes + layer * layer_bytes;
      for (uint32_t i = 0; i < view.outer[0].count; ++i) {
        GPU_OK(cudaMemcpyAsync(
            to + i * view.fragment_bytes,
            reinterpret_cast<const void*>(view.base + block * view.block_stride_bytes +
                                          i * view.outer[0].stride_bytes),
            view.fragment_bytes, cudaMemcpyDefault, harness.compute));
      }
    }
  }
  harness.agent->StepDone();
  GPU_OK(cudaStreamSynchronize(harness.compute));
  EXPECT_EQ(OpStatus::kOk, harness.EngineResult(1).status);
  for (uint32_t block : blocks) {
    EXPECT_TRUE(ContentMatches(HashFromNumber(block), 0,
                               {seen.data() + block * harness.shard_bytes, harness.shard_bytes}))
        << "block " << block;
  }
  EXPECT_EQ(1u, harness.agent->stats().layer_loads);
}

TEST_F(GpuAgent, AStoreWaitsForItsStep) {
  const Shape shape = Large();
  const GpuHarness::Options options = With(Engine::kAuto);
  DeviceTensors tensors(shape, options.blocks);
  tensors.Upload();
  GpuHarness harness(tensors.layout(), options);
  const std::vector<uint32_t> blocks = Numbers(options.blocks);
  // The step's "kernels" take 20 ms and only then write the blocks.
  for (uint32_t block : blocks) tensors.mirror().Fill(block, HashFromNumber(block));
  const size_t image_bytes = tensors.mirror().allocations()[0].size();
  Buffer images(Buffer::Where::kHost, image_bytes * shape.layers);
  const KvGroup& group = tensors.layout().groups[0];
  GPU_OK(Spin(harness.compute, 20000));
  for (size_t layer = 0; layer < group.layers.size(); ++layer) {
    std::byte* const image = images.data() + layer * image_bytes;
    std::memcpy(image, tensors.mirror().allocations()[layer].data(), image_bytes);
    GPU_OK(cudaMemcpyAsync(reinterpret_cast<void*>(group.layers[layer].base), image, image_bytes,
                           cudaMemcpyDefault, harness.compute));
  }
  harness.Engine(1, Route::kDeviceToCpu, blocks);
  harness.Daemon(1, Route::kDeviceToCpu, blocks);
  harness.agent->StepDone();
  ASSERT_EQ(OpStatus::kOk, harness.DaemonResult(1).status);
  for (uint32_t block : blocks) {
    EXPECT_TRUE(ContentMatches(HashFromNumber(block), 0, harness.Slot(block))) << block;
  }
}

TEST_F(GpuAgent, AFencedStoreNeverSeesTheNewOwnersBytes) {
  const Shape shape = Large();
  GpuHarness::Options options = With(Engine::kAuto);
  options.blocks = options.slots = 64;
  options.agent.chunk_bytes = 256 << 10;
  DeviceTensors tensors(shape, options.blocks);
  GpuHarness harness(tensors.layout(), options);
  const std::vector<uint32_t> blocks = Numbers(options.blocks);
  const LayerView& first = tensors.layout().groups[0].layers[0];
  uint32_t stored = 0;
  for (OpKey key = 1; key <= 20; ++key) {
    for (uint32_t block : blocks) tensors.mirror().Fill(block, HashFromNumber(block));
    tensors.Upload();
    harness.Engine(key, Route::kDeviceToCpu, blocks);
    harness.Daemon(key, Route::kDeviceToCpu, blocks);
    harness.agent->StepDone();
    std::this_thread::sleep_for(std::chrono::microseconds(20 * key));
    harness.agent->FenceBlocks(blocks);
    // The blocks' new owner writes at once.
    for (const LayerView& view : tensors.layout().groups[0].layers) {
      GPU_OK(Write(harness.compute, reinterpret_cast<void*>(view.base),
                   2 * options.blocks * static_cast<size_t>(first.block_stride_bytes), 0xEE));
    }
    const AgentResult result = harness.DaemonResult(key);
    std::vector<bool> failed(options.blocks);
    for (uint32_t position : result.failed) failed[position] = true;
    for (uint32_t block : blocks) {
      if (failed[block]) continue;
      ++stored;
      ASSERT_TRUE(ContentMatches(HashFromNumber(block), 0, harness.Slot(block)))
          << "round " << key << ", block " << block;
    }
    GPU_OK(cudaStreamSynchronize(harness.compute));
  }
  std::printf("  %u of %u blocks were stored before their fence\n", stored, 20 * options.blocks);
}

TEST_F(GpuAgent, FiftyGraphsAreCapturedDuringRegistrationAndCopies) {
  const Shape shape = Large();
  GpuHarness::Options options = With(Engine::kAuto);
  DeviceTensors tensors(shape, options.blocks);
  GpuHarness harness(tensors.layout(), options);
  const std::vector<uint32_t> blocks = Numbers(options.blocks);
  for (uint32_t block : blocks) tensors.mirror().Fill(block, HashFromNumber(block));
  tensors.Upload();
  // Segments that come and go keep the registering thread at work.
  MappedArena more(1, uint64_t{1} << 30);
  std::atomic<bool> captured{false};
  std::atomic<int> rounds{0};
  std::thread copying([&] {
    for (OpKey key = 1; !captured || rounds == 0; ++key, ++rounds) {
      harness.agent->SegmentMapped(100, more.At(1));
      harness.Engine(key, Route::kDeviceToCpu, blocks);
      harness.Daemon(key, Route::kDeviceToCpu, blocks);
      harness.agent->StepDone();
      if (harness.DaemonResult(key).status != OpStatus::kOk) {
        ADD_FAILURE() << "op " << key << " failed during a capture";
      }
      harness.agent->SegmentGone(100);
    }
  });
  Buffer scratch(Buffer::Where::kDevice, 1 << 20);
  std::vector<cudaGraphExec_t> graphs;
  Stream capturing;
  EXPECT_EQ(cudaSuccess, Write(capturing, scratch.data(), scratch.size(), 1));  // loads its code
  EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(capturing));
  for (int i = 0; i < 50; ++i) {
    cudaGraph_t graph = nullptr;
    cudaGraphExec_t runnable = nullptr;
    EXPECT_EQ(cudaSuccess, cudaStreamBeginCapture(capturing, cudaStreamCaptureModeGlobal));
    for (int kernel = 0; kernel < 20; ++kernel) {
      EXPECT_EQ(cudaSuccess, Write(capturing, scratch.data(), scratch.size(), uint8_t(i)));
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    const cudaError_t ended = cudaStreamEndCapture(capturing, &graph);
    EXPECT_EQ(cudaSuccess, ended) << "capture " << i << ": " << cudaGetErrorString(ended);
    if (ended != cudaSuccess) break;
    EXPECT_EQ(cudaSuccess, cudaGraphInstantiate(&runnable, graph, 0));
    cudaGraphDestroy(graph);
    graphs.push_back(runnable);
  }
  captured = true;
  copying.join();
  for (cudaGraphExec_t graph : graphs) {
    EXPECT_EQ(cudaSuccess, cudaGraphLaunch(graph, capturing));
  }
  EXPECT_EQ(cudaSuccess, cudaStreamSynchronize(capturing));
  for (cudaGraphExec_t graph : graphs) cudaGraphExecDestroy(graph);
  for (uint32_t block : blocks) {
    EXPECT_TRUE(ContentMatches(HashFromNumber(block), 0, harness.Slot(block))) << block;
  }
  EXPECT_EQ(50u, graphs.size());
  std::printf("  %d rounds of copies meanwhile\n", rounds.load());
}

TEST_F(GpuAgent, AnEngineThatSleepsRegistersAgain) {
  // Sleep mode gives the tensors' memory back; the engine wakes with others and a new agent.
  for (int wake = 0; wake < 3; ++wake) {
    RoundTrip(Large(), With(wake % 2 == 0 ? Engine::kCopyEngine : Engine::kKernel));
  }
}

TEST_F(GpuAgent, ReportsItsDevice) {
  DeviceTensors tensors(Large(), 4);
  GpuHarness harness(tensors.layout(), {.blocks = 4, .slots = 4});
  const DeviceReport report = harness.agent->Report();
  EXPECT_NE("", report.device);
  EXPECT_NE("cpu", report.device);
  EXPECT_EQ("", report.problem);
  EXPECT_GT(report.pinned_bytes, 0u);
}

}  // namespace
}  // namespace flexkv::gpu
