// Guards the index's own invariants and its caller's contract; never input that comes from outside.
#pragma once

#include <cstdio>
#include <cstdlib>

namespace flexkv {

inline void Require(bool holds, const char* what) {
  if (holds) [[likely]]
    return;
  std::fprintf(stderr, "flexkv index: broken contract: %s\n", what);
  std::abort();
}

}  // namespace flexkv
