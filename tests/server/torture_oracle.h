// What may come back from a daemon that is killed again and again: shared by all clients of a
// torture round. Thread-safe.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <string>
#include <vector>

#include "flexkv/base/ids.h"

namespace flexkv {

inline constexpr uint32_t kTortureDocs = 96;
inline constexpr uint32_t kTortureMaxBlocks = 20;  // of a document

// The hash chain of a document: a stem that others share, and its own blocks. The same in every
// namespace.
const std::vector<BlockHash>& TortureChain(uint32_t doc);

// The first thing that was wrong ends the run.
class Verdict {
 public:
  void Fail(const std::string& what);
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  std::string text() const;

 private:
  mutable std::mutex mutex_;
  std::string text_;
  std::atomic<bool> failed_{false};
};

// A namespace with its resets. The bytes of a block are a function of the namespace, the epoch it
// was computed in, its hash, and the rank.
class NamespaceOracle {
 public:
  explicit NamespaceOracle(uint32_t number) : number_(number) {}

  // Whoever computes and offers blocks holds it shared until the daemon has read the offer, a reset
  // exclusively: else what was computed before a reset could be stored after it.
  std::shared_mutex& gate() { return gate_; }

  uint32_t oldest() const { return oldest_.load(); }  // epochs before it were reset, acknowledged
  uint32_t newest() const { return newest_.load(); }  // in which blocks are computed now
  // REQUIRES: the gate, exclusively. What is computed from here on is told from what was before.
  void BeginReset();
  void ResetAcknowledged() { oldest_ = newest_.load(); }

  // Bytes of the block's shard from `offset` on.
  void Fill(const BlockHash& hash, uint32_t rank, uint64_t offset, std::span<std::byte> out) const;
  // The epoch in [oldest, newest] whose bytes these are.
  std::optional<uint32_t> EpochOf(const BlockHash& hash, uint32_t rank, uint64_t offset,
                                  std::span<const std::byte> bytes, uint32_t oldest,
                                  uint32_t newest) const;
  // Words for bytes that are not as they must be.
  std::string Explain(const BlockHash& hash, uint32_t rank, uint64_t offset,
                      std::span<const std::byte> bytes, uint32_t oldest, uint32_t newest) const;

  // Blocks of each document that were seen committed on disk, and not reset since.
  std::map<uint32_t, uint32_t> committed() const;
  void SetCommitted(uint32_t doc, uint32_t blocks);

 private:
  BlockHash Key(const BlockHash& hash, uint32_t epoch) const;

  const uint32_t number_;
  std::shared_mutex gate_;
  std::atomic<uint32_t> oldest_{1}, newest_{1};
  mutable std::mutex mutex_;
  std::map<uint32_t, uint32_t> committed_;
};

}  // namespace flexkv
