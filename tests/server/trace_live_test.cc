// The same requests given to a live daemon and to the simulator must find the same blocks; and what
// the daemon recorded of them, replayed, must find them once more.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/cli/live_replay.h"
#include "flexkv/server/metrics_server.h"
#include "flexkv/server/status_text.h"
#include "flexkv/trace/generate.h"
#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/simulate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using cli::LiveReplay;
using cli::LiveReplayOptions;
using cli::LiveReplayResult;
using testing::HasSubstr;
using trace::Cell;
using trace::CellResult;

constexpr double kHalfAPoint = 0.005;
constexpr uint32_t kBlockBytes = 4096;

struct Case {
  const char* policy;
  uint64_t cpu_blocks;  // a multiple of 512: what fits into one segment
  uint64_t ssd_blocks;
  const char* traffic;
};

std::string NameOf(const testing::TestParamInfo<Case>& info) {
  std::string name = absl::StrCat(info.param.policy, "_", info.param.cpu_blocks, "_",
                                  info.param.ssd_blocks, "_", info.param.traffic);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
}

// Hours of requests, as if they came within the part of a second that the daemon takes for them:
// policies may look at the clock.
trace::RequestBatch Traffic(const char* name, uint64_t requests) {
  constexpr TimeNs kBetweenRequests = 150 * kNsPerUs;
  trace::TrafficOptions options = *trace::NamedTraffic(name);
  options.seed = 7;
  options.requests = requests;
  trace::RequestBatch batch = *trace::GenerateTraffic(options);
  TimeNs at = 0;
  for (trace::TraceRequest& request : batch.requests) request.time_ns = at += kBetweenRequests;
  return batch;
}

CellResult Simulated(trace::TraceSource* source, const Case& wanted) {
  Cell cell;
  cell.policy = wanted.policy;
  cell.cpu_blocks = wanted.cpu_blocks;
  cell.ssd_blocks = wanted.ssd_blocks;
  const auto results = trace::Simulate(source, {cell}, {.threads = 1});
  EXPECT_TRUE(results.ok()) << results.status();
  return results.ok() ? results->front() : CellResult{};
}

class TraceLiveTest : public DaemonTest, public testing::WithParamInterface<Case> {
 protected:
  void Adjust(DaemonConfig* config) override {
    config->num_cpu_blocks = GetParam().cpu_blocks;
    config->segment_bytes = 2ull << 20;
    config->eviction_policy = std::string_view(GetParam().policy) == "default"
                                  ? std::string(kDefaultPolicy)
                                  : GetParam().policy;
    config->evict_ratio = 0;
    config->evict_start_ratio = 1;
    config->trace.enabled = true;
    config->trace.path = TracePath();
    config->trace.zstd = GetParam().ssd_blocks > 0;
    config->trace.rotate_bytes = 4ull << 20;
    config->trace.max_files = 0;
    if (GetParam().ssd_blocks == 0) return;
    config->ssd.enabled = true;
    config->ssd.directories = {dir_.path() + "/ssd"};
    config->ssd.cache_bytes = 256ull << 20;
    config->ssd.num_blocks = GetParam().ssd_blocks;
  }
  std::string TracePath() const { return dir_.path() + "/trace.jsonl"; }
  std::vector<std::string> TraceFiles() const {
    std::vector<std::pair<std::filesystem::file_time_type, std::string>> found;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      if (entry.path().filename().string().starts_with("trace."))
        found.emplace_back(entry.last_write_time(), entry.path());
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> files;
    for (const auto& [time, path] : found) files.push_back(path);
    return files;
  }
  // Until everything is written back, as a simulated device has it at once.
  void AwaitSsd() {
    for (int i = 0; i < 5000; ++i) {
      const SsdTierStatus ssd = server_->Snapshot()->cache.ssd;
      if (ssd.writes_waiting + ssd.writes_in_flight + ssd.reads_in_flight == 0) return;
      std::this_thread::sleep_for(std::chrono::microseconds(200));
    }
    ADD_FAILURE() << "the SSD tier does not come to rest";
  }
  LiveReplayResult Live(const trace::RequestBatch& batch) {
    LiveReplayOptions options;
    options.socket_path = Socket();
    options.tokens_per_block = batch.requests.front().tokens_per_block;
    options.block_bytes = kBlockBytes;
    options.max_request_blocks = 1024;
    if (GetParam().ssd_blocks > 0) options.between = [this] { AwaitSsd(); };
    auto replay = LiveReplay::Open(options);
    EXPECT_TRUE(replay.ok()) << replay.status();
    if (!replay.ok()) return {};
    const absl::Status status = (*replay)->Run(batch);
    EXPECT_TRUE(status.ok()) << status;
    (*replay)->Finish();
    return (*replay)->result();
  }
};

TEST_P(TraceLiveTest, DaemonSimulatorAndItsOwnTraceAgree) {
  const trace::RequestBatch batch =
      Traffic(GetParam().traffic, GetParam().ssd_blocks > 0 ? 600 : 1500);
  const auto source = trace::MakeMemorySource(batch);
  const CellResult predicted = Simulated(source.get(), GetParam());
  const LiveReplayResult live = Live(batch);
  EXPECT_EQ(live.requests, predicted.requests);
  EXPECT_EQ(live.prompt_tokens, predicted.prompt_tokens);
  EXPECT_EQ(live.cut_requests, 0u);
  EXPECT_EQ(live.failed_loads, 0u);
  EXPECT_EQ(live.loaded_tokens, live.hit_tokens);
  EXPECT_GT(predicted.evicted_blocks, 0u) << "nothing is tested where everything fits";
  EXPECT_NEAR(live.hit_rate(), predicted.hit_rate(), kHalfAPoint);

  // The daemon's own counts say the same.
  const DaemonSnapshot snapshot = *server_->Snapshot();
  EXPECT_EQ(snapshot.cache.counters.matched_blocks * batch.requests.front().tokens_per_block,
            live.hit_tokens);
  EXPECT_TRUE(snapshot.trace.enabled);
  EXPECT_EQ(snapshot.trace.writer.dropped, 0u);
  EXPECT_EQ(snapshot.trace.unfinished, 0u);

  StopDaemon();
  const auto recorded = trace::OpenTrace(TraceFiles());
  ASSERT_TRUE(recorded.ok()) << recorded.status();
  const CellResult again = Simulated(recorded->get(), GetParam());
  EXPECT_EQ((*recorded)->info().bad_lines, 0u);
  EXPECT_EQ(again.requests, live.requests);
  EXPECT_EQ(again.prompt_tokens, live.prompt_tokens);
  EXPECT_NEAR(again.hit_rate(), live.hit_rate(), kHalfAPoint);
  std::printf("%s: live %.4f, simulated %.4f, recorded and simulated %.4f; %.2f s, %zu file(s)\n",
              NameOf({GetParam(), 0}).c_str(), live.hit_rate(), predicted.hit_rate(),
              again.hit_rate(), live.seconds, TraceFiles().size());

  // And what is in the records is what was measured.
  ASSERT_TRUE((*recorded)->Rewind().ok());
  trace::RequestBatch read;
  uint64_t hits = 0, loaded = 0;
  while (*(*recorded)->Next(1 << 20, &read)) {
    for (const trace::TraceRequest& request : read.requests) {
      hits += request.measured.cpu_tokens + request.measured.ssd_tokens;
      loaded += request.measured.loaded_tokens;
    }
  }
  EXPECT_EQ(hits, live.hit_tokens);
  EXPECT_EQ(loaded, live.loaded_tokens);
}

INSTANTIATE_TEST_SUITE_P(
    Policies, TraceLiveTest,
    testing::Values(Case{"lru", 2048, 0, "mixed"}, Case{"default", 2048, 0, "chat"},
                    Case{"s3fifo", 2048, 0, "agents"}, Case{"lfu", 2048, 0, "mixed"},
                    Case{"lrfu", 2048, 0, "chat"}, Case{"arc", 2048, 0, "mixed"},
                    Case{"gdsf", 2048, 0, "documents"}, Case{"a2cr", 2048, 0, "mixed"},
                    Case{"lru", 1024, 3072, "chat"}, Case{"default", 1024, 3072, "mixed"}),
    NameOf);

}  // namespace
}  // namespace flexkv
