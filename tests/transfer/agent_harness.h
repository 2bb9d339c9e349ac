// An agent beside an engine's tensors and an arena of plain memory, for tests.
#pragma once

#include <chrono>
#include <condition_variable>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/device_agent.h"
#include "gtest/gtest.h"
#include "tests/support/content_oracle.h"
#include "tests/transfer/engine_memory.h"

namespace flexkv {

constexpr uint64_t kBoot = 7;

// Segments 1..n of plain memory. Map can be held up, which keeps the agent's thread in front of its
// next op.
class TestMapper : public SegmentMapper {
 public:
  TestMapper(uint32_t segments, uint64_t bytes)
      : memory_(segments, std::vector<std::byte>(bytes)) {}

  std::span<std::byte> Map(SegmentId segment, TimeNs /*wait_ns*/) override {
    std::unique_lock<std::mutex> lock(mutex_);
    ++maps_;
    changed_.notify_all();
    changed_.wait(lock, [this] { return !held_; });
    return At(segment);
  }
  std::span<std::byte> At(SegmentId segment) {
    if (segment == 0 || segment > memory_.size()) return {};
    return memory_[segment - 1];
  }
  void Hold() {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = true;
    maps_ = 0;
  }
  void WaitUntilHeld() {
    std::unique_lock<std::mutex> lock(mutex_);
    changed_.wait(lock, [this] { return maps_ > 0; });
  }
  void Release() {
    std::lock_guard<std::mutex> lock(mutex_);
    held_ = false;
    changed_.notify_all();
  }

 private:
  std::vector<std::vector<std::byte>> memory_;
  std::mutex mutex_;
  std::condition_variable changed_;
  bool held_ = false;
  int maps_ = 0;
};

// What lies under the agent; the host copier unless a test says otherwise.
using DeviceFactory = std::function<std::unique_ptr<internal::AgentDevice>(const KvLayout& layout)>;

class AgentHarness {
 public:
  explicit AgentHarness(const Shape& shape, DeviceAgent::Options options = {}, uint32_t blocks = 16,
                        uint32_t slots = 16, const DeviceFactory& make_device = nullptr)
      : memory(shape, blocks),
        mapper(2, memory.layout().shard_bytes() * slots),
        shard_bytes(memory.layout().shard_bytes()) {
    const auto ring = [this] {
      std::lock_guard<std::mutex> lock(mutex_);
      ++bells_;
      rung_.notify_all();
    };
    auto made = make_device == nullptr ? MakeHostAgent(options, memory.layout(), &mapper, ring)
                                       : internal::MakeAgent(options, memory.layout(), &mapper,
                                                             make_device(memory.layout()), ring);
    EXPECT_TRUE(made.ok()) << made.status();
    agent = *std::move(made);
    agent->SetBootId(kBoot);
    for (uint32_t block = 0; block < blocks; ++block) memory.Fill(block, HashFromNumber(block));
  }
  ~AgentHarness() { mapper.Release(); }

  // Slot n lies in segment 1 or 2 in turns.
  ArenaPlace PlaceOf(uint32_t slot, uint32_t engine_index) const {
    return {.segment = 1 + slot % 2,
            .engine_index = engine_index,
            .offset_bytes = slot / 2 * shard_bytes};
  }
  std::span<std::byte> Slot(uint32_t slot) {
    return mapper.At(1 + slot % 2).subspan(slot / 2 * shard_bytes, shard_bytes);
  }
  bool SlotHolds(uint32_t slot, const BlockHash& hash) {
    return ContentMatches(hash, 0, Slot(slot));
  }

  absl::Status Engine(OpKey key, Route route, std::vector<uint32_t> blocks) {
    return agent->SubmitEngineHalf({.key = key, .route = route, .block_ids = std::move(blocks)});
  }
  absl::Status LayerLoad(OpKey key, std::vector<uint32_t> blocks) {
    return agent->SubmitEngineHalf({.key = key,
                                    .route = Route::kCpuToDevice,
                                    .block_ids = std::move(blocks),
                                    .layerwise = true});
  }
  // Slots in the order of the engine's blocks.
  void Daemon(OpKey key, Route route, const std::vector<uint32_t>& slots, uint64_t boot = kBoot) {
    DaemonHalf half{.boot_id = boot, .key = key, .route = route};
    for (uint32_t i = 0; i < slots.size(); ++i) half.blocks.push_back(PlaceOf(slots[i], i));
    agent->SubmitDaemonHalf(std::move(half));
  }

  // A part of a load: engine indexes from `first_index` on in these slots.
  void Part(OpKey key, uint32_t part, bool more, const std::vector<uint32_t>& slots,
            uint32_t first_index) {
    DaemonHalf half{
        .boot_id = kBoot, .key = key, .route = Route::kCpuToDevice, .part = part, .more = more};
    for (uint32_t i = 0; i < slots.size(); ++i)
      half.blocks.push_back(PlaceOf(slots[i], first_index + i));
    agent->SubmitDaemonHalf(std::move(half));
  }

  // Waits for the first daemon result of `key` (others are kept) and takes it.
  AgentResult WaitDaemon(OpKey key, int timeout_ms = 10000) {
    return Wait(key, &daemon_results, timeout_ms);
  }
  AgentResult WaitEngine(OpKey key, int timeout_ms = 10000) {
    return Wait(key, &engine_results, timeout_ms);
  }
  bool HasDaemonResult(OpKey key) {
    Collect();
    return daemon_results.contains(key);
  }
  bool HasEngineResult(OpKey key) {
    Collect();
    return engine_results.contains(key);
  }
  void Collect() {
    std::vector<AgentResult> taken;
    agent->TakeDaemonResults(&taken);
    for (AgentResult& result : taken) {
      order.push_back(result.key);
      daemon_results.emplace(result.key, std::move(result));
    }
    taken.clear();
    agent->TakeEngineResults(&taken);
    for (AgentResult& result : taken) engine_results.emplace(result.key, std::move(result));
  }
  int bells() {
    std::lock_guard<std::mutex> lock(mutex_);
    return bells_;
  }

  EngineMemory memory;
  TestMapper mapper;
  uint64_t shard_bytes;
  std::multimap<OpKey, AgentResult> daemon_results, engine_results;
  std::vector<OpKey> order;  // of daemon results

 private:
  AgentResult Wait(OpKey key, std::multimap<OpKey, AgentResult>* results, int timeout_ms) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(timeout_ms);
    for (;;) {
      Collect();
      if (auto it = results->find(key); it != results->end()) {
        AgentResult result = it->second;
        results->erase(it);
        return result;
      }
      if (std::chrono::steady_clock::now() > deadline) break;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    ADD_FAILURE() << "no result of op " << key;
    return {};
  }

  std::mutex mutex_;
  std::condition_variable rung_;
  int bells_ = 0;

 public:
  std::unique_ptr<DeviceAgent> agent;  // last: ends before what it uses
};

}  // namespace flexkv
