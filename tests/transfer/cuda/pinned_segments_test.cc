#include "flexkv/transfer/cuda/pinned_segments.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <set>
#include <thread>
#include <vector>

#include "tests/support/fake_cuda.h"
#include "tests/support/test_seed.h"

namespace flexkv::cuda {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr uint64_t kPiece = 16 << 10;

// Registers what a script says. All else is not called here.
class ScriptedApi : public Api {
 public:
  std::function<Error(size_t call, std::byte* memory)> on_register;
  Error on_unregister = Error::kOk;
  Error on_use_device = Error::kOk;

  std::vector<std::byte*> registered() {
    std::lock_guard<std::mutex> lock(mutex_);
    return registered_;
  }
  std::vector<std::byte*> unregistered() {
    std::lock_guard<std::mutex> lock(mutex_);
    return unregistered_;
  }
  std::set<std::thread::id> threads() {
    std::lock_guard<std::mutex> lock(mutex_);
    return threads_;
  }
  size_t calls() { return calls_.load(); }
  // The next registration stops until Release.
  void Hold() { hold_ = true; }
  void WaitUntilHeld() {
    while (!held_) std::this_thread::yield();
  }
  void Release() { hold_ = false; }

  const char* LastMessage() override { return "said so"; }
  Error UseDevice() override { return on_use_device; }
  Error RelaxCapture() override { return Error::kOk; }
  Error RegisterHost(void* memory, size_t) override {
    const size_t call = calls_++;
    held_ = true;
    while (hold_) std::this_thread::yield();
    held_ = false;
    std::byte* at = static_cast<std::byte*>(memory);
    const Error error = on_register ? on_register(call, at) : Error::kOk;
    std::lock_guard<std::mutex> lock(mutex_);
    threads_.insert(std::this_thread::get_id());
    if (error == Error::kOk) registered_.push_back(at);
    return error;
  }
  Error UnregisterHost(void* memory) override {
    ++calls_;
    std::lock_guard<std::mutex> lock(mutex_);
    threads_.insert(std::this_thread::get_id());
    unregistered_.push_back(static_cast<std::byte*>(memory));
    return on_unregister;
  }

  Error GetDeviceInfo(DeviceInfo*) override { return Unexpected(); }
  Error CreateStream(int, Stream*) override { return Unexpected(); }
  Error DestroyStream(Stream) override { return Unexpected(); }
  Error SynchronizeStream(Stream) override { return Unexpected(); }
  Error IsCapturing(Stream, bool*) override { return Unexpected(); }
  Error CreateEvent(bool, Event*) override { return Unexpected(); }
  Error DestroyEvent(Event) override { return Unexpected(); }
  Error RecordEvent(Event, Stream) override { return Unexpected(); }
  Error WaitEvent(Stream, Event) override { return Unexpected(); }
  Error QueryEvent(Event) override { return Unexpected(); }
  Error ElapsedNs(Event, Event, int64_t*) override { return Unexpected(); }
  Error AllocateHost(size_t, void**) override { return Unexpected(); }
  Error FreeHost(void*) override { return Unexpected(); }
  Error AllocateDevice(size_t, void**) override { return Unexpected(); }
  Error FreeDevice(void*) override { return Unexpected(); }
  Error CopyBatch(void* const*, const void* const*, const size_t*, size_t, Stream) override {
    return Unexpected();
  }
  Error CopyKernel(const CopyItem*, size_t, int, Stream) override { return Unexpected(); }
  void PushRange(const char*) override {}
  void PopRange() override {}

 private:
  static Error Unexpected() {
    ADD_FAILURE() << "a call that registration does not need";
    return Error::kOther;
  }

  std::mutex mutex_;
  std::vector<std::byte*> registered_, unregistered_;
  std::set<std::thread::id> threads_;
  std::atomic<size_t> calls_{0};
  std::atomic<bool> hold_{false}, held_{false};
};

bool Eventually(const std::function<bool()>& condition) {
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  while (!condition()) {
    if (std::chrono::steady_clock::now() > deadline) return false;
    std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  return true;
}

bool AllPinned(const PinnedSegments& pinned) {
  return Eventually([&] {
    const PinnedSegments::State state = pinned.state();
    return state.pinned_bytes == state.mapped_bytes;
  });
}

TEST(PinnedSegmentsTest, RegistersPieceByPieceAndSaysWhereAPieceEnds) {
  FakeCuda cuda(TestSeed());
  std::vector<std::byte> memory(3 * kPiece + 100);
  {
    PinnedSegments pinned({.piece_bytes = kPiece}, &cuda);
    EXPECT_FALSE(pinned.Holds(memory.data(), 1));
    pinned.Add(7, memory);
    ASSERT_TRUE(AllPinned(pinned));
    EXPECT_EQ(cuda.calls("RegisterHost"), 4u);
    EXPECT_EQ(cuda.registered_bytes(), memory.size());
    EXPECT_TRUE(pinned.Holds(memory.data(), memory.size()));
    EXPECT_FALSE(pinned.Holds(memory.data(), memory.size() + 1));
    EXPECT_FALSE(pinned.Holds(memory.data() - 1, 2));
    EXPECT_EQ(pinned.HeldBytes(memory.data()), kPiece);
    EXPECT_EQ(pinned.HeldBytes(memory.data() + kPiece - 1), 1u);
    EXPECT_EQ(pinned.HeldBytes(memory.data() + kPiece), kPiece);
    EXPECT_EQ(pinned.HeldBytes(memory.data() + 3 * kPiece + 1), 99u);
    EXPECT_EQ(pinned.HeldBytes(memory.data() + memory.size()), 0u);
    pinned.Add(7, memory);  // known: nothing happens
    EXPECT_EQ(pinned.state().mapped_bytes, memory.size());
    pinned.Remove(7);
    pinned.Remove(7);
    EXPECT_FALSE(pinned.Holds(memory.data(), 1));
    EXPECT_EQ(cuda.registered_bytes(), 0u);
    EXPECT_EQ(pinned.state().pinned_bytes, 0u);
    pinned.Add(8, memory);  // given back by the destructor
  }
  EXPECT_EQ(cuda.registered_bytes(), 0u);
  EXPECT_EQ(cuda.FirstViolation(), "");
}

TEST(PinnedSegmentsTest, WhatWaitsIsRegisteredNext) {
  ScriptedApi api;
  std::vector<std::byte> memory(6 * kPiece);
  PinnedSegments pinned({.piece_bytes = kPiece}, &api);
  api.Hold();
  pinned.Add(1, memory);
  api.WaitUntilHeld();
  EXPECT_FALSE(pinned.Holds(memory.data(), 1));
  pinned.Prefer(memory.data() + 4 * kPiece + 5);
  api.Release();
  ASSERT_TRUE(AllPinned(pinned));
  std::byte* const base = memory.data();
  EXPECT_THAT(api.registered(),
              ElementsAre(base, base + 4 * kPiece, base + kPiece, base + 2 * kPiece,
                          base + 3 * kPiece, base + 5 * kPiece));
}

TEST(PinnedSegmentsTest, RefusalSaysWhatToSetAndIsTriedAgain) {
  FakeCuda cuda({.seed = TestSeed(), .lockable_bytes = 2 * kPiece});
  std::vector<std::byte> first(2 * kPiece), second(2 * kPiece);
  PinnedSegments pinned({.piece_bytes = kPiece}, &cuda);
  pinned.Add(1, first);
  ASSERT_TRUE(AllPinned(pinned));
  EXPECT_EQ(pinned.state().problem, "");
  pinned.Add(2, second);
  ASSERT_TRUE(Eventually([&] { return pinned.state().refused; }));
  EXPECT_THAT(pinned.state().problem, HasSubstr("--ulimit memlock=-1"));
  EXPECT_THAT(pinned.state().problem, HasSubstr("cache smaller"));
  EXPECT_LT(pinned.state().problem.size(), 256u);
  EXPECT_EQ(pinned.state().pinned_bytes, 2 * kPiece);
  EXPECT_FALSE(pinned.Holds(second.data(), 1));
  const uint64_t calls = cuda.calls("RegisterHost");
  pinned.Prefer(second.data());
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_EQ(cuda.calls("RegisterHost"), calls);  // not again and again
  pinned.Remove(1);
  ASSERT_TRUE(AllPinned(pinned));
  EXPECT_TRUE(pinned.Holds(second.data(), second.size()));
  EXPECT_FALSE(pinned.state().refused);
  EXPECT_EQ(pinned.state().problem, "");
}

TEST(PinnedSegmentsTest, DeviceThatCannotBeUsedIsTriedAgain) {
  ScriptedApi api;
  api.on_use_device = Error::kNoMemory;
  std::vector<std::byte> memory(kPiece);
  PinnedSegments pinned({.piece_bytes = kPiece}, &api);
  ASSERT_TRUE(Eventually([&] { return pinned.state().refused; }));
  EXPECT_THAT(pinned.state().problem, HasSubstr("said so"));
  api.on_use_device = Error::kOk;
  pinned.Add(1, memory);
  ASSERT_TRUE(Eventually([&] { return pinned.Holds(memory.data(), kPiece); }));
  EXPECT_EQ(pinned.state().problem, "");
}

TEST(PinnedSegmentsTest, RemoveWaitsForThePieceBeingRegistered) {
  ScriptedApi api;
  std::vector<std::byte> memory(4 * kPiece);
  PinnedSegments pinned({.piece_bytes = kPiece}, &api);
  api.Hold();
  pinned.Add(1, memory);
  api.WaitUntilHeld();
  std::atomic<bool> removed{false};
  std::thread remover([&] {
    pinned.Remove(1);
    removed = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_FALSE(removed.load());
  api.Release();
  remover.join();
  EXPECT_EQ(api.registered(), api.unregistered());  // the one piece, and no other was begun
  EXPECT_EQ(api.registered().size(), 1u);
  EXPECT_EQ(pinned.state().mapped_bytes, 0u);
  EXPECT_EQ(pinned.state().pinned_bytes, 0u);
}

TEST(PinnedSegmentsTest, WhatIsRegisteredBySomethingElseIsNotUsed) {
  ScriptedApi api;
  std::vector<std::byte> memory(3 * kPiece);
  api.on_register = [](size_t call, std::byte*) {
    return call == 1 ? Error::kAlreadyRegistered : Error::kOk;
  };
  PinnedSegments pinned({.piece_bytes = kPiece}, &api);
  pinned.Add(1, memory);
  ASSERT_TRUE(Eventually([&] { return pinned.state().pinned_bytes == 2 * kPiece; }));
  EXPECT_FALSE(pinned.Holds(memory.data() + kPiece, 1));
  EXPECT_FALSE(pinned.Holds(memory.data(), memory.size()));
  EXPECT_TRUE(pinned.Holds(memory.data() + 2 * kPiece, kPiece));
  EXPECT_FALSE(pinned.state().refused);
  EXPECT_THAT(pinned.state().problem, HasSubstr("something else"));
  pinned.Remove(1);
  EXPECT_THAT(api.unregistered(), ElementsAre(memory.data(), memory.data() + 2 * kPiece));
  EXPECT_EQ(pinned.state().problem, "");
}

TEST(PinnedSegmentsTest, CaptureOnlyDelays) {
  ScriptedApi api;
  std::vector<std::byte> memory(2 * kPiece);
  api.on_register = [](size_t call, std::byte*) { return call < 2 ? Error::kCapture : Error::kOk; };
  PinnedSegments pinned({.piece_bytes = kPiece}, &api);
  pinned.Add(1, memory);
  ASSERT_TRUE(AllPinned(pinned));
  EXPECT_FALSE(pinned.state().refused);
}

TEST(PinnedSegmentsTest, LostDeviceIsLeftAlone) {
  for (const Error error : {Error::kSticky, Error::kUnloading}) {
    ScriptedApi api;
    std::vector<std::byte> memory(8 * kPiece), more(kPiece);
    api.on_register = [error](size_t call, std::byte*) { return call == 2 ? error : Error::kOk; };
    {
      PinnedSegments pinned({.piece_bytes = kPiece}, &api);
      pinned.Add(1, memory);
      ASSERT_TRUE(Eventually([&] { return api.calls() == 3; }));
      pinned.Add(2, more);
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
      pinned.Remove(1);
      EXPECT_FALSE(pinned.Holds(memory.data(), 1));
    }
    EXPECT_EQ(api.calls(), 3u);
  }
}

TEST(PinnedSegmentsTest, AbandonedDeviceIsLeftAlone) {
  ScriptedApi api;
  std::vector<std::byte> memory(2 * kPiece), more(kPiece);
  {
    PinnedSegments pinned({.piece_bytes = kPiece}, &api);
    pinned.Add(1, memory);
    ASSERT_TRUE(AllPinned(pinned));
    pinned.Abandon();
    pinned.Add(2, more);
    pinned.Remove(1);
  }
  EXPECT_EQ(api.calls(), 2u);
}

TEST(PinnedSegmentsTest, AllCallsAreOfItsOwnThread) {
  ScriptedApi api;
  std::vector<std::byte> memory(4 * kPiece);
  {
    PinnedSegments pinned({.piece_bytes = kPiece}, &api);
    pinned.Add(1, memory);
    ASSERT_TRUE(AllPinned(pinned));
    pinned.Remove(1);
    pinned.Add(2, memory);
  }
  EXPECT_EQ(api.threads().size(), 1u);
  EXPECT_FALSE(api.threads().contains(std::this_thread::get_id()));
  EXPECT_EQ(api.registered(), api.unregistered());
}

TEST(PinnedSegmentsTest, SegmentsComeAndGoWhileOthersAsk) {
  const uint64_t seed = TestSeed();
  constexpr size_t kSegments = 6;
  FakeCuda cuda({.seed = seed, .lockable_bytes = 14 * kPiece});
  std::vector<std::vector<std::byte>> memory(kSegments, std::vector<std::byte>(5 * kPiece + 64));
  {
    PinnedSegments pinned({.piece_bytes = kPiece}, &cuda);
    std::atomic<bool> stop{false};
    std::thread asker([&] {
      TestRng rng(seed + 1);
      while (!stop) {
        std::vector<std::byte>& segment = memory[rng.Below(kSegments)];
        const uint64_t at = rng.Below(segment.size());
        const bool held = pinned.Holds(segment.data() + at, 1 + rng.Below(segment.size() - at));
        if (!held) pinned.Prefer(segment.data() + at);
        EXPECT_LE(pinned.HeldBytes(segment.data() + at), kPiece);
        EXPECT_LE(pinned.state().pinned_bytes, 14 * kPiece);
      }
    });
    TestRng rng(seed);
    for (int round = 0; round < 400; ++round) {
      const size_t at = rng.Below(kSegments);
      if (rng.OneIn(2)) {
        pinned.Add(static_cast<SegmentId>(at), memory[at]);
      } else {
        pinned.Remove(static_cast<SegmentId>(at));
        ASSERT_FALSE(pinned.Holds(memory[at].data(), 1));
      }
      if (rng.OneIn(8)) std::this_thread::yield();
    }
    stop = true;
    asker.join();
  }
  EXPECT_EQ(cuda.registered_bytes(), 0u);
  EXPECT_EQ(cuda.FirstViolation(), "");
}

}  // namespace
}  // namespace flexkv::cuda
