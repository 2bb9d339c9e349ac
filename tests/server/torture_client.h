// One of the clients of the torture: an engine's scheduler and workers (the real sessions), its
// blocks, and a thread that takes orders.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"
#include "tests/server/torture_oracle.h"
#include "tests/support/test_seed.h"

namespace flexkv {

struct TortureLayout {
  uint32_t ranks = 1;
  uint32_t layers = 2;
  uint32_t layer_bytes = 4096;  // of a block
};

struct TortureCounts {
  uint64_t puts = 0, put_blocks = 0, loads = 0, loads_failed = 0, loaded_blocks = 0, lookups = 0,
           resets = 0, resets_acknowledged = 0, bytes = 0, found_again = 0;
  void Add(const TortureCounts& other);
  std::string ToString() const;
};

enum class TortureOrder : uint8_t {
  kPause,
  kWork,   // random steps until the next order
  kReset,  // a reset, then random steps
  kNote,   // the tier is settled: what lookups find is committed
  kCheck,  // what was committed must be found and loaded
  kExit,
};

enum class TortureActivity : uint8_t { kIdle, kLookup, kPut, kLoad, kReset };

class TortureClient {
 public:
  struct Options {
    std::string socket_path;
    uint64_t engine_id = 1;
    std::string name;  // of the namespace
    TortureLayout layout;
    uint64_t seed = 1;
  };
  TortureClient(const Options& options, NamespaceOracle* oracle, Verdict* verdict);
  ~TortureClient();  // REQUIRES: not in a step that hangs

  void Give(TortureOrder order);
  // The order was carried out, or its step begun (kWork). False: not within timeout_ms.
  bool AwaitDone(int timeout_ms);
  TortureActivity activity() const { return activity_.load(std::memory_order_acquire); }
  // How long it has been in its present step.
  TimeNs StepNs() const;
  // REQUIRES: it is at rest.
  const TortureCounts& counts() const { return counts_; }
  std::string Explain() const;

 private:
  class Hashes : public HashSource {
   public:
    void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override;
  };
  struct Rank {
    std::vector<std::byte> memory;
    std::unique_ptr<WorkerSession> session;
  };
  struct LoadResult {
    bool failed = false;
    uint32_t blocks = 0;  // loaded, all right
  };

  void OpenSessions(const Options& options);
  void Run();
  void Obey(TortureOrder order);
  void Step();
  void Lookup();
  void Put();
  void Load();
  void Reset();
  void Note();
  void Check();
  void CheckDoc(uint32_t doc, uint32_t blocks, TimeNs deadline);

  std::string NewId(uint32_t doc);
  std::vector<uint32_t> PickBlocks(size_t count);
  std::span<std::byte> LayerBytes(uint32_t rank, uint32_t layer, uint32_t block);
  uint32_t Ask(const std::string& id, uint32_t doc);
  // Takes the first `blocks` of the document, which a lookup found, and checks every byte.
  LoadResult LoadBlocks(const std::string& id, uint32_t doc, uint32_t blocks,
                        std::span<const uint32_t> ids, uint32_t oldest);
  bool AwaitReports(const std::string& id, std::vector<std::vector<uint32_t>>* failed);
  void CheckBytes(uint32_t doc, uint32_t blocks, std::span<const uint32_t> ids, uint32_t oldest,
                  const std::vector<std::vector<uint32_t>>& failed);
  // Computes the document from block `computed` on and offers it; the daemon has read the offer on
  // return.
  void Compute(const std::string& id, uint32_t doc, uint32_t computed,
               std::span<const uint32_t> ids);
  void Fail(const std::string& what);

  const TortureLayout layout_;
  const std::string name_;
  NamespaceOracle* const oracle_;
  Verdict* const verdict_;
  TestRng rng_;
  SteadyClock clock_;
  Hashes hashes_;
  std::unique_ptr<SchedulerSession> scheduler_;
  std::vector<Rank> ranks_;
  uint64_t next_id_ = 0;
  TortureCounts counts_;

  std::mutex mutex_;
  std::condition_variable changed_;
  TortureOrder order_ = TortureOrder::kPause;  // guarded by mutex_
  uint64_t given_ = 0, done_ = 0;              // guarded by mutex_
  std::atomic<TortureActivity> activity_{TortureActivity::kIdle};
  std::atomic<TimeNs> step_began_{0};  // 0: at rest
  std::thread thread_;
};

}  // namespace flexkv
