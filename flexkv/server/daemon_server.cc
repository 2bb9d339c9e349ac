#include "flexkv/server/daemon_server.h"

#include <errno.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <optional>

#include "absl/strings/str_cat.h"
#include "flexkv/server/admin_service.h"
#include "flexkv/server/control_loop.h"
#include "flexkv/server/io_thread.h"
#include "flexkv/server/metrics_server.h"
#include "flexkv/server/ssd_tier.h"
#include "flexkv/server/status_proto.h"
#include "flexkv/server/trace_log.h"
#include "proto/packet_socket.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

constexpr int kBacklog = 64;
constexpr size_t kDoorbellBytes = 4096;
constexpr std::chrono::milliseconds kCallTimeout(2000);
constexpr rlim_t kDescriptorsPerEngine = 16;

uint64_t MakeBootId() {
  uint64_t id = 0;
  while (id == 0) {
    if (getrandom(&id, sizeof(id), 0) != static_cast<ssize_t>(sizeof(id))) id = 0;
  }
  return id;
}

SsdTierOptions TierOptions(const SsdConfig& config) {
  constexpr uint64_t kMinSegmentBytes = 2ull << 20;
  SsdTierOptions options;
  options.cache_bytes = config.cache_bytes;
  options.num_blocks = config.num_blocks;
  // A directory's share in several pieces, so that a failed one does not take all of it.
  options.segment_bytes =
      std::min(config.segment_bytes, std::max(kMinSegmentBytes, SsdShareBytes(config) / 4));
  options.write_bytes_per_s = config.write_bytes_per_s;
  options.admission = config.admission;
  return options;
}

ControlLoopOptions LoopOptions(const DaemonConfig& config, uint64_t boot_id,
                               std::function<void()> on_stop_wanted) {
  ControlLoopOptions options;
  options.cache.cpu_cache_bytes = config.cpu_cache_bytes;
  options.cache.num_cpu_blocks = config.num_cpu_blocks;
  options.cache.segment_bytes = config.segment_bytes;
  options.cache.eviction_policy = config.eviction_policy;
  options.cache.objective = config.eviction_objective;
  options.cache.evict_ratio = config.evict_ratio;
  options.cache.evict_start_ratio = config.evict_start_ratio;
  options.cache.lease_timeout_ns = config.lease_timeout_ms * kNsPerMs;
  if (config.ssd.enabled) options.cache.ssd = TierOptions(config.ssd);
  options.max_engines = config.max_engines;
  options.spin_us = config.spin_us;
  options.idle_exit_s = config.idle_exit_s;
  options.boot_id = boot_id;
  options.copy = config.copy;
  options.on_idle_exit = std::move(on_stop_wanted);
  return options;
}

// As many descriptors as the hard limit allows; a warning when that is few.
void RaiseDescriptorLimit(uint32_t max_engines) {
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  if (limit.rlim_cur < limit.rlim_max) {
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
  }
  const rlim_t wanted = 256 + kDescriptorsPerEngine * max_engines;
  if (limit.rlim_cur != RLIM_INFINITY && limit.rlim_cur < wanted) {
    spdlog::warn("the limit of open files is {}; {} engines may need {}", limit.rlim_cur,
                 max_engines, wanted);
  }
}

}  // namespace

// What pages a small segment really gets. Unknown when nothing is populated ahead of use.
PageKind ProbePages(MemfdSegmentStore* segments, bool prefault) {
  constexpr int kProbeTimeoutMs = 500;
  if (!prefault) return PageKind::kUnknown;
  const absl::StatusOr<SegmentId> probe = segments->Create(kSegmentAlign);
  if (!probe.ok()) return PageKind::kUnknown;
  segments->WaitPrefaulted(kProbeTimeoutMs);
  const PageKind kind = segments->stats().page_kind;
  segments->Destroy(*probe);
  return kind;
}

// Waits for one clear, on the caller's thread. Shared with the control thread, since that may end
// it after the caller gave up.
class ClearWait {
 public:
  void Began(uint32_t namespaces) {
    std::lock_guard<std::mutex> lock(mutex_);
    answer_ = {ClearAnswer::State::kPending, namespaces};
  }
  void Done(ClearOutcome outcome) {
    std::lock_guard<std::mutex> lock(mutex_);
    answer_ = {outcome.noted ? ClearAnswer::State::kDone : ClearAnswer::State::kNotNoted,
               outcome.namespaces};
    done_ = true;
    ended_.notify_all();
  }
  ClearAnswer Wait(std::chrono::milliseconds timeout) {
    std::unique_lock<std::mutex> lock(mutex_);
    ended_.wait_for(lock, timeout, [this] { return done_; });
    return answer_;
  }

 private:
  std::mutex mutex_;
  std::condition_variable ended_;
  ClearAnswer answer_;  // guarded by mutex_
  bool done_ = false;   // guarded by mutex_
};

// Members are made from top to bottom and destroyed from bottom to top.
struct DaemonServer::Impl {
  explicit Impl(SocketDir socket_dir) : dir(std::move(socket_dir)) {}
  ~Impl() {
    metrics.reset();
    admin.reset();
    if (loop != nullptr) loop->Stop();  // before the I/O thread: it asks that one to forget clients
    if (trace != nullptr) trace->Close();
    if (ssd != nullptr) ssd->Close();  // before the loop's manager, which gives the arena back
    io.reset();
  }

  absl::Status StartAll(const DaemonConfig& config, std::function<void()> on_stop_wanted);
  absl::Status StartOutside(const DaemonConfig& config, std::function<void()> on_stop_wanted);
  absl::Status OpenSsd(SsdConfig* config);
  std::optional<DaemonSnapshot> Snapshot();
  ClearAnswer Clear(const std::string& label);
  shm::Bell* Doorbell() { return reinterpret_cast<shm::Bell*>(doorbell.data()); }

  SocketDir dir;
  uint64_t boot_id = MakeBootId();
  bool prefault = false;
  PageKind page_kind = PageKind::kUnknown;
  UniqueFd doorbell_fd;
  SharedMapping doorbell;
  std::unique_ptr<MemfdSegmentStore> segments;
  std::unique_ptr<SsdTier> ssd;     // null: none
  std::unique_ptr<TraceLog> trace;  // null: none
  std::unique_ptr<ControlLoop> loop;
  std::unique_ptr<IoThread> io;
  std::unique_ptr<AdminServer> admin;
  std::unique_ptr<MetricsServer> metrics;
};

std::optional<DaemonSnapshot> DaemonServer::Impl::Snapshot() {
  std::optional<DaemonSnapshot> snapshot =
      loop->mailbox()->Call<DaemonSnapshot>(kCallTimeout, [this] { return loop->TakeSnapshot(); });
  if (snapshot.has_value()) {
    snapshot->socket_dir = dir.paths().dir;
    snapshot->prefault = prefault;
  }
  return snapshot;
}

ClearAnswer DaemonServer::Impl::Clear(const std::string& label) {
  auto wait = std::make_shared<ClearWait>();
  const bool posted = loop->mailbox()->Post([this, label, wait] {
    wait->Began(loop->Clear(label, [wait](ClearOutcome outcome) { wait->Done(outcome); }));
  });
  return posted ? wait->Wait(kCallTimeout) : ClearAnswer();
}

absl::Status DaemonServer::Impl::OpenSsd(SsdConfig* config) {
  if (!config->enabled) return absl::OkStatus();
  if (absl::Status status = ResolveSsd(SsdResolve::kMake, config); !status.ok()) return status;
  SsdTierConfig tier;
  tier.directories = config->directories;
  tier.bytes_per_directory = SsdShareBytes(*config);
  tier.queue_depth = config->queue_depth;
  tier.backend = config->backend;
  tier.register_memory = prefault;
  tier.wake = [bell = Doorbell()] { shm::RingBell(bell); };
  absl::StatusOr<std::unique_ptr<SsdTier>> opened = SsdTier::Open(tier, segments.get());
  if (!opened.ok()) return opened.status();
  ssd = std::move(*opened);
  return absl::OkStatus();
}

absl::Status DaemonServer::Impl::StartAll(const DaemonConfig& config,
                                          std::function<void()> on_stop_wanted) {
  RaiseDescriptorLimit(config.max_engines);
  absl::StatusOr<UniqueFd> bell_fd = MakeSealedMemfd("flexkv-doorbell", kDoorbellBytes);
  if (!bell_fd.ok()) return bell_fd.status();
  absl::StatusOr<SharedMapping> bell = SharedMapping::Map(bell_fd->get(), kDoorbellBytes);
  if (!bell.ok()) return bell.status();
  doorbell_fd = std::move(*bell_fd);
  doorbell = std::move(*bell);

  MemfdSegmentStoreOptions memory;
  memory.use_hugetlb = config.use_hugetlb;
  memory.use_thp = config.use_thp;
  memory.lock_memory = config.lock_memory;
  memory.prefault = config.prefault;
  memory.numa_node = config.numa_node;
  prefault = config.prefault;
  absl::StatusOr<std::unique_ptr<MemfdSegmentStore>> store = MemfdSegmentStore::Open(memory);
  if (!store.ok()) return store.status();
  segments = std::move(*store);
  page_kind = ProbePages(segments.get(), config.prefault);

  // Recovery comes first: engines find the socket when everything that was committed is known.
  DaemonConfig effective = config;
  if (absl::Status status = OpenSsd(&effective.ssd); !status.ok()) return status;
  if (config.trace.enabled) {
    absl::StatusOr<std::unique_ptr<TraceLog>> log =
        TraceLog::Open(config.trace, ConfigToJson(effective), SteadyClock().Now());
    if (!log.ok()) return log.status();
    trace = std::move(*log);
  }
  ControlLoopOptions options = LoopOptions(effective, boot_id, on_stop_wanted);
  options.trace = trace.get();
  loop = std::make_unique<ControlLoop>(std::move(options), segments.get(), ssd.get(),
                                       doorbell_fd.get(), Doorbell());
  return StartOutside(config, std::move(on_stop_wanted));
}

absl::Status DaemonServer::Impl::StartOutside(const DaemonConfig& config,
                                              std::function<void()> on_stop_wanted) {
  const SocketPaths& paths = dir.paths();
  absl::StatusOr<UniqueFd> listener = shm::ListenPacketSocket(paths.handshake, kBacklog);
  if (!listener.ok()) return listener.status();
  const bool others = config.allowed_uids.size() > 1 || config.allowed_uids.front() != geteuid();
  // Other users get as far as the credentials check, no further.
  if (others && chmod(paths.handshake.c_str(), 0666) != 0)
    return absl::ErrnoToStatus(errno, "chmod of daemon.sock");
  IoThreadOptions io_options;
  io_options.allowed_uids = config.allowed_uids;
  io_options.boot_id = boot_id;
  absl::StatusOr<std::unique_ptr<IoThread>> started =
      IoThread::Start(io_options, std::move(*listener), loop.get());
  if (!started.ok()) return started.status();
  io = std::move(*started);
  loop->Start(io.get());

  AdminCallbacks callbacks;
  callbacks.snapshot = [this] { return Snapshot(); };
  callbacks.clear = [this](const std::string& label) { return Clear(label); };
  callbacks.stop = std::move(on_stop_wanted);
  absl::StatusOr<std::unique_ptr<AdminServer>> admin_server =
      AdminServer::Start(paths.admin, std::move(callbacks));
  if (!admin_server.ok()) return admin_server.status();
  admin = std::move(*admin_server);
  absl::StatusOr<std::unique_ptr<MetricsServer>> metrics_server =
      MetricsServer::Start(paths.metrics, config.metrics, [this] { return Snapshot(); });
  if (!metrics_server.ok()) return metrics_server.status();
  metrics = std::move(*metrics_server);
  return absl::OkStatus();
}

absl::StatusOr<std::unique_ptr<DaemonServer>> DaemonServer::Start(
    const DaemonConfig& config, std::function<void()> on_stop_wanted) {
  if (config.socket_dir.empty() || config.allowed_uids.empty() || config.cpu_cache_bytes == 0) {
    return absl::InvalidArgumentError(
        "the configuration is not complete (FinishConfig, socket_dir)");
  }
  const bool others = config.allowed_uids.size() > 1 || config.allowed_uids.front() != geteuid();
  absl::StatusOr<SocketDir> dir = SocketDir::Open(config.socket_dir, others);
  if (!dir.ok()) return dir.status();
  auto impl = std::make_unique<Impl>(std::move(*dir));
  if (absl::Status status = impl->StartAll(config, std::move(on_stop_wanted)); !status.ok())
    return status;
  return std::unique_ptr<DaemonServer>(new DaemonServer(std::move(impl)));
}

DaemonServer::DaemonServer(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
DaemonServer::~DaemonServer() = default;

const SocketPaths& DaemonServer::paths() const { return impl_->dir.paths(); }
std::optional<DaemonSnapshot> DaemonServer::Snapshot() { return impl_->Snapshot(); }
uint64_t DaemonServer::boot_id() const { return impl_->boot_id; }
int DaemonServer::metrics_port() const { return impl_->metrics->port(); }
std::string DaemonServer::page_kind() const { return PageKindName(impl_->page_kind); }
bool DaemonServer::small_pages() const { return impl_->page_kind == PageKind::k4KiB; }

}  // namespace flexkv
