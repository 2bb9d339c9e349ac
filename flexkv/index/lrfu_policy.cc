// Least recently/frequently used: counts that decay. Each use of a block is worth 2^(-age / h); the
// block with the least sum goes first. A block used often long ago falls behind one used twice
// lately.
//
// Age is counted in blocks that entered the cache since, and the half life h is one cacheful: what
// a count is worth must outlive the stay of a block that is not used, and not by much, whatever the
// size of the cache and the traffic.
//
// The order is static: with F the sum now, log2 F + now/h changes only when the block is used. The
// word is that number as a double; a use makes 2^S + 2^(now/h) out of 2^S. It is never negative, so
// its bits order like its value. Runs mostly hold equal words, so the logarithm is taken once for
// several blocks.
#include <algorithm>
#include <bit>
#include <cmath>

#include "flexkv/index/eviction_policy.h"

namespace flexkv {
namespace {

constexpr double kHalfLifeCachefuls = 1;

class LrfuPolicy final : public EvictionPolicy {
 public:
  // Creeps on without inserts too, so that of equal counts the least recent one goes.
  void BeginAccess(const BlockAccess& /*access*/) override {
    const uint64_t cacheful = std::max({held_, capacity_, kLeastCacheful});
    const double cachefuls = static_cast<double>(entered_) / static_cast<double>(cacheful);
    now_ += (cachefuls + kLeastAge) / kHalfLifeCachefuls;
    entered_ = 0;
  }
  void OnInsert(const InsertedRun& run) override {
    std::fill(run.words.begin(), run.words.end(), std::bit_cast<PolicyWord>(now_));
    held_ += run.words.size();
    entered_ += run.words.size();
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    PolicyWord before = words.front();
    PolicyWord after = Used(before);
    for (PolicyWord& word : words) {
      if (word != before) {
        before = word;
        after = Used(before);
      }
      word = after;
    }
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word; }
  void OnEvict(PolicyWord /*word*/, const BlockHash& /*hash*/, uint32_t /*depth*/) override {
    --held_;
  }
  void OnDrop(std::span<const PolicyWord> words, uint32_t /*first_depth*/) override {
    held_ -= words.size();
  }
  void OnCapacity(uint64_t /*blocks_used*/, uint64_t blocks_total) override {
    capacity_ = blocks_total;
  }
  std::string_view name() const override { return "lrfu"; }

 private:
  static constexpr double kLeastAge = 1e-6;
  static constexpr uint64_t kLeastCacheful = 64;

  PolicyWord Used(PolicyWord word) const {
    const double value = std::bit_cast<double>(word);
    const double high = std::max(value, now_);
    const double low = std::min(value, now_);
    return std::bit_cast<PolicyWord>(high + std::log2(1 + std::exp2(low - high)));
  }

  double now_ = 0;        // in half lives
  uint64_t entered_ = 0;  // blocks, in the latest access
  uint64_t held_ = 0;
  uint64_t capacity_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLrfuPolicy() { return std::make_unique<LrfuPolicy>(); }

}  // namespace flexkv
