// A trace that is in memory already: generated traffic, tests, several passes over a small file.
#pragma once

#include <cstdint>
#include <memory>

#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

// Hands out the whole batch in parts. tokens_per_block of the info is the first request's.
std::unique_ptr<TraceSource> MakeMemorySource(RequestBatch batch);

}  // namespace flexkv::trace
