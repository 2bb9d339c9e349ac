// What a device agent is made of: the core, which knows ops and order, over the device's side,
// which moves bytes.
#pragma once

#include <functional>
#include <memory>
#include <span>

#include "absl/status/statusor.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/chunk_copier.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv::internal {

// The device's side of an agent: its copier, and what it wants to hear beside chunks. The calls are
// those of DeviceAgent of the same name, handed through, on the caller's thread.
class AgentDevice {
 public:
  virtual ~AgentDevice() = default;  // every chunk has ended, the agent's thread too

  virtual ChunkCopier* copier() = 0;  // the same for the device's life
  virtual void SegmentMapped(SegmentId /*segment*/, std::span<std::byte> /*memory*/) {}
  virtual void SegmentGone(SegmentId /*segment*/) {}
  virtual void SetCopyOptions(const CopyOptions& /*options*/) {}
  virtual DeviceReport Report() const = 0;
};

// InvalidArgument: the layout, the options, no mapper or no device. The mapper outlives the agent.
absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeAgent(const DeviceAgent::Options& options,
                                                       const KvLayout& layout,
                                                       SegmentMapper* mapper,
                                                       std::unique_ptr<AgentDevice> device,
                                                       std::function<void()> on_result);

}  // namespace flexkv::internal
