#include "tests/transfer/engine_memory.h"

#include <algorithm>
#include <set>
#include <span>

#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {
constexpr std::byte kUnused{0xA5};
}

std::vector<Shape> AllShapes() {
  return {
      {.name = "TokenMajor"},
      {.name = "HeadMajor", .head_major = true},
      {.name = "TokenMajorApart", .kv_apart = true, .base_shift = 8},
      {.name = "HeadMajorApart", .head_major = true, .kv_apart = true},
      {.name = "OneAllocation", .one_allocation = true, .base_shift = 132},
      {.name = "Padded", .row_padding = 16},
      {.name = "PaddedHeadMajorOneAllocation",
       .head_major = true,
       .one_allocation = true,
       .row_padding = 32},
      {.name = "LargeRows",
       .layers = 3,
       .heads = 8,
       .tokens = 16,
       .head_bytes = 256,
       .base_shift = 4},
      {.name = "LargePaddedRows",
       .heads = 8,
       .tokens = 16,
       .head_bytes = 256,
       .kv_apart = true,
       .row_padding = 64},
      {.name = "OneOfEach", .layers = 1, .heads = 1, .tokens = 1, .head_bytes = 2},
  };
}

EngineMemory::EngineMemory(const Shape& shape, uint32_t num_blocks)
    : shape_(shape), num_blocks_(num_blocks) {
  const uint32_t outer = shape.head_major ? shape.heads : shape.tokens;
  const uint32_t inner = shape.head_major ? shape.tokens : shape.heads;
  row_bytes_ = uint64_t{inner} * shape.head_bytes + shape.row_padding;
  block_stride_ = outer * row_bytes_;
  kv_stride_ = shape.kv_apart
                   ? 0
                   : block_stride_ * num_blocks;  // [2, blocks, ...], as vLLM's backends have it
  const uint64_t tensor_bytes = block_stride_ * num_blocks * (shape.kv_apart ? 1 : 2);
  const uint32_t tensors = shape.layers * (shape.kv_apart ? 2 : 1);
  const uint32_t per_allocation = shape.one_allocation ? tensors : 1;
  for (uint32_t i = 0; i < tensors; i += per_allocation) {
    allocations_.emplace_back(shape.base_shift + per_allocation * tensor_bytes + 64, kUnused);
    for (uint32_t j = 0; j < per_allocation; ++j) {
      tensors_.push_back(allocations_.back().data() + shape.base_shift + j * tensor_bytes);
    }
  }

  KvGroup group{.num_blocks = num_blocks, .tokens_per_block = shape.tokens};
  const bool packed_rows = shape.row_padding == 0;
  for (std::byte* tensor : tensors_) {
    LayerView view{.base = reinterpret_cast<uintptr_t>(tensor),
                   .block_stride_bytes = static_cast<int64_t>(block_stride_)};
    if (!shape.kv_apart) view.outer.push_back({2, static_cast<int64_t>(kv_stride_)});
    view.fragment_bytes =
        static_cast<uint32_t>(packed_rows ? block_stride_ : row_bytes_ - shape.row_padding);
    if (!packed_rows) view.outer.push_back({outer, static_cast<int64_t>(row_bytes_)});
    group.layers.push_back(view);
  }
  layout_.groups.push_back(group);
  layout_.descriptor = shape.name;
}

template <typename Visit>
void EngineMemory::ForEachRun(uint32_t block, Visit visit) const {
  const uint32_t outer = shape_.head_major ? shape_.heads : shape_.tokens;
  const uint32_t inner = shape_.head_major ? shape_.tokens : shape_.heads;
  uint64_t position = 0;
  for (uint32_t layer = 0; layer < shape_.layers; ++layer) {
    for (uint32_t kv = 0; kv < 2; ++kv) {
      const std::byte* tensor =
          shape_.kv_apart ? tensors_[2 * layer + kv] : tensors_[layer] + kv * kv_stride_;
      for (uint32_t i = 0; i < outer; ++i) {
        for (uint32_t j = 0; j < inner; ++j) {
          const std::byte* run =
              tensor + block * block_stride_ + i * row_bytes_ + uint64_t{j} * shape_.head_bytes;
          visit(const_cast<std::byte*>(run), position);
          position += shape_.head_bytes;
        }
      }
    }
  }
}

void EngineMemory::Fill(uint32_t block, const BlockHash& hash) {
  ForEachRun(block, [&](std::byte* run, uint64_t position) {
    FillContent(hash, 0, {run, shape_.head_bytes}, position);
  });
}

bool EngineMemory::Holds(uint32_t block, const BlockHash& hash) const {
  bool holds = true;
  ForEachRun(block, [&](const std::byte* run, uint64_t position) {
    holds = holds && ContentMatches(hash, 0, {run, shape_.head_bytes}, position);
  });
  return holds;
}

bool EngineMemory::PaddingIntact() const {
  std::set<const std::byte*> runs;
  for (uint32_t block = 0; block < num_blocks_; ++block) {
    ForEachRun(block, [&](const std::byte* run, uint64_t) { runs.insert(run); });
  }
  for (const std::vector<std::byte>& allocation : allocations_) {
    const std::byte* at = allocation.data();
    const std::byte* end = at + allocation.size();
    while (at < end) {
      if (runs.contains(at)) {
        at += shape_.head_bytes;
      } else if (*at++ != kUnused) {
        return false;
      }
    }
  }
  return true;
}

}  // namespace flexkv
