// What the CUDA agent relies on, as a list of small checks of a cuda::Api. They are run against the
// fake runtime (fake_cuda_test.cc) and, where there is a GPU, against the real one (tests/gpu), so
// that the fake promises nothing that the real one does not keep.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <vector>

#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv {

// Where rules are checked. The calling thread need not have chosen the device.
class RulesDevice {
 public:
  virtual ~RulesDevice() = default;
  virtual cuda::Api& api() = 0;
  // Keeps the stream busy for about a millisecond; by copies inside the device unless overridden.
  virtual void Delay(cuda::Stream stream);
  // Captures what is enqueued on the stream, in global mode, on the calling thread. BeginCapture is
  // false where that cannot be tried; EndCapture is whether a usable graph came of it.
  virtual bool BeginCapture(cuda::Stream) { return false; }
  virtual bool EndCapture(cuda::Stream) { return false; }

 private:
  void* delay_memory_ = nullptr;
};

struct CudaRule {
  const char* name;
  std::string (*check)(RulesDevice& device);  // "": holds; "skip: why"; else what went wrong
  bool provokes = false;                      // does what the agent never does
};
std::vector<CudaRule> CudaRules();

// Streams, events and memory of one rule, given back at its end, and its first complaint.
class RuleLab {
 public:
  explicit RuleLab(RulesDevice& rules_device);
  ~RuleLab();

  cuda::Stream Stream(int priority = 0);
  cuda::Event Event(bool timed = false);
  std::byte* Device(size_t bytes);
  std::byte* Host(size_t bytes);          // registered
  std::byte* Unregistered(size_t bytes);  // on pages of its own

  void Copy(void* target, const void* source, size_t bytes, cuda::Stream stream);
  void Sync(cuda::Stream stream);
  void Fill(std::byte* host, size_t bytes, uint64_t pattern);
  bool Holds(const std::byte* host, size_t bytes, uint64_t pattern);
  void Upload(std::byte* device, size_t bytes, uint64_t pattern);
  std::vector<std::byte> Download(const std::byte* device, size_t bytes);

  bool Expect(bool condition, const std::string& otherwise);
  bool Ok(cuda::Error error, const char* call);
  const std::string& complaint() const { return complaint_; }
  bool fine() const { return complaint_.empty(); }

  RulesDevice& device;
  cuda::Api& api;

 private:
  std::vector<std::function<void()>> undo_;
  std::string complaint_;
};

namespace internal {
void AddStreamRules(std::vector<CudaRule>* rules);
void AddCopyRules(std::vector<CudaRule>* rules);
void AddMemoryRules(std::vector<CudaRule>* rules);
}  // namespace internal

}  // namespace flexkv
