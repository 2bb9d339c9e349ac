// Arrays of whole numbers, which most bytes of a trace are, 64 characters at a time: bit masks of
// digits, commas and spaces say where each number starts and ends, so that no number waits for the
// one before it. The masks also check the shape "1, 2, 3" or "1,2,3"; what differs in any way (the
// array's end, other spaces, fractions, more than 8 digits, errors) is left to the general code.
#include <emmintrin.h>

#include <bit>

#include "flexkv/trace/json_cursor.h"
#include "flexkv/trace/json_digits.h"

namespace flexkv::trace {
namespace {

constexpr uint32_t kStep = 64;

struct Masks {
  uint64_t digits = 0, commas = 0, spaces = 0, zeros = 0;
};

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

}  // namespace

// Numbers from at_ (the first character of one) on that are followed by a comma, as far as their
// shape is the usual one. Leaves at_ at the first character of the next number (or at what should
// be one). Reads up to 63 bytes behind the line's end, never further.
uint64_t* JsonCursor::ReadPlainUints(uint64_t* chain, uint64_t* out) {
  uint64_t last = *chain;
  while (true) {
    const Masks masks = MasksOf(at_);
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
    const char* const from = at_;
    uint32_t end = 0;
    do {
      const auto begin = static_cast<uint32_t>(std::countr_zero(begins));
      end = static_cast<uint32_t>(std::countr_zero(ends));
      begins &= begins - 1;
      ends &= ends - 1;
      if (end - begin > 8) {
        at_ = from + begin;
        *chain = last;
        return out;
      }
      last = Chain(last, DigitsValue(Load8(from + begin) ^ 0x3030303030303030u, end - begin));
      *out++ = last;
    } while (ends != 0);
    at_ = from + end + 1;
    if (*at_ == ' ') ++at_;
    if (wrong != 0) break;
  }
  *chain = last;
  return out;
}

bool JsonCursor::ReadChainedUints(uint64_t seed, uint64_t* out, uint64_t* count) {
  if (!BeginArray()) return false;
  uint64_t* const begin = out;
  uint64_t chain = seed;
  while (NextElement()) {
    out = ReadPlainUints(&chain, out);
    uint64_t id = 0;
    if (!ReadUint(&id)) return false;
    chain = Chain(chain, id);
    *out++ = chain;
  }
  *count = static_cast<uint64_t>(out - begin);
  return ok();
}

}  // namespace flexkv::trace
