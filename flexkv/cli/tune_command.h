// `flexkv tune`.
#pragma once

#include <CLI/CLI.hpp>
#include <optional>
#include <string>

#include "flexkv/cli/cli_support.h"
#include "flexkv/cli/simulate_command.h"
#include "flexkv/cli/tune_text.h"
#include "flexkv/cli/tuner.h"
#include "flexkv/server/config.h"

namespace flexkv::cli {

class TuneCommand {
 public:
  explicit TuneCommand(CLI::App* app);  // `app` outlives it
  bool parsed() const { return app_->parsed(); }
  // Returns the exit code: 0 done, also when the target is out of reach; 1 reading or computing
  // failed, 2 usage or no trace, 130 interrupted.
  int Run() const;

 private:
  absl::StatusOr<uint64_t> BlockBytes(trace::TraceSource* source) const;
  absl::Status Verify(trace::TraceSource* source, TuneResult* result) const;
  absl::StatusOr<TuneRequest> Request(trace::TraceSource* source) const;

  CLI::App* app_ = nullptr;
  TraceInput input_;
  SimulationFlags flags_;
  std::string target_ = "hit-rate";
  double target_value_ = -1;
  std::string memory_, ssd_ = "0", config_path_, ssd_dir_, policies_ = "all", output_;
  double memory_price_ = TuneRequest().memory_price, ssd_price_ = TuneRequest().ssd_price;
  double load_gb_per_s_ = trace::SimulateOptions().load_bytes_per_s / 1e9;
  double ssd_gb_per_s_ = trace::SimulateOptions().ssd_bytes_per_s / 1e9;
  bool json_ = false, verify_ = false;
  uint64_t verify_requests_ = 20000;
};

}  // namespace flexkv::cli
