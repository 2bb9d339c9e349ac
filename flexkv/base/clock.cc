#include "flexkv/base/clock.h"

#include <time.h>

namespace flexkv {

TimeNs SteadyClock::Now() const {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return static_cast<TimeNs>(now.tv_sec) * kNsPerSecond + static_cast<TimeNs>(now.tv_nsec);
}

}  // namespace flexkv
