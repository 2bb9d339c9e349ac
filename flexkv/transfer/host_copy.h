// Gather and scatter between strided KV tensors in host memory and packed arena shards.
//
// Fragments of 1 KiB or more are copied with non-temporal stores, and the first lines of the next fragment are prefetched
// before the present one is copied (../docs/design notes: 0.83 of a plain non-temporal copy at 64 KiB).
// The instruction set (SSE2, AVX2, AVX-512) is chosen once at start from cpuid.
// Thread-safe: no state.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flexkv/base/kv_layout.h"

namespace flexkv {

enum class CopyIsa : uint8_t { kSse2, kAvx2, kAvx512 };
CopyIsa ChosenCopyIsa();

// Plain contiguous non-temporal copy (the limit that benches measure against). No overlap allowed.
void CopyNonTemporal(void* target, const void* source, size_t bytes);

// One block: engine memory -> arena shard, and back. `shard` has layout.shard_bytes() bytes.
// REQUIRES: block_id < num_blocks of every group.
void GatherBlock(const KvLayout& layout, uint32_t block_id, std::byte* shard);
void ScatterBlock(const KvLayout& layout, uint32_t block_id, const std::byte* shard);

// Must be called after a batch of copies and before its completion is published (sfence).
void CopyFence();

}  // namespace flexkv
