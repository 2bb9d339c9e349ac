// A trace with larger blocks: k of its blocks, one after another from the root on, become one.
#pragma once

#include <cstdint>
#include <memory>

#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

// `inner` outlives it. The id of a large block is that of its last small one (ids are chained, so
// that names everything before it too); small blocks left over at the end of a prompt are a partial
// block. REQUIRES: factor >= 1.
std::unique_ptr<TraceSource> MakeRegroupedSource(TraceSource* inner, uint32_t factor);

}  // namespace flexkv::trace
