// An engine reduced to its KV memory and the real sessions of the connector: stores chains of
// blocks whose content follows from their hashes, loads them, checks them.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "flexkv/base/ids.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"

namespace flexkv::bench {

// Hash of block `depth` of chain `chain`: every chain has its own.
BlockHash BenchHash(uint64_t chain, uint32_t depth);
std::vector<BlockHash> BenchChain(uint64_t chain, uint32_t blocks);
// What a block's shard holds: a function of hash, rank and position (a multiple of 8).
void FillShard(const BlockHash& hash, uint32_t rank, uint64_t offset, std::span<std::byte> bytes);
bool ShardIsRight(const BlockHash& hash, uint32_t rank, uint64_t offset,
                  std::span<const std::byte> bytes);

struct BenchEngineOptions {
  std::string socket_path;
  uint64_t id = 1;
  uint32_t ranks = 1;
  uint32_t shard_bytes = 4096;  // of one rank
  uint32_t layers = 1;          // a shard lies in as many places
  uint32_t blocks = 64;         // of its memory; the first one is never used
};

class BenchEngine {
 public:
  static constexpr uint32_t kTokensPerBlock = 16;

  // Exits the program when a session cannot be opened; needs no daemon yet.
  explicit BenchEngine(const BenchEngineOptions& options);
  ~BenchEngine();
  BenchEngine(const BenchEngine&) = delete;
  BenchEngine& operator=(const BenchEngine&) = delete;

  bool WaitReady(uint32_t timeout_ms) { return scheduler_->WaitReady(timeout_ms); }
  // Blocks of the chain that the daemon holds, from its first on.
  uint32_t Match(std::span<const BlockHash> chain);
  // Computes and stores the chain; waits until all of it can be loaded. False: it did not come.
  bool Store(std::span<const BlockHash> chain);
  // A new request with this prompt: asked for, loaded, waited for. Its blocks lie from block 1 on.
  // The number of blocks that came.
  uint32_t Load(std::span<const BlockHash> chain);
  // Checks what Load brought, byte for byte.
  bool IsRight(std::span<const BlockHash> chain) const;
  void Wipe();  // what Load brought before

 private:
  struct Hashes : HashSource {
    void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override;
    std::unordered_map<std::string, std::span<const BlockHash>> chains;
  };
  struct Memory;

  std::span<std::byte> Fragment(uint32_t rank, uint32_t layer, uint32_t block) const;
  std::string NewRequest(std::span<const BlockHash> chain);
  int64_t Ask(const std::string& id, uint32_t blocks);
  void End(const std::string& id);
  void Execute();
  uint32_t Await();

  const BenchEngineOptions options_;
  const uint32_t fragment_bytes_;
  std::vector<std::unique_ptr<Memory>> memory_;  // by rank
  Hashes hashes_;
  std::unique_ptr<SchedulerSession> scheduler_;
  std::vector<std::unique_ptr<WorkerSession>> workers_;
  uint64_t next_request_ = 1;
};

}  // namespace flexkv::bench
