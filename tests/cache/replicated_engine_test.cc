// Engines whose ranks are replicas: one shard per block, stored by one rank and loaded by all.
#include "tests/cache/manager_fixture.h"

namespace flexkv {
namespace {

using ::testing::IsEmpty;
using ::testing::SizeIs;

class ReplicatedEngineTest : public CacheManagerTest {
 protected:
  static constexpr uint32_t kRanks = 4;
  EngineHandle AttachReplicas(const std::string& key, uint32_t ranks = kRanks) {
    EngineSpec spec = Spec(key, std::vector<uint64_t>(ranks, kBlock));
    spec.replicated = true;
    auto handle = manager_->AttachEngine(spec, now_);
    EXPECT_TRUE(handle.ok()) << handle.status();
    return handle.value_or(0);
  }
};

TEST_F(ReplicatedEngineTest, ABlockIsStoredOnce) {
  StartBlocks(16);
  const EngineHandle sharded = Attach("a", std::vector<uint64_t>(kRanks, kBlock));
  EXPECT_EQ(PutDone(sharded, 1, 16).accepted, 4u);
  manager_.reset();
  StartBlocks(16);
  const EngineHandle replicas = AttachReplicas("b");
  EXPECT_EQ(PutDone(replicas, 1, 16).accepted, 16u);
  EXPECT_EQ(Hits(replicas, 1, 16), 16u);
  const ManagerStatus status = manager_->status();
  EXPECT_EQ(status.segment_bytes_in_use, 16 * kBlock);
  EXPECT_EQ(status.counters.store_bytes, 16 * kBlock);
}

TEST_F(ReplicatedEngineTest, OneRankStoresAndTheOthersAreToldAtOnce) {
  StartBlocks(64);
  const EngineHandle engine = AttachReplicas("a");
  std::set<uint32_t> ranks;
  for (OpKey key = 1; key <= 16; ++key) {
    EXPECT_EQ(Put(engine, key, key, Chain(key, 4)).accepted, 4u);
    ASSERT_THAT(executor_.held, SizeIs(1));
    const uint32_t rank = executor_.held[0].rank;
    ranks.insert(rank);
    const std::vector<ManagerEvent> events = Events();
    ASSERT_THAT(events, SizeIs(1));
    EXPECT_EQ(events[0].kind, ManagerEvent::Kind::kRefuseOp);
    EXPECT_EQ(events[0].key, key);
    EXPECT_EQ(events[0].spared_rank, rank);
    executor_.End(key);
    manager_->Tick(now_);
    const std::vector<ManagerEvent> ended = Events();
    ASSERT_THAT(ended, SizeIs(1));
    EXPECT_EQ(ended[0].ok_blocks, 4u);
  }
  EXPECT_THAT(ranks, SizeIs(kRanks));
  // Nothing new: nobody copies, and nobody is spared.
  EXPECT_EQ(Put(engine, 99, 99, Chain(1, 4)).held, 4u);
  const std::vector<ManagerEvent> events = Events();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].spared_rank, ManagerEvent::kNoRank);
}

TEST_F(ReplicatedEngineTest, EveryRankLoadsFromTheSamePlaces) {
  StartBlocks(16);
  const EngineHandle engine = AttachReplicas("a");
  PutDone(engine, 1, 6);
  const LookupAnswer hit = Lookup(engine, 1, Chain(1, 6));
  ASSERT_TRUE(manager_->Load(engine, 1, 50, hit.lease, 1, 5, now_).ok());
  ASSERT_THAT(executor_.held, SizeIs(kRanks));
  const TransferOp* first = executor_.Find(50, 0);
  ASSERT_NE(first, nullptr);
  for (uint32_t rank = 1; rank < kRanks; ++rank) {
    const TransferOp* other = executor_.Find(50, rank);
    ASSERT_NE(other, nullptr);
    ASSERT_EQ(other->blocks.size(), 5u);
    for (size_t i = 0; i < 5; ++i) {
      EXPECT_EQ(other->blocks[i].segment, first->blocks[i].segment);
      EXPECT_EQ(other->blocks[i].offset_bytes, first->blocks[i].offset_bytes);
      EXPECT_EQ(other->blocks[i].engine_index, i);
    }
  }
  for (int rank : {2, 0, 3}) {
    executor_.End(50, {}, rank);
    manager_->Tick(now_);
    EXPECT_THAT(Events(), IsEmpty()) << "rank " << rank;
  }
  executor_.End(50, {3}, 1);  // failed on any rank = failed
  manager_->Tick(now_);
  const std::vector<ManagerEvent> ended = Events();
  ASSERT_THAT(ended, SizeIs(1));
  EXPECT_EQ(ended[0].status, OpStatus::kPartial);
  EXPECT_EQ(ended[0].ok_blocks, 4u);
  EXPECT_EQ(ended[0].failed_blocks, 1u);
}

TEST_F(ReplicatedEngineTest, AStoreThatFailsOnItsRankIsAMiss) {
  StartBlocks(16);
  const EngineHandle engine = AttachReplicas("a");
  Put(engine, 1, 7, Chain(1, 6));
  executor_.End(7, {2});
  manager_->Tick(now_);
  EXPECT_EQ(Hits(engine, 1, 6), 2u);
}

TEST_F(ReplicatedEngineTest, EveryRankIsToldOfEverySegment) {
  StartBlocks(16);
  const EngineHandle engine = AttachReplicas("a");
  PutDone(engine, 1, 16);
  std::vector<SegmentId> first;
  for (uint32_t rank = 0; rank < kRanks; ++rank) {
    uint64_t seen = 0;
    std::vector<SegmentId> segments;
    ASSERT_TRUE(manager_->SegmentsOf(engine, rank, &seen, &segments));
    if (rank == 0) first = segments;
    EXPECT_EQ(segments, first);
    EXPECT_EQ(segments.size(), segments_.live().size());
  }
  uint64_t seen = 0;
  std::vector<SegmentId> segments;
  EXPECT_FALSE(manager_->SegmentsOf(engine, kRanks, &seen, &segments));
}

TEST_F(ReplicatedEngineTest, SharesOnlyWithItsLike) {
  StartBlocks(64);
  const EngineHandle engine = AttachReplicas("a");
  PutDone(engine, 1, 8);
  EXPECT_EQ(Hits(AttachReplicas("a"), 1, 8), 8u);
  EXPECT_EQ(Hits(AttachReplicas("b"), 1, 8), 0u);
  EXPECT_EQ(Hits(AttachReplicas("a", 2), 1, 8), 0u);
  EXPECT_EQ(Hits(Attach("a"), 1, 8), 0u);  // of the same size class
  EXPECT_EQ(Hits(Attach("a", std::vector<uint64_t>(kRanks, kBlock)), 1, 8), 0u);
  EXPECT_EQ(manager_->status().size_classes, 2u);
}

TEST_F(ReplicatedEngineTest, ReplicasHaveOneSize) {
  StartBlocks(64);
  EngineSpec spec = Spec("a", {kBlock, kBlock, kBlock / 2});
  spec.replicated = true;
  EXPECT_EQ(manager_->AttachEngine(spec, now_).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace flexkv
