// A daemon in this process on a directory of its own, and an engine of raw clients whose worker
// "copies" by writing and checking content that is a function of the block hash.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "flexkv/server/admin_client.h"
#include "flexkv/server/daemon_server.h"
#include "flexkv/transfer/transfer_op.h"
#include "gtest/gtest.h"
#include "tests/server/raw_client.h"

namespace flexkv {

inline constexpr uint64_t kTestShardBytes = 4096;

struct CommandResult {
  int code = -1;
  std::string output;  // both streams
};

// Runs a shell line to its end.
CommandResult Execute(const std::string& command);

class DaemonTest : public testing::Test {
 protected:
  void SetUp() override { StartDaemon(); }
  virtual void Adjust(DaemonConfig* /*config*/) {}
  void StartDaemon();
  void StopDaemon() { server_.reset(); }

  std::string Socket() const { return dir_.path() + "/flexkv/daemon.sock"; }
  admin::v1::StatusReply Status();

  TempDir dir_;
  std::unique_ptr<DaemonServer> server_;
  std::atomic<int> stops_wanted_{0};
};

// Scheduler and one worker in this process.
class RawEngine {
 public:
  // Attaches both and waits until ready; fails the test when that does not happen.
  RawEngine(const std::string& socket, uint64_t id, const std::string& fingerprint = "fp");

  RawClient& scheduler() { return *scheduler_; }
  RawClient& worker() { return *worker_; }

  // Offers the chain; returns how many blocks were accepted and arrived.
  uint32_t Store(RequestKey request, const std::vector<BlockHash>& chain);
  struct Hit {
    uint32_t matched = 0;
    LeaseId lease = 0;
    uint32_t status = 0;
  };
  Hit Lookup(RequestKey request, const std::vector<BlockHash>& chain);
  // Loads the matched prefix and checks every byte; returns blocks that are right, -1 when nothing
  // came.
  int LoadAndCheck(RequestKey request, const std::vector<BlockHash>& chain, const Hit& hit);
  // Store, lookup and load of a fresh chain all work.
  void ExpectWorks(uint64_t seed);
  OpKey NextOp() { return next_op_++; }

 private:
  std::span<std::byte> Place(const shm::OpBlock& block);

  std::unique_ptr<RawClient> scheduler_, worker_;
  OpKey next_op_ = 1;
};

}  // namespace flexkv
