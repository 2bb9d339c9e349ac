// S3-FIFO: a small queue for what is new, a main queue for what was used again, and hashes of what
// left the small one.
//
// A new block enters the small queue; one whose hash is remembered enters the main queue. When the
// small queue holds a tenth of all blocks or more, its oldest goes: into the main queue if it was
// used at least twice meanwhile, else out, and its hash is remembered. Otherwise the main queue's
// oldest goes, unless it was used: then it goes back to the end with one use less. As many hashes
// are remembered as the main queue may hold blocks.
//
// On a tree only leaves stand in the queues; inner blocks count into a queue's size all the same. A
// block that becomes a leaf stands where its own age puts it.
//
// Word: 1 bit queue, 2 bits uses, sequence number of its arrival in the queue.
#include <algorithm>
#include <array>

#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/ghost_table.h"

namespace flexkv {
namespace {

class S3FifoPolicy final : public EvictionPolicy {
 public:
  void BeginAccess(const BlockAccess& /*access*/) override { ++sequence_; }
  void OnInsert(const InsertedRun& run) override {
    for (const BlockHash& hash : run.hashes) ghosts_.Prefetch(hash);
    for (size_t i = 0; i < run.words.size(); ++i) {
      const uint32_t queue = ghosts_.Take(run.hashes[i]).has_value() ? kMain : kSmall;
      run.words[i] = Word(queue, 0);
      ++blocks_[queue];
    }
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord& word : words) {
      if (UsesOf(word) < kMostUses) word += kOneUse;
    }
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override {
    return word & kSequenceMask;
  }
  uint32_t num_queues() const override { return 2; }
  uint32_t QueueOf(PolicyWord word, uint32_t /*depth*/) const override { return Queue(word); }
  size_t PickQueue(std::span<const QueueTop> tops) const override {
    if (tops.size() == 1) return 0;
    return blocks_[kSmall] * kSmallShare >= blocks_[kSmall] + blocks_[kMain] ? kSmall : kMain;
  }
  bool Reprieve(PolicyWord* word, uint32_t /*depth*/) override {
    const bool small = Queue(*word) == kSmall;
    const uint64_t uses = UsesOf(*word);
    if (uses < (small ? 2 : 1)) return false;
    if (small) {
      --blocks_[kSmall];
      ++blocks_[kMain];
    }
    ++sequence_;
    *word = Word(kMain, small ? 0 : uses - 1);
    return true;
  }
  void OnEvict(PolicyWord word, const BlockHash& hash, uint32_t /*depth*/) override {
    if (Queue(word) == kSmall) {
      const uint64_t all = std::max(blocks_[kSmall] + blocks_[kMain], capacity_);
      ghosts_.Fit(all);
      ghosts_.Add(hash, 0);
      ghosts_.Trim(0, all - all / kSmallShare);
    }
    --blocks_[Queue(word)];
  }
  void OnDrop(std::span<const PolicyWord> words, uint32_t /*first_depth*/) override {
    for (PolicyWord word : words) --blocks_[Queue(word)];
  }
  void OnCapacity(uint64_t /*blocks_used*/, uint64_t blocks_total) override {
    capacity_ = blocks_total;
  }
  uint64_t bytes() const override { return ghosts_.bytes(); }
  std::string_view name() const override { return "s3fifo"; }

 private:
  static constexpr uint32_t kSmall = 0, kMain = 1;
  static constexpr uint64_t kSmallShare = 10;  // one in so many blocks
  static constexpr uint64_t kMostUses = 3;
  static constexpr int kUsesShift = 61;
  static constexpr uint64_t kOneUse = 1ull << kUsesShift;
  static constexpr uint64_t kSequenceMask = kOneUse - 1;

  static uint32_t Queue(PolicyWord word) { return static_cast<uint32_t>(word >> 63); }
  static uint64_t UsesOf(PolicyWord word) { return word >> kUsesShift & 3; }
  PolicyWord Word(uint32_t queue, uint64_t uses) const {
    return uint64_t{queue} << 63 | uses << kUsesShift | sequence_;
  }

  uint64_t sequence_ = 0;
  uint64_t capacity_ = 0;
  std::array<uint64_t, 2> blocks_{};  // by queue, inner blocks too
  GhostTable ghosts_;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy() { return std::make_unique<S3FifoPolicy>(); }

}  // namespace flexkv
