// The manager's SSD tier, case by case: an imaginary arena, device and SSDs that do what the test
// says. The simulation beside it tries everything else.
#include <gtest/gtest.h>

#include <memory>
#include <vector>

#include "flexkv/cache/cache_manager.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/sim_ssd.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"

namespace flexkv {
namespace {

constexpr uint64_t kBlock = 16 << 10;

std::vector<BlockHash> Chain(uint64_t document, uint32_t blocks) {
  std::vector<BlockHash> chain = {HashFromNumber(document)};
  while (chain.size() < blocks) chain.push_back(ChildHash(chain.back(), document));
  return chain;
}

class ManagerSsdTest : public testing::Test {
 protected:
  ManagerSsdTest() {
    options_.cpu_cache_bytes = 64 * kBlock;
    options_.evict_ratio = 0;
    options_.ssd.cache_bytes = 400 * (kBlock + 4096);
    options_.ssd.segment_bytes = 40 * (kBlock + 4096);
    options_.ssd.load_part_bytes = 4 * kBlock;
    AddSsd();
  }

  void AddSsd() {
    ssds_.push_back(std::make_unique<SimSsd>(&rng_, 10000));
    ssds_.back()->set_faults(false);
  }

  // A life of the process begins; what was committed is still there.
  EngineHandle Start(const std::string& name = "model") {
    StartAlone();
    return Attach(name);
  }

  void StartAlone() {
    for (const auto& ssd : ssds_) ssd->Crash();
    manager_.reset();
    device_ = std::make_unique<SimDevice>(&rng_, &segments_);
    device_->set_faults(false);
    transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{},
                                                  std::vector<Executor*>{device_.get()});
    std::vector<SsdPort*> ports;
    for (const auto& ssd : ssds_) {
      ssd->SetArena(device_.get());
      ports.push_back(ssd.get());
    }
    manager_ = std::make_unique<CacheManager>(options_, &segments_, transfers_.get(), ports);
  }

  EngineHandle Attach(const std::string& name, uint64_t block = kBlock) {
    auto engine = manager_->AttachEngine({.namespace_key = name,
                                          .namespace_label = name,
                                          .shard_bytes = {block},
                                          .tokens_per_block = 16},
                                         now_);
    EXPECT_TRUE(engine.ok()) << engine.status();
    return *engine;
  }

  void Tick(TimeNs later = kNsPerMs) {
    manager_->Tick(now_ += later);
    std::vector<ManagerEvent> events;
    manager_->TakeEvents(&events);
    events_.insert(events_.end(), events.begin(), events.end());
  }

  // Until nothing moves.
  void Settle() {
    for (int i = 0; i < 60; ++i) {
      device_->Drain();
      for (const auto& ssd : ssds_) ssd->Drain();
      Tick();
    }
    ASSERT_TRUE(manager_->CheckInvariants().ok()) << manager_->CheckInvariants();
    ASSERT_TRUE(device_->status().ok()) << device_->status();
    for (const auto& ssd : ssds_) ASSERT_TRUE(ssd->status().ok()) << ssd->status();
  }

  void Half(EngineHandle engine, OpKey key, const std::vector<BlockHash>& chain, uint32_t first,
            uint32_t count, uint64_t block = kBlock) {
    std::vector<uint64_t> identities;
    for (uint32_t i = first; i < first + count; ++i) identities.push_back(chain[i].words[1]);
    device_->AddHalf(engine, key, identities, {block});
  }

  uint32_t Put(EngineHandle engine, const std::vector<BlockHash>& chain, uint64_t block = kBlock) {
    const OpKey key = next_key_++;
    const auto count = static_cast<uint32_t>(chain.size());
    Half(engine, key, chain, 0, count, block);
    auto answer = manager_->Put(engine, key, key, 0, count, 0, chain, now_);
    EXPECT_TRUE(answer.ok()) << answer.status();
    manager_->EndRequest(engine, key);
    return answer->accepted;
  }

  uint32_t Hits(EngineHandle engine, const std::vector<BlockHash>& chain) {
    const RequestKey request = next_key_++;
    auto answer = manager_->Lookup(engine, request, 0, chain, now_);
    EXPECT_TRUE(answer.ok()) << answer.status();
    manager_->EndRequest(engine, request);
    return answer->matched_blocks;
  }

  // Looks the chain up and launches a load of all that is found; returns the op's key.
  OpKey Load(EngineHandle engine, const std::vector<BlockHash>& chain) {
    const RequestKey request = next_key_++;
    auto answer = manager_->Lookup(engine, request, 0, chain, now_);
    EXPECT_TRUE(answer.ok() && answer->matched_blocks > 0);
    const OpKey key = next_key_++;
    Half(engine, key, chain, 0, answer->matched_blocks);
    absl::Status status =
        manager_->Load(engine, request, key, answer->lease, 0, answer->matched_blocks, now_);
    EXPECT_TRUE(status.ok()) << status;
    return key;
  }

  const ManagerEvent* EventOf(OpKey key, ManagerEvent::Kind kind) const {
    for (const ManagerEvent& event : events_) {
      if (event.key == key && event.kind == kind) return &event;
    }
    return nullptr;
  }
  const ManagerEvent* DoneOf(OpKey key) const { return EventOf(key, ManagerEvent::Kind::kOpDone); }

  TestRng rng_{7};
  CacheManagerOptions options_;
  FakeSegmentStore segments_;
  std::vector<std::unique_ptr<SimSsd>> ssds_;
  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
  std::vector<ManagerEvent> events_;
  uint64_t next_key_ = 1;
  TimeNs now_ = kNsPerSecond;
};

TEST_F(ManagerSsdTest, WhatWasCommittedIsFoundAndLoadedAfterAKill) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 40);
  Put(engine, chain);
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 40u);
  EXPECT_EQ(manager_->status().ssd.copies_in_memory, 40u);
  engine = Start();
  EXPECT_EQ(manager_->status().ssd.recovered_blocks, 40u);
  EXPECT_EQ(Hits(engine, chain), 40u);
  auto cold = manager_->Lookup(engine, 999, 0, chain, now_);
  ASSERT_TRUE(cold.ok());
  EXPECT_EQ(cold->warm_blocks, 0u);
  manager_->EndRequest(engine, 999);
  const OpKey key = Load(engine, chain);
  Settle();
  ASSERT_NE(DoneOf(key), nullptr);
  EXPECT_EQ(DoneOf(key)->ok_blocks, 40u);
  EXPECT_EQ(DoneOf(key)->ssd_blocks, 40u);
  EXPECT_EQ(manager_->status().counters.ssd_load_blocks, 40u);
  auto warm = manager_->Lookup(engine, 999, 0, chain, now_);
  ASSERT_TRUE(warm.ok());
  EXPECT_EQ(warm->warm_blocks, 40u);
  manager_->EndRequest(engine, 999);
  EXPECT_EQ(manager_->status().ssd.copies_in_memory, 40u);
  // The second time from memory.
  Load(engine, chain);
  Settle();
  EXPECT_EQ(manager_->status().counters.ssd_load_blocks, 40u);
  EXPECT_EQ(Hits(Attach("another model"), chain), 0u);
}

TEST_F(ManagerSsdTest, HoldsMoreThanMemoryAndLoadsMoreThanMemory) {
  const EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 200);
  for (uint32_t end = 20; end <= 200; end += 20) {
    Put(engine, {chain.begin(), chain.begin() + end});
    Settle();
  }
  EXPECT_EQ(Hits(engine, chain), 200u);
  const OpKey key = Load(engine, chain);
  Settle();
  ASSERT_NE(DoneOf(key), nullptr);
  EXPECT_EQ(DoneOf(key)->ok_blocks, 200u);
}

// Evicting what is on disk frees no memory while writes hold it.
TEST_F(ManagerSsdTest, MemoryFullOfWritesCostsNothingOnDisk) {
  options_.ssd.cache_bytes = 2000 * (kBlock + 4096);
  options_.ssd.segment_bytes = 200 * (kBlock + 4096);
  const EngineHandle engine = Start();
  Put(engine, Chain(1, 10));
  Settle();
  ASSERT_EQ(manager_->status().ssd.blocks, 10u);
  const std::vector<BlockHash> leased = Chain(2, 4);
  Put(engine, leased);
  device_->Drain();
  Tick();
  ASSERT_TRUE(manager_->Lookup(engine, 500, 0, leased, now_).ok());
  for (uint64_t document = 3; document < 20; ++document) {
    Put(engine, Chain(document, 10));
    device_->Drain();
    Tick();
  }
  EXPECT_GT(manager_->status().ssd.writes_in_flight, 40u);
  Settle();
  EXPECT_EQ(manager_->status().counters.ssd_evicted_blocks, 0u);
  EXPECT_EQ(Hits(engine, Chain(1, 10)), 10u);
}

TEST_F(ManagerSsdTest, AResetIsAnsweredWhenTheDevicesNotedIt) {
  AddSsd();
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 20);
  Put(engine, chain);
  Settle();
  ASSERT_TRUE(manager_->Reset(engine, 77, now_).ok());
  EXPECT_EQ(Hits(engine, chain), 0u);
  Tick();
  EXPECT_EQ(EventOf(77, ManagerEvent::Kind::kResetDone), nullptr);
  Settle();
  ASSERT_NE(EventOf(77, ManagerEvent::Kind::kResetDone), nullptr);
  EXPECT_EQ(EventOf(77, ManagerEvent::Kind::kResetDone)->status, OpStatus::kOk);
  engine = Start();
  EXPECT_EQ(Hits(engine, chain), 0u);
  Put(engine, chain);
  Settle();
  engine = Start();
  EXPECT_EQ(Hits(engine, chain), 20u);
}

TEST_F(ManagerSsdTest, AResetThatADeviceDidNotNoteSaysSo) {
  const EngineHandle engine = Start();
  Put(engine, Chain(1, 5));
  Settle();
  ssds_[0]->FailNext(SimSsd::Kind::kRaise, 1);
  EXPECT_EQ(manager_->ResetByLabel("", 78, now_), 1u);
  Settle();
  ASSERT_NE(EventOf(78, ManagerEvent::Kind::kResetDone), nullptr);
  EXPECT_EQ(EventOf(78, ManagerEvent::Kind::kResetDone)->status, OpStatus::kFailed);
}

TEST_F(ManagerSsdTest, ADamagedBlockEndsItsLoadThereAndIsGone) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 20);
  Put(engine, chain);
  Settle();
  engine = Start();
  const OpKey key = Load(engine, chain);
  ssds_[0]->FailNext(SimSsd::Kind::kRead, 1);
  Settle();
  ASSERT_NE(DoneOf(key), nullptr);
  EXPECT_GT(DoneOf(key)->failed_blocks, 0u);
  EXPECT_EQ(DoneOf(key)->ok_blocks + DoneOf(key)->failed_blocks, 20u);
  EXPECT_LT(Hits(engine, chain), 20u);
  EXPECT_EQ(manager_->status().counters.ssd_read_failed_blocks, 1u);
}

TEST_F(ManagerSsdTest, ALoadOfWhichNothingCanBeReadIsRefused) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 1);
  Put(engine, chain);
  Settle();
  engine = Start();
  ssds_[0]->FailNext(SimSsd::Kind::kRead, 1);
  const OpKey key = Load(engine, chain);
  Settle();
  ASSERT_NE(DoneOf(key), nullptr);
  EXPECT_EQ(DoneOf(key)->status, OpStatus::kFailed);
  EXPECT_NE(EventOf(key, ManagerEvent::Kind::kRefuseOp), nullptr);
  EXPECT_EQ(Hits(engine, chain), 0u);
}

TEST_F(ManagerSsdTest, AFailingSegmentIsLeftAndTheTierComesBack) {
  const EngineHandle engine = Start();
  Put(engine, Chain(1, 2));
  Settle();
  ssds_[0]->FailNext(SimSsd::Kind::kWrite, 1);  // retires the segment
  Put(engine, Chain(2, 30));
  Settle();
  EXPECT_EQ(manager_->status().ssd.closed_segments, 1u);
  EXPECT_EQ(Hits(engine, Chain(2, 30)), 30u);  // from memory
  Tick(2 * kNsPerSecond);
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 32u);
  EXPECT_GE(manager_->status().ssd.segments, 2u);
}

TEST_F(ManagerSsdTest, WithoutSpaceMemoryGoesOnAndTheTierComesBack) {
  ssds_[0]->FailNext(SimSsd::Kind::kCreate, 3);
  const EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(engine, chain);
  Settle();
  EXPECT_TRUE(manager_->status().ssd.out_of_space);
  EXPECT_EQ(manager_->status().ssd.blocks, 0u);
  EXPECT_EQ(Hits(engine, chain), 10u);
  for (int i = 0; i < 20; ++i) {
    Tick(kNsPerSecond);
    Settle();
  }
  EXPECT_FALSE(manager_->status().ssd.out_of_space);
  EXPECT_EQ(manager_->status().ssd.blocks, 10u);
}

TEST_F(ManagerSsdTest, TheWriteBudgetHolds) {
  options_.ssd.write_bytes_per_s = 10 * (kBlock + 4096);
  const EngineHandle engine = Start();
  Put(engine, Chain(1, 60));
  Settle();  // 60 ms
  EXPECT_LE(manager_->status().counters.ssd_written_blocks, 12u);
  for (int i = 0; i < 20; ++i) {
    Tick(kNsPerSecond / 2);
    Settle();
  }
  EXPECT_EQ(manager_->status().counters.ssd_written_blocks, 60u);
}

TEST_F(ManagerSsdTest, SecondTouchWritesWhatWasLoaded) {
  options_.ssd.admission = SsdAdmission::kSecondTouch;
  const EngineHandle engine = Start();
  Put(engine, Chain(1, 10));
  Put(engine, Chain(2, 10));
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 0u);
  Load(engine, Chain(1, 10));
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 10u);
}

TEST_F(ManagerSsdTest, NeverMoreBlocksThanSaid) {
  options_.ssd.num_blocks = 50;
  const EngineHandle engine = Start();
  for (uint64_t document = 1; document <= 20; ++document) {
    Put(engine, Chain(document, 10));
    Settle();
    ASSERT_LE(manager_->status().ssd.slots, 50u);
    ASSERT_LE(manager_->status().ssd.blocks, 50u);
  }
  EXPECT_GT(manager_->status().ssd.blocks, 20u);
  EXPECT_GT(manager_->status().counters.ssd_evicted_blocks, 100u);
}

TEST_F(ManagerSsdTest, ALeaseHoldsTheHandle) {
  const EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(engine, chain);
  device_->Drain();
  Tick();
  ASSERT_EQ(manager_->Lookup(engine, 1000, 0, chain, now_)->matched_blocks, 10u);
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 9u);
  EXPECT_EQ(manager_->status().counters.ssd_written_blocks, 10u);
  manager_->EndRequest(engine, 1000);
  Settle();
  EXPECT_EQ(manager_->status().ssd.blocks, 10u);
}

TEST_F(ManagerSsdTest, ASecondSizeClassGetsItsShare) {
  const EngineHandle first = Start();
  for (uint64_t document = 1; document <= 50; ++document) {
    Put(first, Chain(document, 10));
    Settle();
  }
  const EngineHandle second = Attach("other", 2 * kBlock);
  for (int i = 0; i < 30; ++i) {
    Put(second, Chain(100 + static_cast<uint64_t>(i), 4), 2 * kBlock);
    Settle();
    Tick(100 * kNsPerMs);
  }
  uint64_t written = 0;
  for (const auto& [place, block] : ssds_[0]->blocks())
    written += block.identity.hash == Chain(129, 4)[3];
  EXPECT_EQ(written, 1u);
}

TEST_F(ManagerSsdTest, BlocksCountedInTheFirstLayoutAreFoundWithIt) {
  options_.cpu_cache_bytes = 0;
  options_.num_cpu_blocks = 64;
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(engine, chain);
  Settle();
  engine = Start();
  EXPECT_EQ(Hits(engine, chain), 10u);
}

TEST_F(ManagerSsdTest, ReadsAheadForARequestThatWaits) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(engine, chain);
  Settle();
  engine = Start();
  ASSERT_EQ(manager_->Lookup(engine, 1000, 0, chain, now_)->matched_blocks, 10u);
  Tick();
  EXPECT_EQ(manager_->status().ssd.reads_in_flight, 0u);
  Tick(5 * kNsPerMs);
  EXPECT_EQ(manager_->status().ssd.reads_in_flight, 10u);
  Settle();
  EXPECT_EQ(manager_->status().ssd.copies_in_memory, 10u);
}

TEST_F(ManagerSsdTest, ALoadThatWaitsTooLongFails) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(engine, chain);
  Settle();
  engine = Start();
  const OpKey key = Load(engine, chain);
  Tick(options_.ssd.read_timeout_ns + kNsPerSecond);  // the device says nothing
  Tick();
  ASSERT_NE(DoneOf(key), nullptr);
  EXPECT_EQ(DoneOf(key)->failed_blocks, 10u);
  Settle();
}

TEST_F(ManagerSsdTest, AHotPrefixDoesNotKeepADamagedBlock) {
  EngineHandle engine = Start();
  const std::vector<BlockHash> chain = Chain(1, 20);
  Put(engine, chain);
  Settle();
  engine = Start();
  ASSERT_EQ(manager_->Lookup(engine, 1000, 0, chain, now_)->matched_blocks, 20u);
  Load(engine, chain);
  ssds_[0]->FailNext(SimSsd::Kind::kRead, 1);
  Settle();
  EXPECT_LT(Hits(engine, chain), 20u);  // although somebody still has a lease on all of it
  EXPECT_EQ(manager_->Lookup(engine, 1001, 0, chain, now_)->matched_blocks, Hits(engine, chain));
  manager_->EndRequest(engine, 1000);
  Settle();
  EXPECT_LT(manager_->status().cached_blocks, 20u);
}

TEST_F(ManagerSsdTest, ADropThatFailsIsNotTriedAgainAtOnce) {
  const EngineHandle first = Start();
  for (uint64_t document = 1; document <= 50; ++document) {
    Put(first, Chain(document, 10));
    Settle();
  }
  ssds_[0]->FailNext(SimSsd::Kind::kDrop, 1000);
  const EngineHandle second = Attach("other", 2 * kBlock);
  for (uint64_t document = 100; document < 130; ++document) {
    Put(second, Chain(document, 4), 2 * kBlock);
    Settle();
  }
  EXPECT_GE(ssds_[0]->ended(SimSsd::Kind::kDrop), 1u);
  EXPECT_LE(ssds_[0]->ended(SimSsd::Kind::kDrop), 3u);  // in two seconds
}

TEST_F(ManagerSsdTest, FoundSegmentsOfAnotherSizeMakeWay) {
  EngineHandle engine = Start();
  for (uint64_t document = 1; document <= 35; ++document) {
    Put(engine, Chain(document, 10));
    Settle();
  }
  options_.ssd.cache_bytes = 200 * (kBlock + 4096);
  options_.ssd.segment_bytes = 10 * (kBlock + 4096);
  engine = Start();
  ASSERT_GT(manager_->status().ssd.blocks, 150u);
  for (uint64_t document = 100; document <= 120; ++document) {
    Put(engine, Chain(document, 10));
    Settle();
  }
  EXPECT_GT(manager_->status().ssd.blocks, 20u);
  EXPECT_LT(manager_->status().ssd.blocks, 150u);
  EXPECT_EQ(Hits(Start(), Chain(120, 10)), 10u);
}

TEST_F(ManagerSsdTest, ASegmentThatRetiredWhenItWasFullMakesWay) {
  const EngineHandle engine = Start();
  for (uint64_t document = 1; document <= 35; ++document) {
    Put(engine, Chain(document, 10));
    Settle();
  }
  ssds_[0]->RetireAll();
  for (uint64_t document = 100; document <= 160; ++document) {
    Put(engine, Chain(document, 10));
    Settle();
    Tick(kNsPerSecond);
  }
  Settle();
  EXPECT_GT(manager_->status().ssd.blocks, 100u);
  EXPECT_EQ(Hits(Start(), Chain(160, 10)), 10u);
}

TEST_F(ManagerSsdTest, ClearingAllReachesWhatNobodyNamed) {
  options_.cpu_cache_bytes = 0;
  options_.num_cpu_blocks = 64;
  const std::vector<BlockHash> chain = Chain(1, 10);
  Put(Start(), chain);
  Settle();
  StartAlone();
  EXPECT_EQ(manager_->ResetByLabel("", 79, now_), 1u);
  Settle();
  ASSERT_NE(EventOf(79, ManagerEvent::Kind::kResetDone), nullptr);
  EXPECT_EQ(EventOf(79, ManagerEvent::Kind::kResetDone)->status, OpStatus::kOk);
  EXPECT_EQ(Hits(Attach("model"), chain), 0u);
  EXPECT_EQ(Hits(Start(), chain), 0u);
}

}  // namespace
}  // namespace flexkv
