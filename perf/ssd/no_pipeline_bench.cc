// Stands for pipeline_bench.cc where no daemon is built.
#include <cstdio>

#include "perf/ssd/store_benches.h"

namespace flexkv::bench {

void BenchPipeline(const Args&, JsonSink*) {
  std::fprintf(stderr, "flexkv_ssd_bench: %s needs a build with the daemon\n", kPipelineName);
}

}  // namespace flexkv::bench
