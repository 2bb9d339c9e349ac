#include "tests/support/test_seed.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <random>

namespace flexkv {
namespace {

uint64_t ReadSeed() {
  const char* given = std::getenv("FLEXKV_TEST_SEED");
  uint64_t seed = 0;
  if (given != nullptr && *given != '\0') {
    seed = std::strtoull(given, nullptr, 0);
  } else {
    std::random_device device;
    seed = (uint64_t{device()} << 32) | device();
  }
  std::printf("FLEXKV_TEST_SEED=%" PRIu64 "\n", seed);
  std::fflush(stdout);
  return seed;
}

}  // namespace

uint64_t TestSeed() {
  static const uint64_t seed = ReadSeed();
  return seed;
}

}  // namespace flexkv
