#include "flexkv/transfer/cuda/cuda_copier.h"

#include <gtest/gtest.h>

#include <atomic>
#include <memory>
#include <numeric>
#include <thread>
#include <vector>

#include "tests/support/sanitized.h"
#include "tests/support/test_seed.h"
#include "tests/transfer/cuda/copier_rig.h"

namespace flexkv::cuda {
namespace {

constexpr Route kLoad = Route::kCpuToDevice;
constexpr Route kStore = Route::kDeviceToCpu;
using Engine = CopyOptions::Engine;
using Gate = std::shared_ptr<std::atomic<bool>>;

Gate Shut() { return std::make_shared<std::atomic<bool>>(false); }

RigOptions RandomOptions(TestRng* rng) {
  RigOptions options;
  options.layers = static_cast<uint32_t>(1 + rng->Below(5));
  options.loops = static_cast<uint32_t>(1 + rng->Below(6));
  options.fragment_bytes = static_cast<uint32_t>(1 + rng->Below(300));
  options.piece_bytes = 200 + rng->Below(3000);
  options.staging_bytes = 1 + rng->Below(6000);
  options.kernels_read_host = !rng->OneIn(5);
  if (rng->OneIn(2)) options.registered = rng->Below(20000);
  for (Engine& engine : options.copy.engine) engine = static_cast<Engine>(rng->Below(3));
  options.copy.batch_copies = static_cast<uint32_t>(1 + rng->Below(9));
  options.copy.above_compute = rng->OneIn(2);
  return options;
}

// Shards up to blocks, those blocks down to other shards; chunks of any cut, in any order.
TEST(CudaCopierTest, BytesGoUpAndDownAgain) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 25; ++round) {
    const RigOptions options = RandomOptions(&rng);
    CopierRig rig(rng.Next(), options);
    rig.copier->SetKernelBelow(kLoad, static_cast<uint32_t>(rng.Below(600)));
    rig.copier->SetKernelBelow(kStore, static_cast<uint32_t>(rng.Below(600)));
    for (const Route route : {kLoad, kStore}) {
      for (uint32_t i = 0; i < 8; ++i) {
        if (route == kLoad) rig.FillShard(i, 100 + i);
      }
      uint32_t at = 0;
      while (at < 8) {
        std::vector<CopierRig::Part> parts;
        const uint32_t end = at + 1 + static_cast<uint32_t>(rng.Below(8 - at));
        const uint32_t cut = static_cast<uint32_t>(rng.Below(options.layers + 1));
        for (uint32_t i = at; i < end; ++i) {
          const CopierRig::Part part{.block = 15 - i, .shard = route == kLoad ? i : 8 + i};
          parts.push_back(part);
          if (i + 1 < end || cut == 0 || cut == options.layers) continue;
          parts.back().end_layer = cut;
          rig.Start(route, parts);
          parts = {part};
          parts.back().first_layer = cut;
        }
        rig.Start(route, parts);
        at = end;
      }
      rig.Drain();
    }
    for (uint32_t i = 0; i < 8; ++i) {
      ASSERT_TRUE(rig.BlockIs(15 - i, 100 + i)) << "block " << 15 - i;
      ASSERT_TRUE(rig.ShardIs(8 + i, 100 + i)) << "shard " << 8 + i;
    }
    for (const auto& [ticket, end] : rig.ends) ASSERT_TRUE(end.ok);
    ASSERT_EQ(rig.copier->stats().failed_chunks, 0u);
    rig.ExpectClean();
    if (::testing::Test::HasFailure()) return;
  }
}

TEST(CudaCopierTest, StoreWaitsForItsMark) {
  CopierRig rig(TestSeed(), {});
  const Gate gate = Shut();
  rig.cuda.Launch(
      rig.stream, [&] { rig.FillBlock(3, 7); }, {}, gate);
  const ComputeMark mark = rig.copier->Mark();
  const ChunkTicket store = rig.Start(kStore, {{.block = 3, .shard = 5}}, mark);
  while (rig.cuda.Step()) {
  }
  rig.Collect();
  EXPECT_FALSE(rig.Ended(store));
  EXPECT_GT(rig.copier->CollectAfter(), 0u);
  EXPECT_LE(rig.copier->CollectAfter(), 500 * kNsPerUs);
  gate->store(true);
  rig.Drain();
  EXPECT_TRUE(rig.EndedWell(store));
  EXPECT_TRUE(rig.ShardIs(5, 7));
  EXPECT_EQ(rig.copier->stats().failed_chunks, 0u);
  rig.ExpectClean();
}

// A mark whose event has been used again, several times, still is waited for; and what was
// enqueued behind the last one is not.
TEST(CudaCopierTest, OldMarksAreWaitedForThroughNewerOnes) {
  CopierRig rig(TestSeed(), {});
  const Gate first = Shut(), last = Shut();
  rig.cuda.Launch(
      rig.stream, [&] { rig.FillBlock(3, 7); }, {}, first);
  const ComputeMark mark = rig.copier->Mark();
  for (int i = 0; i < 200; ++i) EXPECT_EQ(rig.copier->Mark(), mark + 1 + static_cast<uint64_t>(i));
  rig.cuda.Launch(
      rig.stream, [&] { rig.FillBlock(3, 8); }, {}, last);
  const ChunkTicket store = rig.Start(kStore, {{.block = 3, .shard = 5}}, mark);
  while (rig.cuda.Step()) {
  }
  rig.Collect();
  EXPECT_FALSE(rig.Ended(store));
  first->store(true);
  rig.Drain();
  EXPECT_TRUE(rig.ShardIs(5, 7));
  last->store(true);
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  rig.ExpectClean();
}

TEST(CudaCopierTest, HeldComputeSeesWhatWasLoaded) {
  TestRng rng(TestSeed());
  for (int round = 0; round < (kSanitized ? 6 : 30); ++round) {
    RigOptions options;
    options.copy.engine[1] = static_cast<Engine>(rng.Below(3));
    CopierRig rig(rng.Next(), options);
    rig.copier->SetKernelBelow(kLoad, 100);
    std::vector<ChunkTicket> tickets;
    for (uint32_t i = 0; i < 4; ++i) {
      rig.FillShard(i, i);
      const Lane lane = rng.OneIn(2) ? Lane::kLayer : Lane::kBackground;
      tickets.push_back(rig.Start(kLoad, {{.block = i, .shard = i}}, rig.copier->Mark(), lane));
      if (rng.OneIn(3)) rig.Collect();
      if (rng.OneIn(3)) rig.cuda.RunUntilIdle();
    }
    ASSERT_TRUE(rig.copier->HoldCompute(tickets));
    int good = 0;
    rig.cuda.Launch(rig.stream, [&] {
      for (uint32_t i = 0; i < 4; ++i) good += rig.BlockIs(i, i);
    });
    rig.Drain();
    EXPECT_TRUE(rig.cuda.RunUntilIdle());
    ASSERT_EQ(good, 4);
    EXPECT_TRUE(rig.copier->HoldCompute(tickets));  // all ended: nothing to wait for
    rig.ExpectClean();
  }
}

TEST(CudaCopierTest, BlockIsNotWrittenBeforeItsStoreHasReadIt) {
  CopierRig rig(TestSeed(), {});
  for (uint32_t i = 0; i < 4; ++i) rig.FillBlock(i, i);
  std::vector<ChunkTicket> tickets;
  for (uint32_t i = 0; i < 4; ++i) tickets.push_back(rig.Start(kStore, {{.block = i, .shard = i}}));
  ASSERT_TRUE(rig.copier->HoldCompute(tickets));
  rig.cuda.Launch(rig.stream, [&] {
    for (uint32_t i = 0; i < 4; ++i) rig.FillBlock(i, 50);
  });
  rig.Drain();
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  for (uint32_t i = 0; i < 4; ++i) EXPECT_TRUE(rig.ShardIs(i, i));
  rig.ExpectClean();
}

TEST(CudaCopierTest, NothingIsDoneToAStreamThatCaptures) {
  CopierRig rig(TestSeed(), {});
  const ChunkTicket before = rig.Start(kStore, {{.block = 0, .shard = 0}}, rig.copier->Mark());
  for (const auto mode : {FakeCuda::CaptureMode::kGlobal, FakeCuda::CaptureMode::kThreadLocal,
                          FakeCuda::CaptureMode::kRelaxed}) {
    rig.cuda.BeginCapture(rig.stream, mode);
    const ComputeMark mark = rig.copier->Mark();
    EXPECT_EQ(mark, kNoMark);
    EXPECT_FALSE(rig.copier->HoldCompute(std::vector{before}));
    const ChunkTicket lost = rig.Start(kStore, {{.block = 1, .shard = 1}}, mark);
    const ChunkTicket free = rig.Start(kLoad, {{.block = 2, .shard = 2}});
    EXPECT_TRUE(rig.cuda.EndCapture(rig.stream));
    rig.Collect();
    EXPECT_TRUE(rig.Ended(lost));
    EXPECT_FALSE(rig.EndedWell(lost));
    EXPECT_NE(rig.copier->Mark(), kNoMark);
    EXPECT_TRUE(rig.copier->HoldCompute(std::vector{before, lost, free}));
  }
  rig.Drain();
  EXPECT_EQ(rig.copier->stats().failed_chunks, 3u);
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  rig.ExpectClean();
}

TEST(CudaCopierTest, NewComputeStreamFollowsTheOldOne) {
  CopierRig rig(TestSeed(), {});
  const Gate gate = Shut();
  rig.cuda.Launch(
      rig.stream, [&] { rig.FillBlock(3, 7); }, {}, gate);
  const Stream other = rig.cuda.EngineStream();
  rig.copier->SetComputeStream(reinterpret_cast<uintptr_t>(other));
  const ChunkTicket store = rig.Start(kStore, {{.block = 3, .shard = 5}}, rig.copier->Mark());
  while (rig.cuda.Step()) {
  }
  rig.Collect();
  EXPECT_FALSE(rig.Ended(store));
  // The one held now is the new one.
  ASSERT_TRUE(rig.copier->HoldCompute(std::vector{store}));
  bool stored = false;
  rig.cuda.Launch(other, [&] { stored = rig.ShardIs(5, 7); });
  gate->store(true);
  rig.Drain();
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  EXPECT_TRUE(stored);
  rig.ExpectClean();
}

TEST(CudaCopierTest, WhileTheOldStreamCapturesTheNewOneHasNoMarks) {
  CopierRig rig(TestSeed(), {});
  const Stream other = rig.cuda.EngineStream(), third = rig.cuda.EngineStream();
  rig.cuda.BeginCapture(rig.stream, FakeCuda::CaptureMode::kRelaxed);
  rig.copier->SetComputeStream(reinterpret_cast<uintptr_t>(other));
  EXPECT_EQ(rig.copier->Mark(), kNoMark);
  rig.copier->SetComputeStream(reinterpret_cast<uintptr_t>(third));
  EXPECT_EQ(rig.copier->Mark(), kNoMark);
  EXPECT_TRUE(rig.cuda.EndCapture(rig.stream));
  const Gate gate = Shut();
  rig.cuda.Launch(
      rig.stream, [&] { rig.FillBlock(3, 7); }, {}, gate);
  const ComputeMark mark = rig.copier->Mark();
  EXPECT_NE(mark, kNoMark);
  const ChunkTicket store = rig.Start(kStore, {{.block = 3, .shard = 5}}, mark);
  while (rig.cuda.Step()) {
  }
  rig.Collect();
  EXPECT_FALSE(rig.Ended(store));
  gate->store(true);
  rig.Drain();
  EXPECT_TRUE(rig.ShardIs(5, 7));
  rig.ExpectClean();
}

TEST(CudaCopierTest, WithoutAComputeStreamThereAreNoMarks) {
  FakeCuda cuda(TestSeed());
  KvLayout layout;
  std::vector<std::byte> engine(64), arena(64);
  layout.groups.push_back({.num_blocks = 1, .tokens_per_block = 1});
  layout.groups[0].layers.push_back({.base = reinterpret_cast<uintptr_t>(engine.data()),
                                     .block_stride_bytes = 64,
                                     .fragment_bytes = 64});
  const internal::ShardMap map(layout);
  PinnedSegments pinned({}, &cuda);
  auto copier = CudaCopier::Create({}, &map, &cuda, &pinned);
  ASSERT_TRUE(copier.ok());
  EXPECT_EQ((*copier)->Mark(), kNoMark);
  EXPECT_TRUE((*copier)->HoldCompute({}));
}

// --- memory that is not registered ---

TEST(CudaCopierTest, UnregisteredShardsGoThroughBuffersInRoundsAndInTurn) {
  RigOptions options;
  options.registered = 0;
  options.staging_bytes = 800;  // two layers of 384 bytes; a block has three
  CopierRig rig(TestSeed(), options);
  std::vector<ChunkTicket> tickets;
  for (uint32_t i = 0; i < 5; ++i) {
    rig.FillShard(i, 20 + i);
    rig.FillBlock(8 + i, 40 + i);
    tickets.push_back(rig.Start(kLoad, {{.block = i, .shard = i}}));
    tickets.push_back(rig.Start(kStore, {{.block = 8 + i, .shard = 8 + i}}));
  }
  EXPECT_FALSE(rig.copier->HoldCompute(tickets));  // most of it is not on the device yet
  rig.Drain();
  for (uint32_t i = 0; i < 5; ++i) {
    EXPECT_TRUE(rig.BlockIs(i, 20 + i));
    EXPECT_TRUE(rig.ShardIs(8 + i, 40 + i));
  }
  EXPECT_EQ(rig.copier->stats().staged_bytes, 10 * rig.map->shard_bytes);
  EXPECT_TRUE(rig.copier->HoldCompute(tickets));
  rig.ExpectClean();
}

// The engine may write the block again as soon as the copy to the buffer is done.
TEST(CudaCopierTest, StagedStoreHoldsComputeOnlyForTheDevicesPart) {
  RigOptions options;
  options.registered = 0;
  CopierRig rig(TestSeed(), options);
  rig.FillBlock(1, 11);
  const ChunkTicket store = rig.Start(kStore, {{.block = 1, .shard = 1}});
  ASSERT_TRUE(rig.copier->HoldCompute(std::vector{store}));
  rig.cuda.Launch(rig.stream, [&] { rig.FillBlock(1, 99); });
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  EXPECT_TRUE(rig.BlockIs(1, 99));
  EXPECT_FALSE(rig.ShardIs(1, 11));
  rig.Collect();
  EXPECT_TRUE(rig.EndedWell(store));
  EXPECT_TRUE(rig.ShardIs(1, 11));
  rig.ExpectClean();
}

TEST(CudaCopierTest, LayersOfUnregisteredShardsAreStartedByTheirThread) {
  RigOptions options;
  options.registered = 0;
  CopierRig rig(TestSeed(), options);
  rig.FillShard(2, 5);
  std::thread engine([&] {
    for (uint32_t layer = 0; layer < 3; ++layer) {
      const ChunkTicket ticket =
          rig.Start(kLoad, {{.block = 4, .shard = 2, .first_layer = layer, .end_layer = layer + 1}},
                    0, Lane::kLayer);
      // Two buffers: the third has to wait for Collect.
      EXPECT_EQ(rig.copier->HoldCompute(std::vector{ticket}), layer < 2);
    }
  });
  engine.join();
  rig.Drain();
  EXPECT_TRUE(rig.BlockIs(4, 5));
  rig.ExpectClean();
}

// An engine's thread marks, loads layers and holds, while the agent's moves other blocks.
TEST(CudaCopierTest, TwoLanesAtOnce) {
  RigOptions options;
  options.registered = 9000;  // some shards of both lanes are not
  options.copy.engine[1] = Engine::kKernel;
  CopierRig rig(TestSeed(), options);
  for (uint32_t i = 0; i < 16; ++i) rig.FillShard(i, i);
  rig.cuda.StartThread();
  std::atomic<bool> stop{false};
  std::atomic<int> good{0}, held{0};
  std::thread engine([&] {
    for (uint32_t round = 0; round < 25; ++round) {
      const uint32_t block = 8 + round % 8;
      rig.cuda.Launch(rig.stream, [&rig, block] { rig.FillBlock(block, 99); });
      const ComputeMark mark = rig.copier->Mark();
      std::vector<ChunkTicket> tickets;
      for (uint32_t layer = 0; layer < 3; ++layer) {
        const CopierRig::Part part{
            .block = block, .shard = block, .first_layer = layer, .end_layer = layer + 1};
        tickets.push_back(rig.Start(kLoad, {part}, mark, Lane::kLayer));
      }
      while (!rig.copier->HoldCompute(tickets)) std::this_thread::yield();
      ++held;
      rig.cuda.Launch(rig.stream, [&rig, &good, block] { good += rig.BlockIs(block, block); });
    }
    stop = true;
  });
  for (uint32_t round = 0; !stop; ++round) {
    const uint32_t block = round % 8;
    if (rig.last_ticket < rig.ends.size() + 12) {
      rig.Start(block < 4 ? kStore : kLoad, {{.block = block, .shard = block}});
    }
    rig.Collect();
    std::this_thread::yield();
  }
  engine.join();
  while (rig.ends.size() < rig.last_ticket) rig.Collect();
  while (!rig.cuda.Idle()) std::this_thread::yield();
  rig.cuda.StopThread();
  EXPECT_EQ(good, held);
  EXPECT_EQ(rig.copier->stats().failed_chunks, 0u);
  rig.ExpectClean();
}

// --- routes ---

TEST(CudaCopierTest, SizeDecidesTheRouteAndOptionsOverrideIt) {
  RigOptions options;
  options.loops = 1;
  CopierRig rig(TestSeed(), options);
  const auto kernels_used = [&](Route route) {
    const uint64_t before = rig.copier->stats().kernels;
    rig.Start(route, {{.block = 1, .shard = 1}, {.block = 3, .shard = 3}});
    rig.Drain();
    return rig.copier->stats().kernels - before;
  };
  rig.copier->SetKernelBelow(kLoad, 97);
  rig.copier->SetKernelBelow(kStore, 96);
  EXPECT_EQ(kernels_used(kLoad), 1u);
  EXPECT_EQ(kernels_used(kStore), 0u);
  CopyOptions copy;
  copy.engine[0] = Engine::kKernel;
  copy.engine[1] = Engine::kCopyEngine;
  copy.batch_copies = 0;  // as good as one
  rig.copier->SetOptions(copy);
  EXPECT_EQ(kernels_used(kLoad), 0u);
  EXPECT_EQ(kernels_used(kStore), 1u);
  EXPECT_EQ(rig.copier->MaxBytesInFlight(kLoad), copy.bytes_in_flight[1]);
  rig.ExpectClean();
}

TEST(CudaCopierTest, BatchesAreNoLargerThanAsked) {
  RigOptions options;
  options.copy.batch_copies = 5;
  options.copy.engine[1] = Engine::kCopyEngine;
  options.piece_bytes = 1 << 20;
  CopierRig rig(TestSeed(), options);
  rig.Start(kLoad, {{.block = 1, .shard = 1}, {.block = 3, .shard = 3}});
  rig.Drain();
  EXPECT_EQ(rig.copier->stats().copies, 24u);  // 2 blocks, 3 layers, 4 fragments
  EXPECT_EQ(rig.copier->stats().batches, 5u);
  rig.ExpectClean();
}

TEST(CudaCopierTest, ManyFragmentsTakeSeveralLists) {
  RigOptions options;
  options.layers = 4;
  options.loops = 600;
  options.fragment_bytes = 8;
  options.copy.engine[0] = options.copy.engine[1] = Engine::kKernel;
  options.piece_bytes = 1 << 20;
  CopierRig rig(TestSeed(), options);
  std::vector<CopierRig::Part> up, down;
  for (uint32_t i = 0; i < 8; ++i) {
    rig.FillShard(i, i);
    up.push_back({.block = i, .shard = i});
    down.push_back({.block = i, .shard = 8 + i});
  }
  rig.Start(kLoad, up);  // 19200 items
  rig.Drain();
  EXPECT_EQ(rig.copier->stats().kernels, 5u);
  rig.Start(kStore, down);
  rig.Drain();
  for (uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(rig.ShardIs(8 + i, i));
  rig.ExpectClean();
}

// More items than lists: chunks wait for their turn, layers take the copy engine instead.
TEST(CudaCopierTest, ChunksWaitForListsButLayersDoNot) {
  RigOptions options;
  options.layers = 1;
  options.loops = 4097;  // one more than a list takes
  options.fragment_bytes = 2;
  options.copy.engine[0] = options.copy.engine[1] = Engine::kKernel;
  options.piece_bytes = 1 << 20;
  CopierRig rig(TestSeed(), options);
  for (uint32_t i = 0; i < 16; ++i) rig.FillShard(i, i);
  for (uint32_t i = 0; i < 34; ++i) rig.Start(kLoad, {{.block = i % 16, .shard = i % 16}});
  const ChunkTicket layer = rig.Start(kLoad, {{.block = 0, .shard = 0}}, 0, Lane::kLayer);
  EXPECT_TRUE(rig.copier->HoldCompute(std::vector{layer}));
  rig.Drain();
  EXPECT_EQ(rig.copier->stats().failed_chunks, 0u);
  for (uint32_t i = 0; i < 16; ++i) EXPECT_TRUE(rig.BlockIs(i, i));
  rig.ExpectClean();
}

TEST(CudaCopierTest, DeviceWithoutKernelsIsFoundOut) {
  RigOptions options;
  options.copy.engine[1] = Engine::kKernel;
  CopierRig rig(TestSeed(), options);
  rig.cuda.FailCall("CopyKernel", 1, Error::kNotSupported);
  for (uint32_t i = 0; i < 3; ++i) {
    rig.FillShard(i, i);
    rig.Start(kLoad, {{.block = i, .shard = i}});
  }
  rig.Drain();
  EXPECT_EQ(rig.cuda.calls("CopyKernel"), 1u);
  EXPECT_EQ(rig.copier->stats().failed_chunks, 0u);
  for (uint32_t i = 0; i < 3; ++i) EXPECT_TRUE(rig.BlockIs(i, i));
  rig.ExpectClean();
}

// --- supplies and sleep ---

TEST(CudaCopierTest, ThousandsOfChunksUnderWay) {
  CopierRig rig(TestSeed(), {});
  const Gate gate = Shut();
  rig.cuda.Launch(
      rig.stream, [] {}, {}, gate);
  const ComputeMark mark = rig.copier->Mark();
  for (uint32_t i = 0; i < 1000; ++i) {
    rig.FillShard(i % 16, i % 16);
    rig.Start(i % 3 == 0 ? kStore : kLoad, {{.block = i % 16, .shard = i % 16}}, mark);
  }
  // Events are left for layers.
  const ChunkTicket layer = rig.Start(kLoad, {{.block = 0, .shard = 0}}, 0, Lane::kLayer);
  EXPECT_TRUE(rig.copier->HoldCompute(std::vector{layer}));
  rig.Collect();
  gate->store(true);
  rig.Drain();
  EXPECT_EQ(rig.copier->stats().failed_chunks, 0u);
  EXPECT_EQ(rig.copier->CollectAfter(), 0u);
  rig.ExpectClean();
}

TEST(CudaCopierTest, EndsAreAskedForWhenTheyAreDue) {
  CopierRig rig(TestSeed(), {});
  const ChunkTicket failed = rig.Start(kLoad, {{.block = 1, .shard = 1}}, kNoMark);
  EXPECT_EQ(rig.copier->CollectAfter(), 0u);
  rig.Collect();
  EXPECT_TRUE(rig.Ended(failed));
  rig.Start(kLoad, {{.block = 1, .shard = 1}});
  EXPECT_LE(rig.copier->CollectAfter(), 20 * kNsPerUs);
  std::this_thread::sleep_for(std::chrono::microseconds(50));
  EXPECT_EQ(rig.copier->CollectAfter(), 0u);
  rig.Drain();
  rig.ExpectClean();
}

TEST(CudaCopierTest, DestructorWaitsForWhatIsUnderWay) {
  CopierRig rig(TestSeed(), {});
  rig.cuda.StartThread();
  for (uint32_t i = 0; i < 16; ++i) rig.Start(kLoad, {{.block = i, .shard = i}});
  rig.ExpectClean();
  rig.cuda.StopThread();
}

// The compute stream never gets there: the destructor gives up, and gives nothing back that the
// device may still use.
TEST(CudaCopierTest, DestructorDoesNotWaitForEver) {
  CopierRig rig(TestSeed(), {});
  const Gate gate = Shut();
  rig.cuda.Launch(
      rig.stream, [] {}, {}, gate);
  rig.Start(kStore, {{.block = 1, .shard = 1}}, rig.copier->Mark());
  rig.copier.reset();
  EXPECT_GT(rig.cuda.open_handles(), 0u);
  gate->store(true);
  EXPECT_TRUE(rig.cuda.RunUntilIdle());
  EXPECT_EQ(rig.cuda.FirstViolation(), "");
}

}  // namespace
}  // namespace flexkv::cuda
