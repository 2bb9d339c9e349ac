// The body of json_plain_uints_{sse2,avx2}.cc; PLAIN_UINTS_NAME is the function to define.
// Everything here is of internal linkage, see json_plain_uints.h. Arrays of whole numbers, which
// most bytes of a trace are, 64 characters at a time: bit masks of digits, commas and spaces say
// where each number starts and ends, so that no number waits for the one before it. The masks also
// check the shape "1, 2, 3" or "1,2,3"; what differs in any way (the array's end, other spaces,
// fractions, more than 8 digits, errors) is left to the general code.

#include <immintrin.h>

#include "flexkv/trace/json_plain_uints.h"

namespace flexkv::trace::internal {
namespace {

constexpr uint32_t kStep = 64;

struct Masks {
  uint64_t digits = 0, commas = 0, spaces = 0, zeros = 0;
};

#ifdef __AVX2__
Masks MasksOf(const char* from) {
  Masks masks;
  for (uint32_t part = 0; part < kStep; part += 32) {
    const __m256i text = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + part));
    const auto add = [part](__m256i equal, uint64_t* mask) {
      *mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm256_movemask_epi8(equal))) << part;
    };
    const __m256i digit = _mm256_sub_epi8(text, _mm256_set1_epi8('0'));
    add(_mm256_cmpeq_epi8(_mm256_min_epu8(digit, _mm256_set1_epi8(9)), digit), &masks.digits);
    add(_mm256_cmpeq_epi8(text, _mm256_set1_epi8(',')), &masks.commas);
    add(_mm256_cmpeq_epi8(text, _mm256_set1_epi8(' ')), &masks.spaces);
    add(_mm256_cmpeq_epi8(text, _mm256_set1_epi8('0')), &masks.zeros);
  }
  return masks;
}
#else
Masks MasksOf(const char* from) {
  Masks masks;
  for (uint32_t part = 0; part < kStep; part += 16) {
    const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + part));
    const auto add = [part](__m128i equal, uint64_t* mask) {
      *mask |= static_cast<uint64_t>(static_cast<uint32_t>(_mm_movemask_epi8(equal))) << part;
    };
    const __m128i digit = _mm_sub_epi8(text, _mm_set1_epi8('0'));
    add(_mm_cmpeq_epi8(_mm_min_epu8(digit, _mm_set1_epi8(9)), digit), &masks.digits);
    add(_mm_cmpeq_epi8(text, _mm_set1_epi8(',')), &masks.commas);
    add(_mm_cmpeq_epi8(text, _mm_set1_epi8(' ')), &masks.spaces);
    add(_mm_cmpeq_epi8(text, _mm_set1_epi8('0')), &masks.zeros);
  }
  return masks;
}
#endif

uint64_t ChainIds(uint64_t parent, uint64_t id) {
  const uint64_t product = (parent ^ id) * kChainFactor;
  return product ^ (product >> 32);
}

uint64_t Load8(const char* from) {
  uint64_t word;
  __builtin_memcpy(&word, from, sizeof(word));
  return word;
}

// As in json_digits.h.
uint64_t DigitsValue(uint64_t flipped, uint32_t count) {
  uint64_t word = flipped << (64 - 8 * count);
  word = (word * 10) + (word >> 8);
  return (((word & 0x000000FF000000FFu) * 0x000F424000000064u) +
          (((word >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >>
         32;
}

uint32_t LowestBit(uint64_t mask) { return static_cast<uint32_t>(__builtin_ctzll(mask)); }

}  // namespace

// Numbers from *at_in_out (the first character of one) on that are followed by a comma, as far as
// their shape is the usual one. Leaves *at_in_out at the first character of the next number (or at
// what should be one). Reads up to 63 bytes behind the line's end, never further.
uint64_t* PLAIN_UINTS_NAME(const char** at_in_out, uint64_t* chain, uint64_t* out) {
  const char* at = *at_in_out;
  uint64_t last = *chain;
  while (true) {
    const Masks masks = MasksOf(at);
    const uint64_t starts = masks.digits & ~(masks.digits << 1);
    const uint64_t behind = ~masks.digits & (masks.digits << 1);
    const uint64_t wrong = (masks.commas ^ behind) | (masks.spaces & ~(masks.commas << 1)) |
                           ~(masks.digits | masks.commas | masks.spaces) |
                           (starts & masks.zeros & (masks.digits >> 1));
    // Below the first wrong place all is well.
    const uint64_t sound = wrong == 0 ? ~uint64_t{0} : (wrong & (~wrong + 1)) - 1;
    uint64_t ends = behind & sound;
    if (ends == 0) break;
    uint64_t begins = starts;
    const char* const from = at;
    uint32_t end = 0;
    do {
      const auto begin = LowestBit(begins);
      end = LowestBit(ends);
      begins &= begins - 1;
      ends &= ends - 1;
      if (end - begin > 8) {
        at = from + begin;
        *at_in_out = at;
        *chain = last;
        return out;
      }
      last = ChainIds(last, DigitsValue(Load8(from + begin) ^ 0x3030303030303030u, end - begin));
      *out++ = last;
    } while (ends != 0);
    at = from + end + 1;
    if (*at == ' ') ++at;
    if (wrong != 0) break;
  }
  *at_in_out = at;
  *chain = last;
  return out;
}

}  // namespace flexkv::trace::internal
