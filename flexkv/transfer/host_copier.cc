#include "flexkv/transfer/host_copier.h"

#include <chrono>
#include <iterator>
#include <thread>
#include <utility>

#include "flexkv/base/fault.h"
#include "flexkv/transfer/host_copy.h"

namespace flexkv {
namespace internal {
namespace {
constexpr auto kSlowChunk = std::chrono::milliseconds(20);
}

void HostCopier::Start(const ChunkJob& job) {
  const TimeNs start = clock_.Now();
  if (FaultFires("agent.slow_chunk")) std::this_thread::sleep_for(kSlowChunk);
  Copy(job);
  if (job.route == Route::kCpuToDevice && FaultFires("agent.flip_byte")) {
    FlipBytes(job.pieces.front());
  }
  std::lock_guard<std::mutex> lock(mutex_);
  ends_.push_back({.ticket = job.ticket, .ok = true, .copy_ns = clock_.Now() - start});
}

void HostCopier::Collect(std::vector<ChunkEnd>* ends) {
  std::lock_guard<std::mutex> lock(mutex_);
  std::move(ends_.begin(), ends_.end(), std::back_inserter(*ends));
  ends_.clear();
}

void HostCopier::Copy(const ChunkJob& job) const {
  BlockCopier copier;
  for (const ChunkPiece& piece : job.pieces) {
    for (uint32_t at = piece.first_layer; at < piece.end_layer; ++at) {
      const ShardMap::Layer& layer = map_.layers[at];
      const uint32_t block = piece.block_ids[layer.group];
      std::byte* packed = piece.shard + layer.offset;
      job.route == Route::kCpuToDevice ? copier.Scatter(layer.view, block, packed)
                                       : copier.Gather(layer.view, block, packed);
    }
  }
  copier.Flush();
}

// The highest byte of a number, so that the engine's tokens show it.
void HostCopier::FlipBytes(const ChunkPiece& piece) const {
  for (uint32_t at = piece.first_layer; at < piece.end_layer; ++at) {
    const ShardMap::Layer& layer = map_.layers[at];
    auto* fragment = reinterpret_cast<std::byte*>(
        layer.view.base +
        piece.block_ids[layer.group] * static_cast<uint64_t>(layer.view.block_stride_bytes));
    fragment[layer.view.fragment_bytes - 1] ^= std::byte{0x40};
  }
}

void HostDevice::SegmentMapped(SegmentId segment, std::span<std::byte> memory) {
  std::lock_guard<std::mutex> lock(mutex_);
  segment_bytes_[segment] = memory.size();
}

void HostDevice::SegmentGone(SegmentId segment) {
  std::lock_guard<std::mutex> lock(mutex_);
  segment_bytes_.erase(segment);
}

DeviceReport HostDevice::Report() const {
  DeviceReport report;
  report.device = "cpu";
  std::lock_guard<std::mutex> lock(mutex_);
  for (const auto& [segment, bytes] : segment_bytes_) report.arena_bytes += bytes;
  return report;
}

}  // namespace internal

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeHostAgent(DeviceAgent::Options options,
                                                           KvLayout layout, SegmentMapper* mapper,
                                                           std::function<void()> on_result) {
  return internal::MakeAgent(options, layout, mapper,
                             std::make_unique<internal::HostDevice>(layout), std::move(on_result));
}

}  // namespace flexkv
