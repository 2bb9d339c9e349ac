// What `hazard` learns from traffic that shows one thing each. Its bookkeeping is compared with a
// plain twin in radix_tree_model_test.cc.
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "flexkv/index/policies.h"
#include "flexkv/index/radix_tree.h"
#include "gtest/gtest.h"

namespace flexkv {
namespace {

uint64_t Mix(uint64_t x) {
  x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15ull;
  return x ^ (x >> 29);
}

// A cache of so many blocks: looks a prompt up, makes room, inserts what is missing.
class Cache {
 public:
  Cache(std::string_view policy, uint32_t blocks)
      : tree_({.max_slots = blocks, .policy = NewEvictionPolicy(policy).value()}) {
    tree_.AddNamespace(1);
    for (uint32_t i = 0; i < blocks; ++i) free_.push_back(SlotId::Make(Tier::kCpu, i));
    tree_.NoteCapacity(0, blocks);
  }

  // Text is a vector of numbers, one a block. Returns the blocks found.
  uint32_t Ask(double now_s, const std::vector<uint64_t>& text, RequestHint hint = {}) {
    std::vector<BlockHash> chain;
    uint64_t state = 1;
    for (uint64_t block : text) {
      state = Mix(state ^ Mix(block + 1));
      chain.push_back({{Mix(state), Mix(state + 1), Mix(state + 2), Mix(state + 3)}});
    }
    BlockAccess access{.now = static_cast<TimeNs>(now_s * 1e9),
                       .hint = hint,
                       .chain_blocks = static_cast<uint32_t>(chain.size())};
    const PrefixMatch match = tree_.Match(1, chain, {}, access);
    const uint32_t missing = static_cast<uint32_t>(chain.size()) - match.num_blocks;
    if (match.num_blocks > 0) tree_.Pin(match.last);
    while (free_.size() < missing) free_.push_back(tree_.EvictOne(Tier::kCpu));
    if (match.num_blocks > 0) tree_.Unpin(1, match.last);
    const std::vector<SlotId> slots(free_.end() - missing, free_.end());
    free_.resize(free_.size() - missing);
    access.new_request = false;
    EXPECT_TRUE(tree_.InsertPending(1, chain, match.num_blocks, slots, access).ok());
    for (SlotId slot : slots) tree_.Commit(slot);
    asked_ += chain.size();
    found_ += match.num_blocks;
    return match.num_blocks;
  }
  double hit_rate() const { return static_cast<double>(found_) / static_cast<double>(asked_); }

 private:
  RadixTree tree_;
  std::vector<SlotId> free_;
  uint64_t asked_ = 0, found_ = 0;
};

std::vector<uint64_t> Text(uint64_t name, uint32_t blocks) {
  std::vector<uint64_t> text;
  for (uint32_t i = 0; i < blocks; ++i) text.push_back(name * 1000 + i);
  return text;
}

// A scan larger than the cache: LRU finds nothing, a fixed part of it would always be found.
TEST(HazardPolicyTest, KeepsAPartOfALoop) {
  Cache lru("lru", 500), hazard("hazard", 500);
  for (uint64_t i = 0; i < 6000; ++i) {
    const double now = static_cast<double>(i) * 0.7;
    lru.Ask(now, Text(i % 200, 5));
    hazard.Ask(now, Text(i % 200, 5));
  }
  EXPECT_LT(lru.hit_rate(), 0.01);
  EXPECT_GE(hazard.hit_rate(), lru.hit_rate());
}

// One-shot prompts flood conversations: what is asked again is kept.
TEST(HazardPolicyTest, FloodsDoNotWashConversationsAway) {
  Cache lru("lru", 400), hazard("hazard", 400);
  for (uint64_t i = 0; i < 8000; ++i) {
    const double now = static_cast<double>(i) * 0.5;
    const bool flood = i % 4 != 0;
    const std::vector<uint64_t> text = flood ? Text(100000 + i, 10) : Text(i / 4 % 20, 10);
    lru.Ask(now, text);
    hazard.Ask(now, text);
  }
  EXPECT_LT(lru.hit_rate(), 0.01);     // a conversation returns after 800 blocks
  EXPECT_GT(hazard.hit_rate(), 0.15);  // all of them would be 0.25
}

double WithHints(double right, bool reversed) {
  Cache cache("hazard", 400);
  for (uint64_t i = 0; i < 8000; ++i) {
    // Every second prompt is asked again once, 60 prompts later.
    const bool second = i % 2 == 0 && i >= 60;
    const bool goes_on = i % 4 == 1;
    const uint64_t name = second && (i - 59) % 4 == 1 ? i - 59 : i + 1000000 * (second ? 1 : 0);
    const bool lies = (Mix(i) % 1000) >= right * 1000;
    const bool says = (goes_on != lies) != reversed;
    cache.Ask(static_cast<double>(i), Text(name, 12), {.continue_p = says ? 0.9f : 0.1f});
  }
  return cache.hit_rate();
}

TEST(HazardPolicyTest, HintsHelpEvenWhenTheyMeanTheOpposite) {
  Cache none("hazard", 400);
  const double known = WithHints(1.0, false), good = WithHints(0.9, false),
               reversed = WithHints(0.9, true), noise = WithHints(0.5, false);
  EXPECT_GT(good, noise + 0.05);
  EXPECT_GE(known, good);
  EXPECT_NEAR(reversed, good, 0.03);  // what a hint is worth is learned, not believed
}

TEST(HazardPolicyTest, AClockThatStandsStillIsHarmless) {
  Cache hazard("hazard", 100), lru("lru", 100);
  for (uint64_t i = 0; i < 3000; ++i) {
    const std::vector<uint64_t> text = Text(Mix(i) % 30, 6);
    hazard.Ask(0, text);
    lru.Ask(0, text);
  }
  EXPECT_NEAR(hazard.hit_rate(), lru.hit_rate(), 0.05);
}

TEST(HazardPolicyTest, MemoryIsBounded) {
  const std::unique_ptr<EvictionPolicy> policy = NewEvictionPolicy("hazard").value();
  EXPECT_LT(policy->bytes(), 3u << 20);
  policy->OnCapacity(0, 1 << 20);
  EXPECT_LT(policy->bytes(), (3u << 20) + (8u << 20));
}

}  // namespace
}  // namespace flexkv
