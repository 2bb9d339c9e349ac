// flexkv_restart_bench: how soon a daemon that was killed serves from its SSD tier again.
//
// A directory gets 1,000,000 committed blocks of 4 KiB in two layouts (one rank of 4,096 bytes, two
// of 2,048), chains of up to 544 blocks that share beginnings. Then, several times: flexkvd is
// started on it, found to have all of them, and killed with SIGKILL; between two lives the page
// cache is dropped where that is allowed. Goals: ready within 2 s of exec, and within 2.5 s a
// client that had been waiting has loaded a first prompt, its bytes right.
//
//   flexkv_restart_bench [--dir DIR] [--json FILE] [--rounds 5] [--blocks 1000000]
//                        [--flexkvd PATH] [--keep]
//
// Needs about 11 KiB of disk a block below DIR (build); --keep leaves the directory for a next run.
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "perf/bench_util.h"
#include "perf/daemon/bench_engine.h"
#include "perf/daemon/daemon_process.h"
#include "perf/restart/block_maker.h"

namespace flexkv::bench {
namespace {

constexpr uint32_t kLayouts = 2;
constexpr uint32_t kRanks[kLayouts] = {1, 2};
constexpr uint32_t kBlockBytes = 4096;
constexpr uint64_t kSegmentBytes = uint64_t{1} << 30;
constexpr uint64_t kLargestBytes = uint64_t{20} << 30;
constexpr uint32_t kSeedBlocks = 32;                  // by the daemon itself
constexpr uint64_t kSeedChain = uint64_t{1} << 30;    // far from those made here
constexpr double kWarmGoal = 2, kFirstGetGoal = 2.5;  // seconds

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "flexkv_restart_bench: %s\n", why.c_str());
  std::exit(2);
}

void Note(const std::string& what) { std::fprintf(stderr, "# %s\n", what.c_str()); }

uint64_t FirstChain(uint32_t layout) { return uint64_t{layout + 1} << 32 >> 8; }

bool DropPageCache() {
  sync();
  const int fd = open("/proc/sys/vm/drop_caches", O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  const bool dropped = write(fd, "3", 1) == 1;
  close(fd);
  return dropped;
}

class Restart {
 public:
  explicit Restart(const Args& args);
  ~Restart();
  Restart(const Restart&) = delete;
  Restart& operator=(const Restart&) = delete;

  void Make();
  void Run(size_t rounds, JsonSink* sink);

 private:
  std::unique_ptr<DaemonProcess> Exec();
  std::unique_ptr<BenchEngine> Engine(uint32_t layout, uint64_t id) const;
  void Seed();
  void Check(const DaemonProcess& daemon) const;
  struct Times {
    double warm_s = 0, first_get_s = 0;
  };
  Times Once(uint64_t id);

  const std::string flexkvd_;
  const uint32_t blocks_;
  const bool keep_;
  const FamilyShape shape_;
  std::string directory_;  // of the tier
  std::string folder_;     // sockets
};

Restart::Restart(const Args& args)
    : flexkvd_(FindDaemon(args.Get("flexkvd", ""))),
      blocks_(static_cast<uint32_t>(args.GetInt("blocks", 1000000))),
      keep_(args.GetInt("keep", 0) != 0) {
  char folder[] = "/tmp/flexkv-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) Fail("no temporary directory");
  folder_ = folder;
  const std::string parent = args.Get("dir", "build/restart-bench");
  std::filesystem::create_directories(parent);
  directory_ = std::filesystem::absolute(parent).string() + "/tier";
}

Restart::~Restart() {
  std::error_code ignored;
  std::filesystem::remove_all(folder_, ignored);
  if (!keep_) std::filesystem::remove_all(directory_, ignored);
}

std::unique_ptr<DaemonProcess> Restart::Exec() {
  return DaemonProcess::Exec(
      flexkvd_, folder_,
      absl::StrCat(R"({"cpu_cache_bytes": "1GiB", "enable_ssd": true, "ssd_cache_dir": ")",
                   directory_, R"(", "ssd_cache_bytes": )", kLargestBytes,
                   R"(, "log_level": "info"})"));
}

std::unique_ptr<BenchEngine> Restart::Engine(uint32_t layout, uint64_t id) const {
  return std::make_unique<BenchEngine>(
      BenchEngineOptions{.socket_path = folder_ + "/daemon.sock",
                         .id = id,
                         .ranks = kRanks[layout],
                         .shard_bytes = kBlockBytes / kRanks[layout],
                         .blocks = shape_.trunk_blocks + 1});
}

// A first life of the daemon: its engines' namespaces come onto the disk, with the identities that
// such engines have.
void Restart::Seed() {
  const std::unique_ptr<DaemonProcess> daemon = Exec();
  daemon->WaitReady();
  for (uint32_t layout = 0; layout < kLayouts; ++layout) {
    const std::unique_ptr<BenchEngine> engine = Engine(layout, layout + 1);
    if (!engine->WaitReady(5000) || !engine->Store(BenchChain(kSeedChain + layout, kSeedBlocks)))
      Fail("the first blocks could not be stored");
    while (daemon->Status().counters().ssd_written_blocks() < (layout + 1) * kSeedBlocks)
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
}

void Restart::Make() {
  if (keep_ && std::filesystem::exists(directory_)) {
    BlockMaker there(directory_, kLargestBytes);
    if (there.found().size() == blocks_) return;
  }
  std::filesystem::remove_all(directory_);
  Note(absl::StrCat("making ", blocks_, " blocks in ", directory_));
  Seed();
  BlockMaker maker(directory_, kLargestBytes);
  if (maker.found().size() != kLayouts * kSeedBlocks) Fail("the first blocks are not there");
  for (uint32_t layout = 0; layout < kLayouts; ++layout) {
    const std::vector<uint32_t> shards(kRanks[layout], kBlockBytes / kRanks[layout]);
    std::optional<SsdIdentity> identity;
    for (const SsdSegmentInfo& segment : maker.segments()) {
      if (segment.shape.shard_bytes != shards) continue;
      for (const RecoveredBlock& block : maker.found()) {
        if (block.place.segment == segment.id) identity = block.identity;
      }
    }
    if (!identity.has_value()) Fail("a layout is not there");
    const uint32_t share = blocks_ / kLayouts + (layout == 0 ? blocks_ % kLayouts : 0);
    maker.Write(shards, kSegmentBytes, *identity,
                MakeFamilies(shape_, FirstChain(layout), share - kSeedBlocks, layout + 1));
  }
}

void Restart::Check(const DaemonProcess& daemon) const {
  const admin::v1::StatusReply status = daemon.Status();
  if (status.ssd().recovered_blocks() != blocks_ || status.ssd().blocks() != blocks_ ||
      status.ssd().orphaned_blocks() != 0) {
    Fail(absl::StrCat("of ", blocks_, " blocks ", status.ssd().recovered_blocks(),
                      " were recovered and ", status.ssd().orphaned_blocks(), " had no parent"));
  }
}

// The engine is there before the daemon, as after a crash, and asks again and again.
Restart::Times Restart::Once(uint64_t id) {
  const uint32_t layout = id % kLayouts;
  const std::vector<BlockHash> prompt = BenchChain(FirstChain(layout), shape_.trunk_blocks);
  const std::unique_ptr<BenchEngine> engine = Engine(layout, 10 + id);
  engine->Load(prompt);  // nothing there: it is waiting
  uint64_t got_ns = 0;
  const std::unique_ptr<DaemonProcess> daemon = Exec();
  std::thread client([&] {
    const uint64_t give_up = NowNs() + uint64_t{60} * 1000000000u;
    while (got_ns == 0 && NowNs() < give_up) {
      if (engine->WaitReady(1000) && engine->Load(prompt) == prompt.size()) got_ns = NowNs();
    }
  });
  const uint64_t ready_ns = daemon->WaitReady();
  client.join();
  if (got_ns == 0) Fail("the prompt did not come");
  if (!engine->IsRight(prompt)) Fail("wrong bytes");
  Check(*daemon);
  if (daemon->Status().counters().ssd_load_blocks() != prompt.size())
    Fail("the prompt did not come from SSD");
  const auto seconds = [&](uint64_t at) {
    return static_cast<double>(at - daemon->exec_ns()) / 1e9;
  };
  daemon->Kill();  // -9
  return {seconds(ready_ns), seconds(got_ns)};
}

void Restart::Run(size_t rounds, JsonSink* sink) {
  {
    const std::unique_ptr<DaemonProcess> daemon = Exec();  // the one that is killed first
    daemon->WaitReady();
    Check(*daemon);
  }
  std::vector<double> warm, first_get;
  bool dropped = true;
  for (size_t round = 0; round < rounds; ++round) {
    dropped = DropPageCache() && dropped;
    const Times times = Once(round + 1);
    warm.push_back(times.warm_s);
    first_get.push_back(times.first_get_s);
    Note(absl::StrCat("ready after ", times.warm_s, " s, first prompt after ", times.first_get_s));
  }
  const std::string how =
      absl::StrCat("goal, ", blocks_, " blocks, two layouts, after kill -9, page cache ",
                   dropped ? "dropped" : "not dropped");
  sink->Add({.name = "restart.warm_s",
             .unit = "s",
             .limit_name = how,
             .value = Median(warm),
             .limit = kWarmGoal,
             .n = rounds,
             .repeats = warm});
  sink->Add({.name = "restart.first_get_s",
             .unit = "s",
             .limit_name = how,
             .value = Median(first_get),
             .limit = kFirstGetGoal,
             .n = rounds,
             .repeats = first_get});
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) {
  using namespace flexkv::bench;
  const Args args(argc, argv);
  JsonSink sink(args.Get("json", ""));
  Restart restart(args);
  restart.Make();
  restart.Run(std::max<size_t>(1, args.GetInt("rounds", 5)), &sink);
  return 0;
}
