// Transfers of a disk: bytes, queue, errors, wakes, registered memory, fault points.
#include <gmock/gmock.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <map>
#include <set>
#include <thread>

#include "tests/storage/disk_fixture.h"
#include "tests/support/content_oracle.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

TEST_P(DiskTest, BytesComeBack) {
  const FileId file = MustCreate("a", 1 << 20);
  const BlockHash hash = HashFromNumber(1);
  Buffer out(1 << 20), in(1 << 20);
  FillContent(hash, 0, out.span());
  EXPECT_EQ(Write(file, 0, {out.slice(0, 1 << 20)}), 1 << 20);
  EXPECT_EQ(Sync(file), 0);
  EXPECT_EQ(Read(file, 0, {in.slice(0, 1 << 20)}), 1 << 20);
  EXPECT_TRUE(ContentMatches(hash, 0, in.span()));
  // The same after everything was closed and opened again.
  Reopen();
  const absl::StatusOr<FileId> again = disk_->Open("a");
  ASSERT_TRUE(again.ok()) << again.status();
  Buffer piece(64 << 10);
  EXPECT_EQ(Read(*again, 128 << 10, {piece.slice(0, 64 << 10)}), 64 << 10);
  EXPECT_TRUE(ContentMatches(hash, 0, piece.span(), 128 << 10));
}

TEST_P(DiskTest, SlicesAreCopiedAndGoInOrder) {
  const FileId file = MustCreate("a", 256 << 10);
  const BlockHash hash = HashFromNumber(2);
  Buffer out(256 << 10), in(256 << 10);
  FillContent(hash, 3, out.span());
  {
    std::vector<iovec> slices;
    for (size_t at = 0; at < 256 << 10; at += 2 * kPage) slices.push_back(out.slice(at, 2 * kPage));
    ASSERT_TRUE(disk_->Submit({.tag = 7, .kind = IoKind::kWrite, .file = file, .slices = slices}));
    std::fill(slices.begin(), slices.end(), iovec{nullptr, 0});  // the caller's list may die
  }
  const std::vector<IoResult> results = Collect(1);
  ASSERT_EQ(results.size(), 1u);
  EXPECT_EQ(results[0].tag, 7u);
  EXPECT_EQ(results[0].result, 256 << 10);
  // Read in pieces of other sizes, in another order of memory.
  const std::vector<iovec> slices = {in.slice(128 << 10, 128 << 10), in.slice(0, 64 << 10),
                                     in.slice(64 << 10, 64 << 10)};
  EXPECT_EQ(Read(file, 0, slices), 256 << 10);
  EXPECT_TRUE(ContentMatches(hash, 3, in.span().subspan(128 << 10)));
  EXPECT_TRUE(ContentMatches(hash, 3, in.span().first(128 << 10), 128 << 10));
}

// A random workload at full depth against a map of what each block should hold.
TEST_P(DiskTest, ManyInFlight) {
  constexpr uint32_t kBlocks = 64, kBytes = 16 << 10, kOps = 2000;
  TestRng rng(TestSeed());
  const FileId files[2] = {MustCreate("a", kBlocks * kBytes), MustCreate("b", kBlocks * kBytes)};
  struct Op {
    bool write = false;
    uint32_t place = 0;
    uint64_t content = 0;
  };
  std::vector<uint64_t> held(2 * kBlocks, 0);  // number of the content, 0 = never written
  std::map<uint64_t, Op> running;
  std::set<uint32_t> busy;  // no two ops on one place
  Buffer memory(64 * kBytes);
  std::vector<uint32_t> free_buffers(64);
  for (uint32_t i = 0; i < 64; ++i) free_buffers[i] = i;
  std::map<uint64_t, uint32_t> buffer_of;
  std::vector<IoResult> results;
  uint64_t tag = 0, done = 0;
  while (done < kOps) {
    while (tag < kOps && !free_buffers.empty()) {
      const auto place = static_cast<uint32_t>(rng.Below(2 * kBlocks));
      if (!busy.insert(place).second) break;
      const Op op = {.write = held[place] == 0 || rng.OneIn(2), .place = place, .content = tag + 1};
      const uint32_t buffer = free_buffers.back();
      const iovec slice = memory.slice(size_t{buffer} * kBytes, kBytes);
      if (op.write) {
        FillContent(HashFromNumber(op.content), place,
                    {static_cast<std::byte*>(slice.iov_base), kBytes});
      }
      ASSERT_TRUE(disk_->Submit({.tag = tag,
                                 .kind = op.write ? IoKind::kWrite : IoKind::kRead,
                                 .file = files[place / kBlocks],
                                 .offset = uint64_t{place % kBlocks} * kBytes,
                                 .slices = {&slice, 1}}));
      free_buffers.pop_back();
      buffer_of[tag] = buffer;
      running[tag++] = op;
    }
    results.clear();
    disk_->Poll(kNsPerSecond, &results);
    for (const IoResult& result : results) {
      ASSERT_EQ(running.count(result.tag), 1u) << "a result twice, or of nobody";
      const Op op = running[result.tag];
      ASSERT_EQ(result.result, kBytes);
      const std::span<std::byte> bytes =
          memory.span().subspan(size_t{buffer_of[result.tag]} * kBytes, kBytes);
      if (op.write) {
        held[op.place] = op.content;
      } else {
        EXPECT_TRUE(ContentMatches(HashFromNumber(held[op.place]), op.place, bytes));
      }
      free_buffers.push_back(buffer_of[result.tag]);
      running.erase(result.tag);
      busy.erase(op.place);
      ++done;
    }
    ASSERT_EQ(disk_->in_flight(), running.size());
  }
  const DiskStats stats = disk_->stats();
  EXPECT_EQ(stats.reads + stats.writes, kOps);
  EXPECT_EQ(stats.read_bytes + stats.written_bytes, uint64_t{kOps} * kBytes);
  EXPECT_EQ(stats.errors, 0u);
  EXPECT_EQ(stats.stray_completions, 0u);
}

TEST_P(DiskTest, FullQueueRefuses) {
  Reopen(/*depth=*/4);
  const FileId file = MustCreate("a", 1 << 20);
  Buffer memory(5 * kPage);
  const auto submit = [&](uint64_t tag) {
    const iovec slice = memory.slice(tag * kPage, kPage);
    return disk_->Submit(
        {.tag = tag, .kind = IoKind::kRead, .file = file, .offset = 0, .slices = {&slice, 1}});
  };
  for (uint64_t tag = 0; tag < 4; ++tag) EXPECT_TRUE(submit(tag));
  EXPECT_FALSE(submit(4));
  EXPECT_EQ(disk_->in_flight(), 4u);
  // A refused request that needs no device takes its place in the queue all the same.
  EXPECT_FALSE(disk_->Submit({.tag = 9, .kind = IoKind::kSync, .file = 12345}));
  Collect(4);
  EXPECT_EQ(disk_->in_flight(), 0u);
  EXPECT_TRUE(submit(4));
  Collect(1);
}

TEST_P(DiskTest, BadRequestsEndInErrors) {
  const FileId file = MustCreate("a", 64 << 10);
  Buffer memory(64 << 10);
  const uint32_t align = disk_->limits().offset_align;
  const uint32_t memory_align = disk_->limits().memory_align;
  ASSERT_GT(align, 1u);
  EXPECT_EQ(Read(file, 1, {memory.slice(0, align)}), -EINVAL);
  EXPECT_EQ(Read(file, 0, {memory.slice(0, align - 1)}), -EINVAL);
  EXPECT_EQ(Read(file, 0, {memory.slice(0, align), memory.slice(align, align / 2)}), -EINVAL);
  EXPECT_EQ(Read(file, 0, {memory.slice(0, 0)}), -EINVAL);
  EXPECT_EQ(Read(file, 0, {}), -EINVAL);
  EXPECT_EQ(Read(file, 0, std::vector<iovec>(1025, memory.slice(0, align))), -EINVAL);
  EXPECT_EQ(Read(file, 0, {iovec{memory.data(), size_t{1} << 40}}), -EINVAL);
  EXPECT_EQ(Read(file, uint64_t{1} << 63, {memory.slice(0, align)}), -EINVAL);
  if (memory_align > 1) {
    EXPECT_EQ(Write(file, 0, {memory.slice(memory_align / 2, align)}), -EINVAL);
  }
  EXPECT_EQ(Write(file, 64 << 10, {memory.slice(0, align)}), -EINVAL) << "a file does not grow";
  EXPECT_EQ(Write(file, (64 << 10) - align, {memory.slice(0, 2 * align)}), -EINVAL);
  EXPECT_EQ(Read(file + 1, 0, {memory.slice(0, align)}), -EBADF);
  EXPECT_EQ(Sync(0), -EBADF);
  disk_->Close(file);
  EXPECT_EQ(Read(file, 0, {memory.slice(0, align)}), -EBADF);
  const FileId next = MustCreate("b", 64 << 10);
  EXPECT_NE(next, file) << "a stale id must not name a newer file";
  EXPECT_EQ(Read(next, 0, {memory.slice(0, align)}), align);
  EXPECT_EQ(disk_->stats().errors, 13u + (memory_align > 1 ? 1 : 0));
}

TEST_P(DiskTest, ReadBeyondTheEndIsShort) {
  const FileId file = MustCreate("a", 64 << 10);
  Buffer memory(64 << 10);
  EXPECT_EQ(Read(file, 48 << 10, {memory.slice(0, 32 << 10)}), 16 << 10);
  EXPECT_EQ(Read(file, 64 << 10, {memory.slice(0, 32 << 10)}), 0);
  EXPECT_EQ(Read(file, 40 << 10, {memory.slice(0, 16 << 10), memory.slice(16 << 10, 16 << 10)}),
            24 << 10);
}

TEST_P(DiskTest, WakeEndsAWait) {
  std::vector<IoResult> results;
  // Before the wait, many times.
  for (int i = 0; i < 3; ++i) disk_->Wake();
  TimeNs start = SteadyClock().Now();
  disk_->Poll(kLong, &results);
  EXPECT_LT(SteadyClock().Now() - start, kLong / 2);
  // During it, again and again.
  for (int round = 0; round < 50; ++round) {
    std::atomic<bool> told{false};
    std::thread waker([&] {
      if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      told.store(true);
      disk_->Wake();
    });
    start = SteadyClock().Now();
    while (!told.load() && SteadyClock().Now() - start < kLong) disk_->Poll(kLong, &results);
    EXPECT_LT(SteadyClock().Now() - start, kLong / 2);
    waker.join();
  }
  EXPECT_THAT(results, testing::IsEmpty());
  // At most one wake is left; then a wait lasts as long as it was told.
  disk_->Poll(0, &results);
  disk_->Poll(kNsPerMs, &results);
  disk_->Poll(kNsPerMs, &results);
  start = SteadyClock().Now();
  disk_->Poll(30 * kNsPerMs, &results);
  EXPECT_GE(SteadyClock().Now() - start, 25 * kNsPerMs);
}

// Built here, used by a thread of its own, while others wake it; then back.
TEST_P(DiskTest, MovesToAnotherThread) {
  const FileId file = MustCreate("a", 1 << 20);
  Buffer memory(64 << 10);
  EXPECT_EQ(Write(file, 0, {memory.slice(0, 64 << 10)}), 64 << 10);
  std::vector<IoResult> none;
  disk_->Poll(kNsPerMs, &none);  // leaves a wait of this thread behind
  std::atomic<bool> stop{false};
  std::thread owner([&] {
    for (int i = 0; i < 200; ++i) {
      EXPECT_EQ(Read(file, 0, {memory.slice(0, 64 << 10)}), 64 << 10);
    }
    std::vector<IoResult> results;
    while (!stop.load()) disk_->Poll(kLong, &results);
  });
  for (int i = 0; i < 200; ++i) {
    disk_->Wake();
    std::this_thread::sleep_for(std::chrono::microseconds(50));
  }
  const TimeNs start = SteadyClock().Now();
  stop.store(true);
  disk_->Wake();
  owner.join();
  EXPECT_LT(SteadyClock().Now() - start, kLong / 2);
  EXPECT_EQ(Read(file, 0, {memory.slice(0, 64 << 10)}), 64 << 10);
}

TEST_P(DiskTest, RegisteredMemory) {
  const FileId file = MustCreate("a", 1 << 20);
  const BlockHash hash = HashFromNumber(5);
  Buffer inside(1 << 20), outside(1 << 20);
  FillContent(hash, 0, inside.span());
  const bool registered = disk_->RegisterMemory(inside.span());
  if (registered) {
    EXPECT_FALSE(disk_->RegisterMemory(inside.span().subspan(kPage, kPage))) << "overlaps";
  }
  // Within it, and after it was given back, and in memory that never was registered.
  EXPECT_EQ(Write(file, 0, {inside.slice(0, 512 << 10)}), 512 << 10);
  EXPECT_EQ(Write(file, 512 << 10, {inside.slice(512 << 10, 512 << 10)}), 512 << 10);
  EXPECT_EQ(disk_->stats().unregistered, registered ? 0u : 2u);
  EXPECT_EQ(Read(file, 0, {outside.slice(0, 1 << 20)}), 1 << 20);
  EXPECT_TRUE(ContentMatches(hash, 0, outside.span()));
  EXPECT_EQ(disk_->stats().unregistered, registered ? 1u : 3u);
  std::fill(inside.span().begin(), inside.span().end(), std::byte{0});
  EXPECT_EQ(Read(file, 64 << 10, {inside.slice(64 << 10, 128 << 10)}), 128 << 10);
  EXPECT_TRUE(ContentMatches(hash, 0, inside.span().subspan(64 << 10, 128 << 10), 64 << 10));
  EXPECT_EQ(disk_->stats().unregistered, registered ? 1u : 4u);
  disk_->UnregisterMemory(inside.data());
  EXPECT_EQ(Read(file, 0, {inside.slice(0, 1 << 20)}), 1 << 20);
  EXPECT_TRUE(ContentMatches(hash, 0, inside.span()));
  EXPECT_EQ(disk_->stats().unregistered, registered ? 2u : 5u);
  EXPECT_EQ(disk_->RegisterMemory(inside.span()), registered);
  disk_->UnregisterMemory(inside.data());
  disk_->UnregisterMemory(inside.data());  // unknown by now
}

// Transfers still run when the disk dies; the memory is whole again after.
TEST_P(DiskTest, DiesWithTransfersInFlight) {
  const FileId file = MustCreate("a", 16 << 20);
  for (int round = 0; round < 5; ++round) {
    Buffer memory(16 << 20);
    for (uint64_t i = 0; i < 16; ++i) {
      const iovec slice = memory.slice(i << 20, 1 << 20);
      ASSERT_TRUE(disk_->Submit({.tag = i,
                                 .kind = IoKind::kRead,
                                 .file = round == 0 ? file : disk_->Open("a").value(),
                                 .offset = i << 20,
                                 .slices = {&slice, 1}}));
    }
    std::vector<IoResult> results;
    disk_->Poll(0, &results);
    Reopen();
  }
}

TEST_P(DiskTest, Faults) {
  const FileId file = MustCreate("a", 1 << 20);
  const BlockHash hash = HashFromNumber(6);
  Buffer out(64 << 10), in(64 << 10);
  FillContent(hash, 0, out.span());
  EXPECT_EQ(Write(file, 0, {out.slice(0, 64 << 10)}), 64 << 10);

  ASSERT_TRUE(ArmFaults("disk.eio_read,disk.eio_write,disk.sync_error,disk.enospc").ok());
  EXPECT_EQ(Read(file, 0, {in.slice(0, 64 << 10)}), -EIO);
  EXPECT_EQ(Write(file, 0, {in.slice(0, 64 << 10)}), -EIO);
  EXPECT_EQ(Sync(file), -EIO);
  EXPECT_EQ(disk_->Create("b", 8192).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(disk_->List()->size(), 1u);
  EXPECT_EQ(disk_->stats().errors, 3u);

  ASSERT_TRUE(ArmFaults("disk.short_read,disk.short_write").ok());
  std::fill(in.span().begin(), in.span().end(), std::byte{0x77});
  EXPECT_EQ(Read(file, 0, {in.slice(0, 16 << 10), in.slice(16 << 10, 48 << 10)}), 32 << 10);
  EXPECT_TRUE(ContentMatches(hash, 0, in.span().first(32 << 10)));
  EXPECT_EQ(in.data()[32 << 10], std::byte{0x77}) << "the rest must be left alone";
  const uint32_t align = disk_->limits().offset_align;
  EXPECT_EQ(Read(file, 0, {in.slice(0, align)}), 0);
  std::fill(in.span().begin(), in.span().end(), std::byte{0x77});
  EXPECT_EQ(Write(file, 0, {in.slice(0, 64 << 10)}), 32 << 10);

  ASSERT_TRUE(ArmFaults("disk.flip_read").ok());
  EXPECT_EQ(Read(file, 32 << 10, {in.slice(0, 32 << 10)}), 32 << 10);
  EXPECT_FALSE(ContentMatches(hash, 0, in.span().first(32 << 10), 32 << 10));
  ASSERT_TRUE(ArmFaults("").ok());
  EXPECT_EQ(Read(file, 32 << 10, {in.slice(0, 32 << 10)}), 32 << 10);
  EXPECT_TRUE(ContentMatches(hash, 0, in.span().first(32 << 10), 32 << 10));
}

TEST_P(DiskTest, SlowDisk) {
  const FileId file = MustCreate("a", 1 << 20);
  Buffer memory(8192);
  ASSERT_TRUE(ArmFaults("disk.slow").ok());
  const TimeNs start = SteadyClock().Now();
  const iovec slice = memory.slice(0, 8192);
  ASSERT_TRUE(
      disk_->Submit({.tag = 1, .kind = IoKind::kRead, .file = file, .slices = {&slice, 1}}));
  std::vector<IoResult> results;
  disk_->Poll(5 * kNsPerMs, &results);
  EXPECT_THAT(results, testing::IsEmpty());
  EXPECT_EQ(disk_->in_flight(), 1u);
  EXPECT_EQ(Collect(1).size(), 1u);
  EXPECT_GE(SteadyClock().Now() - start, 40 * kNsPerMs);
  EXPECT_LT(SteadyClock().Now() - start, 5 * kNsPerSecond);
  // A wake is heard meanwhile.
  ASSERT_TRUE(
      disk_->Submit({.tag = 2, .kind = IoKind::kRead, .file = file, .slices = {&slice, 1}}));
  disk_->Wake();
  disk_->Poll(kLong, &results);
  Collect(1);
}

// Completions of earlier transfers before each transfer's own: told apart and counted.
TEST_P(DiskTest, StrayCompletionsChangeNothing) {
  const FileId file = MustCreate("a", 1 << 20);
  const BlockHash hash = HashFromNumber(8);
  Buffer out(64 << 10), in(64 << 10);
  FillContent(hash, 0, out.span());
  ASSERT_TRUE(ArmFaults("disk.stray_completion").ok());
  for (int round = 0; round < 20; ++round) {
    EXPECT_EQ(Write(file, 0, {out.slice(0, 64 << 10)}), 64 << 10);
    std::fill(in.span().begin(), in.span().end(), std::byte{0});
    EXPECT_EQ(Read(file, 0, {in.slice(0, 64 << 10)}), 64 << 10);
    EXPECT_TRUE(ContentMatches(hash, 0, in.span()));
  }
  ASSERT_TRUE(ArmFaults("").ok());
  std::vector<IoResult> results;
  disk_->Poll(0, &results);
  EXPECT_THAT(results, testing::IsEmpty());
  EXPECT_EQ(disk_->stats().stray_completions, 40u);
  EXPECT_EQ(disk_->in_flight(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Backends, DiskTest,
                         testing::Values(DiskCase{"uring_disk", true},
                                         DiskCase{"uring_tmpfs", true, DiskPlaceKind::kTmpfs},
                                         DiskCase{"uring_image", true, DiskPlaceKind::kImage},
                                         DiskCase{"uring_loop", true, DiskPlaceKind::kLoop},
                                         DiskCase{"threads_disk", false},
                                         DiskCase{"threads_tmpfs", false, DiskPlaceKind::kTmpfs},
                                         DiskCase{"threads_image", false, DiskPlaceKind::kImage},
                                         DiskCase{"threads_loop", false, DiskPlaceKind::kLoop}),
                         [](const auto& param) { return param.param.name; });

}  // namespace
}  // namespace flexkv
