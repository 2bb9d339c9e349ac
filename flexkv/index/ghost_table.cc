#include "flexkv/index/ghost_table.h"

#include <algorithm>
#include <bit>

#include "flexkv/index/require.h"

namespace flexkv {
namespace {

// Zeroed memory: large pieces are untouched pages, so that a new table costs what is used of it.
template <typename T>
T* Zeroed(uint64_t count) {
  void* memory = std::calloc(count, sizeof(T));
  Require(memory != nullptr, "memory for a table of evicted hashes");
  return static_cast<T*>(memory);
}

}  // namespace

uint64_t GhostTable::KeyOf(const BlockHash& hash) {
  uint64_t x = hash.words[0] + 0x9E3779B97F4A7C15ull * hash.words[1];
  x ^= (hash.words[2] << 23 | hash.words[2] >> 41) + hash.words[3];
  x = (x ^ (x >> 32)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
  return x ^ (x >> 32);
}

void GhostTable::Renew(uint64_t blocks) {
  room_ = std::max(blocks, kLeastBlocks);
  // 7 bytes a block for entries, at most 1 for the rings.
  num_lines_ = std::max(room_ * 7 / 8 / kWays, uint64_t{1});
  const uint64_t ring_bits = std::bit_ceil(room_);
  ring_mask_ = ring_bits - 1;
  lines_.reset(Zeroed<Line>(num_lines_));
  for (List& list : lists_) {
    list = List{};
    list.there.reset(Zeroed<uint64_t>(ring_bits / 64));
  }
}

uint64_t GhostTable::bytes() const {
  if (num_lines_ == 0) return 0;
  return num_lines_ * sizeof(Line) + kLists * (ring_mask_ + 1) / 8;
}

bool GhostTable::IsThere(uint64_t entry) const {
  const List& list = lists_[entry >> kTagBits & 1];
  const uint64_t number = entry >> (kTagBits + 1);
  if (number < list.oldest) return false;  // empty entries too
  const uint64_t bit = number & ring_mask_;
  return (list.there.get()[bit / 64] >> (bit % 64) & 1) != 0;
}

void GhostTable::Forget(uint32_t which, uint64_t number) {
  List& list = lists_[which];
  const uint64_t bit = number & ring_mask_;
  list.there.get()[bit / 64] &= ~(1ull << bit % 64);
  --list.size;
}

void GhostTable::ForgetOldest(uint32_t which) {
  List& list = lists_[which];
  const uint64_t bit = list.oldest & ring_mask_;
  if ((list.there.get()[bit / 64] >> (bit % 64) & 1) != 0) Forget(which, list.oldest);
  ++list.oldest;
}

void GhostTable::Trim(uint32_t list, uint64_t limit) {
  while (lists_[list].size > limit) ForgetOldest(list);
}

void GhostTable::Add(const BlockHash& hash, uint32_t which) {
  List& list = lists_[which];
  if (list.next > kMaxNumber) [[unlikely]]
    Renew(room_);
  Take(hash);
  if (list.next - list.oldest > ring_mask_) ForgetOldest(which);
  const uint64_t key = KeyOf(hash);
  Line& line = lines_.get()[LineOf(key)];
  uint64_t* place = nullptr;
  for (uint64_t& entry : line.entries) {
    if (!IsThere(entry)) {
      place = &entry;
      break;
    }
    // Numbers of different lists do not compare, but any of the eight will do.
    if (place == nullptr || entry >> (kTagBits + 1) < *place >> (kTagBits + 1)) place = &entry;
  }
  if (IsThere(*place)) Forget(*place >> kTagBits & 1, *place >> (kTagBits + 1));
  *place = list.next << (kTagBits + 1) | uint64_t{which} << kTagBits | (key & kTagMask);
  const uint64_t bit = list.next & ring_mask_;
  list.there.get()[bit / 64] |= 1ull << bit % 64;
  ++list.next;
  ++list.size;
}

std::optional<uint32_t> GhostTable::Take(const BlockHash& hash) {
  if (num_lines_ == 0) return std::nullopt;
  const uint64_t key = KeyOf(hash);
  for (const uint64_t entry : lines_.get()[LineOf(key)].entries) {
    if ((entry & kTagMask) != (key & kTagMask) || !IsThere(entry)) continue;
    const uint32_t list = entry >> kTagBits & 1;
    Forget(list, entry >> (kTagBits + 1));
    return list;
  }
  return std::nullopt;
}

}  // namespace flexkv
