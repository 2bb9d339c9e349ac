// The small shared table of the reduced mode: where the engine's connector shim forwards no step
// metadata, the scheduler's half publishes its plans here and every rank's worker reads them.
//
// One memfd, made by the scheduler's process and handed to same-user workers over an abstract Unix
// socket named by the engine id, so nothing is left behind when a process is killed, and daemon
// restarts do not touch it.
//
// Plans form a byte ring with one producer and world_size readers, each with a head of its own.
// Format: BoardHeader, then a BoardRank per rank, then kPlanBytes of plans ([u64 length][bytes,
// padded to 8]).
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv {

inline constexpr uint32_t kMaxBoardRanks = 256;

struct BoardHeader;
struct BoardRank;

// Scheduler side. One thread; a private thread hands the board to workers.
class PlanBoard {
 public:
  static absl::StatusOr<std::unique_ptr<PlanBoard>> Create(const uint64_t engine_id[2],
                                                           uint32_t world_size);
  ~PlanBoard();
  // False: a worker has not read for so long that there is no room; nothing was published.
  bool Publish(std::span<const std::byte> plan);

 private:
  PlanBoard() = default;
  void Serve();

  uint32_t world_size_ = 0;
  UniqueFd memory_;
  SharedMapping mapping_;
  UniqueFd listener_;
  UniqueFd stop_event_;
  uint64_t tail_ = 0;
  std::thread thread_;
};

// Worker side. One thread.
class PlanBoardReader {
 public:
  // Unavailable: the scheduler's half is not there (yet); call again. Waits at most timeout_ms.
  static absl::StatusOr<std::unique_ptr<PlanBoardReader>> Open(const uint64_t engine_id[2],
                                                               uint32_t rank, uint32_t world_size,
                                                               int timeout_ms);
  // The next plan, false when there is none.
  bool Next(std::vector<std::byte>* plan);

 private:
  PlanBoardReader() = default;
  uint32_t rank_ = 0;
  uint32_t world_size_ = 0;
  SharedMapping mapping_;
  uint64_t head_ = 0;
};

}  // namespace flexkv
