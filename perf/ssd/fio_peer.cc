#include "perf/ssd/fio_peer.h"

#include <fcntl.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv::bench {
namespace {

using Words = std::vector<std::string>;

// What execve wants; the words outlive it.
std::vector<char*> Pointers(Words& words) {
  std::vector<char*> pointers;
  for (std::string& word : words) pointers.push_back(word.data());
  pointers.push_back(nullptr);
  return pointers;
}

[[noreturn]] void Fail(const char* what, const Words& command, const std::string& out) {
  std::fprintf(stderr, "%s: %s\n%s\n", what, absl::StrJoin(command, " ").c_str(), out.c_str());
  std::exit(2);
}

std::string ReadAll(int fd) {
  std::string out;
  char piece[4096];
  for (ssize_t got = read(fd, piece, sizeof(piece)); got > 0; got = read(fd, piece, sizeof(piece)))
    out.append(piece, static_cast<size_t>(got));
  return out;
}

// Standard output of a program, started without a shell: paths come from the command line.
// `variables` join the environment.
std::string OutputOf(Words command, Words variables = {}) {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) Fail("no pipe", command, "");
  const UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  for (char** variable = environ; *variable != nullptr; ++variable) variables.push_back(*variable);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writing.get(), STDOUT_FILENO);
  pid_t child = 0;
  const int error = posix_spawnp(&child, command[0].c_str(), &actions, nullptr,
                                 Pointers(command).data(), Pointers(variables).data());
  posix_spawn_file_actions_destroy(&actions);
  writing.Reset();
  const std::string out = error == 0 ? ReadAll(reading.get()) : std::string();
  int status = 0;
  if (error != 0 || waitpid(child, &status, 0) != child || status != 0) {
    Fail("this failed (is fio installed?)", command, out);
  }
  return out;
}

}  // namespace

std::string FioVersion() {
  std::string version = OutputOf({"fio", "--version"});
  while (!version.empty() && version.back() == '\n') version.pop_back();
  return version;
}

// fio at its best: no scrambling of what it writes, no clock around each transfer, files and
// buffers registered where ours are, and buffers on pages like ours. It has no switch for
// transparent huge pages, but its malloc has one.
SsdRate RunFio(const SsdLoad& load) {
  Words command = {"fio",
                   "--name=peer",
                   "--ioengine=io_uring",
                   "--direct=1",
                   "--registerfiles",
                   "--allow_file_create=0",
                   "--time_based",
                   "--norandommap",
                   "--randrepeat=0",
                   "--random_generator=tausworthe64",
                   "--scramble_buffers=0",
                   "--gtod_reduce=1",
                   "--output-format=json",
                   "--iomem_align=2m",
                   absl::StrCat("--filename=", load.path),
                   absl::StrCat("--size=", load.file_bytes),
                   absl::StrCat("--bs=", load.block_bytes),
                   absl::StrCat("--iodepth=", load.depth),
                   absl::StrCat("--runtime=", static_cast<int>(load.seconds * 1000), "ms"),
                   load.write ? "--rw=randwrite" : "--rw=randread"};
  if (load.registered) command.push_back("--fixedbufs");
  if (load.pages == Pages::kHugetlb) command.push_back("--iomem=shmhuge");
  Words variables;
  if (load.pages == Pages::kTransparent)
    variables.push_back("GLIBC_TUNABLES=glibc.malloc.hugetlb=1");
  const std::string out = OutputOf(command, variables);
  const auto parsed = nlohmann::json::parse(out.substr(std::min(out.find('{'), out.size())),
                                            nullptr, /*allow_exceptions=*/false);
  const auto job = parsed.value(nlohmann::json::json_pointer("/jobs/0"), nlohmann::json::object());
  const auto side = job.value(load.write ? "write" : "read", nlohmann::json::object());
  const uint64_t transfers = side.value("total_ios", uint64_t{0});
  const double runtime_ms = side.value("runtime", 0.0);
  if (transfers == 0 || runtime_ms == 0 || job.value("error", 1) != 0) {
    Fail("fio did not run", command, out);
  }
  const double busy = (job.value("usr_cpu", 0.0) + job.value("sys_cpu", 0.0)) / 100;
  return {.bytes_per_ns = side.value("bw_bytes", 0.0) * 1e-9,
          .cpu_us = busy * runtime_ms * 1000 / static_cast<double>(transfers),
          .transfers = transfers};
}

}  // namespace flexkv::bench
