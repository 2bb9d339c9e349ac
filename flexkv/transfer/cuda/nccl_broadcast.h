// One rank sends a buffer to all others, GPU to GPU, by NCCL: what a load of blocks that are the
// same on all ranks may use instead of every rank copying them from the arena. Whether that is
// faster is BroadcastPays' question; why the load path does not use it yet is said in
// docs/design/006-cuda-agent.md, "Broadcast".
//
// NCCL is opened at run time: nothing links against it and no header of it is needed. The few
// functions used are declared here after NCCL's public API (stable since 2.14). Communicators are
// made non-blocking, so that no call of ours waits longer than it was allowed to, whatever the
// other ranks do.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/transfer/cuda/cuda_api.h"

namespace flexkv::cuda {

// --- the library
// -----------------------------------------------------------------------------------

using NcclComm = void*;  // ncclComm_t

struct NcclId {  // ncclUniqueId: made by one rank, told to all; addresses it can be reached at
  char bytes[128] = {};
};

// ncclConfig_t as NCCL 2.14 had it. Later versions read as much of it as `bytes` says and take
// their defaults for what came after `version`.
struct NcclConfig {
  size_t bytes = sizeof(NcclConfig);
  unsigned int magic = 0xcafebeef;
  unsigned int version = 21400;
  int blocking = 0;
  int unused = INT32_MIN;  // "not set", where later versions have a field
};

enum NcclResult : int { kNcclSuccess = 0, kNcclInProgress = 7 };  // ncclResult_t; others: errors
inline constexpr int kNcclBytes = 1;                              // ncclUint8

struct NcclFunctions {
  int (*get_version)(int* version) = nullptr;
  int (*get_unique_id)(NcclId* id) = nullptr;
  int (*comm_init_rank_config)(NcclComm* comm, int ranks, NcclId id, int rank,
                               NcclConfig* config) = nullptr;
  int (*comm_get_async_error)(NcclComm comm, int* state) = nullptr;
  int (*broadcast)(const void* source, void* target, size_t count, int type, int root,
                   NcclComm comm, Stream stream) = nullptr;
  int (*comm_finalize)(NcclComm comm) = nullptr;
  int (*comm_destroy)(NcclComm comm) = nullptr;
  int (*comm_abort)(NcclComm comm) = nullptr;
  const char* (*get_error_string)(int result) = nullptr;
  const char* (*get_last_error)(NcclComm comm) = nullptr;
};

class NcclLibrary {
 public:
  // `path`: the library; empty = the one this process has loaded already (the engine's), else
  // libnccl.so.2 where the system finds it. It stays loaded for the life of the process. NotFound:
  // there is none; FailedPrecondition: not NCCL, or older than 2.14.
  static absl::StatusOr<std::shared_ptr<const NcclLibrary>> Open(const std::string& path = "");
  // For tests. The same codes.
  static absl::StatusOr<std::shared_ptr<const NcclLibrary>> Of(const NcclFunctions& functions);

  int version() const { return version_; }  // 22809: 2.28.9
  std::string VersionText() const;
  // NCCL then listens on a TCP port of its own choice until a communicator was made of the id.
  absl::StatusOr<NcclId> MakeId() const;
  const NcclFunctions& functions() const { return functions_; }
  // What `result` of a call on `comm` (may be null) means. REQUIRES: neither success nor in
  // progress.
  absl::Status Error(const char* what, int result, NcclComm comm) const;

 private:
  NcclLibrary(const NcclFunctions& functions, int version)
      : functions_(functions), version_(version) {}

  const NcclFunctions functions_;
  const int version_;
};

// --- a communicator
// --------------------------------------------------------------------------------

// One thread at a time. After an error other than InvalidArgument nothing but Close and Abort is of
// use: the ranks do not agree any more on what comes next.
class NcclBroadcaster {
 public:
  struct Options {
    uint32_t ranks = 1;
    uint32_t rank = 0;
    TimeNs timeout_ns = 10 * kNsPerSecond;  // until all ranks have come
  };
  // Of the calling thread's current device. All ranks call it with the same id. DeadlineExceeded:
  // not all came; InvalidArgument; Internal: what NCCL says.
  static absl::StatusOr<std::unique_ptr<NcclBroadcaster>> Create(
      std::shared_ptr<const NcclLibrary> library, const NcclId& id, const Options& options);
  ~NcclBroadcaster();  // aborts, waiting at most a second

  // Enqueues on `stream`: what `bytes` at `buffer` (device memory) are on rank `root` they become
  // on all. All ranks enqueue the same broadcasts in the same order; on a rank the kernel runs
  // until the others have come, so whoever cannot come must make the others Abort.
  // DeadlineExceeded: it could not be enqueued in time.
  absl::Status Broadcast(void* buffer, uint64_t bytes, uint32_t root, Stream stream,
                         TimeNs timeout_ns);
  // Whether anything enqueued so far has failed.
  absl::Status Check() const;
  // Waits for what was enqueued, on all ranks, then gives the communicator back. When that does not
  // end in time it is aborted and DeadlineExceeded returned.
  absl::Status Close(TimeNs timeout_ns);
  // Stops what was enqueued, wherever it is. DeadlineExceeded: NCCL has not come back from it yet;
  // the communicator is left to it.
  absl::Status Abort(TimeNs timeout_ns);

 private:
  NcclBroadcaster(std::shared_ptr<const NcclLibrary> library, NcclComm comm, uint32_t ranks)
      : library_(std::move(library)), comm_(comm), ranks_(ranks) {}
  absl::Status AwaitIdle(const char* what, TimeNs deadline) const;
  absl::Status GiveUp(int (*call)(NcclComm), TimeNs timeout_ns);

  const std::shared_ptr<const NcclLibrary> library_;
  NcclComm comm_;  // null: given back
  const uint32_t ranks_;
  SteadyClock clock_;
};

// --- the choice
// ------------------------------------------------------------------------------------

struct BroadcastRates {    // bytes per second, measured; 0: not measured
  double copy = 0;         // from the arena to one GPU, the others idle
  double broadcast = 0;    // from one GPU to all others
  double host_memory = 0;  // what all GPUs together get out of the arena at once
};

// True when one rank's copy and a broadcast behind it, chunk by chunk, bring the same bytes to
// `ranks` GPUs clearly faster than all copying by themselves. Each GPU has a link of its own, so
// the two differ only where host memory is what limits. "Clearly": by a fifth, since a broadcast
// also takes SMs from the model and ties the ranks to the slowest. False when anything is unknown.
bool BroadcastPays(const BroadcastRates& rates, uint32_t ranks);

}  // namespace flexkv::cuda
