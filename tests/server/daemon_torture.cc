// A real daemon with a small CPU tier and an SSD tier, under four clients, is killed (SIGKILL) at
// random moments, in every phase of its life, and started again on what is left. Never a wrong
// byte; no client hangs; every block that was seen committed comes back; what was reset, and that
// acknowledged, never does; `flexkv ssd verify` finds nothing damaged at the end.
//
//   flexkv_daemon_torture [--kills N] [--seed S] [--backend auto|io_uring|threads] [--dir DIR]
//
// Rounds of lives on one directory each. In most the tier has room for everything: then what a
// settled tier holds must be there in every later life, until a reset. In the others it is tight:
// blocks give way, segments change hands.
//
// A seed gives the same decisions again, not the same moments.
#include <signal.h>
#include <sys/wait.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/server/admin_client.h"
#include "tests/server/daemon_fixture.h"
#include "tests/server/torture_client.h"
#include "tests/support/sanitized.h"

namespace flexkv {
namespace {

// Bounds, not expectations.
constexpr int kSlower = kSanitized ? 4 : 1;
constexpr int kStartMs = 15'000 * kSlower;
constexpr int kHangMs = 40'000 * kSlower;
constexpr int kSettleMs = 20'000 * kSlower;
constexpr int kStopMs = 10'000 * kSlower;
constexpr uint64_t kKillsOfRound = 60;

struct TortureOptions {
  uint64_t kills = 300;
  uint64_t seed = 1;
  std::string directory;  // empty: a fresh one below the current directory
  std::string backend = "auto";
  bool progress = false;
};

enum class Moment : uint8_t {
  kStart,  // while it starts and recovers
  kEarly,  // clients attach
  kAny,
  kPut,
  kLoad,
  kReset,
  kWriteBack,
  kSettled,  // everything is committed, and known
  kNumMoments,
};
constexpr std::array<const char*, 8> kMomentNames = {"start", "attach", "any",        "put",
                                                     "load",  "reset",  "write-back", "settled"};

struct TortureTotals {
  std::array<uint64_t, 8> kills{};
  uint64_t starts = 0, rounds = 0, notes = 0, checks = 0, committed = 0, recovered = 0,
           verified = 0;
  TortureCounts clients;

  uint64_t AllKills() const {
    uint64_t all = 0;
    for (uint64_t kills_of : kills) all += kills_of;
    return all;
  }
  std::string ToString() const;
};

std::string TortureTotals::ToString() const {
  std::string text = absl::StrCat(AllKills(), " kills (");
  for (size_t i = 0; i < kills.size(); ++i)
    absl::StrAppend(&text, i == 0 ? "" : ", ", kMomentNames[i], " ", kills[i]);
  return absl::StrCat(text, "), ", starts, " starts, ", rounds, " rounds, ", notes,
                      " settled tiers with ", committed, " blocks noted, ", checks,
                      " restarts checked; ", clients.ToString(), "; ", recovered,
                      " blocks recovered, ", verified, " verified");
}

void SleepUs(uint64_t us) { std::this_thread::sleep_for(std::chrono::microseconds(us)); }

// Lives of one daemon's directory, from empty to verified.
class Round {
 public:
  Round(const TortureOptions& options, std::string directory, uint64_t number, uint64_t seed,
        TortureTotals* totals)
      : options_(options),
        directory_(std::move(directory)),
        roomy_(number % 4 != 3),
        striped_(number % 2 == 1),
        rng_(seed),
        totals_(totals) {}
  ~Round();
  // False: the verdict says why.
  bool Go(uint64_t kills);
  const Verdict& verdict() const { return verdict_; }

 private:
  std::vector<std::string> SsdDirectories() const;
  void Prepare();
  void MakeClients();
  bool StartDaemon();
  void KillDuringStart();
  void Kill(Moment moment);
  bool StopInOrder();
  bool Verify();

  bool Live();
  Moment PickMoment();
  void AwaitMoment(Moment moment);
  void AwaitActivity(TortureActivity wanted);
  bool All(TortureOrder order) {
    return Some(order, [](size_t) { return true; });
  }
  // Gives it to the clients that `takes` says, and waits until it is done.
  bool Some(TortureOrder order, const std::function<bool(size_t)>& takes);
  bool NobodyHangs();
  bool CheckCommitted();
  bool SettleAndNote();
  static bool Settled(const admin::v1::StatusReply& status);
  std::optional<admin::v1::StatusReply> Status();
  std::vector<std::string> Command() const;

  const TortureOptions& options_;
  const std::string directory_;
  const bool roomy_, striped_;
  TestRng rng_;
  TortureTotals* const totals_;
  Verdict verdict_;
  std::vector<std::unique_ptr<NamespaceOracle>> oracles_;
  std::vector<std::unique_ptr<TortureClient>> clients_;
  std::vector<size_t> oracle_of_;
  std::unique_ptr<ChildProcess> daemon_;
  std::unique_ptr<AdminClient> admin_;
  double start_ms_ = 60;
  uint64_t kills_ = 0;
  bool check_ = false;  // blocks were noted, and a daemon died since
};

Round::~Round() {
  for (auto& client : clients_) {
    // One that hangs cannot be joined.
    if (client->StepNs() > kHangMs * kNsPerMs) {
      if (daemon_ != nullptr) daemon_->Kill(SIGKILL);
      std::fflush(nullptr);
      std::_Exit(1);
    }
    totals_->clients.Add(client->counts());
    client.reset();
  }
}

std::vector<std::string> Round::SsdDirectories() const {
  std::vector<std::string> directories = {directory_ + "/ssd0"};
  if (striped_) directories.push_back(directory_ + "/ssd1");
  return directories;
}

void Round::Prepare() {
  std::filesystem::remove_all(directory_);  // of a run that failed
  std::filesystem::create_directories(directory_);
  std::filesystem::permissions(directory_, std::filesystem::perms::owner_all);
  std::string list;
  for (const std::string& ssd : SsdDirectories())
    absl::StrAppend(&list, list.empty() ? "" : ", ", "\"", ssd, "\"");
  // Everything is about 40 MiB with its headers; a reset leaves as much behind for a while.
  std::ofstream(directory_ + "/config.json")
      << "{\"cpu_cache_bytes\": \"" << (roomy_ ? "12MiB" : "6MiB")
      << "\", \"segment_bytes\": \"2MiB\", \"use_hugetlb\": false, \"lock_memory\": false, "
      << "\"enable_ssd\": true, \"ssd_segment_bytes\": \"4MiB\", \"ssd_cache_bytes\": \""
      << (roomy_ ? "384MiB" : "20MiB") << "\", \"ssd_backend\": \"" << options_.backend
      << "\", \"ssd_cache_dir\": [" << list << "]}";
}

void Round::MakeClients() {
  constexpr TortureLayout kOneRank{.ranks = 1, .layers = 2, .layer_bytes = 4096};
  constexpr TortureLayout kTwoRanks{.ranks = 2, .layers = 3, .layer_bytes = 2048};
  const std::array<std::pair<size_t, TortureLayout>, 4> plan = {
      {{0, kOneRank}, {0, kOneRank}, {1, kOneRank}, {2, kTwoRanks}}};
  for (uint32_t i = 0; i < 3; ++i) oracles_.push_back(std::make_unique<NamespaceOracle>(i));
  for (size_t i = 0; i < plan.size(); ++i) {
    TortureClient::Options options;
    options.socket_path = directory_ + "/sockets/daemon.sock";
    options.engine_id = i + 1;
    options.name = absl::StrCat("model-", plan[i].first);
    options.layout = plan[i].second;
    options.seed = rng_.Next();
    oracle_of_.push_back(plan[i].first);
    clients_.push_back(
        std::make_unique<TortureClient>(options, oracles_[plan[i].first].get(), &verdict_));
  }
}

// --- the daemon ----------------------------------------------------------------------------------

// One whose tester is gone ends by itself.
std::vector<std::string> Round::Command() const {
  return {FLEXKVD,
          "--config",
          directory_ + "/config.json",
          "--socket-dir",
          directory_ + "/sockets",
          "--log-level",
          "error",
          "--idle-exit",
          "120"};
}

void Round::KillDuringStart() {
  ChildProcess daemon(Command());
  SleepUs(static_cast<uint64_t>(start_ms_ * 1100 * static_cast<double>(rng_.Below(1000)) / 1000));
  daemon.Kill(SIGKILL);
  const int status = daemon.Wait();
  if (status != -SIGKILL) verdict_.Fail(absl::StrCat("flexkvd ended by itself at start: ", status));
  ++totals_->starts;
  ++totals_->kills[static_cast<size_t>(Moment::kStart)];
  ++kills_;
}

bool Round::StartDaemon() {
  const auto start = std::chrono::steady_clock::now();
  daemon_ = std::make_unique<ChildProcess>(Command());
  const std::string line = daemon_->ReadLine(kStartMs);
  const std::chrono::duration<double, std::milli> took = std::chrono::steady_clock::now() - start;
  if (line.find("ready") == std::string::npos) {
    daemon_->Kill(SIGKILL);
    verdict_.Fail(absl::StrCat("flexkvd did not start: exit status ", daemon_->Wait()));
    return false;
  }
  start_ms_ = 0.8 * start_ms_ + 0.2 * took.count();
  ++totals_->starts;
  auto admin = AdminClient::Connect(directory_ + "/sockets/admin.sock");
  if (!admin.ok()) {
    verdict_.Fail(absl::StrCat("admin.sock: ", admin.status().ToString()));
    return false;
  }
  admin_ = *std::move(admin);
  return true;
}

void Round::Kill(Moment moment) {
  admin_.reset();
  daemon_->Kill(SIGKILL);
  const int status = daemon_->Wait();
  if (status != -SIGKILL) verdict_.Fail(absl::StrCat("flexkvd ended by itself: ", status));
  daemon_.reset();
  ++totals_->kills[static_cast<size_t>(moment)];
  ++kills_;
}

bool Round::StopInOrder() {
  admin_.reset();
  daemon_->Kill(SIGTERM);
  // Its output ends with it.
  const auto start = std::chrono::steady_clock::now();
  daemon_->ReadLine(kStopMs);
  if (std::chrono::steady_clock::now() - start >= std::chrono::milliseconds(kStopMs)) {
    verdict_.Fail("flexkvd does not stop");
    return false;
  }
  const int status = daemon_->Wait();
  if (status != 0) verdict_.Fail(absl::StrCat("flexkvd stopped with status ", status));
  daemon_.reset();
  return status == 0;
}

bool Round::Verify() {
  std::string command = absl::StrCat(FLEXKV_CLI, " ssd verify");
  for (const std::string& ssd : SsdDirectories()) absl::StrAppend(&command, " ", ssd);
  const CommandResult result = Execute(command);
  if (result.code != 0) {
    verdict_.Fail(
        absl::StrCat("DAMAGED: flexkv ssd verify: exit status ", result.code, "\n", result.output));
  } else {
    ++totals_->verified;
  }
  return result.code == 0;
}

std::optional<admin::v1::StatusReply> Round::Status() {
  const absl::StatusOr<admin::v1::StatusReply> reply = admin_->Status(kStopMs);
  if (!reply.ok()) {
    verdict_.Fail(absl::StrCat("status: ", reply.status().ToString()));
    return std::nullopt;
  }
  for (const admin::v1::SsdDevice& device : reply->ssd_devices()) {
    if (device.corrupt_blocks() + device.read_errors() + device.write_errors() +
            device.sync_errors() + device.unreadable_segments() + device.retired_segments() +
            device.rebuilt_segments() + device.quarantined_slots() ==
        0)
      continue;
    verdict_.Fail(absl::StrCat("a kill is no fault of the device: ", device.ShortDebugString()));
  }
  if (roomy_ && reply->counters().ssd_evicted_blocks() > 0) {
    verdict_.Fail(absl::StrCat("blocks gave way on a tier with room for everything: ",
                               reply->ShortDebugString()));
  }
  return *reply;
}

// --- clients -------------------------------------------------------------------------------------

bool Round::Some(TortureOrder order, const std::function<bool(size_t)>& takes) {
  for (size_t i = 0; i < clients_.size(); ++i)
    clients_[i]->Give(takes(i) ? order : TortureOrder::kPause);
  for (auto& client : clients_) {
    if (client->AwaitDone(kHangMs)) continue;
    verdict_.Fail(absl::StrCat("HANGS: ", client->Explain()));
    return false;
  }
  return !verdict_.failed();
}

bool Round::NobodyHangs() {
  for (auto& client : clients_) {
    if (client->StepNs() < kHangMs * kNsPerMs) continue;
    verdict_.Fail(absl::StrCat("HANGS: ", client->Explain()));
  }
  return !verdict_.failed();
}

// Everything is on disk.
bool Round::Settled(const admin::v1::StatusReply& status) {
  const admin::v1::SsdTier& ssd = status.ssd();
  return ssd.writes_waiting() + ssd.writes_in_flight() + ssd.frees_in_flight() +
                 ssd.reads_in_flight() + status.ops_in_flight() ==
             0 &&
         ssd.blocks() == status.memory().cached_blocks() &&
         status.memory().ready_blocks() == status.memory().cached_blocks();
}

// The clients rest until the tier has written all it means to; then what they find is committed.
bool Round::SettleAndNote() {
  if (!All(TortureOrder::kPause)) return false;
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::milliseconds(kSettleMs);
  for (;;) {
    const std::optional<admin::v1::StatusReply> status = Status();
    if (!status.has_value()) return false;
    if (Settled(*status)) {
      totals_->committed += status->ssd().blocks();
      break;
    }
    if (std::chrono::steady_clock::now() >= deadline) {
      verdict_.Fail(absl::StrCat("the tier does not settle: ", status->ShortDebugString()));
      return false;
    }
    SleepUs(2000);
  }
  ++totals_->notes;
  // Client 0 speaks for the namespace that client 1 shares.
  return Some(TortureOrder::kNote, [](size_t i) { return i != 1; });
}

bool Round::CheckCommitted() {
  if (!check_) return true;
  check_ = false;
  ++totals_->checks;
  const std::optional<admin::v1::StatusReply> status = Status();
  if (!status.has_value()) return false;
  totals_->recovered += status->ssd().recovered_blocks();
  return All(TortureOrder::kCheck) && Status().has_value() && !verdict_.failed();
}

// --- lives ---------------------------------------------------------------------------------------

Moment Round::PickMoment() {
  const uint64_t dice = rng_.Below(100);
  if (dice < 10) return Moment::kEarly;
  if (dice < 35) return Moment::kAny;
  if (dice < 45) return Moment::kPut;
  if (dice < 55) return Moment::kLoad;
  if (dice < 70) return Moment::kReset;
  if (dice < 85 || !roomy_) return Moment::kWriteBack;
  return Moment::kSettled;
}

void Round::AwaitActivity(TortureActivity wanted) {
  for (int i = 0; i < 3000; ++i) {
    for (auto& client : clients_) {
      if (client->activity() == wanted) return;
    }
    SleepUs(100);
  }
}

void Round::AwaitMoment(Moment moment) {
  if (moment == Moment::kEarly) return SleepUs(rng_.Below(30'000));
  SleepUs(40'000 + rng_.Below(160'000));
  switch (moment) {
    case Moment::kPut:
      AwaitActivity(TortureActivity::kPut);
      return SleepUs(rng_.Below(2'000));
    case Moment::kLoad:
      AwaitActivity(TortureActivity::kLoad);
      return SleepUs(rng_.Below(2'000));
    case Moment::kReset:
      clients_[rng_.Below(clients_.size())]->Give(TortureOrder::kReset);
      AwaitActivity(TortureActivity::kReset);
      return SleepUs(rng_.Below(10'000));
    case Moment::kWriteBack:
      for (int i = 0; i < 20; ++i) {
        const std::optional<admin::v1::StatusReply> status = Status();
        if (!status.has_value() || status->ssd().writes_in_flight() > 0) break;
        SleepUs(5000);
      }
      return SleepUs(rng_.Below(2'000));
    default:
      return;
  }
}

// From a start to a kill.
bool Round::Live() {
  while (rng_.OneIn(6)) KillDuringStart();
  if (verdict_.failed() || !StartDaemon() || !CheckCommitted()) return false;
  if (!All(TortureOrder::kWork)) return false;
  const Moment moment = PickMoment();
  AwaitMoment(moment);
  if (moment == Moment::kSettled) {
    if (!SettleAndNote()) return false;
    // At rest, or at work again: what is committed stays.
    if (rng_.OneIn(2)) {
      if (!All(TortureOrder::kWork)) return false;
      SleepUs(rng_.Below(60'000));
    }
  }
  // Asked each time, for what gives way in one life is missed in another; but not before some, for
  // a question lets the moment pass.
  if (!rng_.OneIn(4) && moment != Moment::kEarly) Status();
  Kill(moment);
  check_ |= moment == Moment::kSettled || rng_.OneIn(6);
  return NobodyHangs();
}

bool Round::Go(uint64_t kills) {
  ++totals_->rounds;
  Prepare();
  MakeClients();
  while (kills_ < kills && !verdict_.failed()) {
    if (!Live()) return false;
  }
  if (verdict_.failed() || !All(TortureOrder::kPause)) return false;
  check_ = true;
  if (!StartDaemon() || !CheckCommitted() || !StopInOrder() || !Verify()) return false;
  return !verdict_.failed();
}

// --- the program ---------------------------------------------------------------------------------

class Torture {
 public:
  explicit Torture(const TortureOptions& options) : options_(options), rng_(options.seed) {}
  int Go();

 private:
  const TortureOptions& options_;
  TestRng rng_;
  TortureTotals totals_;
};

int Torture::Go() {
  const auto start = std::chrono::steady_clock::now();
  const std::string base = std::filesystem::absolute(
      options_.directory.empty() ? absl::StrCat("daemon_torture.", getpid()) : options_.directory);
  std::string failure;
  for (uint64_t number = 0; totals_.AllKills() < options_.kills && failure.empty(); ++number) {
    const uint64_t left = options_.kills - totals_.AllKills();
    const uint64_t kills =
        std::min(left, std::min(kKillsOfRound, std::max<uint64_t>(1, options_.kills / 4)));
    const std::string directory = absl::StrCat(base, "/round-", number);
    {
      Round round(options_, directory, number, rng_.Next(), &totals_);
      if (!round.Go(kills)) failure = round.verdict().text();
      if (!failure.empty()) {
        std::printf("FAILED: %s\nfiles in %s\nagain: flexkv_daemon_torture --kills %" PRIu64
                    " --seed %" PRIu64 " --backend %s\n",
                    failure.c_str(), directory.c_str(), options_.kills, options_.seed,
                    options_.backend.c_str());
        std::fflush(stdout);
      }
    }
    if (failure.empty()) std::filesystem::remove_all(directory);
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
    if (options_.progress) std::printf("%.1f s: %s\n", took.count(), totals_.ToString().c_str());
    std::fflush(stdout);
  }
  if (!failure.empty()) return 1;
  std::error_code ignored;
  std::filesystem::remove(base, ignored);
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%s\n", totals_.ToString().c_str());
  std::printf("%" PRIu64 " kills of the daemon in %.1f s, 4 clients, backend %s, seed %" PRIu64
              ": 0 wrong bytes, 0 committed blocks lost\n",
              totals_.AllKills(), took.count(), options_.backend.c_str(), options_.seed);
  return 0;
}

int Usage() {
  std::fprintf(stderr,
               "usage: flexkv_daemon_torture [--kills N] [--clients 4] [--seed S] "
               "[--backend auto|io_uring|threads] [--dir DIR]\n");
  return 2;
}

int Program(int argc, char** argv) {
  TortureOptions options{.progress = true};
  bool seeded = false;
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    if (i + 1 == argc) return Usage();
    const std::string value = argv[i + 1];
    if (flag == "--kills") {
      options.kills = std::strtoull(value.c_str(), nullptr, 0);
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value.c_str(), nullptr, 0);
      seeded = true;
    } else if (flag == "--backend") {
      options.backend = value;
    } else if (flag == "--dir") {
      options.directory = value;
    } else if (flag != "--clients" || value != "4") {
      return Usage();
    }
  }
  if (!seeded) options.seed = TestSeed();
  signal(SIGPIPE, SIG_IGN);
  std::printf("seed %" PRIu64 "\n", options.seed);
  return Torture(options).Go();
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) { return flexkv::Program(argc, argv); }
