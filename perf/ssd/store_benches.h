// The parts of flexkv_ssd_bench above the disk.
#pragma once

#include <string>

#include "perf/bench_util.h"

namespace flexkv::bench {

inline constexpr char kChecksumName[] = "ssd.checksum";
inline constexpr char kPipelineName[] = "ssd.pipeline_64m";

// What the checksum costs: reads through a store with it and without it, in turns.
void BenchChecksum(const Args& args, JsonSink* sink);
// A 64 MiB request through a real daemon and the connector's real sessions, beside a store that
// only reads as much.
void BenchPipeline(const Args& args, JsonSink* sink);

}  // namespace flexkv::bench
