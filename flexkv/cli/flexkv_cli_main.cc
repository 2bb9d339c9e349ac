// flexkv: asks a running daemon and tells it what to do.
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <cstdio>
#include <memory>
#include <string>

#include "flexkv/cli/bench_command.h"
#include "flexkv/cli/ssd_command.h"
#include "flexkv/cli/trace_command.h"
#include "flexkv/cli/tune_command.h"
#include "flexkv/server/admin_client.h"
#include "flexkv/server/metrics_server.h"
#include "flexkv/server/socket_dir.h"
#include "flexkv/server/status_text.h"

namespace flexkv {
namespace {

constexpr int kExitOk = 0;
constexpr int kExitFailed = 1;
constexpr int kExitUsage = 2;
constexpr int kExitNoDaemon = 3;
constexpr int kTimeoutMs = 3000;
constexpr int kStopTimeoutMs = 10000;

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "flexkv: %s\n", std::string(status.message()).c_str());
  return kExitFailed;
}

int NoDaemon(const SocketPaths& paths) {
  std::fprintf(stderr, "flexkv: no daemon runs on %s (start one with: flexkvd --socket-dir %s)\n",
               paths.dir.c_str(), paths.dir.c_str());
  return kExitNoDaemon;
}

int RunStatus(AdminClient* client, bool json) {
  const absl::StatusOr<admin::v1::StatusReply> status = client->Status(kTimeoutMs);
  if (!status.ok()) return Fail(status.status());
  if (!json) {
    std::fputs(StatusText(*status).c_str(), stdout);
    return kExitOk;
  }
  std::printf("%s\n", StatusJson(*status).c_str());
  return kExitOk;
}

int RunClear(AdminClient* client, const std::string& label) {
  const absl::StatusOr<uint32_t> cleared = client->Clear(label, kTimeoutMs);
  if (!cleared.ok()) return Fail(cleared.status());
  std::printf("cleared %u namespace(s)\n", *cleared);
  return kExitOk;
}

// Returns once the daemon has let go of its sockets.
int RunStop(AdminClient* client, const SocketPaths& paths) {
  if (absl::Status status = client->Stop(kTimeoutMs); !status.ok()) return Fail(status);
  for (int waited = 0; waited < kStopTimeoutMs; waited += 10) {
    if (access(paths.handshake.c_str(), F_OK) != 0) {
      std::printf("stopped\n");
      return kExitOk;
    }
    usleep(10000);
  }
  return Fail(absl::DeadlineExceededError("the daemon was asked to stop and still runs"));
}

int RunMetrics(const SocketPaths& paths) {
  const absl::StatusOr<std::string> text = FetchMetrics(paths.metrics);
  if (!text.ok()) return NoDaemon(paths);
  std::fputs(text->c_str(), stdout);
  return kExitOk;
}

int Main(int argc, char** argv) {
  CLI::App app{
      "flexkv asks the flexkvd of this machine, or tells it what to do; reads traces, tunes, "
      "measures.\n\n"
      "Examples:\n"
      "  flexkv status                     memory, hit rate, engines, latencies\n"
      "  flexkv status --json | jq .counters\n"
      "  flexkv clear --namespace my-model forget what is cached for one model\n"
      "  flexkv stop\n"
      "  flexkv ssd verify /mnt/nvme0/flexkv\n"
      "  flexkv bench device               copies between host and GPU\n"
      "  flexkv trace analyze trace.jsonl  what was found, what could have been\n"
      "  flexkv trace simulate trace.jsonl --policy all --cpu-blocks 1k,10k,inf\n"
      "  flexkv trace report trace.jsonl -o report.html\n"
      "  flexkv tune trace.jsonl --memory 200GB --config node.json\n\n"
      "Exit codes: 0 done, 1 failed, 2 usage, 3 no daemon runs.\n"};
  app.require_subcommand(1);
  app.fallthrough();
  std::string socket_dir;
  app.add_option("--socket-dir", socket_dir, "the daemon's socket directory (default as flexkvd's)")
      ->type_name("DIR");
  app.set_version_flag("--version", std::string("flexkv ") + FLEXKV_VERSION);
  bool json = false;
  std::string label;
  CLI::App* status = app.add_subcommand("status", "show what the daemon holds and does");
  status->add_flag("--json", json, "every field, as JSON");
  CLI::App* clear = app.add_subcommand("clear", "forget cached blocks, of one namespace or of all");
  clear->add_option("--namespace", label, "label as shown by status")->type_name("LABEL");
  CLI::App* stop = app.add_subcommand("stop", "stop the daemon");
  CLI::App* metrics = app.add_subcommand("metrics", "print the Prometheus metrics");
  const SsdCommand ssd(&app);
  const cli::BenchCommand bench(&app);
  const cli::TraceCommand trace(&app);
  const cli::TuneCommand tune(&app);
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    return app.exit(error) == 0 ? kExitOk : kExitUsage;
  }
  if (ssd.parsed()) return ssd.Run();
  if (bench.parsed()) return bench.Run();
  if (trace.parsed()) return trace.Run();
  if (tune.parsed()) return tune.Run();
  const SocketPaths paths(socket_dir.empty() ? DefaultSocketDir() : socket_dir);
  if (metrics->parsed()) return RunMetrics(paths);
  absl::StatusOr<std::unique_ptr<AdminClient>> client = AdminClient::Connect(paths.admin);
  if (!client.ok()) return NoDaemon(paths);
  if (status->parsed()) return RunStatus(client->get(), json);
  if (clear->parsed()) return RunClear(client->get(), label);
  if (stop->parsed()) return RunStop(client->get(), paths);
  return kExitUsage;
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) { return flexkv::Main(argc, argv); }
