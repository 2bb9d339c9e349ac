// The real cuda::Api: libflexkv_cuda.so, with CUDA's runtime inside. The runtime finds the driver
// by itself when it is first called, so the library loads on machines without one and says so.
//
// The runtime keeps a last error per thread. Ours is a copy of the runtime with thread state of its
// own; still it is cleared after every error, so that a later call is not blamed for an earlier
// one. An error of work done before shows in any call: sticky ones come back from each.
#include <cuda_runtime_api.h>
#include <nvtx3/nvToolsExt.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <new>

#include "flexkv/transfer/cuda/copy_kernel.h"
#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {
namespace {

thread_local char last_message[256] = "";

Error Translate(cudaError_t error) {
  switch (error) {
    case cudaSuccess:
      return Error::kOk;
    case cudaErrorNotReady:
      return Error::kNotReady;
    case cudaErrorInvalidValue:
    case cudaErrorInvalidConfiguration:
    case cudaErrorInvalidHostPointer:
    case cudaErrorInvalidDevicePointer:
    case cudaErrorInvalidMemcpyDirection:
    case cudaErrorInvalidResourceHandle:
    case cudaErrorInvalidDevice:
      return Error::kInvalid;
    case cudaErrorMemoryAllocation:
    case cudaErrorLaunchOutOfResources:
      return Error::kNoMemory;
    case cudaErrorHostMemoryAlreadyRegistered:
      return Error::kAlreadyRegistered;
    case cudaErrorHostMemoryNotRegistered:
      return Error::kNotRegistered;
    case cudaErrorNotPermitted:
    case cudaErrorOperatingSystem:
      return Error::kNotPermitted;
    case cudaErrorNotSupported:
    case cudaErrorCallRequiresNewerDriver:
    case cudaErrorNotYetImplemented:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
    case cudaErrorJitCompilationDisabled:
      return Error::kNotSupported;
    case cudaErrorStreamCaptureUnsupported:
    case cudaErrorStreamCaptureInvalidated:
    case cudaErrorStreamCaptureMerge:
    case cudaErrorStreamCaptureUnmatched:
    case cudaErrorStreamCaptureUnjoined:
    case cudaErrorStreamCaptureIsolation:
    case cudaErrorStreamCaptureImplicit:
    case cudaErrorCapturedEvent:
    case cudaErrorStreamCaptureWrongThread:
      return Error::kCapture;
    case cudaErrorCudartUnloading:
      return Error::kUnloading;
    case cudaErrorDeviceUninitialized:
    case cudaErrorECCUncorrectable:
    case cudaErrorNvlinkUncorrectable:
    case cudaErrorContained:
    case cudaErrorIllegalAddress:
    case cudaErrorLaunchTimeout:
    case cudaErrorContextIsDestroyed:
    case cudaErrorAssert:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorMisalignedAddress:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorLaunchFailure:
    case cudaErrorTensorMemoryLeak:
    case cudaErrorMpsClientTerminated:
    case cudaErrorExternalDevice:
      return Error::kSticky;
    default:
      return Error::kOther;
  }
}

void Say(const char* call, cudaError_t error) {
  std::snprintf(last_message, sizeof(last_message), "%s: %s (%s)", call, cudaGetErrorString(error),
                cudaGetErrorName(error));
}

Error Refuse(const char* sentence) {
  std::snprintf(last_message, sizeof(last_message), "%s", sentence);
  return Error::kInvalid;
}

Error Done(const char* call, cudaError_t error) {
  if (error == cudaSuccess) return Error::kOk;
  const Error translated = Translate(error);
  if (translated != Error::kNotReady) Say(call, error);
  if (translated != Error::kSticky && translated != Error::kUnloading) cudaGetLastError();
  return translated;
}

cudaStream_t ToStream(Stream stream) { return static_cast<cudaStream_t>(stream); }
cudaEvent_t ToEvent(Event event) { return static_cast<cudaEvent_t>(event); }

// The legacy stream's number; copies on it would stop every other stream of the process.
bool Legacy(Stream stream) { return stream == nullptr || ToStream(stream) == cudaStreamLegacy; }

class RealApi : public Api {
 public:
  explicit RealApi(int device) : device_(device) {
    nvtxEventAttributes_t none = {};
    none.version = NVTX_VERSION;
    range_ = none;
    range_.size = NVTX_EVENT_ATTRIB_STRUCT_SIZE;
    range_.messageType = NVTX_MESSAGE_TYPE_ASCII;
    domain_ = nvtxDomainCreateA("flexkv");
  }
  ~RealApi() override { nvtxDomainDestroy(domain_); }

  const char* LastMessage() override { return last_message; }

  Error UseDevice() override {
    const Error error = Done("cudaSetDevice", cudaSetDevice(device_));
    if (!Ok(error)) return error;
    std::lock_guard<std::mutex> lock(mutex_);  // the first thread loads the kernel
    if (!kernel_asked_) {
      kernel_asked_ = true;
      const Error loaded = Done("cudaFuncGetAttributes", LoadCopyKernel());
      kernel_there_.store(Ok(loaded));
      if (loaded == Error::kSticky || loaded == Error::kUnloading) return loaded;
    }
    return Error::kOk;
  }

  Error RelaxCapture() override {
    cudaStreamCaptureMode mode = cudaStreamCaptureModeRelaxed;
    return Done("cudaThreadExchangeStreamCaptureMode", cudaThreadExchangeStreamCaptureMode(&mode));
  }

  Error GetDeviceInfo(DeviceInfo* info) override {
    *info = DeviceInfo{};
    cudaDeviceProp properties;
    Error error = Done("cudaGetDeviceProperties", cudaGetDeviceProperties(&properties, device_));
    if (!Ok(error)) return error;
    std::snprintf(info->name, sizeof(info->name), "%.63s", properties.name);
    info->compute_major = properties.major;
    info->compute_minor = properties.minor;
    info->num_sms = properties.multiProcessorCount;
    info->pci_bus = properties.pciBusID;
    error = Done("cudaRuntimeGetVersion", cudaRuntimeGetVersion(&info->runtime_version));
    if (!Ok(error)) return error;
    error = Done("cudaDriverGetVersion", cudaDriverGetVersion(&info->driver_version));
    if (!Ok(error)) return error;
    int same_address = 0;
    error = Done("cudaDeviceGetAttribute",
                 cudaDeviceGetAttribute(&same_address, cudaDevAttrCanUseHostPointerForRegisteredMem,
                                        device_));
    info->kernels_read_host = same_address != 0;
    return error;
  }

  Error CreateStream(int priority, Stream* stream) override {
    int lowest = 0, highest = 0;  // numbers fall as priorities rise
    Error error = Done("cudaDeviceGetStreamPriorityRange",
                       cudaDeviceGetStreamPriorityRange(&lowest, &highest));
    if (!Ok(error)) return error;
    cudaStream_t created = nullptr;
    error = Done("cudaStreamCreateWithPriority",
                 cudaStreamCreateWithPriority(&created, cudaStreamNonBlocking,
                                              std::max(highest, lowest - std::max(priority, 0))));
    *stream = created;
    return error;
  }
  Error DestroyStream(Stream stream) override {
    if (Legacy(stream)) return Refuse("DestroyStream: the legacy stream");
    return Done("cudaStreamDestroy", cudaStreamDestroy(ToStream(stream)));
  }
  Error SynchronizeStream(Stream stream) override {
    if (Legacy(stream)) return Refuse("SynchronizeStream: the legacy stream");
    return Done("cudaStreamSynchronize", cudaStreamSynchronize(ToStream(stream)));
  }

  Error IsCapturing(Stream stream, bool* capturing) override {
    cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
    const cudaError_t error = cudaStreamIsCapturing(ToStream(stream), &status);
    // The engine computes on the legacy stream, and a stream that it is ordered with captures.
    const bool implicit = error == cudaErrorStreamCaptureImplicit;
    *capturing = implicit || status != cudaStreamCaptureStatusNone;
    if (implicit) {
      cudaGetLastError();
      return Error::kOk;
    }
    return Done("cudaStreamIsCapturing", error);
  }

  Error CreateEvent(bool timed, Event* event) override {
    cudaEvent_t created = nullptr;
    const Error error =
        Done("cudaEventCreateWithFlags",
             cudaEventCreateWithFlags(&created, timed ? cudaEventDefault : cudaEventDisableTiming));
    *event = created;
    return error;
  }
  Error DestroyEvent(Event event) override {
    return Done("cudaEventDestroy", cudaEventDestroy(ToEvent(event)));
  }
  Error RecordEvent(Event event, Stream stream) override {
    return Done("cudaEventRecord", cudaEventRecord(ToEvent(event), ToStream(stream)));
  }
  Error WaitEvent(Stream stream, Event event) override {
    return Done("cudaStreamWaitEvent",
                cudaStreamWaitEvent(ToStream(stream), ToEvent(event), cudaEventWaitDefault));
  }
  Error QueryEvent(Event event) override {
    return Done("cudaEventQuery", cudaEventQuery(ToEvent(event)));
  }
  Error ElapsedNs(Event start, Event end, int64_t* ns) override {
    float milliseconds = 0;
    const Error error = Done("cudaEventElapsedTime",
                             cudaEventElapsedTime(&milliseconds, ToEvent(start), ToEvent(end)));
    *ns = static_cast<int64_t>(static_cast<double>(milliseconds) * 1e6);
    return error;
  }

  Error RegisterHost(void* memory, size_t bytes) override {
    return Done("cudaHostRegister",
                cudaHostRegister(memory, bytes, cudaHostRegisterPortable | cudaHostRegisterMapped));
  }
  Error UnregisterHost(void* memory) override {
    return Done("cudaHostUnregister", cudaHostUnregister(memory));
  }
  Error AllocateHost(size_t bytes, void** memory) override {
    *memory = nullptr;
    return Done("cudaHostAlloc",
                cudaHostAlloc(memory, bytes, cudaHostAllocPortable | cudaHostAllocMapped));
  }
  Error FreeHost(void* memory) override { return Done("cudaFreeHost", cudaFreeHost(memory)); }
  Error AllocateDevice(size_t bytes, void** memory) override {
    *memory = nullptr;
    return Done("cudaMalloc", cudaMalloc(memory, bytes));
  }
  Error FreeDevice(void* memory) override { return Done("cudaFree", cudaFree(memory)); }

  Error CopyBatch(void* const* targets, const void* const* sources, const size_t* sizes,
                  size_t count, Stream stream) override {
    if (Legacy(stream)) return Refuse("CopyBatch: the legacy stream");
    if (count == 0) return Error::kOk;
    // A batch takes no empty copies, and one copy needs no batch.
    const bool single = count == 1 || std::find(sizes, sizes + count, size_t{0}) != sizes + count;
    if (!single && batches_.load(std::memory_order_relaxed)) {
      cudaMemcpyAttributes attributes = {};
      attributes.srcAccessOrder = cudaMemcpySrcAccessOrderStream;
      attributes.flags = cudaMemcpyFlagPreferOverlapWithCompute;
      size_t from = 0;
      const Error error = Done("cudaMemcpyBatchAsync",
                               cudaMemcpyBatchAsync(targets, sources, sizes, count, &attributes,
                                                    &from, 1, ToStream(stream)));
      if (error != Error::kNotSupported) return error;
      batches_.store(false, std::memory_order_relaxed);  // this driver has none
    }
    for (size_t i = 0; i < count; ++i) {
      if (sizes[i] == 0) continue;
      const Error error = Done(
          "cudaMemcpyAsync",
          cudaMemcpyAsync(targets[i], sources[i], sizes[i], cudaMemcpyDefault, ToStream(stream)));
      if (!Ok(error)) return error;
    }
    return Error::kOk;
  }

  Error CopyKernel(const CopyItem* items, size_t count, int sms, Stream stream) override {
    if (Legacy(stream)) return Refuse("CopyKernel: the legacy stream");
    if (sms < 1) return Refuse("CopyKernel: no SM to run on");
    if (count == 0) return Error::kOk;
    if (!kernel_there_.load(std::memory_order_relaxed)) {
      Refuse("CopyKernel: this device cannot run the kernel, or UseDevice was never called");
      return Error::kNotSupported;
    }
    return Done("cudaLaunchKernel", LaunchCopyKernel(items, count, sms, ToStream(stream)));
  }

  void PushRange(const char* name) override {
    nvtxEventAttributes_t range = range_;
    range.message.ascii = name;
    nvtxDomainRangePushEx(domain_, &range);
  }
  void PopRange() override { nvtxDomainRangePop(domain_); }

 private:
  const int device_;
  nvtxEventAttributes_t range_ = {};
  nvtxDomainHandle_t domain_ = nullptr;
  std::mutex mutex_;
  bool kernel_asked_ = false;
  std::atomic<bool> kernel_there_{false};
  std::atomic<bool> batches_{true};
};

// Why there is no such device, as a sentence; false: there is.
bool Missing(int device, char* message, size_t bytes) {
  int driver = 0;
  if (cudaDriverGetVersion(&driver) != cudaSuccess || driver == 0) {
    std::snprintf(message, bytes, "this machine has no NVIDIA driver");
    return true;
  }
  int devices = 0;
  const cudaError_t error = cudaGetDeviceCount(&devices);
  if (error == cudaErrorInsufficientDriver) {
    std::snprintf(
        message, bytes, "the NVIDIA driver is for CUDA %d.%d, and %d.%d or newer is needed",
        driver / 1000, driver % 1000 / 10, CUDART_VERSION / 1000, CUDART_VERSION % 1000 / 10);
    return true;
  }
  if (error != cudaSuccess) {
    std::snprintf(message, bytes, "the NVIDIA driver does not work: %s (%s)",
                  cudaGetErrorString(error), cudaGetErrorName(error));
    return true;
  }
  if (device < 0 || device >= devices) {
    std::snprintf(message, bytes, "there is no CUDA device %d; this process sees %d", device,
                  devices);
    return true;
  }
  return false;
}

}  // namespace
}  // namespace flexkv::cuda

extern "C" __attribute__((visibility("default"))) flexkv::cuda::Api* flexkv_cuda_open(
    uint32_t api_version, int device, char* message, size_t message_bytes) {
  using flexkv::cuda::kApiVersion;
  if (api_version != kApiVersion) {
    std::snprintf(message, message_bytes, "version %u of the library is not version %u",
                  kApiVersion, api_version);
    return nullptr;
  }
  if (flexkv::cuda::Missing(device, message, message_bytes)) {
    cudaGetLastError();
    return nullptr;
  }
  return new (std::nothrow) flexkv::cuda::RealApi(device);
}
