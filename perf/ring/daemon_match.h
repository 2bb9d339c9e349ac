// A real flexkvd in another process that holds 1,024 blocks, and a question for them.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/worker_session.h"

namespace flexkv::bench {

class DaemonMatch {
 public:
  static constexpr uint32_t kBlocks = 1024;

  // Starts the daemon at `flexkvd` ("" = beside this program, then PATH), attaches and stores the
  // blocks.
  static absl::StatusOr<std::unique_ptr<DaemonMatch>> Start(const std::string& flexkvd);
  ~DaemonMatch();

  // One new request whose whole prefix is cached: lookup, answer, end. Aborts on a wrong answer.
  void Match();

 private:
  struct Hashes;
  DaemonMatch() = default;
  absl::Status Launch(const std::string& flexkvd);
  absl::Status Attach();
  absl::Status StoreBlocks();

  std::string folder_;
  pid_t pid_ = 0;
  std::vector<std::byte> tensor_;
  std::unique_ptr<HashSource> hashes_;
  std::unique_ptr<SchedulerSession> scheduler_;
  std::unique_ptr<WorkerSession> worker_;
  uint64_t next_ = 0;
};

}  // namespace flexkv::bench
