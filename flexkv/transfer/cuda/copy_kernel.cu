// Copies between GPU memory and registered host memory by a few SMs.
//
// What limits such a copy is how many bytes are under way on PCIe: about 100 KiB cover its latency
// at 50 GB/s. So each lane loads eight 16-byte words before it stores the first: 4 KiB a warp, 64
// KiB a thread block, half a MiB with eight SMs.
//
// Work is cut into tiles of 4 KiB of the target, one per warp and turn. The host counts them and
// gives each thread block the same number in a row (Start: where in which item it begins), so no
// item is read twice and no counter is shared. A thread block takes up to kThreads items at a time,
// one read of host memory each, all at once, and finds a tile's item by bisection in shared memory.
//
// Tiles begin at multiples of 4 KiB from the target's address rounded down to 16, so that only the
// ends of an item are ragged. Where source and target differ modulo 16, narrower words are used.
#include <cstdint>

#include "flexkv/transfer/cuda/copy_kernel.h"

namespace flexkv::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarpLanes = 32;
constexpr int kWarps = kThreads / kWarpLanes;
constexpr int kUnroll = 8;
constexpr uint64_t kVector = 16;
constexpr uint64_t kTileBytes = kUnroll * kWarpLanes * kVector;
constexpr int kMaxBlocks = 160;

struct Start {
  uint64_t item, tile;  // tile within the item
};
struct Plan {  // goes into the kernel's parameters (at most 4 KiB)
  const CopyItem* items;
  uint64_t count, tiles;
  Start starts[kMaxBlocks];
};
static_assert(sizeof(Plan) <= 4096);

// Of all tiles, those in front of block `index` of `blocks`.
__host__ __device__ inline uint64_t TilesBefore(uint64_t tiles, uint32_t index, uint32_t blocks) {
  return tiles / blocks * index + (tiles % blocks < index ? tiles % blocks : index);
}

__host__ __device__ inline uint64_t TilesOf(const void* target, uint64_t bytes) {
  if (bytes == 0) return 0;
  return (reinterpret_cast<uintptr_t>(target) % kVector + bytes + kTileBytes - 1) / kTileBytes;
}

__device__ __forceinline__ uint4 Load(const uint4* at) { return __ldcs(at); }
__device__ __forceinline__ uint2 Load(const uint2* at) { return __ldcs(at); }
__device__ __forceinline__ uint32_t Load(const uint32_t* at) { return __ldcs(at); }
__device__ __forceinline__ unsigned char Load(const unsigned char* at) { return __ldcs(at); }

template <typename Word, int kCount>
__device__ __forceinline__ void CopySome(Word* to, const Word* from, uint32_t words) {
  Word held[kCount];
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i * kWarpLanes < words) held[i] = Load(from + i * kWarpLanes);
  }
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i * kWarpLanes < words) __stcs(to + i * kWarpLanes, held[i]);
  }
}

template <typename Word>
__device__ __forceinline__ void CopyWords(char* target, const char* source, uint32_t words,
                                          uint32_t lane) {
  constexpr int kCount = sizeof(Word) == kVector ? kUnroll : kUnroll / 2;
  const Word* from = reinterpret_cast<const Word*>(source) + lane;
  Word* to = reinterpret_cast<Word*>(target) + lane;
#pragma unroll 1  // more of it would only spill
  for (uint32_t first = lane; first < words; first += kCount * kWarpLanes) {
    CopySome<Word, kCount>(to, from, words - first);
    from += kCount * kWarpLanes;
    to += kCount * kWarpLanes;
  }
}

// One warp copies at most a tile. Bytes in front of the target's first whole word and behind its
// last go one by one.
template <typename Word>
__device__ __forceinline__ void CopyRun(char* target, const char* source, uint32_t bytes,
                                        uint32_t lane) {
  constexpr uint32_t kWord = sizeof(Word);
  const uint32_t to_word =
      static_cast<uint32_t>(-reinterpret_cast<uintptr_t>(target)) & (kWord - 1);
  const uint32_t head = to_word < bytes ? to_word : bytes;
  const uint32_t words = (bytes - head) / kWord;
  const uint32_t tail = head + words * kWord;
  if constexpr (kWord > 1) {
    if (lane < head) target[lane] = source[lane];
    if (tail + lane < bytes) target[tail + lane] = source[tail + lane];
  }
  CopyWords<Word>(target + head, source + head, words, lane);
}

__device__ __forceinline__ void CopyTile(char* target, const char* source, uint64_t bytes,
                                         uint64_t tile, uint32_t lane) {
  const uint64_t shift = reinterpret_cast<uintptr_t>(target) % kVector;
  const uint64_t begin = tile == 0 ? 0 : tile * kTileBytes - shift;
  const uint64_t limit = (tile + 1) * kTileBytes - shift;
  const uint32_t run = static_cast<uint32_t>((limit < bytes ? limit : bytes) - begin);
  target += begin;
  source += begin;
  const uint32_t apart = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(target) ^
                                               reinterpret_cast<uintptr_t>(source)) %
                         kVector;
  if (apart == 0) {
    CopyRun<uint4>(target, source, run, lane);
  } else if (apart % 8 == 0) {
    CopyRun<uint2>(target, source, run, lane);
  } else if (apart % 4 == 0) {
    CopyRun<uint32_t>(target, source, run, lane);
  } else {
    CopyRun<unsigned char>(target, source, run, lane);
  }
}

struct Batch {  // items a thread block is at, and behind which of its tiles each ends
  char* target[kThreads];
  const char* source[kThreads];
  uint64_t bytes[kThreads];
  uint64_t ends[kThreads];
  uint64_t warp_sums[kWarps];
};

// ends[i] = value[0] + ... + value[i] over the thread block.
__device__ void Accumulate(uint64_t value, Batch* batch) {
  const uint32_t thread = threadIdx.x, lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  unsigned long long sum = value;
#pragma unroll
  for (int step = 1; step < kWarpLanes; step *= 2) {
    const unsigned long long lower = __shfl_up_sync(0xffffffffu, sum, step);
    if (lane >= static_cast<uint32_t>(step)) sum += lower;
  }
  if (lane == kWarpLanes - 1) batch->warp_sums[warp] = sum;
  __syncthreads();
  uint64_t before = 0;
#pragma unroll 1
  for (uint32_t i = 0; i < warp; ++i) before += batch->warp_sums[i];
  batch->ends[thread] = before + sum;
  __syncthreads();
}

__device__ __forceinline__ uint32_t ItemOf(const Batch& batch, uint64_t tile) {
  uint32_t low = 0, high = kThreads - 1;  // the first whose end lies behind the tile
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (batch.ends[middle] > tile) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

__global__ void __launch_bounds__(kThreads, 2) CopyItems(const __grid_constant__ Plan plan) {
  __shared__ Batch batch;
  const uint32_t thread = threadIdx.x, lane = thread % kWarpLanes, warp = thread / kWarpLanes;
  uint64_t left = TilesBefore(plan.tiles, blockIdx.x + 1, gridDim.x) -
                  TilesBefore(plan.tiles, blockIdx.x, gridDim.x);
  uint64_t first = plan.starts[blockIdx.x].item;
  uint64_t skip = plan.starts[blockIdx.x].tile;
  while (left > 0 && first < plan.count) {
    uint64_t tiles = 0;
    if (first + thread < plan.count) {
      const CopyItem item = plan.items[first + thread];
      batch.target[thread] = static_cast<char*>(item.target);
      batch.source[thread] = static_cast<const char*>(item.source);
      batch.bytes[thread] = item.bytes;
      tiles = TilesOf(item.target, item.bytes);
      if (thread == 0) tiles -= skip;
    }
    Accumulate(tiles, &batch);
    const uint64_t here = batch.ends[kThreads - 1] < left ? batch.ends[kThreads - 1] : left;
#pragma unroll 1
    for (uint64_t at = warp; at < here; at += kWarps) {
      const uint32_t index = ItemOf(batch, at);
      const uint64_t tile = index == 0 ? at + skip : at - batch.ends[index - 1];
      CopyTile(batch.target[index], batch.source[index], batch.bytes[index], tile, lane);
    }
    __syncthreads();  // before the batch is overwritten
    left -= here;
    first += kThreads;
    skip = 0;
  }
}

// Fills in where each of `blocks` thread blocks starts.
void FindStarts(const CopyItem* items, size_t count, uint32_t blocks, Plan* plan) {
  uint64_t before = 0;
  uint32_t block = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t tiles = TilesOf(items[i].target, items[i].bytes);
    while (block < blocks && TilesBefore(plan->tiles, block, blocks) < before + tiles) {
      plan->starts[block] = {i, TilesBefore(plan->tiles, block, blocks) - before};
      ++block;
    }
    before += tiles;
  }
}

}  // namespace

cudaError_t LoadCopyKernel() {
  cudaFuncAttributes attributes;
  return cudaFuncGetAttributes(&attributes, CopyItems);
}

cudaError_t LaunchCopyKernel(const CopyItem* items, size_t count, int sms, cudaStream_t stream) {
  Plan plan = {};
  plan.items = items;
  plan.count = count;
  for (size_t i = 0; i < count; ++i) plan.tiles += TilesOf(items[i].target, items[i].bytes);
  if (plan.tiles == 0) return cudaSuccess;
  uint64_t blocks = static_cast<uint64_t>(sms < kMaxBlocks ? sms : kMaxBlocks);
  const uint64_t useful = (plan.tiles + kWarps - 1) / kWarps;  // a tile for every warp
  if (blocks > useful) blocks = useful;
  FindStarts(items, count, static_cast<uint32_t>(blocks), &plan);
  void* arguments[] = {&plan};
  return cudaLaunchKernel(reinterpret_cast<const void*>(&CopyItems),
                          dim3(static_cast<unsigned>(blocks)), dim3(kThreads), arguments, 0,
                          stream);
}

}  // namespace flexkv::cuda
