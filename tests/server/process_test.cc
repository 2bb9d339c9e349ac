// flexkvd and flexkv as programs: start, second start, kill -9, exit codes.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;

using Result = CommandResult;

class ProcessTest : public testing::Test {
 protected:
  std::unique_ptr<ChildProcess> StartDaemon(std::vector<std::string> more = {}) {
    std::vector<std::string> arguments = {FLEXKVD, "--socket-dir", Dir(), "--cpu-cache-bytes",
                                          "32MiB"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    auto daemon = std::make_unique<ChildProcess>(arguments);
    EXPECT_EQ(daemon->ReadLine(), absl::StrCat("flexkvd ready on ", Dir(), "/daemon.sock"));
    return daemon;
  }
  std::string Dir() const { return dir_.path() + "/flexkv"; }
  Result Cli(const std::string& arguments) {
    return Execute(absl::StrCat(FLEXKV_CLI, " --socket-dir ", Dir(), " ", arguments));
  }
  Result Check(const std::string& json) {
    const std::string path = dir_.path() + "/config.json";
    std::ofstream(path) << json;
    return Execute(absl::StrCat(FLEXKVD, " --check-config ", path));
  }
  TempDir dir_;
};

TEST_F(ProcessTest, CheckConfigPrintsEffectiveValuesOrOneLine) {
  const Result good = Check(R"({"cpu_cache_bytes": "64MiB"})");
  EXPECT_EQ(good.code, 0);
  const nlohmann::json printed = nlohmann::json::parse(good.output, nullptr, false);
  ASSERT_FALSE(printed.is_discarded()) << good.output;
  EXPECT_EQ(printed["cache_config"]["cpu_cache_bytes"], 64 << 20);
  EXPECT_NE(printed["cache_config"]["socket_dir"], "");
  const Result bad = Check(R"({"cpu_cache_byte": 1})");
  EXPECT_EQ(bad.code, 2);
  EXPECT_THAT(bad.output, HasSubstr("did you mean cpu_cache_bytes?"));
  EXPECT_EQ(std::count(bad.output.begin(), bad.output.end(), '\n'), 1);
  EXPECT_EQ(Execute(std::string(FLEXKVD) + " --config /no/such.json").code, 2);
  EXPECT_EQ(Execute(std::string(FLEXKVD) + " --cpu-cache-bytes 9000TB").code, 2);
  EXPECT_EQ(Execute(std::string(FLEXKVD) + " --no-such-flag").code, 2);
  EXPECT_EQ(Execute(std::string(FLEXKVD) + " --help").code, 0);
  EXPECT_THAT(Execute(std::string(FLEXKVD) + " --version").output, HasSubstr("flexkvd 0"));
}

// On a machine that is busy the daemon may take a moment to greet.
TEST_F(ProcessTest, TheCommandLineToolWaitsForADaemonThatIsSlow) {
  auto daemon = StartDaemon();
  daemon->Kill(SIGSTOP);
  std::thread waker([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(700));
    daemon->Kill(SIGCONT);
  });
  const Result status = Cli("status");
  waker.join();
  EXPECT_EQ(status.code, 0) << status.output;
}

TEST_F(ProcessTest, TheCommandLineToolTalksToIt) {
  EXPECT_EQ(Cli("status").code, 3);
  EXPECT_THAT(Cli("status").output, HasSubstr("no daemon runs on"));
  EXPECT_EQ(Cli("metrics").code, 3);
  EXPECT_EQ(Cli("nonsense").code, 2);
  EXPECT_EQ(Cli("").code, 2);
  EXPECT_EQ(Cli("--help").code, 0);
  auto daemon = StartDaemon();
  EXPECT_EQ(Cli("status").code, 0);
  EXPECT_THAT(Cli("status").output, HasSubstr("hit rate"));
  const nlohmann::json json = nlohmann::json::parse(Cli("status --json").output, nullptr, false);
  ASSERT_FALSE(json.is_discarded());
  EXPECT_EQ(json["memory"]["budget_bytes"], 32 << 20);
  EXPECT_EQ(json["pid"], daemon->pid());
  const Result metrics = Cli("metrics");
  EXPECT_THAT(metrics.output, HasSubstr("# TYPE flexkv_match_latency_seconds histogram"));
  EXPECT_THAT(metrics.output, HasSubstr("flexkv_cpu_budget_bytes 33554432"));
  EXPECT_EQ(Cli("clear").code, 0);
  EXPECT_EQ(Cli("clear --namespace nobody").code, 1);
  EXPECT_EQ(Cli("stop").code, 0);
  EXPECT_EQ(daemon->Wait(), 0);
  EXPECT_EQ(Cli("status").code, 3);
}

TEST_F(ProcessTest, ASecondDaemonIsRefused) {
  auto first = StartDaemon();
  const Result second =
      Execute(absl::StrCat(FLEXKVD, " --socket-dir ", Dir(), " --cpu-cache-bytes 32MiB"));
  EXPECT_EQ(second.code, 3);
  EXPECT_THAT(second.output,
              HasSubstr(absl::StrCat("another flexkvd (pid ", first->pid(), ") runs on ", Dir())));
  EXPECT_EQ(Cli("status").code, 0);
}

TEST_F(ProcessTest, AKilledDaemonIsReplacedAndItsClientsSeeIt) {
  auto first = StartDaemon();
  RawEngine engine(Dir() + "/daemon.sock", 1);
  engine.ExpectWorks(1);
  first->Kill(SIGKILL);
  EXPECT_EQ(first->Wait(), -SIGKILL);
  EXPECT_TRUE(engine.scheduler().WaitCut());
  EXPECT_EQ(access((Dir() + "/daemon.sock").c_str(), F_OK), 0) << "the stale socket is there";
  auto second = StartDaemon();
  RawEngine again(Dir() + "/daemon.sock", 1);
  EXPECT_NE(again.scheduler().welcome().boot_id, engine.scheduler().welcome().boot_id);
  again.ExpectWorks(1);
  second->Kill(SIGTERM);
  EXPECT_EQ(second->Wait(), 0);
  EXPECT_NE(access((Dir() + "/daemon.sock").c_str(), F_OK), 0);
}

TEST_F(ProcessTest, UnsafeDirectoriesAreRefused) {
  const std::string start = absl::StrCat(FLEXKVD, " --cpu-cache-bytes 32MiB --socket-dir ", Dir());
  mkdir(Dir().c_str(), 0755);
  chmod(Dir().c_str(), 0755);
  Result result = Execute(start);
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.output, HasSubstr("open to other users"));
  rmdir(Dir().c_str());
  const std::string target = dir_.path() + "/target";
  mkdir(target.c_str(), 0700);
  ASSERT_EQ(symlink(target.c_str(), Dir().c_str()), 0);
  result = Execute(start);
  EXPECT_EQ(result.code, 2);
  EXPECT_THAT(result.output, HasSubstr("symlink"));
  unlink(Dir().c_str());
  if (geteuid() == 0) {
    mkdir(Dir().c_str(), 0700);
    ASSERT_EQ(chown(Dir().c_str(), 65534, 65534), 0);
    result = Execute(start);
    EXPECT_EQ(result.code, 2);
    EXPECT_THAT(result.output, HasSubstr("belongs to uid 65534"));
  }
}

TEST_F(ProcessTest, ItLeavesWhenIdle) {
  auto daemon = StartDaemon({"--idle-exit", "1"});
  EXPECT_EQ(daemon->Wait(), 0);
}

TEST_F(ProcessTest, MetricsOnALoopbackPortWhenAsked) {
  const std::string path = dir_.path() + "/config.json";
  std::ofstream(path) << R"({"metrics": "127.0.0.1:0"})";
  auto daemon = StartDaemon({"--config", path});
  const Result listeners =
      Execute(absl::StrCat("grep -c ' 0A ' /proc/", daemon->pid(), "/net/tcp"));
  EXPECT_NE(listeners.output, "0\n");
}

TEST_F(ProcessTest, IdleItSleeps) {
  auto daemon = StartDaemon();
  RawEngine engine(Dir() + "/daemon.sock", 1);
  engine.ExpectWorks(1);
  usleep(300000);
  const auto cpu_ticks = [&] {
    std::ifstream file(absl::StrCat("/proc/", daemon->pid(), "/stat"));
    std::string word;
    long user = 0, system = 0;
    for (int i = 1; i <= 13; ++i) file >> word;
    file >> user >> system;
    return user + system;
  };
  const long before = cpu_ticks();
  usleep(2000000);
  EXPECT_LE(cpu_ticks() - before, 4) << "2 s idle cost more than 40 ms";
}

}  // namespace
}  // namespace flexkv
