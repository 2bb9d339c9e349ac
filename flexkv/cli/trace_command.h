// `flexkv trace info | analyze | simulate | report | generate`.
#pragma once

#include <CLI/CLI.hpp>
#include <memory>
#include <string>

#include "flexkv/cli/cli_support.h"
#include "flexkv/cli/simulate_command.h"

namespace flexkv::cli {

class TraceCommand {
 public:
  explicit TraceCommand(CLI::App* app);  // `app` outlives it
  bool parsed() const { return group_->parsed(); }
  // Returns the exit code: 0 done, 1 reading or computing failed, 2 usage or no trace, 130
  // interrupted.
  int Run() const;

 private:
  void AddAnalyze();
  void AddReport();
  void AddGenerate();
  int RunInfo() const;
  int RunAnalyze() const;
  int RunReport() const;
  int RunGenerate() const;

  CLI::App* group_ = nullptr;
  CLI::App* info_ = nullptr;
  CLI::App* analyze_ = nullptr;
  CLI::App* report_ = nullptr;
  CLI::App* generate_ = nullptr;
  std::unique_ptr<SimulateCommand> simulate_;
  TraceInput input_;
  bool json_ = false;
  uint32_t top_ = 10;
  std::string output_;
  std::string policies_ = "all";
  std::string family_ = "mixed";
  uint64_t seed_ = 1, requests_ = 20000;
  uint32_t tokens_per_block_ = 0;
  double requests_per_s_ = 0;
};

}  // namespace flexkv::cli
