// flexkv_copy_plan_bench: what it costs to cut a chunk of 4 MiB into copies for a GPU, per
// fragment, by layout. The limit is one pass that writes as many copies (target, source, size) and
// nothing else. At 50 GB/s a chunk takes 84 us, so a planner may take a small part of that.
//
//   flexkv_copy_plan_bench [--json FILE] [--repeats 21]
#include <cstdio>
#include <string>
#include <vector>

#include "flexkv/transfer/cuda/copy_plan.h"
#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

constexpr uint64_t kChunkBytes = 4ull << 20;
constexpr uint32_t kBlocks = 4096;
constexpr uintptr_t kDevice = uintptr_t{1} << 40;  // never touched
constexpr uintptr_t kArena = uintptr_t{1} << 44;

struct Case {
  std::string name;
  uint32_t layers;    // views
  uint32_t loops;     // fragments of a view of a block
  uint32_t fragment;  // bytes
};

// Layer-first tensors whose fragments have a gap behind them: nothing merges.
KvLayout MakeLayout(const Case& at) {
  KvLayout layout;
  layout.groups.push_back({.num_blocks = kBlocks, .tokens_per_block = 16});
  for (uint32_t layer = 0; layer < at.layers; ++layer) {
    const int64_t stride = int64_t{at.fragment} * 2;
    LayerView view{.base = kDevice + (uintptr_t{layer} << 34),
                   .block_stride_bytes = stride * at.loops,
                   .fragment_bytes = at.fragment};
    if (at.loops > 1) view.outer.push_back({at.loops, stride});
    layout.groups[0].layers.push_back(view);
  }
  return layout;
}

struct Filled {
  std::vector<void*> targets;
  std::vector<const void*> sources;
  std::vector<size_t> sizes;
};

double LimitNs(Filled* filled, size_t count, uint32_t fragment) {
  const uint64_t start = NowNs();
  for (size_t i = 0; i < count; ++i) {
    filled->targets[i] = reinterpret_cast<void*>(kDevice + i * fragment * 2);
    filled->sources[i] = reinterpret_cast<const void*>(kArena + i * fragment);
    filled->sizes[i] = fragment;
  }
  __asm__ volatile("" : : "r"(filled->sizes.data()) : "memory");
  return static_cast<double>(NowNs() - start) / static_cast<double>(count);
}

void Run(const Case& at, size_t repeats, JsonSink* sink) {
  const internal::ShardMap map(MakeLayout(at));
  cuda::CopyPlanner planner(map);
  const size_t blocks = std::max<uint64_t>(1, kChunkBytes / map.shard_bytes);
  const size_t fragments = blocks * at.layers * at.loops;
  Filled filled{std::vector<void*>(fragments), std::vector<const void*>(fragments),
                std::vector<size_t>(fragments)};
  Rng rng(1);
  std::vector<double> ours, limits;
  for (size_t repeat = 0; repeat < repeats; ++repeat) {
    limits.push_back(LimitNs(&filled, fragments, at.fragment));
    std::vector<uint32_t> ids;
    for (size_t i = 0; i < blocks; ++i) ids.push_back(static_cast<uint32_t>(rng.Below(kBlocks)));
    const uint64_t start = NowNs();
    planner.Begin(Route::kCpuToDevice, 0);
    for (size_t i = 0; i < blocks; ++i) {
      planner.Add(reinterpret_cast<std::byte*>(kArena + i * map.shard_bytes), {&ids[i], 1}, 0,
                  at.layers);
    }
    planner.Finish();
    ours.push_back(static_cast<double>(NowNs() - start) / static_cast<double>(fragments));
  }
  std::printf("%-34s %6zu fragments  %5.2f ns each (limit %.2f), a chunk %.1f us\n",
              at.name.c_str(), planner.engine().count, Median(ours), Median(limits),
              Median(ours) * static_cast<double>(fragments) / 1e3);
  sink->Add({.name = "copy_plan." + at.name,
             .unit = "ns",
             .limit_name = "writing the list",
             .value = Median(ours),
             .limit = Median(limits),
             .repeats = ours});
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) {
  using flexkv::bench::Case;
  const flexkv::bench::Args args(argc, argv);
  flexkv::bench::JsonSink sink(args.Get("json", ""));
  const size_t repeats = std::stoul(args.Get("repeats", "21"));
  for (const Case& at :
       {Case{"64 layers of 32 KiB", 64, 1, 32768}, Case{"64 layers of 8 x 4 KiB", 64, 8, 4096},
        Case{"64 layers of 16 x 256 B", 64, 16, 256},
        Case{"61 layers of 576 B x 16 (MLA)", 61, 1, 18432}}) {
    flexkv::bench::Run(at, repeats, &sink);
  }
  return 0;
}
