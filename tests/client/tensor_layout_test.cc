// From torch's words (shape, strides in elements) to fragments.
#include <gtest/gtest.h>

#include "flexkv/client/worker_session.h"

namespace flexkv {
namespace {

constexpr uintptr_t kBase = 0x10000;

TensorView Tensor(std::vector<int64_t> shape, std::vector<int64_t> strides,
                  uint32_t block_dim = 0) {
  TensorView view;
  view.layer = "layer.0";
  view.data = kBase;
  view.element_bytes = 4;
  view.shape = std::move(shape);
  view.strides = std::move(strides);
  view.block_dim = block_dim;
  return view;
}

TEST(TensorLayoutTest, ContiguousBlocksAreOneFragment) {
  // vLLM 0.32 on CPU: [blocks, heads, tokens, 2 * head_dim], all contiguous.
  const TensorView tensor = Tensor({10, 4, 32, 128}, {4 * 32 * 128, 32 * 128, 128, 1});
  absl::StatusOr<KvGroup> group = MakeKvGroup({&tensor, 1}, 32);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->num_blocks, 10u);
  ASSERT_EQ(group->layers.size(), 1u);
  EXPECT_EQ(group->layers[0].fragment_bytes, 4u * 32 * 128 * 4);
  EXPECT_TRUE(group->layers[0].outer.empty());
  EXPECT_EQ(group->layers[0].block_stride_bytes, 4 * 32 * 128 * 4);
}

TEST(TensorLayoutTest, HeadMajorOverLayersIsStrided) {
  // [blocks, heads, tokens, dim] where heads are outermost in memory: stride(0) < stride(1).
  const TensorView tensor = Tensor({10, 4, 32, 64}, {32 * 64, 10 * 32 * 64, 64, 1});
  absl::StatusOr<KvGroup> group = MakeKvGroup({&tensor, 1}, 32);
  ASSERT_TRUE(group.ok()) << group.status();
  const LayerView& view = group->layers[0];
  EXPECT_EQ(view.fragment_bytes, 32u * 64 * 4);
  ASSERT_EQ(view.outer.size(), 1u);
  EXPECT_EQ(view.outer[0].count, 4u);
  EXPECT_EQ(view.outer[0].stride_bytes, 10 * 32 * 64 * 4);
}

TEST(TensorLayoutTest, KeysAndValuesApart) {
  // [2, blocks, tokens, heads, dim], block dimension 1.
  const TensorView tensor =
      Tensor({2, 10, 16, 4, 64}, {10 * 16 * 4 * 64, 16 * 4 * 64, 4 * 64, 64, 1}, 1);
  absl::StatusOr<KvGroup> group = MakeKvGroup({&tensor, 1}, 16);
  ASSERT_TRUE(group.ok()) << group.status();
  EXPECT_EQ(group->num_blocks, 10u);
  ASSERT_EQ(group->layers[0].outer.size(), 1u);
  EXPECT_EQ(group->layers[0].outer[0].count, 2u);
}

TEST(TensorLayoutTest, SharedLayersAreTakenOnce) {
  const TensorView tensors[] = {Tensor({10, 64}, {64, 1}), Tensor({10, 64}, {64, 1})};
  absl::StatusOr<KvGroup> group = MakeKvGroup(tensors, 16);
  ASSERT_TRUE(group.ok());
  EXPECT_EQ(group->layers.size(), 1u);
}

TEST(TensorLayoutTest, OddTensorsAreRefusedInOneSentence) {
  TensorView expanded = Tensor({10, 4, 64}, {64, 0, 1});  // stride 0: the same bytes four times
  TensorView negative = Tensor({10, 64}, {-64, 1});
  TensorView no_dim = Tensor({10, 64}, {64, 1}, 2);
  TensorView overlapping = Tensor({10, 4, 64}, {256, 32, 1});
  for (const TensorView& tensor : {expanded, negative, no_dim, overlapping}) {
    absl::StatusOr<KvGroup> group = MakeKvGroup({&tensor, 1}, 16);
    EXPECT_EQ(group.status().code(), absl::StatusCode::kInvalidArgument);
    EXPECT_EQ(group.status().message().find('\n'), absl::string_view::npos);
  }
  const TensorView mixed[] = {Tensor({10, 64}, {64, 1}), Tensor({11, 64}, {64, 1})};
  EXPECT_FALSE(MakeKvGroup(mixed, 16).ok());
}

}  // namespace
}  // namespace flexkv
