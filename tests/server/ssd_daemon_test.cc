// A daemon with an SSD tier: what it shows, and how it starts, dies and refuses.
#include <signal.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "flexkv/server/admin_service.h"
#include "flexkv/server/metrics_server.h"
#include "flexkv/server/status_text.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;

class SsdDaemonTest : public DaemonTest {
 protected:
  void Adjust(DaemonConfig* config) override {
    config->ssd.enabled = true;
    config->ssd.directories = {dir_.path() + "/one", dir_.path() + "/two"};
    config->ssd.cache_bytes = 64ull << 20;
  }
};

TEST_F(SsdDaemonTest, StatusAndMetricsShowIt) {
  RawEngine engine(Socket(), 1);
  engine.ExpectWorks(1);
  const admin::v1::StatusReply status = Status();
  ASSERT_EQ(status.ssd_devices_size(), 2);
  const admin::v1::SsdDevice& device = status.ssd_devices(0);
  EXPECT_EQ(device.directory(), dir_.path() + "/one");
  EXPECT_TRUE(device.backend() == "io_uring" || device.backend() == "threads");
  EXPECT_EQ(device.quota_bytes(), 32u << 20);
  EXPECT_GT(device.file_bytes(), 0u);
  EXPECT_GT(device.recovery_ns(), 0u);
  const std::string text = StatusText(status);
  EXPECT_THAT(text, HasSubstr("ssd         "));
  EXPECT_THAT(text, HasSubstr(absl::StrCat("ssd device  ", dir_.path(), "/two: ")));
  EXPECT_THAT(text, HasSubstr("segments: "));
  const nlohmann::json json = nlohmann::json::parse(StatusJson(status), nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["ssd_devices"].size(), 2u);
  EXPECT_TRUE(json["ssd"].contains("writes_waiting"));
  EXPECT_TRUE(json["counters"].contains("ssd_written_blocks"));
  const std::string metrics = MetricsText(*server_->Snapshot());
  EXPECT_THAT(metrics, HasSubstr("flexkv_ssd_devices 2"));
  EXPECT_THAT(metrics, HasSubstr("# TYPE flexkv_ssd_latency_seconds histogram"));
  EXPECT_THAT(metrics, HasSubstr(absl::StrCat("flexkv_ssd_ops_total{device=\"", dir_.path(),
                                              "/one\",kind=\"read\"} ")));
  EXPECT_THAT(metrics, HasSubstr("flexkv_ssd_written_blocks_total "));
}

// Arena segments are known to both devices soon after an engine brought them into being.
TEST_F(SsdDaemonTest, DevicesKnowTheArena) {
  RawEngine engine(Socket(), 1);
  engine.ExpectWorks(1);
  EXPECT_TRUE(Eventually([&] {
    const admin::v1::StatusReply status = Status();
    return status.ssd_devices(0).memory_bytes() == status.memory().segment_bytes() &&
           status.ssd_devices(1).memory_bytes() == status.memory().segment_bytes() &&
           status.memory().segment_bytes() > 0;
  }));
}

TEST_F(SsdDaemonTest, ClearIsAnsweredAndResetsReachTheEngine) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(1, 10);
  EXPECT_EQ(engine.Store(1, chain), 10u);
  auto admin = AdminClient::Connect(dir_.path() + "/flexkv/admin.sock");
  ASSERT_TRUE(admin.ok()) << admin.status();
  const absl::StatusOr<uint32_t> cleared = (*admin)->Clear("", 3000);
  ASSERT_TRUE(cleared.ok()) << cleared.status();
  EXPECT_EQ(*cleared, 1u);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 0u);
  EXPECT_TRUE(absl::IsNotFound((*admin)->Clear("nobody", 3000).status()));
  engine.ExpectWorks(3);
  shm::Message reset = shm::MakeMessage(shm::MessageType::kReset);
  reset.request = 99;
  EXPECT_TRUE(engine.scheduler().Push(reset));
  const std::optional<RawMessage> reply = engine.scheduler().WaitFor(shm::MessageType::kResetReply);
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->message.request, 99u);
  EXPECT_EQ(reply->message.status, static_cast<uint32_t>(shm::WireStatus::kOk));
}

// An engine that is not complete has no handle; a clear's answer is not for it.
TEST_F(SsdDaemonTest, AnIncompleteEngineHearsNothingOfAClear) {
  auto scheduler = RawClient::Attach(Socket(), SchedulerHello(1), SchedulerText("model"));
  ASSERT_TRUE(scheduler.ok()) << scheduler.status();
  auto admin = AdminClient::Connect(dir_.path() + "/flexkv/admin.sock");
  ASSERT_TRUE(admin.ok());
  EXPECT_TRUE((*admin)->Clear("", 3000).ok());
  EXPECT_FALSE((*scheduler)->WaitFor(shm::MessageType::kResetReply, 200).has_value());
}

// What a clear that a device did not note looks like to whoever asked.
TEST(AdminClearTest, AnswersSayWhatADeviceDidNotNote) {
  using State = ClearAnswer::State;
  const TempDir dir;
  std::atomic<State> state = State::kDone;  // read on a thread of the server's
  AdminCallbacks callbacks;
  callbacks.snapshot = [] { return std::nullopt; };
  callbacks.clear = [&](const std::string&) { return ClearAnswer{state, 3}; };
  callbacks.stop = [] {};
  const std::string path = dir.path() + "/admin.sock";
  const auto server = AdminServer::Start(path, std::move(callbacks));
  ASSERT_TRUE(server.ok()) << server.status();
  const auto client = AdminClient::Connect(path);
  ASSERT_TRUE(client.ok()) << client.status();
  EXPECT_EQ((*client)->Clear("", 3000).value_or(0), 3u);
  for (const auto& [answer, code, words] :
       {std::tuple{State::kNotNoted, absl::StatusCode::kInternal, "its old blocks may come back"},
        std::tuple{State::kPending, absl::StatusCode::kDeadlineExceeded, "has not noted it yet"},
        std::tuple{State::kBusy, absl::StatusCode::kUnavailable, "busy"}}) {
    state = answer;
    const absl::Status status = (*client)->Clear("", 3000).status();
    EXPECT_EQ(status.code(), code);
    EXPECT_THAT(std::string(status.message()), HasSubstr(words));
  }
}

TEST_F(SsdDaemonTest, ItStartsAgainOnTheSameDirectories) {
  for (uint64_t round = 1; round <= 3; ++round) {  // what earlier rounds stored is still there
    RawEngine engine(Socket(), 1);
    engine.ExpectWorks(round);
    StopDaemon();
    StartDaemon();
  }
}

class SsdProcessTest : public testing::Test {
 protected:
  std::string WriteConfig(const std::string& ssd_keys, const std::string& name = "config.json") {
    const std::string path = dir_.path() + "/" + name;
    std::ofstream(path) << R"({"cpu_cache_bytes": "32MiB", "segment_bytes": "8MiB",
        "use_hugetlb": false, "enable_ssd": true, )"
                        << ssd_keys << "}";
    return path;
  }
  std::string Keys(const std::string& directory, const std::string& bytes = "64MiB") {
    return absl::StrCat("\"ssd_cache_dir\": \"", directory, "\", \"ssd_cache_bytes\": \"", bytes,
                        "\"");
  }
  std::string SocketDir() const { return dir_.path() + "/flexkv"; }
  std::unique_ptr<ChildProcess> StartDaemon(const std::string& config) {
    auto daemon = std::make_unique<ChildProcess>(std::vector<std::string>{
        FLEXKVD, "--socket-dir", SocketDir(), "--config", config, "--log-level", "warning"});
    EXPECT_EQ(daemon->ReadLine(), absl::StrCat("flexkvd ready on ", SocketDir(), "/daemon.sock"));
    return daemon;
  }
  CommandResult Start(const std::string& config, const std::string& sockets) {
    return Execute(absl::StrCat(FLEXKVD, " --log-level error --socket-dir ", dir_.path(), "/",
                                sockets, " --config ", config));
  }
  static void ExpectOneLine(const CommandResult& result, int code, const std::string& words) {
    EXPECT_EQ(result.code, code) << result.output;
    EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
    EXPECT_THAT(result.output, HasSubstr(words));
  }
  TempDir dir_;
};

TEST_F(SsdProcessTest, AfterSigkillItStartsOnTheSameDirectory) {
  const std::string config = WriteConfig(Keys(dir_.path() + "/ssd"));
  for (uint64_t round = 1; round <= 3; ++round) {
    auto daemon = StartDaemon(config);
    RawEngine engine(SocketDir() + "/daemon.sock", round);
    engine.ExpectWorks(round);
    daemon->Kill(SIGKILL);
    EXPECT_EQ(daemon->Wait(), -SIGKILL);
  }
  auto daemon = StartDaemon(config);
  const CommandResult status =
      Execute(absl::StrCat(FLEXKV_CLI, " --socket-dir ", SocketDir(), " status"));
  EXPECT_THAT(status.output, HasSubstr(absl::StrCat("ssd device  ", dir_.path(), "/ssd: ")));
  EXPECT_EQ(Execute(absl::StrCat(FLEXKV_CLI, " --socket-dir ", SocketDir(), " stop")).code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
}

TEST_F(SsdProcessTest, ASecondDaemonOnTheDirectoryIsRefused) {
  const std::string ssd = dir_.path() + "/ssd";
  const std::string config = WriteConfig(Keys(ssd));
  auto daemon = StartDaemon(config);
  ExpectOneLine(Start(config, "other"), 3, absl::StrCat("ssd_cache_dir: ", ssd, " is in use"));
  ExpectOneLine(Execute(absl::StrCat(FLEXKVD, " --check-config ", config)), 2, "is in use");
  EXPECT_EQ(Execute(absl::StrCat(FLEXKV_CLI, " --socket-dir ", SocketDir(), " status")).code, 0);
}

TEST_F(SsdProcessTest, CheckConfigPrintsWhatWillBeUsedAndMakesNothing) {
  const std::string ssd = dir_.path() + "/ssd";
  const CommandResult good =
      Execute(absl::StrCat(FLEXKVD, " --check-config ", WriteConfig(Keys(ssd, "10%"))));
  ASSERT_EQ(good.code, 0) << good.output;
  const nlohmann::json printed = nlohmann::json::parse(good.output, nullptr, false);
  ASSERT_FALSE(printed.is_discarded());
  EXPECT_TRUE(printed["cache_config"]["ssd_cache_bytes"].is_number_unsigned());
  EXPECT_NE(access(ssd.c_str(), F_OK), 0);
}

TEST_F(SsdProcessTest, WhatCannotBeUsedIsRefusedInOneLine) {
  const std::string root = dir_.path();
  mkdir((root + "/foreign").c_str(), 0700);
  std::ofstream(root + "/foreign/notes.txt") << "mine";
  mkdir((root + "/open").c_str(), 0777);
  chmod((root + "/open").c_str(), 0777);
  struct Case {
    std::string keys;
    const char* words;
  };
  for (const Case& one :
       {Case{Keys(root + "/foreign"), "notes.txt"}, Case{Keys(root + "/open"), "chmod it to 0700"},
        Case{Keys(root + "/no/where"), "/no does not exist"},
        Case{Keys("/proc/flexkv"), "/proc/flexkv"},
        Case{Keys(root + "/ssd", "900PB"), "ssd_cache_bytes: "},
        Case{"\"ssd_admission\": \"always\"", "enable_ssd: needs ssd_cache_dir"}}) {
    const std::string config = WriteConfig(one.keys);
    ExpectOneLine(Execute(absl::StrCat(FLEXKVD, " --check-config ", config)), 2, one.words);
    ExpectOneLine(Start(config, "sockets"), 2, one.words);
  }
  EXPECT_TRUE(std::filesystem::exists(root + "/foreign/notes.txt"));
  EXPECT_FALSE(std::filesystem::exists(root + "/ssd")) << "made, and then refused";
}

// The disk fills up under a running daemon: engines do not notice, and it stops in order.
TEST_F(SsdProcessTest, AFullDiskKeepsTheDaemonAlive) {
  const std::string mounted = dir_.path() + "/small";
  ASSERT_EQ(mkdir(mounted.c_str(), 0700), 0);
  if (mount("tmpfs", mounted.c_str(), "tmpfs", 0, "size=24m,mode=0700") != 0)
    GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  auto daemon = StartDaemon(WriteConfig(Keys(mounted + "/ssd", "20MiB")));
  {
    std::ofstream filler(mounted + "/filler");
    const std::string mebibyte(1 << 20, 'f');
    for (int i = 0; i < 32 && filler; ++i) filler << mebibyte << std::flush;
  }
  RawEngine engine(SocketDir() + "/daemon.sock", 1);
  for (uint64_t seed = 1; seed < 40; seed += 2) engine.ExpectWorks(seed);
  unlink((mounted + "/filler").c_str());
  for (uint64_t seed = 101; seed < 120; seed += 2) engine.ExpectWorks(seed);
  daemon->Kill(SIGTERM);
  EXPECT_EQ(daemon->Wait(), 0);
  umount2(mounted.c_str(), MNT_DETACH);
}

}  // namespace
}  // namespace flexkv
