// GDSF (greedy dual size, frequency) for blocks of one size: value = L + uses * cost, taken at the
// block's last use, where L is the value of what was evicted last. So a block's worth ages as the
// cache turns over: L rises, values do not. Values between two evictions differ by recency too: L
// creeps up with every access, far less than any cost.
//
// Cost is what a hit saves. Objective `compute`: the prefill of the block, which rises with its
// depth, since its attention goes over everything before it: 1 + depth in tokens / 32,768, the
// point where attention costs a model of 8 billion parameters what its matrices do. Objective
// `tokens`: 1.
//
// Word: value in fixed point (36 bits before the point, 20 behind it), 8 bits uses.
#include <algorithm>

#include "flexkv/index/eviction_policy.h"

namespace flexkv {
namespace {

class GdsfPolicy final : public EvictionPolicy {
 public:
  explicit GdsfPolicy(EvictionObjective objective)
      : weighs_depth_(objective == EvictionObjective::kCompute) {}

  void BeginAccess(const BlockAccess& access) override {
    ++aged_;
    const uint64_t tokens = access.tokens_per_block == 0 ? kUsualTokens : access.tokens_per_block;
    cost_per_block_ = weighs_depth_ ? tokens * kOne / kEqualTokens : 0;
  }
  void OnInsert(const InsertedRun& run) override {
    for (size_t i = 0; i < run.words.size(); ++i) {
      run.words[i] = Word(1, run.first_depth + static_cast<uint32_t>(i));
    }
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t first_depth) override {
    for (size_t i = 0; i < words.size(); ++i) {
      const uint64_t uses = std::min<uint64_t>((words[i] & kUsesMask) + 1, kUsesMask);
      words[i] = Word(uses, first_depth + static_cast<uint32_t>(i));
    }
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word; }
  void OnEvict(PolicyWord word, const BlockHash& /*hash*/, uint32_t /*depth*/) override {
    aged_ = std::max(aged_, word >> kUsesBits);
  }
  std::string_view name() const override { return "gdsf"; }

 private:
  static constexpr uint64_t kOne = 1ull << 20;
  static constexpr uint64_t kEqualTokens = 32768;
  static constexpr uint64_t kUsualTokens = 16;
  static constexpr int kUsesBits = 8;
  static constexpr uint64_t kUsesMask = (1ull << kUsesBits) - 1;

  PolicyWord Word(uint64_t uses, uint32_t depth) const {
    return (aged_ + uses * (kOne + depth * cost_per_block_)) << kUsesBits | uses;
  }

  bool weighs_depth_;
  uint64_t aged_ = 0;            // L, fixed point
  uint64_t cost_per_block_ = 0;  // by which a block's cost exceeds its parent's
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeGdsfPolicy(EvictionObjective objective) {
  return std::make_unique<GdsfPolicy>(objective);
}

}  // namespace flexkv
