// Gather and scatter between strided KV tensors in host memory and packed arena shards.
//
// Fragments of 1 KiB or more are copied with non-temporal stores, and the first lines of the next
// fragment are prefetched before the present one is copied (../docs/design notes: 0.83 of a plain
// non-temporal copy at 64 KiB). The instruction set (SSE2, AVX2, AVX-512) is chosen once at start
// from cpuid. Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flexkv/base/kv_layout.h"

namespace flexkv {

enum class CopyIsa : uint8_t { kSse2, kAvx2, kAvx512 };
CopyIsa ChosenCopyIsa();

// Plain contiguous non-temporal copy (the limit that benches measure against). No overlap allowed.
void CopyNonTemporal(void* target, const void* source, size_t bytes);

// Copies a run of blocks: fragments that adjoin on both sides become one copy, across layers and
// blocks, and the next fragment is known (and prefetched) while the present one is copied. Nothing
// is promised to be copied before Flush. Not thread-safe.
class BlockCopier {
 public:
  BlockCopier() = default;
  ~BlockCopier() { Flush(); }
  BlockCopier(const BlockCopier&) = delete;
  BlockCopier& operator=(const BlockCopier&) = delete;

  // All fragments of block `block_id` of one layer view; `packed` is the view's place within the
  // shard.
  void Gather(const LayerView& view, uint32_t block_id, std::byte* packed);
  void Scatter(const LayerView& view, uint32_t block_id, const std::byte* packed);
  // Copies what is pending and orders it before later stores (CopyFence).
  void Flush();

 private:
  void Add(std::byte* target, const std::byte* source, size_t bytes);

  std::byte* target_ = nullptr;
  const std::byte* source_ = nullptr;
  size_t bytes_ = 0;
};

// One block: engine memory -> arena shard, and back. `shard` has layout.shard_bytes() bytes.
// REQUIRES: block_id < num_blocks of every group.
void GatherBlock(const KvLayout& layout, uint32_t block_id, std::byte* shard);
void ScatterBlock(const KvLayout& layout, uint32_t block_id, const std::byte* shard);

// Must be called after a batch of copies and before its completion is published (sfence).
void CopyFence();

}  // namespace flexkv
