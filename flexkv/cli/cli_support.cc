#include "flexkv/cli/cli_support.h"

#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"

namespace flexkv::cli {
namespace {

constexpr TimeNs kQuiet = kNsPerSecond;
constexpr TimeNs kEvery = 200 * kNsPerMs;

std::atomic<bool> interrupted{false};
static_assert(std::atomic<bool>::is_always_lock_free);

class InterruptibleSource : public trace::TraceSource {
 public:
  explicit InterruptibleSource(std::unique_ptr<trace::TraceSource> inner)
      : inner_(std::move(inner)) {}
  absl::StatusOr<bool> Next(uint64_t max_blocks, trace::RequestBatch* batch) override {
    if (Interrupted()) return absl::CancelledError("interrupted");
    return inner_->Next(max_blocks, batch);
  }
  absl::Status Rewind() override { return inner_->Rewind(); }
  const trace::TraceInfo& info() const override { return inner_->info(); }
  double progress() const override { return inner_->progress(); }

 private:
  const std::unique_ptr<trace::TraceSource> inner_;
};

// Messages are one line and printable whatever a file holds.
std::string OneLine(absl::string_view text) {
  std::string line(text.substr(0, 500));
  for (char& c : line) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7f) c = ' ';
  }
  return line;
}

}  // namespace

CLI::App* AddCommand(CLI::App* group, const std::string& name, const std::string& summary,
                     const std::string& details) {
  CLI::App* app = group->add_subcommand(name, summary);
  app->footer(details);
  return app;
}

int Fail(const absl::Status& status) {
  if (absl::IsCancelled(status)) {
    std::fprintf(stderr, "flexkv: interrupted\n");
    return kExitInterrupted;
  }
  std::fprintf(stderr, "flexkv: %s\n", OneLine(status.message()).c_str());
  switch (status.code()) {
    case absl::StatusCode::kInvalidArgument:
    case absl::StatusCode::kNotFound:
    case absl::StatusCode::kPermissionDenied:
    case absl::StatusCode::kFailedPrecondition:
      return kExitUsage;
    default:
      return kExitFailed;
  }
}

void EndOnSignals() {
  struct sigaction action {};
  action.sa_handler = [](int) { interrupted.store(true, std::memory_order_relaxed); };
  action.sa_flags = static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

bool Interrupted() { return interrupted.load(std::memory_order_relaxed); }

void Print(const std::string& text) { std::fwrite(text.data(), 1, text.size(), stdout); }

void Progress::Show(double share) {
  if (isatty(STDERR_FILENO) != 1) return;
  const TimeNs now = clock_.Now();
  if (now - started_ < kQuiet || (shown_ && now - last_ < kEvery)) return;
  last_ = now;
  shown_ = true;
  constexpr int kWidth = 30;
  const double part = std::clamp(share, 0.0, 1.0);
  const int full = static_cast<int>(part * kWidth);
  std::string bar(static_cast<size_t>(full), '#');
  bar.resize(kWidth, '.');
  std::fprintf(stderr, "\r%s [%s] %3.0f %%\x1b[K", what_.c_str(), bar.c_str(), part * 100);
  std::fflush(stderr);
}

void Progress::Clear() {
  if (shown_) std::fputs("\r\x1b[K", stderr);
  shown_ = false;
}

std::function<void(double)> Progress::Callback() {
  return [this](double share) { Show(share); };
}

void TraceInput::AddTo(CLI::App* app) {
  app->add_option("FILE", files,
                  "traces, read one after another as one; .gz and .zst too; - is standard input")
      ->required();
  app->add_option("--max-bad", max_bad_share, "share of bad lines above which reading fails")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app->add_option("--tokens-per-block", tokens_per_block,
                  "tokens of a block, where the format does not say (Mooncake: 512, Qwen: 16)")
      ->check(CLI::Range(1u, 1u << 20));
  app->add_option("--max-memory", max_memory, "what reading and computing may use")
      ->type_name("SIZE")
      ->capture_default_str();
}

absl::StatusOr<std::unique_ptr<trace::TraceSource>> TraceInput::Open() const {
  trace::OpenTraceOptions options;
  options.max_bad_share = max_bad_share;
  options.tokens_per_block = tokens_per_block;
  absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = trace::OpenTrace(files, options);
  if (!source.ok()) return source.status();
  return std::make_unique<InterruptibleSource>(std::move(*source));
}

absl::StatusOr<uint64_t> TraceInput::MaxMemory() const {
  const absl::StatusOr<uint64_t> bytes = ParseBytes(max_memory, 0);
  if (!bytes.ok()) {
    return absl::InvalidArgumentError(absl::StrCat("--max-memory: ", bytes.status().message()));
  }
  constexpr uint64_t kLeast = 16ull << 20;
  if (*bytes < kLeast) return absl::InvalidArgumentError("--max-memory: at least 16MiB");
  return *bytes;
}

absl::Status WriteFile(const std::string& path, const std::string& text) {
  if (path == "-") {
    Print(text);
    return absl::OkStatus();
  }
  struct stat info {};
  const bool special = stat(path.c_str(), &info) == 0 && !S_ISREG(info.st_mode);
  const std::string beside = special ? path : absl::StrCat(path, ".", getpid(), ".part");
  std::FILE* file = std::fopen(beside.c_str(), "wb");
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat(path, ": cannot be written: ", std::strerror(errno)));
  }
  const bool written = std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const bool closed = std::fclose(file) == 0;
  if (written && closed && (special || std::rename(beside.c_str(), path.c_str()) == 0)) {
    return absl::OkStatus();
  }
  const int error = errno;
  if (!special) std::remove(beside.c_str());
  return absl::UnavailableError(absl::StrCat(path, ": writing failed: ", std::strerror(error)));
}

}  // namespace flexkv::cli
