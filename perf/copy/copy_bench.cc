// flexkv_copy_bench: gather and scatter of blocks between strided KV tensors and packed shards, by
// the copier that the device agent uses, on one thread.
//
// Memory: 32 layer tensors of random content (1 GiB together) and 256 MiB of packed shards, on
// transparent huge pages where the system gives them. A repeat moves 256 MiB in random block order,
// in chunks of 4 MiB as the agent does. The limit is one plain contiguous non-temporal copy of as
// many bytes between the same two areas; every repeat measures limit, gather and scatter in turn,
// so that a busy machine slows all of them. Goals at 64 KiB: gather >= 0.80, scatter >= 0.90.
//
//   flexkv_copy_bench [--json FILE] [--repeats 11] [--sizes 4096,16384,65536,262144,2097152]
#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <string>
#include <vector>

#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/host_copy.h"
#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

constexpr size_t kPoolBytes = size_t{1} << 30;
constexpr size_t kMoveBytes = size_t{256} << 20;
constexpr size_t kChunkBytes = size_t{4} << 20;
constexpr size_t kHugePage = size_t{2} << 20;

// Written once, so that pages are there; never given back.
std::byte* MakeArea(size_t bytes, uint64_t seed) {
  void* room = mmap(nullptr, bytes + kHugePage, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (room == MAP_FAILED) {
    std::perror("mmap");
    std::exit(2);
  }
  const uintptr_t aligned =
      (reinterpret_cast<uintptr_t>(room) + kHugePage - 1) / kHugePage * kHugePage;
  madvise(reinterpret_cast<void*>(aligned), bytes, MADV_HUGEPAGE);
  auto* words = reinterpret_cast<uint64_t*>(aligned);
  Rng rng(seed);
  for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) words[i] = rng.Next();
  return reinterpret_cast<std::byte*>(aligned);
}

struct Areas {
  std::byte* pool = MakeArea(kPoolBytes, 1);
  std::byte* packed = MakeArea(kMoveBytes, 2);
};

// The pool seen as `layers` tensors of blocks of one fragment each.
KvLayout PoolLayout(const Areas& areas, size_t fragment, size_t layers) {
  const size_t blocks = kPoolBytes / fragment / layers;
  KvGroup group{.num_blocks = static_cast<uint32_t>(blocks), .tokens_per_block = 16};
  for (size_t layer = 0; layer < layers; ++layer) {
    group.layers.push_back(
        {.base = reinterpret_cast<uintptr_t>(areas.pool + layer * blocks * fragment),
         .block_stride_bytes = static_cast<int64_t>(fragment),
         .fragment_bytes = static_cast<uint32_t>(fragment)});
  }
  return {.groups = {group}};
}

std::vector<uint32_t> RandomBlocks(uint32_t num_blocks, size_t take) {
  std::vector<uint32_t> ids(num_blocks);
  std::iota(ids.begin(), ids.end(), 0u);
  Rng rng(7);
  for (size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[rng.Below(i + 1)]);
  ids.resize(take);
  return ids;
}

void MoveBlocks(const KvLayout& layout, const std::vector<uint32_t>& ids, std::byte* packed,
                bool scatter) {
  size_t next_flush = kChunkBytes, moved = 0;
  BlockCopier copier;
  for (const uint32_t id : ids) {
    for (const LayerView& view : layout.groups[0].layers) {
      scatter ? copier.Scatter(view, id, packed + moved) : copier.Gather(view, id, packed + moved);
      moved += view.block_bytes();
    }
    if (moved < next_flush) continue;
    copier.Flush();
    next_flush = moved + kChunkBytes;
  }
  copier.Flush();
}

template <typename Work>
double GigabytesPerSecond(Work work) {
  const uint64_t start = NowNs();
  work();
  return static_cast<double>(kMoveBytes) / static_cast<double>(NowNs() - start);
}

bool SameBytes(const KvLayout& layout, const std::vector<uint32_t>& ids, const std::byte* packed) {
  for (const uint32_t id : ids) {
    for (const LayerView& view : layout.groups[0].layers) {
      const void* fragment =
          reinterpret_cast<const void*>(view.base + id * size_t{view.fragment_bytes});
      if (std::memcmp(fragment, packed, view.fragment_bytes) != 0) return false;
      packed += view.fragment_bytes;
    }
  }
  return true;
}

std::string SizeName(size_t bytes) {
  return bytes >= (size_t{1} << 20) ? std::to_string(bytes >> 20) + "m"
                                    : std::to_string(bytes >> 10) + "k";
}

void BenchSize(const Areas& areas, size_t fragment, size_t repeats, JsonSink* sink) {
  const size_t layers = fragment >= (size_t{1} << 20) ? 1 : 32;
  const KvLayout layout = PoolLayout(areas, fragment, layers);
  const std::vector<uint32_t> ids =
      RandomBlocks(layout.groups[0].num_blocks, kMoveBytes / fragment / layers);
  std::vector<double> plain, gather, plain_back, scatter;
  for (size_t repeat = 0; repeat < repeats + 1; ++repeat) {
    const double rates[] = {
        GigabytesPerSecond([&] {
          CopyNonTemporal(areas.packed, areas.pool, kMoveBytes);
          CopyFence();
        }),
        GigabytesPerSecond([&] { MoveBlocks(layout, ids, areas.packed, false); }),
        GigabytesPerSecond([&] {
          CopyNonTemporal(areas.pool, areas.packed, kMoveBytes);
          CopyFence();
        }),
        GigabytesPerSecond([&] { MoveBlocks(layout, ids, areas.packed, true); })};
    if (repeat == 0) continue;  // warm-up
    plain.push_back(rates[0]);
    gather.push_back(rates[1]);
    plain_back.push_back(rates[2]);
    scatter.push_back(rates[3]);
  }
  if (!SameBytes(layout, ids, areas.packed)) {
    std::fprintf(stderr, "copied bytes differ\n");
    std::exit(1);
  }
  const auto add = [&](const char* what, const std::vector<double>& ours,
                       const std::vector<double>& limit) {
    sink->Add({.name = std::string("copy.") + what + "_" + SizeName(fragment),
               .unit = "GB/s",
               .limit_name = "plain contiguous non-temporal copy",
               .better = "higher",
               .value = Median(ours),
               .limit = Median(limit),
               .n = ours.size(),
               .repeats = ours});
  };
  add("gather", gather, plain);
  add("scatter", scatter, plain_back);
}

std::vector<size_t> ParseSizes(const std::string& text) {
  std::vector<size_t> sizes;
  for (const char* at = text.c_str(); *at != '\0';) {
    char* end = nullptr;
    const size_t size = std::strtoull(at, &end, 10);
    if (end == at || size < 64 || size > kMoveBytes / 32 || (size & (size - 1)) != 0) {
      std::fprintf(stderr, "--sizes: powers of two from 64 to %zu, separated by commas\n",
                   kMoveBytes / 32);
      std::exit(2);
    }
    sizes.push_back(size);
    at = *end == ',' ? end + 1 : end;
  }
  return sizes;
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) {
  using namespace flexkv::bench;
  const Args args(argc, argv);
  const std::vector<size_t> sizes =
      ParseSizes(args.Get("sizes", "65536,4096,16384,262144,2097152"));
  const size_t repeats = std::max<size_t>(1, args.GetInt("repeats", 11));
  JsonSink sink(args.Get("json", ""));
  const Areas areas;
  for (const size_t size : sizes) BenchSize(areas, size, repeats, &sink);
  return 0;
}
