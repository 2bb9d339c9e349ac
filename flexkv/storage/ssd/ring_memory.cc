#include "flexkv/storage/ssd/ring_memory.h"

#include <algorithm>

namespace flexkv {
namespace {

constexpr uint32_t kTableSize = 1024;  // so up to a TiB; 8 bytes each while empty
constexpr size_t kPieceBytes = size_t{1} << 30;

}  // namespace

bool RingMemory::Init(io_uring* ring) {
  if (io_uring_register_buffers_sparse(ring, kTableSize) != 0) return false;
  ring_ = ring;
  for (uint32_t index = kTableSize; index-- > 0;) free_.push_back(index);
  return true;
}

bool RingMemory::Update(uint32_t index, void* memory, size_t bytes) {
  const iovec piece = {.iov_base = memory, .iov_len = bytes};
  const __u64 tag = 0;
  return io_uring_register_buffers_update_tag(ring_, index, &piece, &tag, 1) == 1;
}

bool RingMemory::Register(std::span<std::byte> memory) {
  if (ring_ == nullptr || memory.empty()) return false;
  const auto start = reinterpret_cast<uintptr_t>(memory.data());
  const auto after = pieces_.lower_bound(start);
  if (after != pieces_.end() && after->first < start + memory.size()) return false;
  if (after != pieces_.begin() &&
      std::prev(after)->first + std::prev(after)->second.bytes > start) {
    return false;
  }
  for (size_t done = 0; done < memory.size(); done += kPieceBytes) {
    const size_t bytes = std::min(kPieceBytes, memory.size() - done);
    if (free_.empty() || !Update(free_.back(), memory.data() + done, bytes)) {
      Unregister(memory.data());
      return false;
    }
    pieces_[start + done] = {.bytes = bytes, .index = free_.back(), .owner = memory.data()};
    free_.pop_back();
  }
  return true;
}

void RingMemory::Unregister(const std::byte* memory) {
  last_ = {};
  auto it = pieces_.lower_bound(reinterpret_cast<uintptr_t>(memory));
  while (it != pieces_.end() && it->second.owner == memory) {
    Update(it->second.index, nullptr, 0);
    free_.push_back(it->second.index);
    it = pieces_.erase(it);
  }
}

int RingMemory::Find(const void* memory, size_t bytes) const {
  const auto start = reinterpret_cast<uintptr_t>(memory);
  if (start < last_start_ || start - last_start_ >= last_.bytes) {
    auto it = pieces_.upper_bound(start);
    if (it == pieces_.begin()) return -1;
    --it;
    last_start_ = it->first;
    last_ = it->second;
  }
  const size_t at = start - last_start_;
  if (at >= last_.bytes || bytes > last_.bytes - at) return -1;
  return static_cast<int>(last_.index);
}

}  // namespace flexkv
