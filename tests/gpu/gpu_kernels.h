// Work for the GPU that plays the engine's: waiting, writing, multiplying matrices.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace flexkv::gpu {

// Keeps the stream busy for so long.
cudaError_t Spin(cudaStream_t stream, uint32_t microseconds);
// Writes this byte, as an engine's kernel overwrites blocks.
cudaError_t Write(cudaStream_t stream, void* memory, size_t bytes, uint8_t value);

// c = a * b with bf16 factors and float sums on the tensor units; n a multiple of 128. Fills the
// whole GPU; n = 4096 takes about a millisecond.
cudaError_t MatrixProduct(cudaStream_t stream, const void* a, const void* b, void* c, uint32_t n);
// Random bf16 numbers in [-1, 1).
cudaError_t RandomMatrix(cudaStream_t stream, void* matrix, uint32_t n, uint32_t seed);

}  // namespace flexkv::gpu
