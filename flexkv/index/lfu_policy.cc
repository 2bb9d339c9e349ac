// Least frequently used, ties by recency: counts since the block's insert, never decayed. What was
// hot once stays; kept for comparison.
//
// Word: uses in the upper 24 bits (they stop at the top), sequence number of the last access below.
#include <algorithm>

#include "flexkv/index/eviction_policy.h"

namespace flexkv {
namespace {

class LfuPolicy final : public EvictionPolicy {
 public:
  void BeginAccess(const BlockAccess& /*access*/) override {
    sequence_ = (sequence_ + 1) & kSequenceMask;
  }
  void OnInsert(const InsertedRun& run) override {
    std::fill(run.words.begin(), run.words.end(), kOneUse | sequence_);
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord& word : words) {
      const uint64_t uses = std::min(word & ~kSequenceMask, kMostUses - kOneUse) + kOneUse;
      word = uses | sequence_;
    }
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word; }
  std::string_view name() const override { return "lfu"; }

 private:
  static constexpr int kSequenceBits = 40;
  static constexpr uint64_t kSequenceMask = (1ull << kSequenceBits) - 1;
  static constexpr uint64_t kOneUse = 1ull << kSequenceBits;
  static constexpr uint64_t kMostUses = ~kSequenceMask;

  uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLfuPolicy() { return std::make_unique<LfuPolicy>(); }

}  // namespace flexkv
