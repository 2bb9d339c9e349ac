// Counts of values in buckets of equal ratio: 32 to each power of two, so a value read back is off
// by at most 1/64 (1.6 %) of itself, whatever its size. 15 KiB, never grows; values up to 31 and
// the greatest one are exact.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>

namespace flexkv::trace {

class LogHistogram {
 public:
  static constexpr size_t kSub = 32;
  static constexpr size_t kBuckets = kSub * 60;

  void Add(uint64_t value, uint64_t count = 1) {
    if (count == 0) return;
    counts_[IndexOf(value)] += count;
    count_ += count;
    sum_ += static_cast<double>(value) * static_cast<double>(count);
    max_ = std::max(max_, value);
    min_ = std::min(min_, value);
  }

  uint64_t count() const { return count_; }
  double sum() const { return sum_; }
  double mean() const { return count_ == 0 ? 0 : sum_ / static_cast<double>(count_); }
  uint64_t max() const { return max_; }
  uint64_t min() const { return count_ == 0 ? 0 : min_; }

  // The value that `share` (0..1) of all values do not exceed; 0 without values.
  uint64_t Percentile(double share) const {
    const uint64_t rank = std::max<uint64_t>(
        1, static_cast<uint64_t>(std::ceil(share * static_cast<double>(count_))));
    uint64_t seen = 0;
    for (size_t i = 0; i < kBuckets; ++i) {
      seen += counts_[i];
      if (seen >= rank) {
        return std::clamp(LowOf(i) + (HighOf(i) - LowOf(i)) / 2, min(), max_);
      }
    }
    return max_;
  }
  // Values in buckets that start at `bound` or above it.
  uint64_t CountFrom(uint64_t bound) const {
    uint64_t total = 0;
    for (size_t i = IndexOf(bound); i < kBuckets; ++i) total += counts_[i];
    return total;
  }

  // Calls visit(low, high, count) for each power of two in use, ascending; high is inclusive.
  template <typename Visit>
  void ForEachOctave(Visit visit) const {
    const auto show = [&](size_t first, size_t last) {
      uint64_t total = 0;
      for (size_t i = first; i <= last; ++i) total += counts_[i];
      if (total != 0) visit(LowOf(first), HighOf(last), total);
    };
    show(0, 0);
    for (size_t first = 1; first < kSub; first *= 2) show(first, 2 * first - 1);
    for (size_t first = kSub; first < kBuckets; first += kSub) show(first, first + kSub - 1);
  }
  // The same in quarters of a power of two.
  template <typename Visit>
  void ForEachQuarter(Visit visit) const {
    constexpr size_t kStep = kSub / 4;
    for (size_t first = 0; first < kBuckets; first += kStep) {
      uint64_t total = 0;
      for (size_t i = first; i < first + kStep; ++i) total += counts_[i];
      if (total != 0) visit(LowOf(first), HighOf(first + kStep - 1), total);
    }
  }

 private:
  static size_t IndexOf(uint64_t value) {
    if (value < kSub) return value;
    const int shift = static_cast<int>(std::bit_width(value)) - 6;  // value >> shift: 32..63
    return kSub * (static_cast<size_t>(shift) + 1) + (value >> shift) - kSub;
  }
  static uint64_t LowOf(size_t index) {
    if (index < kSub) return index;
    return (kSub + index % kSub) << (index / kSub - 1);
  }
  static uint64_t HighOf(size_t index) {
    return index + 1 == kBuckets ? UINT64_MAX : LowOf(index + 1) - 1;
  }

  std::array<uint64_t, kBuckets> counts_{};
  uint64_t count_ = 0, max_ = 0, min_ = UINT64_MAX;
  double sum_ = 0;
};

}  // namespace flexkv::trace
