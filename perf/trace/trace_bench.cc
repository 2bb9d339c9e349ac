// How fast traces are simulated: the LRU curve, one policy through the cache manager, and a sweep
// of all policies over twenty capacities.
//
//   flexkv_trace_bench [--trace FILE] [--blocks 10000] [--repeats 7] [--only curve|simulate|sweep]
//       [--json FILE]
//
// The trace is in memory (perf/trace/parse_bench.cc measures reading); without --trace it is an
// hour of generated chats. Times are processor time of the one thread, but the sweep's, which is
// what a person waits for, on two threads.
#include <malloc.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/index/policies.h"
#include "flexkv/trace/generate.h"
#include "flexkv/trace/lru_curve.h"
#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/simulate.h"
#include "perf/bench_util.h"

namespace flexkv::trace {
namespace {

constexpr uint64_t kMaxTraceBytes = 4ull << 30;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

// About 280,000 block accesses in an hour.
RequestBatch AnHourOfChats() {
  absl::StatusOr<TrafficOptions> options = NamedTraffic("chat");
  if (!options.ok()) Die(options.status());
  constexpr uint64_t kAccesses = 280000;
  options->requests = 4000;
  while (true) {
    options->requests_per_s = static_cast<double>(options->requests) / 3600;
    absl::StatusOr<RequestBatch> batch = GenerateTraffic(*options);
    if (!batch.ok()) Die(batch.status());
    if (batch->blocks.size() >= kAccesses) return *std::move(batch);
    options->requests += options->requests / 4;
  }
}

RequestBatch ReadTrace(const std::string& path) {
  if (path.empty()) return AnHourOfChats();
  absl::StatusOr<std::unique_ptr<TraceSource>> source = OpenTrace({path});
  if (!source.ok()) Die(source.status());
  absl::StatusOr<RequestBatch> batch = ReadWholeTrace(source->get(), kMaxTraceBytes);
  if (!batch.ok()) Die(batch.status());
  return *std::move(batch);
}

class TraceBench {
 public:
  explicit TraceBench(const bench::Args& args)
      : repeats_(std::max<uint64_t>(1, args.GetInt("repeats", 7))),
        blocks_(args.GetInt("blocks", 10000)),
        sink_(args.Get("json", "")) {
    batch_ = ReadTrace(args.Get("trace", ""));
    accesses_ = batch_.blocks.size();
    source_ = MakeMemorySource(batch_);
  }

  void Curve() {
    std::vector<double> rates;
    Run([&] {
      const uint64_t start = bench::ThreadCpuNs();
      LruCurveBuilder builder;
      if (absl::Status status = builder.Add(batch_); !status.ok()) Die(status);
      bench::KeepAlive(builder.Finish().steps.size());
      rates.push_back(MillionsPerSecond(1, bench::ThreadCpuNs() - start));
    });
    Report("trace.lru_curve_maps", "million block accesses/s", 100, "higher", rates);
  }

  void OnePolicy() {
    std::vector<double> rates;
    Run([&] {
      const uint64_t start = bench::ThreadCpuNs();
      Simulated({{.policy = "default", .cpu_blocks = blocks_}}, 1);
      rates.push_back(MillionsPerSecond(1, bench::ThreadCpuNs() - start));
    });
    Report("trace.simulate_maps", "million block accesses/s", 10, "higher", rates);
  }

  void Sweep() {
    // Twenty capacities, evenly apart in their logarithm, up to what holds the whole trace.
    (void)source_->Rewind();
    absl::StatusOr<LruCurve> curve = ComputeLruCurve(source_.get());
    if (!curve.ok()) Die(curve.status());
    constexpr int kCapacities = 20;
    std::vector<Cell> cells;
    for (std::string_view policy : PolicyNames()) {
      for (int i = 1; i <= kCapacities; ++i) {
        const double share = std::pow(1000.0, static_cast<double>(i) / kCapacities - 1);
        const double blocks = share * static_cast<double>(curve->unique_blocks);
        cells.push_back({.policy = std::string(policy),
                         .cpu_blocks = std::max<uint64_t>(1, static_cast<uint64_t>(blocks))});
      }
    }
    std::vector<double> seconds, cpu_seconds;
    Run([&] {
      const uint64_t start = bench::NowNs(), cpu_start = bench::ProcessCpuNs();
      Simulated(cells, 2);
      seconds.push_back(static_cast<double>(bench::NowNs() - start) * 1e-9);
      cpu_seconds.push_back(static_cast<double>(bench::ProcessCpuNs() - cpu_start) * 1e-9);
    });
    Report("trace.sweep_s", "s", 3, "lower", seconds);
    // Of both threads: what neighbours take of the machine is not in it.
    Report("trace.sweep_cpu_s", "s", 6, "lower", cpu_seconds);
  }

 private:
  template <typename Body>
  void Run(Body body) {
    for (uint64_t i = 0; i < repeats_; ++i) {
      if (absl::Status status = source_->Rewind(); !status.ok()) Die(status);
      body();
    }
  }
  void Simulated(const std::vector<Cell>& cells, uint32_t threads) {
    SimulateOptions options;
    options.threads = threads;
    absl::StatusOr<std::vector<CellResult>> results = Simulate(source_.get(), cells, options);
    if (!results.ok()) Die(results.status());
    bench::KeepAlive(results->front().hit_tokens_cpu);
  }
  double MillionsPerSecond(uint64_t passes, uint64_t ns) const {
    return static_cast<double>(passes * accesses_) * 1e3 / static_cast<double>(ns);
  }
  void Report(const char* name, const char* unit, double goal, const char* better,
              const std::vector<double>& values) {
    sink_.Add({.name = name,
               .unit = unit,
               .limit_name = "goal",
               .better = better,
               .value = bench::Median(values),
               .limit = goal,
               .n = accesses_,
               .repeats = values});
  }

  const uint64_t repeats_;
  const uint64_t blocks_;
  bench::JsonSink sink_;
  uint64_t accesses_ = 0;
  RequestBatch batch_;
  std::unique_ptr<TraceSource> source_;
};

}  // namespace
}  // namespace flexkv::trace

int main(int argc, char** argv) {
  // After warm-up: what a pass frees is there for the next.
  mallopt(M_MMAP_THRESHOLD, 1 << 30);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
  const flexkv::bench::Args args(argc, argv);
  flexkv::trace::TraceBench bench(args);
  const std::string only = args.Get("only", "");
  if (only.empty() || only == "curve") bench.Curve();
  if (only.empty() || only == "simulate") bench.OnePolicy();
  if (only.empty() || only == "sweep") bench.Sweep();
  return 0;
}
