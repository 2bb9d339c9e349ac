#include "flexkv/cache/cache_manager.h"

#include "tests/cache/manager_fixture.h"

namespace flexkv {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::SizeIs;

// --- the plain path ------------------------------------------------------------------------------

TEST_F(CacheManagerTest, WhatIsPutIsFoundOnceEveryRankCopiedIt) {
  Start({});
  const EngineHandle engine = Attach("a", {kBlock, kBlock / 2});
  const auto chain = Chain(1, 5);
  EXPECT_EQ(Put(engine, 1, 10, chain).accepted, 5u);
  ASSERT_NE(executor_.Find(10, 0), nullptr);
  ASSERT_NE(executor_.Find(10, 1), nullptr);
  const TransferOp put0 = *executor_.Find(10, 0);
  const TransferOp put1 = *executor_.Find(10, 1);
  EXPECT_EQ(put0.route, Route::kDeviceToCpu);
  EXPECT_NE(put0.blocks[0].segment, put1.blocks[0].segment);
  EXPECT_EQ(put0.blocks[4].engine_index, 4u);
  EXPECT_EQ(put0.blocks[3].offset_bytes, put1.blocks[3].offset_bytes * 2);
  executor_.End(10, {}, 0);
  manager_->Tick(now_);
  EXPECT_EQ(Lookup(engine, 2, chain).matched_blocks, 0u);
  EXPECT_THAT(Events(), IsEmpty());
  executor_.End(10, {}, 1);
  manager_->Tick(now_);
  const auto events = Events();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].kind, ManagerEvent::Kind::kOpDone);
  EXPECT_EQ(events[0].ok_blocks, 5u);
  const LookupAnswer found = Lookup(engine, 2, chain);
  EXPECT_EQ(found.matched_blocks, 5u);
  ASSERT_TRUE(manager_->Load(engine, 2, 11, found.lease, 1, 3, now_).ok());
  const TransferOp* load = executor_.Find(11, 1);
  ASSERT_NE(load, nullptr);
  ASSERT_THAT(load->blocks, SizeIs(3));
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(load->blocks[i].engine_index, i);
    EXPECT_EQ(load->blocks[i].segment, put1.blocks[1 + i].segment);
    EXPECT_EQ(load->blocks[i].offset_bytes, put1.blocks[1 + i].offset_bytes);
  }
  Check();
  executor_.End(11);
  manager_->Tick(now_);
  EXPECT_EQ(Events().at(0).ok_blocks, 3u);
  EXPECT_EQ(manager_->status().leases, 0u);  // the lease lived on as the op's
  EXPECT_EQ(manager_->status().pinned_blocks, 0u);
}

// --- eviction policies ---------------------------------------------------------------------------

TEST_F(CacheManagerTest, APolicyThatDoesNotExistIsToldAtTheFirstEngine) {
  CacheManagerOptions options;
  options.eviction_policy = "mru";
  Start(options);
  const absl::Status status = manager_->AttachEngine(Spec("a"), now_).status();
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(status.message()).find("mru"), std::string::npos) << status;
  EXPECT_EQ(manager_->status().engines, 0u);
}

// Engines ask again while a request waits, and put what they computed: it is one use all the same.
TEST_F(CacheManagerTest, ARequestCountsAsOneUse) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 2 * kBlock;
  options.eviction_policy = "lfu";
  Start(options);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 1);
  PutDone(engine, 2, 1);
  EXPECT_EQ(Hits(engine, 2, 1), 1u);  // 2 has two uses more than 1
  EXPECT_EQ(Hits(engine, 2, 1), 1u);
  for (int i = 0; i < 10; ++i) EXPECT_EQ(Lookup(engine, 1, Chain(1, 1)).matched_blocks, 1u);
  EXPECT_EQ(Put(engine, 1, 11, Chain(1, 1)).held, 1u);
  manager_->EndRequest(engine, 1);
  EXPECT_EQ(PutDone(engine, 3, 1).accepted, 1u);
  EXPECT_EQ(Hits(engine, 1, 1), 0u);
  EXPECT_EQ(Hits(engine, 2, 1), 1u);
}

// The same stream through every policy: blocks come and go, counts stay right.
TEST_F(CacheManagerTest, EveryPolicyKeepsTheBooks) {
  for (std::string_view name : PolicyNames()) {
    SCOPED_TRACE(std::string(name));
    CacheManagerOptions options;
    options.cpu_cache_bytes = 32 * kBlock;
    options.eviction_policy = std::string(name);
    Start(options);
    const EngineHandle engine = Attach("a");
    uint32_t hits = 0;
    for (uint64_t i = 0; i < 300; ++i) {
      now_ += kNsPerSecond;
      const uint64_t document = i % 2 == 0 ? i / 2 % 3 : 1000 + i;
      hits += Hits(engine, document, 1 + i % 7);
      PutDone(engine, document, 1 + i % 7);
      if (i % 50 == 0) Check();
    }
    EXPECT_GT(hits, 0u);
    EXPECT_GT(manager_->status().counters.evicted_blocks, 100u);
    Check();
    ASSERT_TRUE(manager_->Reset(engine, 1, now_).ok());
    Check();
    manager_.reset();
    EXPECT_EQ(segments_.live_bytes(), 0u);
  }
}

TEST_F(CacheManagerTest, ChainsGrowBySuffixes) {
  StartBlocks(64);
  const EngineHandle engine = Attach("a");
  const auto chain = Chain(1, 10);
  const std::span<const BlockHash> all(chain);
  EXPECT_EQ(PutDone(engine, 1, 10).accepted, 10u);
  EXPECT_EQ(manager_->Lookup(engine, 1, 0, all.first(4), now_)->matched_blocks, 4u);
  EXPECT_EQ(manager_->Lookup(engine, 1, 4, all.subspan(4, 3), now_)->matched_blocks, 7u);
  EXPECT_EQ(manager_->Lookup(engine, 1, 7, {}, now_)->matched_blocks, 7u);
  EXPECT_EQ(manager_->Lookup(engine, 1, 9, all.subspan(9), now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(manager_->Lookup(engine, 1, 2, all.subspan(2), now_)->matched_blocks, 10u);
  EXPECT_EQ(manager_->Lookup(engine, 2, 1, all.subspan(1), now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  const auto other = Chain(2, 10);
  EXPECT_EQ(manager_->Lookup(engine, 1, 5, std::span(other).subspan(5), now_)->matched_blocks, 5u);
  EXPECT_EQ(manager_->status().leases, 1u);
}

TEST_F(CacheManagerTest, OnlyNewBlocksAreCopied) {
  StartBlocks(64);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 3);
  const auto chain = Chain(1, 8);
  const PutAnswer answer = Put(engine, 1, 10, chain, 1);
  EXPECT_EQ(answer.held, 2u);
  EXPECT_EQ(answer.accepted, 5u);
  ASSERT_NE(executor_.Find(10), nullptr);
  EXPECT_EQ(executor_.Find(10)->blocks[0].engine_index, 2u);
  // Blocks on their way count as held, and the op is refused at its agents since nothing is left of
  // it.
  const PutAnswer again = Put(engine, 2, 11, chain);
  EXPECT_EQ(again.held, 8u);
  const auto events = Events();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].kind, ManagerEvent::Kind::kRefuseOp);
  EXPECT_EQ(events[0].key, 11u);
  // A child of a pending block may follow at once.
  EXPECT_EQ(Put(engine, 3, 12, Chain(1, 9)).accepted, 1u);
  Check();
  executor_.End(12);
  manager_->Tick(now_);
  EXPECT_EQ(Hits(engine, 1, 9), 3u);
  executor_.End(10);
  manager_->Tick(now_);
  EXPECT_EQ(Hits(engine, 1, 9), 9u);
}

TEST_F(CacheManagerTest, APutWithoutItsParentIsRefused) {
  StartBlocks(64);
  const EngineHandle engine = Attach("a");
  const PutAnswer answer = Put(engine, 1, 10, Chain(1, 4), 2);
  EXPECT_EQ(answer.refused, 2u);
  EXPECT_EQ(Events().at(0).kind, ManagerEvent::Kind::kRefuseOp);
  EXPECT_EQ(manager_->status().counters.put_blocks_refused, 2u);
}

TEST_F(CacheManagerTest, FailedBlocksVanishWithWhatHangsBelow) {
  StartBlocks(64);
  const EngineHandle engine = Attach("a", {kBlock, kBlock});
  Put(engine, 1, 10, Chain(1, 6));
  Put(engine, 2, 11, Chain(1, 8));
  executor_.End(10, {3}, 0);
  executor_.End(10, {}, 1);
  manager_->Tick(now_);
  const auto events = Events();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].status, OpStatus::kPartial);
  EXPECT_EQ(events[0].ok_blocks, 3u);
  EXPECT_EQ(events[0].failed_blocks, 3u);
  EXPECT_EQ(Hits(engine, 1, 8), 3u);
  Check();
  executor_.End(11);
  manager_->Tick(now_);
  EXPECT_EQ(Events().at(0).status, OpStatus::kFailed);
  EXPECT_EQ(manager_->status().used_slots, 3u);
}

// --- room ----------------------------------------------------------------------------------------

TEST_F(CacheManagerTest, FullMeansTheOldestGivesWay) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 4);
  PutDone(engine, 2, 4);
  EXPECT_EQ(Hits(engine, 1, 4), 4u);  // now 2 is the oldest
  EXPECT_EQ(PutDone(engine, 3, 3).accepted, 3u);
  EXPECT_EQ(Hits(engine, 1, 4), 4u);
  EXPECT_EQ(Hits(engine, 2, 4), 1u);
  EXPECT_EQ(manager_->status().counters.evicted_blocks, 3u);
  EXPECT_EQ(manager_->status().slots, 8u);
}

TEST_F(CacheManagerTest, LeasedBlocksNeverGiveWay) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 8);
  const LookupAnswer lease = Lookup(engine, 7, Chain(1, 8));
  EXPECT_EQ(PutDone(engine, 2, 2).refused, 2u);
  manager_->ReleaseLease(engine, 7, lease.lease + 1);  // not its lease
  EXPECT_EQ(PutDone(engine, 2, 2).refused, 2u);
  manager_->ReleaseLease(engine, 7, lease.lease);
  EXPECT_EQ(PutDone(engine, 2, 2).accepted, 2u);
}

TEST_F(CacheManagerTest, APutThatIsTooLongKeepsItsFirstBlocks) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 3);
  const PutAnswer answer = PutDone(engine, 1, 20);
  EXPECT_EQ(answer.held, 3u);
  EXPECT_EQ(answer.accepted, 5u);
  EXPECT_EQ(answer.refused, 12u);
  EXPECT_EQ(Hits(engine, 1, 20), 8u);
}

TEST_F(CacheManagerTest, SlotsUnderACopyAreNotHandedOut) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  Put(engine, 1, 10, Chain(1, 8));
  ASSERT_TRUE(manager_->Reset(engine, 1, now_).ok());
  EXPECT_EQ(PutDone(engine, 2, 1).refused, 1u);
  executor_.End(10);
  manager_->Tick(now_);
  EXPECT_EQ(PutDone(engine, 2, 8).accepted, 8u);
  EXPECT_EQ(Hits(engine, 1, 8), 0u);
}

TEST_F(CacheManagerTest, EvictsAheadNearFull) {
  evict_ratio_ = 0.1;
  StartBlocks(1000);
  const EngineHandle engine = Attach("a");
  const uint64_t slots = PutDone(engine, 1, 1000).accepted;
  manager_->Tick(now_);
  EXPECT_LE(manager_->status().used_slots, slots - slots / 10 + 1);
  EXPECT_GE(manager_->status().used_slots, slots / 2);
}

TEST_F(CacheManagerTest, NoMemoryIsNoRoom) {
  StartBlocks(16);
  segments_.SetBudget(0);
  const EngineHandle engine = Attach("a");
  EXPECT_EQ(PutDone(engine, 1, 4).refused, 4u);
  segments_.SetBudget(UINT64_MAX);
  now_ += 2 * kNsPerSecond;
  EXPECT_EQ(PutDone(engine, 1, 4).accepted, 4u);
}

TEST_F(CacheManagerTest, ASecondRankWithoutMemoryLeavesNothingBehind) {
  Start({});
  const EngineHandle engine = Attach("a", {kBlock, kBlock});
  segments_.FailCreate(2);
  EXPECT_EQ(PutDone(engine, 1, 4).refused, 4u);
  EXPECT_EQ(segments_.live_bytes(), 0u);
}

TEST_F(CacheManagerTest, BudgetInBlocks) {
  CacheManagerOptions options;
  options.num_cpu_blocks = 20;
  options.cpu_cache_bytes = 1;
  Start(options);
  const EngineHandle engine = Attach("a");
  EXPECT_GE(PutDone(engine, 1, 30).accepted, 20u);
  EXPECT_LE(manager_->status().slots, 32u);
}

// --- memory between size classes -----------------------------------------------------------------

TEST_F(CacheManagerTest, TwoLayoutsTakeTurnsAtFillingTheArena) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 64 << 20;
  Start(options);
  const EngineHandle small = Attach("small", {kBlock});
  const EngineHandle large = Attach("large", {16 * kBlock, 16 * kBlock});
  for (int turn = 0; turn < 4; ++turn) {
    const bool small_first = turn % 2 == 0;
    const EngineHandle engine = small_first ? small : large;
    for (uint64_t i = 0; i < 300; ++i) {
      PutDone(engine, turn * 1000 + i, 10);
      now_ += kNsPerMs;
    }
    const auto status = manager_->status();
    EXPECT_LE(status.segment_bytes_in_use, status.budget_bytes);
    Check();
    EXPECT_GT(Hits(engine, turn * 1000 + 299, 10), 0u) << turn;
  }
  EXPECT_LE(segments_.live_bytes(), 64u << 20);
}

TEST_F(CacheManagerTest, ALateLayoutGetsItsShareOfAFullArena) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 64 << 20;
  Start(options);
  const EngineHandle first = Attach("first", {kBlock});
  for (uint64_t i = 0; i < 120; ++i) PutDone(first, i, 10);
  EXPECT_EQ(manager_->status().segment_bytes_in_use, 64u << 20);
  const LookupAnswer leased = Lookup(first, 1, Chain(119, 10));
  const EngineHandle second = Attach("second", {2 * kBlock});
  uint32_t accepted = 0;
  for (uint64_t i = 0; i < 200; ++i) {
    accepted += PutDone(second, 1000 + i, 4).accepted;
    now_ += 10 * kNsPerMs;
    manager_->Tick(now_);
  }
  EXPECT_GE(accepted, 700u);
  Check();
  uint32_t hits = 0;
  for (uint64_t i = 0; i < 200; ++i) hits += Hits(second, 1000 + i, 4);
  EXPECT_GE(hits, (32u << 20) / (2 * kBlock) - 64);  // about half of the arena
  hits = 0;
  for (uint64_t i = 0; i < 120; ++i) hits += Hits(first, i, 10);
  EXPECT_GE(hits, (24u << 20) / kBlock);
  EXPECT_EQ(leased.matched_blocks, 10u);
  EXPECT_EQ(Hits(first, 119, 10), 10u);
}

TEST_F(CacheManagerTest, IdleMemoryGoesBack) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 64 << 20;
  Start(options);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 1000);
  ASSERT_TRUE(manager_->Reset(engine, 1, now_).ok());
  for (int i = 0; i < 300; ++i) manager_->Tick(now_ += 100 * kNsPerMs);
  EXPECT_EQ(manager_->status().segment_bytes_in_use, 8u << 20);  // one group stays for the next put
  manager_->DetachEngine(engine, now_);
  for (int i = 0; i < 300; ++i) manager_->Tick(now_ += 100 * kNsPerMs);
  EXPECT_EQ(segments_.live_bytes(), 0u);
  EXPECT_EQ(manager_->status().size_classes, 0u);
  EXPECT_THAT(manager_->status().namespaces, IsEmpty());
}

TEST_F(CacheManagerTest, SegmentsAreToldWhenTheyChange) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 64 << 20;
  Start(options);
  const EngineHandle engine = Attach("a", {kBlock, kBlock});
  uint64_t seen = 0;
  std::vector<SegmentId> segments;
  EXPECT_TRUE(manager_->SegmentsOf(engine, 1, &seen, &segments));
  EXPECT_THAT(segments, IsEmpty());
  EXPECT_FALSE(manager_->SegmentsOf(engine, 1, &seen, &segments));
  Put(engine, 1, 10, Chain(1, 4));
  EXPECT_TRUE(manager_->SegmentsOf(engine, 1, &seen, &segments));
  EXPECT_THAT(segments, ElementsAre(executor_.Find(10, 1)->blocks[0].segment));
  EXPECT_FALSE(manager_->SegmentsOf(engine, 2, &seen, &segments));
  EXPECT_FALSE(manager_->SegmentsOf(engine + 1, 0, &seen, &segments));
}

// --- leases --------------------------------------------------------------------------------------

TEST_F(CacheManagerTest, LeasesExpireUnlessALoadRuns) {
  StartBlocks(16);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 4);
  const LookupAnswer idle = Lookup(engine, 1, Chain(1, 4));
  const LookupAnswer used = Lookup(engine, 2, Chain(1, 4));
  ASSERT_TRUE(manager_->Load(engine, 2, 10, used.lease, 0, 4, now_).ok());
  now_ += 31 * kNsPerSecond;
  manager_->Tick(now_);
  EXPECT_EQ(manager_->status().leases, 1u);
  EXPECT_EQ(manager_->status().counters.leases_expired, 1u);
  EXPECT_EQ(manager_->Load(engine, 1, 11, idle.lease, 0, 4, now_).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(Events().at(0).key, 11u);
  executor_.End(10);
  manager_->Tick(now_);
  EXPECT_EQ(manager_->status().leases, 0u);
}

TEST_F(CacheManagerTest, ANewLookupTakesNothingFromUnderARunningLoad) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 8);
  const LookupAnswer first = Lookup(engine, 1, Chain(1, 8));
  ASSERT_TRUE(manager_->Load(engine, 1, 10, first.lease, 0, 8, now_).ok());
  const LookupAnswer second = Lookup(engine, 1, Chain(1, 8));
  EXPECT_NE(second.lease, first.lease);
  manager_->EndRequest(engine, 1);
  EXPECT_EQ(manager_->status().leases, 0u);
  EXPECT_EQ(PutDone(engine, 2, 1).refused, 1u);
  executor_.End(10);
  manager_->Tick(now_);
  EXPECT_EQ(manager_->status().pinned_blocks, 0u);
  EXPECT_EQ(PutDone(engine, 2, 1).accepted, 1u);
}

TEST_F(CacheManagerTest, ALoadTrimsItsLease) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 8);
  const LookupAnswer lease = Lookup(engine, 1, Chain(1, 8));
  ASSERT_TRUE(manager_->Load(engine, 1, 10, lease.lease, 0, 3, now_).ok());
  EXPECT_EQ(manager_->Load(engine, 1, 11, lease.lease, 0, 4, now_).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(PutDone(engine, 2, 8).accepted, 5u);
  Check();
}

// --- epochs, engines -----------------------------------------------------------------------------

TEST_F(CacheManagerTest, ResetHidesEverythingOfBefore) {
  StartBlocks(32);
  const EngineHandle engine = Attach("a");
  const EngineHandle other = Attach("b");
  PutDone(engine, 1, 4);
  PutDone(other, 1, 4);
  Put(engine, 1, 10, Chain(2, 4));
  const LookupAnswer lease = Lookup(engine, 2, Chain(1, 4));
  ASSERT_TRUE(manager_->Load(engine, 2, 11, lease.lease, 0, 4, now_).ok());
  ASSERT_TRUE(manager_->Reset(engine, 1, now_).ok());
  Check();
  EXPECT_EQ(Hits(engine, 1, 4), 0u);
  EXPECT_EQ(Hits(other, 1, 4), 4u);
  executor_.End(10);
  executor_.End(11);
  manager_->Tick(now_);
  EXPECT_EQ(Hits(engine, 2, 4), 0u);
  EXPECT_EQ(manager_->status().used_slots, 4u);
  EXPECT_EQ(manager_->ResetByLabel("nobody", 1, now_), 0u);
  EXPECT_EQ(manager_->ResetByLabel("", 1, now_), 2u);
  EXPECT_EQ(manager_->status().used_slots, 0u);
}

TEST_F(CacheManagerTest, BlocksOutliveTheirEngine) {
  StartBlocks(32);
  const EngineHandle engine = Attach("a");
  PutDone(engine, 1, 4);
  Put(engine, 1, 10, Chain(2, 4));
  const LookupAnswer lease = Lookup(engine, 2, Chain(1, 4));
  ASSERT_TRUE(manager_->Load(engine, 2, 11, lease.lease, 0, 4, now_).ok());
  Put(engine, 3, 12, Chain(9, 4), 2);  // refused: leaves an event
  manager_->DetachEngine(engine, now_);
  EXPECT_THAT(Events(), IsEmpty());
  Check();
  const EngineHandle next = Attach("a");
  EXPECT_EQ(Hits(next, 1, 4), 4u);
  EXPECT_EQ(PutDone(next, 2, 4).accepted, 4u);  // not held back by the dead engine's put
  EXPECT_EQ(manager_->status().used_slots, 12u);
  executor_.End(10);
  executor_.End(11);
  manager_->Tick(now_);
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_EQ(manager_->status().used_slots, 8u);
  EXPECT_EQ(Hits(Attach("other"), 1, 4), 0u);
}

// --- bad input -----------------------------------------------------------------------------------

TEST_F(CacheManagerTest, BadSpecsAreRefused) {
  StartBlocks(8);
  const auto code = [&](const EngineSpec& spec) {
    return manager_->AttachEngine(spec, now_).status().code();
  };
  EXPECT_EQ(code(Spec("a", {})), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Spec("a", {0})), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Spec("a", {9 * kBlock})), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Spec("a", {UINT64_MAX, UINT64_MAX})), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(code(Spec("a", std::vector<uint64_t>(257, 64))), absl::StatusCode::kInvalidArgument);
  EngineSpec spec = Spec("a");
  spec.tokens_per_block = 0;
  EXPECT_EQ(code(spec), absl::StatusCode::kInvalidArgument);
}

TEST_F(CacheManagerTest, BadCallsGetAStatus) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = 32 * kBlock;
  options.max_requests_per_engine = 2;
  options.max_chain_blocks = 100;
  options.max_ops_per_engine = 1;
  Start(options);
  const EngineHandle engine = Attach("a");
  const auto chain = Chain(1, 4);
  EXPECT_EQ(manager_->Lookup(99, 1, 0, chain, now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(manager_->Lookup(engine, 1, UINT32_MAX, chain, now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(manager_->Lookup(engine, 1, 0, Chain(1, 101), now_).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(manager_->status().requests, 0u);
  Lookup(engine, 1, chain);
  Lookup(engine, 2, chain);
  EXPECT_EQ(manager_->Lookup(engine, 3, 0, chain, now_).status().code(),
            absl::StatusCode::kResourceExhausted);
  const auto put = [&](OpKey key, uint32_t first, uint32_t count) {
    return manager_->Put(engine, 1, key, first, count, 4, {}, now_).status().code();
  };
  EXPECT_EQ(put(0, 0, 4), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_EQ(put(5, 0, 5), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(5, UINT32_MAX, UINT32_MAX), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(put(5, 0, 0), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(Events(), SizeIs(3));
  EXPECT_EQ(put(5, 0, 2), absl::StatusCode::kOk);
  EXPECT_EQ(put(5, 2, 2),
            absl::StatusCode::kInvalidArgument);  // key in use: no event may hit the running op
  EXPECT_THAT(Events(), IsEmpty());
  EXPECT_EQ(manager_->Put(engine, 1, 6, 2, 2, 4, {}, now_)->refused, 2u);  // too many in flight
  EXPECT_EQ(manager_->Load(engine, 1, 7, 0, 0, 1, now_).code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(manager_->Load(engine, 77, 7, 1, 0, 1, now_).code(), absl::StatusCode::kNotFound);
  EXPECT_THAT(Events(), SizeIs(3));
  manager_->ReleaseLease(99, 1, 1);
  manager_->EndRequest(engine, 99);
  manager_->DetachEngine(99, now_);
  EXPECT_EQ(manager_->Reset(99, 1, now_).code(), absl::StatusCode::kInvalidArgument);
  executor_.End(5);
  executor_.done.push_back(executor_.done[0]);  // a replayed completion
  executor_.done.push_back(OpResult{.id = 12345, .status = OpStatus::kPartial, .failed = {9}});
  manager_->Tick(now_);
  EXPECT_THAT(Events(), SizeIs(1));
}

TEST_F(CacheManagerTest, ChainsAreBoundedPerEngine) {
  CacheManagerOptions options;
  options.max_chain_blocks_per_engine = 100;
  Start(options);
  const EngineHandle engine = Attach("a");
  Lookup(engine, 1, Chain(1, 60));
  EXPECT_EQ(manager_->Lookup(engine, 2, 0, Chain(2, 60), now_).status().code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(Lookup(engine, 2, Chain(2, 40)).matched_blocks, 0u);
  manager_->EndRequest(engine, 1);
  Lookup(engine, 3, Chain(3, 60));
  EXPECT_EQ(manager_->status().requests, 2u);
}

TEST_F(CacheManagerTest, FaultPointsRefuse) {
  StartBlocks(8);
  const EngineHandle engine = Attach("a");
  ASSERT_TRUE(ArmFaults("manager.refuse_put").ok());
  EXPECT_EQ(PutDone(engine, 1, 4).refused, 4u);
  ASSERT_TRUE(ArmFaults("manager.refuse_load").ok());
  PutDone(engine, 1, 4);
  const LookupAnswer lease = Lookup(engine, 1, Chain(1, 4));
  EXPECT_FALSE(manager_->Load(engine, 1, 10, lease.lease, 0, 4, now_).ok());
  EXPECT_EQ(manager_->status().counters.loads_refused, 1u);
}

TEST_F(CacheManagerTest, CountsPerNamespace) {
  StartBlocks(32);
  const EngineHandle a = Attach("a");
  const EngineHandle b = Attach("b");
  PutDone(a, 1, 4);
  Hits(a, 1, 6);
  manager_->RecordGet(b, {.prompt_tokens = 100, .taken_tokens = 40});
  const ManagerStatus status = manager_->status();
  ASSERT_THAT(status.namespaces, SizeIs(2));
  EXPECT_EQ(status.namespaces[0].counters.matched_blocks, 4u);
  EXPECT_EQ(status.namespaces[0].counters.lookup_blocks, 6u);
  EXPECT_EQ(status.namespaces[0].counters.store_bytes, 4 * kBlock);
  EXPECT_EQ(status.namespaces[1].counters.prompt_tokens, 100u);
  EXPECT_EQ(status.counters.taken_tokens, 40u);
  EXPECT_EQ(status.engines, 2u);
}

}  // namespace
}  // namespace flexkv
