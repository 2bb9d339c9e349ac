// Parts of CudaAgentSim that stand by themselves.
#pragma once

#include <atomic>
#include <chrono>
#include <map>
#include <mutex>
#include <span>
#include <thread>

#include "flexkv/transfer/device_agent.h"
#include "tests/transfer/cuda/cuda_agent_sim.h"

namespace flexkv {

class CudaAgentSim::Mapper : public SegmentMapper {
 public:
  std::span<std::byte> Map(SegmentId segment) override {
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

// Whether a block of one view is the content of `hash` from `offset` on.
bool FragmentsHold(const LayerView& view, uint32_t block, const BlockHash& hash, uint64_t offset);

}  // namespace flexkv
