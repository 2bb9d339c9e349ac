// A library that opens no device: of another version for device 0, without driver for others.
#include <cstdio>

#include "flexkv/transfer/cuda/cuda_api.h"

extern "C" __attribute__((visibility("default"))) flexkv::cuda::Api* flexkv_cuda_open(
    uint32_t api_version, int device, char* message, size_t message_bytes) {
  if (device == 0) {
    std::snprintf(message, message_bytes, "version 9 of the library is not version %u",
                  api_version);
  } else {
    std::snprintf(message, message_bytes, "there is no device %d", device);
  }
  return nullptr;
}
