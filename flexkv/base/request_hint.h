// What an engine (or the application in front of it) knows about a request's future. Optional
// everywhere: no hint is a normal answer, and a wrong one costs hits, never bytes.
#pragma once

#include <cmath>

namespace flexkv {

struct RequestHint {
  // Probability that a later request continues this one's prompt (its last full block is asked for
  // again), 0..1; negative: not known. For example 0 for a one-shot classification, 1 for an agent
  // that has just called a tool.
  float continue_p = -1;
  // When that is expected, in seconds from now; negative: not known.
  float expected_in_s = -1;

  bool known() const { return continue_p >= 0; }
  // Of values that came from outside: finite, continue_p at most 1.
  bool valid() const {
    return std::isfinite(continue_p) && std::isfinite(expected_in_s) && continue_p <= 1;
  }
  friend bool operator==(const RequestHint&, const RequestHint&) = default;
};

}  // namespace flexkv
