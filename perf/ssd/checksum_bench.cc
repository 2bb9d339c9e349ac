#include <algorithm>
#include <cstdio>

#include "perf/ssd/bench_memory.h"
#include "perf/ssd/store_benches.h"
#include "perf/ssd/store_reader.h"

namespace flexkv::bench {
namespace {

constexpr size_t kBlockBytes = size_t{1} << 20;
constexpr size_t kDepth = 32;  // the store has 16 MiB in flight at most

}  // namespace

void BenchChecksum(const Args& args, JsonSink* sink) {
  const auto rounds = std::max<size_t>(1, args.GetInt("rounds", 15));
  const auto blocks = static_cast<uint32_t>(std::max<uint64_t>(64, args.GetInt("mib", 2048)));
  const double seconds = std::strtod(args.Get("seconds", "0.3").c_str(), nullptr);
  const bool threads = args.Get("backend", "io_uring") == "threads";
  const BenchMemory memory =
      MakeBenchMemory(kBlockBytes * kDepth, args.Get("pages", "auto") == "4k");
  StoreReader reader(args.Get("dir", "build/ssd-bench") + "/checksum", kBlockBytes, blocks,
                     memory.span, threads);
  Rng rng(7);
  const auto run = [&](bool verify) {
    reader.Reopen(verify);
    const uint64_t end = NowNs() + static_cast<uint64_t>(seconds * 1e9);
    return reader.Read([&]() -> std::optional<uint32_t> {
      if (NowNs() >= end) return std::nullopt;
      return static_cast<uint32_t>(rng.Below(blocks));
    });
  };
  run(true);  // warm-up
  std::vector<double> with, without;
  uint64_t transfers = 0;
  for (size_t round = 0; round < rounds; ++round) {
    for (const bool verify : {round % 2 == 0, round % 2 != 0}) {
      const SsdRate rate = run(verify);
      (verify ? with : without).push_back(rate.bytes_per_ns);
      if (verify) transfers += rate.transfers;
    }
  }
  sink->Add(
      {.name = kChecksumName,
       .unit = "GB/s",
       .limit_name = std::string("the same store without checksums, 1 MiB, random, 16 MiB in "
                                 "flight, ") +
                     (reader.registered() ? "registered memory on " : "unregistered memory on ") +
                     NameOf(memory.pages),
       .better = "higher",
       .value = Median(with),
       .limit = Median(without),
       .n = transfers,
       .repeats = with});
}

}  // namespace flexkv::bench
