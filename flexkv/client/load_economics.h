// Is a load worth a step? A load delays its request by about one decode step and then moves bytes;
// recomputing costs prefill time. With T tokens the load wins when  T / prefill_rate > step + T /
// load_rate.
//
// Rates are running estimates from the steps and loads that happen anyway. No clock of its own.
#pragma once

#include <algorithm>
#include <cstdint>

#include "flexkv/base/clock.h"

namespace flexkv {

class LoadEconomics {
 public:
  // A step of `tokens` scheduled tokens for `requests` requests took `duration`.
  void RecordStep(uint32_t tokens, uint32_t requests, TimeNs duration_ns) {
    if (tokens == 0 || duration_ns == 0 || duration_ns > 60 * kNsPerSecond) return;
    const double seconds = static_cast<double>(duration_ns) * 1e-9;
    if (tokens <= 2 * requests) {
      Blend(&step_s_, seconds);
    } else if (tokens >= kPrefillTokens) {
      Blend(&prefill_tokens_per_s_, tokens / seconds);
    }
  }
  // `duration_ns` is the copy's own: that a load's end is noticed at a step's end is in the step.
  void RecordLoad(uint32_t tokens, TimeNs duration_ns) {
    if (tokens < kPrefillTokens || duration_ns == 0) return;
    Blend(&load_tokens_per_s_, tokens / (static_cast<double>(duration_ns) * 1e-9));
  }

  // Shortest hit worth loading, between one and kMaxBlocks blocks; one block until something was
  // measured.
  uint32_t MinLoadTokens(uint32_t tokens_per_block) const {
    if (prefill_tokens_per_s_ == 0) return tokens_per_block;
    const double step = step_s_ > 0 ? step_s_ : kDefaultStepSeconds;
    double gain_per_token = 1 / prefill_tokens_per_s_;
    if (load_tokens_per_s_ > 0) gain_per_token -= 1 / load_tokens_per_s_;
    const double limit = static_cast<double>(kMaxBlocks) * tokens_per_block;
    const double tokens = gain_per_token > 0 ? std::min(limit, step / gain_per_token) : limit;
    return std::max(tokens_per_block, static_cast<uint32_t>(tokens));
  }

  double prefill_tokens_per_s() const { return prefill_tokens_per_s_; }
  double load_tokens_per_s() const { return load_tokens_per_s_; }
  double step_seconds() const { return step_s_; }

 private:
  static constexpr uint32_t kPrefillTokens = 128;  // fewer say more about overhead than about rate
  static constexpr double kDefaultStepSeconds = 0.010;
  static constexpr uint32_t kMaxBlocks = 16;
  static constexpr double kWeight = 0.1;

  static void Blend(double* estimate, double sample) {
    *estimate = *estimate == 0 ? sample : *estimate + kWeight * (sample - *estimate);
  }

  double step_s_ = 0;
  double prefill_tokens_per_s_ = 0;
  double load_tokens_per_s_ = 0;
};

}  // namespace flexkv
