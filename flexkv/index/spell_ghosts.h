// Blocks evicted lately with what was known of them: 8 bytes each, four to a set chosen by the
// hash; a full set forgets its oldest. Two hashes with one set and tag are taken for each other
// (one look-up in 10^7 for a table of 10^5). Memory only; thread: the control thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "flexkv/base/ids.h"

namespace flexkv {

// Since when a block waits to be used again, and what kind of block it is.
struct Spell {
  uint64_t start = 0;  // moment of its last use (16 moments make a tick)
  uint32_t cell = 0;
  uint32_t uses = 0;   // since it came
  uint32_t turns = 0;  // of the conversation
  bool ends_request = false;
};

class SpellGhosts {
 public:
  static constexpr uint64_t kLeastRoom = 32768;

  SpellGhosts() { Resize(kLeastRoom); }

  uint64_t room() const { return entries_.size(); }
  uint64_t bytes() const { return entries_.capacity() * sizeof(uint64_t); }

  // Makes room for so many, at least kLeastRoom, and forgets all: `forget(spell)` for each.
  template <typename Forget>
  void Fit(uint64_t blocks, Forget forget, uint64_t now) {
    const uint64_t room = std::max(kLeastRoom, (blocks + kWays - 1) / kWays * kWays);
    if (room == entries_.size()) return;
    for (uint64_t entry : entries_) {
      if (entry != 0) forget(Decode(entry, now));
    }
    Resize(room);
  }

  void Prefetch(const BlockHash& hash) const { __builtin_prefetch(Set(KeyOf(hash))); }

  // Remembers the block. True: another one was forgotten for it.
  bool Add(const BlockHash& hash, uint64_t now, const Spell& spell, Spell* forgotten) {
    const uint64_t key = KeyOf(hash);
    uint64_t* set = Set(key);
    uint64_t* place = set;
    uint64_t most = 0;
    for (uint64_t* entry = set; entry != set + kWays; ++entry) {
      if (SameTag(*entry, key)) {  // evicted twice: from two namespaces
        place = entry;
        break;
      }
      const uint64_t age = *entry == 0 ? kStartMask + 1 : Age(*entry, now);
      if (age >= most) {
        most = age;
        place = entry;
      }
    }
    const bool full = *place != 0;
    if (full) *forgotten = Decode(*place, now);
    *place = Encode(key, spell);
    return full;
  }

  // Removes the block; false: it is not remembered.
  bool Take(const BlockHash& hash, uint64_t now, Spell* spell) {
    const uint64_t key = KeyOf(hash);
    uint64_t* set = Set(key);
    for (uint64_t* entry = set; entry != set + kWays; ++entry) {
      if (!SameTag(*entry, key)) continue;
      *spell = Decode(*entry, now);
      *entry = 0;
      return true;
    }
    return false;
  }

 private:
  // Entry: tag (27 bits) | start (24) | cell (6) | uses (3) | turns (2) | ends (1) | 1.
  static constexpr int kTagShift = 37;
  static constexpr uint64_t kStartMask = (1u << 24) - 1;
  static constexpr uint32_t kWays = 4;

  static uint64_t KeyOf(const BlockHash& hash) {
    uint64_t key = (hash.words[0] ^ (hash.words[1] >> 7) ^ hash.words[2]) * 0x9E3779B97F4A7C15ull;
    key ^= key >> 32;
    return key * 0xBF58476D1CE4E5B9ull;
  }
  // The set from the key's low half, the tag from its high one.
  uint64_t* Set(uint64_t key) {
    return &entries_[((key & 0xffffffffu) * (entries_.size() / kWays) >> 32) * kWays];
  }
  const uint64_t* Set(uint64_t key) const { return const_cast<SpellGhosts*>(this)->Set(key); }

  static bool SameTag(uint64_t entry, uint64_t key) {
    return entry != 0 && entry >> kTagShift == key >> kTagShift;
  }
  static uint64_t Age(uint64_t entry, uint64_t now) { return (now - (entry >> 13)) & kStartMask; }
  static uint64_t Encode(uint64_t key, const Spell& spell) {
    return key >> kTagShift << kTagShift | (spell.start & kStartMask) << 13 |
           uint64_t{spell.cell} << 7 | uint64_t{spell.uses} << 4 | uint64_t{spell.turns} << 2 |
           (spell.ends_request ? 2 : 0) | 1;
  }
  static Spell Decode(uint64_t entry, uint64_t now) {
    return {.start = now - Age(entry, now),
            .cell = static_cast<uint32_t>(entry >> 7 & 63),
            .uses = static_cast<uint32_t>(entry >> 4 & 7),
            .turns = static_cast<uint32_t>(entry >> 2 & 3),
            .ends_request = (entry & 2) != 0};
  }
  void Resize(uint64_t room) {
    entries_.assign(room, 0);
    entries_.shrink_to_fit();
  }

  std::vector<uint64_t> entries_;
};

}  // namespace flexkv
