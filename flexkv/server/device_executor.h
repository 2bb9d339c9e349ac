// The executor whose queue ends in other processes: an op of a rank is sent through that worker's
// ring, its end comes back as kOpDone. Whatever the worker does, an accepted op ends exactly once
// here; until the worker said so, said goodbye or died, its arena places belong to the copy.
// Control thread only.
//
// Parts of a load are messages of their own, under way at the same time, known by key and part.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <set>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/metrics.h"
#include "flexkv/server/client_connection.h"
#include "flexkv/transfer/transfer_engine.h"

namespace flexkv {

// Where segments are looked up: the manager knows which ones a rank needs, the store their
// descriptors.
class ArenaDirectory {
 public:
  virtual ~ArenaDirectory() = default;
  virtual bool SegmentsOf(EngineHandle engine, uint32_t rank, uint64_t* seen,
                          std::vector<SegmentId>* segments) const = 0;
  virtual int Fd(SegmentId segment) const = 0;
  virtual uint64_t Bytes(SegmentId segment) const = 0;
};

class DeviceExecutor : public Executor {
 public:
  static constexpr size_t kMaxOpBlocks = shm::kMaxPayload / sizeof(shm::OpBlock);
  static constexpr int kNumRoutes = static_cast<int>(Route::kNumRoutes);

  explicit DeviceExecutor(const Clock* clock) : clock_(clock) {}
  // Before the first op; outlives the executor.
  void SetDirectory(const ArenaDirectory* directory) { directory_ = directory; }

  // --- membership -------------------------------------------------------------------------------
  void AddEngine(EngineHandle engine, std::span<ClientConnection* const> workers);
  // Ops not sent yet end as failed when they are submitted; ops under way stay with their workers.
  void RemoveEngine(EngineHandle engine);
  // The worker copies no more (goodbye, death): all its ops end as failed.
  void RemoveWorker(ClientConnection* worker);
  size_t OpsOf(const ClientConnection* worker) const;

  // --- messages ---------------------------------------------------------------------------------
  // A kOpDone. InvalidArgument: a protocol violation, in words.
  absl::Status OnOpDone(const ClientConnection* worker, const shm::Message& message,
                        std::span<const std::byte> payload);
  // The daemon half of `key` will not come, from part `part` on; remembered, since the worker
  // answers that too. Nothing happens while that very part is under way: its end could not be told
  // from the answer.
  void Refuse(ClientConnection* worker, OpKey key, Route route, uint32_t part = 0);

  // Sends segments that were made or taken back since, as far as the sockets take them.
  void SyncSegments();

  // --- Executor ---------------------------------------------------------------------------------
  bool Supports(Route route) const override;
  bool Submit(const TransferOp& op) override;
  void Poll(TimeNs timeout_ns, std::vector<OpResult>* results) override;

  bool HasResults() const { return !results_.empty(); }
  // True when a Submit said "full" since the last call.
  bool TakeBlocked() { return std::exchange(blocked_, false); }

  struct RouteMetrics {
    Histogram latency_ns;
    Histogram copy_ns;  // as the rank says, of ops that copied
    std::atomic<uint64_t> ops{0}, failed_ops{0}, bytes{0};
  };
  const RouteMetrics& metrics(Route route) const { return metrics_[static_cast<size_t>(route)]; }

 private:
  struct PartKey {
    OpKey key = 0;
    uint32_t part = 0;
    friend bool operator==(const PartKey&, const PartKey&) = default;
  };
  struct PartKeyHash {
    size_t operator()(const PartKey& part) const {
      return std::hash<OpKey>()(part.key + part.part * 0x9e3779b97f4a7c15ull);
    }
  };
  struct Running {
    OpId id = 0;
    Route route = Route::kDeviceToCpu;
    uint32_t num_blocks = 0;
    TimeNs started = 0;
  };
  struct Worker {
    ClientConnection* client = nullptr;
    EngineHandle engine = 0;  // 0: not attached
    uint32_t rank = 0;
    std::unordered_map<PartKey, Running, PartKeyHash> running;
    std::deque<PartKey> refused;  // latest refusals, bounded
    uint64_t seen_segments = 0;
    std::set<SegmentId> segments;  // sent, or in `packets`
    std::deque<shm::SegmentPacket> packets;
  };

  Worker* Find(EngineHandle engine, uint32_t rank);
  Worker* Find(const ClientConnection* client);
  // False while segment packets are waiting for room in the socket.
  bool SyncSegments(Worker* worker);
  bool KnowsSegments(const Worker& worker, const TransferOp& op) const;
  static bool Sendable(const TransferOp& op);
  void EndUnsent(Worker* worker, const TransferOp& op);
  void Finish(const Worker& worker, const Running& op, OpResult result);

  const Clock* clock_;
  const ArenaDirectory* directory_ = nullptr;
  std::map<uint64_t, Worker> workers_;  // by client id
  std::map<std::pair<EngineHandle, uint32_t>, uint64_t> by_rank_;
  std::vector<OpResult> results_;
  std::vector<shm::OpBlock> scratch_;
  bool blocked_ = false;
  RouteMetrics metrics_[kNumRoutes];
};

}  // namespace flexkv
