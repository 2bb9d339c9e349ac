#include "flexkv/base/kv_layout.h"

#include <algorithm>

#include "absl/strings/str_cat.h"

namespace flexkv {
namespace {

constexpr uint64_t kMaxShardBytes = 1ull << 30;
constexpr uint32_t kMaxLoopCount = 1u << 20;
constexpr int64_t kMaxStrideBytes = int64_t{1} << 42;  // with the count above, sums cannot overflow

absl::Status ValidateView(const LayerView& view) {
  if (view.base == 0) return absl::InvalidArgumentError("a layer has no address");
  if (view.fragment_bytes == 0) return absl::InvalidArgumentError("a layer has empty fragments");
  if (view.block_stride_bytes <= 0) {
    return absl::InvalidArgumentError("a layer's block stride is not positive");
  }
  if (view.outer.size() > LayerView::kMaxOuterLoops) {
    return absl::InvalidArgumentError(absl::StrCat("a layer has ", view.outer.size(),
                                                   " strided dimensions, at most ",
                                                   LayerView::kMaxOuterLoops, " are supported"));
  }
  for (const StridedLoop& loop : view.outer) {
    if (loop.count == 0 || loop.count > kMaxLoopCount || loop.stride_bytes > kMaxStrideBytes) {
      return absl::InvalidArgumentError("a layer's dimension is empty or too large");
    }
  }
  // From the inside out, each loop must step over all that lies inside it.
  std::vector<StridedLoop> loops = view.outer;
  std::sort(loops.begin(), loops.end(), [](const StridedLoop& a, const StridedLoop& b) {
    return a.stride_bytes < b.stride_bytes;
  });
  int64_t extent = view.fragment_bytes;
  for (const StridedLoop& loop : loops) {
    if (loop.count == 1) continue;
    if (loop.stride_bytes < extent) {
      return absl::InvalidArgumentError("a layer's fragments overlap");
    }
    extent += loop.stride_bytes * (loop.count - 1);
  }
  if (view.block_bytes() >= kMaxShardBytes) {
    return absl::InvalidArgumentError("a block of one layer is 1 GiB or more");
  }
  return absl::OkStatus();
}

}  // namespace

uint64_t LayerView::block_bytes() const {
  uint64_t bytes = fragment_bytes;
  for (const StridedLoop& loop : outer) {
    if (bytes >= kMaxShardBytes) return bytes;  // already refused by Validate; do not overflow
    bytes *= loop.count;
  }
  return bytes;
}

uint64_t KvGroup::block_bytes() const {
  uint64_t bytes = 0;
  for (const LayerView& layer : layers) bytes += layer.block_bytes();
  return bytes;
}

uint64_t KvLayout::shard_bytes() const {
  uint64_t bytes = 0;
  for (const KvGroup& group : groups) bytes += group.block_bytes();
  return bytes;
}

absl::Status KvLayout::Validate() const {
  if (groups.empty()) return absl::InvalidArgumentError("the layout has no KV groups");
  for (const KvGroup& group : groups) {
    if (group.layers.empty()) return absl::InvalidArgumentError("a KV group has no layers");
    if (group.num_blocks == 0 || group.tokens_per_block == 0) {
      return absl::InvalidArgumentError("a KV group has no blocks or no tokens per block");
    }
    for (const LayerView& layer : group.layers) {
      if (absl::Status status = ValidateView(layer); !status.ok()) return status;
    }
  }
  if (shard_bytes() >= kMaxShardBytes) {
    return absl::InvalidArgumentError("a block's shard is 1 GiB or more");
  }
  return absl::OkStatus();
}

}  // namespace flexkv
