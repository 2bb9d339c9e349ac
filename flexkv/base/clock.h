// Time as an interface, so that core code never reads a clock of its own.
#pragma once

#include <cstdint>

namespace flexkv {

// Monotonic nanoseconds since an arbitrary start. Only differences have meaning.
using TimeNs = uint64_t;
inline constexpr TimeNs kNsPerUs = 1000;
inline constexpr TimeNs kNsPerMs = 1000 * 1000;
inline constexpr TimeNs kNsPerSecond = 1000 * 1000 * 1000;

class Clock {
 public:
  virtual ~Clock() = default;
  virtual TimeNs Now() const = 0;
};

// CLOCK_MONOTONIC.
class SteadyClock : public Clock {
 public:
  TimeNs Now() const override;
};

// Stands still until told otherwise. For tests and simulation.
class ManualClock : public Clock {
 public:
  TimeNs Now() const override { return now_; }
  void Advance(TimeNs delta) { now_ += delta; }

 private:
  TimeNs now_ = kNsPerSecond;
};

}  // namespace flexkv
