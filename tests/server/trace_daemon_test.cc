// A real flexkvd that records: what it shows, what a kill leaves, what a failing disk costs, and
// what must never be in a trace.
#include <signal.h>
#include <sys/stat.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/cli/live_replay.h"
#include "flexkv/trace/generate.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using cli::LiveReplay;
using cli::LiveReplayResult;
using testing::HasSubstr;
using testing::Not;

class TraceDaemonTest : public testing::Test {
 protected:
  std::unique_ptr<ChildProcess> StartDaemon(const std::string& keys, const char* faults = "") {
    const std::string config = dir_.path() + "/config.json";
    std::ofstream(config) << absl::StrCat(
        R"({"cpu_cache_bytes": "32MiB", "segment_bytes": "2MiB", "enable_trace": true,
            "trace_file_path": ")",
        Path(), "\"", keys, "}");
    setenv("FLEXKV_FAULTS", faults, 1);
    auto daemon = std::make_unique<ChildProcess>(
        std::vector<std::string>{FLEXKVD, "--config", config, "--socket-dir", Dir()});
    unsetenv("FLEXKV_FAULTS");
    EXPECT_EQ(daemon->ReadLine(), absl::StrCat("flexkvd ready on ", Dir(), "/daemon.sock"));
    return daemon;
  }
  std::string Dir() const { return dir_.path() + "/flexkv"; }
  std::string Path() const { return dir_.path() + "/trace.jsonl"; }
  CommandResult Cli(const std::string& arguments) {
    return Execute(absl::StrCat(FLEXKV_CLI, " --socket-dir ", Dir(), " ", arguments));
  }
  nlohmann::json Status() { return nlohmann::json::parse(Cli("status --json").output); }
  static trace::RequestBatch Traffic(uint64_t requests) {
    trace::TrafficOptions options = *trace::NamedTraffic("chat");
    options.requests = requests;
    return *trace::GenerateTraffic(options);
  }
  LiveReplayResult Replay(const trace::RequestBatch& batch) {
    auto replay = LiveReplay::Open({.socket_path = Dir() + "/daemon.sock",
                                    .label = "the label",
                                    .run = 4711,
                                    .tokens_per_block = 512,
                                    .max_request_blocks = 1024});
    EXPECT_TRUE(replay.ok()) << replay.status();
    const absl::Status status = (*replay)->Run(batch);
    EXPECT_TRUE(status.ok()) << status;
    return (*replay)->result();
  }
  // Newest last.
  std::vector<std::string> Files() const {
    std::vector<std::pair<uint64_t, std::string>> found;
    for (const auto& entry : std::filesystem::directory_iterator(dir_.path())) {
      const std::string name = entry.path().filename();
      if (!name.starts_with("trace.")) continue;
      const bool first = name.starts_with("trace.jsonl");
      found.emplace_back(first ? 0 : std::stoull(name.substr(6)), entry.path());
    }
    std::sort(found.begin(), found.end());
    std::vector<std::string> files;
    for (const auto& [number, path] : found) files.push_back(path);
    return files;
  }
  struct Read {
    uint64_t lookups = 0, hit_tokens = 0, prompt_tokens = 0, puts = 0;
    trace::TraceInfo info;
    std::vector<trace::TraceRequest> requests;
  };
  Read ReadTrace() {
    Read read;
    auto source = trace::OpenTrace(Files());
    EXPECT_TRUE(source.ok()) << source.status();
    if (!source.ok()) return read;
    trace::RequestBatch batch;
    for (absl::StatusOr<bool> more = true; more.ok() && *more;) {
      more = (*source)->Next(1 << 16, &batch);
      EXPECT_TRUE(more.ok()) << more.status();
      if (!more.ok() || !*more) break;
      for (const trace::TraceRequest& request : batch.requests) {
        read.requests.push_back(request);
        if (request.kind == trace::RequestKind::kPut) {
          ++read.puts;
          continue;
        }
        ++read.lookups;
        read.prompt_tokens += request.prompt_tokens;
        read.hit_tokens += request.measured.cpu_tokens;
      }
    }
    read.info = (*source)->info();
    return read;
  }
  // Of a file that is being written.
  uint64_t LookupsSoFar() const {
    const auto source = trace::OpenTrace(Files());
    trace::RequestBatch batch;
    uint64_t lookups = 0;
    while (source.ok()) {
      const absl::StatusOr<bool> more = (*source)->Next(1 << 16, &batch);
      if (!more.ok() || !*more) break;
      lookups += static_cast<uint64_t>(std::count_if(
          batch.requests.begin(), batch.requests.end(),
          [](const auto& request) { return request.kind == trace::RequestKind::kGet; }));
    }
    return lookups;
  }
  std::string Contents() const {
    std::stringstream all;
    for (const std::string& file : Files()) all << std::ifstream(file).rdbuf();
    return all.str();
  }
  TempDir dir_;
};

TEST_F(TraceDaemonTest, StatusAndMetricsShowIt) {
  auto daemon = StartDaemon("");
  const LiveReplayResult live = Replay(Traffic(50));
  const nlohmann::json trace = Status()["trace"];
  EXPECT_EQ(trace["enabled"], true);
  EXPECT_EQ(trace["path"], Path());
  EXPECT_GE(trace["records"], live.requests);
  EXPECT_EQ(trace["files"], 1);
  EXPECT_EQ(trace["dropped"], 0);
  EXPECT_EQ(trace["lost"], 0);
  EXPECT_THAT(Cli("status").output, HasSubstr(absl::StrCat("trace       ", Path(), ": ")));
  EXPECT_THAT(Cli("status").output, Not(HasSubstr("NOT COMPLETE")));
  const std::string metrics = Cli("metrics").output;
  EXPECT_THAT(metrics, HasSubstr("flexkv_trace_enabled 1"));
  EXPECT_THAT(metrics, HasSubstr("# TYPE flexkv_trace_records_total counter"));
  EXPECT_THAT(metrics, HasSubstr("flexkv_trace_dropped_total 0"));
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
  const Read read = ReadTrace();
  EXPECT_EQ(read.lookups, live.requests);
  EXPECT_EQ(read.prompt_tokens, live.prompt_tokens);
  EXPECT_EQ(read.hit_tokens, live.hit_tokens);
  EXPECT_EQ(read.info.bad_lines, 0u);
  EXPECT_THAT(read.info.config_json, HasSubstr("cpu_cache_bytes"));
  ASSERT_EQ(read.info.namespaces.size(), 1u);
  EXPECT_EQ(read.info.namespaces[0], "the label");
}

TEST_F(TraceDaemonTest, NothingSecretIsInIt) {
  auto daemon = StartDaemon("");
  Replay(Traffic(20));
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
  const std::string text = Contents();
  EXPECT_THAT(text, HasSubstr("the label"));
  EXPECT_THAT(text, Not(HasSubstr("replay 4711"))) << "the namespace's key";
  EXPECT_THAT(text, Not(HasSubstr("flexkv-namespace"))) << "the namespace's key";
  // The replay's hashes have a constant word; short ones are keyed.
  EXPECT_THAT(text, Not(HasSubstr("766b78656c66")));
  struct stat info {};
  ASSERT_EQ(stat(Path().c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 077, 0u) << "others may not read it";
}

TEST_F(TraceDaemonTest, FullHashesWhenAskedAndNoneWhenAsked) {
  for (const bool full : {true, false}) {
    std::filesystem::remove(Path());
    auto daemon = StartDaemon(full ? R"(, "trace_hashes": "full")" : R"(, "trace_hashes": "none")");
    const LiveReplayResult live = Replay(Traffic(20));
    EXPECT_EQ(Cli("stop").code, 0);
    EXPECT_EQ(daemon->Wait(), 0);
    EXPECT_EQ(Contents().find("766b78656c66") != std::string::npos, full);
    const Read read = ReadTrace();
    EXPECT_EQ(read.prompt_tokens, live.prompt_tokens);
    EXPECT_EQ(read.info.has_blocks, full);
  }
}

TEST_F(TraceDaemonTest, AKillLeavesAReadableTrace) {
  for (const char* compress : {"none", "zstd"}) {
    SCOPED_TRACE(compress);
    for (const std::string& file : Files()) std::filesystem::remove(file);
    auto daemon = StartDaemon(absl::StrCat(R"(, "trace_compress": ")", compress, "\""));
    const LiveReplayResult first = Replay(Traffic(300));
    // What is older than a second is in the file.
    EXPECT_TRUE(Eventually([&] { return LookupsSoFar() >= first.requests; }, 20000));
    std::atomic<bool> dead{false};
    std::thread killer([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(30));
      daemon->Kill(SIGKILL);
      dead = true;
    });
    auto replay = LiveReplay::Open({.socket_path = Dir() + "/daemon.sock",
                                    .tokens_per_block = 512,
                                    .max_request_blocks = 1024,
                                    .timeout_ms = 500});
    const trace::RequestBatch more = Traffic(300);
    while (replay.ok() && !dead && (*replay)->Run(more).ok()) {
    }
    killer.join();
    EXPECT_EQ(daemon->Wait(), -SIGKILL);
    const Read read = ReadTrace();
    EXPECT_GE(read.lookups, first.requests);
    EXPECT_GE(read.prompt_tokens, first.prompt_tokens);
    EXPECT_LE(read.info.bad_lines, 1u) << "the last line may be cut, no other";
  }
}

TEST_F(TraceDaemonTest, AFullDiskCostsRecordsOnly) {
  // Small files, so that there are many writes; the seed lets the first one through.
  auto daemon = StartDaemon(R"(, "trace_rotate_bytes": "64KiB")", "trace.enospc:4:1");
  const LiveReplayResult live = Replay(Traffic(1000));
  EXPECT_EQ(live.failed_loads, 0u);
  EXPECT_TRUE(Eventually([&] { return Status()["trace"]["lost"] > 0; }));
  EXPECT_GT(Status()["trace"]["disk_errors"], 0);
  EXPECT_THAT(Cli("status").output, HasSubstr("NOT COMPLETE"));
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
}

TEST_F(TraceDaemonTest, FilesRotateAndTheOldestGo) {
  auto daemon = StartDaemon(R"(, "trace_rotate_bytes": "64KiB", "trace_max_files": 3)");
  Replay(Traffic(2000));
  EXPECT_GT(Status()["trace"]["files"], 3);
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
  EXPECT_LE(Files().size(), 3u);
  EXPECT_GT(ReadTrace().lookups, 0u);
}

TEST_F(TraceDaemonTest, WhatCannotBeWrittenIsRefusedAtStart) {
  const std::string config = dir_.path() + "/config.json";
  std::ofstream(config) << R"({"enable_trace": true, "trace_file_path": "/no/such/t.jsonl"})";
  for (const char* flag : {"--check-config", "--config"}) {
    const CommandResult result =
        Execute(absl::StrCat(FLEXKVD, " ", flag, " ", config, " --socket-dir ", Dir()));
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.output, HasSubstr("trace_file_path: the directory /no/such does not exist"));
  }
}

TEST_F(TraceDaemonTest, HintsAreRecorded) {
  auto daemon = StartDaemon("");
  trace::RequestBatch batch = Traffic(3);
  batch.requests[1].hint = {.continue_p = 0.75f, .expected_in_s = 12.0f};
  Replay(batch);
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
  std::vector<RequestHint> hints;
  for (const trace::TraceRequest& request : ReadTrace().requests) {
    if (request.kind == trace::RequestKind::kGet) hints.push_back(request.hint);
  }
  ASSERT_EQ(hints.size(), 3u);
  EXPECT_FALSE(hints[0].known());
  EXPECT_NEAR(hints[1].continue_p, 0.75, 1e-6);
  EXPECT_NEAR(hints[1].expected_in_s, 12, 1e-3);
}

}  // namespace
}  // namespace flexkv
