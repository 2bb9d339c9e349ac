#include "perf/ssd/fio_peer.h"

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>

namespace flexkv::bench {
namespace {

std::string OutputOf(const std::string& command) {
  std::FILE* pipe = popen(command.c_str(), "r");
  std::string out;
  char piece[4096];
  while (pipe != nullptr) {
    const size_t got = std::fread(piece, 1, sizeof(piece), pipe);
    if (got == 0) break;
    out.append(piece, got);
  }
  if (pipe == nullptr || pclose(pipe) != 0) {
    std::fprintf(stderr, "this failed (is fio installed?): %s\n%s\n", command.c_str(), out.c_str());
    std::exit(2);
  }
  return out;
}

}  // namespace

std::string FioVersion() {
  std::string version = OutputOf("fio --version");
  while (!version.empty() && version.back() == '\n') version.pop_back();
  return version;
}

// fio at its best: no scrambling of what it writes, no clock around each transfer, files and
// buffers registered where ours are, and buffers on pages like ours. It has no switch for
// transparent huge pages, but its malloc has one.
SsdRate RunFio(const SsdLoad& load) {
  std::string command =
      "fio --name=peer --ioengine=io_uring --direct=1 --registerfiles --allow_file_create=0 "
      "--time_based --norandommap --randrepeat=0 --random_generator=tausworthe64 "
      "--scramble_buffers=0 --gtod_reduce=1 --output-format=json --iomem_align=2m";
  command += " --filename='" + load.path + "' --size=" + std::to_string(load.file_bytes);
  command += " --bs=" + std::to_string(load.block_bytes);
  command += " --iodepth=" + std::to_string(load.depth);
  command += " --runtime=" + std::to_string(static_cast<int>(load.seconds * 1000)) + "ms";
  command += load.write ? " --rw=randwrite" : " --rw=randread";
  if (load.registered) command += " --fixedbufs";
  if (load.pages == Pages::kHugetlb) command += " --iomem=shmhuge";
  if (load.pages == Pages::kTransparent) {
    command = "GLIBC_TUNABLES=glibc.malloc.hugetlb=1 " + command;
  }
  const std::string out = OutputOf(command);
  const auto parsed = nlohmann::json::parse(out.substr(std::min(out.find('{'), out.size())),
                                            nullptr, /*allow_exceptions=*/false);
  const auto job = parsed.value(nlohmann::json::json_pointer("/jobs/0"), nlohmann::json::object());
  const auto side = job.value(load.write ? "write" : "read", nlohmann::json::object());
  const uint64_t transfers = side.value("total_ios", uint64_t{0});
  const double runtime_ms = side.value("runtime", 0.0);
  if (transfers == 0 || runtime_ms == 0 || job.value("error", 1) != 0) {
    std::fprintf(stderr, "fio did not run: %s\n%s\n", command.c_str(), out.c_str());
    std::exit(2);
  }
  const double busy = (job.value("usr_cpu", 0.0) + job.value("sys_cpu", 0.0)) / 100;
  return {.bytes_per_ns = side.value("bw_bytes", 0.0) * 1e-9,
          .cpu_us = busy * runtime_ms * 1000 / static_cast<double>(transfers),
          .transfers = transfers};
}

}  // namespace flexkv::bench
