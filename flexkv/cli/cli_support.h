// What the commands share: exit codes, one-line errors, signals, progress.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/trace/trace_request.h"

namespace CLI {
class App;
}

namespace flexkv::cli {

inline constexpr int kExitOk = 0;
inline constexpr int kExitFailed = 1;  // reading or computing failed
inline constexpr int kExitUsage = 2;   // arguments, a missing file, not a trace, a configuration
inline constexpr int kExitInterrupted = 130;

// `summary` stands in lists of commands, `details` (examples, exit codes) below its own options.
CLI::App* AddCommand(CLI::App* group, const std::string& name, const std::string& summary,
                     const std::string& details);

// One line on stderr; the code that fits the status.
int Fail(const absl::Status& status);

// SIGINT and SIGTERM set a flag; the second one ends the process at once (nothing is half written:
// files appear under their names when they are complete).
void EndOnSignals();
bool Interrupted();

// Prints to standard output.
void Print(const std::string& text);

// A share done, on stderr, when that is a terminal and it takes more than a second.
class Progress {
 public:
  explicit Progress(std::string what) : what_(std::move(what)) {}
  ~Progress() { Clear(); }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void Show(double share);
  void Clear();
  std::function<void(double)> Callback();

 private:
  const std::string what_;
  SteadyClock clock_;
  const TimeNs started_ = clock_.Now();
  TimeNs last_ = started_;
  bool shown_ = false;
};

// Which trace, and how it is read.
struct TraceInput {
  std::vector<std::string> files;
  double max_bad_share = 0.01;
  uint32_t tokens_per_block = 0;
  std::string max_memory = "8GB";

  void AddTo(CLI::App* app);
  // The source answers Cancelled once a signal came.
  absl::StatusOr<std::unique_ptr<trace::TraceSource>> Open() const;
  absl::StatusOr<uint64_t> MaxMemory() const;
};

// Writes `text` beside `path` and renames it. "-": standard output.
absl::Status WriteFile(const std::string& path, const std::string& text);

}  // namespace flexkv::cli
