// Rate of a counter over the last seconds. Thread: one.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "flexkv/base/clock.h"

namespace flexkv {

class RateMeter {
 public:
  // Call often; keeps one sample a second.
  void Sample(TimeNs now, uint64_t total) {
    if (count_ > 0 && now - Newest().time < kNsPerSecond) return;
    samples_[count_++ % kSamples] = {now, total};
  }
  // Per second, since the oldest sample kept (five seconds ago, less in the beginning).
  double PerSecond(TimeNs now, uint64_t total) const {
    if (count_ == 0) return 0;
    const Point& oldest = samples_[count_ < kSamples ? 0 : count_ % kSamples];
    if (now <= oldest.time) return 0;
    return static_cast<double>(total - oldest.total) * static_cast<double>(kNsPerSecond) /
           static_cast<double>(now - oldest.time);
  }

 private:
  static constexpr size_t kSamples = 6;
  struct Point {
    TimeNs time = 0;
    uint64_t total = 0;
  };
  const Point& Newest() const { return samples_[(count_ - 1) % kSamples]; }

  std::array<Point, kSamples> samples_;
  size_t count_ = 0;
};

}  // namespace flexkv
