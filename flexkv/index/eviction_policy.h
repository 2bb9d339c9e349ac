// In which order unleased leaf blocks give way. One policy object serves one tree.
//
// The tree keeps, for every block, one 8-byte word that only the policy reads and writes
// (PolicyWord), laid out in runs of consecutive blocks so that a touch is a sequential write. The
// tree evicts the unleased leaf block with the lowest Score; a score must only ever rise between a
// block's insert and its eviction (the tree's heap relies on stored scores being lower bounds).
//
// Thread: the control thread only. No I/O, clock or randomness of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

namespace flexkv {

using PolicyWord = uint64_t;

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  // A run of consecutive blocks enters the tree; `first_depth` is the first one's distance from the
  // root in blocks. `words` is uninitialised.
  virtual void OnInsert(std::span<PolicyWord> words, uint32_t first_depth) = 0;

  // A run of consecutive blocks was matched or loaded.
  virtual void OnTouch(std::span<PolicyWord> words, uint32_t first_depth) = 0;

  // Called once per Match or Insert, before the runs of its path: advances the policy's own
  // sequence.
  virtual void BeginAccess() = 0;

  // Lower is evicted earlier.
  virtual uint64_t Score(PolicyWord word, uint32_t depth) const = 0;

  virtual std::string_view name() const = 0;
};

// Exact least recently used: the word is the sequence number of the block's last access.
std::unique_ptr<EvictionPolicy> MakeLruPolicy();

}  // namespace flexkv
