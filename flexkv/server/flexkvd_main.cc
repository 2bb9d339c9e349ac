// flexkvd: reads the configuration, starts the daemon, waits for a signal.
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/base/units.h"
#include "flexkv/server/config.h"
#include "flexkv/server/daemon_server.h"
#include "flexkv/server/log.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitConfig = 2;
constexpr int kExitRunning = 3;

struct Flags {
  std::string config_path;
  std::string check_path;
  std::string socket_dir;
  std::string cpu_cache_bytes;
  std::string log_level;
  int64_t idle_exit_s = -1;
};

int Fail(int code, const std::string& message) {
  std::fprintf(stderr, "flexkvd: %s\n", message.c_str());
  return code;
}

absl::StatusOr<DaemonConfig> EffectiveConfig(const Flags& flags) {
  const ConfigContext context = SystemConfigContext();
  DaemonConfig config;
  const std::string& path = flags.check_path.empty() ? flags.config_path : flags.check_path;
  if (!path.empty()) {
    absl::StatusOr<DaemonConfig> read = ReadConfigFile(path, context);
    if (!read.ok()) return read.status();
    config = std::move(*read);
  } else {
    FinishConfig(context, &config);
  }
  if (!flags.cpu_cache_bytes.empty()) {
    if (absl::Status status = SetCpuCacheBytes(flags.cpu_cache_bytes, context, &config);
        !status.ok())
      return status;
  }
  if (!flags.socket_dir.empty()) config.socket_dir = flags.socket_dir;
  if (config.socket_dir.empty()) config.socket_dir = DefaultSocketDir();
  if (config.socket_dir.front() != '/') {
    return absl::InvalidArgumentError(
        absl::StrCat("socket_dir: must be an absolute path, not ", config.socket_dir));
  }
  if (flags.idle_exit_s >= 0) config.idle_exit_s = static_cast<uint64_t>(flags.idle_exit_s);
  if (!flags.log_level.empty()) config.log_level = flags.log_level;
  return config;
}

int CheckOnly(DaemonConfig config) {
  if (absl::Status status = ResolveSsd(SsdResolve::kCheck, &config.ssd); !status.ok())
    return Fail(kExitConfig, Words(status));
  if (absl::Status status = CheckTracePath(config.trace); !status.ok())
    return Fail(kExitConfig, Words(status));
  std::printf("%s\n", ConfigToJson(config).c_str());
  return kExitOk;
}

// Threads inherit the mask, so only sigwait below sees these signals.
sigset_t BlockSignals() {
  sigset_t wanted;
  sigemptyset(&wanted);
  sigaddset(&wanted, SIGTERM);
  sigaddset(&wanted, SIGINT);
  sigaddset(&wanted, SIGHUP);
  pthread_sigmask(SIG_BLOCK, &wanted, nullptr);
  signal(SIGPIPE, SIG_IGN);
  return wanted;
}

void SetUpProcess(const DaemonConfig& config) {
  auto logger = spdlog::stderr_logger_mt("flexkvd");
  logger->set_pattern("%Y-%m-%d %H:%M:%S.%e %n %l: %v");
  spdlog::set_default_logger(std::move(logger));
  spdlog::set_level(spdlog::level::from_str(config.log_level));
  umask(0077);
  prctl(PR_SET_NAME, "flexkvd");
#ifdef NDEBUG
  prctl(PR_SET_DUMPABLE,
        0);  // the arena holds prompts: no core files, no tracing by other processes of the user
#endif
}

int Serve(const DaemonConfig& config) {
  const sigset_t signals = BlockSignals();  // before any thread starts
  SetUpProcess(config);
  const char* faults = std::getenv("FLEXKV_FAULTS");
  if (faults != nullptr && *faults != '\0') {
    if (absl::Status status = ArmFaults(faults); !status.ok()) {
      return Fail(kExitConfig, absl::StrCat("FLEXKV_FAULTS: ", status.message()));
    }
    spdlog::warn("fault points armed: {}", faults);
  }
  absl::StatusOr<std::unique_ptr<DaemonServer>> server =
      DaemonServer::Start(config, [] { kill(getpid(), SIGTERM); });
  if (!server.ok()) {
    const absl::StatusCode code = server.status().code();
    const int exit_code = code == absl::StatusCode::kAlreadyExists ? kExitRunning
                          : code == absl::StatusCode::kInvalidArgument ||
                                  code == absl::StatusCode::kNotFound ||
                                  code == absl::StatusCode::kPermissionDenied
                              ? kExitConfig
                              : kExitFailed;
    return Fail(exit_code, Words(server.status()));
  }
  spdlog::info("flexkvd {} on {}: CPU tier of {}, pages: {}, boot id {:016x}", FLEXKV_VERSION,
               (*server)->paths().dir, FormatBytes(config.cpu_cache_bytes), (*server)->page_kind(),
               (*server)->boot_id());
  if ((*server)->small_pages()) {
    spdlog::warn(
        "the CPU tier has 4 KiB pages: copies are slower (see use_hugetlb and use_thp in the "
        "README)");
  }
  if ((*server)->metrics_port() != 0)
    spdlog::info("metrics on loopback port {}", (*server)->metrics_port());
  std::printf("flexkvd ready on %s\n", (*server)->paths().handshake.c_str());
  std::fflush(stdout);
  int received = 0;
  while (sigwait(&signals, &received) != 0 || received == SIGHUP) {
  }
  spdlog::info("stopping");
  server->reset();
  return kExitOk;
}

int Main(int argc, char** argv) {
  CLI::App app{
      "flexkvd keeps KV cache blocks of inference engines on this machine.\n\n"
      "Examples:\n"
      "  flexkvd                               a quarter of the memory, default socket directory\n"
      "  flexkvd --config node.json            as the file says\n"
      "  flexkvd --check-config node.json      print the effective values and exit\n"
      "  flexkvd --cpu-cache-bytes 64GB --idle-exit 600\n"};
  Flags flags;
  app.add_option("--config", flags.config_path, "JSON file with the configuration")
      ->type_name("FILE");
  app.add_option("--check-config", flags.check_path,
                 "check FILE and the directories it names, print the effective values, exit 0 or 2")
      ->type_name("FILE");
  app.add_option("--socket-dir", flags.socket_dir,
                 "directory of the sockets (default $FLEXKV_SOCKET_DIR, $XDG_RUNTIME_DIR/flexkv or "
                 "/tmp/flexkv-UID)")
      ->type_name("DIR");
  app.add_option("--cpu-cache-bytes", flags.cpu_cache_bytes,
                 "size of the CPU tier: bytes, 64GB, 25%")
      ->type_name("SIZE");
  app.add_option("--idle-exit", flags.idle_exit_s,
                 "exit after this many seconds without clients (0 = never)")
      ->check(CLI::Range(int64_t{0}, int64_t{1} << 30))
      ->type_name("SECONDS");
  app.add_option("--log-level", flags.log_level,
                 "trace, debug, info, warning, error, critical or off")
      ->check(CLI::IsMember({"trace", "debug", "info", "warning", "error", "critical", "off"}));
  app.set_version_flag("--version", std::string("flexkvd ") + FLEXKV_VERSION);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitConfig;
  }
  const absl::StatusOr<DaemonConfig> config = EffectiveConfig(flags);
  if (!config.ok()) return Fail(kExitConfig, Words(config.status()));
  if (!flags.check_path.empty()) return CheckOnly(*config);
  return Serve(*config);
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) { return flexkv::Main(argc, argv); }
