// Engines whose ranks are replicas of each other, against a whole daemon: one copy of each block,
// written by one rank and read by all.
#include "absl/strings/str_cat.h"
#include "flexkv/cache/planner.h"
#include "gmock/gmock.h"
#include "tests/server/daemon_fixture.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint32_t kRanks = 2;
constexpr uint32_t kBlocks = 10;

shm::Hello ReplicaHello(uint64_t engine, uint32_t rank) {
  shm::Hello hello = WorkerHello(engine, rank, kRanks, kTestShardBytes);
  hello.flags = shm::kReplicated;
  return hello;
}

class ReplicasTest : public DaemonTest {
 protected:
  void AttachReplicas(uint64_t id) {
    auto scheduler = RawClient::Attach(Socket(), SchedulerHello(id, kRanks), SchedulerText("m"));
    ASSERT_TRUE(scheduler.ok()) << scheduler.status();
    scheduler_ = std::move(*scheduler);
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      auto worker = RawClient::Attach(Socket(), ReplicaHello(id, rank), "layout");
      ASSERT_TRUE(worker.ok()) << worker.status();
      workers_[rank] = std::move(*worker);
    }
    const std::optional<RawMessage> ready = scheduler_->WaitFor(shm::MessageType::kEngineReady);
    ASSERT_TRUE(ready.has_value() && ready->message.first == 1);
  }

  std::span<std::byte> Place(uint32_t rank, const shm::OpBlock& block) {
    const std::span<std::byte> segment = workers_[rank]->Segment(block.segment);
    if (block.offset_bytes + kTestShardBytes > segment.size()) return {};
    return segment.subspan(block.offset_bytes, kTestShardBytes);
  }

  // Returns the blocks that arrived.
  uint32_t Store(OpKey key, const std::vector<BlockHash>& chain) {
    scheduler_->Push(PutMessage(key, key, 0, kBlocks, 0), HashBytes(chain));
    const uint32_t rank = RankOfStore(key, kRanks);
    RawClient& other = *workers_[1 - rank];
    // A kOp to it as well would keep the store from ending.
    const std::optional<RawMessage> refused = other.WaitFor(shm::MessageType::kRefuseOp);
    EXPECT_TRUE(refused.has_value());
    if (!refused.has_value()) return 0;
    EXPECT_EQ(refused->message.op, key);
    shm::Message answer = shm::MakeMessage(shm::MessageType::kOpDone);  // as an agent answers
    answer.op = key;
    answer.status = static_cast<uint32_t>(shm::WireStatus::kFailed);
    other.Push(answer);
    const std::optional<RawMessage> op = workers_[rank]->WaitFor(shm::MessageType::kOp);
    EXPECT_TRUE(op.has_value());
    if (!op.has_value()) return 0;
    for (const shm::OpBlock& block : OpBlocks(op->payload))
      FillContent(chain[block.engine_index], 0, Place(rank, block));
    workers_[rank]->ReportDone(op->message, key);
    const std::optional<RawMessage> ended = scheduler_->WaitFor(shm::MessageType::kOpEnded);
    EXPECT_TRUE(ended.has_value());
    return ended.has_value() ? ended->message.first : 0;
  }

  // Both ranks' kOp of a load of all blocks.
  std::vector<RawMessage> BeginLoad(RequestKey request, OpKey key,
                                    const std::vector<BlockHash>& chain) {
    scheduler_->Push(LookupMessage(request, 0, chain.size()), HashBytes(chain));
    const std::optional<RawMessage> hit = scheduler_->WaitFor(shm::MessageType::kLookupReply);
    EXPECT_TRUE(hit.has_value() && hit->message.first == kBlocks);
    if (!hit.has_value()) return {};
    scheduler_->Push(LoadMessage(request, key, hit->message.lease, 0, kBlocks));
    std::vector<RawMessage> ops;
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      std::optional<RawMessage> op = workers_[rank]->WaitFor(shm::MessageType::kOp);
      EXPECT_TRUE(op.has_value() && op->message.op == key) << "rank " << rank;
      if (!op.has_value()) return {};
      ops.push_back(*std::move(op));
    }
    return ops;
  }

  // What the scheduler hears of an engine of these ranks.
  std::optional<RawMessage> ReadyOf(uint64_t id, const shm::Hello& first, const std::string& text0,
                                    const shm::Hello& second, const std::string& text1) {
    auto scheduler = RawClient::Attach(Socket(), SchedulerHello(id, kRanks), SchedulerText("m"));
    auto rank0 = RawClient::Attach(Socket(), first, text0);
    auto rank1 = RawClient::Attach(Socket(), second, text1);
    EXPECT_TRUE(scheduler.ok() && rank0.ok() && rank1.ok());
    if (!scheduler.ok() || !rank0.ok() || !rank1.ok()) return std::nullopt;
    return (*scheduler)->WaitFor(shm::MessageType::kEngineReady);
  }

  std::unique_ptr<RawClient> scheduler_;
  std::unique_ptr<RawClient> workers_[kRanks];
};

TEST_F(ReplicasTest, OneCopyServesAllRanks) {
  AttachReplicas(1);
  for (OpKey key = 1; key <= 6; ++key) EXPECT_EQ(Store(key, Chain(key, kBlocks)), kBlocks);
  const admin::v1::StatusReply status = Status();
  EXPECT_EQ(status.memory().ready_blocks(), 6 * kBlocks);
  ASSERT_EQ(status.engines_size(), 1);
  EXPECT_EQ(status.engines(0).block_bytes(), kTestShardBytes);
  for (OpKey key = 1; key <= 6; ++key) {
    const std::vector<BlockHash> chain = Chain(key, kBlocks);
    const std::vector<RawMessage> ops = BeginLoad(100 + key, 100 + key, chain);
    ASSERT_EQ(ops.size(), kRanks);
    EXPECT_EQ(ops[0].payload, ops[1].payload);  // the same places
    for (uint32_t rank = 0; rank < kRanks; ++rank) {
      for (const shm::OpBlock& block : OpBlocks(ops[rank].payload)) {
        EXPECT_TRUE(ContentMatches(chain[block.engine_index], 0, Place(rank, block)));
      }
    }
    workers_[1]->ReportDone(ops[1].message, 100 + key);
    EXPECT_FALSE(scheduler_->WaitFor(shm::MessageType::kOpEnded, 20).has_value());
    workers_[0]->ReportDone(ops[0].message, 100 + key);
    const std::optional<RawMessage> ended = scheduler_->WaitFor(shm::MessageType::kOpEnded);
    ASSERT_TRUE(ended.has_value());
    EXPECT_EQ(ended->message.first, kBlocks);
  }
  EXPECT_EQ(Status().clients_dropped(), 0u);
}

TEST_F(ReplicasTest, ALoadThatFailsOnOneRankFailed) {
  AttachReplicas(1);
  const std::vector<BlockHash> chain = Chain(5, kBlocks);
  ASSERT_EQ(Store(1, chain), kBlocks);
  const std::vector<RawMessage> ops = BeginLoad(2, 2, chain);
  ASSERT_EQ(ops.size(), kRanks);
  const uint32_t failed[] = {4};
  workers_[0]->ReportDone(ops[0].message, 2);
  workers_[1]->ReportDone(ops[1].message, 2, failed);
  const std::optional<RawMessage> ended = scheduler_->WaitFor(shm::MessageType::kOpEnded);
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->message.status, static_cast<uint32_t>(shm::WireStatus::kPartial));
  EXPECT_EQ(ended->message.count, 1u);
}

TEST_F(ReplicasTest, ARankThatDiesUnderALoadHoldsNothingUp) {
  AttachReplicas(1);
  const std::vector<BlockHash> chain = Chain(5, kBlocks);
  ASSERT_EQ(Store(1, chain), kBlocks);
  const std::vector<RawMessage> ops = BeginLoad(2, 2, chain);
  ASSERT_EQ(ops.size(), kRanks);
  workers_[0]->ReportDone(ops[0].message, 2);
  EXPECT_TRUE(workers_[1]->SayGoodbye());
  EXPECT_TRUE(Eventually([&] { return Status().ops_in_flight() == 0; }));
  EXPECT_EQ(Status().leases(), 0u);
}

TEST_F(ReplicasTest, TheyShareWithTheirLikeOnly) {
  AttachReplicas(1);
  const std::vector<BlockHash> chain = Chain(5, kBlocks);
  ASSERT_EQ(Store(1, chain), kBlocks);
  RawEngine alone(Socket(), 2);  // one rank, the same fingerprint and layout
  EXPECT_EQ(alone.Lookup(1, chain).matched, 0u);
  AttachReplicas(3);
  EXPECT_EQ(BeginLoad(7, 7, chain).size(), kRanks);
}

TEST_F(ReplicasTest, ThoseThatDisagreeNeverBecomeReady) {
  const shm::Hello first = ReplicaHello(1, 0);
  shm::Hello other_size = ReplicaHello(1, 1);
  other_size.shard_bytes *= 2;
  const struct {
    const char* what;
    shm::Hello second;
    std::string text;
    bool ready;
  } cases[] = {{"alike", ReplicaHello(1, 1), "layout", true},
               {"no replica", WorkerHello(1, 1, kRanks, kTestShardBytes), "layout", false},
               {"another size", other_size, "layout", false},
               {"another layout", ReplicaHello(1, 1), "other", false}};
  for (const auto& test : cases) {
    for (const bool swapped : {false, true}) {
      shm::Hello one = first, two = test.second;
      if (swapped) std::swap(one.rank, two.rank);
      const std::optional<RawMessage> answer = ReadyOf(1, one, "layout", two, test.text);
      ASSERT_TRUE(answer.has_value()) << test.what;
      EXPECT_EQ(answer->message.first, test.ready ? 1u : 0u) << test.what;
      const auto status = test.ready ? shm::WireStatus::kOk : shm::WireStatus::kInvalid;
      EXPECT_EQ(answer->message.status, static_cast<uint32_t>(status)) << test.what;
      EXPECT_TRUE(Eventually([&] { return Status().clients() == 0; }));
    }
  }
}

}  // namespace
}  // namespace flexkv
