// In which order unleased leaf blocks give way. One policy object serves one tree.
//
// The tree keeps, for every block, one 8-byte word that only the policy reads and writes
// (PolicyWord), laid out in runs of consecutive blocks so that a touch is a sequential write.
// Leaves stand in one or more queues, each ordered by Score; the policy picks the queue whose
// lowest leaf goes. What a policy needs beyond the word it keeps by queue, or by hash in a bounded
// table.
//
// A score must only ever rise between a block's insert and its eviction, or its move to another
// queue (the tree's heaps rely on stored scores being lower bounds). The queue of a word may change
// only when the policy writes the word: in OnTouch and Reprieve.
//
// Thread: the control thread only. No I/O, clock or randomness of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/request_hint.h"

namespace flexkv {

using PolicyWord = uint64_t;

// What a hit is worth: the tokens found, or the prefill computed less (a block deep in a prompt
// costs more to compute than one at its start).
enum class EvictionObjective : uint8_t { kTokens, kCompute };

// Whose access it is, and when.
struct BlockAccess {
  TimeNs now = 0;  // never falls from one access to the next
  RequestHint hint;
  uint32_t chain_blocks = 0;  // full blocks of the request known so far; 0: not known
  // The request touched so many leading blocks in an earlier call: Match does not touch them again,
  // so that a request counts once, however often its engine asks.
  uint32_t touched_before = 0;
  // The request's first lookup of at least one block. Puts are part of the request that made them.
  bool new_request = true;
  uint32_t tokens_per_block = 0;  // 0: not known
};

// Consecutive blocks that enter the tree.
struct InsertedRun {
  std::span<PolicyWord> words;  // uninitialised
  std::span<const BlockHash> hashes;
  uint32_t first_depth = 0;            // of the first block, in blocks from the root
  const PolicyWord* parent = nullptr;  // of the block before the first; nullptr at the root
};

class EvictionPolicy {
 public:
  // The lowest leaf of one queue.
  struct QueueTop {
    uint32_t queue = 0;
    PolicyWord word = 0;
    uint32_t depth = 0;
    uint64_t score = 0;
  };
  static constexpr uint32_t kMaxQueues = 64;

  virtual ~EvictionPolicy() = default;

  // Once per Match or InsertPending, before the runs of its path.
  virtual void BeginAccess(const BlockAccess& access) = 0;
  // A run of consecutive blocks was matched.
  virtual void OnTouch(std::span<PolicyWord> words, uint32_t first_depth) = 0;
  virtual void OnInsert(const InsertedRun& run) = 0;

  // Of two leaves in one queue the one with the lower score goes first.
  virtual uint64_t Score(PolicyWord word, uint32_t depth) const = 0;
  virtual uint32_t num_queues() const { return 1; }  // constant, at most kMaxQueues
  virtual uint32_t QueueOf(PolicyWord /*word*/, uint32_t /*depth*/) const { return 0; }
  // Which queue's top leaves: an index into `tops`, which has an entry for each queue with a leaf,
  // by rising queue, and is not empty. Not asked with one queue.
  virtual size_t PickQueue(std::span<const QueueTop> tops) const {
    size_t lowest = 0;
    for (size_t i = 1; i < tops.size(); ++i) {
      if (tops[i].score < tops[lowest].score) lowest = i;
    }
    return lowest;
  }
  // Asked before a picked leaf goes. True: the word was changed so that the leaf stands elsewhere,
  // and the tree picks again. The tree asks at most kMaxReprieves times for one eviction.
  virtual bool Reprieve(PolicyWord* /*word*/, uint32_t /*depth*/) { return false; }
  static constexpr int kMaxReprieves = 64;
  // A block was evicted.
  virtual void OnEvict(PolicyWord /*word*/, const BlockHash& /*hash*/, uint32_t /*depth*/) {}
  // Consecutive blocks left the tree for another reason: failed, drained, reset.
  virtual void OnDrop(std::span<const PolicyWord> /*words*/, uint32_t /*first_depth*/) {}
  // Now and then: blocks held of all tiers, and what they have room for.
  virtual void OnCapacity(uint64_t /*blocks_used*/, uint64_t /*blocks_total*/) {}

  virtual uint64_t bytes() const { return 0; }  // of memory, words not counted
  virtual std::string_view name() const = 0;
};

// One file each; policies.h finds them by name.
std::unique_ptr<EvictionPolicy> MakeLruPolicy();
std::unique_ptr<EvictionPolicy> MakeLfuPolicy();
std::unique_ptr<EvictionPolicy> MakeLrfuPolicy();
std::unique_ptr<EvictionPolicy> MakeS3FifoPolicy();
std::unique_ptr<EvictionPolicy> MakeArcPolicy();
std::unique_ptr<EvictionPolicy> MakeGdsfPolicy(EvictionObjective objective);
std::unique_ptr<EvictionPolicy> MakeA2crPolicy();
std::unique_ptr<EvictionPolicy> MakeHazardPolicy(EvictionObjective objective);

}  // namespace flexkv
