// The body of ssd_checksum_{sse2,avx2}.cc; CHECKSUM_NAME is the function to define. The hash
// is inlined: the distribution's library is built for SSE2.
#define XXH_INLINE_ALL
#include <xxhash.h>

#include "flexkv/storage/ssd/ssd_checksum_isa.h"

namespace flexkv::ssd::internal {

uint64_t CHECKSUM_NAME(const ChecksumPiece* pieces, size_t count, uint64_t seed) {
  if (count == 1) return XXH3_64bits_withSeed(pieces[0].data, pieces[0].bytes, seed);
  XXH3_state_t state;
  XXH3_INITSTATE(&state);
  XXH3_64bits_reset_withSeed(&state, seed);
  for (size_t i = 0; i < count; ++i) {
    XXH3_64bits_update(&state, pieces[i].data, pieces[i].bytes);
  }
  return XXH3_64bits_digest(&state);
}

}  // namespace flexkv::ssd::internal
