// The processes of the kill test, without gRPC: `engine FD BYTES` plays an engine whose agent
// copies between its GPU memory and an arena received as a descriptor; `daemon` makes the arena and
// starts such an engine. Both speak on standard output; the engine hears "finish" on standard
// input. It exits 0 when every byte was right.
#include <cuda_runtime_api.h>
#include <poll.h>
#include <sys/mman.h>
#include <unistd.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <thread>

#include "flexkv/transfer/cuda/cuda_agent.h"
#include "flexkv/transfer/cuda/cuda_library.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint64_t kBoot = 7;
constexpr uint32_t kLayers = 16, kRow = 64 << 10;  // 2 MiB a block
constexpr uint64_t kShardBytes = uint64_t{2} * kLayers * kRow;
constexpr uint64_t kArenaBytes = uint64_t{512} << 20;

int Fail(const std::string& why) {
  std::printf("failed: %s\n", why.c_str());
  std::fflush(stdout);
  return 1;
}

class OneSegment : public SegmentMapper {
 public:
  explicit OneSegment(std::span<std::byte> memory) : memory_(memory) {}
  std::span<std::byte> Map(SegmentId segment, TimeNs /*wait_ns*/) override {
    return segment == 1 ? memory_ : std::span<std::byte>();
  }

 private:
  std::span<std::byte> memory_;
};

class Engine {
 public:
  Engine(std::span<std::byte> arena, std::byte* device)
      : arena_(arena), mapper_(arena), slots_(static_cast<uint32_t>(arena.size() / kShardBytes)) {
    KvGroup group{.num_blocks = slots_ / 2, .tokens_per_block = 16};
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      const uint64_t tensor = uint64_t{2} * kRow * group.num_blocks;
      LayerView view{.fragment_bytes = kRow};
      view.base = reinterpret_cast<uintptr_t>(device) + layer * tensor;
      view.block_stride_bytes = kRow;
      view.outer = {{2, int64_t{kRow} * group.num_blocks}};
      group.layers.push_back(view);
    }
    layout_ = {.groups = {group}, .descriptor = "peer"};
  }

  absl::Status Start() {
    auto api = cuda::OpenLibrary(0);
    if (!api.ok()) return api.status();
    auto agent = MakeCudaAgent({}, layout_, &mapper_, *std::move(api), "", [] {});
    if (!agent.ok()) return agent.status();
    agent_ = *std::move(agent);
    cudaStream_t compute = nullptr;
    if (cudaStreamCreateWithFlags(&compute, cudaStreamNonBlocking) != cudaSuccess) {
      return absl::InternalError("no stream to compute on");
    }
    agent_->SetBootId(kBoot);
    agent_->SetComputeStream(reinterpret_cast<uint64_t>(compute));
    agent_->SegmentMapped(1, arena_);
    return absl::OkStatus();
  }

  // The first half of the arena's slots up, and down into the second half.
  bool Round(uint64_t round) {
    const uint32_t blocks = slots_ / 2;
    for (uint32_t i = 0; i < blocks; i += 16) {
      FillContent(HashFromNumber(round * 1000 + i), 0, Slot(i));
    }
    if (!Op(Route::kCpuToDevice, 0, blocks) || !Op(Route::kDeviceToCpu, blocks, blocks)) {
      return false;
    }
    for (uint32_t i = 0; i < blocks; i += 16) {
      if (!ContentMatches(HashFromNumber(round * 1000 + i), 0, Slot(blocks + i))) return false;
    }
    return true;
  }

 private:
  std::span<std::byte> Slot(uint32_t slot) {
    return arena_.subspan(slot * kShardBytes, kShardBytes);
  }
  bool Op(Route route, uint32_t first_slot, uint32_t count) {
    const OpKey key = ++last_key_;
    EngineHalf engine{.key = key, .route = route};
    DaemonHalf daemon{.boot_id = kBoot, .key = key, .route = route};
    for (uint32_t i = 0; i < count; ++i) {
      engine.block_ids.push_back(i);
      daemon.blocks.push_back({1, i, (first_slot + i) * kShardBytes});
    }
    if (!agent_->SubmitEngineHalf(std::move(engine)).ok()) return false;
    agent_->SubmitDaemonHalf(std::move(daemon));
    agent_->StepDone();
    for (int waited = 0; waited < 300000; ++waited) {
      std::vector<AgentResult> results;
      agent_->TakeDaemonResults(&results);
      std::vector<AgentResult> of_engine;
      agent_->TakeEngineResults(&of_engine);
      for (const AgentResult& result : results) {
        if (result.key == key) return result.status == OpStatus::kOk;
      }
      std::this_thread::sleep_for(std::chrono::microseconds(100));
    }
    return false;
  }

  std::span<std::byte> arena_;
  OneSegment mapper_;
  const uint32_t slots_;
  KvLayout layout_;
  std::unique_ptr<DeviceAgent> agent_;
  OpKey last_key_ = 0;
};

bool ToldToFinish() {
  pollfd input{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
  return poll(&input, 1, 0) > 0;
}

int RunEngine(int fd, uint64_t bytes) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (memory == MAP_FAILED) return Fail("cannot map the arena");
  void* device = nullptr;
  if (cudaSetDevice(0) != cudaSuccess || cudaMalloc(&device, bytes / 2) != cudaSuccess) {
    return Fail("no GPU memory");
  }
  Engine engine({static_cast<std::byte*>(memory), bytes}, static_cast<std::byte*>(device));
  const absl::Status started = engine.Start();
  if (!started.ok()) return Fail(std::string(started.message()));
  for (uint64_t round = 0;; ++round) {
    if (!engine.Round(round)) return Fail("round " + std::to_string(round));
    if (round == 0) {
      std::printf("ready %d\n", getpid());
      std::fflush(stdout);
    }
    if (ToldToFinish()) break;
  }
  for (uint64_t round = 0; round < 3; ++round) {
    if (!engine.Round(5000 + round)) return Fail("after the end of its daemon");
  }
  std::printf("done\n");
  std::fflush(stdout);
  return 0;
}

int RunDaemon(const char* self) {
  const int fd = memfd_create("flexkv-gpu-test", 0);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(kArenaBytes)) != 0) return Fail("no memory");
  if (fork() == 0) {
    execl(self, self, "engine", std::to_string(fd).c_str(), std::to_string(kArenaBytes).c_str(),
          nullptr);
    _exit(Fail("cannot start the engine"));
  }
  for (;;) pause();  // until killed
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) {
  if (argc == 4 && std::strcmp(argv[1], "engine") == 0) {
    return flexkv::RunEngine(std::atoi(argv[2]), std::strtoull(argv[3], nullptr, 10));
  }
  if (argc == 2 && std::strcmp(argv[1], "daemon") == 0) {
    return flexkv::RunDaemon("/proc/self/exe");
  }
  std::fprintf(stderr, "Usage: %s engine FD BYTES | daemon\n", argv[0]);
  return 2;
}
