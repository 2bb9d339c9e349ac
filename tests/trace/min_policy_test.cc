// The offline optimum against a search through everything a cache may do.
#include "flexkv/trace/min_policy.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <map>
#include <set>

#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/simulate.h"
#include "tests/trace/random_trace.h"

namespace flexkv::trace {
namespace {

NextUses UsesOf(const RequestBatch& batch) {
  NextUses uses;
  uses.Add(batch);
  uses.Finish();
  return uses;
}

// The most hits any cache of `capacity` blocks can have that keeps whole prefixes and takes in only
// what is asked for. States are sets of ids, as bits.
uint64_t SearchBest(const RequestBatch& batch, uint32_t capacity) {
  std::map<uint64_t, uint64_t> parent_of;  // id -> bit of its parent
  for (const TraceRequest& request : batch.requests) {
    const auto ids = batch.BlocksOf(request);
    for (size_t i = 0; i < ids.size(); ++i) parent_of[ids[i]] = i == 0 ? 0 : 1ull << ids[i - 1];
  }
  const auto whole = [&](uint64_t set) {
    for (uint64_t left = set; left != 0; left &= left - 1) {
      const uint64_t parent = parent_of[static_cast<uint64_t>(std::countr_zero(left))];
      if ((set & parent) != parent) return false;
    }
    return true;
  };
  std::map<uint64_t, uint64_t> best = {{0, 0}};  // state -> hits so far
  for (const TraceRequest& request : batch.requests) {
    std::map<uint64_t, uint64_t> next;
    for (const auto& [state, hits_before] : best) {
      uint64_t all = state, hits = hits_before;
      bool prefix = true;
      for (uint64_t id : batch.BlocksOf(request)) {
        prefix = prefix && (state >> id & 1) != 0;
        hits += prefix;
        all |= 1ull << id;
      }
      // Every subset of what could be kept.
      for (uint64_t keep = all;; keep = (keep - 1) & all) {
        if (static_cast<uint32_t>(std::popcount(keep)) <= capacity && whole(keep)) {
          uint64_t& known = next[keep];
          known = std::max(known, hits);
        }
        if (keep == 0) break;
      }
    }
    best = std::move(next);
  }
  uint64_t most = 0;
  for (const auto& [state, hits] : best) most = std::max(most, hits);
  return most;
}

TEST(MinPolicyTest, EqualsExhaustiveSearch) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 400; ++round) {
    RequestBatch batch;
    do {
      batch = RandomTrace({.requests = 4 + rng.Below(12), .longest = 1 + rng.Below(4), .labels = 2},
                          &rng);
    } while (std::set<uint64_t>(batch.blocks.begin(), batch.blocks.end()).size() > 10);
    const NextUses uses = UsesOf(batch);
    for (uint32_t capacity = 0; capacity <= 5; ++capacity) {
      ASSERT_EQ(ReplayMin(uses, capacity).hit_blocks, SearchBest(batch, capacity))
          << "round " << round << ", " << capacity << " blocks";
    }
  }
}

TEST(MinPolicyTest, IsNeverBelowLruAndReachesTheInfiniteCache) {
  TestRng rng(TestSeed() + 1);
  for (int round = 0; round < 5; ++round) {
    const RequestBatch batch = RandomTrace({.requests = 2000, .longest = 30, .labels = 3}, &rng);
    const NextUses uses = UsesOf(batch);
    auto source = MakeMemorySource(batch);
    const auto curve = ComputeLruCurve(source.get());
    ASSERT_TRUE(curve.ok());
    uint64_t before = 0;
    for (uint64_t c = 0; c <= curve->unique_blocks; c += 1 + c / 8) {
      const MinResult min = ReplayMin(uses, c);
      ASSERT_GE(min.hit_blocks, curve->HitsAt(c)) << c;
      ASSERT_GE(min.hit_blocks, before) << c;
      ASSERT_GE(min.inserted_blocks, min.evicted_blocks);
      before = min.hit_blocks;
    }
    EXPECT_EQ(ReplayMin(uses, kInfiniteBlocks).hit_blocks, curve->HitsAt(kInfiniteBlocks));
    EXPECT_EQ(ReplayMin(uses, kInfiniteBlocks).evicted_blocks, 0u);
  }
}

TEST(MinPolicyTest, LookupsAndInsertsApart) {
  ChainMaker ids;
  const auto a = ids.Chain({1, 2, 3});
  const auto b = ids.Chain({1, 5});
  RequestBatch batch;
  AddRequest(a, &batch, RequestKind::kGet);  // nothing here, and nothing comes of it
  AddRequest(a, &batch, RequestKind::kGet);
  AddRequest(a, &batch, RequestKind::kPut);
  AddRequest(b, &batch, RequestKind::kGet);  // finds the first block
  AddRequest(b, &batch, RequestKind::kPut);
  AddRequest(a, &batch, RequestKind::kGet);
  AddRequest(b, &batch, RequestKind::kGet);
  const NextUses uses = UsesOf(batch);
  EXPECT_EQ(ReplayMin(uses, 4).hit_blocks, 1u + 3 + 2);
  EXPECT_EQ(ReplayMin(uses, 1).hit_blocks, 1u + 1 + 1);
  EXPECT_EQ(ReplayMin(uses, 0).hit_blocks, 0u);
}

TEST(NextUsesTest, SaysWhoseLastBlockIsAskedForAgain) {
  TestRng rng(TestSeed() + 2);
  for (int round = 0; round < 30; ++round) {
    const RequestBatch batch =
        RandomTrace({.requests = 80, .longest = 8, .labels = 3, .all_kinds = round % 2 == 1}, &rng);
    NextUses uses(/*lookups_insert=*/true);
    uses.Add(batch);
    uses.Finish();
    const std::vector<bool> again = uses.LastBlockAskedAgain();
    for (size_t i = 0; i < batch.requests.size(); ++i) {
      const auto ids = batch.BlocksOf(batch.requests[i]);
      bool asked = false;
      for (size_t later = i + 1; !ids.empty() && later < batch.requests.size(); ++later) {
        const auto others = batch.BlocksOf(batch.requests[later]);
        asked |= batch.requests[later].kind != RequestKind::kPut &&
                 std::find(others.begin(), others.end(), ids.back()) != others.end();
      }
      ASSERT_EQ(again[i], asked) << "round " << round << ", request " << i;
    }
  }
}

}  // namespace
}  // namespace flexkv::trace
