// Simulated power loss at every I/O index of a mixed workload over SsdStore, in three modes; after
// each the store opens again, holds everything it promised, and goes on working.
//
// As a test: short counts. As a program:
//   ssd_crash_test --points N [--modes drop,tear,reorder,kill] [--seed S] [--runs N]
//   ssd_crash_test --seed S --runs 1 --only POINT --modes MODE     replays one point
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_crash_workload.h"
#include "tests/support/sim_disk.h"

namespace flexkv {
namespace {

constexpr int kKill = 3;  // the process dies, the machine does not
const char* const kModeNames[] = {"drop", "tear", "reorder", "kill"};

struct CrashOptions {
  uint64_t points = 2'000;
  uint64_t runs = UINT64_MAX;
  std::vector<int> modes = {0, 1, 2};
  uint64_t seed = 1;
  std::optional<uint64_t> only;  // of the run with `seed`
  uint64_t lives = 4;            // crashes and reopenings within a run
  uint64_t steps = 120;          // of one life
  bool progress = false;
};

absl::Status NoMisuse(const SimDisk& disk) {
  return disk.violation().empty() ? absl::OkStatus() : absl::InternalError(disk.violation());
}

// One workload, crashed at every I/O index on copies of its disk.
class CrashRun {
 public:
  CrashRun(const CrashOptions& options, uint64_t seed, uint64_t* points_left)
      : options_(options), seed_(seed), points_left_(points_left) {}

  absl::Status Go();
  const SsdWorkloadStats& stats() const { return stats_; }
  uint64_t points() const { return points_; }

 private:
  static uint64_t PointSeed(uint64_t seed, uint64_t index, int mode) {
    return TestRng(seed * 1'000'003 + index * 4 + static_cast<uint64_t>(mode)).Next();
  }
  static std::unique_ptr<SimDisk> Crashed(const SimDisk& disk, int mode, uint64_t seed,
                                          ManualClock* clock) {
    return mode == kKill ? disk.KilledCopy(seed, clock)
                         : disk.CrashedCopy(static_cast<CrashMode>(mode), seed, clock);
  }
  void AtPoint();
  absl::Status Check(int mode, uint64_t seed);

  const CrashOptions& options_;
  const uint64_t seed_;
  uint64_t* const points_left_;
  const SimDisk* disk_ = nullptr;
  const SsdWorkload* workload_ = nullptr;
  uint64_t index_ = 0;
  uint64_t points_ = 0;
  SsdWorkloadStats stats_;
  absl::Status status_;
};

// Opens what a crash left, holds it against the model; now and then works on it and crashes again.
absl::Status CrashRun::Check(int mode, uint64_t seed) {
  ManualClock clock;
  const auto disk = Crashed(*disk_, mode, seed, &clock);
  SsdWorkload after(*workload_, disk.get(), &clock, seed);
  absl::Status status = after.Open();
  if (!status.ok() || seed % 8 != 0) {
    stats_.Add(after.stats());
    return status;
  }
  // At once: what recovery has told must be durable already.
  status = after.Run(seed % 16 == 0 ? 0 : 20);
  ManualClock again_clock;
  const auto again_disk = Crashed(*disk, mode, seed + 1, &again_clock);
  SsdWorkload again(after, again_disk.get(), &again_clock, seed + 1);
  if (status.ok()) status = after.Settle();
  if (status.ok()) status = again.Open();
  if (status.ok()) status = again.Run(4);
  if (status.ok()) status = again.Settle();
  if (status.ok()) status = NoMisuse(*disk);
  stats_.Add(after.stats());
  stats_.Add(again.stats());
  return status;
}

void CrashRun::AtPoint() {
  const uint64_t index = index_++;
  if (!status_.ok() || *points_left_ == 0) return;
  if (options_.only.has_value() && *options_.only != index) return;
  for (int mode : options_.modes) {
    if (*points_left_ == 0) return;
    --*points_left_;
    ++points_;
    const absl::Status status = Check(mode, PointSeed(seed_, index, mode));
    if (status.ok()) continue;
    status_ = absl::InternalError(
        absl::StrCat(std::string(status.message()), "\nreplay: ssd_crash_test --seed ", seed_,
                     " --runs 1 --only ", index, " --modes ", kModeNames[mode]));
    return;
  }
}

absl::Status CrashRun::Go() {
  TestRng rng(seed_);
  ManualClock clock;
  auto disk = std::make_unique<SimDisk>(SimDiskOptions{.seed = rng.Next(), .clock = &clock});
  auto workload = std::make_unique<SsdWorkload>(disk.get(), &clock, rng.Next(), SsdTrust::kSound);
  for (uint64_t life = 0; life < options_.lives && status_.ok(); ++life) {
    disk_ = disk.get();
    workload_ = workload.get();
    disk->SetObserver([this] { AtPoint(); });
    absl::Status status = workload->Open();
    // Long lives fill a region of the log.
    if (status.ok()) status = workload->Run(options_.steps * (rng.OneIn(4) ? 6 : 1));
    if (status.ok() && rng.OneIn(2)) status = workload->Settle();
    if (status.ok()) status = NoMisuse(*disk);
    if (status_.ok() && !status.ok()) {
      status_ = absl::InternalError(absl::StrCat(
          std::string(status.message()), "\nin the run itself, life ", life, ", seed ", seed_));
    }
    const int mode = static_cast<int>(rng.Below(4));
    auto next_disk = Crashed(*disk, mode, rng.Next(), &clock);
    auto next = std::make_unique<SsdWorkload>(*workload, next_disk.get(), &clock, rng.Next());
    disk->SetObserver(nullptr);
    stats_.Add(workload->stats());
    workload = std::move(next);  // the old store before its disk
    disk = std::move(next_disk);
  }
  return status_;
}

struct CrashTotals {
  uint64_t runs = 0, points = 0;
  SsdWorkloadStats stats;
  absl::Status status;
};

CrashTotals CrashEverywhere(const CrashOptions& options) {
  CrashTotals totals;
  uint64_t left = options.points;
  uint64_t told = 0;
  const auto start = std::chrono::steady_clock::now();
  while (left > 0 && totals.runs < options.runs && totals.status.ok()) {
    CrashRun run(options, options.seed + totals.runs, &left);
    totals.status = run.Go();
    ++totals.runs;
    totals.points += run.points();
    totals.stats.Add(run.stats());
    if (options.progress && totals.points / 10'000 > told) {
      told = totals.points / 10'000;
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      std::printf("%" PRIu64 " points, %.1f s\n", totals.points, took.count());
      std::fflush(stdout);
    }
  }
  return totals;
}

void Expect(const CrashOptions& options) {
  const CrashTotals totals = CrashEverywhere(options);
  EXPECT_TRUE(totals.status.ok()) << totals.status.message();
  std::printf("%" PRIu64 " points in %" PRIu64 " runs: %s\n", totals.points, totals.runs,
              totals.stats.ToString().c_str());
  EXPECT_GT(totals.stats.recovered, totals.points / 8);
}

TEST(SsdCrashTest, FixedSeed) { Expect({.seed = 1}); }

TEST(SsdCrashTest, FreshSeed) { Expect({.seed = TestSeed()}); }

TEST(SsdCrashTest, KilledProcess) { Expect({.modes = {kKill}, .seed = TestSeed()}); }

// A crash while the store recovers from a crash, over and over.
TEST(SsdCrashTest, ShortLives) { Expect({.seed = TestSeed(), .lives = 30, .steps = 12}); }

// --- faults -------------------------------------------------------------------------------------

// Runs 200 steps with one fault armed, then opens what a crash leaves, without faults.
absl::Status RunWithFault(uint64_t seed, uint64_t nth, SimFault fault, SsdTrust trust,
                          SsdWorkloadStats* stats, bool* applied) {
  ManualClock clock;
  SimDisk disk({.seed = seed, .clock = &clock});
  SsdWorkload workload(&disk, &clock, seed, trust);
  absl::Status status = workload.Open();
  disk.FailNth(nth, fault);
  if (status.ok()) status = workload.Run(200);
  if (status.ok()) status = workload.Settle();
  *applied = disk.faults() > 0;
  stats->Add(workload.stats());
  if (!status.ok()) return status;
  ManualClock after_clock;
  const auto after_disk = disk.CrashedCopy(static_cast<CrashMode>(nth % 3), seed, &after_clock);
  SsdWorkload after(workload, after_disk.get(), &after_clock, seed + 1);
  status = after.Open();
  if (status.ok()) status = after.Run(20);
  if (status.ok()) status = after.Settle();
  stats->Add(after.stats());
  return status;
}

// Fails the N-th transfer for every N until a run has fewer.
void FailEveryTransfer(SimFault fault, SsdTrust trust) {
  SsdWorkloadStats stats;
  uint64_t runs = 0;
  for (uint64_t nth = 1;; ++nth) {
    bool applied = false;
    const absl::Status status = RunWithFault(TestSeed(), nth, fault, trust, &stats, &applied);
    ASSERT_TRUE(status.ok()) << status.message() << "\nfault " << static_cast<int>(fault)
                             << " at transfer " << nth << ", FLEXKV_TEST_SEED=" << TestSeed();
    if (!applied) break;
    ++runs;
  }
  std::printf("%" PRIu64 " runs: %s\n", runs, stats.ToString().c_str());
  EXPECT_GT(runs, 50u);
}

TEST(SsdFaultTest, EveryTransferFails) { FailEveryTransfer(SimFault::kEio, SsdTrust::kLoud); }
TEST(SsdFaultTest, EveryTransferIsShort) { FailEveryTransfer(SimFault::kShort, SsdTrust::kLoud); }
TEST(SsdFaultTest, EveryTransferHasNoSpace) {
  FailEveryTransfer(SimFault::kEnospc, SsdTrust::kLoud);
}
TEST(SsdFaultTest, EveryTransferFlipsABit) {
  FailEveryTransfer(SimFault::kBitFlip, SsdTrust::kSilent);
}
TEST(SsdFaultTest, EveryTransferGoesAstray) {
  FailEveryTransfer(SimFault::kMisdirect, SsdTrust::kSilent);
}
TEST(SsdFaultTest, EveryTransferIsStale) { FailEveryTransfer(SimFault::kStale, SsdTrust::kSilent); }
TEST(SsdFaultTest, EveryTransferIsSlow) { FailEveryTransfer(SimFault::kSlow, SsdTrust::kSound); }

// Faults at odds, crashes in between, faults during recovery too.
void RunWithOdds(const SimFaultOdds& odds, SsdTrust trust, uint64_t runs) {
  SsdWorkloadStats stats;
  uint64_t faults = 0;
  for (uint64_t run = 0; run < runs; ++run) {
    const uint64_t seed = TestSeed() + run;
    TestRng rng(seed);
    ManualClock clock;
    auto disk = std::make_unique<SimDisk>(SimDiskOptions{.seed = seed, .clock = &clock});
    auto workload = std::make_unique<SsdWorkload>(disk.get(), &clock, seed, trust);
    for (int life = 0; life < 4; ++life) {
      if (trust == SsdTrust::kSilent) disk->set_odds(odds);
      absl::Status status = workload->Open();
      disk->set_odds(odds);
      if (status.ok()) status = workload->Run(150);
      if (status.ok()) status = workload->Settle();
      ASSERT_TRUE(status.ok()) << status.message() << "\nlife " << life
                               << ", FLEXKV_TEST_SEED=" << seed;
      faults += disk->faults();
      stats.Add(workload->stats());
      auto next_disk = disk->CrashedCopy(static_cast<CrashMode>(rng.Below(3)), rng.Next(), &clock);
      auto next = std::make_unique<SsdWorkload>(*workload, next_disk.get(), &clock, rng.Next());
      workload = std::move(next);
      disk = std::move(next_disk);
    }
  }
  std::printf("%" PRIu64 " runs, %" PRIu64 " faults: %s\n", runs, faults, stats.ToString().c_str());
  EXPECT_GT(faults, runs);
}

TEST(SsdFaultTest, LoudFaultsAtOdds) {
  RunWithOdds({.short_transfer = 200,
               .eio = 200,
               .enospc = 200,
               .sync_error = 100,
               .slow = 50,
               .create_enospc = 4,
               .busy = 4},
              SsdTrust::kLoud, 60);
}

TEST(SsdFaultTest, SilentFaultsAtOdds) {
  RunWithOdds({.short_transfer = 200,
               .eio = 200,
               .sync_error = 200,
               .bit_flip = 40,
               .misdirect = 40,
               .stale = 40},
              SsdTrust::kSilent, 60);
}

// --- the program --------------------------------------------------------------------------------

bool ParseModes(const char* text, std::vector<int>* modes) {
  modes->clear();
  const std::string list = absl::StrCat(",", text, ",");
  for (int mode = 0; mode < 4; ++mode) {
    if (list.find(absl::StrCat(",", kModeNames[mode], ",")) != std::string::npos) {
      modes->push_back(mode);
    }
  }
  return !modes->empty();
}

int Program(int argc, char** argv) {
  CrashOptions options{.points = UINT64_MAX, .progress = true};
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    const uint64_t number = std::strtoull(value, nullptr, 0);
    if (flag == "--points") {
      options.points = number;
    } else if (flag == "--seed") {
      options.seed = number;
    } else if (flag == "--runs") {
      options.runs = number;
    } else if (flag == "--lives") {
      options.lives = number;
    } else if (flag == "--steps") {
      options.steps = number;
    } else if (flag == "--only") {
      options.only = number;
    } else if (flag != "--modes" || !ParseModes(value, &options.modes)) {
      std::fprintf(stderr,
                   "usage: ssd_crash_test --points N [--modes drop,tear,reorder,kill] [--seed S] "
                   "[--runs N] [--lives N] [--steps N] [--only POINT]\n");
      return 2;
    }
  }
  if (options.points == UINT64_MAX && options.runs == UINT64_MAX) options.points = 100'000;
  const auto start = std::chrono::steady_clock::now();
  const CrashTotals totals = CrashEverywhere(options);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%s\n", totals.stats.ToString().c_str());
  if (!totals.status.ok()) {
    std::printf("FAILED after %" PRIu64 " points: %s\n", totals.points,
                std::string(totals.status.message()).c_str());
    return 1;
  }
  std::printf("%" PRIu64 " crash points in %" PRIu64 " runs, %.1f s, seed %" PRIu64
              ": 0 wrong bytes, 0 committed blocks lost\n",
              totals.points, totals.runs, took.count(), options.seed);
  return 0;
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) {
  for (int i = 1; i < argc; ++i) {
    for (const char* flag : {"--points", "--runs", "--only"}) {
      if (std::strcmp(argv[i], flag) == 0) return flexkv::Program(argc, argv);
    }
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
