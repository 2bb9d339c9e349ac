// The eviction policies once more, said as plainly as possible: every block carries notes, a choice
// looks at all leaves, what was evicted is remembered in lists. For comparison with the real ones.
#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/lru_shadow.h"
#include "flexkv/index/radix_tree.h"
#include "flexkv/index/reuse_model.h"

namespace flexkv::testing {

// What policies note about a block.
struct Notes {
  BlockHash hash;
  uint32_t depth = 0;
  uint64_t uses = 0;
  uint64_t order = 0;  // of its last use or, in a FIFO, of its arrival
  uint32_t queue = 0;
  std::vector<double> used_at;  // every use
  double value = 0;
  bool condemned = false;
  uint32_t turns = 0;
  bool ends_request = false;
  const Notes* parent = nullptr;  // while it is inserted
};

class ModelPolicy {
 public:
  virtual ~ModelPolicy() = default;
  // Begins an access. `held`: every block in the tree.
  virtual void Access(const BlockAccess& /*access*/, const std::vector<Notes*>& /*held*/) {
    ++sequence_;
  }
  virtual void Insert(Notes* block) = 0;
  virtual void Touch(Notes* block) = 0;
  // Which of the leaves (there are some) go next: several where rounding decides.
  virtual std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) = 0;
  virtual void Evict(const Notes& /*block*/) {}
  virtual void Drop(const Notes& /*block*/) {}
  virtual void Capacity(uint64_t /*used*/, uint64_t /*total*/) {}

 protected:
  template <typename Value>
  static std::vector<Notes*> Least(const std::vector<Notes*>& leaves, Value value,
                                   double tolerance = 0) {
    double least = INFINITY;
    for (const Notes* leaf : leaves) least = std::min(least, static_cast<double>(value(*leaf)));
    std::vector<Notes*> found;
    for (Notes* leaf : leaves) {
      if (static_cast<double>(value(*leaf)) <= least + tolerance) found.push_back(leaf);
    }
    return found;
  }
  static std::vector<Notes*> Oldest(const std::vector<Notes*>& leaves) {
    return Least(leaves, [](const Notes& leaf) { return leaf.order; });
  }
  static std::vector<Notes*> InQueue(const std::vector<Notes*>& leaves, uint32_t queue) {
    std::vector<Notes*> found;
    for (Notes* leaf : leaves) {
      if (leaf->queue == queue) found.push_back(leaf);
    }
    return found;
  }

  uint64_t sequence_ = 0;
};

class ModelLru : public ModelPolicy {
 public:
  void Insert(Notes* block) override { block->order = sequence_; }
  void Touch(Notes* block) override { block->order = sequence_; }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override { return Oldest(leaves); }
};

class ModelLfu : public ModelLru {
 public:
  void Insert(Notes* block) override { Touch(block); }
  void Touch(Notes* block) override {
    ModelLru::Touch(block);
    ++block->uses;
  }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    return Oldest(Least(leaves, [](const Notes& leaf) { return leaf.uses; }));
  }
};

// The sum over all uses, term by term.
class ModelLrfu : public ModelPolicy {
 public:
  void Access(const BlockAccess& access, const std::vector<Notes*>& held) override {
    ModelPolicy::Access(access, held);
    const double cacheful =
        static_cast<double>(std::max({uint64_t{held.size()}, capacity_, uint64_t{64}}));
    now_ += static_cast<double>(entered_) / cacheful + 1e-6;
    entered_ = 0;
  }
  void Insert(Notes* block) override {
    block->used_at = {now_};
    ++entered_;
  }
  void Touch(Notes* block) override { block->used_at.push_back(now_); }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    return Least(
        leaves,
        [this](const Notes& leaf) {
          double sum = 0;
          for (double at : leaf.used_at) sum += std::exp2(at - now_);
          return std::log2(sum);
        },
        1e-9);
  }
  void Capacity(uint64_t /*used*/, uint64_t total) override { capacity_ = total; }

 private:
  double now_ = 0;
  uint64_t entered_ = 0;
  uint64_t capacity_ = 0;
};

// What two queues and lists of evicted hashes have in common.
class ModelTwoQueues : public ModelPolicy {
 public:
  void Drop(const Notes& block) override { --blocks_[block.queue]; }
  void Capacity(uint64_t /*used*/, uint64_t total) override { capacity_ = total; }

 protected:
  using Ghosts = std::list<std::array<uint64_t, 4>>;
  uint64_t Capacity() const { return std::max(capacity_, blocks_[0] + blocks_[1]); }
  bool TakeGhost(uint32_t list, const BlockHash& hash) {
    return std::erase(ghosts_[list], hash.words) > 0;
  }
  void AddGhost(uint32_t list, const BlockHash& hash) {
    TakeGhost(0, hash);
    TakeGhost(1, hash);
    ghosts_[list].push_back(hash.words);
  }
  void TrimGhosts(uint32_t list, uint64_t limit) {
    while (ghosts_[list].size() > limit) ghosts_[list].pop_front();
  }

  uint64_t capacity_ = 0;
  std::array<uint64_t, 2> blocks_{};
  std::array<Ghosts, 2> ghosts_;
};

class ModelS3Fifo : public ModelTwoQueues {
 public:
  void Insert(Notes* block) override {
    block->queue = TakeGhost(0, block->hash) ? 1 : 0;
    block->order = sequence_;
    ++blocks_[block->queue];
  }
  void Touch(Notes* block) override { block->uses = std::min<uint64_t>(block->uses + 1, 3); }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    for (int reprieves = 0;; ++reprieves) {
      uint32_t queue = 10 * blocks_[0] >= blocks_[0] + blocks_[1] ? 0 : 1;
      if (InQueue(leaves, queue).empty()) queue = 1 - queue;
      Notes* first = Oldest(InQueue(leaves, queue)).front();
      const bool stays = first->uses >= (queue == 0 ? 2u : 1u);
      if (!stays || reprieves == EvictionPolicy::kMaxReprieves) return {first};
      --blocks_[queue];
      ++blocks_[1];
      first->queue = 1;
      first->uses = queue == 0 ? 0 : first->uses - 1;
      first->order = ++sequence_;
    }
  }
  void Evict(const Notes& block) override {
    if (block.queue == 0) {
      AddGhost(0, block.hash);
      TrimGhosts(0, Capacity() - Capacity() / 10);
    }
    --blocks_[block.queue];
  }
};

class ModelArc : public ModelTwoQueues {
 public:
  void Insert(Notes* block) override {
    const double b1 = static_cast<double>(ghosts_[0].size());
    const double b2 = static_cast<double>(ghosts_[1].size());
    if (TakeGhost(0, block->hash)) {
      target_ =
          std::min(target_ + std::max(1.0, std::floor(b2 / b1)), static_cast<double>(Capacity()));
      block->queue = 1;
    } else if (TakeGhost(1, block->hash)) {
      target_ = std::max(target_ - std::max(1.0, std::floor(b1 / b2)), 0.0);
      block->queue = 1;
    } else {
      block->queue = 0;
    }
    block->order = sequence_;
    ++blocks_[block->queue];
  }
  void Touch(Notes* block) override {
    --blocks_[block->queue];
    ++blocks_[1];
    block->queue = 1;
    block->order = sequence_;
  }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    const uint32_t queue = static_cast<double>(blocks_[0]) > target_ ? 0 : 1;
    const std::vector<Notes*> wanted = InQueue(leaves, queue);
    return Oldest(wanted.empty() ? leaves : wanted);
  }
  void Evict(const Notes& block) override {
    const uint64_t capacity = Capacity();
    --blocks_[block.queue];
    AddGhost(block.queue, block.hash);
    TrimGhosts(0, capacity - blocks_[0]);
    const uint64_t others = blocks_[0] + blocks_[1] + ghosts_[0].size();
    TrimGhosts(1, 2 * capacity - others);
  }

 private:
  double target_ = 0;
};

class ModelGdsf : public ModelPolicy {
 public:
  explicit ModelGdsf(EvictionObjective objective) : objective_(objective) {}
  void Access(const BlockAccess& access, const std::vector<Notes*>& /*held*/) override {
    inflation_ += std::exp2(-20);
    tokens_ = access.tokens_per_block == 0 ? 16 : access.tokens_per_block;
  }
  void Insert(Notes* block) override { Touch(block); }
  void Touch(Notes* block) override {
    block->uses = std::min<uint64_t>(block->uses + 1, 255);
    const double extra =
        objective_ == EvictionObjective::kCompute ? block->depth * tokens_ / 32768 : 0;
    block->value = inflation_ + static_cast<double>(block->uses) * (1 + extra);
  }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    return Least(
        leaves, [](const Notes& leaf) { return leaf.value; }, 1e-9);
  }
  void Evict(const Notes& block) override { inflation_ = std::max(inflation_, block.value); }

 private:
  EvictionObjective objective_;
  double inflation_ = 0;
  double tokens_ = 0;
};

class ModelA2cr : public ModelPolicy {
 public:
  void Access(const BlockAccess& access, const std::vector<Notes*>& held) override {
    now_ = access.now >> 16;
    if (access.now < next_cleanup_) return;
    next_cleanup_ = access.now + 60 * kNsPerSecond;
    for (Notes* block : held) block->condemned = Score(*block) < threshold_;
  }
  void Insert(Notes* block) override { Touch(block); }
  void Touch(Notes* block) override {
    ++block->uses;
    block->order = now_;
    block->condemned = false;
  }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    std::vector<Notes*> condemned;
    for (Notes* leaf : leaves) {
      if (leaf->condemned) condemned.push_back(leaf);
    }
    if (!condemned.empty()) return Oldest(condemned);
    return Least(
        leaves, [this](const Notes& leaf) { return Score(leaf); }, 1e-12);
  }
  void Capacity(uint64_t used, uint64_t total) override {
    const double share = total == 0 ? 0 : static_cast<double>(used) / static_cast<double>(total);
    decay_ = share > 0.9 ? 0.1 : share > 0.7 ? 0.05 : 0.02;
    threshold_ = share > 0.9 ? 0.4 : share > 0.7 ? 0.3 : 0.2;
  }

 private:
  double Score(const Notes& block) const {
    const double attention = 1 / (1 + block.depth / 16.0);
    const double frequency = 1 - 1 / static_cast<double>(block.uses);
    // Known in 32 steps only.
    const double step = 0.7 / 32;
    const double fixed =
        (std::min(std::floor((0.4 * attention + 0.3 * frequency) / step), 31.0) + 0.5) * step;
    const double seconds = static_cast<double>(now_ - block.order) * 65536 / 1e9;
    return fixed + 0.3 * std::exp(-decay_ * seconds);
  }

  uint64_t now_ = 0;
  TimeNs next_cleanup_ = 60 * kNsPerSecond;
  double decay_ = 0.02, threshold_ = 0.2;
};

// The bookkeeping of `hazard`, with what is evicted remembered for ever. Values come from a
// ReuseModel and regret from an LruShadow, which have naive twins of their own
// (reuse_model_test.cc). Requests here carry no hint that they end: that depends on where runs are
// split.
class ModelHazard : public ModelPolicy {
 public:
  explicit ModelHazard(EvictionObjective objective) : objective_(objective) {
    for (uint32_t cell = 0; cell < ReuseModel::kCells; ++cell) {
      reuse_.Describe(cell, cell / 17, cell < 51 ? cell % 17 : cell - 51 + 8);
    }
  }
  void Access(const BlockAccess& access, const std::vector<Notes*>& /*held*/) override {
    time_ += access.new_request ? 8192 : 1;
    reuse_.Advance(time_ >> 16);
    lru_.Use(used_);
    used_ = 0;
    lru_.Advance(time_ >> 12);
    chain_ = access.chain_blocks;
    first_ = true;
    hint_ = access.hint.continue_p > 2.0f / 3 ? 2 : 0;
    if (access.tokens_per_block != 0) tokens_ = access.tokens_per_block;
    if (!access.new_request) return;
    ++requests_;
    mean_ += (chain_ - mean_) / std::min(requests_, 100.0);
    if (static_cast<uint64_t>(requests_) % 64 == 0) reuse_.Refit(mean_, 64);
    asked_ = asked_ * (1 - 1.0 / 2048) + chain_;
    regret_ *= 1 - 1.0 / 2048;
    as_lru_ = regret_ > asked_ * (as_lru_ ? 0.00025 : 0.001) + 8 * mean_;
  }
  void Insert(Notes* block) override {
    if (first_) Begin(*block);
    first_ = false;
    if (auto it = ghosts_.find(block->hash.words); it != ghosts_.end()) {
      block->uses = it->second.uses;
      block->turns = it->second.turns;
      block->queue = it->second.queue;
      block->order = it->second.order;
      ghosts_.erase(it);
      if (lru_.Holds(block->order >> 12)) ++regret_;
      Use(block);
      block->ends_request = false;
    } else {
      block->turns = turns_;
      block->queue = hint_ * 17 + kind_;
      reuse_.Join(block->queue, 1);
    }
    block->order = time_;
    ++used_;
    if (block->depth + 1 == chain_) block->ends_request = true;
  }
  void Touch(Notes* block) override {
    if (!lru_.Holds(block->order >> 12)) --regret_;
    Use(block);
    ++used_;
    if (block->depth + 1 == chain_) block->ends_request = true;
  }
  std::vector<Notes*> Victims(const std::vector<Notes*>& leaves) override {
    if (as_lru_) return Oldest(leaves);
    std::vector<Notes*> tails;
    for (uint32_t cell = 0; cell < ReuseModel::kCells; ++cell) {
      const std::vector<Notes*> members = InQueue(leaves, cell);
      if (!members.empty()) tails.push_back(Oldest(members).front());
    }
    const Notes* oldest = Oldest(tails).front();
    return Least(
        tails,
        [&](const Notes& leaf) { return Value(leaf) * (leaf.order == oldest->order ? 0.7 : 1); },
        1e-15);
  }
  void Evict(const Notes& block) override {
    if (auto it = ghosts_.find(block.hash.words); it != ghosts_.end()) Drop(it->second);
    ghosts_[block.hash.words] = block;
  }
  void Drop(const Notes& block) override {
    reuse_.Leave(block.queue, block.order >> 16, 1);
    lru_.Forget(block.order >> 12, 1);
  }
  void Capacity(uint64_t /*used*/, uint64_t total) override { lru_.SetCapacity(total); }

 private:
  double Value(const Notes& block) const {
    const double depth = objective_ == EvictionObjective::kCompute ? block.depth : 0;
    const double age = static_cast<double>(time_ - block.order) / 65536;
    return reuse_.Value(block.queue, age) * (1 + depth * tokens_ / 32768);
  }
  void Use(Notes* block) {
    const uint64_t start = block->order >> 16;
    reuse_.Reuse(block->queue, start, 1);
    lru_.Forget(block->order >> 12, 1);
    const uint64_t gap = reuse_.now() - start;
    block->uses = std::min<uint64_t>(block->uses + 1, 7);
    block->turns = std::min(block->turns + 1, 2u);
    const uint32_t often = block->uses == 1 ? 0 : block->uses < 4 ? 1 : 2;
    block->queue = hint_ * 17 + 8 + 3 * often + (gap < 8 ? 0 : gap < 64 ? 1 : 2);
    block->order = time_;
    reuse_.Join(block->queue, 1);
  }
  void Begin(const Notes& block) {
    const uint32_t brought = chain_ > block.depth ? chain_ - block.depth : 0;
    turns_ = 0;
    if (block.parent != nullptr && block.parent->uses == 0) {
      turns_ = block.parent->turns;
      kind_ = KindOf(block.parent->queue);
      return;
    }
    if (block.parent != nullptr && block.parent->ends_request) turns_ = block.parent->turns;
    const double text = brought * tokens_;
    kind_ = std::min(turns_, 1u) * 4 + (text < 1024 ? 0 : text < 4096 ? 1 : text < 16384 ? 2 : 3);
  }
  static uint32_t KindOf(uint32_t cell) { return cell < 51 ? cell % 17 : cell - 51 + 8; }

  EvictionObjective objective_;
  ReuseModel reuse_;
  LruShadow lru_;
  std::map<std::array<uint64_t, 4>, Notes> ghosts_;
  uint64_t time_ = 0;
  uint32_t chain_ = 0, hint_ = 0, turns_ = 0, kind_ = 0, used_ = 0;
  bool first_ = true, as_lru_ = false;
  double tokens_ = 16, requests_ = 0, mean_ = 0, asked_ = 0, regret_ = 0;
};

// nullptr: none for that name.
inline std::unique_ptr<ModelPolicy> NewModelPolicy(const std::string& name,
                                                   EvictionObjective objective) {
  if (name == "lru") return std::make_unique<ModelLru>();
  if (name == "lfu") return std::make_unique<ModelLfu>();
  if (name == "lrfu") return std::make_unique<ModelLrfu>();
  if (name == "s3fifo") return std::make_unique<ModelS3Fifo>();
  if (name == "arc") return std::make_unique<ModelArc>();
  if (name == "gdsf") return std::make_unique<ModelGdsf>(objective);
  if (name == "a2cr") return std::make_unique<ModelA2cr>();
  if (name == "hazard") return std::make_unique<ModelHazard>(objective);
  return nullptr;
}

}  // namespace flexkv::testing
