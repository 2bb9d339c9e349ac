// The device side of the simulation: an executor that copies one word per shard between imaginary
// engine memory and an imaginary arena, piecewise, in any order, with failures, full queues and
// dead engines.
//
// The word stands for the shard's bytes. A store first tears it (writes something else), later
// makes it right, so that whoever looks at a slot under a copy is found out. Every load compares
// what it reads with what the engine was promised.
#pragma once

#include <cstdint>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "flexkv/transfer/transfer_engine.h"
#include "tests/support/fake_segment_store.h"
#include "tests/support/test_seed.h"

namespace flexkv {

// Word that stands for the bytes of rank `rank`'s shard of a block with this identity.
uint64_t ContentWord(uint64_t identity, uint32_t rank);

class SimDevice : public Executor {
 public:
  SimDevice(TestRng* rng, const FakeSegmentStore* segments) : rng_(rng), segments_(segments) {}

  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override;
  void Poll(TimeNs timeout_ns, std::vector<OpResult>* results) override;

  // The engine half: identity of the block behind each engine_index. Forgotten with ForgetHalf or
  // the engine. `replicated`: all ranks' shards have the bytes of rank 0's.
  void AddHalf(EngineHandle engine, OpKey key, std::vector<uint64_t> identities,
               std::vector<uint64_t> shard_bytes, bool replicated = false);
  void ForgetHalf(EngineHandle engine, OpKey key);
  // Ranks that were given the op so far, ascending.
  std::vector<uint32_t> RanksOf(EngineHandle engine, OpKey key) const;
  // Copies a little of one op.
  void Step();
  // What is not copied yet of this op fails (revoked, fenced).
  void Cancel(EngineHandle engine, OpKey key);
  // No more copies for this engine; its ops end as failed.
  void Kill(EngineHandle engine);
  // Ends every op that is not stuck.
  void Drain();

  // The arena, for whoever else moves blocks in and out of it.
  uint64_t& Word(SegmentId segment, uint64_t offset) { return arena_[{segment, offset}]; }
  void BeginUse(SegmentId segment, uint64_t offset, bool writes);
  void EndUse(SegmentId segment, uint64_t offset, bool writes);

  void set_faults(bool on) { faults_ = on; }
  size_t running() const { return running_.size(); }
  uint64_t loads_checked() const { return loads_checked_; }
  const absl::Status& status() const { return status_; }  // the first thing that was wrong

 private:
  using Place = std::pair<SegmentId, uint64_t>;
  struct Half {
    std::vector<uint64_t> identities;
    std::vector<uint64_t> shard_bytes;
    bool replicated = false;
  };
  struct Running {
    TransferOp op;
    std::vector<uint32_t> left;  // positions not copied yet, in the order they will be
    std::vector<uint32_t> failed;
    bool stuck = false;  // makes no progress until its engine dies
    bool torn = false;   // the next store block is half written
  };

  void Fail(const std::string& what);
  void CheckPlaces(const TransferOp& op, const Half& half);
  void CheckPart(const TransferOp& op);
  void CopyOne(Running* running);
  void End(size_t index);
  void FailRest(Running* running);

  TestRng* const rng_;
  const FakeSegmentStore* const segments_;
  std::map<std::pair<EngineHandle, OpKey>, Half> halves_;
  std::map<std::pair<std::pair<EngineHandle, OpKey>, uint32_t>, uint32_t> next_parts_;  // by rank
  std::vector<Running> running_;
  std::vector<OpResult> results_;
  std::set<EngineHandle> dead_;
  absl::flat_hash_map<Place, uint64_t> arena_;
  absl::flat_hash_map<Place, int> users_;  // -1: being written, n: loads reading
  bool faults_ = true;
  uint64_t loads_checked_ = 0;
  absl::Status status_;
};

}  // namespace flexkv
