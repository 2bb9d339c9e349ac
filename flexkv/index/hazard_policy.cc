// The policy `hazard`: what goes is the leaf whose slot promises the fewest hits per second, as
// ReuseModel has learned it from this very traffic (reuse_model.h has the formula and its sources).
//
// Blocks are told apart by what was seen of them (their *cell*), and nothing is assumed about which
// cell is good:
//   never used again yet:  how long the conversation is that they continue (none, one turn, more),
//                          and whether the request brought little new text or much
//   used again:            how often (once, twice or thrice, more), and whether within 16 s
//   hint of the request:   none; goes on; ends (only the blocks at its own end: what lies in front
//                          may belong to others too); lies in front of such an end
// A request continues a conversation when its match ends where an earlier request ended. Each cell
// is a queue in order of last use; the tails are compared by value at their age. So with one cell,
// or while nothing is known, this is LRU.
//
// What was evicted is remembered for a while (8 bytes each, as many as the cache has blocks, at
// least 32,768): otherwise a small cache would never learn of reuse beyond its reach.
//
// Word: time of last use (45 bits of 16 us) | cell (6) | uses since it came (3) | turns (2) | a
// request ended here (1).
#include <algorithm>
#include <memory>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/reuse_model.h"
#include "flexkv/index/spell_ghosts.h"

namespace flexkv {
namespace {

constexpr int kTimeShift = 14;  // nanoseconds to the word's unit
constexpr int kTickShift = 16;  // the word's unit to ticks: 2^30 ns

constexpr uint32_t kBaseCells = 12;
constexpr uint64_t kQuickTicks = 16;
constexpr uint32_t kMaxUses = 7;
constexpr uint32_t kMaxTurns = 2;

enum HintState : uint32_t { kNoHint, kEnds, kGoesOn, kBeforeEnd };

HintState StateOf(const RequestHint& hint) {
  if (!hint.known()) return kNoHint;
  if (hint.continue_p < 1.0f / 3) return kEnds;
  return hint.continue_p > 2.0f / 3 ? kGoesOn : kNoHint;
}

uint32_t CellOfNew(HintState hint, uint32_t turns, bool brings_little) {
  return hint * kBaseCells + std::min(turns, kMaxTurns) * 2 + (brings_little ? 1 : 0);
}

uint32_t CellOfUsed(HintState hint, uint32_t uses, bool quickly) {
  const uint32_t often = uses == 1 ? 0 : uses < 4 ? 1 : 2;
  return hint * kBaseCells + 6 + often * 2 + (quickly ? 0 : 1);
}

PolicyWord Pack(uint64_t time, const Spell& spell) {
  return time << 12 | uint64_t{spell.cell} << 6 | uint64_t{spell.uses} << 3 |
         uint64_t{spell.turns} << 1 | (spell.ends_request ? 1 : 0);
}

Spell Unpack(PolicyWord word) {
  return {.start = word >> 12 >> kTickShift,
          .cell = static_cast<uint32_t>(word >> 6 & 63),
          .uses = static_cast<uint32_t>(word >> 3 & 7),
          .turns = static_cast<uint32_t>(word >> 1 & 3),
          .ends_request = (word & 1) != 0};
}

class HazardPolicy final : public EvictionPolicy {
 public:
  explicit HazardPolicy(EvictionObjective objective)
      : weighs_depth_(objective == EvictionObjective::kCompute) {}

  void BeginAccess(const BlockAccess& access) override {
    // Strictly rising, so that equal words were used by one access.
    time_ =
        std::max(time_ + 1, static_cast<uint64_t>(std::max<TimeNs>(access.now, 0)) >> kTimeShift);
    model_.Advance(time_ >> kTickShift);
    hint_ = StateOf(access.hint);
    chain_blocks_ = access.chain_blocks;
    inserting_ = false;
    if (access.tokens_per_block != 0) tokens_per_block_ = access.tokens_per_block;
    if (!access.new_request) return;
    ++requests_;
    request_blocks_ +=
        (chain_blocks_ - request_blocks_) / static_cast<double>(std::min(requests_, 100u));
    if (requests_ % kRefitRequests == 0) model_.Refit(request_blocks_, kRefitRequests);
  }

  void OnTouch(std::span<PolicyWord> words, uint32_t first_depth) override {
    const bool at_end = first_depth + words.size() == chain_blocks_;
    const HintState hint = hint_ == kEnds && !at_end ? kBeforeEnd : hint_;
    for (size_t i = 0; i < words.size();) {  // equal words, one step
      size_t end = i + 1;
      while (end < words.size() && words[end] == words[i]) ++end;
      Spell spell = Unpack(words[i]);
      const auto blocks = static_cast<uint32_t>(end - i);
      model_.Reuse(spell.cell, spell.start, blocks);
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
      if (ghosts_.Take(run.hashes[i], model_.now(), &spell)) {
        model_.Reuse(spell.cell, spell.start, 1);
        Continue(&spell, hint_);
        spell.ends_request = false;
        model_.Join(spell.cell, 1);
      } else {
        ++fresh_blocks;
      }
      run.words[i] = Pack(time_, spell);
    }
    if (fresh_blocks > 0) model_.Join(fresh_cell_, fresh_blocks);
    if (run.first_depth + run.words.size() == chain_blocks_) run.words.back() |= 1;
  }

  void OnEvict(PolicyWord word, const BlockHash& hash, uint32_t /*depth*/) override {
    Spell forgotten;
    if (ghosts_.Add(hash, model_.now(), Unpack(word), &forgotten)) {
      model_.Leave(forgotten.cell, forgotten.start, 1);
    }
  }
  void OnDrop(std::span<const PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord word : words) {
      const Spell spell = Unpack(word);
      model_.Leave(spell.cell, spell.start, 1);
    }
  }
  void OnCapacity(uint64_t /*blocks_used*/, uint64_t blocks_total) override {
    if (ghosts_.room() >= blocks_total && ghosts_.room() <= 4 * blocks_total) return;
    ghosts_.Fit(
        blocks_total, [this](const Spell& spell) { model_.Leave(spell.cell, spell.start, 1); },
        model_.now());
  }

  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word >> 12; }
  uint32_t num_queues() const override { return ReuseModel::kCells; }
  uint32_t QueueOf(PolicyWord word, uint32_t /*depth*/) const override {
    return static_cast<uint32_t>(word >> 6 & 63);
  }
  size_t PickQueue(std::span<const QueueTop> tops) const override {
    size_t lowest = 0;
    double least = Value(tops[0].word, tops[0].depth);
    for (size_t i = 1; i < tops.size(); ++i) {
      const double value = Value(tops[i].word, tops[i].depth);
      if (value < least) {
        least = value;
        lowest = i;
      }
    }
    return lowest;
  }
  uint64_t Priority(PolicyWord word, uint32_t depth) const override {
    return static_cast<uint64_t>(Value(word, depth) * 0x1p50);
  }
  uint64_t bytes() const override { return model_.bytes() + ghosts_.bytes(); }
  std::string_view name() const override { return "hazard"; }

 private:
  static constexpr uint32_t kRefitRequests = 64;
  // As in gdsf: where attention costs a model of 8 billion parameters what its matrices do.
  static constexpr double kEqualTokens = 32768;

  double Value(PolicyWord word, uint32_t depth) const {
    const double age = static_cast<double>(time_ - (word >> 12)) * (1.0 / (1 << kTickShift));
    const double value = model_.Value(static_cast<uint32_t>(word >> 6 & 63), age);
    if (!weighs_depth_) return value;
    return value * (1 + depth * (tokens_per_block_ / kEqualTokens));
  }

  // The spell has ended with a use; the next one begins.
  void Continue(Spell* spell, HintState hint) const {
    const bool quickly = model_.now() - spell->start < kQuickTicks;
    spell->uses = std::min(spell->uses + 1, kMaxUses);
    spell->turns = std::min(spell->turns + 1, kMaxTurns);
    spell->cell = CellOfUsed(hint, spell->uses, quickly);
    spell->start = model_.now();
  }

  // What the blocks of this access have in common, from where they are put.
  void BeginInsert(const InsertedRun& run) {
    inserting_ = true;
    const uint32_t brought = chain_blocks_ > run.first_depth ? chain_blocks_ - run.first_depth : 0;
    const bool little = uint64_t{brought} * 8 <= chain_blocks_;
    fresh_turns_ = 0;
    if (run.parent != nullptr) {
      const Spell parent = Unpack(*run.parent);
      if (parent.uses == 0) {  // not matched, so the same request's: it comes piece by piece
        fresh_turns_ = parent.turns;
        fresh_cell_ = hint_ * kBaseCells + parent.cell % kBaseCells;
        return;
      }
      if (parent.ends_request) fresh_turns_ = parent.turns;
    }
    fresh_cell_ = CellOfNew(hint_, fresh_turns_, little);
  }

  const bool weighs_depth_;
  uint64_t time_ = 0;
  HintState hint_ = kNoHint;
  uint32_t chain_blocks_ = 0;
  double tokens_per_block_ = 16;
  bool inserting_ = false;  // this access has inserted a run already
  uint32_t fresh_cell_ = 0, fresh_turns_ = 0;
  uint32_t requests_ = 0;
  double request_blocks_ = 0;
  ReuseModel model_;
  SpellGhosts ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeHazardPolicy(EvictionObjective objective) {
  return std::make_unique<HazardPolicy>(objective);
}

}  // namespace flexkv
