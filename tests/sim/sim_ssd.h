// An SSD device of the simulation: keeps one word a shard for each place, carries commands out in
// any order, a little at a time, with failures; and forgets what was not committed when it crashes.
//
// It shares the arena of SimDevice: a read tears the word in the CPU slot before it makes it right,
// a write looks at it at a moment of its own choice, so that whoever hands out a slot too early is
// found out.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/storage/ssd/ssd_port.h"
#include "tests/sim/sim_device.h"
#include "tests/support/test_seed.h"

namespace flexkv {

struct SimSsdBlock {
  SsdIdentity identity;
  std::vector<uint64_t> words;  // by rank
};

class SimSsd : public SsdPort {
 public:
  SimSsd(TestRng* rng, uint64_t max_slots) : rng_(rng), max_slots_(max_slots) {}

  // The arena of this life of the process.
  void SetArena(SimDevice* arena) { arena_ = arena; }
  // The process dies: what is under way may be done or not, and nobody hears of it.
  void Crash();
  // Carries out a little.
  void Step();
  void Drain();
  void set_faults(bool on) { faults_ = on; }
  // The next so many of that kind fail (a read as damaged), faults on or off.
  enum class Kind : uint8_t { kWrite, kRead, kFree, kRaise, kCreate, kDrop };
  void FailNext(Kind kind, uint32_t times) { forced_[kind] = times; }
  uint64_t ended(Kind kind) { return ended_[kind]; }  // commands, failed ones too
  // Every segment is read from only, until the next crash.
  void RetireAll();

  const std::map<std::pair<uint32_t, uint32_t>, SimSsdBlock>& blocks() const { return blocks_; }
  const std::map<NamespaceDigest, uint32_t>& epochs() const { return epochs_; }
  size_t pending() const { return pending_.size(); }
  uint64_t faults() const { return fault_count_; }
  const absl::Status& status() const { return status_; }  // the first thing that was wrong

  SsdRecovery TakeRecovery() override;
  bool Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
             std::span<const ArenaShard> shards) override;
  bool Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
            std::span<const ArenaShard> shards) override;
  bool Free(uint64_t tag, SsdPlace place) override;
  bool RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) override;
  bool CreateSegment(uint64_t tag, const SsdShape& shape) override;
  bool DropSegment(uint64_t tag, uint32_t segment) override;
  void TakeResults(std::vector<SsdPortResult>* results) override;

 private:
  struct Pending {
    Kind kind = Kind::kFree;
    uint64_t tag = 0;
    SsdPlace place;  // kDrop: its segment
    SsdIdentity identity;
    std::vector<ArenaShard> shards;
    SsdShape shape;
    bool torn = false;  // reads: the arena holds something else already
  };
  struct Segment {
    SsdShape shape;
    bool retired = false;
  };
  using Key = std::pair<uint32_t, uint32_t>;

  void Fail(const std::string& what);
  bool Accept(Pending pending);
  void CheckPlace(SsdPlace place, size_t shards);
  void Execute(Pending pending);
  absl::Status DoWrite(const Pending& op);
  absl::Status DoRead(const Pending& op);
  absl::Status DoFree(const Pending& op);
  absl::Status DoDrop(const Pending& op);
  bool Fault(Kind kind, uint64_t one_in);

  TestRng* const rng_;
  const uint64_t max_slots_;
  SimDevice* arena_ = nullptr;
  bool faults_ = true;
  uint64_t fault_count_ = 0;
  std::map<Kind, uint32_t> forced_;
  std::map<Kind, uint64_t> ended_;
  std::map<uint32_t, Segment> segments_;
  uint32_t next_segment_ = 1;
  std::map<Key, SimSsdBlock> blocks_;  // committed
  std::map<Key, int> unusable_;        // quarantined
  std::map<Key, int> writing_;
  std::map<NamespaceDigest, uint32_t> epochs_;
  std::vector<Pending> pending_;
  std::vector<SsdPortResult> results_;
  absl::Status status_;
};

}  // namespace flexkv
