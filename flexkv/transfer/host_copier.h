// The chunk copier of KV tensors in host memory: the processor copies, within Start.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <span>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/chunk_copier.h"

namespace flexkv::internal {

// A chunk is over when Start returns, so there is never anything to hold.
class HostCopier : public ChunkCopier {
 public:
  explicit HostCopier(const KvLayout& layout) : map_(layout) {}

  void EnterThread() override {}
  uint64_t MaxBytesInFlight(Route /*route*/) const override { return 1; }  // one at a time
  void Start(const ChunkJob& job) override;
  void Collect(std::vector<ChunkEnd>* ends) override;
  TimeNs CollectAfter() const override { return 0; }
  void SetComputeStream(uint64_t /*stream*/) override {}
  ComputeMark Mark() override { return 0; }
  bool HoldCompute(std::span<const ChunkTicket> /*tickets*/) override { return true; }

 private:
  void Copy(const ChunkJob& job) const;
  void FlipBytes(const ChunkPiece& piece) const;

  const ShardMap map_;
  const SteadyClock clock_;
  std::mutex mutex_;  // chunks are started on two threads
  std::vector<ChunkEnd> ends_;
};

class HostDevice : public AgentDevice {
 public:
  explicit HostDevice(const KvLayout& layout) : copier_(layout) {}

  ChunkCopier* copier() override { return &copier_; }
  void SegmentMapped(SegmentId segment, std::span<std::byte> memory) override;
  void SegmentGone(SegmentId segment) override;
  DeviceReport Report() const override;

 private:
  HostCopier copier_;
  mutable std::mutex mutex_;  // mapped by one thread, asked for by another
  std::map<SegmentId, uint64_t> segment_bytes_;
};

}  // namespace flexkv::internal
