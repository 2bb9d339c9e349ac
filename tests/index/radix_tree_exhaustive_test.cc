// Every history of five operations over a tiny alphabet, tree against model.
#include <functional>

#include "tests/index/tree_model.h"

namespace flexkv::testing {
namespace {

// Two prompts that share their first two blocks, in a tree with room for five.
class Alphabet {
 public:
  Alphabet()
      : pair_(5),
        a_(ChainOf(std::vector<uint32_t>{1, 1, 1})),
        b_(ChainOf(std::vector<uint32_t>{1, 1, 2})) {
    pair_.AddNamespace(0);
  }

  static constexpr uint32_t kSize = 9;
  void Apply(uint32_t letter) {
    switch (letter) {
      case 0:
        pair_.Insert(0, a_, 3);
        break;
      case 1:
        pair_.Insert(0, b_, 3);
        break;
      case 2:
        pair_.Insert(0, a_, 1);
        break;
      case 3:
        CommitOne(/*deepest=*/false);
        break;
      case 4:
        CommitOne(/*deepest=*/true);
        break;
      case 5:
        CommitAll();
        break;
      case 6:
        TogglePin();
        break;
      case 7:
        pair_.Evict();
        break;
      case 8:
        EraseDeepest();
        break;
    }
    pair_.Check();
  }
  // Whatever happened: both chains match as the model says, and everything unpinned can be evicted
  // in order.
  void Finish() {
    pair_.Match(0, b_);
    pair_.Match(0, a_);
    while (pair_.Evict().valid()) {
    }
    pair_.Check();
  }

 private:
  void CommitOne(bool deepest) {
    const ModelBlock* chosen = nullptr;
    for (const auto& [key, block] : pair_.model().blocks) {
      if (block.arrived) continue;
      if (chosen == nullptr || (block.depth > chosen->depth) == deepest) chosen = &block;
    }
    if (chosen != nullptr) pair_.Commit(chosen->slot);
  }
  void CommitAll() {
    for (const auto& [key, block] : pair_.model().blocks) pair_.Commit(block.slot);
  }
  void TogglePin() {
    if (pinned_.valid()) {
      pair_.Unpin(0, pinned_);
      pinned_ = kNoSlot;
      return;
    }
    const PrefixMatch match = pair_.Match(0, b_);
    if (match.num_blocks == 0) return;
    pinned_ = match.last;
    pair_.Pin(pinned_);
  }
  void EraseDeepest() {
    const ModelBlock* chosen = nullptr;
    for (const auto& [key, block] : pair_.model().blocks) {
      if (chosen == nullptr || block.depth >= chosen->depth) chosen = &block;
    }
    if (chosen != nullptr) pair_.Erase(chosen->slot);
  }

  Pair pair_;
  std::vector<BlockHash> a_, b_;
  SlotId pinned_;
};

TEST(RadixTreeExhaustive, AllShortHistories) {
  constexpr uint32_t kLength = 5;
  uint32_t histories = 1;
  for (uint32_t i = 0; i < kLength; ++i) histories *= Alphabet::kSize;
  for (uint32_t history = 0; history < histories; ++history) {
    Alphabet alphabet;
    uint32_t rest = history;
    for (uint32_t i = 0; i < kLength; ++i, rest /= Alphabet::kSize)
      alphabet.Apply(rest % Alphabet::kSize);
    alphabet.Finish();
    ASSERT_FALSE(HasFailure()) << "history " << history << ", letters from the last digit on, base "
                               << Alphabet::kSize;
  }
}

}  // namespace
}  // namespace flexkv::testing
