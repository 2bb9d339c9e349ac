// ARC (adaptive replacement), on a tree: T1 holds blocks used once, T2 those used again, both by
// recency; B1 and B2 remember hashes of what left them. A hash that comes back from B1 says that T1
// was too small, one from B2 that T2 was: the target of T1 moves by one block, or by as many as the
// other list is longer. Above its target T1 gives way, else T2.
//
// Differences from the paper: only leaves give way, so the queue picked may have none, and the
// other gives way; room is made before the blocks are known, so that a hash that comes back moves
// the target after the eviction, not before it. Inner blocks count into a queue's size.
//
// Word: 1 bit queue, sequence number of the last access.
#include <algorithm>
#include <array>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/ghost_table.h"

namespace flexkv {
namespace {

class ArcPolicy final : public EvictionPolicy {
 public:
  void BeginAccess(const BlockAccess& /*access*/) override { ++sequence_; }
  void OnInsert(const InsertedRun& run) override {
    for (const BlockHash& hash : run.hashes) ghosts_.Prefetch(hash);
    for (size_t i = 0; i < run.words.size(); ++i) {
      const uint32_t queue = Recall(run.hashes[i]);
      run.words[i] = Word(queue);
      ++blocks_[queue];
    }
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    const PolicyWord used = Word(kOften);
    uint64_t moved = 0;
    for (PolicyWord& word : words) {
      moved += QueueOf(word) == kOnce;
      word = used;
    }
    blocks_[kOnce] -= moved;
    blocks_[kOften] += moved;
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override {
    return word & kSequenceMask;
  }
  uint32_t num_queues() const override { return 2; }
  uint32_t QueueOf(PolicyWord word, uint32_t /*depth*/) const override { return QueueOf(word); }
  size_t PickQueue(std::span<const QueueTop> tops) const override {
    if (tops.size() == 1) return 0;
    return blocks_[kOnce] > target_ ? kOnce : kOften;
  }
  void OnEvict(PolicyWord word, const BlockHash& hash, uint32_t /*depth*/) override {
    const uint32_t queue = QueueOf(word);
    const uint64_t capacity = Capacity();
    ghosts_.Fit(capacity);
    --blocks_[queue];
    ghosts_.Add(hash, queue);
    // T1 and B1 together remember one cache of blocks, all four lists two.
    ghosts_.Trim(kOnce, capacity - std::min(capacity, blocks_[kOnce]));
    const uint64_t others = blocks_[kOnce] + blocks_[kOften] + ghosts_.size(kOnce);
    ghosts_.Trim(kOften, 2 * capacity - std::min(2 * capacity, others));
  }
  void OnDrop(std::span<const PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord word : words) --blocks_[QueueOf(word)];
  }
  void OnCapacity(uint64_t /*blocks_used*/, uint64_t blocks_total) override {
    capacity_ = blocks_total;
  }
  uint64_t bytes() const override { return ghosts_.bytes(); }
  std::string_view name() const override { return "arc"; }

 private:
  static constexpr uint32_t kOnce = 0, kOften = 1;
  static constexpr uint64_t kSequenceMask = (1ull << 63) - 1;

  static uint32_t QueueOf(PolicyWord word) { return static_cast<uint32_t>(word >> 63); }
  PolicyWord Word(uint32_t queue) const { return uint64_t{queue} << 63 | sequence_; }
  uint64_t Capacity() const { return std::max(capacity_, blocks_[kOnce] + blocks_[kOften]); }

  // Moves the target if the hash is remembered. Returns the queue that the block belongs to.
  uint32_t Recall(const BlockHash& hash) {
    const std::array<uint64_t, 2> sizes = {ghosts_.size(kOnce), ghosts_.size(kOften)};
    const std::optional<uint32_t> list = ghosts_.Take(hash);
    if (!list.has_value()) return kOnce;
    const uint64_t step = std::max<uint64_t>(sizes[1 - *list] / sizes[*list], 1);
    target_ =
        *list == kOnce ? std::min(target_ + step, Capacity()) : target_ - std::min(target_, step);
    return kOften;
  }

  uint64_t sequence_ = 0;
  uint64_t capacity_ = 0;
  uint64_t target_ = 0;               // of T1, in blocks
  std::array<uint64_t, 2> blocks_{};  // of T1 and T2, inner blocks too
  GhostTable ghosts_;                 // B1 and B2
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeArcPolicy() { return std::make_unique<ArcPolicy>(); }

}  // namespace flexkv
