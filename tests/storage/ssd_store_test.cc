// What the store promises while nothing or one thing goes wrong. Crashes: ssd_crash_test.cc.
#include "flexkv/storage/ssd/ssd_store.h"

#include <algorithm>
#include <map>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_format.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_harness.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using absl::StatusCode;

class SsdStoreTest : public testing::Test, protected SsdHarness {
 protected:
  void OpenWithSegment() {
    ASSERT_TRUE(Open().ok());
    absl::StatusOr<uint32_t> segment = store().CreateSegment(shape);
    ASSERT_TRUE(segment.ok()) << segment.status();
    segment_ = *segment;
  }
  SsdPlace At(uint32_t slot) const { return {segment_, slot}; }
  void TearDown() override {
    EXPECT_EQ(disk().violation(), "");
    Close();
    EXPECT_EQ(disk().violation(), "");
    EXPECT_EQ(disk().open_files(), 0u);
  }
  // Blocks 0..count-1 at slots of the same number.
  void WriteMany(uint32_t count) {
    std::vector<uint64_t> tags;
    for (uint32_t i = 0; i < count; ++i) tags.push_back(Write(At(i), TestIdentity(i)));
    ASSERT_TRUE(Drain());
    for (const uint64_t tag : tags) ASSERT_TRUE(Result(tag).ok()) << Result(tag);
  }
  void ExpectAllReadable(uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) {
      EXPECT_TRUE(ReadNow(At(i), TestIdentity(i)).ok())
          << i << " " << ReadNow(At(i), TestIdentity(i));
    }
  }
  std::set<uint32_t> RecoveredSlots() {
    std::set<uint32_t> slots;
    for (const RecoveredBlock& block : store().TakeRecovered()) {
      EXPECT_TRUE(slots.insert(block.place.slot).second);
    }
    return slots;
  }
  std::string Data() const { return absl::StrCat("segment-0000000", segment_, ".data"); }
  uint32_t GenerationOf(uint32_t slot) {
    const auto page = disk().ReadRaw(Data(), slot * shape.record_bytes(), 4096);
    SsdBlockBuffer aligned({4096});
    std::copy(page.begin(), page.end(), aligned.ToRead()[0].begin());
    ssd::SlotHeader header;
    return ssd::ParseSlotHeader(aligned.ToRead()[0].data(), &header) ? header.generation : 0;
  }
  uint64_t FreeBytesOf(uint64_t capacity) {
    disk().set_capacity(capacity);
    return *disk().FreeBytes();
  }
  SsdSegmentInfo Info() {
    for (const SsdSegmentInfo& info : store().segments()) {
      if (info.id == segment_) return info;
    }
    return {};
  }

  uint32_t segment_ = 0;
};

TEST_F(SsdStoreTest, ReadsBackWhatWasWritten) {
  OpenWithSegment();
  EXPECT_EQ(ReadNow(At(3), TestIdentity(3)).code(), StatusCode::kNotFound);
  EXPECT_TRUE(WriteNow(At(3), TestIdentity(3)).ok());
  EXPECT_TRUE(ReadNow(At(3), TestIdentity(3)).ok());
  // Another block, or another place.
  EXPECT_EQ(ReadNow(At(3), TestIdentity(4)).code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadNow(At(4), TestIdentity(3)).code(), StatusCode::kNotFound);
  EXPECT_EQ(ReadNow(At(3), TestIdentity(3, 1)).code(), StatusCode::kNotFound);
  EXPECT_TRUE(ReadNow(At(3), TestIdentity(3)).ok());
  EXPECT_EQ(store().stats().corrupt_blocks, 0u);
  EXPECT_EQ(Info().committed, 1u);
  EXPECT_TRUE(store().CheckInvariants().ok());
}

TEST_F(SsdStoreTest, GroupsCloseByTimeBytesAndFlush) {
  options.group_delay_ns = 5 * kNsPerMs;
  options.group_bytes = 1 << 20;
  OpenWithSegment();
  const uint64_t first = Write(At(0), TestIdentity(0));
  const TimeNs start = clock().Now();
  while (!Has(first)) PollOnce();
  EXPECT_GE(clock().Now() - start, 5 * kNsPerMs);
  const uint64_t groups = store().stats().groups;
  for (uint32_t i = 1; i < 9; ++i) Write(At(i), TestIdentity(i));
  ASSERT_TRUE(Drain());
  EXPECT_EQ(store().stats().groups, groups + 1) << "eight writes at once are one group";
  EXPECT_EQ(store().stats().writes, 9u);
}

TEST_F(SsdStoreTest, FreedPlacesAreReusedUnderHigherGenerations) {
  OpenWithSegment();
  for (uint64_t round = 0; round < 80; ++round) {  // more than a region of the log takes
    ASSERT_TRUE(WriteNow(At(5), TestIdentity(100 + round)).ok());
    ASSERT_TRUE(ReadNow(At(5), TestIdentity(100 + round)).ok());
    ASSERT_TRUE(FreeNow(At(5)).ok());
    ASSERT_EQ(ReadNow(At(5), TestIdentity(100 + round)).code(), StatusCode::kNotFound);
  }
  EXPECT_GE(store().stats().checkpoints, 2u);
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(store().TakeRecovered().empty());
}

TEST_F(SsdStoreTest, AFreeIsHeldWhileThePlaceIsRead) {
  OpenWithSegment();
  WriteMany(1);
  disk().AddRule(
      {.name_part = "data", .kind = IoKind::kRead, .fault = SimFault::kSlow, .count = 1});
  const uint64_t read = Read(At(0), TestIdentity(0));
  PollOnce(0);
  const uint64_t free = Free(At(0));
  store().Flush();
  while (!Has(read)) {
    PollOnce(kNsPerMs);
    ASSERT_TRUE(Has(read) || !Has(free));
  }
  ASSERT_TRUE(Drain());
  EXPECT_TRUE(Result(read).ok()) << Result(read);
  EXPECT_TRUE(Result(free).ok());
}

TEST_F(SsdStoreTest, RestartsWithAllThatWasCommitted) {
  OpenWithSegment();
  WriteMany(10);
  ASSERT_TRUE(FreeNow(At(4)).ok());
  for (const bool kill : {false, true}) {
    ASSERT_TRUE((kill ? Kill(1) : Open()).ok());
    EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{0, 1, 2, 3, 5, 6, 7, 8, 9}));
    EXPECT_EQ(store().stats().recovered_blocks, 9u);
    EXPECT_EQ(Info().shape.slots, shape.slots);
    EXPECT_TRUE(ReadNow(At(5), TestIdentity(5)).ok());
    EXPECT_EQ(ReadNow(At(4), TestIdentity(4)).code(), StatusCode::kNotFound);
  }
  // And goes on: the first group moves the log to its other region.
  ASSERT_TRUE(WriteNow(At(4), TestIdentity(44)).ok());
  EXPECT_EQ(store().stats().checkpoints, 1u);
  ASSERT_TRUE(Crash(CrashMode::kDrop, 3).ok());
  EXPECT_EQ(RecoveredSlots().size(), 10u);
  EXPECT_TRUE(ReadNow(At(4), TestIdentity(44)).ok());
}

TEST_F(SsdStoreTest, GenerationsGoOnAboveAnythingSeen) {
  OpenWithSegment();
  for (uint64_t round = 0; round < 5; ++round) {
    ASSERT_TRUE(WriteNow(At(1), TestIdentity(round)).ok());
    ASSERT_TRUE(FreeNow(At(1)).ok());
  }
  EXPECT_EQ(GenerationOf(1), 5u);
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(WriteNow(At(0), TestIdentity(50)).ok());  // moves the log, slot 1 has no record now
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(WriteNow(At(1), TestIdentity(51)).ok());
  EXPECT_GT(GenerationOf(1), 5u);
  disk().EraseRaw("segment-00000001.log");
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(WriteNow(At(2), TestIdentity(52)).ok());
  ASSERT_TRUE(Open().ok());
  ASSERT_TRUE(WriteNow(At(3), TestIdentity(53)).ok());
  EXPECT_GT(GenerationOf(3), 6u);
}

TEST_F(SsdStoreTest, RefusesMalformedOps) {
  OpenWithSegment();
  WriteMany(2);
  EXPECT_EQ(WriteNow({99, 0}, TestIdentity(9)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteNow(At(16), TestIdentity(9)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(WriteNow(At(1), TestIdentity(9)).code(), StatusCode::kInvalidArgument) << "not free";
  EXPECT_EQ(ReadNow({99, 0}, TestIdentity(9)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(ReadNow(At(16), TestIdentity(9)).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(FreeNow({99, 0}).code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(FreeNow(At(16)).code(), StatusCode::kInvalidArgument);
  EXPECT_TRUE(FreeNow(At(9)).ok()) << "it is free";
  SsdBlockBuffer memory(shape.shard_bytes);
  std::vector<SsdResult> results;
  const auto submit = [&](std::vector<std::span<const std::byte>> shards) {
    EXPECT_TRUE(store().SubmitWrite({1, At(5), TestIdentity(5), std::move(shards)}));
    store().Poll(0, &results);
    return results.back().status.code();
  };
  auto shards = memory.ToWrite();
  EXPECT_EQ(submit({shards[0]}), StatusCode::kInvalidArgument);
  EXPECT_EQ(submit({shards[0], shards[1].first(512)}), StatusCode::kInvalidArgument);
  EXPECT_EQ(submit({shards[0], {shards[0].data() + 512, 4096}}), StatusCode::kInvalidArgument);
  EXPECT_EQ(store().CreateSegment({{}, 4}).status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(store().DropSegment(77).code(), StatusCode::kNotFound);
  EXPECT_EQ(store().stats().queued_ops, 0u);
  EXPECT_TRUE(store().CheckInvariants().ok());
}

TEST_F(SsdStoreTest, QueueIsBounded) {
  options.max_queued_ops = 8;
  options.max_inflight_bytes = 2 * 16384;
  OpenWithSegment();
  std::vector<uint64_t> tags;
  for (uint32_t i = 0; i < 12; ++i) tags.push_back(Write(At(i), TestIdentity(i)));
  EXPECT_EQ(store().stats().queued_ops, 8u);
  for (uint32_t i = 8; i < 12; ++i) {
    EXPECT_EQ(Result(tags[i]).code(), StatusCode::kResourceExhausted);
  }
  PollOnce(0);
  EXPECT_LE(store().stats().inflight_bytes, options.max_inflight_bytes);
  ASSERT_TRUE(Drain());
  for (uint32_t i = 0; i < 8; ++i) EXPECT_TRUE(Result(tags[i]).ok());
}

TEST_F(SsdStoreTest, ReadsGoBeforeWrites) {
  options.max_inflight_bytes = 1;  // one transfer at a time
  OpenWithSegment();
  WriteMany(1);
  std::vector<uint64_t> writes;
  for (uint32_t i = 1; i < 5; ++i) writes.push_back(Write(At(i), TestIdentity(i)));
  const uint64_t read = Read(At(0), TestIdentity(0));
  while (!Has(read)) PollOnce();
  for (const uint64_t write : writes) EXPECT_FALSE(Has(write));
  ASSERT_TRUE(Drain());
}

TEST_F(SsdStoreTest, FilesStayBelowTheLimit) {
  options.max_bytes = 3 << 20;
  OpenWithSegment();
  int made = 1;
  while (store().CreateSegment(shape).ok()) ++made;
  EXPECT_GT(made, 2);
  EXPECT_EQ(store().CreateSegment(shape).status().code(), StatusCode::kResourceExhausted);
  const auto bytes = [&] {
    return options.max_bytes * 1024 - FreeBytesOf(options.max_bytes * 1024);
  };
  EXPECT_EQ(store().stats().file_bytes, bytes());
  EXPECT_LE(bytes(), options.max_bytes);
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(store().stats().file_bytes, bytes()) << "counted before anything is written";
  EXPECT_EQ(store().CreateSegment(shape).status().code(), StatusCode::kResourceExhausted);
  ASSERT_TRUE(store().DropSegment(segment_).ok());
  EXPECT_EQ(store().stats().file_bytes, bytes());
  absl::StatusOr<uint32_t> next = store().CreateSegment(shape);
  ASSERT_TRUE(next.ok());
  EXPECT_GT(*next, segment_) << "ids are not reused";
}

TEST_F(SsdStoreTest, SegmentIdsAreNotReusedAfterARestart) {
  OpenWithSegment();
  ASSERT_TRUE(store().DropSegment(segment_).ok());
  ASSERT_TRUE(Crash(CrashMode::kDrop, 1).ok());
  absl::StatusOr<uint32_t> next = store().CreateSegment(shape);
  ASSERT_TRUE(next.ok());
  EXPECT_GT(*next, segment_);
}

TEST_F(SsdStoreTest, NoSpaceForASegmentLeavesNothingBehind) {
  ASSERT_TRUE(Open().ok());
  const uint64_t before = store().stats().file_bytes;
  disk().FailCreates(1);
  EXPECT_EQ(store().CreateSegment(shape).status().code(), StatusCode::kResourceExhausted);
  disk().set_capacity(before + (1 << 20));  // the log fits, the data does not
  SsdShape large = shape;
  large.slots = 200;
  EXPECT_EQ(store().CreateSegment(large).status().code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(store().stats().file_bytes, before);
  EXPECT_EQ(disk().List()->size(), 2u);
  disk().set_capacity(1ull << 40);
  EXPECT_TRUE(store().CreateSegment(large).ok());
}

TEST_F(SsdStoreTest, DropSegmentWaitsForOps) {
  OpenWithSegment();
  const uint64_t write = Write(At(0), TestIdentity(0));
  EXPECT_EQ(store().DropSegment(segment_).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Drain());
  EXPECT_TRUE(Result(write).ok());
  EXPECT_TRUE(store().DropSegment(segment_).ok());
  EXPECT_TRUE(store().segments().empty());
  EXPECT_EQ(disk().List()->size(), 2u);
}

// --- epochs -------------------------------------------------------------------------------------

TEST_F(SsdStoreTest, BlocksOfEarlierEpochsAreGoneAtOnceAndForGood) {
  OpenWithSegment();
  ASSERT_TRUE(WriteNow(At(0), TestIdentity(0, 1, 1)).ok());
  ASSERT_TRUE(WriteNow(At(1), TestIdentity(1, 1, 2)).ok());
  const uint64_t raise = Raise(1, 2);
  EXPECT_EQ(ReadNow(At(0), TestIdentity(0, 1, 1)).code(), StatusCode::kNotFound);
  ASSERT_TRUE(Drain());
  EXPECT_TRUE(Result(raise).ok());
  EXPECT_EQ(WriteNow(At(2), TestIdentity(2, 1, 1)).code(), StatusCode::kFailedPrecondition);
  EXPECT_TRUE(WriteNow(At(2), TestIdentity(2, 2, 1)).ok());
  ASSERT_TRUE(Crash(CrashMode::kReorder, 5).ok());
  EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{1, 2}));
  EXPECT_EQ(ReadNow(At(0), TestIdentity(0, 1, 1)).code(), StatusCode::kNotFound);
  EXPECT_EQ(store().Epochs().size(), 1u);
  EXPECT_EQ(store().Epochs()[0].second, 2u);
  EXPECT_TRUE(WriteNow(At(0), TestIdentity(7, 2, 1)).ok()) << "its place is free";
}

TEST_F(SsdStoreTest, AnEpochOutlivesTheSegmentThatRecordedIt) {
  OpenWithSegment();
  ASSERT_TRUE(WriteNow(At(0), TestIdentity(0, 1)).ok());
  const uint32_t other = *store().CreateSegment(shape);
  disk().AddRule({.name_part = "00000001.log", .kind = IoKind::kWrite, .count = 1});
  EXPECT_TRUE(RaiseNow(1, 2).ok()) << "one segment has it";
  EXPECT_EQ(Info().state, SegmentState::kRetired);
  EXPECT_EQ(store().DropSegment(other).code(), StatusCode::kFailedPrecondition);
  ASSERT_TRUE(Crash(CrashMode::kDrop, 1).ok());
  EXPECT_TRUE(store().TakeRecovered().empty());
  // Now the first segment can be written again and takes the epoch over.
  EXPECT_TRUE(store().DropSegment(other).ok());
  ASSERT_TRUE(Crash(CrashMode::kDrop, 1).ok());
  EXPECT_TRUE(store().TakeRecovered().empty());
}

TEST_F(SsdStoreTest, AnEpochThatNobodyRecordsIsNotAcknowledged) {
  OpenWithSegment();
  disk().AddRule({.name_part = "log", .kind = IoKind::kSync});
  EXPECT_EQ(RaiseNow(1, 2).code(), StatusCode::kUnavailable);
  EXPECT_EQ(RaiseNow(1, 3).code(), StatusCode::kUnavailable);
}

TEST_F(SsdStoreTest, EpochsAreCarriedThroughCheckpoints) {
  OpenWithSegment();
  for (uint8_t ns = 1; ns <= 200; ++ns) Raise(ns, 10 + ns);
  ASSERT_TRUE(Drain());
  for (int life = 0; life < 3; ++life) {
    ASSERT_TRUE(Open().ok());
    ASSERT_TRUE(WriteNow(At(static_cast<uint32_t>(life)), TestIdentity(1, 400, 201)).ok());
    EXPECT_EQ(store().stats().checkpoints, 1u);
  }
  ASSERT_TRUE(Open().ok());
  const auto epochs = store().Epochs();
  ASSERT_EQ(epochs.size(), 200u);
  for (const auto& [ns, epoch] : epochs) EXPECT_EQ(epoch, 10u + ns[0]);
}

// --- faults -------------------------------------------------------------------------------------

TEST_F(SsdStoreTest, AFailedWriteRetiresItsSegment) {
  for (const SimFault fault : {SimFault::kEio, SimFault::kShort, SimFault::kEnospc}) {
    OpenWithSegment();
    WriteMany(3);
    const uint32_t other = *store().CreateSegment(shape);
    disk().AddRule({.name_part = Data(), .kind = IoKind::kWrite, .fault = fault, .count = 1});
    const uint64_t bad = Write(At(5), TestIdentity(5));
    const uint64_t same = Write(At(6), TestIdentity(6));
    const uint64_t good = Write({other, 1}, TestIdentity(7));
    ASSERT_TRUE(Drain());
    EXPECT_EQ(Result(bad).code(), StatusCode::kUnavailable);
    EXPECT_EQ(Result(same).code(), StatusCode::kUnavailable);
    EXPECT_TRUE(Result(good).ok());
    EXPECT_EQ(Info().state, SegmentState::kRetired);
    EXPECT_EQ(store().stats().write_errors, 1u);
    ExpectAllReadable(3);
    EXPECT_EQ(WriteNow(At(9), TestIdentity(9)).code(), StatusCode::kUnavailable);
    EXPECT_EQ(FreeNow(At(0)).code(), StatusCode::kUnavailable);
    EXPECT_TRUE(store().CheckInvariants().ok());
    // The fault is gone: the segment works again.
    ASSERT_TRUE(Crash(CrashMode::kDrop, 9).ok());
    ExpectAllReadable(3);
    EXPECT_EQ(Info().state, SegmentState::kOpen);
    EXPECT_TRUE(WriteNow(At(9), TestIdentity(9)).ok());
    for (const SsdSegmentInfo& info : store().segments()) {
      EXPECT_TRUE(store().DropSegment(info.id).ok());
    }
  }
}

TEST_F(SsdStoreTest, AFailedSyncRetiresItsSegment) {
  for (const char* file : {".data", ".log"}) {
    OpenWithSegment();
    WriteMany(3);
    disk().AddRule({.name_part = file, .kind = IoKind::kSync, .count = 1});
    const uint64_t bad = Write(At(5), TestIdentity(5));
    ASSERT_TRUE(Drain());
    EXPECT_EQ(Result(bad).code(), StatusCode::kUnavailable);
    EXPECT_EQ(store().stats().sync_errors, 1u);
    EXPECT_EQ(Info().state, SegmentState::kRetired);
    EXPECT_EQ(ReadNow(At(5), TestIdentity(5)).code(), StatusCode::kNotFound);
    ExpectAllReadable(3);
    const absl::StatusOr<uint32_t> next = store().CreateSegment(shape);
    ASSERT_TRUE(next.ok()) << next.status();
    EXPECT_TRUE(WriteNow({*next, 0}, TestIdentity(50)).ok());
    EXPECT_TRUE(store().DropSegment(*next).ok());
    ASSERT_TRUE(Crash(CrashMode::kTear, 9).ok());
    ExpectAllReadable(3);
    ASSERT_TRUE(store().DropSegment(segment_).ok());
  }
}

TEST_F(SsdStoreTest, ABadReadQuarantinesAndThreeRetire) {
  OpenWithSegment();
  WriteMany(6);
  const std::pair<SimFault, StatusCode> faults[] = {{SimFault::kEio, StatusCode::kUnavailable},
                                                    {SimFault::kShort, StatusCode::kUnavailable},
                                                    {SimFault::kBitFlip, StatusCode::kDataLoss}};
  for (uint32_t i = 0; i < 3; ++i) {
    EXPECT_EQ(Info().state, SegmentState::kOpen);
    if (faults[i].first == SimFault::kBitFlip) {
      disk().FlipBit(Data(), (i * shape.record_bytes() + 4096) * 8 + 3);
    } else {
      disk().AddRule(
          {.name_part = Data(), .kind = IoKind::kRead, .fault = faults[i].first, .count = 1});
    }
    EXPECT_EQ(ReadNow(At(i), TestIdentity(i)).code(), faults[i].second);
    EXPECT_EQ(ReadNow(At(i), TestIdentity(i)).code(), StatusCode::kNotFound);
    EXPECT_EQ(FreeNow(At(i)).code(), StatusCode::kUnavailable) << "never written again";
    EXPECT_EQ(WriteNow(At(i), TestIdentity(9)).code(), StatusCode::kUnavailable);
    ASSERT_TRUE(Drain());
  }
  EXPECT_EQ(Info().state, SegmentState::kRetired);
  EXPECT_EQ(Info().quarantined, 3u);
  EXPECT_EQ(store().stats().quarantined_slots, 3u);
  EXPECT_EQ(store().stats().corrupt_blocks, 1u);
  EXPECT_EQ(store().stats().read_errors, 2u);
  for (uint32_t i = 3; i < 6; ++i) EXPECT_TRUE(ReadNow(At(i), TestIdentity(i)).ok());
  // The first two are on record; the third went with the retirement.
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{2, 3, 4, 5}));
  EXPECT_EQ(Info().quarantined, 2u);
  ASSERT_TRUE(WriteNow(At(10), TestIdentity(10)).ok());  // through a checkpoint
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Info().quarantined, 2u);
}

TEST_F(SsdStoreTest, ALogThatCannotBeReadBackIsNotMoved) {
  OpenWithSegment();
  WriteMany(3);
  ASSERT_TRUE(Open().ok());
  disk().AddRule({.name_part = ".log", .kind = IoKind::kRead, .count = 1});
  EXPECT_EQ(WriteNow(At(5), TestIdentity(5)).code(), StatusCode::kUnavailable);
  EXPECT_EQ(Info().state, SegmentState::kRetired);
  ExpectAllReadable(3);
  ASSERT_TRUE(Open().ok());
  ExpectAllReadable(3);
  EXPECT_TRUE(WriteNow(At(5), TestIdentity(5)).ok());
}

TEST_F(SsdStoreTest, DroppedInTheMiddleOfEverything) {
  TestRng rng(TestSeed());
  OpenWithSegment();
  std::map<uint32_t, uint64_t> committed;  // slot to number
  uint64_t number = 0;
  for (int life = 0; life < 60; ++life) {
    std::map<uint64_t, std::pair<uint32_t, uint64_t>> writes;
    for (uint32_t slot = 0; slot < 12; ++slot) {
      if (committed.count(slot) > 0) continue;
      writes[Write(At(slot), TestIdentity(++number))] = {slot, number};
    }
    if (!committed.empty()) Free(At(committed.begin()->first));
    for (uint64_t i = rng.Below(30); i > 0; --i) PollOnce(100 * kNsPerUs);
    for (const auto& [tag, what] : writes) {
      if (Has(tag) && Result(tag).ok()) committed[what.first] = what.second;
    }
    const uint32_t freeing = committed.empty() ? 99 : committed.begin()->first;
    ASSERT_TRUE(Open().ok());
    std::map<uint32_t, SsdIdentity> found;
    for (const RecoveredBlock& block : store().TakeRecovered()) {
      found[block.place.slot] = block.identity;
      EXPECT_TRUE(ReadNow(block.place, block.identity).ok());
    }
    for (const auto& [slot, what] : committed) {
      if (slot == freeing) continue;
      ASSERT_EQ(found.count(slot), 1u) << "committed block lost";
      ASSERT_EQ(found[slot], TestIdentity(what));
    }
    // Everything goes, to begin anew.
    for (const auto& [slot, identity] : found) ASSERT_TRUE(FreeNow(At(slot)).ok());
    committed.clear();
  }
}

// --- damage -------------------------------------------------------------------------------------

TEST_F(SsdStoreTest, SuperblocksAreRepairedFromEachOther) {
  OpenWithSegment();
  WriteMany(3);
  for (const char* name : {"superblock.a", "superblock.b"}) {
    disk().EraseRaw(name);
    ASSERT_TRUE(Open().ok());
    EXPECT_EQ(RecoveredSlots().size(), 3u);
    EXPECT_TRUE(disk().Exists(name));
    disk().FlipBit(name, 1000);
    ASSERT_TRUE(Open().ok());
    EXPECT_EQ(RecoveredSlots().size(), 3u);
  }
  disk().FlipBit("superblock.a", 1);
  disk().FlipBit("superblock.b", 1);
  ASSERT_TRUE(Open().ok()) << "the segments say whose they are";
  EXPECT_EQ(RecoveredSlots().size(), 3u);
  EXPECT_GT(*store().CreateSegment(shape), segment_);
  disk().EraseRaw("superblock.a");
  disk().EraseRaw("superblock.b");
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(RecoveredSlots().size(), 3u);
  ExpectAllReadable(3);
}

TEST_F(SsdStoreTest, ForeignAndOtherVersionsAreRefused) {
  std::vector<std::byte> page(4096, std::byte{'x'});
  disk().WriteRaw("superblock.a", 0, page);
  EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition);
  EXPECT_EQ(Open().message().find('\n'), absl::string_view::npos);
  EXPECT_EQ(disk().ReadRaw("superblock.a", 0, 4096), page) << "not touched";
  disk().EraseRaw("superblock.a");
  OpenWithSegment();
  Close();
  std::vector<std::byte> other = disk().ReadRaw("superblock.b", 0, 4096);
  other[16] = std::byte{2};
  SsdBlockBuffer aligned({4096});
  std::copy(other.begin(), other.end(), aligned.ToRead()[0].begin());
  ssd::ResealPage(aligned.ToRead()[0].data());
  disk().WriteRaw("superblock.b", 0, aligned.ToRead()[0]);
  EXPECT_EQ(Open().code(), StatusCode::kFailedPrecondition);
}

TEST_F(SsdStoreTest, UnreadableSuperblocksAreNotReplaced) {
  OpenWithSegment();
  WriteMany(2);
  Close();
  disk().AddRule({.name_part = "superblock", .kind = IoKind::kRead});
  EXPECT_EQ(Open().code(), StatusCode::kUnavailable);
  disk().ClearFaults();
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(RecoveredSlots().size(), 2u);
}

TEST_F(SsdStoreTest, ALostLogIsRebuiltFromSlotHeaders) {
  OpenWithSegment();
  WriteMany(5);
  ASSERT_TRUE(RaiseNow(9, 3).ok());
  ASSERT_TRUE(WriteNow(At(6), TestIdentity(6, 3, 9)).ok());
  for (const int damage : {0, 1, 2}) {
    Close();
    const std::string log = "segment-00000001.log";
    if (damage == 0) disk().EraseRaw(log);
    if (damage == 1) disk().Truncate(log, 4096);
    if (damage == 2) disk().WriteRaw(log, 0, std::vector<std::byte>(disk().FileBytes(log)));
    ASSERT_TRUE(Open().ok());
    EXPECT_TRUE(Info().rebuilt);
    EXPECT_EQ(Info().state, SegmentState::kOpen);
    EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{0, 1, 2, 3, 4, 6}));
    ExpectAllReadable(5);
    ASSERT_EQ(store().Epochs().size(), 1u) << "told by the block of that epoch";
    // The new log is as good as the old one.
    ASSERT_TRUE(Crash(CrashMode::kDrop, 1).ok());
    EXPECT_FALSE(Info().rebuilt);
    EXPECT_EQ(RecoveredSlots().size(), 6u);
  }
}

TEST_F(SsdStoreTest, ADamagedSyncedPageLosesNothing) {
  OpenWithSegment();
  for (uint32_t i = 0; i < 8; ++i) ASSERT_TRUE(WriteNow(At(i), TestIdentity(i)).ok());
  ASSERT_TRUE(FreeNow(At(7)).ok());
  Close();
  disk().FlipBit("segment-00000001.log", (4 * 4096 + 300) * 8);  // an appended page in the middle
  ASSERT_TRUE(Open().ok());
  EXPECT_TRUE(Info().rebuilt);
  EXPECT_EQ(RecoveredSlots().size(), 7u) << "the free is not forgotten";
  ExpectAllReadable(7);
}

TEST_F(SsdStoreTest, ASegmentOfAnotherStoreIsLeftAlone) {
  OpenWithSegment();
  WriteMany(2);
  const auto data = disk().ReadRaw(Data(), 0, disk().FileBytes(Data()));
  const std::string log = "segment-00000001.log";
  const auto log_bytes = disk().ReadRaw(log, 0, disk().FileBytes(log));
  Close();
  const std::vector<DiskFile> files = disk().List().value();
  for (const DiskFile& file : files) disk().EraseRaw(file.name);
  options.new_store_id.fill(8);
  ASSERT_TRUE(Open().ok());
  Close();
  disk().WriteRaw(Data(), 0, data);
  disk().WriteRaw(log, 0, log_bytes);
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(Info().state, SegmentState::kUnreadable);
  EXPECT_TRUE(store().TakeRecovered().empty());
  EXPECT_EQ(ReadNow(At(0), TestIdentity(0)).code(), StatusCode::kNotFound);
  EXPECT_EQ(WriteNow(At(0), TestIdentity(0)).code(), StatusCode::kUnavailable);
  EXPECT_EQ(disk().ReadRaw(Data(), 0, data.size()), data) << "not touched";
  EXPECT_EQ(disk().ReadRaw(log, 0, log_bytes.size()), log_bytes);
  EXPECT_TRUE(store().DropSegment(segment_).ok());
}

TEST_F(SsdStoreTest, ATruncatedDataFileKeepsItsHead) {
  OpenWithSegment();
  WriteMany(10);
  Close();
  disk().Truncate(Data(), 4 * shape.record_bytes() + 100);
  ASSERT_TRUE(Open().ok());
  EXPECT_EQ(RecoveredSlots(), (std::set<uint32_t>{0, 1, 2, 3}));
  EXPECT_EQ(store().stats().dropped_records, 6u);
  EXPECT_EQ(Info().state, SegmentState::kRetired);
  ExpectAllReadable(4);
}

// --- the N-th transfer fails --------------------------------------------------------------------

struct NthRun {
  uint64_t wrong = 0, lost = 0, transfers = 0;
};

// 200 ops with one fault at the N-th transfer, restarts included; then what was committed is looked
// for on a sound disk.
class NthHarness : public SsdHarness {
 public:
  NthRun Run(uint64_t nth, SimFault fault) {
    disk().FailNth(nth, fault);
    NthRun run;
    std::map<uint32_t, uint64_t> committed;
    uint32_t segment = 0;
    uint64_t number = 0;
    for (int life = 0; life < 4; ++life) {
      if (!Open().ok() && !Open().ok()) return run;
      if (segment == 0) segment = MakeSegment();
      if (segment == 0) return run;
      for (int batch = 0; batch < 5; ++batch) Batch(segment, &number, &committed, &run);
    }
    run.transfers = disk().transfers();
    disk().ClearFaults();
    if (!Crash(static_cast<CrashMode>(nth % 3), nth).ok()) ++run.lost;
    for (const auto& [slot, what] : committed) {
      const absl::Status status = ReadNow({segment, slot}, TestIdentity(what));
      run.lost += !status.ok();
      run.wrong += status.code() == StatusCode::kInternal;
    }
    if (!store().CheckInvariants().ok()) ++run.wrong;
    Close();
    return run;
  }

 private:
  uint32_t MakeSegment() {
    for (int attempt = 0; attempt < 2; ++attempt) {
      absl::StatusOr<uint32_t> segment = store().CreateSegment(shape);
      if (segment.ok()) return *segment;
    }
    return 0;
  }
  // Ten ops at a time.
  void Batch(uint32_t segment, uint64_t* number, std::map<uint32_t, uint64_t>* committed,
             NthRun* run) {
    std::map<uint64_t, std::pair<uint32_t, uint64_t>> writes;
    std::map<uint64_t, uint32_t> reads;
    for (int i = 0; i < 10; ++i) {
      const auto slot = static_cast<uint32_t>(++*number * 7 % 13);
      auto held = committed->find(slot);
      if (held == committed->end()) {
        writes[Write({segment, slot}, TestIdentity(*number))] = {slot, *number};
      } else if (*number % 3 == 0) {
        Free({segment, slot});
        committed->erase(held);
      } else {
        reads[Read({segment, slot}, TestIdentity(held->second))] = slot;
      }
    }
    if (!Drain()) ++run->wrong;
    for (const auto& [tag, slot] : reads) {
      run->wrong += Result(tag).code() == StatusCode::kInternal;
      if (!Result(tag).ok()) committed->erase(slot);  // a miss from then on
    }
    for (const auto& [tag, what] : writes) {
      if (Result(tag).ok()) (*committed)[what.first] = what.second;
    }
  }
};

TEST(SsdStoreNthTest, NoSingleFaultLosesOrLies) {
  for (const SimFault fault : {SimFault::kEio, SimFault::kShort, SimFault::kEnospc}) {
    uint64_t nth = 1;
    for (uint64_t transfers = 1; nth <= transfers; ++nth) {
      NthHarness harness;
      const NthRun run = harness.Run(nth, fault);
      ASSERT_EQ(run.wrong, 0u) << "transfer " << nth;
      ASSERT_EQ(run.lost, 0u) << "transfer " << nth;
      if (run.transfers > 0) transfers = run.transfers;
    }
    EXPECT_GT(nth, 100u);
  }
}

}  // namespace
}  // namespace flexkv
