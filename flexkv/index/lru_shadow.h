// Which blocks an exact LRU cache of the same size would hold: those used since the
// latest time since which as many different blocks were used as the cache has. Kept as one count
// a moment (*cohort*: blocks last used then), whatever the number of blocks.
//
// A policy that remembers what it evicted learns from it, use by use, whether LRU would have done
// better: a hit that LRU had lost is a gain, a miss that LRU had held is a loss. O(1) a call.
// Thread: the control thread only.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace flexkv {

class LruShadow {
 public:
  static constexpr uint64_t kHorizon =
      1 << 17;  // moments of half a request; nothing older is held

  LruShadow() : cohorts_(kHorizon) {}

  void SetCapacity(uint64_t blocks) { capacity_ = blocks; }
  void Advance(uint64_t moment) {
    if (moment <= now_) return;
    if (moment - now_ >= kHorizon) {
      std::fill(cohorts_.begin(), cohorts_.end(), 0);
      held_ = 0;
      oldest_ = now_ = moment;
      return;
    }
    while (now_ < moment) {
      ++now_;
      uint32_t& cohort = cohorts_[now_ % kHorizon];
      if (now_ >= kHorizon && oldest_ <= now_ - kHorizon) {
        held_ -= cohort;
        oldest_ = now_ - kHorizon + 1;
      }
      cohort = 0;
    }
  }
  // Blocks are used now; whenever they were used before is told by Forget first.
  void Use(uint32_t blocks) {
    cohorts_[now_ % kHorizon] += blocks;
    held_ += blocks;
    while (oldest_ < now_ && held_ - cohorts_[oldest_ % kHorizon] >= capacity_) {
      held_ -= cohorts_[oldest_++ % kHorizon];
    }
  }
  void Forget(uint64_t start, uint32_t blocks) {
    if (start > now_ || now_ - start >= kHorizon) return;
    uint32_t& cohort = cohorts_[start % kHorizon];
    blocks = std::min(blocks, cohort);
    cohort -= blocks;
    if (start >= oldest_) held_ -= blocks;
  }
  // Of a block last used at that moment.
  bool Holds(uint64_t start) const { return start >= oldest_; }
  uint64_t bytes() const { return cohorts_.capacity() * sizeof(cohorts_[0]); }

 private:
  uint64_t capacity_ = UINT64_MAX;
  uint64_t now_ = 0;
  uint64_t oldest_ = 0;  // the oldest cohort that is held
  uint64_t held_ = 0;    // blocks in it and later ones
  std::vector<uint32_t> cohorts_;
};

}  // namespace flexkv
