// The least client of the daemon's protocol, for tests: attaches, pushes whatever it is told, reads
// what comes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/unique_fd.h"
#include "proto/packet_socket.h"
#include "proto/shm_layout.h"
#include "proto/shm_ring.h"

namespace flexkv {

// A hello in order for this process.
shm::Hello SchedulerHello(uint64_t engine, uint32_t world_size = 1);
shm::Hello WorkerHello(uint64_t engine, uint32_t rank = 0, uint32_t world_size = 1,
                       uint64_t shard_bytes = 4096);
std::string SchedulerText(const std::string& label, const std::string& fingerprint = "fp");
std::vector<std::byte> HelloPacket(shm::Hello hello, const std::string& text);

struct RawMessage {
  shm::Message message;
  std::vector<std::byte> payload;
};

class RawClient {
 public:
  // FailedPrecondition with the daemon's sentence when it rejects.
  static absl::StatusOr<std::unique_ptr<RawClient>> Attach(const std::string& socket_path,
                                                           const shm::Hello& hello,
                                                           const std::string& text,
                                                           bool say_ready = true);

  bool Push(shm::Message message, std::span<const std::byte> payload = {});
  void RingDaemon() { shm::RingBell(reinterpret_cast<shm::Bell*>(doorbell_.data())); }
  // The next message of `type`, others before it are dropped. nullopt after timeout_ms.
  std::optional<RawMessage> WaitFor(shm::MessageType type, int timeout_ms = 5000);
  std::optional<RawMessage> Next();
  // Copies reported from now on take so long, and say so.
  void CopyFor(TimeNs copy_ns) { copy_ns_ = copy_ns; }
  void ReportDone(const shm::Message& op, OpKey key, std::span<const uint32_t> failed = {});
  // Maps the segment, reading packets until it comes. Empty after timeout_ms.
  std::span<std::byte> Segment(SegmentId segment, int timeout_ms = 5000);
  bool SayGoodbye();
  void Close() { socket_.Reset(); }
  // True once the daemon has cut the connection.
  bool WaitCut(int timeout_ms = 5000);

  shm::RegionView view() { return shm::RegionView(region_.data()); }
  const shm::Welcome& welcome() const { return welcome_; }
  int socket() const { return socket_.get(); }

 private:
  RawClient() = default;

  shm::Welcome welcome_;
  TimeNs copy_ns_ = 0;
  UniqueFd socket_;
  SharedMapping region_;
  SharedMapping doorbell_;
  shm::RingProducer producer_;
  shm::RingConsumer consumer_;
  std::map<SegmentId, SharedMapping> segments_;
};

// Requests as a scheduler writes them.
shm::Message LookupMessage(RequestKey request, uint32_t first, size_t count);
shm::Message PutMessage(RequestKey request, OpKey op, uint32_t first, uint32_t count,
                        uint32_t suffix_first);
shm::Message LoadMessage(RequestKey request, OpKey op, LeaseId lease, uint32_t first,
                         uint32_t count);
std::span<const std::byte> HashBytes(std::span<const BlockHash> hashes);
std::vector<BlockHash> Chain(uint64_t seed, size_t count);
std::vector<shm::OpBlock> OpBlocks(std::span<const std::byte> payload);

// A directory of its own under /tmp, removed at the end.
class TempDir {
 public:
  TempDir();
  ~TempDir();
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// A program with its standard input and output at our end; killed at the end.
class ChildProcess {
 public:
  explicit ChildProcess(const std::vector<std::string>& arguments);
  ~ChildProcess();
  pid_t pid() const { return pid_; }
  std::string ReadLine(int timeout_ms = 10000);  // "" after timeout_ms or at the end
  void Kill(int signal);
  int Wait();  // exit status, or -signal

 private:
  pid_t pid_ = -1;
  UniqueFd input_, output_;
  bool waited_ = false;
  int status_ = 0;
  std::string buffer_;
};

int CountDescriptors();
bool Eventually(const std::function<bool()>& condition, int timeout_ms = 5000);

}  // namespace flexkv
