// The kernel behind Api::CopyKernel (copy_kernel.cu).
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>

#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {

// Makes the device load the kernel's code, so that its first launch does not (which would stop the
// engine's streams).
cudaError_t LoadCopyKernel();
// `sms` thread blocks, never two on one item's same bytes; see Api::CopyKernel.
cudaError_t LaunchCopyKernel(const CopyItem* items, size_t count, int sms, cudaStream_t stream);

}  // namespace flexkv::cuda
