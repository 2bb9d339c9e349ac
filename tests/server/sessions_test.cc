// The real client sessions against the real daemon: bytes go from one set of engine blocks to
// another, through the arena, and come back after the daemon was replaced.
#include <chrono>
#include <cstring>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

constexpr uint32_t kTokens = 16;        // per block
constexpr uint32_t kBlocks = 64;        // of the engine
constexpr uint32_t kPrompt = 20;        // blocks of a request
constexpr uint32_t kBlockBytes = 8192;  // all layers
constexpr int kLayers = 4;

struct ChainSource : HashSource {
  explicit ChainSource(uint64_t seed) : chain(Chain(seed, kPrompt)) {}
  void AppendHashes(std::string_view, uint32_t from, std::vector<BlockHash>* hashes) override {
    if (from < chain.size()) hashes->insert(hashes->end(), chain.begin() + from, chain.end());
  }
  std::vector<BlockHash> chain;
};

// An engine of one rank, or of several replicas: its memory, its sessions, and steps.
class SessionEngine {
 public:
  SessionEngine(const std::string& socket, uint64_t id, uint32_t ranks = 1)
      : hashes_(7), memory_(ranks, std::vector<std::byte>(kBlocks * kBlockBytes)) {
    SchedulerOptions options;
    options.socket_path = socket;
    options.engine_id[0] = id;
    options.world_size = ranks;
    options.tokens_per_block = kTokens;
    options.label = "sessions";
    options.fingerprint = "fp";
    options.lookup_wait_us = 50000;
    options.lookup_timeout_ms = 2000;
    options.min_load_tokens = 0;
    auto scheduler_or = SchedulerSession::Open(options, &hashes_);
    EXPECT_TRUE(scheduler_or.ok()) << scheduler_or.status();
    scheduler_ = std::move(*scheduler_or);
    for (uint32_t rank = 0; rank < ranks; ++rank) {
      WorkerOptions worker;
      worker.socket_path = socket;
      worker.engine_id[0] = id;
      worker.rank = rank;
      worker.world_size = ranks;
      worker.replicated = ranks > 1;
      auto worker_or = WorkerSession::Open(worker, Layout(rank));
      EXPECT_TRUE(worker_or.ok()) << worker_or.status();
      workers_.push_back(std::move(*worker_or));
    }
  }

  SchedulerSession& scheduler() { return *scheduler_; }

  // Tokens offered for a new request; -1 when no answer came.
  int64_t Ask(const std::string& id) {
    scheduler_->NewRequest(id, kPrompt * kTokens + 1);
    for (int i = 0; i < 100; ++i) {
      const int64_t matched = scheduler_->MatchedTokens(id, 0, kPrompt * kTokens + 1);
      if (matched != SchedulerSession::kAskAgain) return matched;
    }
    return -1;
  }

  // The request computes everything from `computed` on into blocks from `first_block` on.
  void Compute(const std::string& id, uint32_t first_block, uint32_t computed) {
    for (uint32_t i = computed; i < kPrompt; ++i) Fill(first_block + i, i);
    scheduler_->BeginStep((kPrompt - computed) * kTokens);
    scheduler_->ScheduledNew(id, Ids(first_block), computed * kTokens,
                             (kPrompt - computed) * kTokens + 1);
    Execute();
  }
  void Allocate(const std::string& id, uint32_t first_block, uint32_t external_tokens) {
    scheduler_->BlocksAllocated(id, Ids(first_block), external_tokens);
  }
  void EmptyStep() {
    scheduler_->BeginStep(0);
    Execute();
  }
  // A step without news: engines poll at every one.
  void Idle() {
    for (const auto& worker : workers_) {
      WorkerSession::Report report;
      worker->Poll(&report);
      EXPECT_TRUE(report.loads.empty());
    }
  }
  // Waits for the report of the request's load by every rank; the number of failed blocks, -1 when
  // one did not come.
  int AwaitLoad(const std::string& id) {
    WorkerSession::Report report;
    std::set<uint32_t> reported;
    int failed = 0;
    for (int i = 0; i < 5000 && reported.size() < workers_.size(); ++i) {
      for (uint32_t rank = 0; rank < workers_.size(); ++rank) {
        workers_[rank]->Poll(&report);
        if (report.loads.empty()) continue;
        EXPECT_EQ(report.loads.front(), id);
        EXPECT_TRUE(reported.insert(rank).second);
        failed += static_cast<int>(report.failed_block_ids.size());
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    if (reported.size() < workers_.size()) return -1;
    scheduler_->LoadEnded(id, failed > 0);
    return failed;
  }
  AgentStats StatsOf(uint32_t rank) const { return workers_[rank]->stats().agent; }
  std::string Explain() const {
    const WorkerStats w = workers_[0]->stats();
    const SchedulerStats s = scheduler_->stats();
    return absl::StrCat("worker: failed ", w.agent.failed, ", refused ", w.agent.refused,
                        ", orphans ", w.agent.orphans, ", loads failed ", w.loads_failed,
                        ", timeouts ", w.load_timeouts, ", bad plans ", w.bad_plans,
                        "; scheduler: breaker opens ", s.breaker_opens, ", ring full ", s.ring_full,
                        ", load failures ", s.load_failures, "; daemon: ");
  }
  // On every rank.
  bool Holds(uint32_t block, uint32_t position) const {
    for (uint32_t rank = 0; rank < workers_.size(); ++rank) {
      if (!Holds(rank, block, position)) return false;
    }
    return true;
  }

 private:
  bool Holds(uint32_t rank, uint32_t block, uint32_t position) const {
    for (int layer = 0; layer < kLayers; ++layer) {
      const std::byte* bytes = At(rank, block, layer);
      for (uint32_t i = 0; i < kBlockBytes / kLayers; ++i) {
        if (bytes[i] != Value(position, layer, i)) return false;
      }
    }
    return true;
  }
  KvLayout Layout(uint32_t rank) {
    KvGroup group;
    group.num_blocks = kBlocks;
    group.tokens_per_block = kTokens;
    for (int layer = 0; layer < kLayers; ++layer) {
      LayerView view;
      view.base = reinterpret_cast<uintptr_t>(At(rank, 0, layer));
      view.block_stride_bytes = kBlockBytes / kLayers;
      view.fragment_bytes = kBlockBytes / kLayers;
      group.layers.push_back(view);
    }
    return {{group}, "test layout"};
  }
  std::byte* At(uint32_t rank, uint32_t block, int layer) const {
    constexpr size_t kLayerBytes = kBlocks * kBlockBytes / kLayers;
    return const_cast<std::byte*>(memory_[rank].data()) + static_cast<size_t>(layer) * kLayerBytes +
           block * (kBlockBytes / kLayers);
  }
  static std::byte Value(uint32_t position, int layer, uint32_t i) {
    return static_cast<std::byte>(position * 31 + static_cast<uint32_t>(layer) * 7 + i * 3 + 1);
  }
  void Fill(uint32_t block, uint32_t position) {
    for (uint32_t rank = 0; rank < workers_.size(); ++rank) {
      for (int layer = 0; layer < kLayers; ++layer) {
        for (uint32_t i = 0; i < kBlockBytes / kLayers; ++i)
          At(rank, block, layer)[i] = Value(position, layer, i);
      }
    }
  }
  static std::vector<uint32_t> Ids(uint32_t first_block) {
    std::vector<uint32_t> ids(kPrompt + 1);
    for (uint32_t i = 0; i < ids.size(); ++i) ids[i] = first_block + i;
    return ids;
  }
  void Execute() {
    const std::span<const std::byte> plan = scheduler_->EndStep();
    if (plan.empty()) return;
    for (const auto& worker : workers_) {
      worker->Fence(plan);
      worker->Bind(plan);
      worker->StepDone();
    }
  }

  ChainSource hashes_;
  std::vector<std::vector<std::byte>> memory_;  // by rank
  std::unique_ptr<SchedulerSession> scheduler_;
  std::vector<std::unique_ptr<WorkerSession>> workers_;
};

class SessionsTest : public DaemonTest {
 protected:
  // One request computes and stores, the next one loads and gets the same bytes.
  void RoundTrip(SessionEngine* engine, const std::string& name) {
    ASSERT_EQ(engine->Ask(name + "-1"), 0);
    engine->Allocate(name + "-1", 1, 0);  // block 0 is the engine's null block
    engine->Compute(name + "-1", 1, 0);
    ASSERT_TRUE(Eventually([&] { return Status().memory().ready_blocks() == kPrompt; }));
    engine->scheduler().RequestFinished(name + "-1");
    LoadAgain(engine, name + "-2");
  }
  void LoadAgain(SessionEngine* engine, const std::string& id) {
    const int64_t matched = engine->Ask(id);
    ASSERT_EQ(matched, kPrompt * kTokens);
    engine->Allocate(id, 30, static_cast<uint32_t>(matched));
    engine->EmptyStep();
    ASSERT_EQ(engine->AwaitLoad(id), 0) << engine->Explain() << Status().ShortDebugString();
    for (uint32_t i = 0; i < kPrompt; ++i) EXPECT_TRUE(engine->Holds(30 + i, i)) << i;
    engine->scheduler().RequestFinished(id);
  }
};

TEST_F(SessionsTest, WhatWasStoredIsLoaded) {
  SessionEngine engine(Socket(), 1);
  ASSERT_TRUE(engine.scheduler().WaitReady(5000));
  RoundTrip(&engine, "a");
  EXPECT_EQ(Status().clients_dropped(), 0u);
}

TEST_F(SessionsTest, ASecondEnginesFirstRequestHits) {
  SessionEngine first(Socket(), 1), second(Socket(), 2);
  ASSERT_TRUE(first.scheduler().WaitReady(5000) && second.scheduler().WaitReady(5000));
  RoundTrip(&first, "a");
  LoadAgain(&second, "b");
}

// Three ranks with the same bytes: each block is stored by one of them and loaded by all, and those
// that store nothing wait for nothing.
TEST_F(SessionsTest, ReplicasStoreOnceAndAllLoad) {
  constexpr uint32_t kRanks = 3;
  SessionEngine engine(Socket(), 1, kRanks);
  ASSERT_TRUE(engine.scheduler().WaitReady(5000));
  RoundTrip(&engine, "a");
  uint64_t stored = 0, refused = 0;
  ASSERT_TRUE(Eventually([&] {
    stored = refused = 0;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      stored += engine.StatsOf(rank).store_bytes;
      refused += engine.StatsOf(rank).refused;
    }
    return refused == kRanks - 1;
  }));
  EXPECT_EQ(stored, uint64_t{kPrompt} * kBlockBytes);
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    EXPECT_EQ(engine.StatsOf(rank).load_bytes, uint64_t{kPrompt} * kBlockBytes) << rank;
    EXPECT_EQ(engine.StatsOf(rank).orphans, 0u) << rank;
  }
  EXPECT_EQ(Status().clients_dropped(), 0u);
}

TEST_F(SessionsTest, BothSidesFindAReplacedDaemonWithinASecond) {
  SessionEngine engine(Socket(), 1);
  ASSERT_TRUE(engine.scheduler().WaitReady(5000));
  RoundTrip(&engine, "a");
  StopDaemon();
  EXPECT_EQ(engine.Ask("alone"), 0);
  engine.scheduler().RequestFinished("alone");
  engine.Idle();
  StartDaemon();
  EXPECT_TRUE(engine.scheduler().WaitReady(1000));
  RoundTrip(&engine, "b");
}

TEST_F(SessionsTest, AnOrderlyEndLeavesNothingBehind) {
  {
    SessionEngine engine(Socket(), 1);
    ASSERT_TRUE(engine.scheduler().WaitReady(5000));
    RoundTrip(&engine, "a");
  }
  EXPECT_TRUE(Eventually([&] { return Status().clients() == 0; }, 1000));
  EXPECT_EQ(Status().leases(), 0u);
  EXPECT_EQ(Status().ops_in_flight(), 0u);
  EXPECT_EQ(Status().memory().pinned_blocks(), 0u);
}

}  // namespace
}  // namespace flexkv
