// Memory that FakeCuda knows: allocated, registered, or adopted from the test.
#include <cstring>

#include "tests/support/fake_cuda.h"

namespace flexkv {

// Whether work that was enqueued reads or writes there.
bool FakeCuda::InUse(const void* memory, uint64_t bytes) const {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory), end = begin + bytes;
  const auto touches = [&](const void* other, uint64_t other_bytes) {
    const uintptr_t at = reinterpret_cast<uintptr_t>(other);
    return at < end && begin < at + other_bytes;
  };
  for (const auto& [handle, stream] : streams_) {
    for (const Op& op : stream->ops) {
      for (const Copy& copy : op.copies) {
        if (touches(copy.target, copy.bytes) || touches(copy.source, copy.bytes)) return true;
      }
      if (op.items != nullptr && touches(op.items, op.listed.size() * sizeof(*op.items))) {
        return true;
      }
    }
  }
  return false;
}

uint64_t FakeCuda::RegisteredBytes() const {
  uint64_t bytes = 0;
  for (const auto& [begin, memory] : memory_) {
    if (memory.kind == MemoryKind::kRegistered) bytes += memory.bytes;
  }
  return bytes;
}

cuda::Error FakeCuda::RegisterHost(void* memory, size_t bytes) {
  Lock lock(mutex_);
  if (Error error = Enter("RegisterHost"); error != Error::kOk) return error;
  if (Error error = Unsafe("RegisterHost"); error != Error::kOk) return error;
  if (memory == nullptr || bytes == 0) return Fail(Error::kInvalid, "invalid argument");
  const uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  auto next = memory_.lower_bound(begin);
  if (next != memory_.end() && next->first < begin + bytes) {
    return Fail(Error::kAlreadyRegistered, "part or all of the memory is registered");
  }
  if (next != memory_.begin()) {
    const auto& [at, before] = *std::prev(next);
    if (at + before.bytes > begin) {
      return Fail(Error::kAlreadyRegistered, "part or all of the memory is registered");
    }
  }
  if (RegisteredBytes() + bytes > options_.lockable_bytes) {
    return Fail(Error::kNotPermitted, "the limit on locked memory is reached");
  }
  memory_.emplace(begin, Memory{.kind = MemoryKind::kRegistered, .bytes = bytes});
  return Error::kOk;
}

cuda::Error FakeCuda::UnregisterHost(void* memory) {
  return Release("UnregisterHost", memory, MemoryKind::kRegistered);
}

cuda::Error FakeCuda::Allocate(MemoryKind kind, size_t bytes, void** memory) {
  if (memory == nullptr || bytes == 0) return Fail(Error::kInvalid, "invalid argument");
  if (bytes >> 40 != 0) return Fail(Error::kNoMemory, "out of memory");
  Memory made{.kind = kind, .bytes = bytes, .owned = std::make_unique<std::byte[]>(bytes)};
  std::memset(made.owned.get(), 0xCD, bytes);
  *memory = made.owned.get();
  memory_.emplace(reinterpret_cast<uintptr_t>(*memory), std::move(made));
  return Error::kOk;
}

cuda::Error FakeCuda::Release(const char* name, void* memory, MemoryKind kind) {
  Lock lock(mutex_);
  if (Error error = Enter(name); error != Error::kOk) return error;
  if (Error error = Unsafe(name); error != Error::kOk) return error;
  auto it = memory_.find(reinterpret_cast<uintptr_t>(memory));
  if (it == memory_.end() || it->second.kind != kind) {
    if (kind == MemoryKind::kRegistered) return Fail(Error::kNotRegistered, "not registered");
    Violation(std::string(name) + " of memory that was not allocated so");
    return Fail(Error::kInvalid, "invalid argument");
  }
  if (InUse(memory, it->second.bytes)) {
    Violation(std::string(name) + " of memory that copies under way use");
    freed_too_early_.push_back(std::move(it->second.owned));
  }
  memory_.erase(it);
  return Error::kOk;
}

cuda::Error FakeCuda::AllocateHost(size_t bytes, void** memory) {
  Lock lock(mutex_);
  if (Error error = Enter("AllocateHost"); error != Error::kOk) return error;
  CheckThread("AllocateHost");
  if (Error error = Unsafe("AllocateHost"); error != Error::kOk) return error;
  return Allocate(MemoryKind::kHost, bytes, memory);
}

cuda::Error FakeCuda::FreeHost(void* memory) {
  return Release("FreeHost", memory, MemoryKind::kHost);
}

cuda::Error FakeCuda::AllocateDevice(size_t bytes, void** memory) {
  Lock lock(mutex_);
  if (Error error = Enter("AllocateDevice"); error != Error::kOk) return error;
  CheckThread("AllocateDevice");
  if (Error error = Unsafe("AllocateDevice"); error != Error::kOk) return error;
  return Allocate(MemoryKind::kDevice, bytes, memory);
}

cuda::Error FakeCuda::FreeDevice(void* memory) {
  return Release("FreeDevice", memory, MemoryKind::kDevice);
}

void FakeCuda::AdoptDevice(std::span<std::byte> memory) {
  Lock lock(mutex_);
  memory_.emplace(reinterpret_cast<uintptr_t>(memory.data()),
                  Memory{.kind = MemoryKind::kAdopted, .bytes = memory.size()});
}

void FakeCuda::ForgetDevice(std::span<std::byte> memory) {
  Lock lock(mutex_);
  memory_.erase(reinterpret_cast<uintptr_t>(memory.data()));
}

void FakeCuda::Sleep() {
  Lock lock(mutex_);
  std::erase_if(memory_,
                [](const auto& entry) { return entry.second.kind == MemoryKind::kAdopted; });
}

}  // namespace flexkv
