// The processor's side of FakeCuda: calls, handles, memory, what is forbidden.
#include "tests/support/fake_cuda.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <utility>

namespace flexkv {
namespace {

thread_local std::string last_message;

// Hands every call on.
class Connection final : public cuda::Api {
 public:
  explicit Connection(cuda::Api* to) : to_(*to) {}

  const char* LastMessage() override { return to_.LastMessage(); }
  cuda::Error UseDevice() override { return to_.UseDevice(); }
  cuda::Error RelaxCapture() override { return to_.RelaxCapture(); }
  cuda::Error GetDeviceInfo(cuda::DeviceInfo* info) override { return to_.GetDeviceInfo(info); }
  cuda::Error CreateStream(int priority, cuda::Stream* stream) override {
    return to_.CreateStream(priority, stream);
  }
  cuda::Error DestroyStream(cuda::Stream stream) override { return to_.DestroyStream(stream); }
  cuda::Error SynchronizeStream(cuda::Stream stream) override {
    return to_.SynchronizeStream(stream);
  }
  cuda::Error IsCapturing(cuda::Stream stream, bool* capturing) override {
    return to_.IsCapturing(stream, capturing);
  }
  cuda::Error CreateEvent(bool timed, cuda::Event* event) override {
    return to_.CreateEvent(timed, event);
  }
  cuda::Error DestroyEvent(cuda::Event event) override { return to_.DestroyEvent(event); }
  cuda::Error RecordEvent(cuda::Event event, cuda::Stream stream) override {
    return to_.RecordEvent(event, stream);
  }
  cuda::Error WaitEvent(cuda::Stream stream, cuda::Event event) override {
    return to_.WaitEvent(stream, event);
  }
  cuda::Error QueryEvent(cuda::Event event) override { return to_.QueryEvent(event); }
  cuda::Error ElapsedNs(cuda::Event start, cuda::Event end, int64_t* ns) override {
    return to_.ElapsedNs(start, end, ns);
  }
  cuda::Error RegisterHost(void* memory, size_t bytes) override {
    return to_.RegisterHost(memory, bytes);
  }
  cuda::Error UnregisterHost(void* memory) override { return to_.UnregisterHost(memory); }
  cuda::Error AllocateHost(size_t bytes, void** memory) override {
    return to_.AllocateHost(bytes, memory);
  }
  cuda::Error FreeHost(void* memory) override { return to_.FreeHost(memory); }
  cuda::Error AllocateDevice(size_t bytes, void** memory) override {
    return to_.AllocateDevice(bytes, memory);
  }
  cuda::Error FreeDevice(void* memory) override { return to_.FreeDevice(memory); }
  cuda::Error CopyBatch(void* const* targets, const void* const* sources, const size_t* sizes,
                        size_t count, cuda::Stream stream) override {
    return to_.CopyBatch(targets, sources, sizes, count, stream);
  }
  cuda::Error CopyKernel(const cuda::CopyItem* items, size_t count, int sms,
                         cuda::Stream stream) override {
    return to_.CopyKernel(items, count, sms, stream);
  }
  void PushRange(const char* name) override { to_.PushRange(name); }
  void PopRange() override { to_.PopRange(); }

 private:
  cuda::Api& to_;
};

}  // namespace

uint64_t FakeCuda::ThisThread() {
  static std::atomic<uint64_t> next{1};
  thread_local const uint64_t number = next++;
  return number;
}

FakeCuda::FakeCuda(const Options& options) : options_(options), rng_(options.seed) {}

FakeCuda::~FakeCuda() { StopThread(); }

std::unique_ptr<cuda::Api> FakeCuda::Connect() { return std::make_unique<Connection>(this); }

const char* FakeCuda::LastMessage() { return last_message.c_str(); }

// --- faults and rules ---

cuda::Error FakeCuda::Fail(Error error, const std::string& message) {
  last_message = message;
  return error;
}

void FakeCuda::Violation(const std::string& sentence) {
  if (violations_.size() < 100) violations_.push_back(sentence);
}

cuda::Error FakeCuda::Enter(const char* name) {
  ++calls_[name];
  ++calls_[""];
  if (unloading_) return Fail(Error::kUnloading, "driver shutting down");
  if (lost_) return Fail(Error::kSticky, "an illegal memory access was encountered");
  Error error = Error::kOk;
  for (Failure& failure : failures_) {
    if (!failure.name.empty() && failure.name != name) continue;
    if (--failure.nth == 0) error = failure.error;
  }
  std::erase_if(failures_, [](const Failure& failure) { return failure.nth == 0; });
  if (error == Error::kOk) return error;
  if (error == Error::kSticky) Lose();
  if (error == Error::kUnloading) unloading_ = true;
  return Fail(error, std::string(name) + " was told to fail");
}

// Some calls take their time before they do anything.
void FakeCuda::Dawdle() {
  if (options_.slow_calls_one_in == 0) return;
  uint64_t us = 0;
  {
    Lock lock(mutex_);
    if (rng_.OneIn(options_.slow_calls_one_in)) us = rng_.Below(300);
  }
  if (us > 0) std::this_thread::sleep_for(std::chrono::microseconds(us));
}

// Calls that work on the thread's current device.
void FakeCuda::CheckThread(const char* name) {
  if (!device_threads_.contains(ThisThread())) {
    Violation(std::string(name) + " on a thread that chose no device");
  }
}

cuda::Error FakeCuda::Unsafe(const char* name) {
  const uint64_t thread = ThisThread();
  if (relaxed_threads_.contains(thread)) return Error::kOk;
  Error error = Error::kOk;
  for (auto& [handle, stream] : streams_) {
    Capture* capture = stream->capture.get();
    if (capture == nullptr || capture->mode == CaptureMode::kRelaxed) continue;
    if (capture->mode == CaptureMode::kThreadLocal && capture->thread != thread) continue;
    capture->valid = false;
    Violation(std::string(name) + " while a stream is captured, on a thread that is not relaxed");
    error = Fail(Error::kCapture, "operation not permitted when stream is capturing");
  }
  return error;
}

FakeCuda::StreamState* FakeCuda::FindStream(const char* name, Stream stream) {
  auto it = streams_.find(stream);
  if (it != streams_.end()) return it->second.get();
  const uintptr_t value = reinterpret_cast<uintptr_t>(stream);
  Violation(std::string(name) + (value <= 2 ? " on the legacy or per-thread stream"
                                            : " on a stream that is not there"));
  Fail(Error::kInvalid, "invalid resource handle");
  return nullptr;
}

FakeCuda::EventState* FakeCuda::FindEvent(const char* name, Event event) {
  auto it = events_.find(event);
  if (it != events_.end()) return it->second.get();
  Violation(std::string(name) + " of an event that is not there");
  Fail(Error::kInvalid, "invalid resource handle");
  return nullptr;
}

FakeCuda::StreamState* FakeCuda::CopyStream(const char* name, Stream stream) {
  StreamState* state = FindStream(name, stream);
  if (state == nullptr) return nullptr;
  if (state->engine) Violation(std::string(name) + " on the engine's stream");
  return state;
}

// --- threads and the device ---

cuda::Error FakeCuda::UseDevice() {
  Lock lock(mutex_);
  if (Error error = Enter("UseDevice"); error != Error::kOk) return error;
  device_threads_.insert(ThisThread());
  return Error::kOk;
}

cuda::Error FakeCuda::RelaxCapture() {
  Lock lock(mutex_);
  if (Error error = Enter("RelaxCapture"); error != Error::kOk) return error;
  relaxed_threads_.insert(ThisThread());
  return Error::kOk;
}

cuda::Error FakeCuda::GetDeviceInfo(cuda::DeviceInfo* info) {
  Lock lock(mutex_);
  if (Error error = Enter("GetDeviceInfo"); error != Error::kOk) return error;
  *info = {};
  std::snprintf(info->name, sizeof(info->name), "Fake GPU");
  info->compute_major = 9;
  info->num_sms = 132;
  info->runtime_version = info->driver_version = 13000;
  info->kernels_read_host = options_.kernels_read_host;
  return Error::kOk;
}

// --- streams and events ---

cuda::Error FakeCuda::CreateStream(int priority, Stream* stream) {
  Lock lock(mutex_);
  if (Error error = Enter("CreateStream"); error != Error::kOk) return error;
  CheckThread("CreateStream");
  if (stream == nullptr) return Fail(Error::kInvalid, "no place for the stream");
  if (priority < 0 || priority > 1) return Fail(Error::kInvalid, "priority out of range");
  next_handle_ += 16;
  *stream = reinterpret_cast<Stream>(next_handle_);
  streams_.emplace(*stream, std::make_unique<StreamState>());
  Shuffle();
  return Error::kOk;
}

// Handles of the engine's streams are odd, so that this can be asked inside of calls.
bool FakeCuda::IsEngines(Stream stream) {
  return stream == nullptr || reinterpret_cast<uintptr_t>(stream) % 2 == 1;
}

cuda::Stream FakeCuda::LegacyStream() {
  Lock lock(mutex_);
  if (!streams_.contains(nullptr)) {
    streams_.emplace(nullptr, std::make_unique<StreamState>()).first->second->engine = true;
    Shuffle();
  }
  return nullptr;
}

cuda::Stream FakeCuda::EngineStream() {
  Lock lock(mutex_);
  next_handle_ += 16;
  Stream stream = reinterpret_cast<Stream>(next_handle_ + 1);
  auto state = std::make_unique<StreamState>();
  state->engine = true;
  streams_.emplace(stream, std::move(state));
  Shuffle();
  return stream;
}

cuda::Error FakeCuda::DestroyStream(Stream stream) {
  Lock lock(mutex_);
  if (Error error = Enter("DestroyStream"); error != Error::kOk) return error;
  StreamState* state = CopyStream("DestroyStream", stream);
  if (state == nullptr) return Error::kInvalid;
  if (!state->ops.empty()) Violation("a stream was destroyed with work in it");
  // As CUDA has it, its work goes on; here it ends at once.
  while (!state->ops.empty() && StepOnce()) {
  }
  streams_.erase(stream);
  return Error::kOk;
}

cuda::Error FakeCuda::SynchronizeStream(Stream stream) {
  Lock lock(mutex_);
  if (Error error = Enter("SynchronizeStream"); error != Error::kOk) return error;
  StreamState* state = CopyStream("SynchronizeStream", stream);
  if (state == nullptr) return Error::kInvalid;
  if (Error error = Unsafe("SynchronizeStream"); error != Error::kOk) return error;
  while (!state->ops.empty()) {
    if (thread_.joinable()) {
      changed_.wait(lock);
    } else if (!StepOnce()) {
      if (lost_) break;
      Violation("SynchronizeStream waits for ever");
      return Fail(Error::kOther, "deadlock");
    }
  }
  if (lost_) return Fail(Error::kSticky, "an illegal memory access was encountered");
  return unloading_ ? Fail(Error::kUnloading, "driver shutting down") : Error::kOk;
}

cuda::Error FakeCuda::IsCapturing(Stream stream, bool* capturing) {
  Lock lock(mutex_);
  if (Error error = Enter("IsCapturing"); error != Error::kOk) return error;
  StreamState* state = FindStream("IsCapturing", stream);
  if (state == nullptr) return Error::kInvalid;
  *capturing = state->capture != nullptr;
  return Error::kOk;
}

cuda::Error FakeCuda::CreateEvent(bool timed, Event* event) {
  Lock lock(mutex_);
  if (Error error = Enter("CreateEvent"); error != Error::kOk) return error;
  CheckThread("CreateEvent");
  if (event == nullptr) return Fail(Error::kInvalid, "no place for the event");
  next_handle_ += 16;
  *event = reinterpret_cast<Event>(next_handle_);
  auto state = std::make_unique<EventState>();
  state->timed = timed;
  events_.emplace(*event, std::move(state));
  return Error::kOk;
}

// Allowed while its record is under way, as in CUDA: who waits for it goes on waiting.
cuda::Error FakeCuda::DestroyEvent(Event event) {
  Lock lock(mutex_);
  if (Error error = Enter("DestroyEvent"); error != Error::kOk) return error;
  if (FindEvent("DestroyEvent", event) == nullptr) return Error::kInvalid;
  events_.erase(event);
  return Error::kOk;
}

cuda::Error FakeCuda::RecordEvent(Event event, Stream stream) {
  Lock lock(mutex_);
  if (Error error = Enter("RecordEvent"); error != Error::kOk) return error;
  StreamState* state = FindStream("RecordEvent", stream);
  EventState* target = FindEvent("RecordEvent", event);
  if (state == nullptr || target == nullptr) return Error::kInvalid;
  target->record = std::make_shared<Record>();
  if (state->capture != nullptr) {
    Violation("an event was recorded into a captured graph");
    target->record->captured = true;
    return Error::kOk;
  }
  Op op;
  op.kind = OpKind::kRecord;
  op.record = target->record;
  state->ops.push_back(std::move(op));
  changed_.notify_all();
  return Error::kOk;
}

cuda::Error FakeCuda::WaitEvent(Stream stream, Event event) {
  Dawdle();
  Lock lock(mutex_);
  if (Error error = Enter("WaitEvent"); error != Error::kOk) return error;
  StreamState* state = FindStream("WaitEvent", stream);
  EventState* source = FindEvent("WaitEvent", event);
  if (state == nullptr || source == nullptr) return Error::kInvalid;
  if (state->capture != nullptr) {
    state->capture->valid = false;
    Violation("a stream that is captured was made to wait");
    return Fail(Error::kCapture, "dependency created on uncaptured work in another stream");
  }
  if (source->record == nullptr) return Error::kOk;
  if (source->record->captured) {
    Violation("a stream was made to wait for an event in a captured graph");
    return Fail(Error::kCapture, "would join the capture");
  }
  if ((drop_all_ || drop_wait_ > 0) && (!drop_on_ || drop_on_(stream)) && !source->record->done) {
    if (drop_all_ || --drop_wait_ == 0) {
      mutated_ = true;
      return Error::kOk;
    }
  }
  Op op;
  op.kind = OpKind::kWait;
  op.record = source->record;
  state->ops.push_back(std::move(op));
  changed_.notify_all();
  return Error::kOk;
}

cuda::Error FakeCuda::QueryEvent(Event event) {
  Lock lock(mutex_);
  if (Error error = Enter("QueryEvent"); error != Error::kOk) return error;
  EventState* state = FindEvent("QueryEvent", event);
  if (state == nullptr) return Error::kInvalid;
  if (Error error = Unsafe("QueryEvent"); error != Error::kOk) return error;
  if (options_.step_on_query && !thread_.joinable()) StepOnce();
  if (state->record == nullptr || state->record->done) return Error::kOk;
  if (state->record->captured) {
    Violation("an event in a captured graph was queried");
    return Fail(Error::kCapture, "event was last recorded in a capturing stream");
  }
  if (lie_on_query_ > 0 && --lie_on_query_ == 0) {
    mutated_ = true;
    return Error::kOk;
  }
  return Error::kNotReady;
}

cuda::Error FakeCuda::ElapsedNs(Event start, Event end, int64_t* ns) {
  Lock lock(mutex_);
  if (Error error = Enter("ElapsedNs"); error != Error::kOk) return error;
  EventState* first = FindEvent("ElapsedNs", start);
  EventState* last = FindEvent("ElapsedNs", end);
  if (first == nullptr || last == nullptr) return Error::kInvalid;
  if (!first->timed || !last->timed || first->record == nullptr || last->record == nullptr) {
    return Fail(Error::kInvalid, "events without times");
  }
  if (!first->record->done || !last->record->done) return Error::kNotReady;
  *ns = last->record->at_ns - first->record->at_ns;
  return Error::kOk;
}

void FakeCuda::PushRange(const char*) {}
void FakeCuda::PopRange() {}

// --- the test's side ---

void FakeCuda::FailCall(const std::string& name, uint64_t nth, Error error) {
  Lock lock(mutex_);
  failures_.push_back({name, nth, error});
}

void FakeCuda::ClearFailures() {
  Lock lock(mutex_);
  failures_.clear();
}

void FakeCuda::LoseContext() {
  Lock lock(mutex_);
  Lose();
}

void FakeCuda::Unload() {
  Lock lock(mutex_);
  unloading_ = true;
  changed_.notify_all();
}

void FakeCuda::DropWait(uint64_t nth, std::function<bool(Stream)> on) {
  Lock lock(mutex_);
  drop_wait_ = nth;
  drop_on_ = std::move(on);
}

void FakeCuda::DropAllWaits(std::function<bool(Stream)> on) {
  Lock lock(mutex_);
  drop_all_ = true;
  drop_on_ = std::move(on);
}

void FakeCuda::LieOnQuery(uint64_t nth) {
  Lock lock(mutex_);
  lie_on_query_ = nth;
}

bool FakeCuda::mutated() {
  Lock lock(mutex_);
  return mutated_;
}

std::vector<std::string> FakeCuda::violations() {
  Lock lock(mutex_);
  return violations_;
}

std::string FakeCuda::FirstViolation() {
  Lock lock(mutex_);
  return violations_.empty() ? "" : violations_.front();
}

void FakeCuda::ClearViolations() {
  Lock lock(mutex_);
  violations_.clear();
}

uint64_t FakeCuda::calls(const std::string& name) {
  Lock lock(mutex_);
  auto it = calls_.find(name);
  return it == calls_.end() ? 0 : it->second;
}

uint64_t FakeCuda::registered_bytes() {
  Lock lock(mutex_);
  return RegisteredBytes();
}

uint64_t FakeCuda::open_handles() {
  Lock lock(mutex_);
  uint64_t count = events_.size();
  for (const auto& [handle, stream] : streams_) count += !stream->engine;
  for (const auto& [begin, memory] : memory_) count += memory.kind != MemoryKind::kAdopted;
  return count;
}

uint64_t FakeCuda::copied_bytes() {
  Lock lock(mutex_);
  return copied_bytes_;
}

}  // namespace flexkv
