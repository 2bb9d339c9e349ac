// Finds and opens the library with the real cuda::Api: libflexkv_cuda.so beside the caller's own
// binary (or in .. or ../lib of it). It is the only part of FlexKV that needs a driver; without it,
// or without a driver, Open says so in one sentence and everything else works.
#pragma once

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {

// Symbol of the library: creates an Api for `device`, or returns null and writes a sentence without
// terminator of at most `message_bytes` bytes.
using OpenFunction = Api* (*)(uint32_t api_version, int device, char* message,
                              size_t message_bytes);
inline constexpr char kOpenSymbol[] = "flexkv_cuda_open";

// `path`: the library; empty = $FLEXKV_CUDA_LIBRARY, else beside this code. The library stays
// loaded for the life of the process. What is named must be an absolute path to a file of root's or
// ours that others cannot write. NotFound: there is none in this build; Unavailable: no driver or
// no such device; FailedPrecondition: of another version; InvalidArgument, PermissionDenied: the
// path.
absl::StatusOr<std::unique_ptr<Api>> OpenLibrary(int device, const std::string& path = "");

}  // namespace flexkv::cuda
