// The manager's simulation as a program: flexkv_sim [--seed N] [--steps N] [--runs N] [--ssd 0|1].
// Exit code 1 when anything was wrong.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "tests/sim/manager_sim.h"

int main(int argc, char** argv) {
  uint64_t seed = std::random_device{}();
  uint64_t steps = 200'000;
  uint64_t runs = 1;
  uint64_t with_ssd = 1;
  for (int i = 1; i < argc; ++i) {
    uint64_t* value = std::strcmp(argv[i], "--seed") == 0    ? &seed
                      : std::strcmp(argv[i], "--steps") == 0 ? &steps
                      : std::strcmp(argv[i], "--runs") == 0  ? &runs
                      : std::strcmp(argv[i], "--ssd") == 0   ? &with_ssd
                                                             : nullptr;
    if (value == nullptr || i + 1 >= argc) {
      std::fprintf(stderr, "usage: flexkv_sim [--seed N] [--steps N] [--runs N] [--ssd 0|1]\n");
      return 2;
    }
    *value = std::strtoull(argv[++i], nullptr, 0);
  }
  for (uint64_t run = 0; run < runs; ++run) {
    flexkv::ManagerSim sim(seed + run, with_ssd != 0);
    const absl::Status status = sim.Run(steps);
    std::printf("seed %llu: %s\n", static_cast<unsigned long long>(seed + run),
                sim.stats().ToString().c_str());
    if (!status.ok()) {
      std::printf("FAILED: %s\n", status.ToString().c_str());
      return 1;
    }
  }
  return 0;
}
