// The plan board, and both sessions talking over it: blocks held until their store ended, whatever
// the daemon does.
#include <gtest/gtest.h>

#include <chrono>
#include <random>
#include <thread>

#include "flexkv/client/plan_board.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"
#include "tests/client/scripted_daemon.h"
#include "tests/support/content_oracle.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using ::flexkv::testing::ScriptedClient;
using ::flexkv::testing::ScriptedDaemon;
using shm::MessageType;

TEST(PlanBoardTest, EveryRankReadsEveryPlanInOrder) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  const uint64_t id[2] = {random(), random()};
  std::unique_ptr<PlanBoard> board = *PlanBoard::Create(id, 2);
  std::unique_ptr<PlanBoardReader> readers[2] = {*PlanBoardReader::Open(id, 0, 2, 1000),
                                                 *PlanBoardReader::Open(id, 1, 2, 1000)};
  uint64_t published = 0, read[2] = {0, 0};
  const auto size_of = [](uint64_t n) { return 1 + (n * 7919) % 200000; };
  while (read[0] < 400 || read[1] < 400) {
    std::vector<std::byte> plan(size_of(published), static_cast<std::byte>(published));
    if (published < 400 && board->Publish(plan)) ++published;
    for (int rank = 0; rank < 2; ++rank) {
      if (random() % 3 == 0 || !readers[rank]->Next(&plan)) continue;
      ASSERT_EQ(plan.size(), size_of(read[rank]));
      ASSERT_EQ(plan.front(), static_cast<std::byte>(read[rank]));
      ASSERT_EQ(plan.back(), static_cast<std::byte>(read[rank]));
      ++read[rank];
    }
  }
}

TEST(PlanBoardTest, FullBoardRefusesUntilTheSlowestRankReads) {
  const uint64_t id[2] = {TestSeed(), 2};
  std::unique_ptr<PlanBoard> board = *PlanBoard::Create(id, 1);
  std::unique_ptr<PlanBoardReader> reader = *PlanBoardReader::Open(id, 0, 1, 1000);
  const std::vector<std::byte> plan(1 << 20);
  int published = 0;
  while (board->Publish(plan)) ++published;
  EXPECT_GE(published, 2);
  std::vector<std::byte> out;
  ASSERT_TRUE(reader->Next(&out));
  ASSERT_TRUE(reader->Next(&out));
  EXPECT_TRUE(board->Publish(plan));
}

TEST(PlanBoardTest, WithoutSchedulerThereIsNoBoard) {
  const uint64_t id[2] = {TestSeed(), 3};
  EXPECT_TRUE(absl::IsUnavailable(PlanBoardReader::Open(id, 0, 1, 10).status()));
}

constexpr uint32_t kBlocks = 16;
constexpr uint32_t kBlockBytes = 4096;

class Chain : public HashSource {
 public:
  void AppendHashes(std::string_view, uint32_t from, std::vector<BlockHash>* hashes) override {
    for (uint32_t i = from; i < 4; ++i) hashes->push_back(HashFromNumber(i));
  }
};

class ReducedModeTest : public ::testing::Test {
 protected:
  ReducedModeTest() : tensor_(kBlocks * kBlockBytes) {
    SchedulerOptions scheduler;
    scheduler.socket_path = daemon_.path();
    scheduler.engine_id[0] = TestSeed();
    scheduler.engine_id[1] = 9;
    scheduler.tokens_per_block = 16;
    scheduler.reduced = true;
    scheduler.min_load_tokens = 0;
    scheduler_ = *SchedulerSession::Open(scheduler, &chain_);
    scheduler_client_ = daemon_.Accept();
    TensorView view{"layer.0",
                    reinterpret_cast<uintptr_t>(tensor_.data()),
                    1,
                    {kBlocks, kBlockBytes},
                    {kBlockBytes, 1},
                    0};
    KvLayout layout;
    layout.groups.push_back(*MakeKvGroup({&view, 1}, 16));
    layout.descriptor = "one layer";
    WorkerOptions worker;
    worker.socket_path = daemon_.path();
    worker.engine_id[0] = scheduler.engine_id[0];
    worker.engine_id[1] = scheduler.engine_id[1];
    worker.reduced = true;
    worker.load_timeout_ms = 300;
    worker_ = *WorkerSession::Open(worker, std::move(layout));
    worker_client_ = daemon_.Accept();
    scheduler_client_->EngineReady(true);
    EXPECT_TRUE(scheduler_->WaitReady(2000));
    while (!worker_->stats().attached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  // A request of 64 tokens computed and finished: its store is under way.
  void FinishRequest() {
    scheduler_->NewRequest("a", 64);
    scheduler_->MatchedTokens("a", 0, 64);
    scheduler_->BlocksAllocated("a", std::vector<uint32_t>{1, 2, 3, 4}, 0);
    for (uint32_t i = 0; i < 4; ++i) {
      FillContent(HashFromNumber(i), 0,
                  std::span(tensor_).subspan((i + 1) * kBlockBytes, kBlockBytes));
    }
    EXPECT_TRUE(scheduler_->FinishWithStore("a", std::vector<uint32_t>{1, 2, 3, 4}, 64));
    Step();
  }
  WorkerSession::Report Step() {
    scheduler_->BeginStep(0);
    EXPECT_TRUE(scheduler_->EndStep().empty()) << "nothing goes through the engine's metadata";
    worker_->TakeBoardPlans();
    WorkerSession::Report report;
    worker_->Poll(&report);
    return report;
  }
  bool ReleasedWithin(int ms) {
    for (int i = 0; i < ms; ++i) {
      const WorkerSession::Report report = Step();
      if (!report.stores.empty()) return report.stores == std::vector<std::string>{"a"};
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return false;
  }

  ScriptedDaemon daemon_;
  Chain chain_;
  std::vector<std::byte> tensor_;
  std::unique_ptr<SchedulerSession> scheduler_;
  std::unique_ptr<WorkerSession> worker_;
  std::unique_ptr<ScriptedClient> scheduler_client_, worker_client_;
};

TEST_F(ReducedModeTest, BlocksAreHeldUntilTheirStoreEnded) {
  FinishRequest();
  EXPECT_FALSE(ReleasedWithin(50)) << "the daemon's half is still missing";
  const shm::Message put = scheduler_client_->Next(MessageType::kPut);
  EXPECT_EQ(put.count, 4u);
  UniqueFd arena = *MakeSealedMemfd("arena", 2 << 20);
  SharedMapping mapping = *SharedMapping::Map(arena.get(), 2 << 20);
  worker_client_->SendSegment(3, arena.get(), 2 << 20);
  std::vector<shm::OpBlock> blocks;
  for (uint32_t i = 0; i < 4; ++i) blocks.push_back({3, i, uint64_t{i} * kBlockBytes});
  shm::Message op = shm::MakeMessage(shm::MessageType::kOp);
  op.op = put.op;
  op.count = 4;
  worker_client_->Reply(op, std::as_bytes(std::span(blocks)));
  EXPECT_TRUE(ReleasedWithin(2000));
  for (uint32_t i = 0; i < 4; ++i) {
    EXPECT_TRUE(
        ContentMatches(HashFromNumber(i), 0, mapping.span().subspan(i * kBlockBytes, kBlockBytes)));
  }
}

TEST_F(ReducedModeTest, SilentDaemonHoldsBlocksOnlyUntilTheTimeout) {
  FinishRequest();
  EXPECT_TRUE(ReleasedWithin(3000));
}

TEST_F(ReducedModeTest, LostDaemonReleasesBlocks) {
  FinishRequest();
  worker_client_->Close();
  scheduler_client_->Close();
  EXPECT_TRUE(ReleasedWithin(2000));
}

TEST_F(ReducedModeTest, NothingToStoreHoldsNothing) {
  scheduler_->NewRequest("b", 5);
  EXPECT_FALSE(scheduler_->FinishWithStore("b", std::vector<uint32_t>{1}, 5));
}

}  // namespace
}  // namespace flexkv
