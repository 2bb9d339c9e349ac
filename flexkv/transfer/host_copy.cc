#include "flexkv/transfer/host_copy.h"

#include <immintrin.h>

#include <cstring>

#include "flexkv/transfer/host_copy_isa.h"

namespace flexkv {
namespace {

// Below this a fragment is copied through the cache: heads and tails of streaming copies cost more
// than they save.
constexpr size_t kStreamBytes = 1024;

CopyIsa DetectIsa() {
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx512f")) return CopyIsa::kAvx512;
  return __builtin_cpu_supports("avx2") ? CopyIsa::kAvx2 : CopyIsa::kSse2;
}

internal::StreamCopyFn DetectStreamCopy() {
  switch (DetectIsa()) {
    case CopyIsa::kAvx512:
      return &internal::StreamCopyAvx512;
    case CopyIsa::kAvx2:
      return &internal::StreamCopyAvx2;
    case CopyIsa::kSse2:
      break;
  }
  return &internal::StreamCopySse2;
}

const CopyIsa kIsa = DetectIsa();
const internal::StreamCopyFn kStreamCopy = DetectStreamCopy();

void CopyRun(std::byte* target, const std::byte* source, size_t bytes, const std::byte* next) {
  if (bytes < kStreamBytes) {
    std::memcpy(target, source, bytes);
  } else {
    kStreamCopy(target, source, bytes, next);
  }
}

// Calls visit(address) for each fragment of a block, in packed order.
template <typename Visit>
void ForEachFragment(const LayerView& view, uint32_t block_id, Visit visit) {
  uint32_t index[LayerView::kMaxOuterLoops] = {};
  const int loops = static_cast<int>(view.outer.size());
  uintptr_t address = view.base + static_cast<uintptr_t>(block_id) *
                                      static_cast<uintptr_t>(view.block_stride_bytes);
  for (;;) {
    visit(reinterpret_cast<std::byte*>(address));
    int loop = loops - 1;  // an odometer: the innermost loop turns fastest
    for (; loop >= 0; --loop) {
      const StridedLoop& outer = view.outer[static_cast<size_t>(loop)];
      address += static_cast<uintptr_t>(outer.stride_bytes);
      if (++index[loop] < outer.count) break;
      address -= static_cast<uintptr_t>(outer.stride_bytes) * outer.count;
      index[loop] = 0;
    }
    if (loop < 0) return;
  }
}

}  // namespace

CopyIsa ChosenCopyIsa() { return kIsa; }

void CopyNonTemporal(void* target, const void* source, size_t bytes) {
  if (bytes < kStreamBytes) {
    std::memcpy(target, source, bytes);
  } else {
    kStreamCopy(target, source, bytes, nullptr);
  }
}

void CopyFence() { _mm_sfence(); }

void BlockCopier::Add(std::byte* target, const std::byte* source, size_t bytes) {
  if (target == target_ + bytes_ && source == source_ + bytes_) {
    bytes_ += bytes;
    return;
  }
  if (bytes_ > 0) CopyRun(target_, source_, bytes_, source);
  target_ = target;
  source_ = source;
  bytes_ = bytes;
}

void BlockCopier::Gather(const LayerView& view, uint32_t block_id, std::byte* packed) {
  ForEachFragment(view, block_id, [&](std::byte* fragment) {
    Add(packed, fragment, view.fragment_bytes);
    packed += view.fragment_bytes;
  });
}

void BlockCopier::Scatter(const LayerView& view, uint32_t block_id, const std::byte* packed) {
  ForEachFragment(view, block_id, [&](std::byte* fragment) {
    Add(fragment, packed, view.fragment_bytes);
    packed += view.fragment_bytes;
  });
}

void BlockCopier::Flush() {
  if (bytes_ > 0) CopyRun(target_, source_, bytes_, nullptr);
  target_ = nullptr;
  source_ = nullptr;
  bytes_ = 0;
  CopyFence();
}

void GatherBlock(const KvLayout& layout, uint32_t block_id, std::byte* shard) {
  BlockCopier copier;
  for (const KvGroup& group : layout.groups) {
    for (const LayerView& view : group.layers) {
      copier.Gather(view, block_id, shard);
      shard += view.block_bytes();
    }
  }
}

void ScatterBlock(const KvLayout& layout, uint32_t block_id, const std::byte* shard) {
  BlockCopier copier;
  for (const KvGroup& group : layout.groups) {
    for (const LayerView& view : group.layers) {
      copier.Scatter(view, block_id, shard);
      shard += view.block_bytes();
    }
  }
}

}  // namespace flexkv
