#include "flexkv/cli/bench_command.h"

#include <algorithm>
#include <cstdio>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/cli/bench_device.h"
#include "flexkv/cli/cli_support.h"
#include "flexkv/transfer/cuda/cuda_library.h"

namespace flexkv::cli {
namespace {

// Words of a driver or a loader may hold anything.
int NotMeasured(const absl::Status& status) {
  std::string message(status.message());
  std::replace_if(
      message.begin(), message.end(), [](char c) { return c < 0x20 || c > 0x7e; }, ' ');
  std::fprintf(stderr, "flexkv: %s\n", message.c_str());
  return kExitFailed;
}

}  // namespace

BenchCommand::BenchCommand(CLI::App* app) {
  group_ = app->add_subcommand("bench", "measure this machine's devices");
  group_->require_subcommand(1);
  CLI::App* device = AddCommand(
      group_, "device", "copies between host and GPU, by fragment size",
      "Copies between host and GPU by copy engine and by kernel, for fragments of 4 KiB to 1 MiB,\n"
      "each direction; what the daemon's \"auto\" chooses from it (use_ce_transfer_h2d, _d2h).\n"
      "Takes a second. On a GPU that works meanwhile, it measures what is left.\n\n"
      "Examples:\n"
      "  flexkv bench device\n"
      "  flexkv bench device --device 1 --sms 16\n"
      "  flexkv bench device --json | jq .load.kernel_below_bytes\n\n"
      "Exit codes: 0 measured; 1 no driver, no such device, or it refused; 2 usage.\n");
  device->add_flag("--json", json_, "as one JSON object");
  device->add_option("--device", device_, "number of the GPU, as the CUDA runtime counts (0)")
      ->type_name("N")
      ->check(CLI::Range(0, 1023));
  device->add_option("--sms", sms_, "SMs that the kernel may occupy (8)")
      ->type_name("N")
      ->check(CLI::Range(1, 132));
}

int BenchCommand::Run() const {
  const absl::StatusOr<std::unique_ptr<cuda::Api>> api = cuda::OpenLibrary(device_);
  if (!api.ok()) return NotMeasured(api.status());
  const absl::StatusOr<DeviceBench> bench = MeasureDevice(api->get(), sms_);
  if (!bench.ok()) return NotMeasured(bench.status());
  Print(json_ ? DeviceBenchJson(*bench) + "\n" : DeviceBenchText(*bench));
  return kExitOk;
}

}  // namespace flexkv::cli
