// One record of a trace that the daemon writes, as the control thread fills it: plain, fixed size, no
// allocation. docs/trace-format.md has the JSON lines that the writer makes of it.
#pragma once

#include <cstdint>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/request_hint.h"

namespace flexkv::trace {

enum class RecordKind : uint8_t { kGet, kPut, kEvict, kReset };
enum class RecordResult : uint8_t { kOk, kPartial, kFailed, kRefused };

struct TraceRecord {
  RecordKind kind = RecordKind::kGet;
  RecordResult result = RecordResult::kOk;
  Tier tier = Tier::kCpu;  // of an eviction
  uint32_t engine = 0;     // EngineHandle
  NamespaceId ns = 0;      // of this epoch; the writer is told labels by NameNamespace
  TimeNs time_ns = 0;      // daemon's clock; the config record has the wall clock of its zero
  RequestKey request = 0;
  uint32_t tokens_per_block = 0;
  // GET, tokens. matched_*: the ready prefix from the root on, by the tier it was found in.
  uint32_t prompt_tokens = 0, engine_tokens = 0;
  uint32_t matched_cpu_tokens = 0, matched_ssd_tokens = 0, matched_remote_tokens = 0;
  uint32_t loaded_tokens = 0;
  // PUT and evictions, blocks.
  uint32_t first_block = 0;  // of a put: where its range starts in the chain
  uint32_t blocks = 0, held_blocks = 0, accepted_blocks = 0, refused_blocks = 0, failed_blocks = 0;
  uint64_t match_ns = 0, queue_ns = 0;
  uint64_t load_ns = 0, load_bytes = 0, ssd_ns = 0, ssd_bytes = 0, store_ns = 0, store_bytes = 0;
  RequestHint hint;
};

}  // namespace flexkv::trace
