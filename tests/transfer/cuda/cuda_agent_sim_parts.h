// Parts of CudaAgentSim that stand by themselves.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <span>
#include <thread>

#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/cuda/cuda_copier.h"
#include "flexkv/transfer/cuda/pinned_segments.h"
#include "flexkv/transfer/device_agent.h"
#include "tests/transfer/cuda/cuda_agent_sim.h"

namespace flexkv {

class CudaAgentSim::Mapper : public SegmentMapper {
 public:
  std::span<std::byte> Map(SegmentId segment, TimeNs /*wait_ns*/) override {
    std::lock_guard<std::mutex> lock(mutex_);
    auto it = segments_.find(segment);
    return it == segments_.end() ? std::span<std::byte>() : it->second;
  }
  void Set(SegmentId segment, std::span<std::byte> memory) {
    std::lock_guard<std::mutex> lock(mutex_);
    segments_[segment] = memory;
  }

 private:
  std::mutex mutex_;
  std::map<SegmentId, std::span<std::byte>> segments_;
};

// While one lives, the engine's thread may be waiting for the GPU: after a while the GPU goes on
// without being told.
class CudaAgentSim::Waiting {
 public:
  explicit Waiting(std::atomic<int64_t>* since) : since_(*since) { since_ = NowUs(); }
  ~Waiting() { since_ = 0; }

  static void Help(FakeCuda* fake, std::atomic<int64_t>* since, std::atomic<bool>* stop) {
    while (!*stop) {
      std::this_thread::sleep_for(std::chrono::microseconds(100));
      for (int64_t at = *since; at != 0 && NowUs() - at > 300 && at == *since && fake->Step();) {
      }
    }
  }

 private:
  static int64_t NowUs() {
    return std::chrono::duration_cast<std::chrono::microseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  std::atomic<int64_t>& since_;
};

// The device of MakeCudaAgent, with registrations and staging buffers of any size: shards lie
// across registrations and are in part not registered, chunks go through a staging buffer in
// several rounds.
class SmallPieces : public internal::AgentDevice {
 public:
  SmallPieces(const KvLayout& layout, std::unique_ptr<cuda::Api> api, uint64_t piece_bytes)
      : map_(layout), api_(std::move(api)), pinned_({.piece_bytes = piece_bytes}, api_.get()) {}

  absl::Status Make(const CopyOptions& options, uint64_t staging_bytes) {
    auto copier = cuda::CudaCopier::Create(options, &map_, api_.get(), &pinned_, staging_bytes);
    if (!copier.ok()) return copier.status();
    copier_ = *std::move(copier);
    copier_->SetKernelBelow(Route::kCpuToDevice, 512);
    return absl::OkStatus();
  }
  ~SmallPieces() override { NoteLoss(); }

  ChunkCopier* copier() override { return copier_.get(); }
  void SegmentMapped(SegmentId segment, std::span<std::byte> memory) override {
    pinned_.Add(segment, memory);
  }
  void SegmentGone(SegmentId segment) override {
    NoteLoss();
    pinned_.Remove(segment);
  }
  void SetCopyOptions(const CopyOptions& options) override { copier_->SetOptions(options); }
  DeviceReport Report() const override { return {.device = "in small pieces"}; }

 private:
  void NoteLoss() {
    if (copier_ != nullptr && copier_->stats().lost) pinned_.Abandon();
  }

  const internal::ShardMap map_;
  const std::unique_ptr<cuda::Api> api_;
  cuda::PinnedSegments pinned_;
  std::unique_ptr<cuda::CudaCopier> copier_;
};

// Whether a block of one view is the content of `hash` from `offset` on.
bool FragmentsHold(const LayerView& view, uint32_t block, const BlockHash& hash, uint64_t offset);

}  // namespace flexkv
