// `flexkv ssd ...`: what is done to the directories of an SSD tier while no daemon uses them.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace flexkv {

class SsdCommand {
 public:
  explicit SsdCommand(CLI::App* app);  // `app` outlives it

  bool parsed() const { return group_->parsed(); }
  // Returns the exit code: 0 all good or all repaired, 1 damage, 2 usage, 3 in use, 130
  // interrupted.
  int Run() const;

 private:
  CLI::App* group_ = nullptr;
  CLI::App* verify_ = nullptr;
  std::vector<std::string> directories_;
  bool repair_ = false;
  bool keep_orphans_ = false;
  bool json_ = false;
};

}  // namespace flexkv
