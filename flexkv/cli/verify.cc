#include "flexkv/cli/verify.h"

#include <stdlib.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <memory>
#include <string>
#include <system_error>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/live_replay.h"
#include "flexkv/index/policies.h"
#include "flexkv/server/config.h"
#include "flexkv/server/daemon_server.h"
#include "spdlog/spdlog.h"

namespace flexkv::cli {
namespace {

constexpr uint32_t kBlockBytes = 4096;
constexpr uint64_t kSegmentBytes = 2ull << 20;
constexpr uint64_t kSegmentBlocks = kSegmentBytes / kBlockBytes;
constexpr uint64_t kBatchBlocks = 1 << 18;
constexpr uint32_t kMaxRequestBlocks = 16384;
// About what a request takes: policies may look at the clock.
constexpr TimeNs kBetweenRequests = 150 * kNsPerUs;

// The first requests, as fast as a daemon takes them.
class QuickSource : public trace::TraceSource {
 public:
  QuickSource(trace::TraceSource* inner, uint64_t most) : inner_(inner), most_(most) {}
  absl::StatusOr<bool> Next(uint64_t max_blocks, trace::RequestBatch* batch) override {
    if (given_ >= most_) return false;
    absl::StatusOr<bool> more = inner_->Next(max_blocks, batch);
    if (!more.ok() || !*more) return more;
    if (batch->requests.size() > most_ - given_) batch->requests.resize(most_ - given_);
    for (trace::TraceRequest& request : batch->requests) {
      request.time_ns = ++given_ * kBetweenRequests;
      if (request.num_blocks > kMaxRequestBlocks) request.num_blocks = kMaxRequestBlocks;
    }
    batch->evictions.clear();
    return true;
  }
  absl::Status Rewind() override {
    given_ = 0;
    return inner_->Rewind();
  }
  const trace::TraceInfo& info() const override { return inner_->info(); }
  double progress() const override {
    return std::max(inner_->progress(), static_cast<double>(given_) / static_cast<double>(most_));
  }

 private:
  trace::TraceSource* inner_;
  const uint64_t most_;
  uint64_t given_ = 0;
};

class ScratchDirectory {
 public:
  static absl::StatusOr<ScratchDirectory> Make() {
    std::error_code error;
    std::string path =
        std::filesystem::temp_directory_path(error).string() + "/flexkv-verify-XXXXXX";
    if (error || mkdtemp(path.data()) == nullptr) {
      return absl::UnavailableError("no temporary directory can be made (set TMPDIR)");
    }
    return ScratchDirectory(path);
  }
  ScratchDirectory(ScratchDirectory&& other) noexcept : path_(std::exchange(other.path_, "")) {}
  ScratchDirectory& operator=(ScratchDirectory&&) = delete;
  ~ScratchDirectory() {
    std::error_code ignored;
    if (!path_.empty()) std::filesystem::remove_all(path_, ignored);
  }
  const std::string& path() const { return path_; }

 private:
  explicit ScratchDirectory(std::string path) : path_(std::move(path)) {}
  std::string path_;
};

DaemonConfig ConfigOf(const trace::Cell& cell, const std::string& directory) {
  DaemonConfig config;
  FinishConfig(SystemConfigContext(), &config);
  config.socket_dir = directory + "/daemon";
  config.num_cpu_blocks = cell.cpu_blocks;
  config.cpu_cache_bytes = cell.cpu_blocks * kBlockBytes;
  config.segment_bytes = kSegmentBytes;
  config.use_hugetlb = false;
  config.lock_memory = false;
  config.eviction_policy = cell.policy;
  config.evict_ratio = 0;
  config.evict_start_ratio = 1;
  if (cell.ssd_blocks != 0) {
    constexpr uint64_t kLeast = 256ull << 20;
    config.ssd.enabled = true;
    config.ssd.directories = {directory + "/ssd"};
    config.ssd.num_blocks = cell.ssd_blocks;
    config.ssd.cache_bytes = std::max(kLeast, cell.ssd_blocks * 2 * kBlockBytes);
    config.ssd.admission = cell.admission;
  }
  return config;
}

// Until everything is written back, as the simulated device has it at once.
void AwaitSsd(DaemonServer* server) {
  constexpr int kMostWaits = 25000;
  for (int i = 0; i < kMostWaits; ++i) {
    const SsdTierStatus ssd = server->Snapshot()->cache.ssd;
    if (ssd.writes_waiting + ssd.writes_in_flight + ssd.reads_in_flight == 0) return;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
}

absl::StatusOr<LiveReplayResult> RunLive(QuickSource* source, const trace::Cell& cell,
                                         uint32_t tokens_per_block, const VerifyOptions& options) {
  absl::StatusOr<ScratchDirectory> scratch = ScratchDirectory::Make();
  if (!scratch.ok()) return scratch.status();
  spdlog::set_level(spdlog::level::off);  // a daemon's log has no place between our lines
  absl::StatusOr<std::unique_ptr<DaemonServer>> server =
      DaemonServer::Start(ConfigOf(cell, scratch->path()), [] {});
  if (!server.ok()) return server.status();
  LiveReplayOptions live;
  live.socket_path = (*server)->paths().handshake;
  live.tokens_per_block = tokens_per_block;
  live.block_bytes = kBlockBytes;
  live.max_request_blocks = kMaxRequestBlocks;
  if (cell.ssd_blocks != 0) live.between = [&server] { AwaitSsd(server->get()); };
  const absl::StatusOr<std::unique_ptr<LiveReplay>> replay = LiveReplay::Open(live);
  if (!replay.ok()) return replay.status();
  trace::RequestBatch batch;
  while (true) {
    const absl::StatusOr<bool> more = source->Next(kBatchBlocks, &batch);
    if (!more.ok()) return more.status();
    if (!*more) break;
    if (absl::Status status = (*replay)->Run(batch); !status.ok()) return status;
    if (options.progress) options.progress(source->progress());
  }
  (*replay)->Finish();
  return (*replay)->result();
}

}  // namespace

absl::StatusOr<VerifyResult> VerifyLive(trace::TraceSource* source, const trace::Cell& cell,
                                        const VerifyOptions& options) {
  VerifyResult result;
  result.cell = cell;
  if (cell.policy == "default") result.cell.policy = kDefaultPolicy;
  result.cell.cpu_blocks =
      RoundUp(std::max<uint64_t>(1, std::min(cell.cpu_blocks, UINT64_MAX / 2)), kSegmentBlocks);
  const uint64_t most = options.max_memory_bytes / kBlockBytes;
  if (result.cell.cpu_blocks > most || result.cell.ssd_blocks > (1ull << 40) / kBlockBytes) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "--verify: even with blocks of 4 KiB this needs ",
        FormatBytes(std::min(result.cell.cpu_blocks, UINT64_MAX / 2 / kBlockBytes) * kBlockBytes),
        " of memory; give more with --max-memory, or tune for less"));
  }
  QuickSource quick(source, options.max_requests);
  if (absl::Status status = quick.Rewind(); !status.ok()) return status;
  trace::SimulateOptions simulate;
  simulate.max_memory_bytes = options.max_memory_bytes;
  simulate.threads = 1;
  simulate.use_trace_hints = false;
  const absl::StatusOr<std::vector<trace::CellResult>> predicted =
      trace::Simulate(&quick, {result.cell}, simulate);
  if (!predicted.ok()) return predicted.status();
  result.predicted = predicted->front().hit_rate();
  if (absl::Status status = quick.Rewind(); !status.ok()) return status;
  const absl::StatusOr<LiveReplayResult> live =
      RunLive(&quick, result.cell, source->info().tokens_per_block, options);
  if (!live.ok()) return live.status();
  result.requests = live->requests;
  result.measured = live->hit_rate();
  result.failed_loads = live->failed_loads;
  result.seconds = live->seconds;
  return result;
}

}  // namespace flexkv::cli
