// The offline optimum: the block whose next use is furthest away gives way, and a block that would
// give way at once is not taken in at all (bypass). On a tree of blocks of equal cost the furthest
// block always is a leaf, since whoever uses a block uses its whole prefix: so plain MIN is exact,
// no cache that keeps prefixes whole can do better. An insert counts as a use of its blocks.
//
// Blocks with the same next use form a run on the chain of that request and give way from its end.
// So the state of a cache of any size is one number per request to come: how many of its blocks are
// here. A replay costs O(log) per run and never looks at blocks: a capacity more costs little.
#pragma once

#include <cstdint>

#include "flexkv/trace/next_uses.h"

namespace flexkv::trace {

struct MinResult {
  uint64_t hit_blocks = 0, hit_tokens = 0;
  uint64_t inserted_blocks = 0;  // taken in, because they have a next use
  uint64_t evicted_blocks = 0;   // of those, gave way to nearer ones (maybe at once)
};
// 24 bytes a request of memory.
MinResult ReplayMin(const NextUses& uses, uint64_t capacity_blocks);

}  // namespace flexkv::trace
