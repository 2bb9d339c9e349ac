// The daemon's I/O thread: accepts handshakes, checks who is there and what they ask, and tells of
// goodbyes, hang-ups and deaths. It owns no cache state: everything is handed to an IoEvents, whose
// calls post to the control thread.
#pragma once

#include <atomic>
#include <cstdint>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/server/hello.h"
#include "flexkv/server/peer.h"

namespace flexkv {

// A client's socket and pidfd. Shared by the I/O thread, which waits on them, and the control
// thread, which sends packets: the last of the two to let go closes them.
struct PeerLink {
  uint64_t client_id = 0;
  PeerCredentials peer;
  UniqueFd socket;
  UniqueFd pidfd;
};

// A client whose hello is in order; nothing has been answered yet.
struct NewClient {
  ClientHello hello;
  std::shared_ptr<PeerLink> link;
  UniqueFd region_fd;  // sealed memfd, header written
  SharedMapping region;
};

// Called on the I/O thread. For one client: OnClient first, OnExit last.
class IoEvents {
 public:
  virtual ~IoEvents() = default;
  virtual void OnClient(NewClient client) = 0;
  virtual void OnGoodbye(uint64_t client_id) = 0;
  virtual void OnHangUp(uint64_t client_id) = 0;
  virtual void OnBadPacket(uint64_t client_id) = 0;
  virtual void OnExit(uint64_t client_id) = 0;  // the process is dead
};

struct IoThreadOptions {
  std::vector<uid_t> allowed_uids;
  uint64_t boot_id = 0;
  uint32_t max_pending = 64;          // handshakes that have not sent a hello yet
  uint32_t max_refused_pending = 16;  // and those of users who are not allowed
  TimeNs hello_timeout_ns = 2 * kNsPerSecond;
  TimeNs refused_timeout_ns = 200 * kNsPerMs;
};

class IoThread {
 public:
  using Options = IoThreadOptions;
  // Starts the thread. `listener` listens already; `events` outlives the thread.
  static absl::StatusOr<std::unique_ptr<IoThread>> Start(Options options, UniqueFd listener,
                                                         IoEvents* events);
  ~IoThread();  // stops and joins; no event is told afterwards

  // Any thread: nothing more is told of this client.
  void Forget(uint64_t client_id);

  struct Counters {
    std::atomic<uint64_t> accepted{0}, rejected{0}, timed_out{0}, refused_uid{0};
  };
  const Counters& counters() const { return counters_; }

 private:
  struct Pending {
    UniqueFd socket;
    PeerCredentials peer;
    TimeNs deadline = 0;
    std::string refusal;  // not empty: will be turned away with this, once it has sent its hello
                          // and so reads the answer
  };

  IoThread(Options options, UniqueFd listener, UniqueFd epoll, UniqueFd wake, IoEvents* events);
  void Run();
  void Accept();
  void RefuseUser(UniqueFd socket, const PeerCredentials& peer);
  void AddPending(Pending pending);
  void ReceiveHello(uint64_t id);
  void Admit(uint64_t id, Pending pending, ClientHello hello);
  void Reject(int socket, const std::string& sentence);
  void ReadPackets(uint64_t id);
  void HandleExit(uint64_t id);
  void HandleForgets();
  void DropExpired();
  int NextTimeoutMs() const;
  bool Watch(int fd, uint64_t token);

  const Options options_;
  UniqueFd listener_;
  UniqueFd epoll_;
  UniqueFd wake_;   // eventfd
  UniqueFd spare_;  // given up for a moment when descriptors run out, to turn connections away
  IoEvents* events_;
  SteadyClock clock_;
  Counters counters_;
  uint64_t next_id_ = 1;
  std::map<uint64_t, Pending> pending_;
  std::map<uint64_t, std::shared_ptr<PeerLink>> links_;
  std::atomic<bool> stopping_{false};
  std::mutex mutex_;               // the control thread adds, this thread takes
  std::vector<uint64_t> forgets_;  // guarded by mutex_
  std::thread thread_;
};

// The packet that turns a client away: its type, then the sentence.
std::vector<std::byte> RejectPacket(const std::string& sentence);

}  // namespace flexkv
