#include "tests/gpu/gpu_harness.h"

#include <sys/mman.h>

#include <chrono>
#include <numeric>
#include <thread>

#include "flexkv/transfer/cuda/cuda_agent.h"

namespace flexkv::gpu {
namespace {
constexpr uint64_t kHuge = 2ull << 20;
constexpr auto kPatience = std::chrono::seconds(30);

// A path of host memory seen at the same place of a device copy.
void Rebase(const std::vector<std::vector<std::byte>>& from,
            const std::vector<std::unique_ptr<Buffer>>& to, KvLayout* layout) {
  for (KvGroup& group : layout->groups) {
    for (LayerView& view : group.layers) {
      for (size_t i = 0; i < from.size(); ++i) {
        const auto begin = reinterpret_cast<uintptr_t>(from[i].data());
        if (view.base < begin || view.base >= begin + from[i].size()) continue;
        view.base = reinterpret_cast<uintptr_t>(to[i]->data()) + (view.base - begin);
        break;
      }
    }
  }
}
}  // namespace

MappedArena::MappedArena(uint32_t segments, uint64_t bytes) {
  const uint64_t whole = (bytes + kHuge - 1) / kHuge * kHuge;
  for (uint32_t i = 0; i < segments; ++i) {
    void* memory = mmap(nullptr, whole, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    EXPECT_NE(MAP_FAILED, memory);
    memory_.emplace_back(static_cast<std::byte*>(memory), whole);
  }
}

MappedArena::~MappedArena() {
  for (std::span<std::byte> segment : memory_) munmap(segment.data(), segment.size());
}

std::span<std::byte> MappedArena::At(SegmentId segment) const {
  if (segment == 0 || segment > memory_.size()) return {};
  return memory_[segment - 1];
}

DeviceTensors::DeviceTensors(const Shape& shape, uint32_t num_blocks)
    : mirror_(shape, num_blocks), layout_(mirror_.layout()) {
  for (const std::vector<std::byte>& allocation : mirror_.allocations()) {
    memory_.push_back(std::make_unique<Buffer>(Buffer::Where::kDevice, allocation.size()));
  }
  Rebase(mirror_.allocations(), memory_, &layout_);
}

void DeviceTensors::Upload() {
  for (size_t i = 0; i < memory_.size(); ++i) {
    EXPECT_EQ(cudaSuccess, cudaMemcpy(memory_[i]->data(), mirror_.allocations()[i].data(),
                                      memory_[i]->size(), cudaMemcpyHostToDevice));
  }
  EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
}

void DeviceTensors::Download() {
  EXPECT_EQ(cudaSuccess, cudaDeviceSynchronize());
  for (size_t i = 0; i < memory_.size(); ++i) {
    EXPECT_EQ(cudaSuccess, cudaMemcpy(mirror_.allocations()[i].data(), memory_[i]->data(),
                                      memory_[i]->size(), cudaMemcpyDeviceToHost));
  }
}

GpuHarness::GpuHarness(const KvLayout& layout, const Options& options)
    : shard_bytes(layout.shard_bytes()), arena(2, (options.slots + 1) / 2 * layout.shard_bytes()) {
  auto made = MakeCudaAgent(options.agent, layout, &arena, OpenApi(), "", [] {});
  EXPECT_TRUE(made.ok()) << made.status();
  agent = *std::move(made);
  agent->SetBootId(kBoot);
  agent->SetComputeStream(compute.number());
  if (options.pinned) {
    for (SegmentId i = 1; i <= arena.size(); ++i) agent->SegmentMapped(i, arena.At(i));
    WaitUntilPinned();
  }
}

GpuHarness::~GpuHarness() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (agent->Busy() && std::chrono::steady_clock::now() < deadline) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  for (SegmentId i = 1; i <= arena.size(); ++i) agent->SegmentGone(i);
  agent.reset();
}

ArenaPlace GpuHarness::PlaceOf(uint32_t slot, uint32_t engine_index) const {
  return {.segment = 1 + slot % 2,
          .engine_index = engine_index,
          .offset_bytes = slot / 2 * shard_bytes};
}

std::span<std::byte> GpuHarness::Slot(uint32_t slot) const {
  return arena.At(1 + slot % 2).subspan(slot / 2 * shard_bytes, shard_bytes);
}

void GpuHarness::Engine(OpKey key, Route route, std::vector<uint32_t> blocks, bool layerwise) {
  const absl::Status taken = agent->SubmitEngineHalf(
      {.key = key, .route = route, .block_ids = std::move(blocks), .layerwise = layerwise});
  EXPECT_TRUE(taken.ok()) << taken;
}

void GpuHarness::Daemon(OpKey key, Route route, const std::vector<uint32_t>& slots) {
  DaemonHalf half{.boot_id = kBoot, .key = key, .route = route};
  for (uint32_t i = 0; i < slots.size(); ++i) half.blocks.push_back(PlaceOf(slots[i], i));
  agent->SubmitDaemonHalf(std::move(half));
}

void GpuHarness::WaitUntilPinned() {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  uint64_t bytes = 0;
  for (SegmentId i = 1; i <= arena.size(); ++i) bytes += arena.At(i).size();
  for (;;) {
    const DeviceReport report = agent->Report();
    if (report.pinned_bytes >= bytes || report.pinning_refused) return;
    ASSERT_LT(std::chrono::steady_clock::now(), deadline) << "the arena is not registered";
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

AgentResult GpuHarness::Wait(OpKey key, std::multimap<OpKey, AgentResult>* results) {
  const auto deadline = std::chrono::steady_clock::now() + kPatience;
  while (std::chrono::steady_clock::now() < deadline) {
    std::vector<AgentResult> taken;
    agent->TakeDaemonResults(&taken);
    for (AgentResult& result : taken) daemon_results_.emplace(result.key, std::move(result));
    taken.clear();
    agent->TakeEngineResults(&taken);
    for (AgentResult& result : taken) engine_results_.emplace(result.key, std::move(result));
    if (auto it = results->find(key); it != results->end()) {
      AgentResult result = std::move(it->second);
      results->erase(it);
      return result;
    }
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  ADD_FAILURE() << "no result of op " << key;
  return {.status = OpStatus::kFailed};
}

std::vector<uint32_t> Numbers(uint32_t count) {
  std::vector<uint32_t> numbers(count);
  std::iota(numbers.begin(), numbers.end(), 0);
  return numbers;
}

}  // namespace flexkv::gpu
