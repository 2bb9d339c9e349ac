#include "flexkv/server/ssd_memory.h"

#include "flexkv/server/ssd_device_port.h"

namespace flexkv {

absl::StatusOr<SegmentId> SsdMemory::Create(uint64_t bytes) {
  absl::StatusOr<SegmentId> segment = segments_->Create(bytes);
  if (!segment.ok()) return segment;
  const std::span<std::byte> memory(segments_->Data(*segment), segments_->Bytes(*segment));
  memory_.emplace(*segment, memory);
  untold_.insert(*segment);
  return segment;
}

void SsdMemory::TellPrefaulted() {
  if (!tell_ || untold_.empty() || !segments_->WaitPrefaulted(0)) return;
  // Where the kernel had no memory for some pages, a device must not ask for them either.
  if (segments_->stats().prefault_failed_bytes > 0) return;
  for (const SegmentId segment : untold_) {
    for (SsdDevicePort* port : ports_) port->AddMemory(segment, memory_.at(segment));
  }
  untold_.clear();
}

void SsdMemory::Destroy(SegmentId segment) {
  const auto found = memory_.find(segment);
  if (found == memory_.end()) return;  // unknown, or dying already
  const std::byte* address = found->second.data();
  memory_.erase(found);
  if (untold_.erase(segment) > 0 || ports_.empty()) {
    segments_->Destroy(segment);
    return;
  }
  dying_.emplace(segment, ports_.size());
  for (SsdDevicePort* port : ports_) port->RemoveMemory(segment, address);
}

void SsdMemory::OnRemoved(SegmentId segment) {
  const auto found = dying_.find(segment);
  if (found == dying_.end() || --found->second > 0) return;
  dying_.erase(found);
  segments_->Destroy(segment);
}

void SsdMemory::Abandon() {
  ports_.clear();
  for (const auto& [segment, devices] : dying_) segments_->Destroy(segment);
  dying_.clear();
}

std::span<std::byte> SsdMemory::Find(SegmentId segment, uint64_t offset, uint64_t bytes) const {
  constexpr uint64_t kPageBytes = 4096;
  const auto found = memory_.find(segment);
  if (found == memory_.end() || offset % kPageBytes != 0) return {};
  const std::span<std::byte> memory = found->second;
  if (offset > memory.size() || bytes > memory.size() - offset) return {};
  return memory.subspan(offset, bytes);
}

}  // namespace flexkv
