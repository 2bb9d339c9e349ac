// A seeded mixed workload over SsdStore, and the model of what the store has promised.
// Every answer of the store is held against the model at once; after a crash a new workload takes
// the model over, opens the disk again and tells whether anything promised is missing, anything
// taken back is served, or any byte is wrong.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/storage/ssd/ssd_store.h"
#include "tests/storage/ssd_block_buffer.h"
#include "tests/support/test_seed.h"

namespace flexkv {

// How far the disk under a workload may be trusted.
enum class SsdTrust : uint8_t {
  kSound,   // crashes only: all that was promised must hold
  kLoud,    // errors are told (EIO, ENOSPC, short, failed sync): commits hold, ops may fail
  kSilent,  // bits flip, transfers go astray: anything may be lost, no byte may be wrong
};

struct SsdWorkloadStats {
  uint64_t writes = 0, commits = 0, reads = 0, reads_ok = 0, frees = 0, raises = 0, creates = 0,
           drops = 0, recovered = 0, bytes_checked = 0, failed_ops = 0, misses = 0, opens = 0,
           checkpoints = 0;
  void Add(const SsdWorkloadStats& other);
  std::string ToString() const;
};

// A step of the model. A process that is about to be killed tells them to one that is not.
enum class SsdEventKind : uint32_t {
  kWriteBegun,
  kCommitted,
  kFreeBegun,
  kFreed,
  kLost,  // an op on the place failed
  kRaiseBegun,
  kRaised,
  kCreateBegun,
  kCreated,
  kCreateFailed,
  kFound,  // a segment, at Open
  kDropBegun,
  kDropped,
  kDropRefused,
};
struct SsdEvent {
  SsdEventKind kind = SsdEventKind::kWriteBegun;
  SsdPlace place;
  uint32_t number = 0;  // of a shape, or index of a namespace
  uint32_t epoch = 0;
  SsdIdentity identity;
};

class SsdWorkload {
 public:
  // `disk` and `clock` outlive it.
  SsdWorkload(Disk* disk, const Clock* clock, uint64_t seed, SsdTrust trust);
  // Takes over what `crashed` knew, on what its disk became.
  SsdWorkload(const SsdWorkload& crashed, Disk* disk, const Clock* clock, uint64_t seed);
  ~SsdWorkload();

  // Opens the store, holds what it recovered against the model, reads all of it back. The first
  // thing that was wrong; OK otherwise. This and the others stop at the first fault.
  const absl::Status& Open();
  const absl::Status& Run(uint64_t steps);
  // Lets everything in flight end.
  const absl::Status& Settle();
  // Reads every committed block.
  const absl::Status& VerifyAll();
  // Believes whatever the next Open finds instead of holding it against the model.
  void TrustNextOpen() { adopt_ = true; }
  // Told each step of the model, those that begin an op before the store is asked.
  void SetListener(std::function<void(const SsdEvent&)> listener) {
    listener_ = std::move(listener);
  }
  // Takes a step that another workload has told.
  void Apply(const SsdEvent& event);
  const absl::Status& status() const { return status_; }
  const SsdWorkloadStats& stats();
  SsdStore* store() { return store_.get(); }

 private:
  enum class State : uint8_t {
    kFree,
    kWriting,    // no result yet: may be found, complete, or not
    kCommitted,  // must be found
    kFreeing,    // no result yet: may be found or not
    kLost,       // an op on it failed: may be found or not, is never written again
  };
  struct Block {
    State state = State::kFree;
    SsdIdentity identity;
  };
  struct Segment {
    SsdShape shape;
    std::vector<Block> blocks;
    uint32_t busy = 0;  // ops without result
    bool writable = true;
  };
  struct Namespace {
    NamespaceDigest digest{};
    uint32_t acked = 0;              // epoch raised to, told as durable
    uint32_t target = 0;             // asked for
    std::vector<uint32_t> vouchers;  // segments that must know `acked`
  };
  struct Op {
    SsdOpKind kind = SsdOpKind::kRead;
    SsdPlace place;
    SsdIdentity identity;
    std::unique_ptr<SsdBlockBuffer> buffer;
    bool must_succeed = false;
    bool must_miss = false;
    uint32_t epoch = 0;  // kRaiseEpoch
    size_t ns = 0;
  };

  void Fail(const std::string& what);
  void Tell(const SsdEvent& event);
  void ApplyToSegments(const SsdEvent& event);
  void Step();
  void Write();
  void Read();
  void SubmitRead(SsdPlace place, const SsdIdentity& identity, bool must_succeed, bool must_miss);
  void Free();
  void Raise();
  void Create();
  void Drop();
  void Poll(TimeNs timeout_ns);
  void Ended(const SsdResult& result);
  void WriteEnded(const Op& op, const absl::Status& status);
  void ReadEnded(const Op& op, const absl::Status& status);
  void FreeEnded(const Op& op, const absl::Status& status);
  void RaiseEnded(const Op& op, const absl::Status& status);
  void LearnSegments();
  void LearnBlocks();
  void CheckFound(SsdPlace place, const SsdIdentity& identity);
  void LearnEpochs();
  Namespace* NamespaceOf(const SsdIdentity& identity);
  bool TooOld(const SsdIdentity& identity, bool even_undecided);
  Block* BlockAt(SsdPlace place);
  // A place in that state, if dice and store have one.
  bool Choose(State state, SsdPlace* place);
  SsdIdentity NewIdentity();

  Disk* const disk_;
  const Clock* const clock_;
  TestRng rng_;
  SsdTrust trust_;
  SsdStoreOptions options_;
  std::unique_ptr<SsdStore> store_;
  std::map<uint32_t, Segment> segments_;
  std::vector<Namespace> namespaces_;
  std::vector<SsdIdentity> freed_;  // identities to write again
  // CreateSegment or DropSegment has begun and not returned.
  bool creating_ = false;
  std::set<uint32_t> dropping_;
  bool adopt_ = false;
  std::function<void(const SsdEvent&)> listener_;
  uint64_t raise_one_in_ = 4, drop_one_in_ = 4;  // of the dice's choices
  uint64_t next_hash_ = 1;
  uint64_t next_tag_ = 1;
  std::map<uint64_t, Op> ops_;
  SsdWorkloadStats stats_;
  absl::Status status_;
};

}  // namespace flexkv
