// Memory that FakeCuda knows (allocated, registered, or adopted from the test), and copies as they
// are enqueued.
#include <cstdio>
#include <cstring>
#include <utility>

#include "tests/support/fake_cuda.h"

namespace flexkv {
namespace {

std::string Hex(const void* pointer) {
  char text[32];
  std::snprintf(text, sizeof(text), "%p", pointer);
  return text;
}

}  // namespace

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

// --- copies ---

bool FakeCuda::Reachable(const void* memory, uint64_t bytes, bool across) const {
  uintptr_t begin = reinterpret_cast<uintptr_t>(memory);
  const uintptr_t end = begin + bytes;
  while (true) {
    auto it = memory_.upper_bound(begin);
    if (it == memory_.begin()) return false;
    --it;
    const uintptr_t known_end = it->first + it->second.bytes;
    if (end <= known_end) return true;
    if (!across || begin >= known_end) return false;
    begin = known_end;
  }
}

// Two registrations that adjoin are two memories: the copy engine's call refuses what lies across,
// as the driver does (sgl-project/sglang#36798 met it); a kernel sees one address space.
bool FakeCuda::CheckCopy(const char* name, const Copy& copy, OpKind kind) {
  const bool across = kind == OpKind::kKernelCopies;
  for (const void* side :
       {static_cast<const void*>(copy.target), static_cast<const void*>(copy.source)}) {
    if (Reachable(side, copy.bytes, across)) continue;
    Violation(std::string(name) + ": [" + Hex(side) + ", +" + std::to_string(copy.bytes) +
              (Reachable(side, copy.bytes, true) ? ") lies across two registrations"
                                                 : ") is neither on the device nor registered"));
    return false;
  }
  return true;
}

cuda::Error FakeCuda::CopyBatch(void* const* targets, const void* const* sources,
                                const size_t* sizes, size_t count, Stream stream) {
  Dawdle();
  Lock lock(mutex_);
  const Error failure = Enter("CopyBatch");
  if (failure != Error::kOk && (lost_ || unloading_)) return failure;
  StreamState* state = CopyStream("CopyBatch", stream);
  if (state == nullptr) return Error::kInvalid;
  if (state->capture != nullptr) Violation("copies were captured into a graph");
  if (count == 0) return failure;
  Op op;
  op.kind = OpKind::kCopies;
  for (size_t i = 0; i < count; ++i) {
    const Copy copy{static_cast<std::byte*>(targets[i]), static_cast<const std::byte*>(sources[i]),
                    sizes[i]};
    if (copy.bytes == 0) return Fail(Error::kInvalid, "a copy of no bytes");
    if (!CheckCopy("CopyBatch", copy, op.kind)) return Fail(Error::kInvalid, "invalid argument");
    if (failure == Error::kOk || rng_.OneIn(2)) op.copies.push_back(copy);
  }
  if (!op.copies.empty()) state->ops.push_back(std::move(op));
  changed_.notify_all();
  return failure;
}

cuda::Error FakeCuda::CopyKernel(const cuda::CopyItem* items, size_t count, int sms,
                                 Stream stream) {
  Dawdle();
  Lock lock(mutex_);
  if (Error error = Enter("CopyKernel"); error != Error::kOk) return error;
  CheckThread("CopyKernel");
  StreamState* state = CopyStream("CopyKernel", stream);
  if (state == nullptr) return Error::kInvalid;
  if (state->capture != nullptr) Violation("copies were captured into a graph");
  if (!options_.kernels_read_host) return Fail(Error::kNotSupported, "no unified addresses");
  if (sms < 1) return Fail(Error::kInvalid, "no SM to run on");
  if (count == 0) return Error::kOk;
  auto it = memory_.upper_bound(reinterpret_cast<uintptr_t>(items));
  if (!Reachable(items, count * sizeof(*items)) || (--it)->second.kind != MemoryKind::kHost) {
    Violation("CopyKernel with a list that is not in memory of AllocateHost");
    return Fail(Error::kInvalid, "invalid argument");
  }
  Op op;
  op.kind = OpKind::kKernelCopies;
  op.items = items;
  op.listed.assign(items, items + count);
  for (const cuda::CopyItem& item : op.listed) {
    const Copy copy{static_cast<std::byte*>(item.target),
                    static_cast<const std::byte*>(item.source), item.bytes};
    if (copy.bytes == 0) continue;
    if (!CheckCopy("CopyKernel", copy, op.kind)) return Fail(Error::kInvalid, "invalid argument");
    op.copies.push_back(copy);
  }
  state->ops.push_back(std::move(op));
  changed_.notify_all();
  return Error::kOk;
}

}  // namespace flexkv
