// What the radix tree promises, said as plainly as possible: a map from block hash to block. And a
// driver that applies each operation to the tree and to the model and compares everything that can
// be seen.
#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <span>
#include <vector>

#include "flexkv/index/policies.h"
#include "flexkv/index/radix_tree.h"
#include "tests/index/model_policies.h"

namespace flexkv::testing {

inline uint64_t Mix(uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

enum class HashKind {
  kUniform,
  kSameTag,  // every hash has the same first word
  kSameKey,  // every hash of a namespace falls on the same cell of the head table
};

// Chained hashes of a token sequence, as an engine makes them.
inline std::vector<BlockHash> ChainOf(std::span<const uint32_t> tokens,
                                      HashKind kind = HashKind::kUniform) {
  std::vector<BlockHash> chain;
  uint64_t state = 1;
  for (uint32_t token : tokens) {
    state = Mix(state ^ Mix(token + 17));
    BlockHash hash;
    hash.words = {Mix(state), Mix(state + 1), Mix(state + 2), Mix(state + 3)};
    if (kind != HashKind::kUniform) hash.words[0] = 7;
    if (kind == HashKind::kSameKey) {  // see HeadTable::Key: the sum of words 1 and 2 rotated stays
                                       // the same
      const uint64_t r = hash.words[2];
      hash.words[1] = 0x1234567890ull - ((r << 21) | (r >> 43));
      hash.words[3] = 0;
    }
    chain.push_back(hash);
  }
  return chain;
}

struct ModelBlock {
  std::optional<BlockHash> parent;
  SlotId slot;
  uint32_t depth = 0;
  bool arrived = false;
  uint32_t pins = 0;
  Notes notes;
  std::set<std::array<uint64_t, 4>> children;
};

class Model {
 public:
  using Key = std::pair<NamespaceId, std::array<uint64_t, 4>>;

  std::map<Key, ModelBlock> blocks;
  std::map<uint32_t, Key> by_slot;
  std::set<NamespaceId> namespaces;
  std::unique_ptr<ModelPolicy> policy = std::make_unique<ModelLru>();

  ModelBlock* Find(NamespaceId ns, const BlockHash& hash) {
    auto it = blocks.find({ns, hash.words});
    return it == blocks.end() ? nullptr : &it->second;
  }
  ModelBlock& At(SlotId slot) { return blocks.at(by_slot.at(slot.value)); }
  NamespaceId NamespaceOf(SlotId slot) { return by_slot.at(slot.value).first; }

  bool Ready(NamespaceId ns, const ModelBlock& block) {
    if (!block.arrived) return false;
    return !block.parent || Ready(ns, *Find(ns, *block.parent));
  }
  uint64_t CountReady() {
    std::map<uint32_t, std::vector<Key>> by_depth;
    for (const auto& [key, block] : blocks) by_depth[block.depth].push_back(key);
    std::set<Key> ready;
    for (const auto& [depth, keys] : by_depth) {
      for (const Key& key : keys) {
        const ModelBlock& block = blocks.at(key);
        if (block.arrived && (!block.parent || ready.contains({key.first, block.parent->words})))
          ready.insert(key);
      }
    }
    return ready.size();
  }
  uint32_t PresentLength(NamespaceId ns, std::span<const BlockHash> chain) {
    uint32_t n = 0;
    while (n < chain.size() && Find(ns, chain[n]) != nullptr) ++n;
    return n;
  }
  uint32_t HitLength(NamespaceId ns, std::span<const BlockHash> chain) {
    uint32_t n = 0;
    while (n < chain.size()) {
      ModelBlock* block = Find(ns, chain[n]);
      if (block == nullptr || !block->arrived) break;
      ++n;
    }
    return n;
  }
  void Begin(const BlockAccess& access) {
    std::vector<Notes*> held;
    for (auto& [key, block] : blocks) held.push_back(&block.notes);
    policy->Access(access, held);
  }
  void Insert(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
              std::span<const SlotId> slots, const BlockAccess& access) {
    if (slots.empty()) return;
    Begin(access);
    for (uint32_t i = 0; i < slots.size(); ++i) {
      const uint32_t depth = first + i;
      ModelBlock block;
      block.slot = slots[i];
      block.depth = depth;
      block.notes.hash = chain[depth];
      block.notes.depth = depth;
      if (depth > 0) block.notes.parent = &Find(ns, chain[depth - 1])->notes;
      policy->Insert(&block.notes);
      if (depth > 0) {
        block.parent = chain[depth - 1];
        Find(ns, chain[depth - 1])->children.insert(chain[depth].words);
      }
      blocks.emplace(Key{ns, chain[depth].words}, block);
      by_slot.emplace(slots[i].value, Key{ns, chain[depth].words});
    }
  }
  // The subtree's slots, in any order.
  void Subtree(const Key& key, std::vector<uint32_t>* slots) {
    const ModelBlock& block = blocks.at(key);
    slots->push_back(block.slot.value);
    for (const auto& child : block.children) Subtree({key.first, child}, slots);
  }
  void RemoveSlot(uint32_t slot) {
    const Key key = by_slot.at(slot);
    const ModelBlock block = blocks.at(key);
    if (block.parent) {
      if (ModelBlock* parent = Find(key.first, *block.parent)) parent->children.erase(key.second);
    }
    blocks.erase(key);
    by_slot.erase(slot);
  }
  void Rename(SlotId from, SlotId to) {
    const Key key = by_slot.at(from.value);
    by_slot.erase(from.value);
    by_slot.emplace(to.value, key);
    blocks.at(key).slot = to;
  }
  // The unpinned ready leaves in that tier of which the policy would take one; empty: there are
  // none.
  std::vector<SlotId> Victims(Tier tier) {
    std::vector<Notes*> leaves;
    std::map<const Notes*, SlotId> slots;
    for (auto& [key, block] : blocks) {
      if (!block.children.empty() || block.pins > 0 || !Ready(key.first, block)) continue;
      if (block.slot.tier() != tier) continue;
      leaves.push_back(&block.notes);
      slots[&block.notes] = block.slot;
    }
    std::vector<SlotId> victims;
    if (leaves.empty()) return victims;
    for (const Notes* victim : policy->Victims(leaves)) victims.push_back(slots.at(victim));
    return victims;
  }
};

// Applies operations to tree and model alike. Slots are taken from a free list of its own.
class Pair {
 public:
  explicit Pair(uint32_t max_slots, const std::string& policy = "lru",
                EvictionObjective objective = EvictionObjective::kTokens)
      : tree_({.max_slots = max_slots, .policy = NewEvictionPolicy(policy, objective).value()}) {
    model_.policy = NewModelPolicy(policy, objective);
    for (uint32_t i = 0; i < max_slots; ++i) {
      free_.push_back(SlotId::Make(Tier::kCpu, max_slots - 1 - i));
      free_ssd_.push_back(SlotId::Make(Tier::kSsd, max_slots - 1 - i));
    }
  }

  RadixTree& tree() { return tree_; }
  Model& model() { return model_; }
  size_t free_slots() const { return free_.size(); }

  void AddNamespace(NamespaceId ns) {
    tree_.AddNamespace(ns);
    model_.namespaces.insert(ns);
  }
  void DropNamespace(NamespaceId ns) {
    std::vector<SlotId> freed;
    tree_.DropNamespace(ns, &freed);
    std::vector<uint32_t> expected;
    for (const auto& [slot, key] : model_.by_slot) {
      if (key.first == ns) expected.push_back(slot);
    }
    Freed(freed, expected);
    model_.namespaces.erase(ns);
  }
  // Up to `count` blocks behind what is present. Returns how many were inserted.
  uint32_t Insert(NamespaceId ns, std::span<const BlockHash> chain, uint32_t count,
                  const BlockAccess& access = {}) {
    const uint32_t first = tree_.PresentLength(ns, chain);
    EXPECT_EQ(first, model_.PresentLength(ns, chain));
    count = static_cast<uint32_t>(std::min<size_t>({count, chain.size() - first, free_.size()}));
    std::vector<SlotId> slots;
    for (uint32_t i = 0; i < count; ++i) slots.push_back(free_[free_.size() - 1 - i]);
    const absl::Status status = tree_.InsertPending(ns, chain, first, slots, access);
    if (!model_.namespaces.contains(ns)) {
      EXPECT_EQ(status.code(), absl::StatusCode::kNotFound);
      return 0;
    }
    EXPECT_TRUE(status.ok()) << status;
    free_.resize(free_.size() - count);
    model_.Insert(ns, chain, first, slots, access);
    return count;
  }
  void Commit(SlotId slot) {
    EXPECT_EQ(tree_.Commit(slot), model_.by_slot.contains(slot.value));
    if (model_.by_slot.contains(slot.value)) model_.At(slot).arrived = true;
  }
  PrefixMatch Match(NamespaceId ns, std::span<const BlockHash> chain,
                    const BlockAccess& access = {}) {
    const uint32_t expected = model_.HitLength(ns, chain);
    EXPECT_EQ(tree_.HitLength(ns, chain), expected);
    EXPECT_EQ(tree_.PresentLength(ns, chain), model_.PresentLength(ns, chain));
    std::vector<SlotId> slots(chain.size());
    EXPECT_EQ(tree_.Find(ns, chain).num_blocks, expected);
    const SlotId found = tree_.Find(ns, chain).last;
    const PrefixMatch match = tree_.Match(ns, chain, slots, access);
    EXPECT_EQ(match.last, found);
    model_.Begin(access);
    EXPECT_EQ(match.num_blocks, expected);
    for (uint32_t i = 0; i < expected; ++i) {
      ModelBlock* block = model_.Find(ns, chain[i]);
      EXPECT_EQ(slots[i], block->slot);
      if (i >= access.touched_before) model_.policy->Touch(&block->notes);
    }
    EXPECT_EQ(match.last, expected == 0 ? kNoSlot : model_.Find(ns, chain[expected - 1])->slot);
    if (expected > 0) CheckPath(match.last, {slots.data(), expected});
    return match;
  }
  SlotId Evict(Tier tier = Tier::kCpu) {
    const std::vector<SlotId> expected = model_.Victims(tier);
    const SlotId victim = tree_.EvictOne(tier);
    if (expected.empty()) {
      EXPECT_FALSE(victim.valid());
      return victim;
    }
    EXPECT_TRUE(std::find(expected.begin(), expected.end(), victim) != expected.end())
        << victim.value << " went instead of " << expected.front().value;
    if (!model_.by_slot.contains(victim.value)) return kNoSlot;
    model_.policy->Evict(model_.At(victim).notes);
    model_.RemoveSlot(victim.value);
    GiveBack(victim);
    return victim;
  }
  void NoteCapacity(uint64_t used, uint64_t total) {
    tree_.NoteCapacity(used, total);
    model_.policy->Capacity(used, total);
  }
  // To a free slot of the other tier, when there is one and the block may move.
  void Rename(SlotId from) {
    const bool down = from.tier() == Tier::kCpu;
    std::vector<SlotId>& free = down ? free_ssd_ : free_;
    EXPECT_EQ(tree_.Contains(from), model_.by_slot.contains(from.value));
    if (!tree_.Contains(from) || free.empty()) return;
    EXPECT_EQ(tree_.Pins(from), model_.At(from).pins);
    if (tree_.Pins(from) > 0) return;
    const SlotId to = free.back();
    free.pop_back();
    tree_.Rename(from, to);
    model_.Rename(from, to);
    GiveBack(from);
    EXPECT_FALSE(tree_.Contains(from));
    EXPECT_TRUE(tree_.Contains(to));
  }
  // Erases unless something in the subtree is pinned.
  void Erase(SlotId slot) {
    if (!model_.by_slot.contains(slot.value)) {
      std::vector<SlotId> freed;
      tree_.Erase(slot, &freed);
      EXPECT_TRUE(freed.empty());
      EXPECT_FALSE(tree_.Contains(slot));
      return;
    }
    std::vector<uint32_t> subtree;
    model_.Subtree(model_.by_slot.at(slot.value), &subtree);
    bool pinned = false;
    bool pending = false;
    for (uint32_t s : subtree) {
      const ModelBlock& block = model_.At(SlotId{s});
      pinned |= block.pins > 0;
      pending |= !model_.Ready(model_.NamespaceOf(SlotId{s}), block);
    }
    EXPECT_EQ(tree_.SubtreeInUse(slot), pinned || pending);
    if (pinned) return;
    std::vector<SlotId> freed;
    tree_.Erase(slot, &freed);
    Freed(freed, subtree);
  }
  void Pin(SlotId slot) {
    EXPECT_EQ(tree_.Pin(slot), model_.NamespaceOf(slot));
    ++model_.At(slot).pins;
  }
  void Unpin(NamespaceId ns, SlotId slot) {
    tree_.Unpin(ns, slot);
    if (model_.namespaces.contains(ns)) --model_.At(slot).pins;
  }
  void Check() {
    const absl::Status status = tree_.CheckInvariants();
    EXPECT_TRUE(status.ok()) << status;
    const RadixTreeStats stats = tree_.stats();
    EXPECT_EQ(stats.blocks, model_.blocks.size());
    uint64_t pins = 0;
    for (const auto& [key, block] : model_.blocks) pins += block.pins;
    EXPECT_EQ(stats.pinned, pins);
    EXPECT_EQ(stats.ready, model_.CountReady());
  }

 private:
  void Freed(const std::vector<SlotId>& freed, std::vector<uint32_t> expected) {
    std::vector<uint32_t> got;
    for (SlotId slot : freed) got.push_back(slot.value);
    std::sort(got.begin(), got.end());
    std::sort(expected.begin(), expected.end());
    EXPECT_EQ(got, expected);
    for (uint32_t slot : expected) {
      model_.policy->Drop(model_.At(SlotId{slot}).notes);
      model_.RemoveSlot(slot);
      GiveBack(SlotId{slot});
    }
  }
  void GiveBack(SlotId slot) { (slot.tier() == Tier::kCpu ? free_ : free_ssd_).push_back(slot); }
  void CheckPath(SlotId last, std::span<const SlotId> path) {
    const uint32_t length = static_cast<uint32_t>(path.size());
    EXPECT_EQ(tree_.Ancestor(last, 0), last);
    EXPECT_EQ(tree_.Ancestor(last, length / 2), path[length - 1 - length / 2]);
    EXPECT_EQ(tree_.Ancestor(last, length - 1), path[0]);
    EXPECT_EQ(tree_.Ancestor(last, length), kNoSlot);
    std::vector<SlotId> slots;
    tree_.PathSlots(last, length, &slots);
    EXPECT_TRUE(std::equal(slots.begin(), slots.end(), path.begin(), path.end()));
    tree_.PathSlots(last, (length + 1) / 2, &slots);
    EXPECT_TRUE(std::equal(slots.begin(), slots.end(), path.begin() + length / 2, path.end()));
  }

  RadixTree tree_;
  Model model_;
  std::vector<SlotId> free_, free_ssd_;
};

}  // namespace flexkv::testing
