// One client's attachment to the daemon, kept up by a private thread: connects, shakes hands,
// receives arena segments, notices the daemon's death, attaches again. Everything that can be lost
// with a daemon lives in a Channel.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <thread>

#include "flexkv/base/ids.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/transfer/device_agent.h"
#include "proto/packet_socket.h"
#include "proto/shm_layout.h"
#include "proto/shm_ring.h"

namespace flexkv {

// One attachment, from Welcome to the loss of the connection. Rings may be used after `alive`
// turned false (the memory stays mapped); nobody answers then.
class Channel {
 public:
  Channel(SharedMapping region, SharedMapping doorbell, uint64_t boot_id, const CopyOptions& copy);

  uint64_t boot_id() const { return boot_id_; }
  // What the daemon's configuration says, in range.
  const CopyOptions& copy_options() const { return copy_options_; }
  bool alive() const { return alive_.load(std::memory_order_acquire); }
  void MarkDead() { alive_.store(false, std::memory_order_release); }

  // Client thread only. False: full or dead. Post leaves the bell alone: the daemon sees the
  // message when it next looks (Ring, another client, or its own tick, 100 ms at most). A system
  // call for each message of a step would cost more than all else a step does.
  bool Post(const shm::Message& message, std::span<const std::byte> payload = {});
  void Ring();
  bool Push(const shm::Message& message, std::span<const std::byte> payload = {});  // Post and Ring
  shm::PopResult Pop(shm::Message* message, std::vector<std::byte>* payload) {
    return consumer_.Pop(message, payload);
  }
  bool HasCompletion() const { return !consumer_.Empty(); }
  shm::Bell* bell() { return &view_.header->client_bell; }
  // Sleeps until the daemon (or RingOwnBell) rings, a completion is there, or the time is over.
  void Sleep(TimeNs timeout_ns);
  void RingOwnBell() { shm::RingBell(bell()); }

 private:
  SharedMapping region_;
  SharedMapping doorbell_;
  uint64_t boot_id_;
  CopyOptions copy_options_;
  shm::RegionView view_;
  shm::RingProducer producer_;
  shm::RingConsumer consumer_;
  std::atomic<bool> alive_{true};
};

// Segments received from the daemon, by id; mapped at arrival. Thread-safe. The device's side of
// the process may want to know them (to register them): it is told before anybody can find a
// segment, and before it is unmapped.
class SegmentTable {
 public:
  using OnMapped = std::function<void(SegmentId, std::span<std::byte>)>;
  using OnGone = std::function<void(SegmentId)>;
  // Before the first Add. Called on the threads that call the methods below, without a lock held.
  void Notify(OnMapped on_mapped, OnGone on_gone);
  void Add(SegmentId segment, SharedMapping mapping);
  void Retire(SegmentId segment);  // unmapped by the next Sweep
  void Sweep();                    // REQUIRES: nobody uses retired segments
  void Clear();
  bool HasRetired() const;
  // Waits at most `timeout_ns` for a segment that is on its way. Empty when it does not come.
  std::span<std::byte> Find(SegmentId segment, TimeNs timeout_ns);

 private:
  void Unmap(std::map<SegmentId, SharedMapping> segments);

  OnMapped on_mapped_;
  OnGone on_gone_;
  mutable std::mutex mutex_;  // taken by the link's thread and the agent's thread, once per op
  std::condition_variable arrived_;
  std::map<SegmentId, SharedMapping> segments_;
  std::map<SegmentId, SharedMapping> retired_;
};

class DaemonLink {
 public:
  struct Options {
    std::string socket_path;
    shm::Hello hello;
    std::string text;                  // follows the Hello
    SegmentTable* segments = nullptr;  // workers
    // Called on the link's thread: before a new channel is published; after one was lost, and
    // before the goodbye of an orderly end. A worker quiesces its agent in on_lost: when it
    // returns, no thread copies any more.
    std::function<void(const std::shared_ptr<Channel>&)> on_attached;
    std::function<void()> on_lost;
    // Called about every 100 ms on the link's thread.
    std::function<void()> on_idle;
  };
  explicit DaemonLink(Options options);
  ~DaemonLink();  // detaches: says goodbye, joins the thread

  // The present channel; null when detached. Cheap: one atomic load when nothing changed since
  // `*cached`.
  const std::shared_ptr<Channel>& Current(std::shared_ptr<Channel>* cached,
                                          uint64_t* generation) const;
  uint64_t attachments() const { return attachments_.load(std::memory_order_relaxed); }
  // Why the daemon turned us down, empty when it did not.
  std::string rejection() const;

 private:
  void Run();
  bool AttachOnce();
  // Until the connection is lost or the link is being destroyed.
  void Serve();
  bool HandlePacket(const shm::Packet& packet);
  void Publish(std::shared_ptr<Channel> channel);
  bool WaitStop(int timeout_ms);

  Options options_;
  UniqueFd stop_event_;
  UniqueFd socket_;
  mutable std::mutex mutex_;  // guards channel_ and rejection_
  std::shared_ptr<Channel> channel_;
  std::string rejection_;
  std::atomic<uint64_t> generation_{0};
  std::atomic<uint64_t> attachments_{0};
  std::thread thread_;
};

}  // namespace flexkv
