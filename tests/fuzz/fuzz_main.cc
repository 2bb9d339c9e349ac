// One libFuzzer program per target: FLEXKV_FUZZ_TARGET is the function's name.
#include "tests/fuzz/fuzz_targets.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  flexkv::FLEXKV_FUZZ_TARGET(std::as_bytes(std::span(data, size)));
  return 0;
}
