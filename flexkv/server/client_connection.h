// One attached process: its rings, its socket, and what could not be sent to it yet. Control thread
// only.
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/clock.h"
#include "flexkv/server/io_thread.h"
#include "proto/shm_ring.h"

namespace flexkv {

class EngineConnection;

class ClientConnection {
 public:
  // REQUIRES: the client's region is mapped and its header written.
  explicit ClientConnection(NewClient client);

  uint64_t id() const { return link_->client_id; }
  pid_t pid() const { return link_->peer.pid; }
  const ClientHello& hello() const { return hello_; }
  bool is_worker() const { return hello_.role == shm::Role::kWorker; }

  // Answers the hello; hands the rings over. Closes the daemon's descriptor of the region.
  absl::Status SendWelcome(uint64_t boot_id, int doorbell_fd, const shm::DeviceOptionsBody& device);
  absl::Status SendPacket(std::span<const std::byte> bytes, std::span<const int> fds);
  // The peer reads end-of-file from now on; its own packets still arrive.
  void CloseSending();

  // Sends now or keeps for later; nothing that is sent this way overtakes or gets lost.
  void Send(const shm::Message& message, TimeNs now);
  // Sends now or not at all.
  bool TrySend(const shm::Message& message, std::span<const std::byte> payload, TimeNs now);
  // Sends what was kept; false while something is left.
  bool Flush(TimeNs now);
  bool backlogged() const { return !outbox_.empty(); }
  // Its socket took nothing, or took something.
  void NoteSocket(bool took, TimeNs now) { took ? socket_stall_.Clear() : socket_stall_.Note(now); }
  // For how long the client has taken nothing although something waited for it; too much kept for
  // it counts as well.
  bool Stalled(TimeNs limit) const {
    return ring_stall_.Length() > limit || socket_stall_.Length() > limit ||
           outbox_.size() > kMaxKept;
  }

  shm::PopResult Pop(shm::Message* message, std::vector<std::byte>* payload) {
    return requests_.Pop(message, payload);
  }
  // True when a request waits that may be read now: a client that does not take its answers is not
  // read from.
  bool Readable() const { return !muted_ && outbox_.size() < kMaxOutbox && !requests_.Empty(); }
  // Nothing more is read from its ring: it broke the protocol.
  void Mute() { muted_ = true; }
  bool muted() const { return muted_; }

  // Not a member of an engine any more; kept only until its ops have ended.
  bool lingering = false;
  EngineConnection* engine = nullptr;

 private:
  static constexpr size_t kMaxOutbox = 4096;
  static constexpr size_t kMaxKept = 65536;

  // From the first failed attempt to the latest one, with no success between.
  class Stall {
   public:
    void Note(TimeNs now) {
      if (first_ == 0) first_ = now;
      latest_ = now;
    }
    void Clear() { first_ = latest_ = 0; }
    TimeNs Length() const { return latest_ - first_; }

   private:
    TimeNs first_ = 0, latest_ = 0;
  };

  bool Push(const shm::Message& message, std::span<const std::byte> payload, TimeNs now);

  ClientHello hello_;
  std::shared_ptr<PeerLink> link_;  // shared with the I/O thread, see PeerLink
  UniqueFd region_fd_;
  SharedMapping region_;
  shm::RegionView view_;
  shm::RingConsumer requests_;
  shm::RingProducer completions_;
  std::deque<shm::Message> outbox_;
  Stall ring_stall_, socket_stall_;
  bool muted_ = false;
};

}  // namespace flexkv
