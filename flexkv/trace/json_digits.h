// Decimal digits, 8 at a time.
#pragma once

#include <bit>
#include <cstdint>
#include <cstring>

namespace flexkv::trace {

inline uint64_t Load8(const char* from) {
  uint64_t word;
  std::memcpy(&word, from, sizeof(word));
  return word;
}

// How many of 8 characters, from the first on, are digits. `flipped`: the word ^ "00000000".
inline uint32_t LeadingDigits(uint64_t flipped) {
  // A byte above 9 has a bit of its upper half set after adding 6; a carry only leaves such a byte.
  const uint64_t other = ((flipped + 0x0606060606060606u) | flipped) & 0xF0F0F0F0F0F0F0F0u;
  return static_cast<uint32_t>(std::countr_zero(other)) / 8;
}

// The value of the first `count` (1..8) digits of `flipped`.
inline uint64_t DigitsValue(uint64_t flipped, uint32_t count) {
  uint64_t word = flipped << (64 - 8 * count);  // zeros come in front
  word = (word * 10) + (word >> 8);             // pairs
  return (((word & 0x000000FF000000FFu) * 0x000F424000000064u) +
          (((word >> 16) & 0x000000FF000000FFu) * 0x0000271000000001u)) >>
         32;
}

}  // namespace flexkv::trace
