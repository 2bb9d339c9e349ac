// The policy `hazard`: what goes is the leaf whose slot promises the fewest hits per request to come, as
// ReuseModel has learned it from this very traffic (reuse_model.h has the formula and its sources).
//
// Blocks are told apart by what was seen of them (their *kind*), and nothing is assumed about which
// kind is good:
//   never used again yet:  whether they continue a conversation, and how much text came with them
//   used again:            how often (once, two or three times, more), and after what time last
// and by the hint of the request that used them last: none; goes on; ends; or lies in front of an
// end (blocks in earlier runs than a request's last one may belong to others too). A request
// continues a conversation when its match ends where an earlier request ended.
//
// Kind and hint make a *cell*. Each cell is a queue in order of last use; the tails are compared by
// value at their age. So with one cell, or while nothing is known, this is LRU.
//
// What was evicted is remembered for a while (8 bytes each, as many as the cache has blocks, at
// least 32,768): otherwise a small cache would never learn of reuse beyond its reach. By the same
// memory the policy sees what LRU would have done (LruShadow): where it has lost 0.3 % of the
// blocks asked for lately, it is LRU until that is forgotten.
//
// Word: time of last use (52 bits, 8,192 a request) | cell (6) | uses since it came (3) | turns (2) | a
// request ended here (1).
#include <algorithm>
#include <memory>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/lru_shadow.h"
#include "flexkv/index/reuse_model.h"
#include "flexkv/index/spell_ghosts.h"

namespace flexkv {
namespace {

constexpr uint64_t kRequestStep = 1 << 13;  // of the word's unit
constexpr int kTickShift = 16;    // the word's unit to ticks: eight requests
constexpr int kMomentShift = 12;  // and to moments, 16 a tick

// Kinds of blocks: never used again by turns and by how much text came with them, then the others.
constexpr uint32_t kSizes = 4;
constexpr uint32_t kNewKinds = 2 * kSizes;
constexpr uint32_t kUsedKinds = 9;
constexpr uint32_t kKinds = kNewKinds + kUsedKinds;
constexpr uint32_t kMaxUses = 7;
constexpr uint32_t kMaxTurns = 2;

enum HintState : uint32_t { kNoHint, kEnds, kGoesOn, kBeforeEnd };

HintState StateOf(const RequestHint& hint) {
  if (!hint.known()) return kNoHint;
  if (hint.continue_p < 1.0f / 3) return kEnds;
  return hint.continue_p > 2.0f / 3 ? kGoesOn : kNoHint;
}

// Under 1k, 4k, 16k tokens, and more.
uint32_t SizeOf(uint64_t tokens) {
  return tokens < 1024 ? 0 : tokens < 4096 ? 1 : tokens < 16384 ? 2 : 3;
}

uint32_t KindOfNew(uint32_t turns, uint64_t tokens) {
  return std::min(turns, 1u) * kSizes + SizeOf(tokens);
}

uint32_t KindOfUsed(uint32_t uses, uint64_t gap) {
  const uint32_t often = uses == 1 ? 0 : uses < 4 ? 1 : 2;
  return kNewKinds + often * 3 + (gap < 8 ? 0 : gap < 64 ? 1 : 2);
}

// Only what is used again can lie before an end.
constexpr uint32_t CellOf(HintState hint, uint32_t kind) {
  return hint == kBeforeEnd ? 3 * kKinds + (kind - kNewKinds) : hint * kKinds + kind;
}

uint32_t KindOf(uint32_t cell) {
  return cell < 3 * kKinds ? cell % kKinds : cell - 3 * kKinds + kNewKinds;
}

PolicyWord Pack(uint64_t time, const Spell& spell) {
  return time << 12 | uint64_t{spell.cell} << 6 | uint64_t{spell.uses} << 3 |
         uint64_t{spell.turns} << 1 | (spell.ends_request ? 1 : 0);
}

Spell Unpack(PolicyWord word) {
  return {.start = word >> 12 >> kMomentShift,
          .cell = static_cast<uint32_t>(word >> 6 & 63),
          .uses = static_cast<uint32_t>(word >> 3 & 7),
          .turns = static_cast<uint32_t>(word >> 1 & 3),
          .ends_request = (word & 1) != 0};
}

class HazardPolicy final : public EvictionPolicy {
 public:
  explicit HazardPolicy(EvictionObjective objective)
      : weighs_depth_(objective == EvictionObjective::kCompute) {
    for (uint32_t cell = 0; cell < ReuseModel::kCells; ++cell) {
      model_.Describe(cell, cell / kKinds, KindOf(cell));
    }
  }

  void BeginAccess(const BlockAccess& access) override {
    // Strictly rising, so that equal words were used by one access. Age is counted in requests, not
    // seconds: the same requests get the same answers however fast they come, replayed or live,
    // and a quiet night ages nothing.
    time_ += access.new_request ? kRequestStep : 1;
    model_.Advance(time_ >> kTickShift);
    shadow_.Use(used_);  // by the access before: what it found must not depend on its own order
    used_ = 0;
    shadow_.Advance(time_ >> kMomentShift);
    hint_ = StateOf(access.hint);
    chain_blocks_ = access.chain_blocks;
    inserting_ = false;
    if (access.tokens_per_block != 0) tokens_per_block_ = access.tokens_per_block;
    if (!access.new_request) return;
    ++requests_;
    request_blocks_ +=
        (chain_blocks_ - request_blocks_) / static_cast<double>(std::min(requests_, 100u));
    if (requests_ % kRefitRequests == 0) model_.Refit(request_blocks_, kRefitRequests);
    asked_ = asked_ * kForgetting + chain_blocks_;
    regret_ *= kForgetting;
    const double bearable = asked_ * (as_lru_ ? kRegretToReturn : kRegretToStop);
    as_lru_ = regret_ > bearable + kPatience * request_blocks_;
  }

  void OnTouch(std::span<PolicyWord> words, uint32_t first_depth) override {
    const bool at_end = first_depth + words.size() == chain_blocks_;
    const HintState hint = hint_ == kEnds && !at_end ? kBeforeEnd : hint_;
    for (size_t i = 0; i < words.size();) {  // equal words, one step
      size_t end = i + 1;
      while (end < words.size() && words[end] == words[i]) ++end;
      Spell spell = Unpack(words[i]);
      const auto blocks = static_cast<uint32_t>(end - i);
      model_.Reuse(spell.cell, TickOf(spell), blocks);
      if (!shadow_.Holds(spell.start)) regret_ -= blocks;
      shadow_.Forget(spell.start, blocks);
      used_ += blocks;
      Continue(&spell, hint);
      model_.Join(spell.cell, blocks);
      std::fill(words.begin() + static_cast<ptrdiff_t>(i),
                words.begin() + static_cast<ptrdiff_t>(end), Pack(time_, spell));
      i = end;
    }
    if (at_end) words.back() |= 1;
  }

  void OnInsert(const InsertedRun& run) override {
    if (!inserting_) BeginInsert(run);
    for (const BlockHash& hash : run.hashes) ghosts_.Prefetch(hash);
    const Spell fresh{.cell = fresh_cell_, .turns = fresh_turns_};
    uint32_t fresh_blocks = 0;
    for (size_t i = 0; i < run.words.size(); ++i) {
      Spell spell = fresh;
      if (ghosts_.Take(run.hashes[i], moment(), &spell)) {
        model_.Reuse(spell.cell, TickOf(spell), 1);
        if (shadow_.Holds(spell.start)) ++regret_;
        shadow_.Forget(spell.start, 1);
        Continue(&spell, hint_);
        spell.ends_request = false;
        model_.Join(spell.cell, 1);
      } else {
        ++fresh_blocks;
      }
      run.words[i] = Pack(time_, spell);
    }
    used_ += static_cast<uint32_t>(run.words.size());
    if (fresh_blocks > 0) model_.Join(fresh_cell_, fresh_blocks);
    if (run.first_depth + run.words.size() == chain_blocks_) run.words.back() |= 1;
  }

  void OnEvict(PolicyWord word, const BlockHash& hash, uint32_t /*depth*/) override {
    Spell forgotten;
    if (ghosts_.Add(hash, moment(), Unpack(word), &forgotten)) {
      Leave(forgotten);
    }
  }
  void OnDrop(std::span<const PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord word : words) {
      Leave(Unpack(word));
    }
  }
  void OnCapacity(uint64_t /*blocks_used*/, uint64_t blocks_total) override {
    shadow_.SetCapacity(blocks_total);
    if (ghosts_.room() >= blocks_total && ghosts_.room() <= 4 * blocks_total) return;
    ghosts_.Fit(
        blocks_total, [this](const Spell& spell) { Leave(spell); }, moment());
  }

  // Priority stays what Score is, the last use: which blocks on SSD keep a copy in memory is decided
  // by recency. By value, which falls with age, a copy just used looked no better than before.
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word >> 12; }
  uint32_t num_queues() const override { return ReuseModel::kCells; }
  uint32_t QueueOf(PolicyWord word, uint32_t /*depth*/) const override {
    return static_cast<uint32_t>(word >> 6 & 63);
  }
  size_t PickQueue(std::span<const QueueTop> tops) const override {
    if (as_lru_) return EvictionPolicy::PickQueue(tops);
    const size_t oldest = EvictionPolicy::PickQueue(tops);
    size_t lowest = oldest;
    double least = kClearly * Value(tops[oldest].word, tops[oldest].depth);
    for (size_t i = 0; i < tops.size(); ++i) {
      const double value = Value(tops[i].word, tops[i].depth);
      if (value < least) {
        least = value;
        lowest = i;
      }
    }
    return lowest;
  }
  uint64_t bytes() const override { return model_.bytes() + shadow_.bytes() + ghosts_.bytes(); }
  std::string_view name() const override { return "hazard"; }

 private:
  static constexpr uint32_t kRefitRequests = 64;
  // The oldest leaf goes unless another is worth clearly less: estimates have errors, and to choose
  // by them costs hits where nothing is to be gained.
  static constexpr double kClearly = 0.7;
  // Of all blocks asked for, each request counting kForgetting times the one after it.
  static constexpr double kRegretToStop = 0.001, kRegretToReturn = 0.00025;
  static constexpr double kPatience = 8;  // requests' blocks
  static constexpr double kForgetting = 1 - 1.0 / 2048;
  // As in gdsf: where attention costs a model of 8 billion parameters what its matrices do.
  static constexpr double kEqualTokens = 32768;

  double Value(PolicyWord word, uint32_t depth) const {
    const double age = static_cast<double>(time_ - (word >> 12)) * (1.0 / (1 << kTickShift));
    const double value = model_.Value(static_cast<uint32_t>(word >> 6 & 63), age);
    if (!weighs_depth_) return value;
    return value * (1 + depth * (tokens_per_block_ / kEqualTokens));
  }

  void Leave(const Spell& spell) {
    model_.Leave(spell.cell, TickOf(spell), 1);
    shadow_.Forget(spell.start, 1);
  }

  uint64_t moment() const { return time_ >> kMomentShift; }
  static uint64_t TickOf(const Spell& spell) { return spell.start >> (kTickShift - kMomentShift); }

  // The spell has ended with a use; the next one begins.
  void Continue(Spell* spell, HintState hint) const {
    spell->uses = std::min(spell->uses + 1, kMaxUses);
    spell->turns = std::min(spell->turns + 1, kMaxTurns);
    spell->cell = CellOf(hint, KindOfUsed(spell->uses, model_.now() - TickOf(*spell)));
    spell->start = moment();
  }

  // What the blocks of this access have in common, from where they are put.
  void BeginInsert(const InsertedRun& run) {
    inserting_ = true;
    const uint32_t brought = chain_blocks_ > run.first_depth ? chain_blocks_ - run.first_depth : 0;
    fresh_turns_ = 0;
    if (run.parent != nullptr) {
      const Spell parent = Unpack(*run.parent);
      if (parent.uses == 0) {  // not matched, so the same request's: it comes piece by piece
        fresh_turns_ = parent.turns;
        fresh_cell_ = CellOf(hint_, KindOf(parent.cell));
        return;
      }
      if (parent.ends_request) fresh_turns_ = parent.turns;
    }
    fresh_cell_ =
        CellOf(hint_, KindOfNew(fresh_turns_, static_cast<uint64_t>(brought * tokens_per_block_)));
  }

  static_assert(CellOf(kBeforeEnd, kKinds - 1) + 1 == ReuseModel::kCells);

  const bool weighs_depth_;
  uint64_t time_ = 0;
  HintState hint_ = kNoHint;
  uint32_t chain_blocks_ = 0;
  double tokens_per_block_ = 16;
  bool inserting_ = false;  // this access has inserted a run already
  uint32_t fresh_cell_ = 0, fresh_turns_ = 0;
  uint32_t requests_ = 0;
  double request_blocks_ = 0;
  double asked_ = 0, regret_ = 0;  // blocks; regret: lost against LRU, less what was gained
  bool as_lru_ = false;
  uint32_t used_ = 0;  // blocks, by this access
  LruShadow shadow_;
  ReuseModel model_;
  SpellGhosts ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeHazardPolicy(EvictionObjective objective) {
  return std::make_unique<HazardPolicy>(objective);
}

}  // namespace flexkv
