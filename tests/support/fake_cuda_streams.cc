// The GPU's side of FakeCuda: which stream goes on, and what its work does to memory.
#include <chrono>
#include <cstring>

#include "tests/support/fake_cuda.h"

namespace flexkv {
namespace {

constexpr std::byte kScribble{0xDB};

}  // namespace

void FakeCuda::Launch(Stream stream, std::function<void()> begin, std::function<void()> end,
                      std::shared_ptr<std::atomic<bool>> gate) {
  Lock lock(mutex_);
  StreamState* state = FindStream("Launch", stream);
  if (state == nullptr || lost_ || unloading_) return;
  if (state->capture != nullptr) return;  // part of the graph
  Op op;
  op.kind = OpKind::kLaunch;
  op.begin = std::move(begin);
  op.end = std::move(end);
  op.gate = std::move(gate);
  state->ops.push_back(std::move(op));
  changed_.notify_all();
}

bool FakeCuda::Step() {
  Lock lock(mutex_);
  return StepOnce();
}

bool FakeCuda::RunUntilIdle() {
  Lock lock(mutex_);
  while (StepOnce()) {
  }
  for (const auto& [handle, stream] : streams_) {
    if (!stream->ops.empty()) return false;
  }
  return true;
}

bool FakeCuda::Idle() {
  Lock lock(mutex_);
  for (const auto& [handle, stream] : streams_) {
    if (!stream->ops.empty()) return false;
  }
  return true;
}

bool FakeCuda::Idle(Stream stream) {
  Lock lock(mutex_);
  auto it = streams_.find(stream);
  return it == streams_.end() || it->second->ops.empty();
}

void FakeCuda::StartThread() {
  stopping_ = false;
  thread_ = std::thread([this] { RunThread(); });
}

void FakeCuda::StopThread() {
  if (!thread_.joinable()) return;
  {
    Lock lock(mutex_);
    stopping_ = true;
    changed_.notify_all();
  }
  thread_.join();
}

// Bursts with pauses between them, so that calls meet work in every state.
void FakeCuda::RunThread() {
  Lock lock(mutex_);
  while (!stopping_) {
    bool worked = false;
    for (uint64_t i = 1 + rng_.Below(16); i > 0; --i) worked = StepOnce() || worked;
    if (!worked) {
      changed_.wait_for(lock, std::chrono::microseconds(200));  // a gate may have opened
      continue;
    }
    const uint64_t pause_us = rng_.OneIn(4) ? rng_.Below(100) : 0;
    lock.unlock();
    if (pause_us > 0) {
      std::this_thread::sleep_for(std::chrono::microseconds(pause_us));
    } else {
      std::this_thread::yield();
    }
    lock.lock();
  }
}

bool FakeCuda::Runnable(const StreamState& stream) {
  if (stream.ops.empty()) return false;
  const Op& op = stream.ops.front();
  if (op.kind == OpKind::kWait) return op.record->done;
  return op.gate == nullptr || op.began || op.gate->load();
}

// Some streams are far slower than others for a while.
void FakeCuda::Shuffle() {
  for (auto& [handle, stream] : streams_) stream->weight = 1u << (3 * rng_.Below(4));
}

bool FakeCuda::StepOnce() {
  if (lost_ || unloading_) return false;
  if (rng_.OneIn(100)) Shuffle();
  uint64_t total = 0;
  for (const auto& [handle, stream] : streams_) total += Runnable(*stream) ? stream->weight : 0;
  if (total == 0) return false;
  uint64_t pick = rng_.Below(total);
  for (auto& [handle, stream] : streams_) {
    if (!Runnable(*stream)) continue;
    if (pick < stream->weight) {
      Advance(stream.get());
      changed_.notify_all();
      return true;
    }
    pick -= stream->weight;
  }
  return false;
}

// One thing that can happen to the head of the stream.
void FakeCuda::Advance(StreamState* stream) {
  Op& op = stream->ops.front();
  now_ns_ += 1 + static_cast<int64_t>(rng_.Below(500));
  bool done = true;
  switch (op.kind) {
    case OpKind::kWait:
      break;
    case OpKind::kRecord:
      op.record->done = true;
      op.record->at_ns = now_ns_;
      break;
    case OpKind::kLaunch:
      if (!op.began) {
        if (op.begin) op.begin();
        done = !op.end;
      } else {
        op.end();
      }
      break;
    case OpKind::kCopies:
    case OpKind::kKernelCopies:
      if (!op.began) {
        BeginCopies(op);
        done = false;
      } else {
        EndCopies(&op);
        done = op.copies.empty();
      }
      break;
  }
  op.began = true;
  if (done) stream->ops.pop_front();
}

void FakeCuda::BeginCopies(const Op& op) {
  for (const Copy& copy : op.copies) {
    if (CheckCopy("a copy that begins", copy, op.kind)) {
      std::memset(copy.target, static_cast<int>(kScribble), copy.bytes);
    }
  }
}

// A few of them, any.
void FakeCuda::EndCopies(Op* op) {
  // The list is looked at when the first and when the last copies end.
  if (op->kind == OpKind::kKernelCopies &&
      (op->copies.size() <= 8 || op->copies.size() == op->listed.size())) {
    const uint64_t bytes = op->listed.size() * sizeof(cuda::CopyItem);
    if (!Reachable(op->items, bytes)) {
      Violation("a kernel's list of copies was freed while the kernel ran");
    } else if (std::memcmp(op->items, op->listed.data(), bytes) != 0) {
      Violation("a kernel's list of copies was changed while the kernel ran");
    }
  }
  for (uint64_t i = 1 + rng_.Below(8); i > 0 && !op->copies.empty(); --i) {
    std::swap(op->copies[rng_.Below(op->copies.size())], op->copies.back());
    const Copy copy = op->copies.back();
    op->copies.pop_back();
    if (!CheckCopy("a copy that ends", copy, op->kind)) continue;
    std::memmove(copy.target, copy.source, copy.bytes);
    now_ns_ += static_cast<int64_t>(copy.bytes / 50);
    copied_bytes_ += copy.bytes;
  }
}

// All that was under way stays half done, and what the GPU held is anything.
cuda::Error FakeCuda::Lose() {
  lost_ = true;
  for (auto& [handle, stream] : streams_) {
    for (Op& op : stream->ops) {
      for (const Copy& copy : op.copies) {
        if (op.began && Reachable(copy.target, copy.bytes, true)) {
          std::memset(copy.target, static_cast<int>(kScribble), copy.bytes);
        }
      }
    }
    stream->ops.clear();
  }
  for (auto& [begin, memory] : memory_) {
    if (memory.kind != MemoryKind::kDevice && memory.kind != MemoryKind::kAdopted) continue;
    std::memset(reinterpret_cast<void*>(begin), static_cast<int>(kScribble), memory.bytes);
  }
  changed_.notify_all();
  return Error::kSticky;
}

void FakeCuda::BeginCapture(Stream stream, CaptureMode mode) {
  const uint64_t thread = ThisThread();
  Lock lock(mutex_);
  StreamState* state = FindStream("BeginCapture", stream);
  if (state == nullptr) return;
  state->capture = std::make_unique<Capture>(Capture{.mode = mode, .thread = thread});
}

bool FakeCuda::EndCapture(Stream stream) {
  Lock lock(mutex_);
  StreamState* state = FindStream("EndCapture", stream);
  if (state == nullptr || state->capture == nullptr) return false;
  const bool valid = state->capture->valid;
  state->capture = nullptr;
  return valid;
}

}  // namespace flexkv
