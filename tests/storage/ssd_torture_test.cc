// A real process on real files is killed (SIGKILL) at random moments; every block it had reported
// as committed must be back, byte for byte, nothing that it had reported as freed or reset.
//
// As a test: a few kills. As a program:
//   ssd_torture_test --kills N [--seed S] [--dir D] [--backend auto|io_uring|threads]
// The child is this program again (--child): it runs the workload of the crash simulation and tells
// each step of its model through a pipe, those that begin an op before the store is asked.
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cinttypes>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_crash_workload.h"
#include "tests/support/sanitized.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

constexpr int kEventFd = 3;  // of the child

constexpr int kFirstStepMs = 10'000;  // a bound, not an expectation
// A child takes that much longer to begin.
constexpr uint64_t kSlower = kSanitized ? 8 : 1;

struct TortureOptions {
  uint64_t kills = 20;
  uint64_t seed = 1;
  std::string directory;  // empty: a fresh one below the current directory, removed at the end
  std::string backend = "auto";
  bool progress = false;
};

absl::StatusOr<std::unique_ptr<Disk>> OpenDisk(const std::string& directory,
                                               const std::string& backend) {
  DirectoryDiskOptions options{.directory = directory, .threads = 4, .direct = false};
  if (backend != "threads") {
    auto disk = MakeUringDisk(options);
    if (disk.ok() || backend == "io_uring" || !absl::IsUnavailable(disk.status())) return disk;
  }
  return MakeThreadDisk(options);
}

int FailChild(const absl::Status& status) {
  std::fprintf(stderr, "child: %s\n", status.ToString().c_str());
  return 3;
}

// Works until it is killed or `steps` are done.
int RunChild(const std::string& directory, const std::string& backend, uint64_t seed) {
  auto disk = OpenDisk(directory, backend);
  if (!disk.ok()) return FailChild(disk.status());
  SteadyClock clock;
  SsdWorkload workload(disk->get(), &clock, seed, SsdTrust::kSound);
  workload.SetListener([](const SsdEvent& event) {
    // Shorter than PIPE_BUF: told whole or not at all.
    if (write(kEventFd, &event, sizeof(event)) != sizeof(event)) _exit(4);
  });
  workload.TrustNextOpen();
  absl::Status status = workload.Open();
  while (status.ok()) status = workload.Run(1000);
  return FailChild(status);
}

class Torture {
 public:
  explicit Torture(const TortureOptions& options) : options_(options), rng_(options.seed) {}
  absl::Status Go();
  const SsdWorkloadStats& stats() const { return stats_; }
  uint64_t kills() const { return kills_; }
  uint64_t events() const { return events_; }

 private:
  absl::Status KillOnce();
  absl::Status Verify();
  absl::Status TakeEvents(int fd, TimeNs until);

  const TortureOptions& options_;
  TestRng rng_;
  std::string directory_;
  SteadyClock clock_;
  std::unique_ptr<SsdWorkload> model_;
  SsdWorkloadStats stats_;
  uint64_t kills_ = 0, events_ = 0;
};

// Until the pipe is empty and its writer gone, or until that moment.
absl::Status Torture::TakeEvents(int fd, TimeNs until) {
  for (;;) {
    const TimeNs now = clock_.Now();
    if (now >= until) return absl::OkStatus();
    pollfd wait{fd, POLLIN, 0};
    const TimeNs wait_ms = std::min<TimeNs>((until - now) / kNsPerMs + 1, 1000);
    if (poll(&wait, 1, static_cast<int>(wait_ms)) <= 0) continue;
    SsdEvent batch[64];
    const ssize_t bytes = read(fd, batch, sizeof(batch));
    if (bytes == 0) return absl::OkStatus();
    if (bytes < 0 || bytes % static_cast<ssize_t>(sizeof(SsdEvent)) != 0) {
      return absl::InternalError("half an event");
    }
    for (size_t i = 0; i < static_cast<size_t>(bytes) / sizeof(SsdEvent); ++i) {
      ++events_;
      model_->Apply(batch[i]);
      if (!model_->status().ok()) return model_->status();
    }
  }
}

absl::Status Torture::KillOnce() {
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) return absl::InternalError("pipe2");
  UniqueFd reading(ends[0]);
  UniqueFd writing(ends[1]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, writing.get(), kEventFd);
  const std::string seed = absl::StrCat(rng_.Next() >> 24);
  const char* const argv[] = {"ssd_torture_test",       "--child",    directory_.c_str(),
                              options_.backend.c_str(), seed.c_str(), nullptr};
  pid_t child = 0;
  const int error = posix_spawn(&child, "/proc/self/exe", &actions, nullptr,
                                const_cast<char* const*>(argv), environ);
  posix_spawn_file_actions_destroy(&actions);
  if (error != 0) return absl::InternalError("posix_spawn");
  writing.Reset();
  // From "not even opened" to "some groups committed". Most lives are counted from the first step,
  // so that a busy machine does not kill them all before it.
  pollfd first_step{reading.get(), POLLIN, 0};
  if (!rng_.OneIn(4)) poll(&first_step, 1, kFirstStepMs);
  const TimeNs life = kSlower * ((rng_.OneIn(4) ? 2 : 8) * kNsPerMs + rng_.Below(24 * kNsPerMs));
  absl::Status status = TakeEvents(reading.get(), clock_.Now() + life);
  kill(child, SIGKILL);
  int exit_status = 0;
  waitpid(child, &exit_status, 0);
  ++kills_;
  if (status.ok()) status = TakeEvents(reading.get(), UINT64_MAX);
  if (status.ok() && WIFEXITED(exit_status)) {
    status = absl::InternalError(absl::StrCat("the child ended by itself: ", exit_status));
  }
  return status;
}

// A fresh store on what is left: all promises of all lives since the last look.
absl::Status Torture::Verify() {
  auto disk = OpenDisk(directory_, options_.backend);
  if (!disk.ok()) return disk.status();
  auto next = std::make_unique<SsdWorkload>(*model_, disk->get(), &clock_, rng_.Next() >> 24);
  const absl::Status status = next->Open();
  stats_.Add(next->stats());
  // Only its model lives on: the disk ends here.
  model_ = std::make_unique<SsdWorkload>(*next, nullptr, &clock_, 0);
  next.reset();
  return status;
}

absl::Status Torture::Go() {
  directory_ = options_.directory;
  const bool own = directory_.empty();
  if (own) directory_ = absl::StrCat("ssd_torture.", getpid());
  std::filesystem::create_directory(directory_);
  std::filesystem::permissions(directory_, std::filesystem::perms::owner_all);
  model_ = std::make_unique<SsdWorkload>(nullptr, &clock_, 0, SsdTrust::kSound);
  const auto start = std::chrono::steady_clock::now();
  absl::Status status;
  while (status.ok() && kills_ < options_.kills) {
    status = KillOnce();
    // Now and then the next child finds the ruins itself.
    if (status.ok() && (!rng_.OneIn(4) || kills_ == options_.kills)) status = Verify();
    if (options_.progress && kills_ % 200 == 0) {
      const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
      std::printf("%" PRIu64 " kills, %.1f s\n", kills_, took.count());
      std::fflush(stdout);
    }
  }
  if (own && status.ok()) std::filesystem::remove_all(directory_);
  if (!status.ok()) {
    return absl::InternalError(absl::StrCat(std::string(status.message()), "\nafter kill ", kills_,
                                            ", seed ", options_.seed, ", files in ", directory_));
  }
  return status;
}

void Expect(const std::string& backend) {
  if (backend == "io_uring") {
    std::filesystem::create_directory("ssd_probe");
    std::filesystem::permissions("ssd_probe", std::filesystem::perms::owner_all);
    const absl::Status probe = OpenDisk("ssd_probe", backend).status();
    std::filesystem::remove_all("ssd_probe");
    if (absl::IsUnavailable(probe)) GTEST_SKIP() << probe;
  }
  const TortureOptions options{.seed = TestSeed(), .backend = backend};
  Torture torture(options);
  const absl::Status status = torture.Go();
  EXPECT_TRUE(status.ok()) << status.message();
  std::printf("%" PRIu64 " kills, %" PRIu64 " steps told: %s\n", torture.kills(), torture.events(),
              torture.stats().ToString().c_str());
  EXPECT_GT(torture.stats().recovered, 0u);
}

TEST(SsdTortureTest, Uring) { Expect("io_uring"); }
TEST(SsdTortureTest, Threads) { Expect("threads"); }

int Program(int argc, char** argv) {
  TortureOptions options{.kills = 2'000, .progress = true};
  for (int i = 1; i < argc; i += 2) {
    const std::string flag = argv[i];
    const char* value = i + 1 < argc ? argv[i + 1] : "";
    if (flag == "--kills") {
      options.kills = std::strtoull(value, nullptr, 0);
    } else if (flag == "--seed") {
      options.seed = std::strtoull(value, nullptr, 0);
    } else if (flag == "--dir") {
      options.directory = value;
    } else if (flag == "--backend") {
      options.backend = value;
    } else {
      std::fprintf(stderr,
                   "usage: ssd_torture_test --kills N [--seed S] [--dir D] "
                   "[--backend auto|io_uring|threads]\n");
      return 2;
    }
  }
  Torture torture(options);
  const auto start = std::chrono::steady_clock::now();
  const absl::Status status = torture.Go();
  const std::chrono::duration<double> took = std::chrono::steady_clock::now() - start;
  std::printf("%" PRIu64 " steps told; %s\n", torture.events(), torture.stats().ToString().c_str());
  if (!status.ok()) {
    std::printf("FAILED: %s\n", std::string(status.message()).c_str());
    return 1;
  }
  std::printf("%" PRIu64 " kills in %.1f s (%.1f a second), seed %" PRIu64
              ": 0 wrong bytes, 0 committed blocks lost\n",
              torture.kills(), took.count(), static_cast<double>(torture.kills()) / took.count(),
              options.seed);
  return 0;
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) {
  if (argc == 5 && std::strcmp(argv[1], "--child") == 0) {
    return flexkv::RunChild(argv[2], argv[3], std::strtoull(argv[4], nullptr, 0));
  }
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--kills") == 0) return flexkv::Program(argc, argv);
  }
  testing::InitGoogleTest(&argc, argv);
  return RUN_ALL_TESTS();
}
