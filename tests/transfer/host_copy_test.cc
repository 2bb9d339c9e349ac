#include "flexkv/transfer/host_copy.h"

#include <string>
#include <vector>

#include "flexkv/transfer/host_copy_isa.h"
#include "gtest/gtest.h"
#include "tests/support/content_oracle.h"
#include "tests/support/test_seed.h"
#include "tests/transfer/engine_memory.h"

namespace flexkv {
namespace {

class LayoutTest : public testing::TestWithParam<Shape> {};

// What lies in the arena is the packed shard, every byte of it, and it comes back to the right
// places and nowhere else.
TEST_P(LayoutTest, GatherPacksAndScatterUnpacksEveryByte) {
  EngineMemory memory(GetParam(), /*num_blocks=*/9);
  const uint64_t shard_bytes = memory.layout().shard_bytes();
  std::vector<std::byte> shard(shard_bytes + 64, std::byte{0xEE});
  for (uint32_t block = 0; block < 9; ++block) memory.Fill(block, HashFromNumber(block));
  GatherBlock(memory.layout(), 4, shard.data() + 1);  // a shard need not be aligned
  EXPECT_TRUE(ContentMatches(HashFromNumber(4), 0, {shard.data() + 1, shard_bytes}));
  EXPECT_EQ(shard[0], std::byte{0xEE});
  for (size_t i = shard_bytes + 1; i < shard.size(); ++i) ASSERT_EQ(shard[i], std::byte{0xEE});

  FillContent(HashFromNumber(77), 0, {shard.data() + 1, shard_bytes});
  ScatterBlock(memory.layout(), 4, shard.data() + 1);
  for (uint32_t block = 0; block < 9; ++block) {
    EXPECT_TRUE(memory.Holds(block, HashFromNumber(block == 4 ? 77 : block))) << "block " << block;
  }
  EXPECT_TRUE(memory.PaddingIntact());
}

TEST_P(LayoutTest, BlocksCopiedInOneRunAreThoseCopiedOneByOne) {
  EngineMemory memory(GetParam(), 9);
  const uint64_t shard_bytes = memory.layout().shard_bytes();
  for (uint32_t block = 0; block < 9; ++block) memory.Fill(block, HashFromNumber(block));
  const uint32_t order[] = {3, 4, 5, 1, 0, 8};  // neighbours merge where the layout lets them
  std::vector<std::byte> packed(6 * shard_bytes);
  {
    BlockCopier copier;
    size_t at = 0;
    for (uint32_t block : order) {
      for (const KvGroup& group : memory.layout().groups) {
        for (const LayerView& view : group.layers) {
          copier.Gather(view, block, packed.data() + at);
          at += view.block_bytes();
        }
      }
    }
    EXPECT_EQ(at, packed.size());
  }
  for (size_t i = 0; i < 6; ++i) {
    EXPECT_TRUE(ContentMatches(HashFromNumber(order[i]), 0,
                               {packed.data() + i * shard_bytes, shard_bytes}));
  }
}

INSTANTIATE_TEST_SUITE_P(Shapes, LayoutTest, testing::ValuesIn(AllShapes()),
                         [](const auto& param) { return param.param.name; });

// All loops a view may have, innermost fastest, against plain nested loops.
TEST(BlockCopierTest, FourNestedLoopsInTheOrderTheyAreGiven) {
  std::vector<std::byte> tensor(2 * 4096);
  FillContent(HashFromNumber(3), 0, tensor);
  const LayerView view{.base = reinterpret_cast<uintptr_t>(tensor.data()),
                       .block_stride_bytes = 4096,
                       .fragment_bytes = 12,
                       .outer = {{3, 16}, {2, 1024}, {4, 64}, {2, 512}}};
  std::vector<std::byte> packed(view.block_bytes());
  {
    BlockCopier copier;
    copier.Gather(view, 1, packed.data());
  }
  size_t at = 0;
  for (size_t a = 0; a < 3; ++a) {
    for (size_t b = 0; b < 2; ++b) {
      for (size_t c = 0; c < 4; ++c) {
        for (size_t d = 0; d < 2; ++d, at += 12) {
          const size_t from = 4096 + a * 16 + b * 1024 + c * 64 + d * 512;
          ASSERT_TRUE(ContentMatches(HashFromNumber(3), 0, {packed.data() + at, 12}, from));
        }
      }
    }
  }
  EXPECT_EQ(at, packed.size());
}

TEST(StreamCopyTest, EveryInstructionSetCopiesEveryAlignmentAndLength) {
  std::vector<std::pair<std::string, internal::StreamCopyFn>> sets = {
      {"sse2", &internal::StreamCopySse2}};
  if (__builtin_cpu_supports("avx2")) sets.emplace_back("avx2", &internal::StreamCopyAvx2);
  if (__builtin_cpu_supports("avx512f")) sets.emplace_back("avx512", &internal::StreamCopyAvx512);
  TestRng rng(TestSeed());
  std::vector<std::byte> source(20000), target(20000);
  FillContent(HashFromNumber(1), 0, source);
  for (const auto& [name, copy] : sets) {
    for (int i = 0; i < 400; ++i) {
      const size_t from = rng.Below(130), to = 64 + rng.Below(130), bytes = 256 + rng.Below(9000);
      std::fill(target.begin(), target.end(), std::byte{0xEE});
      copy(target.data() + to, source.data() + from, bytes, rng.OneIn(2) ? source.data() : nullptr);
      CopyFence();
      ASSERT_TRUE(ContentMatches(HashFromNumber(1), 0, {target.data() + to, bytes}, from)) << name;
      ASSERT_EQ(target[to - 1], std::byte{0xEE}) << name;
      ASSERT_EQ(target[to + bytes], std::byte{0xEE}) << name;
    }
  }
}

TEST(StreamCopyTest, PlainCopyTakesAnyLength) {
  std::vector<std::byte> source(5000), target(5000);
  FillContent(HashFromNumber(2), 0, source);
  for (size_t bytes : {0, 1, 63, 1023, 1024, 4999}) {
    CopyNonTemporal(target.data(), source.data(), bytes);
    CopyFence();
    EXPECT_TRUE(ContentMatches(HashFromNumber(2), 0, {target.data(), bytes}));
  }
}

TEST(StreamCopyTest, TheChosenSetIsOneTheProcessorHas) {
  if (ChosenCopyIsa() == CopyIsa::kAvx512) {
    EXPECT_TRUE(__builtin_cpu_supports("avx512f"));
  } else if (ChosenCopyIsa() == CopyIsa::kAvx2) {
    EXPECT_TRUE(__builtin_cpu_supports("avx2"));
  }
}

}  // namespace
}  // namespace flexkv
