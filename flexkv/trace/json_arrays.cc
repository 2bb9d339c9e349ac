#include "flexkv/trace/json_cursor.h"
#include "flexkv/trace/json_plain_uints.h"

namespace flexkv::trace {
namespace {

internal::PlainUintsFn ChoosePlainUints() {
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2");
  return avx2 ? &internal::PlainUintsAvx2 : &internal::PlainUintsSse2;
}

}  // namespace

bool JsonCursor::ReadChainedUints(uint64_t seed, uint64_t* out, uint64_t* count) {
  if (!BeginArray()) return false;
  uint64_t* const begin = out;
  uint64_t chain = seed;
  static const internal::PlainUintsFn read_plain = ChoosePlainUints();
  while (NextElement()) {
    out = read_plain(&at_, &chain, out);
    uint64_t id = 0;
    if (!ReadUint(&id)) return false;
    chain = Chain(chain, id);
    *out++ = chain;
  }
  *count = static_cast<uint64_t>(out - begin);
  return ok();
}

}  // namespace flexkv::trace
