// KV tensors of an engine as the tests see them: every shape that engines use, filled and checked
// by the content oracle through index arithmetic of its own (the tensor's element order), not
// through the code under test.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "flexkv/base/ids.h"
#include "flexkv/base/kv_layout.h"

namespace flexkv {

struct Shape {
  std::string name;
  uint32_t layers = 2;
  uint32_t heads = 3;
  uint32_t tokens = 4;
  uint32_t head_bytes = 48;  // bytes of one token of one head
  bool head_major = false;   // [heads, tokens, head] inside a block, else [tokens, heads, head]
  bool kv_apart =
      false;  // K and V in tensors of their own, else [2, ...] outside the block dimension
  bool one_allocation = false;
  uint32_t base_shift = 0;   // bytes by which tensors start off a page
  uint32_t row_padding = 0;  // unused bytes behind each [token] or [head] row
};

std::vector<Shape> AllShapes();

class EngineMemory {
 public:
  EngineMemory(const Shape& shape, uint32_t num_blocks);

  const KvLayout& layout() const { return layout_; }
  uint32_t num_blocks() const { return num_blocks_; }

  void Fill(uint32_t block, const BlockHash& hash);
  bool Holds(uint32_t block, const BlockHash& hash) const;
  // Bytes that belong to no block were never written.
  bool PaddingIntact() const;
  // All of the tensors' memory, for tests that mirror it on a device.
  std::vector<std::vector<std::byte>>& allocations() { return allocations_; }

 private:
  // Calls visit(address, position in the shard) for each token of each head of K, then V, of each
  // layer.
  template <typename Visit>
  void ForEachRun(uint32_t block, Visit visit) const;

  Shape shape_;
  uint32_t num_blocks_;
  std::vector<std::vector<std::byte>> allocations_;
  std::vector<std::byte*> tensors_;  // per layer (K, V of it next to each other)
  uint64_t block_stride_ = 0;
  uint64_t kv_stride_ = 0;  // from K to V where they share a tensor
  uint64_t row_bytes_ = 0;
  KvLayout layout_;
};

}  // namespace flexkv
