#include "perf/daemon/daemon_process.h"

#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "flexkv/server/admin_client.h"
#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

constexpr int kStatusTimeoutMs = 5000;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::exit(2);
}

std::string TextOf(const std::string& path) {
  std::ostringstream text;
  text << std::ifstream(path).rdbuf();
  return text.str();
}

}  // namespace

std::string FindDaemon(const std::string& given) {
  if (!given.empty()) return given;
  char self[PATH_MAX] = {};
  if (readlink("/proc/self/exe", self, sizeof(self) - 1) > 0) {
    const std::filesystem::path build =
        std::filesystem::path(self).parent_path().parent_path().parent_path();
    const std::filesystem::path beside = build / "flexkv" / "server" / "flexkvd";
    if (std::filesystem::exists(beside)) return beside.string();
  }
  return "flexkvd";
}

std::unique_ptr<DaemonProcess> DaemonProcess::Exec(const std::string& flexkvd,
                                                   const std::string& folder,
                                                   const std::string& config) {
  const std::string config_path = folder + "/config.json", log_path = folder + "/log";
  std::ofstream(config_path) << config;
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) Fail("no pipe");
  std::unique_ptr<DaemonProcess> daemon(new DaemonProcess);
  daemon->folder_ = folder;
  daemon->output_ = UniqueFd(ends[0]);
  const UniqueFd writing(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writing.get(), STDOUT_FILENO);
  posix_spawn_file_actions_addopen(&actions, STDERR_FILENO, log_path.c_str(),
                                   O_WRONLY | O_CREAT | O_APPEND, 0600);
  std::string words[] = {"flexkvd", "--config", config_path, "--socket-dir", folder,
                         // Should this program end without ending it.
                         "--idle-exit", "60"};
  std::vector<char*> arguments;
  for (std::string& word : words) arguments.push_back(word.data());
  arguments.push_back(nullptr);
  daemon->exec_ns_ = NowNs();
  const int error =
      posix_spawnp(&daemon->pid_, flexkvd.c_str(), &actions, nullptr, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) Fail("could not start " + flexkvd + "; give its path with --flexkvd PATH");
  return daemon;
}

DaemonProcess::~DaemonProcess() { Kill(); }

uint64_t DaemonProcess::WaitReady() {
  std::string line;
  char c = 0;
  while (read(output_.get(), &c, 1) == 1 && c != '\n') line.push_back(c);
  const uint64_t at = NowNs();
  if (line.find("ready") == std::string::npos)
    Fail("flexkvd did not start:\n" + TextOf(folder_ + "/log"));
  return at;
}

// A busy machine may keep gRPC from connecting in its time.
admin::v1::StatusReply DaemonProcess::Status() const {
  constexpr int kAttempts = 5;
  absl::Status status;
  for (int i = 0; i < kAttempts; ++i) {
    const auto client = AdminClient::Connect(folder_ + "/admin.sock");
    status = client.status();
    if (!status.ok()) continue;
    absl::StatusOr<admin::v1::StatusReply> reply = (*client)->Status(kStatusTimeoutMs);
    if (reply.ok()) return *std::move(reply);
    status = reply.status();
  }
  Fail("no status: " + status.ToString());
}

void DaemonProcess::Kill() {
  if (pid_ <= 0) return;
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  pid_ = 0;
}

}  // namespace flexkv::bench
