// Layouts: sizes, and what Validate refuses.
#include "flexkv/base/kv_layout.h"

#include <gmock/gmock.h>

#include <functional>

namespace flexkv {
namespace {

using ::testing::HasSubstr;

// Two layers; per block and layer K and V, 8 heads, 1 KiB each.
KvLayout TwoLayers() {
  KvLayout layout;
  layout.descriptor = "test";
  KvGroup group;
  group.num_blocks = 100;
  group.tokens_per_block = 16;
  for (uintptr_t base : {0x10000u, 0x900000u}) {
    LayerView view;
    view.base = base;
    view.block_stride_bytes = 16384;
    view.fragment_bytes = 1024;
    view.outer = {{2, 100 * 16384}, {8, 2048}};
    group.layers.push_back(view);
  }
  layout.groups.push_back(group);
  return layout;
}

TEST(KvLayout, SizesAreSumsOverGroupsAndLayers) {
  KvLayout layout = TwoLayers();
  EXPECT_TRUE(layout.Validate().ok()) << layout.Validate();
  EXPECT_EQ(layout.groups[0].layers[0].block_bytes(), 16384u);
  EXPECT_EQ(layout.groups[0].block_bytes(), 32768u);
  layout.groups.push_back(layout.groups[0]);
  EXPECT_EQ(layout.shard_bytes(), 65536u);
}

TEST(KvLayout, AViewWithoutLoopsIsOneFragment) {
  KvLayout layout = TwoLayers();
  layout.groups[0].layers[0].outer.clear();
  EXPECT_TRUE(layout.Validate().ok());
  EXPECT_EQ(layout.groups[0].layers[0].block_bytes(), 1024u);
}

TEST(KvLayout, ALoopOfOneMayHaveAnyStride) {
  KvLayout layout = TwoLayers();
  layout.groups[0].layers[0].outer = {{1, 0}};
  EXPECT_TRUE(layout.Validate().ok()) << layout.Validate();
}

struct BadLayout {
  const char* message;
  std::function<void(KvLayout&)> spoil;
};

TEST(KvLayout, WhatCannotBeCopiedIsRefusedWithOneSentence) {
  const std::vector<BadLayout> bad = {
      {"no KV groups", [](KvLayout& l) { l.groups.clear(); }},
      {"no layers", [](KvLayout& l) { l.groups[0].layers.clear(); }},
      {"no blocks", [](KvLayout& l) { l.groups[0].num_blocks = 0; }},
      {"no tokens", [](KvLayout& l) { l.groups[0].tokens_per_block = 0; }},
      {"no address", [](KvLayout& l) { l.groups[0].layers[1].base = 0; }},
      {"empty fragments", [](KvLayout& l) { l.groups[0].layers[1].fragment_bytes = 0; }},
      {"stride", [](KvLayout& l) { l.groups[0].layers[1].block_stride_bytes = 0; }},
      {"stride", [](KvLayout& l) { l.groups[0].layers[1].block_stride_bytes = -16384; }},
      {"strided dimensions",
       [](KvLayout& l) {
         l.groups[0].layers[0].outer.assign(5, {1, 0});
       }},
      {"empty", [](KvLayout& l) { l.groups[0].layers[0].outer[0].count = 0; }},
      {"too large", [](KvLayout& l) { l.groups[0].layers[0].outer[0].count = 1u << 21; }},
      {"overlap", [](KvLayout& l) { l.groups[0].layers[0].outer[1].stride_bytes = 512; }},
      {"overlap", [](KvLayout& l) { l.groups[0].layers[0].outer[1].stride_bytes = -2048; }},
      {"overlap",  // each loop steps over a fragment, the outer one not over the inner one
       [](KvLayout& l) {
         const int64_t fragment = l.groups[0].layers[0].fragment_bytes;
         l.groups[0].layers[0].outer = {{2, 2 * fragment}, {8, fragment}};
       }},
      {"1 GiB",
       [](KvLayout& l) {
         l.groups[0].layers[0].outer.clear();
         l.groups[0].layers[0].fragment_bytes = 1u << 30;
       }},
      {"1 GiB", [](KvLayout& l) { l.groups[0].layers.resize(1u << 16, l.groups[0].layers[0]); }},
  };
  for (const BadLayout& example : bad) {
    KvLayout layout = TwoLayers();
    example.spoil(layout);
    const absl::Status status = layout.Validate();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << example.message;
    EXPECT_THAT(std::string(status.message()), HasSubstr(example.message));
  }
}

TEST(KvLayout, HugeLoopsDoNotOverflow) {
  LayerView view;
  view.fragment_bytes = 0xffffffffu;
  view.outer.assign(4, {1u << 20, int64_t{1} << 40});
  EXPECT_GE(view.block_bytes(), uint64_t{1} << 30);
}

}  // namespace
}  // namespace flexkv
