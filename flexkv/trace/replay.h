// One cell of a simulation: the daemon's cache manager with nothing behind it but time.
#pragma once

#include <cstdint>
#include <memory>
#include <queue>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/trace/replay_ports.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::trace {

// What all cells need of a batch, made once.
struct ReplayBatch {
  const RequestBatch* batch = nullptr;
  std::vector<BlockHash> hashes;   // beside batch->blocks
  std::vector<uint32_t> numbers;   // beside batch->blocks: dense; those never inserted have none
  std::vector<RequestHint> hints;  // by request
  uint64_t numbers_end = 0;        // above every number so far
  static constexpr uint32_t kNoNumber = UINT32_MAX;
};

class CellReplay {
 public:
  // `tokens_per_block` of the trace: policies may weigh tokens. InvalidArgument: unknown policy, or
  // no blocks at all.
  static absl::StatusOr<std::unique_ptr<CellReplay>> New(const Cell& cell,
                                                         const SimulateOptions& options,
                                                         uint32_t tokens_per_block);
  ~CellReplay();

  // ResourceExhausted: an infinite cache is full.
  absl::Status Run(const ReplayBatch& batch);
  absl::Status Finish();  // after the last batch
  const CellResult& result() const { return result_; }
  uint64_t bytes() const;
  const CacheManager& manager() const { return *manager_; }

 private:
  // A request between its lookup and its put, with `timed`.
  struct Flight {
    RequestKey key = 0;
    uint32_t blocks = 0;
    TimeNs prefill_ns = 0;
    std::vector<uint32_t> numbers;
  };
  struct PutDue {
    TimeNs at = 0;
    RequestKey key = 0;  // also the order among equals
    bool operator>(const PutDue& other) const {
      return at != other.at ? at > other.at : key > other.key;
    }
  };
  CellReplay(const Cell& cell, const SimulateOptions& options);
  absl::Status Open(uint32_t tokens_per_block);
  absl::Status AddBallast(uint64_t blocks);
  absl::StatusOr<LookupAnswer> LookUp(const TraceRequest& request, RequestKey key,
                                      std::span<const BlockHash> chain,
                                      std::span<const uint32_t> numbers, RequestHint hint);
  absl::Status Put(RequestKey key, uint32_t count, std::span<const BlockHash> chain,
                   std::span<const uint32_t> numbers, RequestHint hint);
  absl::Status RunOne(const TraceRequest& request, RequestKey key, std::span<const BlockHash> chain,
                      std::span<const uint32_t> numbers, RequestHint hint);
  absl::Status StartTimed(const TraceRequest& request, RequestKey key,
                          std::span<const BlockHash> chain, std::span<const uint32_t> numbers,
                          RequestHint hint);
  absl::Status RunUntil(TimeNs until);
  void TakeEvents();
  absl::Status PutFlight(RequestKey key);
  void SetNow(TimeNs now);
  void Tick();
  void Settle();
  TimeNs NextEnd() const;

  const SimulateOptions* const options_;
  const bool infinite_;
  CellResult result_;
  NumberedSegments segments_;
  TimedCopies copies_;
  std::unique_ptr<TimedSsd> ssd_;  // nullptr: one tier
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
  EngineHandle engine_ = 0;
  TimeNs now_ = kNsPerSecond;
  RequestKey next_key_ = 1;
  uint64_t reads_ = 0;            // inserted blocks that were found at least once
  std::vector<uint64_t> unread_;  // bit by block number: inserted, not found since
  absl::flat_hash_map<RequestKey, Flight> flights_;
  std::priority_queue<PutDue, std::vector<PutDue>, std::greater<>> puts_due_;
  std::vector<ManagerEvent> events_;  // scratch
};

// How a cell's block counts are put to the manager, which thinks in bytes and equal groups.
struct ReplayGeometry {
  uint64_t segment_bytes = 0, cache_bytes = 0;
  uint64_t ballast = 0;  // slots beyond the wanted ones, to be held by blocks that never leave
};
// Blocks of kReplayBlockBytes. With an SSD tier counts above 8,192 without a divisor that will do
// are rounded up to multiples of 512; nothing else is rounded.
inline constexpr uint64_t kReplayBlockBytes = 64;
ReplayGeometry PlanReplay(uint64_t cpu_blocks, bool with_ssd);

}  // namespace flexkv::trace
