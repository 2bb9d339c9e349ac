// A CUDA runtime without a GPU. Streams are queues; a seeded scheduler takes the heads of streams
// in any order that CUDA allows. Bytes move only when a copy ends: the target of a copy that began
// is scribbled on, the source is read at the end, so that a wait somebody forgot shows as wrong
// bytes. What CUDA forbids, or punishes by being slow, is noted as a violation; tests assert that
// there is none.
//
// Stepped (as made): nothing runs but in Step, RunUntilIdle and SynchronizeStream, on the caller's
// thread; one thread and one seed give one history. Threaded (StartThread): a thread of the fake is
// the GPU. All calls may be made from any thread in both.
//
// The engine is played by the test: its tensors by AdoptDevice, its streams by EngineStream, its
// kernels by Launch, its graphs by BeginCapture.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string>
#include <thread>
#include <vector>

#include "flexkv/transfer/cuda/cuda_api.h"
#include "tests/support/test_seed.h"

namespace flexkv {

class FakeCuda final : public cuda::Api {
 public:
  using Error = cuda::Error;
  using Stream = cuda::Stream;
  using Event = cuda::Event;
  enum class CaptureMode : uint8_t { kGlobal, kThreadLocal, kRelaxed };

  struct Options {
    uint64_t seed = 1;
    bool kernels_read_host = true;
    bool step_on_query = false;      // stepped: QueryEvent goes on by one step before it looks
    uint32_t slow_calls_one_in = 0;  // of those that enqueue: take up to 300 us; 0: none
    uint64_t lockable_bytes = UINT64_MAX;  // more of registered memory is kNotPermitted
  };
  explicit FakeCuda(const Options& options);
  explicit FakeCuda(uint64_t seed = 1) : FakeCuda(Options{.seed = seed}) {}
  ~FakeCuda() override;

  // An api that hands every call on to this one, for owners of an Api. The fake outlives it.
  std::unique_ptr<cuda::Api> Connect();

  // --- cuda::Api ---
  const char* LastMessage() override;
  Error UseDevice() override;
  Error RelaxCapture() override;
  Error GetDeviceInfo(cuda::DeviceInfo* info) override;
  Error CreateStream(int priority, Stream* stream) override;
  Error DestroyStream(Stream stream) override;
  Error SynchronizeStream(Stream stream) override;
  Error IsCapturing(Stream stream, bool* capturing) override;
  Error CreateEvent(bool timed, Event* event) override;
  Error DestroyEvent(Event event) override;
  Error RecordEvent(Event event, Stream stream) override;
  Error WaitEvent(Stream stream, Event event) override;
  Error QueryEvent(Event event) override;
  Error ElapsedNs(Event start, Event end, int64_t* ns) override;
  Error RegisterHost(void* memory, size_t bytes) override;
  Error UnregisterHost(void* memory) override;
  Error AllocateHost(size_t bytes, void** memory) override;
  Error FreeHost(void* memory) override;
  Error AllocateDevice(size_t bytes, void** memory) override;
  Error FreeDevice(void* memory) override;
  Error CopyBatch(void* const* targets, const void* const* sources, const size_t* sizes,
                  size_t count, Stream stream) override;
  Error CopyKernel(const cuda::CopyItem* items, size_t count, int sms, Stream stream) override;
  void PushRange(const char* name) override;
  void PopRange() override;

  // --- the engine ---
  // Memory of the test stands for memory of the GPU, until Sleep or ForgetDevice.
  void AdoptDevice(std::span<std::byte> memory);
  void ForgetDevice(std::span<std::byte> memory);
  void Sleep();  // all adopted memory is gone; whoever copies there has a stale pointer
  Stream EngineStream();
  // The engine computes on the legacy default stream, as torch does unless told otherwise. It may
  // be recorded and made to wait, nothing else.
  Stream LegacyStream();
  static bool IsEngines(Stream stream);
  // A kernel: `begin` runs when it is its turn, `end` some time later. Both under the fake's lock:
  // they must not call it. `gate`: it does not begin before this is true.
  void Launch(Stream stream, std::function<void()> begin, std::function<void()> end = {},
              std::shared_ptr<std::atomic<bool>> gate = nullptr);
  // The calling thread captures `stream` into a graph. EndCapture: whether it is usable.
  void BeginCapture(Stream stream, CaptureMode mode);
  bool EndCapture(Stream stream);

  // --- time ---
  bool Step();          // false: nothing could be done
  bool RunUntilIdle();  // false: something waits for ever
  bool Idle();          // no stream has work
  bool Idle(Stream stream);
  void StartThread();
  void StopThread();

  // --- faults ---
  // The nth call from now on (1: the next one), or the nth of this name ("" counts all), fails.
  // kSticky loses the context then, kUnloading begins the end of the process.
  void FailCall(const std::string& name, uint64_t nth, Error error);
  void ClearFailures();
  void LoseContext();
  void Unload();
  // To check that tests see what they should. The nth WaitEvent from now on for which `on` is true
  // does nothing; the nth QueryEvent that should say kNotReady says kOk. 0: none.
  void DropWait(uint64_t nth, std::function<bool(Stream)> on = {});
  void DropAllWaits(std::function<bool(Stream)> on);
  void LieOnQuery(uint64_t nth);
  bool mutated();  // DropWait or LieOnQuery did its work

  // --- what happened ---
  std::vector<std::string> violations();
  std::string FirstViolation();  // "" when there is none
  void ClearViolations();
  uint64_t calls(const std::string& name);  // "" counts all
  uint64_t registered_bytes();
  uint64_t open_handles();  // streams (not the engine's), events, allocations and registrations
  uint64_t copied_bytes();

 private:
  enum class OpKind : uint8_t { kCopies, kKernelCopies, kLaunch, kRecord, kWait };
  struct Copy {
    std::byte* target;
    const std::byte* source;
    uint64_t bytes;
  };
  struct Record {
    bool done = false;
    bool captured = false;  // into a graph: never done
    int64_t at_ns = 0;
  };
  struct Op {
    OpKind kind = OpKind::kLaunch;
    bool began = false;
    std::vector<Copy> copies;  // those left to do
    const cuda::CopyItem* items = nullptr;
    std::vector<cuda::CopyItem> listed;  // what items held at the call
    std::shared_ptr<Record> record;
    std::function<void()> begin, end;
    std::shared_ptr<std::atomic<bool>> gate;
  };
  struct Capture {
    CaptureMode mode;
    uint64_t thread;
    bool valid = true;
  };
  struct StreamState {
    bool engine = false;
    uint32_t weight = 1;
    std::deque<Op> ops;
    std::unique_ptr<Capture> capture;
  };
  struct EventState {
    bool timed = false;
    std::shared_ptr<Record> record;  // the last
  };
  enum class MemoryKind : uint8_t { kDevice, kAdopted, kRegistered, kHost };
  struct Memory {
    MemoryKind kind;
    uint64_t bytes;
    std::unique_ptr<std::byte[]> owned;
  };
  struct Failure {
    std::string name;
    uint64_t nth;
    Error error;
  };
  using Lock = std::unique_lock<std::mutex>;

  static uint64_t ThisThread();
  void Dawdle();

  // All of these require mutex_.
  Error Enter(const char* name);  // what the call answers before it does anything
  Error Fail(Error error, const std::string& message);
  void Violation(const std::string& sentence);
  void CheckThread(const char* name);
  // A call that a thread may not make while another captures.
  Error Unsafe(const char* name);
  Error Lose();
  StreamState* FindStream(const char* name, Stream stream);
  EventState* FindEvent(const char* name, Event event);
  // The stream of a copy: not the engine's, not capturing.
  StreamState* CopyStream(const char* name, Stream stream);
  // Known memory. `across`: more than one piece of it may be touched.
  bool Reachable(const void* memory, uint64_t bytes, bool across = false) const;
  bool CheckCopy(const char* name, const Copy& copy, OpKind kind);
  bool InUse(const void* memory, uint64_t bytes) const;
  Error Release(const char* name, void* memory, MemoryKind kind);
  Error Allocate(MemoryKind kind, size_t bytes, void** memory);
  uint64_t RegisteredBytes() const;

  bool StepOnce();
  static bool Runnable(const StreamState& stream);
  void Advance(StreamState* stream);
  void BeginCopies(const Op& op);
  void EndCopies(Op* op);
  void Shuffle();
  void RunThread();

  const Options options_;
  std::mutex mutex_;
  std::condition_variable changed_;
  TestRng rng_;
  std::map<Stream, std::unique_ptr<StreamState>> streams_;
  std::map<Event, std::unique_ptr<EventState>> events_;
  std::map<uintptr_t, Memory> memory_;
  std::vector<std::unique_ptr<std::byte[]>> freed_too_early_;
  uintptr_t next_handle_ = 0x1000;
  int64_t now_ns_ = 0;
  uint64_t copied_bytes_ = 0;

  bool lost_ = false, unloading_ = false;
  std::vector<Failure> failures_;
  uint64_t drop_wait_ = 0, lie_on_query_ = 0;
  bool drop_all_ = false, mutated_ = false;
  std::function<bool(Stream)> drop_on_;
  std::map<std::string, uint64_t> calls_;
  std::vector<std::string> violations_;
  std::set<uint64_t> relaxed_threads_, device_threads_;

  bool stopping_ = false;
  std::thread thread_;
};

}  // namespace flexkv
