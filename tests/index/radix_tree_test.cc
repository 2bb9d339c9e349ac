// The radix tree, behaviour by behaviour.
#include "flexkv/index/radix_tree.h"

#include <gmock/gmock.h>

#include <numeric>

#include "tests/index/tree_model.h"

namespace flexkv::testing {
namespace {

using ::testing::ElementsAre;
using ::testing::IsEmpty;
using ::testing::UnorderedElementsAre;

constexpr NamespaceId kNs = 3;

SlotId Cpu(uint32_t index) { return SlotId::Make(Tier::kCpu, index); }

std::vector<SlotId> CpuRange(uint32_t first, uint32_t count) {
  std::vector<SlotId> slots;
  for (uint32_t i = 0; i < count; ++i) slots.push_back(Cpu(first + i));
  return slots;
}

// `common` tokens shared by all chains, then `length - common` of its own.
std::vector<BlockHash> Chain(uint32_t length, uint32_t common = 0, uint32_t own = 0) {
  std::vector<uint32_t> tokens(length, 0);
  for (uint32_t i = common; i < length; ++i) tokens[i] = 100000 * (own + 1) + i;
  return ChainOf(tokens);
}

std::vector<BlockHash> First(uint32_t count, std::vector<BlockHash> chain) {
  chain.resize(count);
  return chain;
}

class RadixTreeTest : public ::testing::Test {
 protected:
  RadixTreeTest() : tree_({.max_slots = 1 << 16, .policy = MakeLruPolicy()}) {
    tree_.AddNamespace(kNs);
  }
  ~RadixTreeTest() override {
    EXPECT_TRUE(tree_.CheckInvariants().ok()) << tree_.CheckInvariants();
  }

  void Insert(const std::vector<BlockHash>& chain, uint32_t first,
              const std::vector<SlotId>& slots) {
    const absl::Status status = tree_.InsertPending(kNs, chain, first, slots);
    ASSERT_TRUE(status.ok()) << status;
  }
  void InsertReady(const std::vector<BlockHash>& chain, uint32_t first,
                   const std::vector<SlotId>& slots) {
    Insert(chain, first, slots);
    for (SlotId slot : slots) EXPECT_TRUE(tree_.Commit(slot));
  }

  RadixTree tree_;
};

TEST_F(RadixTreeTest, AnEmptyTreeMatchesNothing) {
  EXPECT_EQ(tree_.Match(kNs, Chain(5)).num_blocks, 0u);
  EXPECT_EQ(tree_.Match(kNs, Chain(5)).last, kNoSlot);
  EXPECT_EQ(tree_.Match(kNs, {}).num_blocks, 0u);
  EXPECT_EQ(tree_.HitLength(kNs, Chain(5)), 0u);
  EXPECT_EQ(tree_.PresentLength(kNs, {}), 0u);
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), kNoSlot);
}

TEST_F(RadixTreeTest, MatchAnswersTheReadyPrefixAndItsSlots) {
  InsertReady(Chain(200), 0, CpuRange(10, 200));
  std::vector<SlotId> slots(200);
  const PrefixMatch match = tree_.Match(kNs, Chain(200), slots);
  EXPECT_EQ(match.num_blocks, 200u);
  EXPECT_EQ(match.last, Cpu(209));
  EXPECT_EQ(slots, CpuRange(10, 200));

  // A longer chain, a shorter one, and one that leaves the path in the middle of a run.
  EXPECT_EQ(tree_.Match(kNs, Chain(300)).num_blocks, 200u);
  EXPECT_EQ(tree_.Match(kNs, First(70, Chain(200))).last, Cpu(79));
  std::vector<BlockHash> other = Chain(200);
  for (uint32_t i = 150; i < 200; ++i) other[i].words[3] ^= 1;
  EXPECT_EQ(tree_.Match(kNs, other).num_blocks, 150u);
}

TEST_F(RadixTreeTest, MatchFillsOnlyTheSlotsAskedFor) {
  InsertReady(Chain(100), 0, CpuRange(0, 100));
  std::vector<SlotId> slots(66, Cpu(9999));
  EXPECT_EQ(tree_.Match(kNs, Chain(100), std::span(slots).first(65)).num_blocks, 100u);
  EXPECT_EQ(slots[64], Cpu(64));
  EXPECT_EQ(slots[65], Cpu(9999));
}

TEST_F(RadixTreeTest, PendingBlocksArePresentButInvisible) {
  Insert(Chain(10), 0, CpuRange(0, 10));
  EXPECT_EQ(tree_.Match(kNs, Chain(10)).num_blocks, 0u);
  EXPECT_EQ(tree_.HitLength(kNs, Chain(10)), 0u);
  EXPECT_EQ(tree_.PresentLength(kNs, Chain(10)), 10u);
  EXPECT_TRUE(tree_.SubtreeInUse(Cpu(0)));
}

TEST_F(RadixTreeTest, ReadinessWaitsForTheParent) {
  Insert(Chain(130), 0, CpuRange(0, 130));
  // From the end to the front: nothing is ready until the first block is, then everything is at
  // once.
  for (uint32_t i = 129; i > 0; --i) tree_.Commit(Cpu(i));
  EXPECT_EQ(tree_.HitLength(kNs, Chain(130)), 0u);
  EXPECT_EQ(tree_.stats().ready, 0u);
  tree_.Commit(Cpu(0));
  EXPECT_EQ(tree_.HitLength(kNs, Chain(130)), 130u);
  EXPECT_EQ(tree_.stats().ready, 130u);
}

TEST_F(RadixTreeTest, CommitOfAnUnknownSlotIsIgnored) {
  EXPECT_FALSE(tree_.Commit(Cpu(5)));
  EXPECT_FALSE(tree_.Commit(kNoSlot));
  EXPECT_FALSE(tree_.Commit(SlotId::Make(Tier::kSsd, 5)));
}

TEST_F(RadixTreeTest, InsertNeedsItsParentAndRefusesWhatIsThere) {
  const std::vector<BlockHash> chain = Chain(10);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 4, CpuRange(0, 2)).code(),
            absl::StatusCode::kFailedPrecondition);
  Insert(chain, 0, CpuRange(0, 5));
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 0, CpuRange(5, 2)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 3, CpuRange(5, 2)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 6, CpuRange(5, 2)).code(),
            absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(tree_.InsertPending(kNs + 1, chain, 5, CpuRange(5, 2)).code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 5, CpuRange(5, 6)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 5, CpuRange(4, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tree_.InsertPending(kNs, chain, 5, CpuRange(1 << 16, 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(tree_.stats().blocks, 5u);
  Insert(chain, 5, CpuRange(5, 5));
  EXPECT_EQ(tree_.PresentLength(kNs, chain), 10u);
}

TEST_F(RadixTreeTest, AChainThatGrowsBlockByBlockFillsItsNodes) {
  const std::vector<BlockHash> chain = Chain(256);
  for (uint32_t i = 0; i < 256; ++i) InsertReady(chain, i, CpuRange(i, 1));
  EXPECT_EQ(tree_.stats().nodes, 4u);
  EXPECT_EQ(tree_.Match(kNs, chain).num_blocks, 256u);
}

TEST_F(RadixTreeTest, ABranchSplitsARunAndItsLossHealsIt) {
  const std::vector<BlockHash> left = Chain(60, 20, 1);
  const std::vector<BlockHash> right = Chain(60, 20, 2);
  InsertReady(left, 0, CpuRange(100, 60));
  EXPECT_EQ(tree_.stats().nodes, 1u);
  ASSERT_EQ(tree_.PresentLength(kNs, right), 20u);
  InsertReady(right, 20, CpuRange(200, 40));
  EXPECT_EQ(tree_.stats().nodes, 3u);
  std::vector<SlotId> slots(60);
  EXPECT_EQ(tree_.Match(kNs, right, slots).num_blocks, 60u);
  EXPECT_EQ(slots[19], Cpu(119));
  EXPECT_EQ(slots[20], Cpu(200));

  std::vector<SlotId> freed;
  tree_.Erase(Cpu(200), &freed);
  EXPECT_EQ(freed.size(), 40u);
  EXPECT_EQ(tree_.stats().nodes, 1u);
  EXPECT_EQ(tree_.Match(kNs, left, slots).num_blocks, 60u);
  EXPECT_EQ(slots, CpuRange(100, 60));
}

TEST_F(RadixTreeTest, EraseTakesTheSubtree) {
  InsertReady(Chain(4, 2, 1), 0, CpuRange(0, 4));
  InsertReady(Chain(4, 2, 2), 2, CpuRange(4, 2));
  std::vector<SlotId> freed;
  tree_.Erase(Cpu(1), &freed);
  EXPECT_THAT(freed, UnorderedElementsAre(Cpu(1), Cpu(2), Cpu(3), Cpu(4), Cpu(5)));
  EXPECT_EQ(tree_.stats().blocks, 1u);
  EXPECT_TRUE(tree_.Contains(Cpu(0)));
  freed.clear();
  tree_.Erase(Cpu(1), &freed);  // gone already
  EXPECT_THAT(freed, IsEmpty());
}

TEST_F(RadixTreeTest, EvictionTakesLeavesOldestAccessFirst) {
  InsertReady(Chain(3, 1, 1), 0, CpuRange(0, 3));
  InsertReady(Chain(3, 1, 2), 1, CpuRange(3, 2));
  tree_.Match(kNs, Chain(3, 1, 1));  // the second branch is older now
  std::vector<uint32_t> order;
  for (SlotId slot = tree_.EvictOne(Tier::kCpu); slot.valid(); slot = tree_.EvictOne(Tier::kCpu))
    order.push_back(slot.index());
  EXPECT_THAT(order, ElementsAre(4, 3, 2, 1, 0));
  EXPECT_EQ(tree_.stats().blocks, 0u);
}

TEST_F(RadixTreeTest, AMatchOfARunsHeadDoesNotKeepItsTailFresh) {
  InsertReady(Chain(4, 4), 0, CpuRange(0, 4));
  InsertReady(Chain(4, 0, 2), 0, CpuRange(10, 4));
  tree_.Match(kNs, First(2, Chain(4, 4)));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), Cpu(3));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), Cpu(2));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu),
            Cpu(13));  // blocks 0 and 1 of the first chain were matched later
}

TEST_F(RadixTreeTest, PendingLeavesAreNotEvicted) {
  InsertReady(Chain(2), 0, CpuRange(0, 2));
  Insert(Chain(3), 2, CpuRange(2, 1));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), kNoSlot);  // the pending block keeps its parents
  tree_.Commit(Cpu(2));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), Cpu(2));
}

TEST_F(RadixTreeTest, APinKeepsTheWholePrefix) {
  InsertReady(Chain(100), 0, CpuRange(0, 100));
  const NamespaceId ns = tree_.Pin(Cpu(69));
  EXPECT_EQ(ns, kNs);
  EXPECT_TRUE(tree_.SubtreeInUse(Cpu(0)));
  EXPECT_FALSE(tree_.SubtreeInUse(Cpu(70)));
  uint32_t evicted = 0;
  while (tree_.EvictOne(Tier::kCpu).valid()) ++evicted;
  EXPECT_EQ(evicted, 30u);
  EXPECT_EQ(tree_.HitLength(kNs, Chain(100)), 70u);

  tree_.Pin(Cpu(69));
  tree_.Unpin(ns, Cpu(69));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), kNoSlot);  // pinned twice, released once
  tree_.Unpin(ns, Cpu(69));
  EXPECT_EQ(tree_.EvictOne(Tier::kCpu), Cpu(69));
}

TEST_F(RadixTreeTest, PinsSurviveSplits) {
  InsertReady(Chain(40, 40), 0, CpuRange(0, 40));
  tree_.Pin(Cpu(9));
  tree_.Pin(Cpu(39));
  InsertReady(Chain(40, 20, 1), 20, CpuRange(100, 20));
  EXPECT_TRUE(tree_.CheckInvariants().ok());
  EXPECT_EQ(tree_.stats().pinned, 2u);
  tree_.Unpin(kNs, Cpu(9));
  tree_.Unpin(kNs, Cpu(39));
  EXPECT_EQ(tree_.stats().pinned, 0u);
}

TEST_F(RadixTreeTest, NamespacesDoNotSeeEachOther) {
  tree_.AddNamespace(4);
  InsertReady(Chain(10), 0, CpuRange(0, 10));
  EXPECT_EQ(tree_.Match(4, Chain(10)).num_blocks, 0u);
  ASSERT_TRUE(tree_.InsertPending(4, Chain(10), 0, CpuRange(10, 10)).ok());
  for (SlotId slot : CpuRange(10, 10)) tree_.Commit(slot);
  EXPECT_EQ(tree_.Match(4, Chain(10)).last, Cpu(19));
  EXPECT_EQ(tree_.Match(kNs, Chain(10)).last, Cpu(9));
}

TEST_F(RadixTreeTest, ADroppedNamespaceIsGoneWithItsLeases) {
  tree_.AddNamespace(4);
  InsertReady(Chain(100), 0, CpuRange(0, 100));
  ASSERT_TRUE(tree_.InsertPending(4, Chain(5), 0, CpuRange(100, 5)).ok());
  tree_.Pin(Cpu(50));
  std::vector<SlotId> freed;
  tree_.DropNamespace(kNs, &freed);
  EXPECT_EQ(freed.size(), 100u);
  EXPECT_EQ(tree_.stats().blocks, 5u);
  EXPECT_EQ(tree_.stats().pinned, 0u);
  EXPECT_EQ(tree_.Match(kNs, Chain(100)).num_blocks, 0u);
  EXPECT_EQ(tree_.InsertPending(kNs, Chain(1), 0, CpuRange(0, 1)).code(),
            absl::StatusCode::kNotFound);
  EXPECT_FALSE(tree_.Commit(Cpu(50)));
  ASSERT_TRUE(
      tree_.InsertPending(4, Chain(6), 5, CpuRange(50, 1)).ok());  // the slot has a new owner
  tree_.Unpin(kNs, Cpu(50));
  tree_.DropNamespace(kNs, &freed);
  EXPECT_EQ(freed.size(), 100u);
}

TEST_F(RadixTreeTest, AncestorAndPathFollowTheParents) {
  InsertReady(Chain(150), 0, CpuRange(0, 150));
  EXPECT_EQ(tree_.Ancestor(Cpu(149), 0), Cpu(149));
  EXPECT_EQ(tree_.Ancestor(Cpu(149), 100), Cpu(49));
  EXPECT_EQ(tree_.Ancestor(Cpu(149), 149), Cpu(0));
  EXPECT_EQ(tree_.Ancestor(Cpu(149), 150), kNoSlot);
  EXPECT_EQ(tree_.HashOf(Cpu(77)), Chain(150)[77]);
  std::vector<SlotId> path;
  tree_.PathSlots(Cpu(140), 100, &path);
  EXPECT_EQ(path, CpuRange(41, 100));
}

TEST_F(RadixTreeTest, SlotsOfDifferentTiersAreDifferentBlocks) {
  const std::vector<SlotId> slots = {SlotId::Make(Tier::kCpu, 7), SlotId::Make(Tier::kSsd, 7),
                                     SlotId::Make(Tier::kRemote, 7)};
  InsertReady(Chain(3), 0, slots);
  std::vector<SlotId> matched(3);
  tree_.Match(kNs, Chain(3), matched);
  EXPECT_EQ(matched, slots);
}

TEST_F(RadixTreeTest, ABrokenChainGetsSomeAnswerAndDoesNoHarm) {
  InsertReady(Chain(300, 0, 1), 0, CpuRange(0, 300));
  InsertReady(Chain(300, 0, 2), 0, CpuRange(300, 300));
  // Pieces of both, cut where runs begin, where they end and in between.
  for (uint32_t cut : {1u, 63u, 64u, 65u, 100u, 128u, 255u}) {
    std::vector<BlockHash> mixed = Chain(300, 0, 1);
    const std::vector<BlockHash> other = Chain(300, 0, 2);
    std::copy(other.begin() + cut, other.end(), mixed.begin() + cut);
    std::vector<SlotId> slots(300);
    const PrefixMatch match = tree_.Match(kNs, mixed, slots);
    ASSERT_LE(match.num_blocks, 300u);
    // Whatever it is, it is one path from the root.
    std::vector<SlotId> path;
    tree_.PathSlots(match.last, match.num_blocks, &path);
    EXPECT_TRUE(std::equal(path.begin(), path.end(), slots.begin()));
    EXPECT_EQ(tree_.Ancestor(match.last, match.num_blocks), kNoSlot);
    EXPECT_LE(tree_.HitLength(kNs, mixed), 300u);
    EXPECT_LE(tree_.PresentLength(kNs, mixed), 300u);
    std::reverse(mixed.begin(), mixed.end());
    EXPECT_EQ(tree_.Match(kNs, mixed, slots).num_blocks, 0u);
    (void)tree_.InsertPending(kNs, mixed, 0, CpuRange(1000 * (cut + 1), 300));
    EXPECT_TRUE(tree_.CheckInvariants().ok()) << tree_.CheckInvariants();
  }
}

TEST_F(RadixTreeTest, ManyBlocksGrowAndShrinkTheTables) {
  // 20,000 one-block prompts: the head table doubles several times and each entry survives.
  std::vector<std::vector<BlockHash>> chains;
  for (uint32_t i = 0; i < 20000; ++i) {
    chains.push_back(ChainOf(std::vector<uint32_t>{i}));
    InsertReady(chains.back(), 0, CpuRange(i, 1));
  }
  for (uint32_t i = 0; i < 20000; ++i) ASSERT_EQ(tree_.Match(kNs, chains[i]).last, Cpu(i));
  for (uint32_t i = 0; i < 20000; ++i) ASSERT_EQ(tree_.EvictOne(Tier::kCpu), Cpu(i));
  EXPECT_EQ(tree_.stats().nodes, 0u);
}

TEST_F(RadixTreeTest, MemoryStaysWithinItsBound) {
  RadixTree tree({.max_slots = 1 << 20, .policy = MakeLruPolicy()});
  tree.AddNamespace(kNs);
  const std::vector<BlockHash> chain = Chain(1 << 20);
  ASSERT_TRUE(tree.InsertPending(kNs, chain, 0, CpuRange(0, 1 << 20)).ok());
  EXPECT_LE(tree.stats().bytes, uint64_t{96} << 20);
}

}  // namespace
}  // namespace flexkv::testing
