#include "flexkv/transfer/cuda/cuda_agent.h"

#include <algorithm>
#include <mutex>
#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/transfer/agent_core.h"
#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/cuda/copy_route.h"
#include "flexkv/transfer/cuda/cuda_copier.h"
#include "flexkv/transfer/cuda/pinned_segments.h"

namespace flexkv {
namespace {

using Engine = CopyOptions::Engine;
constexpr Route kRoutes[] = {Route::kDeviceToCpu, Route::kCpuToDevice};
constexpr char kLostSentence[] =
    "the GPU has failed in a way that only a restart of the engine mends; nothing is copied";

absl::Status Internal(cuda::Api* api, const char* what) {
  return absl::InternalError(absl::StrCat("the GPU refuses ", what, ": ", api->LastMessage()));
}

class CudaDevice : public internal::AgentDevice {
 public:
  CudaDevice(const CopyOptions& options, const KvLayout& layout, std::unique_ptr<cuda::Api> api)
      : options_(options), map_(layout), api_(std::move(api)), pinned_({}, api_.get()) {}
  ~CudaDevice() override { NoteLoss(); }

  absl::Status Make(uint64_t chunk_bytes, const std::string& route_cache_path) {
    if (!cuda::Ok(api_->UseDevice())) return Internal(api_.get(), "to be used");
    if (!cuda::Ok(api_->GetDeviceInfo(&info_))) return Internal(api_.get(), "to say what it is");
    FindCurve(route_cache_path);
    auto copier = cuda::CudaCopier::Create(options_, &map_, api_.get(), &pinned_, chunk_bytes);
    if (!copier.ok()) return copier.status();
    copier_ = *std::move(copier);
    for (const Route route : kRoutes) {
      copier_->SetKernelBelow(route, kernel_below_[static_cast<int>(route)]);
    }
    return absl::OkStatus();
  }

  ChunkCopier* copier() override { return copier_.get(); }
  void SegmentMapped(SegmentId segment, std::span<std::byte> memory) override {
    NoteLoss();
    pinned_.Add(segment, memory);
  }
  void SegmentGone(SegmentId segment) override {
    NoteLoss();
    pinned_.Remove(segment);
  }
  void SetCopyOptions(const CopyOptions& options) override {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      options_ = options;
    }
    copier_->SetOptions(options);
  }
  DeviceReport Report() const override;

 private:
  void FindCurve(const std::string& route_cache_path);
  uint32_t KernelBelow(Route route) const;
  void NoteLoss() {
    if (copier_ != nullptr && copier_->stats().lost) pinned_.Abandon();
  }

  mutable std::mutex mutex_;
  CopyOptions options_;
  const internal::ShardMap map_;
  const std::unique_ptr<cuda::Api> api_;
  cuda::PinnedSegments pinned_;
  cuda::DeviceInfo info_{};
  std::vector<DeviceReport::Point> curve_;
  uint32_t kernel_below_[2] = {};
  std::string measuring_problem_;
  std::unique_ptr<cuda::CudaCopier> copier_;  // last: it uses all of the above
};

// From the file when this GPU has been measured before; else measured now, once. Where nobody asks
// or it cannot be measured, the defaults serve.
void CudaDevice::FindCurve(const std::string& route_cache_path) {
  if (!info_.kernels_read_host) return;  // all goes by copy engine
  for (const Route route : kRoutes) {
    kernel_below_[static_cast<int>(route)] = cuda::DefaultKernelBelow(route);
  }
  const bool asked =
      std::ranges::any_of(options_.engine, [](Engine engine) { return engine == Engine::kAuto; });
  if (!asked) return;
  absl::StatusOr<cuda::CopyCurve> curve = absl::NotFoundError("");
  if (!route_cache_path.empty()) {
    curve = cuda::ReadCurve(route_cache_path, info_, options_.kernel_sms);
  }
  if (!curve.ok()) {
    curve = cuda::MeasureCopies(api_.get(), options_.kernel_sms);
    if (!curve.ok()) {
      measuring_problem_ = absl::StrCat("copies could not be measured: ", curve.status().message());
      return;
    }
    if (!route_cache_path.empty()) {
      if (absl::Status status = cuda::WriteCurve(route_cache_path, info_, *curve); !status.ok()) {
        measuring_problem_ = absl::StrCat("what was measured is not kept: ", status.message());
      }
    }
  }
  for (const Route route : kRoutes) {
    kernel_below_[static_cast<int>(route)] = cuda::KernelBelow(*curve, route);
  }
  curve_ = std::move(curve->points);
}

// REQUIRES: mutex_.
uint32_t CudaDevice::KernelBelow(Route route) const {
  const int direction = static_cast<int>(route);
  switch (options_.engine[direction]) {
    case Engine::kCopyEngine:
      return 0;
    case Engine::kKernel:
      return info_.kernels_read_host ? UINT32_MAX : 0;
    case Engine::kAuto:
      break;
  }
  return kernel_below_[direction];
}

DeviceReport CudaDevice::Report() const {
  const cuda::PinnedSegments::State pinned = pinned_.state();
  const cuda::CudaCopier::Stats stats = copier_->stats();
  DeviceReport report{.device = std::string(info_.name),
                      .curve = curve_,
                      .pinned_bytes = pinned.pinned_bytes,
                      .arena_bytes = pinned.mapped_bytes,
                      .staged_bytes = stats.staged_bytes,
                      .pinning_refused = pinned.refused};
  {
    std::lock_guard<std::mutex> lock(mutex_);
    for (const Route route : kRoutes) {
      report.kernel_below[static_cast<int>(route)] = KernelBelow(route);
    }
  }
  report.problem = stats.lost                ? kLostSentence
                   : !pinned.problem.empty() ? pinned.problem
                                             : measuring_problem_;
  return report;
}

}  // namespace

absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeCudaAgent(DeviceAgent::Options options,
                                                           KvLayout layout, SegmentMapper* mapper,
                                                           std::unique_ptr<cuda::Api> api,
                                                           std::string route_cache_path,
                                                           std::function<void()> on_result) {
  if (absl::Status status = layout.Validate(); !status.ok()) return status;
  if (api == nullptr || mapper == nullptr) {
    return absl::InvalidArgumentError("a CUDA agent needs a device and a mapper");
  }
  auto device = std::make_unique<CudaDevice>(options.copy, layout, std::move(api));
  if (absl::Status status = device->Make(options.chunk_bytes, route_cache_path); !status.ok()) {
    return status;
  }
  return internal::MakeAgent(options, layout, mapper, std::move(device), std::move(on_result));
}

}  // namespace flexkv
