// flexkv_ssd_metadata_bench [--dir D] [--blocks N] [--groups N] [--group N] [--json FILE]
//
// Metadata alone, no payload: a device full of committed blocks; groups that free some and commit
// as many in the places the group before freed, each group durable before the next; then the start:
// everything read back cold. Our log per segment and the embedded store take turns, group by group.
#include <sys/stat.h>

#include <cerrno>
#include <cinttypes>
#include <cstring>
#include <fstream>

#include "perf/bench_util.h"
#include "perf/ssd_metadata/metadata_store.h"

namespace flexkv::bench {

void Demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "benchmark is wrong: %s: %s\n", what, std::strerror(errno));
  std::exit(1);
}

namespace {

constexpr uint32_t kSegments = 16;

// By write calls of this process. (write_bytes counts whole large folios of the page cache.)
uint64_t BytesWritten() {
  std::ifstream io("/proc/self/io");
  std::string key;
  uint64_t value = 0;
  while (io >> key >> value) {
    if (key == "wchar:") return value;
  }
  return 0;
}

// The places of one store and what has been done to them; the same for both stores by seed.
class Workload {
 public:
  Workload(uint32_t slots, uint32_t group) : slots_(slots), group_(group), generations_(kSegments) {
    for (auto& generations : generations_) generations.assign(slots, 0);
    freed_.resize(kSegments);
  }

  std::vector<MetadataRecord> Everything() {
    std::vector<MetadataRecord> records;
    records.reserve(uint64_t{kSegments} * slots_);
    for (uint32_t segment = 0; segment < kSegments; ++segment) {
      for (uint32_t slot = 0; slot < slots_; ++slot) records.push_back(Commit({segment, slot}));
    }
    return records;
  }

  // Commits into what this segment's last group freed, frees as many others at random.
  std::vector<MetadataRecord> Group(uint64_t number) {
    const auto segment = static_cast<uint32_t>(number % kSegments);
    std::vector<MetadataRecord> records;
    std::vector<uint32_t> freed;
    for (uint32_t slot : freed_[segment]) records.push_back(Commit({segment, slot}));
    while (freed.size() < group_) {
      const auto slot = static_cast<uint32_t>(rng_.Below(slots_));
      const auto is_slot = [&](const MetadataRecord& entry) { return entry.place.slot == slot; };
      if (std::any_of(records.begin(), records.end(), is_slot)) continue;
      records.push_back(
          {{segment, slot},
           false,
           ssd::SlotRecord(ssd::RecordKind::kFree, slot, generations_[segment][slot])});
      freed.push_back(slot);
    }
    freed_[segment] = freed;
    return records;
  }

 private:
  MetadataRecord Commit(SsdPlace place) {
    SsdIdentity identity;
    identity.ns[0] = 1;
    for (uint64_t& word : identity.hash.words) word = rng_.Next();
    for (uint64_t& word : identity.parent.words) word = rng_.Next();
    const uint32_t generation = ++generations_[place.segment][place.slot];
    return {place, true, ssd::CommitRecord(place.slot, generation, rng_.Next(), identity)};
  }

  const uint32_t slots_;
  const uint32_t group_;
  Rng rng_{1};
  std::vector<std::vector<uint32_t>> generations_;
  std::vector<std::vector<uint32_t>> freed_;
};

struct Contestant {
  std::unique_ptr<MetadataStore> store;
  Workload workload;
  std::vector<double> group_us = {};
  std::vector<double> load_ms = {};
  uint64_t written = 0;
  uint64_t commits = 0;
};

void RunGroup(Contestant* contestant, uint64_t number) {
  const auto group = contestant->workload.Group(number);
  for (const MetadataRecord& entry : group) contestant->commits += entry.commit ? 1 : 0;
  const uint64_t before = BytesWritten();
  const uint64_t start = NowNs();
  contestant->store->CommitGroup(group);
  contestant->group_us.push_back(static_cast<double>(NowNs() - start) / 1e3);
  contestant->written += BytesWritten() - before;
}

void Report(const std::vector<Contestant>& contestants, JsonSink* sink) {
  const Contestant& ours = contestants.front();
  const Contestant& limit = contestants.back();
  const auto per_block = [](const Contestant& one) {
    return static_cast<double>(one.written) / static_cast<double>(one.commits);
  };
  sink->Add({.name = "ssd_metadata.group_us",
             .unit = "us",
             .limit_name = limit.store->name(),
             .value = Median(ours.group_us),
             .limit = Median(limit.group_us),
             .n = ours.group_us.size()});
  sink->Add({.name = "ssd_metadata.group_p99_us",
             .unit = "us",
             .limit_name = limit.store->name(),
             .value = Percentile(ours.group_us, 0.99),
             .limit = Percentile(limit.group_us, 0.99),
             .n = ours.group_us.size()});
  sink->Add({.name = "ssd_metadata.load_ms",
             .unit = "ms",
             .limit_name = limit.store->name(),
             .value = Median(ours.load_ms),
             .limit = Median(limit.load_ms),
             .repeats = ours.load_ms});
  sink->Add({.name = "ssd_metadata.bytes_per_commit",
             .unit = "bytes",
             .limit_name = limit.store->name(),
             .value = per_block(ours),
             .limit = per_block(limit)});
  std::printf("%-6s %10s %10s %10s %14s %10s\n", "", "group us", "p99 us", "load ms",
              "bytes/commit", "file MiB");
  for (const Contestant& one : contestants) {
    std::printf("%-6s %10.0f %10.0f %10.0f %14.0f %10.0f\n", one.store->name(),
                Median(one.group_us), Percentile(one.group_us, 0.99), Median(one.load_ms),
                per_block(one), static_cast<double>(one.store->file_bytes()) / (1 << 20));
  }
}

int Main(int argc, char** argv) {
  const Args args(argc, argv);
  const std::string directory = args.Get("dir", "ssd_metadata_bench.dir");
  const auto slots = static_cast<uint32_t>(args.GetInt("blocks", 1'000'000) / kSegments);
  const auto group = static_cast<uint32_t>(args.GetInt("group", 16));
  const uint64_t groups = args.GetInt("groups", 4'000);
  JsonSink sink(args.Get("json", ""));
  mkdir(directory.c_str(), 0700);

  std::vector<Contestant> contestants;
  contestants.push_back({MakeLogStore(directory, kSegments, slots), Workload(slots, group)});
  if (auto lmdb = MakeLmdbStore(directory, uint64_t{kSegments} * slots)) {
    contestants.push_back({std::move(lmdb), Workload(slots, group)});
  }
  for (Contestant& one : contestants) one.store->Fill(one.workload.Everything());
  for (uint64_t number = 0; number < groups; ++number) {
    for (Contestant& one : contestants) RunGroup(&one, number);
  }
  for (int repeat = 0; repeat < 3; ++repeat) {
    for (Contestant& one : contestants) {
      const uint64_t start = NowNs();
      const uint64_t loaded = one.store->Load();
      one.load_ms.push_back(static_cast<double>(NowNs() - start) / 1e6);
      const uint64_t expected = uint64_t{kSegments} * (slots - group);
      Demand(loaded == expected || groups < kSegments, "blocks are missing after the load");
    }
  }
  Report(contestants, &sink);
  return 0;
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) { return flexkv::bench::Main(argc, argv); }
