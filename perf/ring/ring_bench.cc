// What a question to the daemon costs, each result beside its limit in the same run:
//
//   ring.rtt_spin   message there and back over two rings, both sides spinning   | one bare cache
//   line there and back ring.wake       the same with both sides asleep in the kernel | a bare
//   futex pair match.spin      match of 1,024 blocks through a real daemon, back to back    | one
//   gRPC unary, back to back match.blocked   the same after an idle millisecond | one gRPC unary
//   after an idle millisecond
//
// The peer is a process of its own, on another core where there is one. Rounds of result and limit
// alternate.
#include <sched.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <functional>
#include <thread>

#include "perf/bench_util.h"
#include "perf/ring/daemon_match.h"
#include "perf/ring/grpc_unary.h"
#include "proto/shm_ring.h"

namespace flexkv::bench {
namespace {

constexpr int kRounds = 7;

void PinTo(int cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  CPU_SET(cpu % static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN)), &set);
  sched_setaffinity(0, sizeof(set), &set);
}

// A process that runs `body` on core 1 until killed.
class Peer {
 public:
  explicit Peer(const std::function<void()>& body) : pid_(fork()) {
    if (pid_ != 0) return;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    PinTo(1);
    body();
    _exit(0);
  }
  ~Peer() {
    kill(pid_, SIGKILL);
    waitpid(pid_, nullptr, 0);
  }

 private:
  pid_t pid_;
};

template <typename T>
T* Shared(size_t bytes = sizeof(T)) {
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? (abort(), nullptr) : static_cast<T*>(memory);
}

double MedianRoundTrip(int count, const std::function<void()>& round_trip) {
  std::vector<double> samples;
  for (int i = 0; i < count / 10; ++i) round_trip();
  for (int i = 0; i < count; ++i) {
    const uint64_t start = NowNs();
    round_trip();
    samples.push_back(static_cast<double>(NowNs() - start));
  }
  return Median(samples);
}

// --- limits ------------------------------------------------------------------------------------

struct alignas(64) Line {
  std::atomic<uint64_t> value;
};

double BareCacheLine() {
  Line* line = Shared<Line>(4096);
  Peer peer([line] {
    for (uint64_t next = 1;; next += 2) {
      while (line->value.load(std::memory_order_acquire) != next) {
      }
      line->value.store(next + 1, std::memory_order_release);
    }
  });
  uint64_t turn = 1;
  const double ns = MedianRoundTrip(20000, [&] {
    line->value.store(turn, std::memory_order_release);
    while (line->value.load(std::memory_order_acquire) != turn + 1) {
    }
    turn += 2;
  });
  munmap(line, 4096);
  return ns;
}

double BareFutexPair() {
  Line* words = Shared<Line>(4096);
  std::atomic<uint32_t>* there = reinterpret_cast<std::atomic<uint32_t>*>(&words[0]);
  std::atomic<uint32_t>* back = reinterpret_cast<std::atomic<uint32_t>*>(&words[1]);
  const auto wait_until = [](std::atomic<uint32_t>* word, uint32_t value) {
    for (uint32_t now = word->load(); now != value; now = word->load()) {
      shm::FutexWait(word, now, kNsPerSecond);
    }
  };
  Peer peer([=] {
    for (uint32_t turn = 1;; ++turn) {
      wait_until(there, turn);
      back->store(turn);
      shm::FutexWake(back);
    }
  });
  uint32_t turn = 0;
  const double ns = MedianRoundTrip(3000, [&] {
    there->store(++turn);
    shm::FutexWake(there);
    wait_until(back, turn);
  });
  munmap(words, 4096);
  return ns;
}

// --- rings -------------------------------------------------------------------------------------

struct RingPair {
  std::byte* memory = Shared<std::byte>(shm::kRegionBytes);
  shm::RegionView view{memory};
  shm::Bell* request_bell = Shared<shm::Bell>(4096);
  ~RingPair() {
    munmap(memory, shm::kRegionBytes);
    munmap(request_bell, 4096);
  }
};

double RingRoundTrip(bool sleep, int count) {
  RingPair pair;
  const auto take = [sleep](shm::RingConsumer& ring, shm::Bell* bell) {
    shm::Message message;
    std::vector<std::byte> payload;
    while (ring.Pop(&message, &payload) != shm::PopResult::kMessage) {
      if (sleep) shm::SleepOnBell(bell, kNsPerSecond, [&] { return !ring.Empty(); });
    }
    return message;
  };
  Peer peer([&] {
    shm::RingConsumer requests(&pair.view.header->requests, pair.view.request_slots,
                               pair.view.request_payload);
    shm::RingProducer replies(&pair.view.header->completions, pair.view.completion_slots,
                              pair.view.completion_payload);
    while (true) {
      replies.Push(take(requests, pair.request_bell));
      shm::RingBell(&pair.view.header->client_bell);
    }
  });
  shm::RingProducer requests(&pair.view.header->requests, pair.view.request_slots,
                             pair.view.request_payload);
  shm::RingConsumer replies(&pair.view.header->completions, pair.view.completion_slots,
                            pair.view.completion_payload);
  return MedianRoundTrip(count, [&] {
    requests.Push(shm::Message{});
    shm::RingBell(pair.request_bell);
    take(replies, &pair.view.header->client_bell);
  });
}

// Alternates result and limit so that both see the same machine.
void Compare(JsonSink* sink, const char* name, const char* limit_name,
             const std::function<double()>& result, const std::function<double()>& limit) {
  std::vector<double> results, limits;
  for (int round = 0; round < kRounds; ++round) {
    limits.push_back(limit());
    results.push_back(result());
  }
  sink->Add({.name = name,
             .unit = "ns",
             .limit_name = limit_name,
             .value = Median(results),
             .limit = Median(limits),
             .repeats = results});
}

int Main(int argc, char** argv) {
  Args args(argc, argv);
  if (const std::string path = args.Get("grpc-echo", ""); !path.empty()) return RunGrpcEcho(path);
  JsonSink sink(args.Get("json", ""));
  PinTo(0);
  Compare(
      &sink, "ring.rtt_spin", "bare cache line", [] { return RingRoundTrip(false, 20000); },
      BareCacheLine);
  Compare(
      &sink, "ring.wake", "bare futex pair", [] { return RingRoundTrip(true, 3000); },
      BareFutexPair);

  absl::StatusOr<std::unique_ptr<DaemonMatch>> match = DaemonMatch::Start(args.Get("flexkvd", ""));
  if (!match.ok()) {
    fprintf(stderr, "flexkv_ring_bench: %s\n", std::string(match.status().message()).c_str());
    return 1;
  }
  GrpcUnary unary;
  const auto idle = [] { std::this_thread::sleep_for(std::chrono::milliseconds(1)); };
  const auto timed = [](int count, const std::function<void()>& before,
                        const std::function<void()>& call) {
    std::vector<double> samples;
    for (int i = 0; i < count; ++i) {
      before();
      const uint64_t start = NowNs();
      call();
      samples.push_back(static_cast<double>(NowNs() - start));
    }
    return Median(samples);
  };
  Compare(
      &sink, "match.spin", "gRPC unary",
      [&] {
        return timed(
            2000, [] {}, [&] { (*match)->Match(); });
      },
      [&] {
        return timed(
            2000, [] {}, [&] { unary.Call(); });
      });
  Compare(
      &sink, "match.blocked", "gRPC unary after 1 ms idle",
      [&] { return timed(300, idle, [&] { (*match)->Match(); }); },
      [&] { return timed(300, idle, [&] { unary.Call(); }); });
  return 0;
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) { return flexkv::bench::Main(argc, argv); }
