// XXH3 once per instruction set. The files behind it are compiled with flags of their own, so they
// include nothing with inline functions of external linkage: the linker might keep their copy of
// one for everybody.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace flexkv::ssd::internal {

struct ChecksumPiece {
  const void* data;
  size_t bytes;
};
using ChecksumFn = uint64_t (*)(const ChecksumPiece* pieces, size_t count, uint64_t seed);

uint64_t ChecksumSse2(const ChecksumPiece* pieces, size_t count, uint64_t seed);
uint64_t ChecksumAvx2(const ChecksumPiece* pieces, size_t count, uint64_t seed);

}  // namespace flexkv::ssd::internal
