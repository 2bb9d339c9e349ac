#include <algorithm>
#include <map>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "flexkv/client/worker_session.h"

namespace flexkv {
namespace {

struct Dimension {
  int64_t size = 0;
  int64_t stride_bytes = 0;
};

absl::StatusOr<LayerView> MakeLayerView(const TensorView& tensor) {
  const auto refuse = [&](const char* why) {
    return absl::InvalidArgumentError(absl::StrCat("layer '", tensor.layer, "' ", why));
  };
  if (tensor.data == 0 || tensor.element_bytes == 0) return refuse("has no memory");
  if (tensor.shape.size() != tensor.strides.size() || tensor.block_dim >= tensor.shape.size()) {
    return refuse("has no block dimension");
  }
  std::vector<Dimension> dimensions;
  for (size_t i = 0; i < tensor.shape.size(); ++i) {
    if (tensor.shape[i] <= 0 || tensor.strides[i] < 0) return refuse("has an odd shape or stride");
    if (i == tensor.block_dim || tensor.shape[i] == 1) continue;
    dimensions.push_back({tensor.shape[i], tensor.strides[i] * tensor.element_bytes});
  }
  std::sort(dimensions.begin(), dimensions.end(),
            [](const Dimension& a, const Dimension& b) { return a.stride_bytes > b.stride_bytes; });

  LayerView view;
  view.base = tensor.data;
  view.block_stride_bytes = tensor.strides[tensor.block_dim] * tensor.element_bytes;
  int64_t fragment = tensor.element_bytes;
  while (!dimensions.empty() && dimensions.back().stride_bytes == fragment) {
    fragment *= dimensions.back().size;
    dimensions.pop_back();
  }
  if (fragment >= int64_t{1} << 30) return refuse("has blocks of 1 GiB or more");
  view.fragment_bytes = static_cast<uint32_t>(fragment);
  int64_t inner = fragment;  // bytes spanned by what lies inside a loop
  for (auto it = dimensions.rbegin(); it != dimensions.rend(); ++it) {
    if (it->stride_bytes < inner) return refuse("has overlapping strides");
    inner = it->stride_bytes * (it->size - 1) + inner;
  }
  for (const Dimension& dimension : dimensions) {
    if (dimension.size > UINT32_MAX) return refuse("has a dimension that is too large");
    view.outer.push_back({static_cast<uint32_t>(dimension.size), dimension.stride_bytes});
  }
  return view;
}

}  // namespace

absl::StatusOr<KvGroup> MakeKvGroup(std::span<const TensorView> tensors, uint32_t tokens_per_block,
                                    std::vector<uint32_t>* views) {
  KvGroup group;
  group.tokens_per_block = tokens_per_block;
  std::map<std::tuple<uintptr_t, int64_t, uint32_t>, uint32_t> seen;
  for (const TensorView& tensor : tensors) {
    absl::StatusOr<LayerView> view = MakeLayerView(tensor);
    if (!view.ok()) return view.status();
    const int64_t blocks = tensor.shape[tensor.block_dim];
    if (blocks > UINT32_MAX) return absl::InvalidArgumentError("the KV cache has too many blocks");
    if (group.num_blocks == 0) group.num_blocks = static_cast<uint32_t>(blocks);
    if (group.num_blocks != blocks) {
      return absl::InvalidArgumentError(absl::StrCat("layer '", tensor.layer, "' has ", blocks,
                                                     " blocks, others have ", group.num_blocks));
    }
    const auto [place, is_new] =
        seen.try_emplace({view->base, view->block_stride_bytes, view->fragment_bytes},
                         static_cast<uint32_t>(group.layers.size()));
    if (views != nullptr) views->push_back(place->second);
    if (is_new) group.layers.push_back(*std::move(view));
  }
  if (group.layers.empty()) return absl::InvalidArgumentError("there are no KV cache tensors");
  return group;
}

}  // namespace flexkv
