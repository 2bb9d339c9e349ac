// The control thread: owns the cache, the transfer engine and every connection. Each round it runs
// what other threads posted, reads a bounded number of requests of each client in turn, lets the
// cache make progress and delivers what came of it; with nothing to do it spins a moment and then
// sleeps on the doorbell.
#pragma once

#include <array>
#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "flexkv/cache/cache_manager.h"
#include "flexkv/server/client_connection.h"
#include "flexkv/server/device_executor.h"
#include "flexkv/server/engine_connection.h"
#include "flexkv/server/io_thread.h"
#include "flexkv/server/mailbox.h"
#include "flexkv/server/snapshot.h"
#include "flexkv/server/ssd_tier.h"
#include "flexkv/server/trace_log.h"
#include "flexkv/transfer/device_agent.h"
#include "flexkv/transfer/transfer_engine.h"

namespace flexkv {

struct ControlLoopOptions {
  CacheManagerOptions cache;
  uint32_t max_engines = 64;
  uint32_t spin_us = 20;
  uint64_t idle_exit_s = 0;
  uint64_t boot_id = 0;
  CopyOptions copy;           // told to workers
  TraceLog* trace = nullptr;  // outlives the loop; null: no trace
  // Called once on the control thread when there was no client for idle_exit_s.
  std::function<void()> on_idle_exit;
};

// How a clear ended, see ControlLoop::Clear.
struct ClearOutcome {
  uint32_t namespaces = 0;
  bool noted = true;  // false: an SSD device would not note it
};

class ControlLoop : public IoEvents, public ArenaDirectory {
 public:
  using Options = ControlLoopOptions;

  // `doorbell_fd` is passed to clients; `doorbell` is its mapping; both, `segments` and `ssd`
  // (null: no SSD tier) outlive the loop.
  ControlLoop(Options options, MemfdSegmentStore* segments, SsdTier* ssd, int doorbell_fd,
              shm::Bell* doorbell);
  ~ControlLoop() override;

  // `io` outlives the thread. Start once, Stop once; after Stop nothing runs any more.
  void Start(IoThread* io);
  void Stop();

  Mailbox* mailbox() { return &mailbox_; }

  // Control thread (use mailbox()->Call).
  DaemonSnapshot TakeSnapshot();
  // Forgets what is cached under a label ("" = all) and returns how many namespaces that were;
  // `done` is called on the control thread once the SSD devices have noted it (at once without
  // any), or dropped uncalled when the loop ends before. Matches end on return.
  uint32_t Clear(const std::string& label, std::function<void(ClearOutcome)> done);

  // IoEvents: any thread, posted.
  void OnClient(NewClient client) override;
  void OnGoodbye(uint64_t client_id) override;
  void OnHangUp(uint64_t client_id) override;
  void OnBadPacket(uint64_t client_id) override;
  void OnExit(uint64_t client_id) override;

  // ArenaDirectory
  bool SegmentsOf(EngineHandle engine, uint32_t rank, uint64_t* seen,
                  std::vector<SegmentId>* segments) const override;
  int Fd(SegmentId segment) const override { return segments_->Fd(segment); }
  uint64_t Bytes(SegmentId segment) const override { return segments_->Bytes(segment); }

 private:
  void Run();
  bool Round();
  bool DrainRings();
  bool DrainClient(ClientConnection* client);
  absl::Status Handle(ClientConnection* client);
  absl::Status HandleWorkerMessage(ClientConnection* client);
  absl::Status HandleDeviceReport(ClientConnection* client);
  void TickIfDue();
  void DeliverEvents();
  void Deliver(const ManagerEvent& event);
  void FinishClear(const ManagerEvent& event);
  void FlushClients();
  bool HasWork() const;
  bool HasRingWork() const;
  TimeNs SleepTime() const;
  void CheckIdleExit();
  void ReportPages();
  TraceSnapshot SnapshotOfTrace() const;

  void Admit(NewClient client);
  absl::Status Place(const ClientHello& hello, pid_t pid);
  ClientConnection* Find(uint64_t client_id);
  // The client broke the protocol: it is cut off and said so once.
  void Violate(ClientConnection* client, const std::string& reason);
  // Takes it out of its engine; forgets it unless a copy of its may still run.
  void Leave(ClientConnection* client);
  // No thread of the client copies any more: its ops end, it is forgotten.
  void Bury(ClientConnection* client);
  void Forget(ClientConnection* client);

  const Options options_;
  SteadyClock clock_;
  MemfdSegmentStore* segments_;
  SsdTier* ssd_;  // may be null
  const int doorbell_fd_;
  shm::Bell* doorbell_;
  Mailbox mailbox_;
  DeviceExecutor executor_;
  TransferEngine transfers_;
  CacheManager manager_;
  std::unique_ptr<TraceRecorder> recorder_;  // null: no trace
  IoThread* io_ = nullptr;
  const TimeNs started_;

  std::map<uint64_t, std::unique_ptr<ClientConnection>> clients_;
  std::map<EngineId, std::unique_ptr<EngineConnection>> engines_;
  TimeNs now_ = 0;  // read once per round
  TimeNs last_tick_ = 0;
  TimeNs last_client_ = 0;
  bool dirty_ = false;  // something happened since the last tick
  bool idle_exit_told_ = false;
  uint64_t clients_dropped_ = 0;
  PageKind pages_ = PageKind::kUnknown;  // as last said in the log
  Histogram match_latency_ns_;
  struct PendingClear {
    ClearOutcome outcome;
    std::function<void(ClearOutcome)> done;
  };
  uint64_t next_clear_ = 1;
  std::map<uint64_t, PendingClear> clears_;  // by tag; waiting for their kResetDone
  shm::Message message_;                     // scratch
  std::vector<std::byte> payload_;           // scratch
  std::vector<ManagerEvent> events_;         // scratch

  std::atomic<bool> stopping_{false};
  std::thread thread_;
};

}  // namespace flexkv
