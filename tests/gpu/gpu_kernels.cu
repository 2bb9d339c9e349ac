#include <cuda_bf16.h>
#include <mma.h>

#include "tests/gpu/gpu_kernels.h"

namespace flexkv::gpu {
namespace {

__global__ void SpinFor(uint64_t nanoseconds) {
  uint64_t began, now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(began));
  do {
    asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  } while (now - began < nanoseconds);
}

__global__ void WriteBytes(unsigned char* memory, uint64_t bytes, unsigned char value) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < bytes;
       i += uint64_t{gridDim.x} * blockDim.x) {
    memory[i] = value;
  }
}

__global__ void FillRandom(__nv_bfloat16* matrix, uint64_t count, uint32_t seed) {
  for (uint64_t i = blockIdx.x * uint64_t{blockDim.x} + threadIdx.x; i < count;
       i += uint64_t{gridDim.x} * blockDim.x) {
    uint32_t x = (static_cast<uint32_t>(i) + 1) * 0x9E3779B9u + seed;
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    matrix[i] = __float2bfloat16(static_cast<float>(x >> 8) / 8388608.0f - 1.0f);
  }
}

// A thread block of eight warps makes a tile of 128 x 128, 32 columns of `a` at a time through
// shared memory; each warp makes 32 x 64 of it.
constexpr int kTile = 128, kDepth = 32, kPad = 8, kFragment = 16;

__global__ void __launch_bounds__(256)
    Multiply(const __nv_bfloat16* a, const __nv_bfloat16* b, float* c, uint32_t n) {
  using nvcuda::wmma::accumulator;
  using nvcuda::wmma::fragment;
  using nvcuda::wmma::matrix_a;
  using nvcuda::wmma::matrix_b;
  using nvcuda::wmma::row_major;
  __shared__ __align__(32) __nv_bfloat16 tile_a[kTile][kDepth + kPad];
  __shared__ __align__(32) __nv_bfloat16 tile_b[kDepth][kTile + kPad];
  const uint32_t row = blockIdx.y * kTile, column = blockIdx.x * kTile;
  const uint32_t warp = threadIdx.x / 32;
  const uint32_t warp_row = warp % 4 * 32, warp_column = warp / 4 * 64;
  fragment<accumulator, kFragment, kFragment, kFragment, float> sums[2][4];
  for (auto& line : sums) {
    for (auto& sum : line) nvcuda::wmma::fill_fragment(sum, 0.0f);
  }
  for (uint32_t k = 0; k < n; k += kDepth) {
    for (uint32_t i = threadIdx.x; i < kTile * kDepth / 8; i += blockDim.x) {
      const uint32_t y = i / (kDepth / 8), x = i % (kDepth / 8) * 8;
      *reinterpret_cast<uint4*>(&tile_a[y][x]) =
          *reinterpret_cast<const uint4*>(a + uint64_t{row + y} * n + k + x);
      const uint32_t v = i / (kTile / 8), u = i % (kTile / 8) * 8;
      *reinterpret_cast<uint4*>(&tile_b[v][u]) =
          *reinterpret_cast<const uint4*>(b + uint64_t{k + v} * n + column + u);
    }
    __syncthreads();
    for (uint32_t inner = 0; inner < kDepth; inner += kFragment) {
      fragment<matrix_a, kFragment, kFragment, kFragment, __nv_bfloat16, row_major> left[2];
      fragment<matrix_b, kFragment, kFragment, kFragment, __nv_bfloat16, row_major> right[4];
      for (int i = 0; i < 2; ++i) {
        nvcuda::wmma::load_matrix_sync(left[i], &tile_a[warp_row + i * kFragment][inner],
                                       kDepth + kPad);
      }
      for (int i = 0; i < 4; ++i) {
        nvcuda::wmma::load_matrix_sync(right[i], &tile_b[inner][warp_column + i * kFragment],
                                       kTile + kPad);
      }
      for (int i = 0; i < 2; ++i) {
        for (int j = 0; j < 4; ++j) {
          nvcuda::wmma::mma_sync(sums[i][j], left[i], right[j], sums[i][j]);
        }
      }
    }
    __syncthreads();
  }
  for (int i = 0; i < 2; ++i) {
    for (int j = 0; j < 4; ++j) {
      float* target =
          c + uint64_t{row + warp_row + i * kFragment} * n + column + warp_column + j * kFragment;
      nvcuda::wmma::store_matrix_sync(target, sums[i][j], n, nvcuda::wmma::mem_row_major);
    }
  }
}

}  // namespace

cudaError_t Spin(cudaStream_t stream, uint32_t microseconds) {
  SpinFor<<<1, 1, 0, stream>>>(uint64_t{microseconds} * 1000);
  return cudaGetLastError();
}

cudaError_t Write(cudaStream_t stream, void* memory, size_t bytes, uint8_t value) {
  WriteBytes<<<64, 256, 0, stream>>>(static_cast<unsigned char*>(memory), bytes, value);
  return cudaGetLastError();
}

cudaError_t MatrixProduct(cudaStream_t stream, const void* a, const void* b, void* c, uint32_t n) {
  if (n == 0 || n % kTile != 0) return cudaErrorInvalidValue;
  Multiply<<<dim3(n / kTile, n / kTile), 256, 0, stream>>>(static_cast<const __nv_bfloat16*>(a),
                                                           static_cast<const __nv_bfloat16*>(b),
                                                           static_cast<float*>(c), n);
  return cudaGetLastError();
}

cudaError_t RandomMatrix(cudaStream_t stream, void* matrix, uint32_t n, uint32_t seed) {
  FillRandom<<<256, 256, 0, stream>>>(static_cast<__nv_bfloat16*>(matrix), uint64_t{n} * n, seed);
  return cudaGetLastError();
}

}  // namespace flexkv::gpu
