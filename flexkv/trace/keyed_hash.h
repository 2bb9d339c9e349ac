// SipHash-2-4 of one 8-byte word: what a trace shows instead of a block's hash. Who does not know
// the key can neither confirm a guessed prompt nor compare two traces.
#pragma once

#include <bit>
#include <cstdint>

namespace flexkv::trace {

struct HashKey {
  uint64_t k0 = 0, k1 = 0;
};

inline uint64_t KeyedHash(const HashKey& key, uint64_t word) {
  uint64_t v0 = key.k0 ^ 0x736f6d6570736575u, v1 = key.k1 ^ 0x646f72616e646f6du;
  uint64_t v2 = key.k0 ^ 0x6c7967656e657261u, v3 = key.k1 ^ 0x7465646279746573u;
  const auto round = [&] {
    v0 += v1;
    v1 = std::rotl(v1, 13) ^ v0;
    v0 = std::rotl(v0, 32);
    v2 += v3;
    v3 = std::rotl(v3, 16) ^ v2;
    v0 += v3;
    v3 = std::rotl(v3, 21) ^ v0;
    v2 += v1;
    v1 = std::rotl(v1, 17) ^ v2;
    v2 = std::rotl(v2, 32);
  };
  v3 ^= word;
  round();
  round();
  v0 ^= word;
  constexpr uint64_t kLength = uint64_t{8} << 56;  // of the message, in the last word
  v3 ^= kLength;
  round();
  round();
  v0 ^= kLength;
  v2 ^= 0xff;
  for (int i = 0; i < 4; ++i) round();
  return v0 ^ v1 ^ v2 ^ v3;
}

}  // namespace flexkv::trace
