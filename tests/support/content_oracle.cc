#include "tests/support/content_oracle.h"

#include <algorithm>
#include <cstring>

namespace flexkv {
namespace {

uint64_t Mix(uint64_t z) {  // splitmix64 finaliser
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

constexpr uint64_t kGolden = 0x9E3779B97F4A7C15ull;

uint64_t SeedOf(const BlockHash& hash, uint32_t shard) {
  uint64_t seed = Mix(uint64_t{shard} + kGolden);
  for (uint64_t word : hash.words) seed = Mix(seed ^ word) + kGolden;
  return seed;
}

uint64_t WordAt(uint64_t seed, uint64_t index) { return Mix(seed + index * kGolden); }

// Calls visit(position, word bytes, count) for each piece of a content word in [offset, offset +
// size).
template <typename Visit>
void ForEachPiece(const BlockHash& hash, uint32_t shard, uint64_t offset, size_t size,
                  Visit visit) {
  const uint64_t seed = SeedOf(hash, shard);
  size_t position = 0;
  while (position < size) {
    const uint64_t at = offset + position;
    const uint64_t word = WordAt(seed, at / 8);
    const size_t skip = at % 8;
    const size_t count = std::min<size_t>(8 - skip, size - position);
    std::byte raw[8];
    std::memcpy(raw, &word, 8);
    if (!visit(position, raw + skip, count)) return;
    position += count;
  }
}

}  // namespace

void FillContent(const BlockHash& hash, uint32_t shard, std::span<std::byte> target,
                 uint64_t offset) {
  ForEachPiece(hash, shard, offset, target.size(),
               [&](size_t position, const std::byte* piece, size_t count) {
                 std::memcpy(target.data() + position, piece, count);
                 return true;
               });
}

std::optional<size_t> FirstWrongByte(const BlockHash& hash, uint32_t shard,
                                     std::span<const std::byte> bytes, uint64_t offset) {
  std::optional<size_t> wrong;
  ForEachPiece(hash, shard, offset, bytes.size(),
               [&](size_t position, const std::byte* piece, size_t count) {
                 for (size_t i = 0; i < count; ++i) {
                   if (bytes[position + i] == piece[i]) continue;
                   wrong = position + i;
                   return false;
                 }
                 return true;
               });
  return wrong;
}

BlockHash HashFromNumber(uint64_t number) {
  BlockHash hash;
  uint64_t state = Mix(number + kGolden);
  for (uint64_t& word : hash.words) word = state = Mix(state + kGolden);
  return hash;
}

BlockHash ChildHash(const BlockHash& parent, uint64_t number) {
  return HashFromNumber(SeedOf(parent, 0) ^ Mix(number));
}

}  // namespace flexkv
