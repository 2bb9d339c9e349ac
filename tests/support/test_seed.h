// Seeds and dice for randomised tests: the seed is printed and can be given back by
// FLEXKV_TEST_SEED.
#pragma once

#include <cstdint>

namespace flexkv {

// FLEXKV_TEST_SEED when set, else a fresh seed. Prints it once per process.
uint64_t TestSeed();

// splitmix64: small, seedable, the same on every platform.
class TestRng {
 public:
  explicit TestRng(uint64_t seed) : state_(seed) {}
  uint64_t Next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint64_t Below(uint64_t bound) { return Next() % bound; }  // REQUIRES: bound > 0
  bool OneIn(uint64_t n) { return Below(n) == 0; }

 private:
  uint64_t state_;
};

}  // namespace flexkv
