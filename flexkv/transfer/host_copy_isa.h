// One contiguous copy per instruction set. The files behind it are compiled with flags of their
// own, so they include nothing with inline functions: the linker might keep their copy of one for
// everybody.
#pragma once

#include <stddef.h>

namespace flexkv::internal {

// Copies `bytes` with non-temporal stores after prefetching the first lines of `next` (nullptr:
// nothing follows). REQUIRES: no overlap, bytes >= 256.
using StreamCopyFn = void (*)(void* target, const void* source, size_t bytes, const void* next);

void StreamCopySse2(void* target, const void* source, size_t bytes, const void* next);
void StreamCopyAvx2(void* target, const void* source, size_t bytes, const void* next);
void StreamCopyAvx512(void* target, const void* source, size_t bytes, const void* next);

}  // namespace flexkv::internal
