// The few calls of the CUDA runtime that the agent needs, as an interface without CUDA's headers.
// Everything above it is plain C++ and tested with a fake that runs streams in every legal order
// (tests/support/fake_cuda.h); the real one lives in a library of its own (cuda_library.h), so that
// one build serves machines with and without a driver.
//
// Only plain data crosses it: no exceptions, no standard library types, nothing allocated on one
// side and freed on the other. Calls are made from several threads; as in CUDA, an error may belong
// to earlier asynchronous work. Meanings follow the CUDA 13 runtime documentation.
#pragma once

#include <cstddef>
#include <cstdint>

namespace flexkv::cuda {

// Rises with every change of this file.
inline constexpr uint32_t kApiVersion = 1;

using Stream = void*;  // cudaStream_t; never the legacy default stream
using Event = void*;   // cudaEvent_t

enum class Error : int32_t {
  kOk = 0,
  kNotReady,           // QueryEvent: not yet
  kInvalid,            // arguments
  kNoMemory,           // device memory, or memory that can be locked
  kAlreadyRegistered,  // RegisterHost
  kNotRegistered,      // UnregisterHost
  kNotPermitted,       // by the system (locked memory), or while capturing
  kNotSupported,
  kCapture,    // the call would have invalidated a capture, or met one that was
  kUnloading,  // the process is ending: the driver takes no calls any more
  kSticky,     // the context is lost: no call works from here on, memory on the device is anything
  kOther,
};
inline bool Ok(Error error) { return error == Error::kOk; }

struct DeviceInfo {
  char name[64];  // "NVIDIA H200"
  int32_t compute_major, compute_minor;
  int32_t num_sms;
  int32_t runtime_version;  // 13000
  int32_t driver_version;
  int32_t pci_bus;         // for people
  bool kernels_read_host;  // registered host memory has the same address in kernels
};

// One copy of CopyKernel; any alignment, no overlap.
struct CopyItem {
  void* target;
  const void* source;
  uint64_t bytes;
};

class Api {
 public:
  virtual ~Api() = default;

  // One sentence on this thread's last error; static or thread-local storage.
  virtual const char* LastMessage() = 0;

  // --- threads ---
  virtual Error UseDevice() = 0;     // makes the device this api was opened for current
  virtual Error RelaxCapture() = 0;  // this thread's calls never invalidate captures of others
  virtual Error GetDeviceInfo(DeviceInfo* info) = 0;

  // --- streams and events ---
  // Non-blocking (no order with the legacy stream). Priority 0: the lowest there is; 1: above it.
  virtual Error CreateStream(int priority, Stream* stream) = 0;
  virtual Error DestroyStream(Stream stream) = 0;
  virtual Error SynchronizeStream(Stream stream) = 0;  // waits on the processor
  virtual Error IsCapturing(Stream stream, bool* capturing) = 0;
  virtual Error CreateEvent(bool timed, Event* event) = 0;
  virtual Error DestroyEvent(Event event) = 0;
  virtual Error RecordEvent(Event event, Stream stream) = 0;
  virtual Error WaitEvent(Stream stream, Event event) = 0;  // the stream waits, the caller does not
  virtual Error QueryEvent(Event event) = 0;                // kOk: done, or never recorded
  virtual Error ElapsedNs(Event start, Event end, int64_t* ns) = 0;  // both timed and done

  // --- memory ---
  // Registered memory may be copied to and from asynchronously; other host memory may not be passed
  // to CopyBatch or CopyKernel (the runtime would make the call synchronous or refuse it).
  virtual Error RegisterHost(void* memory, size_t bytes) = 0;
  virtual Error UnregisterHost(void* memory) = 0;               // the address registered
  virtual Error AllocateHost(size_t bytes, void** memory) = 0;  // registered
  virtual Error FreeHost(void* memory) = 0;
  virtual Error AllocateDevice(size_t bytes, void** memory) = 0;
  virtual Error FreeDevice(void* memory) = 0;

  // --- copies ---
  // `count` copies by the copy engines, in any order among themselves, in stream order as a whole.
  // After an error some of them may have been accepted and may still run.
  virtual Error CopyBatch(void* const* targets, const void* const* sources, const size_t* sizes,
                          size_t count, Stream stream) = 0;
  // The same by a kernel on at most `sms` SMs. `items` lie in memory of AllocateHost and stay
  // untouched until the copies are done.
  virtual Error CopyKernel(const CopyItem* items, size_t count, int sms, Stream stream) = 0;

  // --- profiles (NVTX) ---
  virtual void PushRange(const char* name) = 0;
  virtual void PopRange() = 0;
};

}  // namespace flexkv::cuda
