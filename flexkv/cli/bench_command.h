// `flexkv bench ...`: what this machine's devices can do, measured now.
#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>

namespace flexkv::cli {

class BenchCommand {
 public:
  explicit BenchCommand(CLI::App* app);  // `app` outlives it

  bool parsed() const { return group_->parsed(); }
  // Returns the exit code: 0 measured, 1 no device, or it refused.
  int Run() const;

 private:
  CLI::App* group_ = nullptr;
  int device_ = 0;
  uint32_t sms_ = 8;
  bool json_ = false;
};

}  // namespace flexkv::cli
