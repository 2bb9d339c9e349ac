// The whole CUDA agent beside tensors on the GPU and an arena of shared memory.
#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "flexkv/transfer/device_agent.h"
#include "tests/gpu/gpu_support.h"
#include "tests/support/content_oracle.h"
#include "tests/transfer/engine_memory.h"

namespace flexkv::gpu {

inline constexpr uint64_t kBoot = 7;

// Segments 1..n of shared memory, as the daemon's are.
class MappedArena : public SegmentMapper {
 public:
  MappedArena(uint32_t segments, uint64_t bytes);
  ~MappedArena() override;
  MappedArena(const MappedArena&) = delete;
  MappedArena& operator=(const MappedArena&) = delete;

  std::span<std::byte> Map(SegmentId segment, TimeNs /*wait_ns*/) override { return At(segment); }
  std::span<std::byte> At(SegmentId segment) const;
  uint32_t size() const { return static_cast<uint32_t>(memory_.size()); }

 private:
  std::vector<std::span<std::byte>> memory_;
};

// An engine's tensors on the GPU, filled and checked through a copy in host memory that has every
// byte in the same place.
class DeviceTensors {
 public:
  DeviceTensors(const Shape& shape, uint32_t num_blocks);
  const KvLayout& layout() const { return layout_; }
  EngineMemory& mirror() { return mirror_; }
  void Upload();
  void Download();

 private:
  EngineMemory mirror_;
  std::vector<std::unique_ptr<Buffer>> memory_;  // one per allocation of the mirror
  KvLayout layout_;
};

class GpuHarness {
 public:
  struct Options {
    uint32_t blocks = 16, slots = 16;
    bool pinned = true;  // the arena is registered before the first op
    DeviceAgent::Options agent;
  };
  // The layout's addresses are of device memory that outlives the harness.
  GpuHarness(const KvLayout& layout, const Options& options);
  ~GpuHarness();

  // Slot n lies in segment 1 or 2 in turns.
  ArenaPlace PlaceOf(uint32_t slot, uint32_t engine_index) const;
  std::span<std::byte> Slot(uint32_t slot) const;

  void Engine(OpKey key, Route route, std::vector<uint32_t> blocks, bool layerwise = false);
  void Daemon(OpKey key, Route route, const std::vector<uint32_t>& slots);
  // Waits for it; status kFailed and a test failure when none comes.
  AgentResult DaemonResult(OpKey key) { return Wait(key, &daemon_results_); }
  AgentResult EngineResult(OpKey key) { return Wait(key, &engine_results_); }
  // Registered as a whole, or nothing more will be.
  void WaitUntilPinned();

  Stream compute;
  const uint64_t shard_bytes;
  MappedArena arena;
  std::unique_ptr<DeviceAgent> agent;  // last: ends before what it uses

 private:
  AgentResult Wait(OpKey key, std::multimap<OpKey, AgentResult>* results);
  std::multimap<OpKey, AgentResult> daemon_results_, engine_results_;
};

// 0, 1, ..., count - 1.
std::vector<uint32_t> Numbers(uint32_t count);

}  // namespace flexkv::gpu
