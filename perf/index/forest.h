// Prompts for the index benchmark: a seeded random forest of runs of equal length. Block i of run r
// has number r * run_blocks + i; its hash is a function of that number, so nothing but the runs'
// parents is kept.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "flexkv/base/ids.h"
#include "perf/bench_util.h"
#include "perf/index/open_table.h"

namespace flexkv::bench {

inline BlockHash HashOfBlock(uint64_t block) {
  BlockHash hash;
  for (uint64_t i = 0; i < 4; ++i) hash.words[i] = SplitMix(block * 4 + i);
  hash.words[1] |= 1;
  return hash;
}
inline Key128 KeyOf(const BlockHash& hash) { return {hash.words[0], hash.words[1]}; }

class Forest {
 public:
  static constexpr uint32_t kNone = 0xffffffffu;
  static constexpr uint32_t kTrunkBlocks = 8192;

  // `trunks` unbranched prompts of 8,192 blocks come first; the rest branches. Every inner run gets
  // at least `min_children` children, so that runs end where they are meant to.
  Forest(uint32_t runs, uint32_t run_blocks, uint32_t leaves, uint32_t min_children,
         uint32_t trunks, uint64_t seed)
      : run_blocks_(run_blocks), parents_(runs, kNone) {
    Rng rng(seed);
    const uint32_t trunk_runs = trunks * (kTrunkBlocks / run_blocks);
    for (uint32_t r = 0; r < trunk_runs; ++r) {
      if (r % (kTrunkBlocks / run_blocks) != 0) parents_[r] = r - 1;
    }
    const uint32_t inner_begin = trunk_runs;
    const uint32_t leaf_begin = runs - leaves;
    constexpr uint32_t kRoots = 64;
    std::vector<uint32_t> children(leaf_begin - inner_begin, 0);
    for (uint32_t r = inner_begin + kRoots; r < leaf_begin; ++r) {
      const uint32_t parent = static_cast<uint32_t>(rng.Below(r - inner_begin));
      parents_[r] = inner_begin + parent;
      ++children[parent];
    }
    uint32_t leaf = leaf_begin;
    for (uint32_t i = 0; i < children.size(); ++i) {
      for (; children[i] < min_children && leaf < runs; ++children[i])
        parents_[leaf++] = inner_begin + i;
    }
    for (; leaf < runs; ++leaf)
      parents_[leaf] = inner_begin + static_cast<uint32_t>(rng.Below(children.size()));
    leaf_begin_ = leaf_begin;
  }

  uint32_t runs() const { return static_cast<uint32_t>(parents_.size()); }
  uint32_t run_blocks() const { return run_blocks_; }
  uint64_t blocks() const { return uint64_t{runs()} * run_blocks_; }
  uint32_t leaf_begin() const { return leaf_begin_; }
  uint32_t leaves() const { return runs() - leaf_begin_; }

  // The chain from the root to the end of `run`; also its block numbers when asked for.
  void Chain(uint32_t run, std::vector<BlockHash>* chain) const {
    path_.clear();
    for (uint32_t r = run; r != kNone; r = parents_[r]) path_.push_back(r);
    chain->clear();
    for (size_t i = path_.size(); i-- > 0;) {
      for (uint32_t b = 0; b < run_blocks_; ++b)
        chain->push_back(HashOfBlock(uint64_t{path_[i]} * run_blocks_ + b));
    }
  }

 private:
  uint32_t run_blocks_;
  std::vector<uint32_t> parents_;
  uint32_t leaf_begin_ = 0;
  mutable std::vector<uint32_t> path_;  // scratch
};

// Slots in an order without neighbours, as after long churn: a fixed permutation of [0, count).
class ScatteredSlots {
 public:
  explicit ScatteredSlots(uint64_t count) : count_(count) {
    while (Gcd(step_, count_) != 1) step_ += 2;
  }
  SlotId Of(uint64_t block) const {
    return SlotId::Make(Tier::kCpu, static_cast<uint32_t>(block * step_ % count_));
  }

 private:
  static uint64_t Gcd(uint64_t a, uint64_t b) { return b == 0 ? a : Gcd(b, a % b); }
  uint64_t count_;
  uint64_t step_ = 2654435761u;
};

}  // namespace flexkv::bench
