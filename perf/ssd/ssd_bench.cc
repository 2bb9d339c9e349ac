// flexkv_ssd_bench: the disk of the SSD tier beside fio, and beside a bare ring for its CPU time.
//
// Each round runs ours and the peer in turns (the order changes from round to round) with random
// transfers of one size at one depth on one file, which was written all over before. Buffers lie on
// the same kind of pages on both sides, which alone makes a factor of two: hugetlb where enough of
// them are free, else transparent huge pages, else 4 KiB; the output names it. Goals: 0.93 of fio
// at 64 KiB, 0.95 at 1 and 4 MiB; CPU time of a 1 MiB read at most 1.3 of the bare ring's.
//
// Above the disk: what the store's checksum costs (goal: 0.95 of the rate without), and a 64 MiB
// request through a daemon and the connector's sessions (goal: 0.90 of reading alone).
//
//   flexkv_ssd_bench [--dir DIR] [--json FILE] [--rounds 15] [--seconds 0.3] [--mib 2048]
//                    [--pages auto|4k] [--backend io_uring|threads] [--only NAME]
//                    [--flexkvd PATH] [--block_kib 1024]
#include <sys/stat.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/storage/ssd/disk.h"
#include "perf/bench_util.h"
#include "perf/ssd/bare_ring.h"
#include "perf/ssd/bench_memory.h"
#include "perf/ssd/fio_peer.h"
#include "perf/ssd/store_benches.h"

namespace flexkv::bench {
namespace {

constexpr size_t kMemoryBytes = size_t{16} << 20;  // the most that any load has in flight
constexpr char kFileName[] = "bench.data";

struct Shape {
  const char* name;
  size_t block_bytes;
  uint32_t depth;  // at most kMemoryBytes together
};
constexpr Shape kShapes[] = {
    {"64k", size_t{64} << 10, 64}, {"1m", size_t{1} << 20, 8}, {"4m", size_t{4} << 20, 4}};

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "flexkv_ssd_bench: %s\n", why.c_str());
  std::exit(2);
}

void FillRandom(std::span<std::byte> memory) {  // drives may compress
  Rng rng(1);
  for (size_t i = 0; i < memory.size(); i += 8) {
    const uint64_t word = rng.Next();
    std::memcpy(memory.data() + i, &word, 8);
  }
}

class Bench {
 public:
  Bench(const Args& args, JsonSink* sink)
      : sink_(sink),
        only_(args.Get("only", "")),
        rounds_(std::max<size_t>(1, args.GetInt("rounds", 15))),
        threads_(args.Get("backend", "io_uring") == "threads"),
        memory_(MakeBenchMemory(kMemoryBytes, args.Get("pages", "auto") == "4k")) {
    directory_ = args.Get("dir", "build/ssd-bench");
    mkdir(directory_.c_str(), 0700);
    load_.path = directory_ + "/" + kFileName;
    load_.file_bytes = std::max<uint64_t>(64, args.GetInt("mib", 2048)) / 4 * 4 << 20;
    load_.seconds = std::strtod(args.Get("seconds", "0.3").c_str(), nullptr);
    load_.pages = memory_.pages;
    OpenDisk();
    Fill();
  }
  ~Bench() {
    disk_->Close(file_);
    if (!disk_->Remove(kFileName).ok()) std::perror(load_.path.c_str());
  }
  Bench(const Bench&) = delete;
  Bench& operator=(const Bench&) = delete;

  void Transfers();
  void CpuTime();

 private:
  void OpenDisk();
  void Fill();
  SsdLoad LoadOf(const Shape& shape, bool write) const;
  SsdRate RunDisk(const SsdLoad& load, uint64_t seed);
  void SubmitRandom(const SsdLoad& load, Rng& rng, uint64_t slot);
  bool Wanted(const std::string& name) const { return only_.empty() || only_ == name; }
  std::string Conditions(const SsdLoad& load) const;

  JsonSink* sink_;
  const std::string only_;
  const size_t rounds_;
  const bool threads_;
  const BenchMemory memory_;
  std::string directory_;
  SsdLoad load_;  // what all loads have in common
  std::unique_ptr<Disk> disk_;
  FileId file_ = 0;
  uint64_t seed_ = 1;
};

void Bench::OpenDisk() {
  const DirectoryDiskOptions options = {.directory = directory_, .queue_depth = 64};
  absl::StatusOr<std::unique_ptr<Disk>> disk =
      threads_ ? MakeThreadDisk(options) : MakeUringDisk(options);
  if (!disk.ok()) Fail(disk.status().ToString());
  disk_ = *std::move(disk);
  load_.registered = disk_->RegisterMemory(memory_.span);
}

// Extents that were never written would be read without the device.
void Bench::Fill() {
  (void)disk_->Remove(kFileName);  // of a run that was ended
  absl::StatusOr<FileId> file = disk_->Create(kFileName, load_.file_bytes);
  if (!file.ok()) Fail(file.status().ToString());
  file_ = *file;
  FillRandom(memory_.span);
  const iovec slice = {memory_.span.data(), size_t{4} << 20};
  std::vector<IoResult> results;
  for (uint64_t at = 0; at < load_.file_bytes; at += slice.iov_len) {
    disk_->Submit({.kind = IoKind::kWrite, .file = file_, .offset = at, .slices = {&slice, 1}});
    while (results.empty()) disk_->Poll(kNsPerSecond, &results);
    if (results[0].result != static_cast<int64_t>(slice.iov_len)) Fail("cannot fill the file");
    results.clear();
  }
  disk_->Submit({.kind = IoKind::kSync, .file = file_});
  while (results.empty()) disk_->Poll(kNsPerSecond, &results);
}

SsdLoad Bench::LoadOf(const Shape& shape, bool write) const {
  SsdLoad load = load_;
  load.block_bytes = shape.block_bytes;
  load.depth = shape.depth;
  load.write = write;
  load.memory = memory_.span.first(shape.block_bytes * shape.depth);
  return load;
}

std::string Bench::Conditions(const SsdLoad& load) const {
  return std::string("random, depth ") + std::to_string(load.depth) +
         (load.registered ? ", registered memory on " : ", unregistered memory on ") +
         NameOf(load.pages) + (threads_ ? "; ours: threads" : "");
}

void Bench::SubmitRandom(const SsdLoad& load, Rng& rng, uint64_t slot) {
  const iovec slice = {load.memory.data() + slot * load.block_bytes, load.block_bytes};
  if (!disk_->Submit({.tag = slot,
                      .kind = load.write ? IoKind::kWrite : IoKind::kRead,
                      .file = file_,
                      .offset = rng.Below(load.file_bytes / load.block_bytes) * load.block_bytes,
                      .slices = {&slice, 1}})) {
    Fail("the queue is full");
  }
}

SsdRate Bench::RunDisk(const SsdLoad& load, uint64_t seed) {
  Rng rng(seed);
  std::vector<IoResult> results;
  const uint64_t cpu = ProcessCpuNs(), start = NowNs();
  const uint64_t end = start + static_cast<uint64_t>(load.seconds * 1e9);
  uint64_t done = 0;
  for (uint32_t slot = 0; slot < load.depth; ++slot) SubmitRandom(load, rng, slot);
  while (disk_->in_flight() > 0) {
    results.clear();
    disk_->Poll(kNsPerSecond, &results);
    const bool more = NowNs() < end;
    for (const IoResult& result : results) {
      if (result.result != static_cast<int64_t>(load.block_bytes)) Fail("a transfer failed");
      if (more) SubmitRandom(load, rng, result.tag);
    }
    done += results.size();
  }
  const auto transfers = static_cast<double>(done);
  return {.bytes_per_ns = transfers * static_cast<double>(load.block_bytes) /
                          static_cast<double>(NowNs() - start),
          .cpu_us = static_cast<double>(ProcessCpuNs() - cpu) / 1000 / transfers,
          .transfers = done};
}

// Ours and the peer in turns; what goes first changes.
template <typename Ours, typename Peer, typename Take>
void Interleave(size_t rounds, Ours ours, Peer peer, Take take) {
  for (size_t round = 0; round < rounds; ++round) {
    SsdRate own, other;
    if (round % 2 == 0) own = ours();
    other = peer();
    if (round % 2 != 0) own = ours();
    take(own, other);
  }
}

void Bench::Transfers() {
  const std::string fio = FioVersion();
  for (const bool write : {false, true}) {
    for (const Shape& shape : kShapes) {
      const std::string name = std::string("ssd.") + (write ? "write_" : "read_") + shape.name;
      if (!Wanted(name)) continue;
      const SsdLoad load = LoadOf(shape, write);
      std::vector<double> own, peer;
      uint64_t transfers = 0;
      RunDisk(load, seed_++);  // warm-up
      Interleave(
          rounds_, [&] { return RunDisk(load, seed_++); }, [&] { return RunFio(load); },
          [&](const SsdRate& ours, const SsdRate& theirs) {
            own.push_back(ours.bytes_per_ns);
            peer.push_back(theirs.bytes_per_ns);
            transfers += ours.transfers;
          });
      sink_->Add({.name = name,
                  .unit = "GB/s",
                  .limit_name = fio + ", " + Conditions(load),
                  .better = "higher",
                  .value = Median(own),
                  .limit = Median(peer),
                  .n = transfers,
                  .repeats = own});
    }
  }
}

void Bench::CpuTime() {
  if (!Wanted("ssd.cpu_us_per_1m")) return;
  const SsdLoad load = LoadOf(kShapes[1], /*write=*/false);
  std::vector<double> own, bare;
  uint64_t transfers = 0;
  Interleave(
      rounds_, [&] { return RunDisk(load, seed_++); }, [&] { return RunBareRing(load, seed_++); },
      [&](const SsdRate& ours, const SsdRate& theirs) {
        own.push_back(ours.cpu_us);
        bare.push_back(theirs.cpu_us);
        transfers += ours.transfers;
      });
  sink_->Add({.name = "ssd.cpu_us_per_1m",
              .unit = "us",
              .limit_name = "bare ring, " + Conditions(load),
              .value = Median(own),
              .limit = Median(bare),
              .n = transfers,
              .repeats = own});
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) {
  using namespace flexkv::bench;
  const Args args(argc, argv);
  JsonSink sink(args.Get("json", ""));
  const std::string only = args.Get("only", "");
  mkdir(args.Get("dir", "build/ssd-bench").c_str(), 0700);
  if (only != kChecksumName && only != kPipelineName) {
    Bench bench(args, &sink);
    bench.Transfers();
    bench.CpuTime();
  }
  if (only.empty() || only == kChecksumName) BenchChecksum(args, &sink);
  if (only.empty() || only == kPipelineName) BenchPipeline(args, &sink);
  return 0;
}
