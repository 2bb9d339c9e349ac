#include <immintrin.h>
#include <string.h>

#include "flexkv/transfer/host_copy_isa.h"

namespace flexkv::internal {

void StreamCopyAvx2(void* target, const void* source, size_t bytes, const void* next) {
  const char* next_line = static_cast<const char*>(next);
  if (next_line != nullptr) {
    for (int i = 0; i < 16; ++i) _mm_prefetch(next_line + 64 * i, _MM_HINT_T0);
  }
  char* to = static_cast<char*>(target);
  const char* from = static_cast<const char*>(source);
  // Whole lines only go past the cache; the pieces before the first and after the last are ordinary
  // stores.
  const size_t head = (64 - (reinterpret_cast<size_t>(to) & 63)) & 63;
  memcpy(to, from, head);
  to += head;
  from += head;
  bytes -= head;
  for (; bytes >= 256; bytes -= 256, to += 256, from += 256) {
    const __m256i v0 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 0));
    const __m256i v1 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 32));
    const __m256i v2 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 64));
    const __m256i v3 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 96));
    const __m256i v4 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 128));
    const __m256i v5 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 160));
    const __m256i v6 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 192));
    const __m256i v7 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + 224));
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 0), v0);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 32), v1);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 64), v2);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 96), v3);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 128), v4);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 160), v5);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 192), v6);
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to + 224), v7);
  }
  memcpy(to, from, bytes);
}

}  // namespace flexkv::internal
