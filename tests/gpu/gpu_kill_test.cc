// Engine and daemon killed in mid-copy.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <thread>

#include "tests/gpu/gpu_support.h"

namespace flexkv::gpu {
namespace {

using Clock = std::chrono::steady_clock;

// `flexkv_gpu_peer daemon`, which starts the engine; lines of both come from one pipe.
class Peers {
 public:
  Peers() {
    int out[2], in[2];
    EXPECT_EQ(0, pipe(out));
    EXPECT_EQ(0, pipe(in));
    const std::string peer =
        std::filesystem::read_symlink("/proc/self/exe").parent_path() / "flexkv_gpu_peer";
    daemon_ = fork();
    if (daemon_ == 0) {
      dup2(out[1], STDOUT_FILENO);
      dup2(in[0], STDIN_FILENO);
      for (const int fd : {out[0], out[1], in[0], in[1]}) close(fd);
      execl(peer.c_str(), peer.c_str(), "daemon", nullptr);
      _exit(127);
    }
    close(out[1]);
    close(in[0]);
    lines_ = fdopen(out[0], "r");
    tell_ = in[1];
    const std::string ready = Line();
    EXPECT_TRUE(ready.starts_with("ready ")) << "the engine said: " << ready;
    if (ready.starts_with("ready ")) engine_ = std::atoi(ready.c_str() + 6);
  }
  ~Peers() {
    KillDaemon();
    if (engine_ > 0) kill(engine_, SIGKILL);
    std::fclose(lines_);
    close(tell_);
  }
  bool running() const { return engine_ > 0; }
  std::string Line() {
    char line[256];
    return std::fgets(line, sizeof(line), lines_) != nullptr ? line : "nothing";
  }
  void KillDaemon() {
    if (daemon_ > 0) {
      kill(daemon_, SIGKILL);
      waitpid(daemon_, nullptr, 0);
    }
    daemon_ = 0;
  }
  void KillEngine() {
    kill(engine_, SIGKILL);
    engine_ = 0;
  }
  void Finish() { EXPECT_EQ(7, write(tell_, "finish\n", 7)); }

 private:
  pid_t daemon_ = 0, engine_ = 0;
  std::FILE* lines_ = nullptr;
  int tell_ = -1;
};

size_t FreeBytes() {
  size_t free = 0, total = 0;
  EXPECT_EQ(cudaSuccess, cudaMemGetInfo(&free, &total));
  return free;
}

class GpuKill : public GpuTest {};

TEST_F(GpuKill, AnEngineKilledInMidCopyGivesItsMemoryBack) {
  constexpr size_t kSlack = size_t{64} << 20;
  GPU_OK(cudaFree(nullptr));
  const size_t before = FreeBytes();
  Peers peers;
  ASSERT_TRUE(peers.running());
  std::this_thread::sleep_for(std::chrono::milliseconds(100));
  ASSERT_LT(FreeBytes() + kSlack, before) << "the engine holds GPU memory";
  const Clock::time_point killed = Clock::now();
  peers.KillEngine();
  while (FreeBytes() + kSlack < before && Clock::now() - killed < std::chrono::seconds(20)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  const std::chrono::duration<double> took = Clock::now() - killed;
  Figure("GPU memory back after SIGKILL in mid-copy", took.count(), "s", 2, false);
}

TEST_F(GpuKill, AnEngineOutlivesItsDaemonKilledInMidCopy) {
  Peers peers;
  ASSERT_TRUE(peers.running());
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  peers.KillDaemon();
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  peers.Finish();
  EXPECT_EQ("done\n", peers.Line());
}

}  // namespace
}  // namespace flexkv::gpu
