// A2CR: score = 0.4 attention + 0.3 frequency + 0.3 recency, each from 0 to 1; what scores below a
// threshold is cleaned up every 60 seconds; decay and threshold follow the pressure on memory.
//
//   attention   stands for how much later tokens look at the block. A cache does not see that, so
//               the position in the prefix is taken: 1 / (1 + depth / 16), blocks near the start
//               (instructions, shared documents) score high.
//   frequency   1 - 1 / uses.
//   recency     e^(-decay * seconds since the last use).
//   pressure    share of the cache in use: above 0.9, above 0.7, else: decay 0.1 / 0.05 / 0.02 a
//               second, threshold 0.4 / 0.3 / 0.2.
//
// A clean-up condemns what scores below the threshold at that moment. The manager evicts only when
// room is needed, so what is condemned stays useful until then; condemned leaves go first, oldest
// first, then the others by score. Counts are not decayed: with these weights it falls below LRU where
// much is used once. Kept for comparison.
//
// Attention and frequency are fixed between two uses of a block: their sum, in 32 steps, is its
// queue. Inside a queue recency alone orders, for ever; across queues the tops' scores are compared
// as they are at that time. Between tiers the last use decides.
//
// Word: 16 bits uses, time of the last use in units of 65.5 us.
#include <algorithm>
#include <array>
#include <cmath>

#include "flexkv/index/eviction_policy.h"

namespace flexkv {
namespace {

constexpr double kAttentionWeight = 0.4, kFrequencyWeight = 0.3, kRecencyWeight = 0.3;
constexpr double kHalfAttentionDepth = 16;  // blocks
constexpr TimeNs kCleanupInterval = 60 * kNsPerSecond;

struct Pressure {
  double above;  // share of the cache in use
  double decay;  // per second
  double threshold;
};
constexpr std::array<Pressure, 3> kPressures = {
    {{0.9, 0.1, 0.4}, {0.7, 0.05, 0.3}, {0, 0.02, 0.2}}};

class A2crPolicy final : public EvictionPolicy {
 public:
  void BeginAccess(const BlockAccess& access) override {
    now_ = access.now >> kUnitShift;
    if (access.now < next_cleanup_) return;
    next_cleanup_ = access.now + kCleanupInterval;
    CleanUp();
  }
  void OnInsert(const InsertedRun& run) override {
    std::fill(run.words.begin(), run.words.end(), kOneUse | now_);
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord& word : words) {
      word = (std::min(word & ~kTimeMask, kMostUses - kOneUse) + kOneUse) | now_;
    }
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word & kTimeMask; }
  uint32_t num_queues() const override { return kQueues; }
  uint32_t QueueOf(PolicyWord word, uint32_t depth) const override {
    const double attention = 1 / (1 + depth / kHalfAttentionDepth);
    const double frequency = 1 - 1 / static_cast<double>(word >> kTimeBits);
    const double fixed = kAttentionWeight * attention + kFrequencyWeight * frequency;
    return std::min(static_cast<uint32_t>(fixed / kStep), kQueues - 1);
  }
  size_t PickQueue(std::span<const QueueTop> tops) const override {
    size_t oldest = tops.size();
    for (size_t i = 0; i < tops.size(); ++i) {
      if (tops[i].score >= condemned_before_[tops[i].queue]) continue;
      if (oldest == tops.size() || tops[i].score < tops[oldest].score) oldest = i;
    }
    if (oldest < tops.size()) return oldest;
    size_t lowest = 0;
    double lowest_score = 2;
    for (size_t i = 0; i < tops.size(); ++i) {
      const double score = ScoreNow(tops[i].queue, tops[i].score);
      if (score >= lowest_score) continue;
      lowest_score = score;
      lowest = i;
    }
    return lowest;
  }
  void OnCapacity(uint64_t blocks_used, uint64_t blocks_total) override {
    const double share = blocks_total == 0
                             ? 0
                             : static_cast<double>(blocks_used) / static_cast<double>(blocks_total);
    size_t level = 0;
    while (level + 1 < kPressures.size() && share <= kPressures[level].above) ++level;
    pressure_ = &kPressures[level];
  }
  std::string_view name() const override { return "a2cr"; }

 private:
  static constexpr uint32_t kQueues = 32;
  static constexpr int kUnitShift = 16;
  static constexpr double kUnitsPerSecond = static_cast<double>(kNsPerSecond) / (1 << kUnitShift);
  static constexpr int kTimeBits = 48;
  static constexpr uint64_t kTimeMask = (1ull << kTimeBits) - 1;
  static constexpr uint64_t kOneUse = 1ull << kTimeBits;
  static constexpr uint64_t kMostUses = ~kTimeMask;
  static constexpr double kStep = (kAttentionWeight + kFrequencyWeight) / kQueues;

  static double FixedOf(uint32_t queue) { return (queue + 0.5) * kStep; }
  double ScoreNow(uint32_t queue, uint64_t last_use) const {
    const double age = static_cast<double>(now_ - std::min(now_, last_use)) / kUnitsPerSecond;
    return FixedOf(queue) + kRecencyWeight * std::exp(-pressure_->decay * age);
  }
  // Notes for each queue since when a block must have been unused to score below the threshold.
  void CleanUp() {
    for (uint32_t queue = 0; queue < kQueues; ++queue) {
      const double recency = (pressure_->threshold - FixedOf(queue)) / kRecencyWeight;
      if (recency <= 0) {
        condemned_before_[queue] = 0;
        continue;
      }
      const double age = std::max(0.0, -std::log(recency) / pressure_->decay) * kUnitsPerSecond;
      condemned_before_[queue] = now_ - std::min(now_, static_cast<uint64_t>(age));
    }
  }

  uint64_t now_ = 0;  // in units of 2^16 ns
  TimeNs next_cleanup_ = kCleanupInterval;
  const Pressure* pressure_ = &kPressures.back();
  std::array<uint64_t, kQueues> condemned_before_{};
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeA2crPolicy() { return std::make_unique<A2crPolicy>(); }

}  // namespace flexkv
