// `flexkv trace simulate`.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <string>

#include "flexkv/cli/cli_support.h"
#include "flexkv/trace/simulate.h"

namespace flexkv::cli {

// Options of a simulation that several commands take.
struct SimulationFlags {
  bool timed = false;
  std::string hint_oracle;
  double prefill_tokens_per_s = trace::SimulateOptions().prefill_tokens_per_s;
  std::string block_bytes;
  uint32_t threads = 0;

  void AddTo(CLI::App* app);
  absl::StatusOr<trace::SimulateOptions> Options(uint64_t max_memory) const;
  absl::StatusOr<uint64_t> BlockBytes() const;  // 0: not said
};

class SimulateCommand {
 public:
  explicit SimulateCommand(CLI::App* group);
  bool parsed() const { return app_->parsed(); }
  int Run() const;

 private:
  absl::StatusOr<std::vector<trace::Cell>> Cells(trace::TraceSource* source) const;
  absl::Status AddConfigCell(std::vector<trace::Cell>* cells) const;
  absl::Status PrintCurve(trace::TraceSource* source) const;

  CLI::App* app_ = nullptr;
  TraceInput input_;
  SimulationFlags flags_;
  std::string policies_, cpu_blocks_, ssd_blocks_ = "0", admissions_ = "always";
  std::string config_path_;
  double evict_ratio_ = trace::Cell().evict_ratio;
  double evict_start_ratio_ = trace::Cell().evict_start_ratio;
  bool curve_ = false, json_ = false;
};

}  // namespace flexkv::cli
