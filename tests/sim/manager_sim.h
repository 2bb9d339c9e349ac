// A seeded simulation of the whole cache manager: several engines in four namespaces and two size
// classes, of one rank, of two with a shard each, and of three that are replicas; the real
// TransferEngine, index, slots and plans; an imaginary device and arena and, on demand, two
// imaginary SSDs. After every step the manager's invariants hold, and every load reads the bytes it
// was promised. With SSDs the process is killed now and then: every committed block is found again,
// none of an epoch whose reset was acknowledged.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/cache/cache_manager.h"
#include "tests/sim/sim_device.h"
#include "tests/sim/sim_ssd.h"
#include "tests/support/fake_segment_store.h"
#include "tests/support/test_seed.h"

namespace flexkv {

struct ManagerSimStats {
  uint64_t steps = 0, lookups = 0, matched_blocks = 0, puts = 0, accepted_blocks = 0, loads = 0,
           loads_checked = 0;
  uint64_t evicted = 0, expired = 0, resets = 0, deaths = 0, hostile = 0, failed_blocks = 0,
           groups_made = 0;
  uint64_t ssd_written = 0, ssd_read = 0, ssd_evicted = 0, ssd_faults = 0, restarts = 0,
           recovered = 0, replica_stores = 0;
  std::string ToString() const;
};

class ManagerSim {
 public:
  explicit ManagerSim(uint64_t seed, bool with_ssd = false);
  // Runs that many steps, then ends everything. The first thing that was wrong, with the step it
  // happened in.
  absl::Status Run(uint64_t steps);
  const ManagerSimStats& stats() const { return stats_; }

 private:
  struct SimRequest {
    uint32_t document = 0;
    uint32_t length = 0;  // blocks of it the manager knows
    LeaseId lease = 0;    // as far as we know
    uint32_t leased = 0;
    uint32_t epoch = 0;  // of the lookup
    TimeNs deadline = 0;
  };
  struct SimOp {
    uint32_t blocks = 0;  // accepted
    Route route = Route::kDeviceToCpu;
    uint32_t spared_rank = ManagerEvent::kNoRank;  // of replicas: who stores it
  };
  struct SimEngine {
    EngineHandle handle = 0;
    uint32_t content = 0;  // which namespace's content
    std::vector<uint64_t> shard_bytes;
    bool replicated = false;
    std::map<RequestKey, SimRequest> requests;
    std::map<OpKey, SimOp> ops;          // launched, not ended
    std::map<OpKey, uint64_t> refusals;  // kRefuseOp events we wait for
  };

  uint64_t Identity(uint32_t content, uint32_t epoch, const BlockHash& hash) const;
  std::vector<uint64_t> Identities(const SimEngine& engine, uint32_t epoch, uint32_t document,
                                   uint32_t first, uint32_t count) const;
  SimEngine* AnyEngine();
  SimRequest* AnyRequest(SimEngine* engine, RequestKey* key);
  void Fail(const std::string& what);
  void Expect(bool condition, const char* what) {
    if (!condition) Fail(what);
  }

  void Step();
  void Attach();
  void Kill();
  void Lookup();
  void LookupAgain(SimEngine* engine, RequestKey key, SimRequest* request);
  void Load();
  void Put();
  void Release();
  void Reset();
  void Cancel();
  void Hostile();
  void HostileChain(SimEngine* engine);
  void Trouble();
  void CheckLeaseHolds();
  void Tick();
  void TakeEvents();
  void TakeRefusal(SimEngine* engine, const ManagerEvent& event);
  void CheckRanks(const SimEngine& engine, OpKey key, const SimOp& op);
  void CheckSegments();
  void Finish();
  void StartLife();
  void CountLife();
  void Restart();
  void CheckRecovered();
  void Settle();

  TestRng rng_;
  FakeSegmentStore segments_;
  std::vector<std::unique_ptr<SimSsd>> ssds_;
  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
  std::vector<std::vector<BlockHash>> documents_;
  std::vector<SimEngine> engines_;
  std::map<uint32_t, uint32_t> epochs_;  // by content
  // Resets that no event acknowledged, by content: after a crash the epoch before may be back.
  std::map<uint32_t, uint32_t> unacknowledged_;
  std::map<uint64_t, uint32_t> resets_;  // tag -> content
  TimeNs now_ = kNsPerSecond;
  uint64_t next_key_ = 1;
  ManagerSimStats stats_;
  absl::Status status_;
};

}  // namespace flexkv
