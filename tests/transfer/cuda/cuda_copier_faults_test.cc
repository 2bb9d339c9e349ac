// What the copier does when the device refuses, or is lost.
#include <gtest/gtest.h>

#include <vector>

#include "tests/support/sanitized.h"
#include "tests/support/test_seed.h"
#include "tests/transfer/cuda/copier_rig.h"

namespace flexkv::cuda {
namespace {

constexpr Route kLoad = Route::kCpuToDevice;
constexpr Route kStore = Route::kDeviceToCpu;

RigOptions Mixed(TestRng* rng) {
  RigOptions options;
  if (rng->OneIn(2)) options.registered = 6000;  // the rest by way of buffers
  options.copy.batch_copies = 4;
  options.copy.engine[0] = CopyOptions::Engine::kKernel;
  return options;
}

struct Scene {
  std::vector<ChunkTicket> loads, stores;
};

// Loads of shards 0..7 to blocks 0..7, stores of blocks 8..15 to shards 8..15.
Scene Play(CopierRig* rig, TestRng* rng) {
  Scene scene;
  for (uint32_t i = 0; i < 8; ++i) {
    rig->FillShard(i, 100 + i);
    rig->FillBlock(8 + i, 200 + i);
  }
  for (uint32_t i = 0; i < 8; ++i) {
    const Lane lane = rng->OneIn(3) ? Lane::kLayer : Lane::kBackground;
    const ComputeMark load_mark = rig->copier->Mark();
    scene.loads.push_back(rig->Start(kLoad, {{.block = i, .shard = i}}, load_mark, lane));
    const ComputeMark store_mark = rig->copier->Mark();
    scene.stores.push_back(rig->Start(kStore, {{.block = 8 + i, .shard = 8 + i}}, store_mark));
    for (uint64_t steps = rng->Below(6); steps > 0; --steps) rig->cuda.Step();
    rig->Collect();
    if (rng->OneIn(4)) (void)rig->copier->HoldCompute(scene.stores);
  }
  return scene;
}

// Every end that says ok has its bytes, and after an end, good or bad, nothing moves any more.
void Check(CopierRig* rig, const Scene& scene) {
  const std::vector<std::byte> engine = rig->engine, arena = rig->arena;
  EXPECT_TRUE(rig->cuda.RunUntilIdle());
  EXPECT_EQ(engine, rig->engine) << "a block was written after the end of its chunk";
  EXPECT_EQ(arena, rig->arena) << "a shard was written after the end of its chunk";
  for (uint32_t i = 0; i < 8; ++i) {
    EXPECT_TRUE(!rig->EndedWell(scene.loads[i]) || rig->BlockIs(i, 100 + i));
    EXPECT_TRUE(!rig->EndedWell(scene.stores[i]) || rig->ShardIs(8 + i, 200 + i));
  }
}

TEST(CudaCopierFaultsTest, AnyCallMayRefuseOnce) {
  TestRng rng(TestSeed());
  uint64_t failed = 0;
  for (uint64_t nth = 1; nth < 220; nth += 1 + rng.Below(kSanitized ? 30 : 6)) {
    CopierRig rig(rng.Next(), Mixed(&rng));
    const Error error = rng.OneIn(2) ? Error::kOther : Error::kNoMemory;
    rig.cuda.FailCall("", nth, error);
    const Scene scene = Play(&rig, &rng);
    rig.Drain();
    Check(&rig, scene);
    EXPECT_FALSE(rig.copier->stats().lost);
    EXPECT_LE(rig.copier->stats().failed_chunks, 3u) << "one call refused, many chunks failed";
    failed += rig.copier->stats().failed_chunks;
    // It works on.
    rig.FillShard(0, 77);
    const ChunkTicket next = rig.Start(kLoad, {{.block = 0, .shard = 0}}, rig.copier->Mark());
    rig.Drain();
    EXPECT_TRUE(rig.EndedWell(next) || rig.copier->stats().failed_chunks > 0);
    EXPECT_TRUE(rig.cuda.RunUntilIdle());
    rig.cuda.ClearFailures();
    rig.ExpectClean();
    if (::testing::Test::HasFailure()) {
      ADD_FAILURE() << "call " << nth;
      return;
    }
  }
  EXPECT_GT(failed, 0u);
}

TEST(CudaCopierFaultsTest, SeveralCallsRefuse) {
  TestRng rng(TestSeed() + 1);
  for (int round = 0; round < (kSanitized ? 12 : 60); ++round) {
    CopierRig rig(rng.Next(), Mixed(&rng));
    const char* names[] = {"CopyBatch",   "CopyKernel", "RecordEvent", "WaitEvent",
                           "IsCapturing", "QueryEvent", "ElapsedNs",   "SynchronizeStream"};
    for (int i = 0; i < 6; ++i) {
      rig.cuda.FailCall(names[rng.Below(std::size(names))], 1 + rng.Below(20), Error::kOther);
    }
    const Scene scene = Play(&rig, &rng);
    rig.Drain();
    Check(&rig, scene);
    EXPECT_FALSE(rig.copier->stats().lost);
    rig.cuda.ClearFailures();
    rig.ExpectClean();
    if (::testing::Test::HasFailure()) return;
  }
}

// A batch is refused half way and the event behind it as well: the end waits for the stream.
TEST(CudaCopierFaultsTest, WithoutAnEventTheStreamIsWaitedFor) {
  CopierRig rig(TestSeed(), {});
  rig.FillShard(1, 1);
  rig.copier->SetKernelBelow(kLoad, 0);
  rig.cuda.FailCall("CopyBatch", 1, Error::kOther);
  rig.cuda.FailCall("RecordEvent", 2, Error::kOther);  // after that of the start
  const ChunkTicket load = rig.Start(kLoad, {{.block = 1, .shard = 1}});
  EXPECT_FALSE(rig.copier->HoldCompute(std::vector{load}));
  const uint64_t before = rig.cuda.calls("SynchronizeStream");
  rig.Collect();
  EXPECT_EQ(rig.cuda.calls("SynchronizeStream"), before + 1);
  EXPECT_TRUE(rig.Ended(load));
  EXPECT_FALSE(rig.EndedWell(load));
  EXPECT_TRUE(rig.cuda.Idle());
  rig.ExpectClean();
}

TEST(CudaCopierFaultsTest, ADeviceThatNeverSaysIsLost) {
  CopierRig rig(TestSeed(), {});
  const ChunkTicket load = rig.Start(kLoad, {{.block = 1, .shard = 1}});
  for (uint64_t i = 1; i <= 8; ++i) rig.cuda.FailCall("QueryEvent", i, Error::kOther);
  for (int i = 0; i < 8; ++i) {
    EXPECT_FALSE(rig.Ended(load));
    rig.Collect();
  }
  EXPECT_TRUE(rig.Ended(load));
  EXPECT_TRUE(rig.copier->stats().lost);
}

TEST(CudaCopierFaultsTest, LostDeviceIsAskedNothingAnyMore) {
  TestRng rng(TestSeed() + 2);
  for (int round = 0; round < (kSanitized ? 12 : 60); ++round) {
    CopierRig rig(rng.Next(), Mixed(&rng));
    rig.cuda.FailCall("", 1 + rng.Below(150), rng.OneIn(2) ? Error::kSticky : Error::kUnloading);
    const Scene scene = Play(&rig, &rng);
    rig.Drain();
    if (!rig.copier->stats().lost) continue;  // the call came never
    const uint64_t calls = rig.cuda.calls("");
    EXPECT_EQ(rig.copier->Mark(), kNoMark);
    const ChunkTicket after = rig.Start(kLoad, {{.block = 1, .shard = 1}});
    const ChunkTicket layer = rig.Start(kLoad, {{.block = 1, .shard = 1}}, 1, Lane::kLayer);
    (void)rig.copier->HoldCompute(std::vector{after, layer});
    rig.copier->SetComputeStream(reinterpret_cast<uintptr_t>(rig.cuda.EngineStream()));
    EXPECT_EQ(rig.copier->CollectAfter(), 0u);
    rig.Collect();
    EXPECT_TRUE(rig.Ended(after) && rig.Ended(layer));
    EXPECT_FALSE(rig.EndedWell(after) || rig.EndedWell(layer));
    rig.copier.reset();
    EXPECT_EQ(rig.cuda.calls(""), calls) << "a lost device was asked again";
    rig.pinned->Abandon();
    rig.pinned.reset();
    EXPECT_EQ(rig.cuda.calls(""), calls);
    EXPECT_EQ(rig.cuda.FirstViolation(), "");
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(CudaCopierFaultsTest, DeviceThatRefusesWhatIsMadeOnce) {
  FakeCuda whole(1);
  KvLayout layout;
  std::vector<std::byte> engine(64);
  layout.groups.push_back({.num_blocks = 1, .tokens_per_block = 1});
  layout.groups[0].layers.push_back({.base = reinterpret_cast<uintptr_t>(engine.data()),
                                     .block_stride_bytes = 64,
                                     .fragment_bytes = 64});
  const internal::ShardMap map(layout);
  for (const char* call :
       {"UseDevice", "GetDeviceInfo", "CreateStream", "CreateEvent", "AllocateHost"}) {
    for (const uint64_t nth : {1u, 2u, 70u}) {
      FakeCuda cuda(TestSeed());
      PinnedSegments pinned({}, &cuda);
      while (cuda.calls("UseDevice") == 0) std::this_thread::yield();  // its thread's
      cuda.FailCall(call, nth, Error::kNoMemory);
      auto copier = CudaCopier::Create({}, &map, &cuda, &pinned);
      EXPECT_EQ(copier.ok(), std::string(call) == "CreateEvent"    ? false
                             : std::string(call) == "CreateStream" ? nth > 9
                             : std::string(call) == "AllocateHost" ? nth > 2
                                                                   : nth > 1)
          << call << " " << nth;
      if (!copier.ok()) {
        EXPECT_EQ(copier.status().code(), absl::StatusCode::kInternal);
        EXPECT_EQ(cuda.open_handles(), 0u);
      }
      EXPECT_EQ(cuda.FirstViolation(), "");
    }
  }
}

}  // namespace
}  // namespace flexkv::cuda
