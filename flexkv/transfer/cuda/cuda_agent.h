// The device agent for KV tensors in the memory of an NVIDIA GPU.
#pragma once

#include <functional>
#include <memory>

#include "absl/status/statusor.h"
#include "flexkv/transfer/cuda/cuda_api.h"
#include "flexkv/transfer/device_agent.h"

namespace flexkv {

// `api` is kept and used from the agent's thread, the registering thread and engine threads.
// `route_cache_path`: file in which measured copy curves are kept by GPU model; "" = none is kept.
// InvalidArgument: the layout or options. Internal: the device refuses streams or events.
absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeCudaAgent(DeviceAgent::Options options,
                                                           KvLayout layout, SegmentMapper* mapper,
                                                           std::unique_ptr<cuda::Api> api,
                                                           std::string route_cache_path,
                                                           std::function<void()> on_result);

}  // namespace flexkv
