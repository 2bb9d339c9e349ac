#include "tests/transfer/cuda/cuda_rules.h"

#include <sys/mman.h>

#include <cstring>

#include "tests/support/test_seed.h"

namespace flexkv {

void RulesDevice::Delay(cuda::Stream stream) {
  constexpr size_t kBytes = size_t{64} << 20;
  cuda::Api& cuda = api();
  if (delay_memory_ == nullptr && !cuda::Ok(cuda.AllocateDevice(2 * kBytes, &delay_memory_)))
    return;
  for (int i = 0; i < 16; ++i) {
    void* const target = static_cast<std::byte*>(delay_memory_) + kBytes;
    const void* const source = delay_memory_;
    (void)cuda.CopyBatch(&target, &source, &kBytes, 1, stream);
  }
}

RuleLab::RuleLab(RulesDevice& rules_device) : device(rules_device), api(rules_device.api()) {
  Ok(api.UseDevice(), "UseDevice");
}

RuleLab::~RuleLab() {
  for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) (*undo)();
}

bool RuleLab::Expect(bool condition, const std::string& otherwise) {
  if (!condition && complaint_.empty()) complaint_ = otherwise;
  return condition;
}

bool RuleLab::Ok(cuda::Error error, const char* call) {
  if (cuda::Ok(error)) return true;
  const char* message = api.LastMessage();
  return Expect(false, std::string(call) + ": error " + std::to_string(static_cast<int>(error)) +
                           ", " + (message == nullptr ? "" : message));
}

cuda::Stream RuleLab::Stream(int priority) {
  cuda::Stream stream = nullptr;
  if (!Ok(api.CreateStream(priority, &stream), "CreateStream")) return nullptr;
  undo_.push_back([this, stream] {
    (void)api.SynchronizeStream(stream);
    (void)api.DestroyStream(stream);
  });
  return stream;
}

cuda::Event RuleLab::Event(bool timed) {
  cuda::Event event = nullptr;
  if (!Ok(api.CreateEvent(timed, &event), "CreateEvent")) return nullptr;
  undo_.push_back([this, event] { (void)api.DestroyEvent(event); });
  return event;
}

std::byte* RuleLab::Device(size_t bytes) {
  void* memory = nullptr;
  if (!Ok(api.AllocateDevice(bytes, &memory), "AllocateDevice")) return nullptr;
  undo_.push_back([this, memory] { (void)api.FreeDevice(memory); });
  return static_cast<std::byte*>(memory);
}

std::byte* RuleLab::Host(size_t bytes) {
  void* memory = nullptr;
  if (!Ok(api.AllocateHost(bytes, &memory), "AllocateHost")) return nullptr;
  undo_.push_back([this, memory] { (void)api.FreeHost(memory); });
  std::memset(memory, 0, bytes);
  return static_cast<std::byte*>(memory);
}

std::byte* RuleLab::Unregistered(size_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  if (!Expect(memory != MAP_FAILED, "mmap failed")) return nullptr;
  undo_.push_back([memory, bytes] { munmap(memory, bytes); });
  return static_cast<std::byte*>(memory);
}

void RuleLab::Copy(void* target, const void* source, size_t bytes, cuda::Stream stream) {
  Ok(api.CopyBatch(&target, &source, &bytes, 1, stream), "CopyBatch");
}

void RuleLab::Sync(cuda::Stream stream) { Ok(api.SynchronizeStream(stream), "SynchronizeStream"); }

void RuleLab::Fill(std::byte* host, size_t bytes, uint64_t pattern) {
  TestRng rng(pattern);
  for (size_t i = 0; i < bytes; i += 8) {
    const uint64_t word = rng.Next();
    std::memcpy(host + i, &word, bytes - i < 8 ? bytes - i : 8);
  }
}

bool RuleLab::Holds(const std::byte* host, size_t bytes, uint64_t pattern) {
  std::vector<std::byte> want(bytes);
  Fill(want.data(), bytes, pattern);
  return std::memcmp(host, want.data(), bytes) == 0;
}

void RuleLab::Upload(std::byte* target, size_t bytes, uint64_t pattern) {
  std::byte* host = Host(bytes);
  const cuda::Stream stream = Stream();
  if (!fine()) return;
  Fill(host, bytes, pattern);
  Copy(target, host, bytes, stream);
  Sync(stream);
}

std::vector<std::byte> RuleLab::Download(const std::byte* source, size_t bytes) {
  std::byte* host = Host(bytes);
  const cuda::Stream stream = Stream();
  if (!fine()) return std::vector<std::byte>(bytes);
  Copy(host, source, bytes, stream);
  Sync(stream);
  return {host, host + bytes};
}

std::vector<CudaRule> CudaRules() {
  std::vector<CudaRule> rules;
  internal::AddStreamRules(&rules);
  internal::AddCopyRules(&rules);
  internal::AddMemoryRules(&rules);
  return rules;
}

}  // namespace flexkv
