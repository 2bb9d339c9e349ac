#include "tests/gpu/c_entry.h"

#include <sys/mman.h>

#include <chrono>
#include <cstdio>
#include <map>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "flexkv/client/worker_session.h"
#include "flexkv/transfer/cuda/cuda_agent.h"
#include "flexkv/transfer/cuda/cuda_library.h"

using flexkv::AgentResult;
using flexkv::OpStatus;
using flexkv::Route;

namespace {

constexpr uint64_t kBoot = 7;

class OneSegment : public flexkv::SegmentMapper {
 public:
  std::span<std::byte> Map(flexkv::SegmentId segment, flexkv::TimeNs /*wait_ns*/) override {
    return segment == 1 ? memory : std::span<std::byte>();
  }
  std::span<std::byte> memory;
};

}  // namespace

struct FlexkvGpuAgent {
  ~FlexkvGpuAgent() {
    if (agent != nullptr) agent->SegmentGone(1);
    agent.reset();
    if (!arena.memory.empty()) munmap(arena.memory.data(), arena.memory.size());
  }
  OneSegment arena;
  uint64_t shard_bytes = 0;
  std::vector<uint32_t> views;
  std::map<std::pair<uint64_t, bool>, int> results;  // by key; of loads what the engine hears
  std::unique_ptr<flexkv::DeviceAgent> agent;
};

namespace {

absl::Status Open(int device, std::span<const FlexkvTensor> tensors, uint32_t tokens_per_block,
                  uint32_t slots, uint32_t engine, FlexkvGpuAgent* made) {
  std::vector<flexkv::TensorView> views;
  for (const FlexkvTensor& tensor : tensors) {
    views.push_back({tensor.layer,
                     tensor.data,
                     tensor.element_bytes,
                     {tensor.shape, tensor.shape + tensor.dimensions},
                     {tensor.strides, tensor.strides + tensor.dimensions},
                     tensor.block_dimension});
  }
  auto group = flexkv::MakeKvGroup(views, tokens_per_block, &made->views);
  if (!group.ok()) return group.status();
  const flexkv::KvLayout layout{.groups = {*group}, .descriptor = "torch tensors"};
  made->shard_bytes = layout.shard_bytes();
  const size_t bytes = made->shard_bytes * slots;
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return absl::ResourceExhaustedError("no memory for the arena");
  made->arena.memory = {static_cast<std::byte*>(memory), bytes};
  auto api = flexkv::cuda::OpenLibrary(device);
  if (!api.ok()) return api.status();
  flexkv::DeviceAgent::Options options;
  options.copy.engine[0] = options.copy.engine[1] =
      static_cast<flexkv::CopyOptions::Engine>(engine);
  auto agent = flexkv::MakeCudaAgent(options, layout, &made->arena, *std::move(api), "", [] {});
  if (!agent.ok()) return agent.status();
  made->agent = *std::move(agent);
  made->agent->SetBootId(kBoot);
  made->agent->SegmentMapped(1, made->arena.memory);
  return absl::OkStatus();
}

void Take(FlexkvGpuAgent* agent) {
  std::vector<AgentResult> taken;
  agent->agent->TakeDaemonResults(&taken);
  for (const AgentResult& result : taken) {
    if (result.route == Route::kDeviceToCpu) {
      agent->results[{result.key, false}] = static_cast<int>(result.status);
    }
  }
  taken.clear();
  agent->agent->TakeEngineResults(&taken);
  for (const AgentResult& result : taken) {
    const bool whole = result.failed_engine_blocks.empty();
    const int status = static_cast<int>(result.status);
    agent->results[{result.key, true}] = status == 0 && !whole ? 1 : status;
  }
}

}  // namespace

FlexkvGpuAgent* flexkv_gpu_open(int device, const FlexkvTensor* tensors, uint32_t count,
                                uint32_t tokens_per_block, uint32_t slots, uint32_t engine,
                                char* error, size_t error_bytes) {
  auto made = std::make_unique<FlexkvGpuAgent>();
  const absl::Status opened =
      Open(device, {tensors, count}, tokens_per_block, slots, engine, made.get());
  if (opened.ok()) return made.release();
  std::snprintf(error, error_bytes, "%s", std::string(opened.message()).c_str());
  return nullptr;
}

void flexkv_gpu_close(FlexkvGpuAgent* agent) { delete agent; }

uint64_t flexkv_gpu_shard_bytes(const FlexkvGpuAgent* agent) { return agent->shard_bytes; }

void* flexkv_gpu_slot(FlexkvGpuAgent* agent, uint32_t slot) {
  return agent->arena.memory.data() + slot * agent->shard_bytes;
}

uint32_t flexkv_gpu_view(const FlexkvGpuAgent* agent, uint32_t tensor) {
  return agent->views.at(tensor);
}

void flexkv_gpu_bind(FlexkvGpuAgent* agent, uint64_t stream) {
  agent->agent->SetComputeStream(stream);
}

void flexkv_gpu_fence(FlexkvGpuAgent* agent, const uint32_t* blocks, uint32_t count) {
  agent->agent->FenceBlocks({blocks, count});
}

int flexkv_gpu_submit(FlexkvGpuAgent* agent, uint64_t key, int load, int layerwise,
                      const uint32_t* blocks, const uint32_t* slots, uint32_t count) {
  const Route route = load != 0 ? Route::kCpuToDevice : Route::kDeviceToCpu;
  flexkv::DaemonHalf daemon{.boot_id = kBoot, .key = key, .route = route};
  for (uint32_t i = 0; i < count; ++i) {
    daemon.blocks.push_back({1, i, slots[i] * agent->shard_bytes});
  }
  const absl::Status taken = agent->agent->SubmitEngineHalf({.key = key,
                                                             .route = route,
                                                             .block_ids = {blocks, blocks + count},
                                                             .layerwise = layerwise != 0});
  if (!taken.ok()) return -1;
  agent->agent->SubmitDaemonHalf(std::move(daemon));
  return 0;
}

void flexkv_gpu_start_layer_loads(FlexkvGpuAgent* agent, uint32_t wait_ms) {
  agent->agent->StartLayerLoads(flexkv::TimeNs{wait_ms} * 1000000);
}

void flexkv_gpu_wait_for_layer(FlexkvGpuAgent* agent, uint32_t view) {
  agent->agent->WaitForLayer(view);
}

void flexkv_gpu_step_done(FlexkvGpuAgent* agent) { agent->agent->StepDone(); }

int flexkv_gpu_result(FlexkvGpuAgent* agent, uint64_t key, int load, uint32_t timeout_ms) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
  for (;;) {
    Take(agent);
    const auto found = agent->results.find({key, load != 0});
    if (found != agent->results.end()) {
      const int status = found->second;
      agent->results.erase(found);
      return status;
    }
    if (std::chrono::steady_clock::now() > deadline) return -1;
    std::this_thread::sleep_for(std::chrono::microseconds(100));
  }
}
