// Documents of 64 MiB, several times what the daemon's CPU tier holds, are loaded in turn: each
// time from SSD into the arena, and from there into the engine's blocks. The limit reads as many
// blocks of the same size from a directory beside, into memory on the same kind of pages, with the
// depth that the daemon uses, and neither checks them nor does anything else with them.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "perf/daemon/bench_engine.h"
#include "perf/daemon/daemon_process.h"
#include "perf/ssd/store_benches.h"
#include "perf/ssd/store_reader.h"

namespace flexkv::bench {
namespace {

constexpr size_t kRequestBytes = size_t{64} << 20;
constexpr uint64_t kCpuTierBytes = uint64_t{192} << 20;
constexpr uint32_t kDocuments = 8;
constexpr uint32_t kLayers = 32;

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "flexkv_ssd_bench: %s\n", why.c_str());
  std::exit(2);
}

const char* NameOf(PageKind pages) {
  switch (pages) {
    case PageKind::kUnknown:
      return "unknown pages";
    case PageKind::k4KiB:
      return "4 KiB pages";
    case PageKind::kTransparentHuge:
      return "transparent 2 MiB pages";
    case PageKind::kHugetlb:
      return "hugetlb pages";
  }
  return "";
}

class Pipeline {
 public:
  Pipeline(const Args& args, size_t block_bytes);
  ~Pipeline();
  Pipeline(const Pipeline&) = delete;
  Pipeline& operator=(const Pipeline&) = delete;

  void Run(size_t rounds, const std::string& name, JsonSink* sink);

 private:
  std::string Config(const Args& args) const;
  void StoreDocuments();
  double Load(uint32_t document, bool check);  // GB/s
  double ReadAlone(uint32_t document);

  const size_t block_bytes_;
  const uint32_t blocks_;  // of a document
  std::string folder_;     // sockets
  std::string directory_;
  std::unique_ptr<DaemonProcess> daemon_;
  std::unique_ptr<BenchEngine> engine_;
  std::vector<std::vector<BlockHash>> documents_;
  ArenaPiece memory_{kRequestBytes};
  std::unique_ptr<StoreReader> alone_;
};

Pipeline::Pipeline(const Args& args, size_t block_bytes)
    : block_bytes_(block_bytes), blocks_(static_cast<uint32_t>(kRequestBytes / block_bytes)) {
  char folder[] = "/tmp/flexkv-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) Fail("no temporary directory");
  folder_ = folder;
  directory_ = std::filesystem::absolute(args.Get("dir", "build/ssd-bench")).string();
  std::filesystem::remove_all(directory_ + "/pipeline");
  daemon_ = DaemonProcess::Exec(FindDaemon(args.Get("flexkvd", "")), folder_, Config(args));
  daemon_->WaitReady();
  engine_ = std::make_unique<BenchEngine>(
      BenchEngineOptions{.socket_path = daemon_->socket(),
                         .shard_bytes = static_cast<uint32_t>(block_bytes),
                         .layers = kLayers,
                         .blocks = blocks_ + 1});
  if (!engine_->WaitReady(5000)) Fail("could not attach to flexkvd");
  StoreDocuments();
  alone_ =
      std::make_unique<StoreReader>(directory_ + "/alone", block_bytes, kDocuments * blocks_,
                                    memory_.span, args.Get("backend", "io_uring") == "threads");
}

Pipeline::~Pipeline() {
  engine_.reset();
  daemon_.reset();
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
  std::filesystem::remove_all(directory_ + "/pipeline", ignored);
}

std::string Pipeline::Config(const Args& args) const {
  return absl::StrCat(R"({"cpu_cache_bytes": )", kCpuTierBytes,
                      R"(, "enable_ssd": true, "ssd_cache_dir": ")", directory_,
                      R"(/pipeline", "ssd_cache_bytes": "2GiB", "ssd_backend": ")",
                      args.Get("backend", "auto"), R"(", "log_level": "warning"})");
}

// Waits after each until it is on the device: the CPU tier does not hold all.
void Pipeline::StoreDocuments() {
  for (uint32_t i = 0; i < kDocuments; ++i) {
    documents_.push_back(BenchChain(i + 1, blocks_));
    if (!engine_->Store(documents_.back())) Fail("a document could not be stored");
    constexpr int kAttempts = 3000;
    for (int k = 0; daemon_->Status().counters().ssd_written_blocks() < (i + 1) * blocks_; ++k) {
      if (k == kAttempts) Fail("a document was not written back");
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  }
}

double Pipeline::Load(uint32_t document, bool check) {
  const std::vector<BlockHash>& chain = documents_[document];
  if (check) engine_->Wipe();
  const uint64_t start = NowNs();
  const uint32_t came = engine_->Load(chain);
  const uint64_t took = NowNs() - start;
  if (came != blocks_) Fail(absl::StrCat("only ", came, " of ", blocks_, " blocks came"));
  if (check && !engine_->IsRight(chain)) Fail("wrong bytes");
  return static_cast<double>(kRequestBytes) / static_cast<double>(took);
}

double Pipeline::ReadAlone(uint32_t document) {
  uint32_t next = document * blocks_;
  const uint32_t end = next + blocks_;
  return alone_
      ->Read([&]() -> std::optional<uint32_t> {
        if (next == end) return std::nullopt;
        return next++;
      })
      .bytes_per_ns;
}

void Pipeline::Run(size_t rounds, const std::string& name, JsonSink* sink) {
  for (uint32_t i = 0; i < kDocuments; ++i) Load(i, true);  // and warm-up
  const uint64_t before = daemon_->Status().counters().ssd_load_blocks();
  std::vector<double> ours, alone;
  for (size_t round = 0; round < rounds; ++round) {
    for (uint32_t document = 0; document < kDocuments; ++document) {
      const bool first = (round + document) % 2 == 0;
      if (first) ours.push_back(Load(document, false));
      alone.push_back(ReadAlone(document));
      if (!first) ours.push_back(Load(document, false));
    }
  }
  const admin::v1::StatusReply status = daemon_->Status();
  const uint64_t loads = rounds * kDocuments;
  if (status.counters().ssd_load_blocks() - before != loads * blocks_)
    Fail("not all blocks came from SSD: this measured something else");
  if (!engine_->IsRight(documents_.back())) Fail("wrong bytes");
  sink->Add(
      {.name = name,
       .unit = "GB/s",
       .limit_name = absl::StrCat(
           "reading alone, unchecked, ", block_bytes_ >> 10, " KiB blocks, 16 MiB in flight, ",
           alone_->registered() ? "registered memory on " : "unregistered memory on ",
           NameOf(memory_.pages), "; daemon: ", status.memory().page_kind(), ", ",
           status.ssd_devices(0).backend(),
           status.ssd_devices(0).registered_bytes() > 0 ? ", registered" : ", unregistered"),
       .better = "higher",
       .value = Median(ours),
       .limit = Median(alone),
       .n = loads,
       .repeats = ours});
}

}  // namespace

void BenchPipeline(const Args& args, JsonSink* sink) {
  const auto rounds = std::max<size_t>(1, args.GetInt("rounds", 15));
  const uint64_t block_kib = args.GetInt("block_kib", 1024);
  Pipeline(args, block_kib << 10).Run(rounds, kPipelineName, sink);
}

}  // namespace flexkv::bench
