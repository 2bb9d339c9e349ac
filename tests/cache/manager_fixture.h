// A manager over a memory of its own and an executor that holds every op until the test ends it.
#pragma once

#include <algorithm>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "flexkv/base/fault.h"
#include "flexkv/cache/cache_manager.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"

namespace flexkv {

inline constexpr uint64_t kBlock = 64 << 10;  // bytes per block on one rank

// Holds every op until the test ends it.
class HeldExecutor : public Executor {
 public:
  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override {
    held.push_back(op);
    return true;
  }
  void Poll(TimeNs, std::vector<OpResult>* results) override {
    results->insert(results->end(), done.begin(), done.end());
    done.clear();
  }
  // Ends the parts of all ranks (or of one rank).
  void End(OpKey key, std::vector<uint32_t> failed = {}, int rank = -1) {
    for (size_t i = 0; i < held.size();) {
      if (held[i].key != key || (rank >= 0 && held[i].rank != static_cast<uint32_t>(rank))) {
        ++i;
        continue;
      }
      const OpStatus status = failed.empty()                           ? OpStatus::kOk
                              : failed.size() == held[i].blocks.size() ? OpStatus::kFailed
                                                                       : OpStatus::kPartial;
      done.push_back(OpResult{held[i].id, status, failed});
      held.erase(held.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  const TransferOp* Find(OpKey key, uint32_t rank = 0) const {
    for (const TransferOp& op : held) {
      if (op.key == key && op.rank == rank) return &op;
    }
    return nullptr;
  }

  std::vector<TransferOp> held;
  std::vector<OpResult> done;
};

inline std::vector<BlockHash> Chain(uint64_t name, uint32_t blocks) {
  std::vector<BlockHash> chain = {HashFromNumber(name)};
  while (chain.size() < blocks) chain.push_back(ChildHash(chain.back(), name));
  chain.resize(blocks);
  return chain;
}

class CacheManagerTest : public ::testing::Test {
 protected:
  void TearDown() override {
    ASSERT_TRUE(ArmFaults("").ok());
    if (manager_ == nullptr) return;
    const absl::Status status = manager_->CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
    manager_.reset();
    EXPECT_EQ(segments_.live_bytes(), 0u);
    EXPECT_EQ(segments_.unknown_destroys(), 0u);
  }

  void Start(CacheManagerOptions options) {
    transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{},
                                                  std::vector<Executor*>{&executor_});
    options.evict_ratio = evict_ratio_;
    manager_ = std::make_unique<CacheManager>(options, &segments_, transfers_.get());
  }
  // A cache of exactly this many 64 KiB blocks.
  void StartBlocks(uint64_t blocks) {
    CacheManagerOptions options;
    options.cpu_cache_bytes = blocks * kBlock;
    Start(options);
  }

  static EngineSpec Spec(const std::string& key, std::vector<uint64_t> shards = {kBlock}) {
    return EngineSpec{.namespace_key = key,
                      .namespace_label = key,
                      .shard_bytes = std::move(shards),
                      .tokens_per_block = 16};
  }
  EngineHandle Attach(const std::string& key, std::vector<uint64_t> shards = {kBlock}) {
    auto handle = manager_->AttachEngine(Spec(key, std::move(shards)), now_);
    EXPECT_TRUE(handle.ok()) << handle.status();
    return handle.value_or(0);
  }
  LookupAnswer Lookup(EngineHandle engine, RequestKey request,
                      const std::vector<BlockHash>& chain) {
    auto answer = manager_->Lookup(engine, request, 0, chain, now_);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.value_or(LookupAnswer{});
  }
  PutAnswer Put(EngineHandle engine, RequestKey request, OpKey key,
                const std::vector<BlockHash>& chain, uint32_t first = 0) {
    auto answer = manager_->Put(engine, request, key, first,
                                static_cast<uint32_t>(chain.size()) - first, 0, chain, now_);
    EXPECT_TRUE(answer.ok()) << answer.status();
    return answer.value_or(PutAnswer{});
  }
  // A put whose copy is done, and its request over.
  PutAnswer PutDone(EngineHandle engine, uint64_t name, uint32_t blocks) {
    const OpKey key = 1'000'000 + next_key_++;
    const PutAnswer answer = Put(engine, key, key, Chain(name, blocks));
    executor_.End(key);
    manager_->Tick(now_);
    manager_->EndRequest(engine, key);
    Events();
    return answer;
  }
  uint32_t Hits(EngineHandle engine, uint64_t name, uint32_t blocks) {
    const RequestKey request = 2'000'000 + next_key_++;
    const LookupAnswer answer = Lookup(engine, request, Chain(name, blocks));
    manager_->EndRequest(engine, request);
    return answer.matched_blocks;
  }
  std::vector<ManagerEvent> Events() {
    std::vector<ManagerEvent> events;
    manager_->TakeEvents(&events);
    return events;
  }
  void Check() {
    const absl::Status status = manager_->CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
  }

  double evict_ratio_ = 0;
  TimeNs now_ = kNsPerSecond;
  uint64_t next_key_ = 1;
  FakeSegmentStore segments_;
  HeldExecutor executor_;
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
};

}  // namespace flexkv
