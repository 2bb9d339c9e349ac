// The CUDA agent behind plain C functions (flexkv_gpu_c.so), so that any Python with torch can hand
// it tensors through ctypes: no binding, nothing of the interpreter's version. For tests.
#pragma once

#include <cstddef>
#include <cstdint>

#define FLEXKV_GPU_C extern "C" __attribute__((visibility("default")))

struct FlexkvGpuAgent;

struct FlexkvTensor {  // as torch says: sizes and strides in elements
  const char* layer;
  uint64_t data;
  uint32_t element_bytes;
  uint32_t dimensions;
  const int64_t* shape;
  const int64_t* strides;
  uint32_t block_dimension;
};

// An agent for these tensors beside an arena of `slots` blocks; `engine`: 0 by size, 1 copy engine,
// 2 kernel. Null: `error` says why. Functions are called on the engine's thread.
FLEXKV_GPU_C FlexkvGpuAgent* flexkv_gpu_open(int device, const FlexkvTensor* tensors,
                                             uint32_t count, uint32_t tokens_per_block,
                                             uint32_t slots, uint32_t engine, char* error,
                                             size_t error_bytes);
FLEXKV_GPU_C void flexkv_gpu_close(FlexkvGpuAgent* agent);
FLEXKV_GPU_C uint64_t flexkv_gpu_shard_bytes(const FlexkvGpuAgent* agent);
FLEXKV_GPU_C void* flexkv_gpu_slot(FlexkvGpuAgent* agent, uint32_t slot);
// Which layer view a tensor is; tensors that are the same memory share one.
FLEXKV_GPU_C uint32_t flexkv_gpu_view(const FlexkvGpuAgent* agent, uint32_t tensor);

// A step: bind to the compute stream, fence, submit both halves of ops, forward, step_done.
FLEXKV_GPU_C void flexkv_gpu_bind(FlexkvGpuAgent* agent, uint64_t stream);
FLEXKV_GPU_C void flexkv_gpu_fence(FlexkvGpuAgent* agent, const uint32_t* blocks, uint32_t count);
FLEXKV_GPU_C int flexkv_gpu_submit(FlexkvGpuAgent* agent, uint64_t key, int load, int layerwise,
                                   const uint32_t* blocks, const uint32_t* slots, uint32_t count);
FLEXKV_GPU_C void flexkv_gpu_start_layer_loads(FlexkvGpuAgent* agent, uint32_t wait_ms);
FLEXKV_GPU_C void flexkv_gpu_wait_for_layer(FlexkvGpuAgent* agent, uint32_t view);
FLEXKV_GPU_C void flexkv_gpu_step_done(FlexkvGpuAgent* agent);
// How the op ended: 0 well, 1 in part, 2 failed; -1: not within the time.
FLEXKV_GPU_C int flexkv_gpu_result(FlexkvGpuAgent* agent, uint64_t key, int load,
                                   uint32_t timeout_ms);
