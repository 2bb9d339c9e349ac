#include <immintrin.h>
#include <string.h>

#include "flexkv/transfer/host_copy_isa.h"

namespace flexkv::internal {

void StreamCopySse2(void* target, const void* source, size_t bytes, const void* next) {
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
    const __m128i v0 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 0));
    const __m128i v1 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 16));
    const __m128i v2 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 32));
    const __m128i v3 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 48));
    const __m128i v4 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 64));
    const __m128i v5 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 80));
    const __m128i v6 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 96));
    const __m128i v7 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 112));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 0), v0);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 16), v1);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 32), v2);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 48), v3);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 64), v4);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 80), v5);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 96), v6);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 112), v7);
    const __m128i v8 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 128));
    const __m128i v9 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 144));
    const __m128i v10 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 160));
    const __m128i v11 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 176));
    const __m128i v12 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 192));
    const __m128i v13 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 208));
    const __m128i v14 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 224));
    const __m128i v15 = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + 240));
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 128), v8);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 144), v9);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 160), v10);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 176), v11);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 192), v12);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 208), v13);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 224), v14);
    _mm_stream_si128(reinterpret_cast<__m128i*>(to + 240), v15);
  }
  memcpy(to, from, bytes);
}

}  // namespace flexkv::internal
