// One engine as the daemon sees it: a scheduler and world_size workers that came with the same
// engine id. When all are there it is attached to the CacheManager; when one is lost it is
// detached, and the others wait for the missing one to come back. Control thread only.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/server/client_connection.h"
#include "flexkv/server/device_executor.h"
#include "flexkv/server/message_handler.h"

namespace flexkv {

class EngineConnection : public EngineSink {
 public:
  EngineConnection(const ClientHello& first, CacheManager* manager, DeviceExecutor* executor);

  // FailedPrecondition, in a sentence for the client: its place is taken, or it disagrees with the
  // others.
  absl::Status Admits(const ClientHello& hello) const;
  // The member that sits where `hello` wants to sit; null when the place is free.
  ClientConnection* Occupant(const ClientHello& hello) const;
  // REQUIRES: Admits. Attaches when that completes the engine.
  void Add(ClientConnection* client, TimeNs now);
  // A rank says that it takes ops; attaches when that completes the engine. InvalidArgument: it
  // said so before.
  absl::Status OnWorkerReady(ClientConnection* worker, TimeNs now);
  // What a rank says of its device; the last one stays until the rank goes.
  void OnDeviceReport(const ClientConnection* worker, const shm::DeviceReportBody& report) {
    devices_[worker->hello().rank] = report;
  }
  // Detaches if attached, tells the scheduler.
  void Remove(ClientConnection* client, TimeNs now);
  bool Empty() const { return scheduler_ == nullptr && present_workers_ == 0; }

  EngineHandle handle() const { return handle_; }  // 0: not attached
  const EngineId& id() const { return id_; }
  const std::string& label() const { return label_; }
  uint32_t world_size() const { return world_size_; }
  uint32_t tokens_per_block() const { return tokens_per_block_; }
  uint32_t present_workers() const { return present_workers_; }
  uint64_t block_bytes() const;  // that are stored
  pid_t scheduler_pid() const { return scheduler_ == nullptr ? 0 : scheduler_->pid(); }
  const shm::EngineStatsBody& stats() const { return stats_; }
  // By rank, of those that have reported.
  const std::map<uint32_t, shm::DeviceReportBody>& devices() const { return devices_; }
  TimeNs attached_at() const { return attached_at_; }

  void OnEvent(const ManagerEvent& event, TimeNs now);

  // EngineSink
  void ToScheduler(const shm::Message& message) override;
  void RefuseAtWorkers(OpKey key, Route route) override;
  void OnStats(const shm::EngineStatsBody& stats) override { stats_ = stats; }

 private:
  bool Complete() const { return scheduler_ != nullptr && ready_workers_ == world_size_; }
  // InvalidArgument: the members' hellos contradict each other.
  absl::Status CheckMembers() const;
  bool Replicated() const;  // as its ranks say; agreed upon when attached
  EngineSpec MakeSpec() const;
  void Attach(TimeNs now);
  void RefuseAtWorkers(OpKey key, Route route, uint32_t spared_rank);
  void SendReady(uint32_t ready, shm::WireStatus status, TimeNs now);

  const EngineId id_;
  const uint32_t world_size_;
  CacheManager* manager_;
  DeviceExecutor* executor_;
  uint32_t tokens_per_block_ = 0;
  std::string label_ = "unnamed";
  ClientConnection* scheduler_ = nullptr;
  std::vector<ClientConnection*> workers_;
  uint32_t present_workers_ = 0;
  std::vector<bool> ready_;  // per rank
  uint32_t ready_workers_ = 0;
  EngineHandle handle_ = 0;
  TimeNs attached_at_ = 0;
  TimeNs now_ = 0;  // of the latest call
  shm::EngineStatsBody stats_;
  std::map<uint32_t, shm::DeviceReportBody> devices_;
};

}  // namespace flexkv
