// The manager against a naive model with room for everything: a map of blocks, each with its
// parent, its op and whether its bytes are in. Over random histories, and over all short ones.
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/cache/cache_manager.h"
#include "gtest/gtest.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

class HeldExecutor : public Executor {
 public:
  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override {
    held[op.key].push_back(op);
    return true;
  }
  void Poll(TimeNs, std::vector<OpResult>* results) override {
    results->insert(results->end(), done.begin(), done.end());
    done.clear();
  }
  std::map<OpKey, std::vector<TransferOp>> held;  // by key: one part per rank
  std::vector<OpResult> done;
};

struct ModelBlock {
  int parent = -1;  // block id; -1 = root
  OpKey op = 0;     // who brings or brought it
  bool arrived = false;
};

struct ModelOp {
  std::vector<int> blocks;
  size_t engine = 0;
};

// Two documents that share their first two blocks, of five blocks each. Block ids: document * 8 +
// depth, shared ones below 8.
constexpr uint32_t kBlocks = 5;
constexpr uint32_t kShared = 2;
int BlockId(uint32_t document, uint32_t depth) {
  return static_cast<int>((depth < kShared ? 0 : document * 8) + depth);
}

class ModelRun {
 public:
  explicit ModelRun(bool replicated)
      : replicated_(replicated),
        transfers_({}, {&executor_}),
        manager_({.cpu_cache_bytes = 1 << 20, .evict_ratio = 0}, &segments_, &transfers_) {
    for (uint32_t document = 0; document < 2; ++document) {
      std::vector<BlockHash> chain = {HashFromNumber(7)};
      while (chain.size() < kBlocks)
        chain.push_back(ChildHash(chain.back(), BlockId(document, chain.size())));
      documents_.push_back(chain);
    }
    for (size_t i = 0; i < 2; ++i) Attach(i);
  }

  static constexpr uint32_t kActions = 10;
  void Do(uint32_t action) {
    switch (action) {
      case 0:
        return Put(0, 0, 0, 3);
      case 1:
        return Put(1, 0, 0, 5);
      case 2:
        return Put(0, 1, 0, 5);
      case 3:
        return Put(1, 1, 2, 2);
      case 4:
        return EndOp(false, false);
      case 5:
        return EndOp(true, false);
      case 6:
        return EndOp(false, true);
      case 7:
        return EndOp(true, true);
      case 8:
        return Reset();
      default:
        return Reattach(1);
    }
  }

  void Check() {
    for (uint32_t document = 0; document < 2; ++document) {
      uint32_t expected = 0;
      while (expected < kBlocks && Arrived(BlockId(document, expected))) ++expected;
      auto answer = manager_.Lookup(engines_[document], 99, 0, documents_[document], 1);
      ASSERT_TRUE(answer.ok());
      ASSERT_EQ(answer->matched_blocks, expected) << "document " << document;
      manager_.EndRequest(engines_[document], 99);
    }
    ASSERT_EQ(manager_.status().cached_blocks, blocks_.size());
    const absl::Status status = manager_.CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
  }

  // Any put or end of op, for random histories.
  void Random(TestRng* rng) {
    const uint64_t dice = rng->Below(40);
    if (dice < 14) {
      const auto first = static_cast<uint32_t>(rng->Below(kBlocks));
      Put(rng->Below(2), static_cast<uint32_t>(rng->Below(2)), first,
          static_cast<uint32_t>(1 + rng->Below(kBlocks - first)));
    } else if (dice < 38) {
      EndOp(rng->OneIn(2), rng->OneIn(3));
    } else {
      Do(static_cast<uint32_t>(8 + rng->Below(2)));
    }
  }

 private:
  void Attach(size_t index) {
    auto handle = manager_.AttachEngine({.namespace_key = "m",
                                         .namespace_label = "m",
                                         .shard_bytes = {4096, replicated_ ? 4096u : 100u},
                                         .tokens_per_block = 16,
                                         .replicated = replicated_},
                                        1);
    ASSERT_TRUE(handle.ok());
    engines_[index] = *handle;
  }

  bool Arrived(int block) const {
    auto it = blocks_.find(block);
    return it != blocks_.end() && it->second.arrived;
  }

  void Put(size_t engine, uint32_t document, uint32_t first, uint32_t count) {
    const OpKey key = next_key_++;
    auto answer =
        manager_.Put(engines_[engine], key, key, first, count, 0, documents_[document], 1);
    ASSERT_TRUE(answer.ok()) << answer.status();
    uint32_t present = 0;
    while (present < first + count && blocks_.count(BlockId(document, present)) > 0) ++present;
    const uint32_t held = present >= first ? present - first : 0;
    const uint32_t accepted = present >= first ? first + count - present : 0;
    ASSERT_EQ(answer->held, held);
    ASSERT_EQ(answer->accepted, accepted);
    ASSERT_EQ(answer->refused, count - held - accepted);
    manager_.EndRequest(engines_[engine], key);
    if (accepted == 0) return;
    ModelOp op{.blocks = {}, .engine = engine};
    for (uint32_t depth = present; depth < first + count; ++depth) {
      const int id = BlockId(document, depth);
      blocks_[id] = ModelBlock{.parent = depth == 0 ? -1 : BlockId(document, depth - 1), .op = key};
      op.blocks.push_back(id);
    }
    ops_[key] = op;
  }

  void EraseSubtree(int block) {
    std::vector<int> gone = {block};
    for (size_t i = 0; i < gone.size(); ++i) {
      for (const auto& [id, entry] : blocks_) {
        if (entry.parent == gone[i]) gone.push_back(id);
      }
    }
    for (int id : gone) blocks_.erase(id);
  }

  // Ends the oldest (or newest) op; with `failing` its second block, or its only one, fails on the
  // last rank that copies it.
  void EndOp(bool newest, bool failing) {
    if (ops_.empty()) return;
    const auto it = newest ? std::prev(ops_.end()) : ops_.begin();
    const OpKey key = it->first;
    const ModelOp op = it->second;
    ops_.erase(it);
    const uint32_t bad = op.blocks.size() > 1 ? 1 : 0;
    const std::vector<TransferOp>& parts = executor_.held[key];
    ASSERT_EQ(parts.size(), replicated_ ? 1u : 2u);
    for (const TransferOp& part : parts) {
      OpResult result{.id = part.id, .status = OpStatus::kOk, .failed = {}};
      if (failing && part.rank == parts.back().rank) {
        result.status = op.blocks.size() > 1 ? OpStatus::kPartial : OpStatus::kFailed;
        result.failed = {bad};
      }
      executor_.done.push_back(result);
    }
    executor_.held.erase(key);
    manager_.Tick(1);
    const auto mine = [&](int id) { return blocks_.count(id) > 0 && blocks_[id].op == key; };
    if (failing && mine(op.blocks[bad])) EraseSubtree(op.blocks[bad]);
    for (int id : op.blocks) {
      if (mine(id)) blocks_[id].arrived = true;
    }
  }

  void Reset() {
    ASSERT_TRUE(manager_.Reset(engines_[0], 1, 1).ok());
    blocks_.clear();
  }

  void Reattach(size_t index) {
    manager_.DetachEngine(engines_[index], 1);
    for (auto& [key, op] : ops_) {
      if (op.engine != index) continue;
      for (int id : op.blocks) {
        if (blocks_.count(id) > 0 && blocks_[id].op == key) EraseSubtree(id);
      }
    }
    Attach(index);
  }

  const bool replicated_;
  FakeSegmentStore segments_;
  HeldExecutor executor_;
  TransferEngine transfers_;
  CacheManager manager_;
  std::vector<std::vector<BlockHash>> documents_;
  EngineHandle engines_[2] = {};
  OpKey next_key_ = 1;
  std::map<int, ModelBlock> blocks_;
  std::map<OpKey, ModelOp> ops_;
};

// Two ranks with a shard each, or two replicas.
class ManagerModelTest : public testing::TestWithParam<bool> {};
INSTANTIATE_TEST_SUITE_P(Engines, ManagerModelTest, testing::Bool(),
                         [](const auto& which) { return which.param ? "Replicated" : "Sharded"; });

TEST_P(ManagerModelTest, AllHistoriesOfFourActions) {
  constexpr uint32_t kLength = 4;
  uint32_t histories = 1;
  for (uint32_t i = 0; i < kLength; ++i) histories *= ModelRun::kActions;
  for (uint32_t history = 0; history < histories; ++history) {
    ModelRun run(GetParam());
    uint32_t rest = history;
    for (uint32_t i = 0; i < kLength; ++i) {
      run.Do(rest % ModelRun::kActions);
      rest /= ModelRun::kActions;
      run.Check();
      ASSERT_FALSE(testing::Test::HasFailure()) << "history " << history << ", action " << i;
    }
  }
}

TEST_P(ManagerModelTest, RandomHistories) {
  TestRng rng(TestSeed());
  for (int history = 0; history < 60; ++history) {
    ModelRun run(GetParam());
    for (int i = 0; i < 200; ++i) {
      run.Random(&rng);
      run.Check();
      ASSERT_FALSE(testing::Test::HasFailure())
          << "FLEXKV_TEST_SEED=" << TestSeed() << " history " << history;
    }
  }
}

}  // namespace
}  // namespace flexkv
