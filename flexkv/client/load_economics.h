// Is a load worth a step? A load delays its request by about one decode step and then moves bytes;
// recomputing costs prefill time. With T tokens the load wins when  T / prefill_rate > step + T /
// load_rate.
//
// A hit may be *warm* (in the daemon's memory) up to a point and cold from there on (on an SSD):
// each has a rate of its own. Where the cold part is not worth its time, the warm part may be.
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
  // `duration_ns` is from the daemon's start of the load to the end of its copies: that this is
  // noticed at a step's end is in the step. `cold` of the tokens were read from an SSD.
  void RecordLoad(uint32_t tokens, uint32_t cold, TimeNs duration_ns) {
    if (tokens < kPrefillTokens || duration_ns == 0) return;
    double seconds = static_cast<double>(duration_ns) * 1e-9;
    if (cold == 0) return Blend(&load_tokens_per_s_, tokens / seconds);
    if (cold < tokens / 2 || cold < kPrefillTokens) return;  // says little of either
    if (load_tokens_per_s_ > 0) seconds -= (tokens - cold) / load_tokens_per_s_;
    if (seconds > 0) Blend(&cold_tokens_per_s_, cold / seconds);
  }

  // How much of a hit of `tokens`, the first `warm` of them in memory, is worth a load: all of it,
  // the warm part, or nothing.
  uint32_t WorthLoading(uint32_t tokens, uint32_t warm, uint32_t tokens_per_block) const {
    const uint32_t least = MinLoadTokens(tokens_per_block);
    if (tokens < least) return 0;
    const uint32_t cold = tokens - std::min(warm, tokens);
    if (cold == 0 || prefill_tokens_per_s_ == 0 || cold_tokens_per_s_ == 0) return tokens;
    const double step = step_s_ > 0 ? step_s_ : kDefaultStepSeconds;
    const double gain_of_cold = cold / prefill_tokens_per_s_ - cold / cold_tokens_per_s_;
    const bool warm_too = warm >= least;
    if (gain_of_cold > (warm_too ? 0 : step)) return tokens;
    return warm_too ? warm : 0;
  }
  // A cold part was left. One slow hour of a device must not end its use for good: the estimate
  // rises a little, until the next try corrects it.
  void NoteColdLeft() { cold_tokens_per_s_ *= kForgiveness; }

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
  double cold_tokens_per_s() const { return cold_tokens_per_s_; }
  double step_seconds() const { return step_s_; }

 private:
  static constexpr uint32_t kPrefillTokens = 128;  // fewer say more about overhead than about rate
  static constexpr double kDefaultStepSeconds = 0.010;
  static constexpr uint32_t kMaxBlocks = 16;
  static constexpr double kWeight = 0.1;
  static constexpr double kForgiveness = 1.02;

  static void Blend(double* estimate, double sample) {
    *estimate = *estimate == 0 ? sample : *estimate + kWeight * (sample - *estimate);
  }

  double step_s_ = 0;
  double prefill_tokens_per_s_ = 0;
  double load_tokens_per_s_ = 0;
  double cold_tokens_per_s_ = 0;
};

}  // namespace flexkv
