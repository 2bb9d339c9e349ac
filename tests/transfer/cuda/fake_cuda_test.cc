// The fake runtime keeps the rules, and sees what it is there to see.
#include "tests/support/fake_cuda.h"

#include <cstring>
#include <set>
#include <vector>

#include "gtest/gtest.h"
#include "tests/transfer/cuda/cuda_rules.h"

namespace flexkv {
namespace {

using cuda::Error;

class FakeRulesDevice : public RulesDevice {
 public:
  explicit FakeRulesDevice(FakeCuda* fake) : fake_(*fake) {}
  cuda::Api& api() override { return fake_; }
  void Delay(cuda::Stream stream) override {
    fake_.Launch(
        stream, [] {}, [] {});
  }
  bool BeginCapture(cuda::Stream stream) override {
    fake_.BeginCapture(stream, FakeCuda::CaptureMode::kGlobal);
    return true;
  }
  bool EndCapture(cuda::Stream stream) override { return fake_.EndCapture(stream); }

 private:
  FakeCuda& fake_;
};

class CudaRulesTest : public testing::TestWithParam<CudaRule> {};

TEST_P(CudaRulesTest, HoldsOnTheFake) {
  const CudaRule& rule = GetParam();
  for (uint64_t seed = TestSeed(), end = seed + 4; seed < end && !HasFailure(); ++seed) {
    const bool threaded = seed % 2 == 0;
    FakeCuda fake({.seed = seed, .step_on_query = true});
    if (threaded) fake.StartThread();
    FakeRulesDevice device(&fake);
    EXPECT_EQ(rule.check(device), "") << "seed " << seed;
    if (!rule.provokes) {
      EXPECT_EQ(fake.FirstViolation(), "") << "seed " << seed;
    }
    EXPECT_EQ(fake.open_handles(), 0u);
  }
}

INSTANTIATE_TEST_SUITE_P(Fake, CudaRulesTest, testing::ValuesIn(CudaRules()),
                         [](const auto& rule) { return std::string(rule.param.name); });

// One stream of the agent's, one of the engine's, two pieces of memory.
class FakeCudaTest : public testing::Test {
 protected:
  static constexpr size_t kBytes = 512;

  FakeCudaTest() { Make(TestSeed()); }

  void Make(uint64_t seed) {
    fake_ = std::make_unique<FakeCuda>(seed);
    fake_->UseDevice();
    void* memory = nullptr;
    EXPECT_EQ(fake_->AllocateDevice(kBytes, &memory), Error::kOk);
    device_ = static_cast<std::byte*>(memory);
    EXPECT_EQ(fake_->AllocateHost(kBytes, &memory), Error::kOk);
    host_ = static_cast<std::byte*>(memory);
    EXPECT_EQ(fake_->CreateStream(0, &stream_), Error::kOk);
    EXPECT_EQ(fake_->CreateEvent(false, &event_), Error::kOk);
    engine_ = fake_->EngineStream();
    std::memset(host_, 1, kBytes);
  }
  Error Copy(void* target, const void* source, size_t bytes = kBytes) {
    return fake_->CopyBatch(&target, &source, &bytes, 1, stream_);
  }
  void ExpectViolation(const std::string& part) {
    const std::string first = fake_->FirstViolation();
    EXPECT_NE(first.find(part), std::string::npos) << "first violation: \"" << first << '"';
  }

  std::unique_ptr<FakeCuda> fake_;
  std::byte *device_ = nullptr, *host_ = nullptr;
  cuda::Stream stream_ = nullptr, engine_ = nullptr;
  cuda::Event event_ = nullptr;
};

TEST_F(FakeCudaTest, BytesMoveOnlyAtTheEnd) {
  ASSERT_EQ(Copy(device_, host_), Error::kOk);
  EXPECT_NE(device_[0], std::byte{1});
  ASSERT_TRUE(fake_->Step());
  EXPECT_EQ(device_[0], std::byte{0xDB});
  std::memset(host_, 2, kBytes);
  ASSERT_TRUE(fake_->RunUntilIdle());
  EXPECT_EQ(device_[0], std::byte{2});
  EXPECT_EQ(fake_->FirstViolation(), "");
}

TEST_F(FakeCudaTest, TheSameSeedIsTheSameHistory) {
  std::vector<std::vector<int>> histories;
  for (uint64_t seed : {5, 5, 6, 7, 8}) {
    Make(seed);
    std::vector<int> history;
    const cuda::Stream streams[] = {stream_, engine_, fake_->EngineStream()};
    for (int i = 0; i < 30; ++i) {
      fake_->Launch(streams[i % 3], [&history, i] { history.push_back(i); });
    }
    EXPECT_TRUE(fake_->RunUntilIdle());
    histories.push_back(history);
  }
  EXPECT_EQ(histories[0], histories[1]);
  EXPECT_GE(std::set(histories.begin(), histories.end()).size(), 3u);
}

// A forgotten wait is wrong bytes, for nearly every seed.
TEST_F(FakeCudaTest, AForgottenWaitShows) {
  int wrong = 0;
  for (uint64_t seed = TestSeed(), end = seed + 100; seed < end; ++seed) {
    for (bool wait : {true, false}) {
      Make(seed);
      fake_->Launch(
          engine_, [this] { std::memset(device_, 3, kBytes); },
          [this] { std::memset(device_, 4, kBytes); });
      EXPECT_EQ(fake_->RecordEvent(event_, engine_), Error::kOk);
      if (!wait) fake_->DropWait(1);
      EXPECT_EQ(fake_->WaitEvent(stream_, event_), Error::kOk);
      EXPECT_EQ(fake_->mutated(), !wait);
      EXPECT_EQ(Copy(host_, device_), Error::kOk);
      EXPECT_TRUE(fake_->RunUntilIdle());
      const bool right = host_[0] == std::byte{4};
      ASSERT_TRUE(right || !wait);
      wrong += !right;
    }
  }
  EXPECT_GT(wrong, 30);
}

TEST_F(FakeCudaTest, AQueryCanBeMadeToLie) {
  fake_->LieOnQuery(2);
  ASSERT_EQ(Copy(host_, device_), Error::kOk);
  ASSERT_EQ(fake_->RecordEvent(event_, stream_), Error::kOk);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kNotReady);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kOk);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kNotReady);
  EXPECT_TRUE(fake_->mutated());
}

TEST_F(FakeCudaTest, FailsTheNthCall) {
  fake_->FailCall("CopyBatch", 2, Error::kOther);
  fake_->FailCall("", 4, Error::kNoMemory);
  EXPECT_EQ(Copy(device_, host_), Error::kOk);
  EXPECT_EQ(Copy(device_, host_), Error::kOther);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kOk);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kNoMemory);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kOk);
  EXPECT_EQ(fake_->calls("QueryEvent"), 3u);
  EXPECT_TRUE(fake_->RunUntilIdle());
}

TEST_F(FakeCudaTest, ABatchThatFailsMayHaveBeenTakenInPart) {
  std::set<int> arrived;
  for (uint64_t seed = 1; seed < 60; ++seed) {
    Make(seed);
    std::memset(device_, 0, kBytes);
    void* targets[4];
    const void* sources[4];
    const size_t sizes[4] = {128, 128, 128, 128};
    for (int i = 0; i < 4; ++i) {
      targets[i] = device_ + 128 * i;
      sources[i] = host_ + 128 * i;
    }
    fake_->FailCall("CopyBatch", 1, Error::kNoMemory);
    EXPECT_EQ(fake_->CopyBatch(targets, sources, sizes, 4, stream_), Error::kNoMemory);
    EXPECT_TRUE(fake_->RunUntilIdle());
    int count = 0;
    for (int i = 0; i < 4; ++i) count += device_[128 * i] == std::byte{1};
    arrived.insert(count);
  }
  EXPECT_GE(arrived.size(), 4u);
}

TEST_F(FakeCudaTest, AStickyErrorIsForEver) {
  ASSERT_EQ(Copy(host_, device_), Error::kOk);
  ASSERT_EQ(fake_->RecordEvent(event_, stream_), Error::kOk);
  fake_->FailCall("WaitEvent", 1, Error::kSticky);
  EXPECT_EQ(fake_->WaitEvent(engine_, event_), Error::kSticky);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kSticky);
  EXPECT_EQ(Copy(host_, device_), Error::kSticky);
  EXPECT_EQ(fake_->SynchronizeStream(stream_), Error::kSticky);
  EXPECT_FALSE(fake_->Step());
  EXPECT_EQ(device_[0], std::byte{0xDB});
  EXPECT_EQ(fake_->FirstViolation(), "");
}

TEST_F(FakeCudaTest, UnloadingTakesNoCalls) {
  fake_->Unload();
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kUnloading);
  EXPECT_EQ(fake_->FreeHost(host_), Error::kUnloading);
}

TEST_F(FakeCudaTest, LockedMemoryHasALimit) {
  FakeCuda fake({.lockable_bytes = 100});
  std::vector<std::byte> memory(200);
  EXPECT_EQ(fake.RegisterHost(memory.data(), 60), Error::kOk);
  EXPECT_EQ(fake.RegisterHost(memory.data() + 60, 60), Error::kNotPermitted);
  EXPECT_EQ(fake.registered_bytes(), 60u);
  EXPECT_EQ(fake.UnregisterHost(memory.data()), Error::kOk);
  EXPECT_EQ(fake.RegisterHost(memory.data() + 60, 60), Error::kOk);
}

TEST_F(FakeCudaTest, SeesMemoryThatIsNotRegistered) {
  std::vector<std::byte> memory(kBytes);
  EXPECT_EQ(Copy(device_, memory.data()), Error::kInvalid);
  ExpectViolation("registered");
}

TEST_F(FakeCudaTest, SeesMemoryAcrossTwoRegistrations) {
  std::vector<std::byte> memory(kBytes);
  fake_->RegisterHost(memory.data(), 100);
  fake_->RegisterHost(memory.data() + 100, kBytes - 100);
  EXPECT_EQ(Copy(device_, memory.data()), Error::kInvalid);
  ExpectViolation("across two registrations");
}

TEST_F(FakeCudaTest, SeesMemoryUnregisteredTooEarly) {
  std::vector<std::byte> memory(kBytes);
  fake_->RegisterHost(memory.data(), kBytes);
  ASSERT_EQ(Copy(device_, memory.data()), Error::kOk);
  EXPECT_EQ(fake_->UnregisterHost(memory.data()), Error::kOk);
  ExpectViolation("copies under way");
}

TEST_F(FakeCudaTest, SeesMemoryFreedTooEarly) {
  ASSERT_EQ(Copy(device_, host_), Error::kOk);
  EXPECT_EQ(fake_->FreeHost(host_), Error::kOk);
  ExpectViolation("copies under way");
  EXPECT_TRUE(fake_->RunUntilIdle());
}

TEST_F(FakeCudaTest, SeesListsChangedTooEarly) {
  auto* items = reinterpret_cast<cuda::CopyItem*>(host_);
  *items = {device_, host_ + 256, 64};
  ASSERT_EQ(fake_->CopyKernel(items, 1, 4, stream_), Error::kOk);
  items->bytes = 32;
  EXPECT_TRUE(fake_->RunUntilIdle());
  ExpectViolation("list of copies was changed");
}

TEST_F(FakeCudaTest, SeesStalePointersAfterSleep) {
  std::vector<std::byte> tensor(kBytes);
  fake_->AdoptDevice(tensor);
  ASSERT_EQ(Copy(tensor.data(), host_), Error::kOk);
  fake_->Sleep();
  EXPECT_TRUE(fake_->RunUntilIdle());
  ExpectViolation("neither on the device");
  EXPECT_EQ(Copy(tensor.data(), host_), Error::kInvalid);
}

TEST_F(FakeCudaTest, SeesTheLegacyStreamAndTheEngines) {
  EXPECT_EQ(fake_->RecordEvent(event_, nullptr), Error::kInvalid);
  ExpectViolation("legacy");
  fake_->ClearViolations();
  stream_ = engine_;
  EXPECT_EQ(Copy(device_, host_), Error::kOk);
  ExpectViolation("engine's stream");
}

TEST_F(FakeCudaTest, SeesHandlesThatAreGone) {
  EXPECT_EQ(fake_->DestroyEvent(event_), Error::kOk);
  EXPECT_EQ(fake_->QueryEvent(event_), Error::kInvalid);
  ExpectViolation("not there");
  fake_->ClearViolations();
  ASSERT_EQ(Copy(device_, host_), Error::kOk);
  EXPECT_EQ(fake_->DestroyStream(stream_), Error::kOk);
  ExpectViolation("with work in it");
}

TEST_F(FakeCudaTest, SeesCapturesThatAreBroken) {
  ASSERT_EQ(Copy(device_, host_), Error::kOk);
  ASSERT_EQ(fake_->RecordEvent(event_, stream_), Error::kOk);
  using Mode = FakeCuda::CaptureMode;
  const auto broken = [this](Mode mode, bool relaxed, const std::function<void()>& call) {
    fake_->ClearViolations();
    fake_->BeginCapture(engine_, mode);
    std::thread([&] {
      fake_->UseDevice();
      if (relaxed) fake_->RelaxCapture();
      call();
    }).join();
    const bool usable = fake_->EndCapture(engine_);
    EXPECT_EQ(usable, fake_->FirstViolation().empty()) << fake_->FirstViolation();
    return !usable;
  };
  void* memory = nullptr;
  const std::function<void()> unsafe[] = {
      [&] { fake_->QueryEvent(event_); }, [&] { fake_->SynchronizeStream(stream_); },
      [&] { fake_->AllocateHost(64, &memory); }, [&] { fake_->UnregisterHost(host_); }};
  for (const auto& call : unsafe) {
    EXPECT_TRUE(broken(Mode::kGlobal, false, call));
    EXPECT_FALSE(broken(Mode::kGlobal, true, call));
    EXPECT_FALSE(broken(Mode::kThreadLocal, false, call));
    EXPECT_FALSE(broken(Mode::kRelaxed, false, call));
  }
  // Work of the stream itself, from wherever.
  EXPECT_TRUE(broken(Mode::kRelaxed, true, [&] { fake_->WaitEvent(engine_, event_); }));
  fake_->BeginCapture(engine_, Mode::kThreadLocal);
  fake_->QueryEvent(event_);
  EXPECT_FALSE(fake_->EndCapture(engine_));
  fake_->ClearViolations();
  fake_->BeginCapture(engine_, Mode::kGlobal);
  fake_->RecordEvent(event_, engine_);
  ExpectViolation("recorded into");
  EXPECT_TRUE(fake_->EndCapture(engine_));
}

TEST_F(FakeCudaTest, SeesThreadsWithoutADevice) {
  std::thread([this] {
    cuda::Stream stream = nullptr;
    EXPECT_EQ(fake_->CreateStream(0, &stream), Error::kOk);
  }).join();
  ExpectViolation("chose no device");
}

TEST_F(FakeCudaTest, GatesHoldKernelsBack) {
  auto gate = std::make_shared<std::atomic<bool>>(false);
  bool ran = false;
  fake_->Launch(
      engine_, [&ran] { ran = true; }, {}, gate);
  EXPECT_FALSE(fake_->RunUntilIdle());
  EXPECT_FALSE(ran);
  *gate = true;
  EXPECT_TRUE(fake_->RunUntilIdle());
  EXPECT_TRUE(ran);
}

}  // namespace
}  // namespace flexkv
