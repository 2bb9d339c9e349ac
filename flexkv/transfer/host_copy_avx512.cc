#include <immintrin.h>
#include <string.h>

#include "flexkv/transfer/host_copy_isa.h"

namespace flexkv::internal {

void StreamCopyAvx512(void* target, const void* source, size_t bytes, const void* next) {
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
    const __m512i v0 = _mm512_loadu_si512(from + 0);
    const __m512i v1 = _mm512_loadu_si512(from + 64);
    const __m512i v2 = _mm512_loadu_si512(from + 128);
    const __m512i v3 = _mm512_loadu_si512(from + 192);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 0), v0);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 64), v1);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 128), v2);
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to + 192), v3);
  }
  memcpy(to, from, bytes);
}

}  // namespace flexkv::internal
