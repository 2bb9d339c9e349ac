// Runs of whole numbers in an array, once per instruction set. The files behind it are compiled
// with flags of their own, so they include nothing with inline functions of external linkage: the
// linker might keep their copy of one for everybody.
#pragma once

#include <stdint.h>

namespace flexkv::trace::internal {

inline constexpr uint64_t kChainFactor = 0x9E3779B97F4A7C15u;

using PlainUintsFn = uint64_t* (*)(const char** at_in_out, uint64_t* chain, uint64_t* out);

uint64_t* PlainUintsSse2(const char** at_in_out, uint64_t* chain, uint64_t* out);
uint64_t* PlainUintsAvx2(const char** at_in_out, uint64_t* chain, uint64_t* out);

}  // namespace flexkv::trace::internal
