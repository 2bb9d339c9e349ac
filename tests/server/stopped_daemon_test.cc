// A daemon that is stopped (SIGSTOP) with ops planned, and wakes up after the engine gave up on it
// and reused the blocks: nothing it does then may reach engine memory, and nothing it kept may be
// wrong. Content oracle over every engine block and every block loaded; seeded, 200 repeats
// (FLEXKV_TEST_REPEATS changes that).
#include <signal.h>

#include <chrono>
#include <cstdlib>
#include <numeric>
#include <optional>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/step_plan.h"
#include "flexkv/client/worker_session.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"
#include "tests/support/content_oracle.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

constexpr uint32_t kTokens = 16;
constexpr uint32_t kGpuBlocks = 80;
constexpr uint32_t kPrompt = 16;  // blocks of a request
constexpr uint32_t kBlockBytes = 8192;
constexpr uint32_t kLoadTimeoutMs = 20;

// The chain a request has is the number after its name: "r:7" has chain 7.
class Chains : public HashSource {
 public:
  static std::vector<BlockHash> Of(uint64_t number) {
    std::vector<BlockHash> chain = {HashFromNumber(number)};
    while (chain.size() < kPrompt) chain.push_back(ChildHash(chain.back(), chain.size()));
    return chain;
  }
  void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override {
    const auto chain =
        Of(std::strtoull(std::string(id.substr(id.find(':') + 1)).c_str(), nullptr, 10));
    hashes->insert(hashes->end(), chain.begin() + from, chain.end());
  }
};

class StoppedDaemonTest : public ::testing::Test {
 protected:
  StoppedDaemonTest() : memory_(kGpuBlocks * kBlockBytes), owner_(kGpuBlocks) {
    const std::string folder = dir_.path() + "/flexkv";
    daemon_ = std::make_unique<ChildProcess>(
        std::vector<std::string>{FLEXKVD, "--socket-dir", folder, "--cpu-cache-bytes", "64MiB"});
    daemon_->ReadLine();
    SchedulerOptions scheduler;
    scheduler.socket_path = folder + "/daemon.sock";
    scheduler.engine_id[0] = 5;
    scheduler.tokens_per_block = kTokens;
    scheduler.label = "stopped";
    scheduler.fingerprint = "stopped";
    scheduler.min_load_tokens = 0;
    scheduler_ = *SchedulerSession::Open(scheduler, &chains_);
    TensorView tensor{"layer.0",
                      reinterpret_cast<uintptr_t>(memory_.data()),
                      1,
                      {kGpuBlocks, kBlockBytes},
                      {kBlockBytes, 1},
                      0};
    KvLayout layout;
    layout.groups.push_back(*MakeKvGroup({&tensor, 1}, kTokens));
    layout.descriptor = "one layer";
    WorkerOptions worker;
    worker.socket_path = scheduler.socket_path;
    worker.engine_id[0] = 5;
    worker.load_timeout_ms = kLoadTimeoutMs;
    worker_ = *WorkerSession::Open(worker, std::move(layout));
    EXPECT_TRUE(scheduler_->WaitReady(5000));
  }

  std::span<std::byte> Block(uint32_t id) {
    return std::span(memory_).subspan(size_t{id} * kBlockBytes, kBlockBytes);
  }
  void Own(uint32_t id, const BlockHash& hash) {
    FillContent(hash, 0, Block(id));
    owner_[id] = hash;
  }
  // What every block with an owner must hold.
  void CheckMemory(const std::string& when) {
    for (uint32_t id = 0; id < kGpuBlocks; ++id) {
      if (!owner_[id].has_value()) continue;
      ASSERT_TRUE(ContentMatches(*owner_[id], 0, Block(id))) << when << ": block " << id;
    }
  }
  std::vector<uint32_t> PickBlocks() {
    std::vector<uint32_t> ids(kGpuBlocks - 1);
    std::iota(ids.begin(), ids.end(), 1);
    for (size_t i = ids.size() - 1; i > 0; --i) std::swap(ids[i], ids[random_.Below(i + 1)]);
    ids.resize(2 * kPrompt);
    return ids;
  }
  void RunStep() {
    const auto plan = scheduler_->EndStep();
    worker_->Fence(plan);
    worker_->Bind(plan);
  }
  // Computes a chain into `ids` and offers it to the cache; the step is over on return.
  void Compute(const std::string& id, uint64_t chain, std::span<const uint32_t> ids) {
    scheduler_->NewRequest(id, kPrompt * kTokens);
    scheduler_->MatchedTokens(id, 0, kPrompt * kTokens);
    scheduler_->BlocksAllocated(id, ids, 0);
    scheduler_->BeginStep(kPrompt * kTokens);
    scheduler_->ScheduledNew(id, ids, 0, kPrompt * kTokens);
    RunStep();
    const std::vector<BlockHash> hashes = Chains::Of(chain);
    for (uint32_t i = 0; i < kPrompt; ++i) Own(ids[i], hashes[i]);
    worker_->StepDone();
  }
  // Tokens offered within a second.
  int64_t Ask(const std::string& id) {
    scheduler_->NewRequest(id, kPrompt * kTokens);
    int64_t matched = SchedulerSession::kAskAgain;
    for (int i = 0; i < 1000 && matched == SchedulerSession::kAskAgain; ++i) {
      matched = scheduler_->MatchedTokens(id, 0, kPrompt * kTokens);
    }
    return matched;
  }
  WorkerSession::Report AwaitReport() {
    WorkerSession::Report report;
    for (int i = 0; i < 2000 && report.loads.empty(); ++i) {
      worker_->Poll(&report);
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return report;
  }
  void Signal(int signal) { kill(daemon_->pid(), signal); }
  void MaybeStop(int point) {
    if (point == stop_at_) Signal(SIGSTOP);
  }
  void Repeat(uint64_t number);

  TempDir dir_;
  Chains chains_;
  std::vector<std::byte> memory_;
  std::vector<std::optional<BlockHash>> owner_;
  std::unique_ptr<ChildProcess> daemon_;
  std::unique_ptr<SchedulerSession> scheduler_;
  std::unique_ptr<WorkerSession> worker_;
  TestRng random_{TestSeed()};
  int stop_at_ = 0;
  uint64_t loads_right_ = 0, loads_failed_ = 0;
};

void StoppedDaemonTest::Repeat(uint64_t number) {
  stop_at_ = static_cast<int>(random_.Below(6));
  const uint64_t chain = 1 + random_.Below(8);
  const std::vector<uint32_t> ids = PickBlocks();
  const auto load_ids = std::span(ids).first(kPrompt);
  const auto store_ids = std::span(ids).last(kPrompt);
  const std::string loader = absl::StrCat("load", number, ":", chain);
  const std::string storer = absl::StrCat("store", number, ":", 100 + number);

  MaybeStop(0);
  const int64_t matched = Ask(loader);
  MaybeStop(1);
  Compute(storer, 100 + number, store_ids);  // a store under way at the stop, too
  MaybeStop(2);
  if (matched > 0) {
    for (uint32_t id : load_ids) owner_[id].reset();  // undefined until the load ended
    scheduler_->BlocksAllocated(loader, load_ids, static_cast<uint32_t>(matched));
    MaybeStop(3);
    scheduler_->BeginStep(0);
    RunStep();
    MaybeStop(4);
    worker_->StepDone();
    const WorkerSession::Report report = AwaitReport();
    ASSERT_EQ(report.loads, std::vector<std::string>{loader});
    const bool failed = !report.failed_block_ids.empty();
    ++(failed ? loads_failed_ : loads_right_);
    const std::vector<BlockHash> hashes = Chains::Of(chain);
    for (uint32_t i = 0; i < matched / kTokens && !failed; ++i) {
      ASSERT_TRUE(ContentMatches(hashes[i], 0, Block(load_ids[i])))
          << "block " << i << " was loaded wrong";
    }
    scheduler_->LoadEnded(loader, failed);
  }
  MaybeStop(5);
  scheduler_->RequestFinished(loader);
  scheduler_->RequestFinished(storer);
  // New owners for everything, fenced as the engine would.
  Compute(absl::StrCat("next", number, ":", 100000 + 2 * number), 100000 + 2 * number, store_ids);
  Compute(absl::StrCat("next", number, "b:", 100001 + 2 * number), 100001 + 2 * number, load_ids);
  scheduler_->RequestFinished(absl::StrCat("next", number, ":", 100000 + 2 * number));
  scheduler_->RequestFinished(absl::StrCat("next", number, "b:", 100001 + 2 * number));
  CheckMemory("before waking");
  Signal(SIGCONT);
  std::this_thread::sleep_for(std::chrono::milliseconds(2 + random_.Below(10)));
  CheckMemory("after waking");
}

TEST_F(StoppedDaemonTest, WakingUpLateTouchesNothing) {
  const char* repeats = std::getenv("FLEXKV_TEST_REPEATS");
  const uint64_t count = repeats != nullptr ? std::strtoull(repeats, nullptr, 10) : 200;
  const std::vector<uint32_t> ids = PickBlocks();
  for (uint64_t chain = 1; chain <= 8; ++chain) {
    Compute(absl::StrCat("first:", chain), chain, std::span(ids).first(kPrompt));
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    scheduler_->RequestFinished(absl::StrCat("first:", chain));
  }
  for (uint64_t number = 0; number < count; ++number) {
    SCOPED_TRACE(absl::StrCat("repeat ", number, ", stopped at point ", stop_at_));
    Repeat(number);
    if (HasFatalFailure()) break;
  }
  Signal(SIGCONT);
  // Whatever the daemon kept of the stores it was stopped in must be right.
  uint64_t kept = 0;
  for (uint64_t number = 0; number < count && !HasFatalFailure(); ++number) {
    const std::string id = absl::StrCat("check", number, ":", 100 + number);
    const int64_t matched = Ask(id);
    if (matched > 0) {
      scheduler_->BlocksAllocated(id, std::span(ids).first(kPrompt),
                                  static_cast<uint32_t>(matched));
      scheduler_->BeginStep(0);
      RunStep();
      worker_->StepDone();
      const WorkerSession::Report report = AwaitReport();
      const std::vector<BlockHash> hashes = Chains::Of(100 + number);
      for (uint32_t i = 0; i < matched / kTokens && report.failed_block_ids.empty(); ++i) {
        ASSERT_TRUE(ContentMatches(hashes[i], 0, Block(ids[i])))
            << "stored wrong: chain " << 100 + number << " block " << i;
        ++kept;
      }
      scheduler_->LoadEnded(id, !report.failed_block_ids.empty());
    }
    scheduler_->RequestFinished(id);
  }
  printf("%llu loads right, %llu failed, %llu stored blocks checked\n",
         static_cast<unsigned long long>(loads_right_),
         static_cast<unsigned long long>(loads_failed_), static_cast<unsigned long long>(kept));
  EXPECT_GT(loads_right_, 0u);
  EXPECT_GT(loads_failed_, 0u);
  EXPECT_GT(kept, 0u);
}

}  // namespace
}  // namespace flexkv
