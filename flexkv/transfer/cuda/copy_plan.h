// Cuts a chunk into copies: fragments that adjoin in engine memory and in the arena become one,
// across loops, layers and blocks, and each goes to the copy engine or to the kernel by its size.
// Runs for every chunk, so a fragment costs few nanoseconds and no allocation; a planner is made
// once and used again. Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flexkv/transfer/agent_op.h"
#include "flexkv/transfer/cuda/cuda_api.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv::cuda {

// The arguments of Api::CopyBatch: copy i is (targets[i], sources[i], sizes[i]) for i < count. The
// vectors are longer than that.
struct EngineCopies {
  std::vector<void*> targets;
  std::vector<const void*> sources;
  std::vector<size_t> sizes;
  size_t count = 0;
  uint64_t bytes = 0;
};

// The items of Api::CopyKernel, likewise.
struct KernelCopies {
  std::vector<CopyItem> items;
  size_t count = 0;
  uint64_t bytes = 0;
};

class CopyPlanner {
 public:
  explicit CopyPlanner(const internal::ShardMap& map);

  // Forgets the last plan. Copies of less than `kernel_below` bytes go to the kernel.
  void Begin(Route route, uint64_t kernel_below);
  // Layers [first_layer, end_layer) of one block, whose shard begins at `shard` (or would: only the
  // bytes of these layers are touched).
  void Add(std::byte* shard, std::span<const uint32_t> block_ids, uint32_t first_layer,
           uint32_t end_layer);
  // The plan is complete. So few kernel copies beside others that a launch does not pay go to the
  // copy engine.
  void Finish();
  // After Finish: no copy reaches over `boundary`, an address in the arena.
  void CutAt(const std::byte* boundary);
  // After Finish: everything by the copy engine.
  void UseEngineOnly();

  const EngineCopies& engine() const { return engine_; }
  const KernelCopies& kernel() const { return kernel_; }

 private:
  struct Loop {
    uint64_t count = 1;
    int64_t stride = 0;
  };
  // A view whose innermost loops are part of the fragment where they are contiguous.
  struct View {
    std::byte* base = nullptr;
    int64_t block_stride = 0;
    uint64_t fragment = 0;
    uint64_t offset = 0;  // within the shard
    uint32_t group = 0;
    Loop row;                 // the innermost loop left: no two of its fragments adjoin
    std::vector<Loop> outer;  // outermost first
  };

  static View MakeView(const internal::ShardMap::Layer& layer);
  void AddRow(std::byte* device, std::byte* arena, const View& view);
  void Flush();
  void Emit(std::byte* device, std::byte* arena, uint64_t bytes, uint64_t count, int64_t stride);
  void EmitToKernel(std::byte* device, std::byte* arena, uint64_t bytes, uint64_t count,
                    int64_t stride);

  std::vector<View> views_;
  bool load_ = false;
  uint64_t kernel_below_ = 0;
  // The run that the next fragment may prolong.
  std::byte* device_ = nullptr;
  std::byte* arena_ = nullptr;
  uint64_t bytes_ = 0;
  EngineCopies engine_;
  KernelCopies kernel_;
};

}  // namespace flexkv::cuda
