// The daemon's side of the protocol under a test's control: accepts clients, lets the test read
// each request and write each completion. Real sockets, memfds and rings; only the decisions are
// the test's.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "flexkv/base/unique_fd.h"
#include "proto/packet_socket.h"
#include "proto/shm_ring.h"

namespace flexkv::testing {

class ScriptedClient {
 public:
  ScriptedClient(UniqueFd socket, SharedMapping region, shm::Hello hello, std::string text);

  const shm::Hello& hello() const { return hello_; }
  const std::string& text() const { return text_; }
  // Waits up to a second for the next request of any type; type kNone when none came.
  shm::Message Next(std::vector<std::byte>* payload = nullptr);
  // Next request of this type, skipping others.
  shm::Message Next(shm::MessageType type, std::vector<std::byte>* payload = nullptr);
  void Reply(const shm::Message& message, std::span<const std::byte> payload = {});
  void SendSegment(SegmentId segment, int fd, uint64_t bytes);
  void EngineReady(bool ready);
  bool SaidGoodbye();
  void Close() { socket_.Reset(); }

 private:
  UniqueFd socket_;
  SharedMapping region_;
  shm::Hello hello_;
  std::string text_;
  shm::RegionView view_;
  shm::RingConsumer requests_;
  shm::RingProducer completions_;
};

class ScriptedDaemon {
 public:
  // Listens on a fresh path under the test's temporary directory.
  explicit ScriptedDaemon(uint64_t boot_id = 1);
  ~ScriptedDaemon();
  const std::string& path() const { return path_; }
  // Waits up to two seconds for a client; null when none came.
  std::unique_ptr<ScriptedClient> Accept();
  // Stops listening and starts again as another boot.
  void Restart(uint64_t boot_id);

 private:
  void Listen();
  std::string path_;
  uint64_t boot_id_;
  UniqueFd listener_;
  UniqueFd doorbell_;
};

}  // namespace flexkv::testing
