// Arena segments as the SSD devices know them: told to them once their pages are there, and not
// given back before the last device has let go.
//
// Why not told when they are made: registering pins pages and makes those that are missing one by
// one, 6 s for 1 GiB against 0.06 s once they are there, and the device does nothing else
// meanwhile.
//
// Why the real Destroy waits: a device that still has a segment registered would, when the same
// address comes to mean another segment, move bytes of pages that are gone. RemoveMemory takes
// effect in order with other commands (ssd_device.h), so after its result nothing stale is left.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <span>
#include <vector>

#include "flexkv/storage/segment_store.h"

namespace flexkv {

class SsdDevicePort;

// Thread: the control thread only.
class SsdMemory : public SegmentStore {
 public:
  // `segments` and the ports outlive this, except as Abandon says.
  explicit SsdMemory(MemfdSegmentStore* segments) : segments_(segments) {}
  // `tell` false: devices are told of no memory.
  void SetPorts(std::vector<SsdDevicePort*> ports, bool tell) {
    ports_ = std::move(ports);
    tell_ = tell;
  }
  // Tells the devices of the segments whose pages are there. Call now and then.
  void TellPrefaulted();

  absl::StatusOr<SegmentId> Create(uint64_t bytes) override;
  // REQUIRES: no command under way uses the segment.
  void Destroy(SegmentId segment) override;

  // A device has let go of the segment.
  void OnRemoved(SegmentId segment);
  // The devices are closed: what still waits for them is destroyed.
  void Abandon();

  // `bytes` from `offset` of the segment in the daemon's own mapping; empty when it is not wholly
  // within, not aligned to 4 KiB, or the segment is unknown or being destroyed.
  std::span<std::byte> Find(SegmentId segment, uint64_t offset, uint64_t bytes) const;
  size_t dying() const { return dying_.size(); }

 private:
  MemfdSegmentStore* segments_;
  std::vector<SsdDevicePort*> ports_;
  bool tell_ = true;
  std::map<SegmentId, std::span<std::byte>> memory_;
  std::set<SegmentId> untold_;         // of those, the ones that no device knows yet
  std::map<SegmentId, size_t> dying_;  // devices that have not let go yet
};

}  // namespace flexkv
