// The planner against a model that copies fragment by fragment, over random layouts.
#include "flexkv/transfer/cuda/copy_plan.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <numeric>
#include <vector>

#include "tests/support/test_seed.h"

namespace flexkv::cuda {
namespace {

using Bytes = std::map<uintptr_t, uintptr_t>;  // target byte -> source byte

// Addresses are never touched: any number serves.
constexpr uintptr_t kDevice = uintptr_t{1} << 40;
constexpr uintptr_t kArena = uintptr_t{1} << 44;

struct Block {
  uintptr_t shard = 0;
  std::vector<uint32_t> ids;
  uint32_t first_layer = 0, end_layer = 0;
};

std::byte* Pointer(uintptr_t address) { return reinterpret_cast<std::byte*>(address); }
uintptr_t Address(const void* pointer) { return reinterpret_cast<uintptr_t>(pointer); }

// Loops whose order in memory is any, with gaps now and then.
LayerView RandomView(TestRng* rng, uintptr_t base, uint64_t* extent) {
  LayerView view{.base = base, .fragment_bytes = static_cast<uint32_t>(1 + rng->Below(9))};
  const size_t num_loops = rng->Below(LayerView::kMaxOuterLoops + 1);
  view.outer.resize(num_loops);
  std::vector<size_t> order(num_loops);
  std::iota(order.begin(), order.end(), 0);
  const bool sorted = rng->OneIn(2);
  for (size_t i = num_loops; i > 0; --i) {
    if (sorted) {
      order[i - 1] = num_loops - i;  // innermost loop has the least stride
    } else {
      std::swap(order[i - 1], order[rng->Below(i)]);
    }
  }
  if (sorted) std::sort(order.rbegin(), order.rend());
  int64_t inner = view.fragment_bytes;
  for (const size_t at : order) {
    view.outer[at].count = static_cast<uint32_t>(1 + rng->Below(4));
    view.outer[at].stride_bytes = inner + (rng->OneIn(2) ? 0 : static_cast<int64_t>(rng->Below(5)));
    inner += view.outer[at].stride_bytes * (view.outer[at].count - 1);
  }
  *extent = static_cast<uint64_t>(inner);
  return view;
}

KvLayout RandomLayout(TestRng* rng) {
  KvLayout layout;
  uintptr_t base = kDevice;
  const bool block_first = rng->OneIn(2);
  const size_t num_groups = 1 + rng->Below(2);
  for (size_t group = 0; group < num_groups; ++group) {
    KvGroup& kv = layout.groups.emplace_back();
    kv.num_blocks = 16;
    kv.tokens_per_block = 1;
    const size_t num_layers = 1 + rng->Below(5);
    uint64_t offset = 0;
    for (size_t layer = 0; layer < num_layers; ++layer) {
      uint64_t extent = 0;
      kv.layers.push_back(RandomView(rng, base + offset, &extent));
      if (rng->OneIn(3)) extent += rng->Below(4);
      if (!block_first) kv.layers.back().block_stride_bytes = static_cast<int64_t>(extent);
      offset += block_first ? extent : extent * kv.num_blocks;
    }
    if (block_first) {
      for (LayerView& view : kv.layers) view.block_stride_bytes = static_cast<int64_t>(offset);
    }
    base += offset * (block_first ? kv.num_blocks : 1) + (uintptr_t{1} << 30);
  }
  return layout;
}

// All bytes of the chunk, one by one, straight from the meaning of a layout.
Bytes Model(const internal::ShardMap& map, const std::vector<Block>& blocks, bool load) {
  Bytes bytes;
  for (const Block& block : blocks) {
    for (uint32_t layer = block.first_layer; layer < block.end_layer; ++layer) {
      const internal::ShardMap::Layer& at = map.layers[layer];
      for (uint64_t i = 0; i < at.bytes; ++i) {
        uint64_t fragment = i / at.view.fragment_bytes;
        int64_t offset = static_cast<int64_t>(i % at.view.fragment_bytes);
        for (size_t loop = at.view.outer.size(); loop > 0; --loop) {
          const StridedLoop& outer = at.view.outer[loop - 1];
          offset += static_cast<int64_t>(fragment % outer.count) * outer.stride_bytes;
          fragment /= outer.count;
        }
        const uintptr_t device =
            at.view.base +
            static_cast<uintptr_t>(block.ids[at.group] * at.view.block_stride_bytes + offset);
        const uintptr_t arena = block.shard + at.offset + i;
        EXPECT_TRUE(load ? bytes.emplace(device, arena).second
                         : bytes.emplace(arena, device).second);
      }
    }
  }
  return bytes;
}

std::vector<CopyItem> AllCopies(const CopyPlanner& planner) {
  std::vector<CopyItem> copies;
  const EngineCopies& engine = planner.engine();
  for (size_t i = 0; i < engine.count; ++i) {
    copies.push_back({engine.targets[i], engine.sources[i], engine.sizes[i]});
  }
  const KernelCopies& kernel = planner.kernel();
  copies.insert(copies.end(), kernel.items.begin(),
                kernel.items.begin() + static_cast<std::ptrdiff_t>(kernel.count));
  return copies;
}

Bytes Flatten(const std::vector<CopyItem>& copies) {
  Bytes bytes;
  for (const CopyItem& copy : copies) {
    EXPECT_GT(copy.bytes, 0u);
    for (uint64_t i = 0; i < copy.bytes; ++i) {
      EXPECT_TRUE(bytes.emplace(Address(copy.target) + i, Address(copy.source) + i).second);
    }
  }
  return bytes;
}

// Runs that adjoin on both sides, in the order of the walk.
std::vector<uint64_t> MergedSizes(const internal::ShardMap& map, const std::vector<Block>& blocks,
                                  bool load) {
  std::vector<uint64_t> sizes;
  uintptr_t device = 0, arena = 0;
  for (const Block& block : blocks) {
    // By arena address: the order of the walk within a block.
    std::map<uintptr_t, uintptr_t> by_arena;
    for (const auto& [target, source] : Model(map, {block}, load)) {
      by_arena.emplace(load ? source : target, load ? target : source);
    }
    for (const auto& [at_arena, at_device] : by_arena) {
      if (!sizes.empty() && at_arena == arena + 1 && at_device == device + 1) {
        ++sizes.back();
      } else {
        sizes.push_back(1);
      }
      arena = at_arena;
      device = at_device;
    }
  }
  return sizes;
}

std::vector<Block> RandomChunk(TestRng* rng, const internal::ShardMap& map, size_t num_groups) {
  std::vector<Block> blocks(1 + rng->Below(5));
  uint32_t id = static_cast<uint32_t>(rng->Below(16));
  uintptr_t shard = kArena + rng->Below(64);
  for (Block& block : blocks) {
    block.ids.assign(num_groups, id % 16);
    if (rng->OneIn(3)) std::reverse(block.ids.begin(), block.ids.end());
    block.shard = shard;
    block.end_layer = static_cast<uint32_t>(map.layers.size());
    if (rng->OneIn(3)) {
      block.first_layer = static_cast<uint32_t>(rng->Below(map.layers.size()));
      block.end_layer -= static_cast<uint32_t>(rng->Below(block.end_layer - block.first_layer));
    }
    ++id;
    shard += map.shard_bytes + (rng->OneIn(2) ? rng->Below(100) : 0);
  }
  return blocks;
}

TEST(CopyPlanTest, SameBytesAsTheModelAndNoRunIsCut) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 300; ++round) {
    const KvLayout layout = RandomLayout(&rng);
    ASSERT_TRUE(layout.Validate().ok());
    const internal::ShardMap map(layout);
    CopyPlanner planner(map);
    for (const bool load : {false, true}) {
      const std::vector<Block> blocks = RandomChunk(&rng, map, layout.groups.size());
      const uint64_t below = rng.Below(3) * rng.Below(12);
      planner.Begin(load ? Route::kCpuToDevice : Route::kDeviceToCpu, below);
      for (const Block& block : blocks) {
        planner.Add(Pointer(block.shard), block.ids, block.first_layer, block.end_layer);
      }
      planner.Finish();
      const Bytes model = Model(map, blocks, load);
      const std::vector<CopyItem> copies = AllCopies(planner);
      ASSERT_EQ(Flatten(copies), model);
      EXPECT_EQ(planner.engine().bytes + planner.kernel().bytes, model.size());
      std::vector<uint64_t> sizes;
      for (const CopyItem& copy : copies) sizes.push_back(copy.bytes);
      std::vector<uint64_t> expected = MergedSizes(map, blocks, load);
      std::sort(sizes.begin(), sizes.end());
      std::sort(expected.begin(), expected.end());
      ASSERT_EQ(sizes, expected);
      for (size_t i = 0; i < planner.kernel().count; ++i) {
        EXPECT_LT(planner.kernel().items[i].bytes, below);
      }
      if (planner.kernel().count > 0) {
        for (size_t i = 0; i < planner.engine().count; ++i) {
          EXPECT_GE(planner.engine().sizes[i], below);
        }
      }
      const std::byte* boundary = Pointer(kArena + rng.Below(6 * map.shard_bytes + 64));
      planner.CutAt(boundary);
      for (const CopyItem& copy : AllCopies(planner)) {
        const uintptr_t arena = Address(load ? copy.source : copy.target);
        EXPECT_FALSE(arena < Address(boundary) && Address(boundary) < arena + copy.bytes);
      }
      planner.UseEngineOnly();
      EXPECT_EQ(planner.kernel().count, 0u);
      ASSERT_EQ(Flatten(AllCopies(planner)), model);
      EXPECT_EQ(planner.engine().bytes, model.size());
    }
  }
}

KvLayout LayerFirst(uint32_t num_layers, uint32_t layer_bytes) {
  KvLayout layout;
  layout.groups.push_back({.num_blocks = 64, .tokens_per_block = 16});
  for (uint32_t layer = 0; layer < num_layers; ++layer) {
    layout.groups[0].layers.push_back({.base = kDevice + (uintptr_t{layer} << 32),
                                       .block_stride_bytes = layer_bytes,
                                       .fragment_bytes = layer_bytes});
  }
  return layout;
}

TEST(CopyPlanTest, BlockFirstIsOneCopyForBlocksThatAdjoin) {
  KvLayout layout = LayerFirst(4, 1024);
  for (uint32_t layer = 0; layer < 4; ++layer) {
    layout.groups[0].layers[layer].base = kDevice + layer * 1024;
    layout.groups[0].layers[layer].block_stride_bytes = 4096;
  }
  const internal::ShardMap map(layout);
  CopyPlanner planner(map);
  planner.Begin(Route::kCpuToDevice, 0);
  for (uint32_t id = 3; id < 7; ++id) planner.Add(Pointer(kArena + id * 4096), {{id}}, 0, 4);
  planner.Finish();
  ASSERT_EQ(planner.engine().count, 1u);
  EXPECT_EQ(planner.engine().sizes[0], 4 * 4096u);
  EXPECT_EQ(planner.engine().targets[0], Pointer(kDevice + 3 * 4096));
  EXPECT_EQ(planner.engine().sources[0], Pointer(kArena + 3 * 4096));
}

TEST(CopyPlanTest, SizesDecideTheRouteCopyByCopy) {
  KvLayout layout = LayerFirst(12, 1024);
  layout.groups[0].layers[5].fragment_bytes = 65536;
  layout.groups[0].layers[5].block_stride_bytes = 65536;
  const internal::ShardMap map(layout);
  CopyPlanner planner(map);
  planner.Begin(Route::kDeviceToCpu, 2048);
  planner.Add(Pointer(kArena), {{0}}, 0, 12);
  planner.Finish();
  EXPECT_EQ(planner.engine().count, 1u);
  EXPECT_EQ(planner.kernel().count, 11u);
  EXPECT_EQ(planner.engine().targets[0], Pointer(kArena + 5 * 1024));
  // Four small ones beside a large one are not worth a launch.
  planner.Begin(Route::kDeviceToCpu, 2048);
  planner.Add(Pointer(kArena), {{0}}, 1, 6);
  planner.Finish();
  EXPECT_EQ(planner.engine().count, 5u);
  EXPECT_EQ(planner.kernel().count, 0u);
  // By themselves they are.
  planner.Begin(Route::kDeviceToCpu, 2048);
  planner.Add(Pointer(kArena), {{0}}, 0, 2);
  planner.Finish();
  EXPECT_EQ(planner.kernel().count, 2u);
}

}  // namespace
}  // namespace flexkv::cuda
