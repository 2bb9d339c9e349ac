#include "flexkv/trace/trace_request.h"

#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv::trace {

const char* NameOf(TraceFormat format) {
  switch (format) {
    case TraceFormat::kFlexkv:
      return "flexkv";
    case TraceFormat::kMooncake:
      return "mooncake";
    case TraceFormat::kQwenBailian:
      return "qwen-bailian";
    case TraceFormat::kLmcache:
      return "lmcache";
  }
  return "unknown";
}

void RequestBatch::Clear() {
  requests.clear();
  blocks.clear();
  evictions.clear();
}

uint64_t RequestBatch::bytes() const {
  return requests.capacity() * sizeof(TraceRequest) + blocks.capacity() * sizeof(uint64_t) +
         evictions.capacity() * sizeof(TraceEviction);
}

absl::StatusOr<RequestBatch> ReadWholeTrace(TraceSource* source, uint64_t max_bytes) {
  constexpr uint64_t kBlocksAtOnce = 1 << 16;
  RequestBatch whole, part;
  while (true) {
    absl::StatusOr<bool> more = source->Next(kBlocksAtOnce, &part);
    if (!more.ok()) return more.status();
    if (!*more) return whole;
    const uint64_t base = whole.blocks.size();
    for (TraceRequest& request : part.requests) request.first_block += base;
    whole.requests.insert(whole.requests.end(), part.requests.begin(), part.requests.end());
    whole.blocks.insert(whole.blocks.end(), part.blocks.begin(), part.blocks.end());
    whole.evictions.insert(whole.evictions.end(), part.evictions.begin(), part.evictions.end());
    if (whole.bytes() > max_bytes) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the trace needs more than ", max_bytes, " bytes of memory"));
    }
  }
}

}  // namespace flexkv::trace
