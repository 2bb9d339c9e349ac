// How an engine's KV cache lies in its memory, and how one block of it lies in an arena slot.
//
// A rank registers KV groups (layers that share one block table); each group has layer views. A
// view says where block b of that layer lies: at base + b * block_stride_bytes, as `outer` nested
// loops of contiguous fragments. Any strided tensor whose block dimension is known can be written
// so; nothing is guessed from a shape.
//
// In the arena a block's shard (one rank's part of one block) is packed without gaps: groups in
// order, layers in order, outer loops in order, each fragment contiguous.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"

namespace flexkv {

struct StridedLoop {
  uint32_t count = 1;
  int64_t stride_bytes = 0;
};

// One layer's tensor (or one of K and V where they are apart).
struct LayerView {
  uintptr_t base = 0;              // address of block 0, in the process that registers
  int64_t block_stride_bytes = 0;  // from block b to block b + 1
  uint32_t fragment_bytes = 0;     // innermost contiguous run
  std::vector<StridedLoop> outer;  // outermost first; at most kMaxOuterLoops

  static constexpr int kMaxOuterLoops = 4;
  uint64_t block_bytes() const;  // fragment_bytes times every loop's count
};

struct KvGroup {
  uint32_t num_blocks = 0;  // GPU block ids are in [0, num_blocks)
  uint32_t tokens_per_block = 0;
  std::vector<LayerView> layers;

  uint64_t block_bytes() const;
};

// The layout of one rank.
struct KvLayout {
  std::vector<KvGroup> groups;
  // Everything that decides what the bytes mean (dtype, quantisation, shapes, strides, order of
  // layers, attention backend), as text. Part of the namespace; compared in full, never hashed.
  std::string descriptor;

  uint64_t shard_bytes() const;  // bytes of one block on this rank, all groups

  // InvalidArgument with one sentence: no groups, no layers, zero sizes, too many loops, a shard of
  // 1 GiB or more, a view whose loops overlap.
  absl::Status Validate() const;
};

}  // namespace flexkv
