#include "perf/ring/daemon_match.h"

#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <filesystem>
#include <numeric>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/base/thread_setup.h"
#include "perf/bench_util.h"
#include "perf/daemon/daemon_process.h"

namespace flexkv::bench {
namespace {

constexpr uint32_t kTokensPerBlock = 16;
constexpr uint32_t kBlockBytes = 4096;

}  // namespace

// Every request has the same chain.
struct DaemonMatch::Hashes : public HashSource {
  Hashes() : chain(kBlocks) {
    for (uint32_t i = 0; i < kBlocks * 4; ++i) chain[i / 4].words[i % 4] = SplitMix(i);
  }
  void AppendHashes(std::string_view, uint32_t from, std::vector<BlockHash>* hashes) override {
    hashes->insert(hashes->end(), chain.begin() + from, chain.end());
  }
  std::vector<BlockHash> chain;
};

absl::StatusOr<std::unique_ptr<DaemonMatch>> DaemonMatch::Start(const std::string& flexkvd) {
  std::unique_ptr<DaemonMatch> match(new DaemonMatch);
  for (absl::Status status :
       {match->Launch(FindDaemon(flexkvd)), match->Attach(), match->StoreBlocks()}) {
    if (!status.ok()) return status;
  }
  return match;
}

absl::Status DaemonMatch::Launch(const std::string& flexkvd) {
  char folder[] = "/tmp/flexkv-bench-XXXXXX";
  if (mkdtemp(folder) == nullptr) return absl::InternalError("no temporary directory");
  folder_ = folder;
  pid_ = fork();
  if (pid_ == 0) {
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    SetUpThread("flexkvd");  // the bench is bound to one core
    if (freopen("/dev/null", "w", stderr) == nullptr) _exit(126);
    execlp(flexkvd.c_str(), "flexkvd", "--socket-dir", folder, "--cpu-cache-bytes", "256MiB",
           nullptr);
    _exit(127);
  }
  const std::string socket = folder_ + "/daemon.sock";
  for (int i = 0; i < 5000; ++i) {
    if (access(socket.c_str(), F_OK) == 0) return absl::OkStatus();
    if (waitpid(pid_, nullptr, WNOHANG) == pid_) {
      pid_ = 0;
      return absl::NotFoundError("could not start flexkvd; give its path with --flexkvd PATH");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return absl::DeadlineExceededError("flexkvd was not ready within 5 s");
}

absl::Status DaemonMatch::Attach() {
  hashes_ = std::make_unique<Hashes>();
  SchedulerOptions scheduler;
  scheduler.socket_path = folder_ + "/daemon.sock";
  scheduler.engine_id[0] = 1;
  scheduler.tokens_per_block = kTokensPerBlock;
  scheduler.label = "bench";
  scheduler.fingerprint = "bench";
  scheduler.lookup_wait_us = 1000000;  // the bench wants the answer, however late
  scheduler.lookup_timeout_ms = 10000;
  scheduler.min_load_tokens = 0;
  absl::StatusOr<std::unique_ptr<SchedulerSession>> session =
      SchedulerSession::Open(scheduler, hashes_.get());
  if (!session.ok()) return session.status();
  scheduler_ = *std::move(session);

  tensor_.resize(size_t{kBlocks + 1} * kBlockBytes);
  TensorView tensor{"layer.0",
                    reinterpret_cast<uintptr_t>(tensor_.data()),
                    1,
                    {kBlocks + 1, kBlockBytes},
                    {kBlockBytes, 1},
                    0};
  absl::StatusOr<KvGroup> group = MakeKvGroup({&tensor, 1}, kTokensPerBlock);
  if (!group.ok()) return group.status();
  KvLayout layout;
  layout.groups.push_back(*std::move(group));
  layout.descriptor = "bench";
  WorkerOptions worker;
  worker.socket_path = scheduler.socket_path;
  worker.engine_id[0] = 1;
  absl::StatusOr<std::unique_ptr<WorkerSession>> worker_session =
      WorkerSession::Open(worker, std::move(layout));
  if (!worker_session.ok()) return worker_session.status();
  worker_ = *std::move(worker_session);
  return scheduler_->WaitReady(5000) ? absl::OkStatus()
                                     : absl::DeadlineExceededError("could not attach to flexkvd");
}

absl::Status DaemonMatch::StoreBlocks() {
  constexpr uint32_t kTokens = kBlocks * kTokensPerBlock;
  std::vector<uint32_t> ids(kBlocks);
  std::iota(ids.begin(), ids.end(), 1);  // 0 is the null block
  scheduler_->NewRequest("store", kTokens);
  scheduler_->MatchedTokens("store", 0, kTokens);
  scheduler_->BlocksAllocated("store", ids, 0);
  scheduler_->BeginStep(kTokens);
  scheduler_->ScheduledNew("store", ids, 0, kTokens);
  worker_->Bind(scheduler_->EndStep());
  worker_->StepDone();
  for (int i = 0; i < 5000; ++i) {
    const std::string id = "probe" + std::to_string(i);
    scheduler_->NewRequest(id, kTokens);
    const int64_t matched = scheduler_->MatchedTokens(id, 0, kTokens);
    scheduler_->RequestFinished(id);
    if (matched == kTokens) return absl::OkStatus();
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const SchedulerStats stats = scheduler_->stats();
  const WorkerStats worker = worker_->stats();
  return absl::DeadlineExceededError(
      absl::StrCat("the blocks did not become ready: puts ", stats.puts, ", ready ", stats.ready,
                   ", breaker ", stats.breaker_open, ", timeouts ", stats.lookup_timeouts,
                   ", stores ", worker.agent.stores, ", orphans ", worker.agent.orphans,
                   ", refused ", worker.agent.refused, ", failed ", worker.agent.failed));
}

void DaemonMatch::Match() {
  const std::string id = std::to_string(next_++);
  scheduler_->NewRequest(id, kBlocks * kTokensPerBlock);
  const int64_t matched = scheduler_->MatchedTokens(id, 0, kBlocks * kTokensPerBlock);
  scheduler_->RequestFinished(id);
  if (matched != kBlocks * kTokensPerBlock) {
    fprintf(stderr, "flexkv_ring_bench: matched %lld tokens\n", static_cast<long long>(matched));
    abort();
  }
}

DaemonMatch::~DaemonMatch() {
  scheduler_.reset();
  worker_.reset();
  if (pid_ > 0) {
    kill(pid_, SIGTERM);
    waitpid(pid_, nullptr, 0);
  }
  std::error_code ignored;
  if (!folder_.empty()) std::filesystem::remove_all(folder_, ignored);
}

}  // namespace flexkv::bench
