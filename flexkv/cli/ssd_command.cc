#include "flexkv/cli/ssd_command.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "flexkv/base/clock.h"
#include "flexkv/base/fault.h"
#include "flexkv/cli/cli_support.h"
#include "flexkv/cli/ssd_report.h"
#include "flexkv/storage/ssd/ssd_verify.h"

namespace flexkv {
namespace {

using cli::kExitInterrupted;
using cli::kExitOk;
using cli::kExitUsage;

constexpr int kExitDamaged = 1;
constexpr int kExitInUse = 3;
constexpr TimeNs kTerminalEvery = 200 * kNsPerMs;
constexpr TimeNs kPipeEvery = 10 * kNsPerSecond;

// On stderr: a line that changes on a terminal, a line now and then elsewhere.
class ProgressPrinter {
 public:
  ~ProgressPrinter() { Clear(); }

  void Print(const SsdVerifyProgress& progress) {
    const TimeNs now = clock_.Now();
    if (now - last_ < (terminal_ ? kTerminalEvery : kPipeEvery)) return;
    last_ = now;
    const std::string text = SsdProgressText(progress);
    std::fprintf(stderr, terminal_ ? "\r%s\x1b[K" : "%s\n", text.c_str());
    std::fflush(stderr);
    shown_ = terminal_;
  }
  void Clear() {
    if (shown_) std::fputs("\r\x1b[K", stderr);
    shown_ = false;
  }

 private:
  SteadyClock clock_;
  const bool terminal_ = isatty(STDERR_FILENO) == 1;
  TimeNs last_ = clock_.Now();
  bool shown_ = false;
};

int Refused(const absl::Status& status) {
  std::fprintf(stderr, "flexkv: %s%s\n", std::string(status.message()).c_str(),
               IsInUse(status) ? " (a running flexkvd? end it with: flexkv stop)" : "");
  if (IsInUse(status)) return kExitInUse;
  return absl::IsUnavailable(status) ? kExitDamaged : kExitUsage;
}

int CodeOf(const SsdVerifyReport& report) {
  if (report.interrupted) return kExitInterrupted;
  if (report.repair_failures() > 0) return kExitDamaged;
  return report.damaged() && !report.repaired ? kExitDamaged : kExitOk;
}

}  // namespace

SsdCommand::SsdCommand(CLI::App* app) {
  group_ = app->add_subcommand("ssd", "look after the directories of an SSD cache");
  group_->require_subcommand(1);
  verify_ = group_->add_subcommand(
      "verify",
      "Reads every block of SSD cache directories and checks it. No daemon may use them.\n"
      "Nothing is written unless --repair is given. Name all directories of a daemon together:\n"
      "a block's parent may lie in any of them.\n\n"
      "Examples:\n"
      "  flexkv ssd verify /mnt/nvme0/flexkv /mnt/nvme1/flexkv\n"
      "  flexkv ssd verify --repair /mnt/nvme0/flexkv\n"
      "  flexkv ssd verify --json /mnt/nvme0/flexkv | jq .directories[0].blocks\n\n"
      "Exit codes: 0 all good, or all repaired; 1 damage found; 2 usage, or no such directory;\n"
      "3 in use by a daemon; 130 interrupted.\n");
  verify_->add_option("DIR", directories_, "directories or block devices, as in ssd_cache_dir")
      ->required();
  verify_->add_flag("--repair", repair_,
                    "free what does not verify, drop what cannot be read, write fresh logs");
  verify_->add_flag("--keep-orphans", keep_orphans_,
                    "with --repair: keep blocks whose parents are in none of the directories");
  verify_->add_flag("--json", json_, "the report as one JSON object");
}

int SsdCommand::Run() const {
  const char* faults = std::getenv("FLEXKV_FAULTS");
  if (absl::Status status = ArmFaults(faults == nullptr ? "" : faults); !status.ok()) {
    return Refused(status);
  }
  cli::EndOnSignals();  // also ends at once on the second: the store survives that
  SsdVerifyOptions options;
  options.directories = directories_;
  options.repair = repair_;
  options.keep_orphans = keep_orphans_;
  ProgressPrinter printer;
  options.on_progress = [&printer](const SsdVerifyProgress& progress) {
    printer.Print(progress);
    return !cli::Interrupted();
  };
  const absl::StatusOr<SsdVerifyReport> report = VerifySsd(options);
  printer.Clear();
  if (!report.ok()) return Refused(report.status());
  if (json_) {
    std::printf("%s\n", SsdReportJson(*report).c_str());
  } else {
    std::fputs(SsdReportText(*report).c_str(), stdout);
  }
  return CodeOf(*report);
}

}  // namespace flexkv
