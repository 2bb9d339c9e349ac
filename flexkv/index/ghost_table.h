// Hashes of blocks evicted lately, in up to two lists, each oldest first: what ARC and S3-FIFO
// remember of blocks they no longer hold. At most 8 bytes for each block of the cache (a few KiB at
// least), O(1) a call, no call moves the table.
//
// An entry is a 27-bit tag, the list, and the entry's number in it; eight share a cache line,
// chosen by the hash. A bit for each number says whether its entry is still there, so that sizes
// are exact and the oldest is known although entries leave from the middle. Where a line is full
// its oldest entry is forgotten early; two hashes with one tag and line are taken for each other
// (one look-up in 10^7). Thread: the control thread only.
#pragma once

#include <array>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <optional>

#include "flexkv/base/ids.h"

namespace flexkv {

class GhostTable {
 public:
  static constexpr uint32_t kLists = 2;

  // Sizes the table for a cache of so many blocks. When that has become much more or less than
  // before, everything is forgotten.
  void Fit(uint64_t blocks) {
    if (blocks > room_ + room_ / 4 || (blocks < room_ / 4 && room_ > kLeastBlocks)) [[unlikely]]
      Renew(blocks);
  }
  // The most recent of its list from now on, wherever it was before. REQUIRES: Fit was called.
  void Add(const BlockHash& hash, uint32_t list);
  // Removes the hash; the list it was in, if any.
  std::optional<uint32_t> Take(const BlockHash& hash);
  void Prefetch(const BlockHash& hash) const {
    if (num_lines_ > 0) __builtin_prefetch(&lines_.get()[LineOf(KeyOf(hash))], 1);
  }
  // Forgets the oldest beyond `limit`.
  void Trim(uint32_t list, uint64_t limit);
  uint64_t size(uint32_t list) const { return lists_[list].size; }
  uint64_t bytes() const;

 private:
  static constexpr uint64_t kLeastBlocks = 4096;
  static constexpr uint32_t kWays = 8;
  static constexpr int kTagBits = 27;
  static constexpr uint64_t kTagMask = (1ull << kTagBits) - 1;
  static constexpr uint64_t kMaxNumber = (1ull << (64 - kTagBits - 1)) - 1;

  // Entry: number in its list << 28 | list << 27 | tag. 0: empty (numbers begin at 1).
  struct Line {
    std::array<uint64_t, kWays> entries;
  };
  struct Free {
    void operator()(void* memory) const { std::free(memory); }
  };
  struct List {
    uint64_t oldest = 1;  // entries before this number are forgotten
    uint64_t next = 1;
    uint64_t size = 0;
    std::unique_ptr<uint64_t, Free> there;  // ring of bits by number
  };

  static uint64_t KeyOf(const BlockHash& hash);
  uint64_t LineOf(uint64_t key) const {
    return (key >> 32) * num_lines_ >> 32;  // fewer than 2^32 lines
  }
  void Renew(uint64_t blocks);
  bool IsThere(uint64_t entry) const;
  void Forget(uint32_t list, uint64_t number);
  void ForgetOldest(uint32_t list);

  uint64_t room_ = 0;  // blocks that the table is sized for
  uint64_t num_lines_ = 0;
  uint64_t ring_mask_ = 0;
  std::unique_ptr<Line, Free> lines_;
  std::array<List, kLists> lists_;
};

}  // namespace flexkv
