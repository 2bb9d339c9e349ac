#include "flexkv/transfer/cuda/nccl_broadcast.h"

#include <dlfcn.h>

#include <algorithm>
#include <chrono>
#include <climits>
#include <cmath>
#include <condition_variable>
#include <mutex>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv::cuda {
namespace {

constexpr char kSoname[] = "libnccl.so.2";
constexpr int kOldestVersion = 21400;  // non-blocking communicators
constexpr TimeNs kPollNs = 100'000;
constexpr TimeNs kLastAbortNs = kNsPerSecond;

template <typename Function>
bool Find(void* handle, const char* name, Function* function, std::string* missing) {
  *function = reinterpret_cast<Function>(dlsym(handle, name));
  if (*function != nullptr) return true;
  *missing = name;
  return false;
}

bool FindAll(void* handle, NcclFunctions* f, std::string* missing) {
  return Find(handle, "ncclGetVersion", &f->get_version, missing) &&
         Find(handle, "ncclGetUniqueId", &f->get_unique_id, missing) &&
         Find(handle, "ncclCommInitRankConfig", &f->comm_init_rank_config, missing) &&
         Find(handle, "ncclCommGetAsyncError", &f->comm_get_async_error, missing) &&
         Find(handle, "ncclBroadcast", &f->broadcast, missing) &&
         Find(handle, "ncclCommFinalize", &f->comm_finalize, missing) &&
         Find(handle, "ncclCommDestroy", &f->comm_destroy, missing) &&
         Find(handle, "ncclCommAbort", &f->comm_abort, missing) &&
         Find(handle, "ncclGetErrorString", &f->get_error_string, missing) &&
         Find(handle, "ncclGetLastError", &f->get_last_error, missing);
}

// Two copies of NCCL in one process work, but each has memory and threads of its own.
void* OpenHandle(const std::string& path) {
  if (!path.empty()) return dlopen(path.c_str(), RTLD_NOW | RTLD_LOCAL);
  if (void* loaded = dlopen(kSoname, RTLD_NOW | RTLD_NOLOAD); loaded != nullptr) return loaded;
  return dlopen(kSoname, RTLD_NOW | RTLD_LOCAL);
}

// Runs a call that has no bound of its own on a thread of its own. False: it has not come back.
bool RunBounded(int (*call)(NcclComm), NcclComm comm, TimeNs timeout_ns) {
  struct State {
    std::mutex mutex;
    std::condition_variable ended;
    bool done = false;
  };
  auto state = std::make_shared<State>();
  std::thread([state, call, comm] {
    call(comm);
    std::lock_guard<std::mutex> lock(state->mutex);
    state->done = true;
    state->ended.notify_all();
  }).detach();
  std::unique_lock<std::mutex> lock(state->mutex);
  return state->ended.wait_for(lock, std::chrono::nanoseconds(timeout_ns),
                               [&] { return state->done; });
}

}  // namespace

// --- the library
// -----------------------------------------------------------------------------------

absl::StatusOr<std::shared_ptr<const NcclLibrary>> NcclLibrary::Open(const std::string& path) {
  void* handle = OpenHandle(path);
  if (handle == nullptr) {
    const char* why = dlerror();
    return absl::NotFoundError(absl::StrCat("no NCCL: ", why == nullptr ? "unknown" : why));
  }
  NcclFunctions functions;
  std::string missing;
  if (!FindAll(handle, &functions, &missing)) {
    dlclose(handle);
    return absl::FailedPreconditionError(absl::StrCat(path.empty() ? kSoname : path, " has no ",
                                                      missing,
                                                      ": it is not NCCL, or older than 2.14"));
  }
  return Of(functions);
}

absl::StatusOr<std::shared_ptr<const NcclLibrary>> NcclLibrary::Of(const NcclFunctions& functions) {
  int version = 0;
  if (functions.get_version(&version) != kNcclSuccess || version < kOldestVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("NCCL of version code ", version, " is older than 2.14"));
  }
  return std::shared_ptr<const NcclLibrary>(new NcclLibrary(functions, version));
}

std::string NcclLibrary::VersionText() const {
  return absl::StrCat(version_ / 10000, ".", version_ / 100 % 100, ".", version_ % 100);
}

absl::Status NcclLibrary::Error(const char* what, int result, NcclComm comm) const {
  const char* name = functions_.get_error_string(result);
  const char* detail = functions_.get_last_error(comm);
  std::string text = absl::StrCat("NCCL: ", what, ": ", name == nullptr ? "unknown error" : name);
  if (detail != nullptr && detail[0] != '\0') absl::StrAppend(&text, " (", detail, ")");
  std::replace(text.begin(), text.end(), '\n', ' ');
  return absl::InternalError(text);
}

absl::StatusOr<NcclId> NcclLibrary::MakeId() const {
  NcclId id;
  const int result = functions_.get_unique_id(&id);
  if (result != kNcclSuccess) return Error("no unique id", result, nullptr);
  return id;
}

// --- a communicator
// --------------------------------------------------------------------------------

absl::StatusOr<std::unique_ptr<NcclBroadcaster>> NcclBroadcaster::Create(
    std::shared_ptr<const NcclLibrary> library, const NcclId& id, const Options& options) {
  if (options.ranks == 0 || options.ranks > INT_MAX || options.rank >= options.ranks)
    return absl::InvalidArgumentError("rank is not below the number of ranks");
  NcclConfig config;
  NcclComm comm = nullptr;
  const int result = library->functions().comm_init_rank_config(
      &comm, static_cast<int>(options.ranks), id, static_cast<int>(options.rank), &config);
  const bool begun = result == kNcclSuccess || result == kNcclInProgress;
  absl::Status status = begun ? absl::OkStatus() : library->Error("no communicator", result, comm);
  if (comm == nullptr) return begun ? absl::InternalError("NCCL: no communicator") : status;
  std::unique_ptr<NcclBroadcaster> made(
      new NcclBroadcaster(std::move(library), comm, options.ranks));  // aborts when it goes
  if (begun) status = made->AwaitIdle("no communicator", made->clock_.Now() + options.timeout_ns);
  if (!status.ok()) return status;
  return made;
}

NcclBroadcaster::~NcclBroadcaster() { Abort(kLastAbortNs).IgnoreError(); }

// Until NCCL is done with the last call. A stream's work is not waited for.
absl::Status NcclBroadcaster::AwaitIdle(const char* what, TimeNs deadline) const {
  for (;;) {
    int state = kNcclSuccess;
    const int result = library_->functions().comm_get_async_error(comm_, &state);
    if (result != kNcclSuccess) return library_->Error(what, result, comm_);
    if (state == kNcclSuccess) return absl::OkStatus();
    if (state != kNcclInProgress) return library_->Error(what, state, comm_);
    if (clock_.Now() >= deadline)
      return absl::DeadlineExceededError(absl::StrCat("NCCL: ", what, " in time"));
    std::this_thread::sleep_for(std::chrono::nanoseconds(kPollNs));
  }
}

absl::Status NcclBroadcaster::Broadcast(void* buffer, uint64_t bytes, uint32_t root, Stream stream,
                                        TimeNs timeout_ns) {
  if (comm_ == nullptr) return absl::FailedPreconditionError("the communicator was given back");
  if (buffer == nullptr || bytes == 0 || root >= ranks_)
    return absl::InvalidArgumentError("a broadcast of nothing, or from nobody");
  const int result = library_->functions().broadcast(buffer, buffer, bytes, kNcclBytes,
                                                     static_cast<int>(root), comm_, stream);
  if (result == kNcclSuccess) return absl::OkStatus();
  if (result != kNcclInProgress) return library_->Error("no broadcast", result, comm_);
  return AwaitIdle("no broadcast", clock_.Now() + timeout_ns);
}

absl::Status NcclBroadcaster::Check() const {
  if (comm_ == nullptr) return absl::FailedPreconditionError("the communicator was given back");
  int state = kNcclSuccess;
  const int result = library_->functions().comm_get_async_error(comm_, &state);
  if (result != kNcclSuccess) return library_->Error("a broadcast failed", result, comm_);
  if (state == kNcclSuccess || state == kNcclInProgress) return absl::OkStatus();
  return library_->Error("a broadcast failed", state, comm_);
}

absl::Status NcclBroadcaster::GiveUp(int (*call)(NcclComm), TimeNs timeout_ns) {
  NcclComm comm = std::exchange(comm_, nullptr);
  if (comm == nullptr || RunBounded(call, comm, timeout_ns)) return absl::OkStatus();
  return absl::DeadlineExceededError("NCCL does not come back from ending a communicator");
}

absl::Status NcclBroadcaster::Abort(TimeNs timeout_ns) {
  return GiveUp(library_->functions().comm_abort, timeout_ns);
}

absl::Status NcclBroadcaster::Close(TimeNs timeout_ns) {
  if (comm_ == nullptr) return absl::OkStatus();
  const TimeNs deadline = clock_.Now() + timeout_ns;
  const int result = library_->functions().comm_finalize(comm_);
  absl::Status status = result == kNcclSuccess || result == kNcclInProgress
                            ? AwaitIdle("the communicator did not end", deadline)
                            : library_->Error("the communicator did not end", result, comm_);
  if (!status.ok()) {
    Abort(kLastAbortNs).IgnoreError();
    return status;
  }
  const TimeNs now = clock_.Now();
  return GiveUp(library_->functions().comm_destroy, std::max(deadline, now + kPollNs) - now);
}

// --- the choice
// ------------------------------------------------------------------------------------

bool BroadcastPays(const BroadcastRates& rates, uint32_t ranks) {
  constexpr double kClearly = 1.2;
  if (ranks < 2) return false;
  for (const double rate : {rates.copy, rates.broadcast, rates.host_memory}) {
    if (!std::isfinite(rate) || rate <= 0) return false;
  }
  const double by_all = std::min(rates.copy, rates.host_memory / ranks);
  const double by_one = std::min({rates.copy, rates.host_memory, rates.broadcast});
  return by_one >= kClearly * by_all;
}

}  // namespace flexkv::cuda
