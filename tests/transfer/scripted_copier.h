// A chunk copier that does what a test says: chunks stay under way until the test ends them, and
// only then are their bytes moved.
#pragma once

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/host_copier.h"
#include "gtest/gtest.h"
#include "tests/transfer/agent_harness.h"

namespace flexkv {

struct ScriptedChunk {
  ChunkTicket ticket = 0;
  OpKey op = 0;
  Route route = Route::kDeviceToCpu;
  Lane lane = Lane::kBackground;
  ComputeMark after = 0;
  uint64_t bytes = 0;
  std::vector<ChunkPiece> pieces;  // their ids lie in block_ids
  std::vector<std::vector<uint32_t>> block_ids;
};

class ScriptedCopier : public ChunkCopier {
 public:
  explicit ScriptedCopier(const KvLayout& layout) : host_(layout) {}
  ~ScriptedCopier() override {
    EXPECT_TRUE(under_way_.empty()) << "an agent that waits for its chunks ended before them";
  }

  // --- script ---
  void HoldStarts(bool hold) {
    std::lock_guard<std::mutex> lock(mutex_);
    hold_starts_ = hold;
    changed_.notify_all();
  }
  void SetMaxBytes(uint64_t bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    max_bytes_ = bytes;
  }
  void SetCanHold(bool can) {
    std::lock_guard<std::mutex> lock(mutex_);
    can_hold_ = can;
  }
  // Chunks end by themselves from now on.
  void EndByItself() {
    std::lock_guard<std::mutex> lock(mutex_);
    by_itself_ = true;
    while (!under_way_.empty()) EndLocked(under_way_.begin()->first, true);
  }
  void End(ChunkTicket ticket, bool ok = true) {
    std::lock_guard<std::mutex> lock(mutex_);
    EndLocked(ticket, ok);
  }
  void EndAll(bool ok = true) {
    std::lock_guard<std::mutex> lock(mutex_);
    while (!under_way_.empty()) EndLocked(under_way_.begin()->first, ok);
  }

  // --- what was seen ---
  // Waits until `count` chunks were handed to Start, and a little longer to see no more.
  std::vector<ScriptedChunk> WaitStarts(size_t count) {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(
        changed_.wait_for(lock, std::chrono::seconds(10), [&] { return all_.size() >= count; }));
    lock.unlock();
    std::this_thread::sleep_for(std::chrono::milliseconds(3));
    lock.lock();
    EXPECT_EQ(all_.size(), count);
    return all_;
  }
  std::vector<std::vector<ChunkTicket>> holds() {
    std::lock_guard<std::mutex> lock(mutex_);
    return holds_;
  }
  std::vector<uint64_t> streams() {
    std::lock_guard<std::mutex> lock(mutex_);
    return streams_;
  }
  ComputeMark marks() {
    std::lock_guard<std::mutex> lock(mutex_);
    return last_mark_;
  }

  // --- ChunkCopier ---
  void EnterThread() override {
    std::lock_guard<std::mutex> lock(mutex_);
    entered_ = true;
  }
  uint64_t MaxBytesInFlight(Route /*route*/) const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return max_bytes_;
  }
  void Start(const ChunkJob& job) override {
    std::unique_lock<std::mutex> lock(mutex_);
    EXPECT_TRUE(entered_ || job.lane == Lane::kLayer);
    EXPECT_GT(job.ticket, all_.empty() ? 0 : all_.back().ticket);
    ScriptedChunk chunk{.ticket = job.ticket,
                        .op = job.op,
                        .route = job.route,
                        .lane = job.lane,
                        .after = job.after,
                        .bytes = job.bytes};
    for (const ChunkPiece& piece : job.pieces) {
      chunk.block_ids.emplace_back(piece.block_ids.begin(), piece.block_ids.end());
      chunk.pieces.push_back(piece);
    }
    all_.push_back(chunk);
    for (size_t at = 0; at < chunk.pieces.size(); ++at) {
      chunk.pieces[at].block_ids = chunk.block_ids[at];
    }
    under_way_.emplace(job.ticket, std::move(chunk));
    changed_.notify_all();
    changed_.wait(lock, [this] { return !hold_starts_; });
    started_.push_back(job.ticket);
    if (by_itself_) EndLocked(job.ticket, true);
  }
  void Collect(std::vector<ChunkEnd>* ends) override {
    std::lock_guard<std::mutex> lock(mutex_);
    ends->insert(ends->end(), ends_.begin(), ends_.end());
    ends_.clear();
  }
  TimeNs CollectAfter() const override {
    std::lock_guard<std::mutex> lock(mutex_);
    return ends_.empty() ? 200 * kNsPerUs : 0;
  }
  void SetComputeStream(uint64_t stream) override {
    std::lock_guard<std::mutex> lock(mutex_);
    streams_.push_back(stream);
  }
  ComputeMark Mark() override {
    std::lock_guard<std::mutex> lock(mutex_);
    return ++last_mark_;
  }
  bool HoldCompute(std::span<const ChunkTicket> tickets) override {
    std::lock_guard<std::mutex> lock(mutex_);
    EXPECT_FALSE(tickets.empty());
    for (ChunkTicket ticket : tickets) {
      EXPECT_TRUE(std::ranges::find(started_, ticket) != started_.end()) << "not started";
    }
    holds_.emplace_back(tickets.begin(), tickets.end());
    return can_hold_;
  }

 private:
  void EndLocked(ChunkTicket ticket, bool ok) {
    auto it = under_way_.find(ticket);
    if (it == under_way_.end()) {
      ADD_FAILURE() << "chunk " << ticket << " is not under way";
      return;
    }
    const ScriptedChunk& chunk = it->second;
    if (ok) {
      host_.Start(
          {.ticket = ticket, .route = chunk.route, .bytes = chunk.bytes, .pieces = chunk.pieces});
      std::vector<ChunkEnd> copied;
      host_.Collect(&copied);
    }
    ends_.push_back({.ticket = ticket, .ok = ok, .copy_ns = 1000});
    under_way_.erase(it);
  }

  internal::HostCopier host_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool entered_ = false, hold_starts_ = false, can_hold_ = true, by_itself_ = false;
  uint64_t max_bytes_ = UINT64_MAX;
  std::vector<ScriptedChunk> all_;
  std::vector<ChunkTicket> started_;
  std::map<ChunkTicket, ScriptedChunk> under_way_;
  std::vector<ChunkEnd> ends_;
  std::vector<std::vector<ChunkTicket>> holds_;
  std::vector<uint64_t> streams_;
  ComputeMark last_mark_ = 0;
};

// An agent over a scripted copier. Chunks are one block each unless the options say otherwise.
class ScriptedAgent {
 public:
  explicit ScriptedAgent(const Shape& shape, DeviceAgent::Options options = {.chunk_bytes = 1})
      : harness(shape, options, 16, 16, [this](const KvLayout& layout) {
          auto device = std::make_unique<Device>(layout);
          copier = &device->scripted;
          return device;
        }) {}
  ~ScriptedAgent() {
    if (harness.agent == nullptr) return;
    copier->HoldStarts(false);
    copier->EndByItself();
  }

  struct Device : internal::AgentDevice {
    explicit Device(const KvLayout& layout) : scripted(layout) {}
    ChunkCopier* copier() override { return &scripted; }
    DeviceReport Report() const override { return {.device = "scripted"}; }
    ScriptedCopier scripted;
  };

  ScriptedCopier* copier = nullptr;
  AgentHarness harness;
  DeviceAgent* operator->() { return harness.agent.get(); }
};

}  // namespace flexkv
