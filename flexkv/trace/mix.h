// Spreads the bits of a number over all 64: equal numbers stay equal, near ones end far apart.
#pragma once

#include <cstdint>

namespace flexkv::trace {

// The finaliser of SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators,
// OOPSLA 2014). A bijection; 0 stays 0.
inline uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

}  // namespace flexkv::trace
