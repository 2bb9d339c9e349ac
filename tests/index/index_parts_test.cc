// The parts of the tree on their own: head table, eviction order, node store, ghost table,
// policies.
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>

#include "flexkv/index/eviction_heap.h"
#include "flexkv/index/ghost_table.h"
#include "flexkv/index/head_table.h"
#include "flexkv/index/node_store.h"
#include "flexkv/index/policies.h"

namespace flexkv {
namespace {

NodeId FindExactly(const HeadTable& table, uint32_t key, NodeId node) {
  return table.Find(key, [node](NodeId found) { return found == node; });
}

TEST(HeadTable, EqualKeysLiveSideBySide) {
  HeadTable table;
  for (NodeId node = 0; node < 100; ++node) table.Insert(42, node);
  for (NodeId node = 0; node < 100; node += 2) table.Erase(42, node);
  for (NodeId node = 0; node < 100; ++node) {
    EXPECT_EQ(FindExactly(table, 42, node), node % 2 == 0 ? kNoNode : node);
  }
  table.Replace(42, 1, 1000);
  EXPECT_EQ(FindExactly(table, 42, 1), kNoNode);
  EXPECT_EQ(FindExactly(table, 42, 1000), 1000u);
}

// Clusters, wrap-around, and changes of every kind while the table grows.
TEST(HeadTable, AgreesWithASetWhileItGrows) {
  std::mt19937 random(1);
  HeadTable table;
  std::map<NodeId, uint32_t> model;  // node -> key
  NodeId next = 0;
  for (uint32_t step = 0; step < 60000; ++step) {
    const uint32_t dice = random() % 10;
    if (dice < 6 || model.empty()) {
      const uint32_t key =
          random() % 2 == 0 ? static_cast<uint32_t>(random()) : 0xfffffff0u + random() % 16;
      // A few keys only near the table's end, or the clusters make the test quadratic.
      const uint32_t used = step % 64 == 0 ? key : static_cast<uint32_t>(random());
      table.Insert(used, next);
      model.emplace(next++, used);
    } else {
      auto it = model.lower_bound(static_cast<NodeId>(random() % next));
      if (it == model.end()) it = model.begin();
      if (dice < 9) {
        table.Erase(it->second, it->first);
        model.erase(it);
      } else {
        const uint32_t key = it->second;
        table.Replace(key, it->first, next);
        model.erase(it);
        model.emplace(next++, key);
      }
    }
    EXPECT_EQ(table.size(), model.size());
    if (step % 5000 == 0) {
      for (const auto& [node, key] : model) ASSERT_EQ(FindExactly(table, key, node), node);
    }
  }
  for (NodeId node = 0; node < next; ++node) {
    auto it = model.find(node);
    if (it != model.end()) {
      ASSERT_EQ(FindExactly(table, it->second, node), node);
    }
  }
}

TEST(HeadTable, TheNamespaceIsPartOfTheKey) {
  BlockHash hash;
  hash.words = {1, 2, 3, 4};
  EXPECT_NE(HeadTable::Key(1, hash), HeadTable::Key(2, hash));
}

// Nodes come, move between tiers and queues, change scores and go.
TEST(EvictionOrder, AgreesWithOrderedMaps) {
  for (uint32_t num_queues : {1u, 3u, EvictionPolicy::kMaxQueues}) {
    SCOPED_TRACE(num_queues);
    std::mt19937 random(2);
    EvictionOrder order(1000, num_queues);
    using Home = std::pair<Tier, uint32_t>;
    std::map<Home, std::map<NodeId, uint64_t>> homes;
    std::map<NodeId, Home> home_of;
    for (uint32_t step = 0; step < 20000; ++step) {
      const NodeId node = static_cast<NodeId>(random() % 1000);
      ASSERT_EQ(order.Contains(node), home_of.contains(node));
      const bool put = random() % 3 != 0;
      if (home_of.contains(node) && (!put || random() % 2 == 0)) {
        homes[home_of[node]].erase(node);
        home_of.erase(node);
        if (!put) order.Remove(node);
      }
      if (put) {
        const Home home = home_of.contains(node) ? home_of[node]
                                                 : Home{static_cast<Tier>(random() % kNumTiers),
                                                        random() % num_queues};
        const uint64_t score = random() % 100000;
        order.Put(node, home.first, home.second, score);
        homes[home][node] = score;
        home_of[node] = home;
        ASSERT_TRUE(order.StandsIn(node, home.first, home.second, score));
      }
      ASSERT_EQ(order.size(), home_of.size());
      if (step % 100 == 0) {
        ASSERT_TRUE(order.Holds());
      }
      const Home looked{static_cast<Tier>(random() % kNumTiers), random() % num_queues};
      const std::map<NodeId, uint64_t>& scores = homes[looked];
      ASSERT_EQ((order.filled(looked.first) >> looked.second & 1) != 0, !scores.empty());
      if (scores.empty()) continue;
      uint64_t least = ~0ull;
      for (const auto& [n, score] : scores) least = std::min(least, score);
      ASSERT_EQ(order.heap(looked.first, looked.second).top_score(), least);
      ASSERT_EQ(scores.at(order.heap(looked.first, looked.second).top()), least);
    }
  }
}

TEST(NodeStore, RunsKeepTheirBlocksWhenTheyMove) {
  NodeStore store(1000);
  const NodeId id = store.Allocate(3);
  auto put = [&](uint32_t i) {
    store.Grow(id, i + 1);
    Node& node = store[id];
    node.hashes()[i].words[0] = 100 + i;
    node.words()[i] = 200 + i;
    node.slots()[i] = SlotId{300 + i};
    node.len = static_cast<uint8_t>(i + 1);
  };
  for (uint32_t i = 0; i < 64; ++i) put(i);
  EXPECT_EQ(store[id].capacity(), 64u);
  store.DropFront(id, 30);
  EXPECT_EQ(store[id].len, 34u);
  store[id].len = 5;
  store.MaybeShrink(id);
  EXPECT_EQ(store[id].capacity(), 8u);
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_EQ(store[id].hashes()[i].words[0], 130 + i);
    EXPECT_EQ(store[id].words()[i], 230 + i);
    EXPECT_EQ(store[id].slots()[i], SlotId{330 + i});
  }
  store.Free(id);
  EXPECT_EQ(store.size(), 0u);
}

TEST(NodeStore, MemoryIsUsedAgain) {
  NodeStore store(64 * 64);
  for (uint32_t round = 0; round < 1000; ++round) {
    std::vector<NodeId> ids;
    for (uint32_t i = 0; i < 64; ++i) {
      ids.push_back(store.Allocate(64));
      store[ids.back()].len = 64;
    }
    for (NodeId id : ids) store.Free(id);
  }
  EXPECT_EQ(store.high_water(), 64u);
  EXPECT_LT(store.bytes(), 1u << 20);
}

BlockHash Numbered(uint64_t number) {
  std::minstd_rand random(static_cast<uint32_t>(number + 1));
  BlockHash hash;
  for (uint64_t& word : hash.words) word = uint64_t{random()} << 31 ^ random();
  return hash;
}

// Two lists, hashes that come, move, are taken and trimmed. Few enough that no line overflows.
TEST(GhostTable, AgreesWithLists) {
  std::mt19937 random(3);
  GhostTable table;
  table.Fit(1000);
  std::array<std::vector<uint64_t>, 2> lists;  // oldest first
  const auto take = [&](uint64_t number) -> std::optional<uint32_t> {
    for (uint32_t list = 0; list < 2; ++list) {
      if (std::erase(lists[list], number) > 0) return list;
    }
    return std::nullopt;
  };
  for (uint32_t step = 0; step < 20000; ++step) {
    const uint64_t number = random() % 700;
    const uint32_t list = random() % 2;
    const uint32_t dice = random() % 8;
    if (dice < 4) {
      take(number);
      lists[list].push_back(number);
      table.Add(Numbered(number), list);
    } else if (dice < 7) {
      ASSERT_EQ(table.Take(Numbered(number)), take(number)) << step;
    } else {
      const uint64_t limit = random() % 300;
      while (lists[list].size() > limit) lists[list].erase(lists[list].begin());
      table.Trim(list, limit);
    }
    ASSERT_EQ(table.size(0), lists[0].size());
    ASSERT_EQ(table.size(1), lists[1].size());
  }
}

TEST(GhostTable, RemembersMostOfACachefulInEightBytesABlock) {
  constexpr uint64_t kBlocks = 200000;
  GhostTable table;
  EXPECT_EQ(table.Take(Numbered(1)), std::nullopt);  // before it has a size
  EXPECT_EQ(table.bytes(), 0u);
  table.Fit(kBlocks);
  EXPECT_LE(table.bytes(), 8 * kBlocks);
  for (uint64_t i = 0; i < 3 * kBlocks; ++i) {
    table.Add(Numbered(i), 0);
    table.Trim(0, kBlocks / 2);
  }
  uint64_t found = 0;
  for (uint64_t i = 0; i < 3 * kBlocks; ++i) {
    // What overflowed leaves room for somewhat older ones.
    const bool recent = i >= 3 * kBlocks - kBlocks / 2 * 105 / 100;
    if (!table.Take(Numbered(i)).has_value()) continue;
    ASSERT_TRUE(recent) << i;
    ++found;
  }
  EXPECT_GE(found, kBlocks / 2 * 95 / 100);
  EXPECT_EQ(table.size(0), 0u);
  // Sizes near the old one keep what is known, others begin anew.
  table.Add(Numbered(1), 1);
  table.Fit(kBlocks * 11 / 10);
  EXPECT_EQ(table.size(1), 1u);
  table.Fit(kBlocks * 2);
  EXPECT_EQ(table.size(1), 0u);
  EXPECT_EQ(table.Take(Numbered(1)), std::nullopt);
}

TEST(Policies, AreFoundByName) {
  ASSERT_FALSE(PolicyNames().empty());
  bool has_default = false;
  for (std::string_view name : PolicyNames()) {
    auto policy = NewEvictionPolicy(name);
    ASSERT_TRUE(policy.ok()) << policy.status();
    EXPECT_EQ((*policy)->name(), name);
    EXPECT_GE((*policy)->num_queues(), 1u);
    EXPECT_LE((*policy)->num_queues(), EvictionPolicy::kMaxQueues);
    has_default |= name == kDefaultPolicy;
  }
  EXPECT_TRUE(has_default);
  const absl::Status unknown = NewEvictionPolicy("mru").status();
  EXPECT_EQ(unknown.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_NE(std::string(unknown.message()).find("lru, lfu"), std::string::npos) << unknown;
}

TEST(LruPolicy, LaterAccessesScoreHigher) {
  const std::unique_ptr<EvictionPolicy> lru = MakeLruPolicy();
  std::vector<PolicyWord> words(3);
  lru->BeginAccess({});
  lru->OnInsert({.words = words, .hashes = {}});
  const uint64_t inserted = lru->Score(words[2], 2);
  lru->BeginAccess({});
  lru->OnTouch({words.data(), 2}, 0);
  EXPECT_GT(lru->Score(words[0], 0), inserted);
  EXPECT_EQ(lru->Score(words[0], 0), lru->Score(words[1], 1));
  EXPECT_EQ(lru->Score(words[2], 2), inserted);
  EXPECT_EQ(lru->name(), "lru");
}

}  // namespace
}  // namespace flexkv
