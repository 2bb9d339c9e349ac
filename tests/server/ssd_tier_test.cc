// The daemon's side of the SSD tier on real directories: ports, memory that comes and goes, wakes.
#include "flexkv/server/ssd_tier.h"

#include <fcntl.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <thread>

#include "absl/strings/str_cat.h"
#include "flexkv/server/config_ssd.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "proto/shm_ring.h"
#include "tests/server/raw_client.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

using testing::HasSubstr;

constexpr uint64_t kSegment = kSegmentAlign;  // of the arena
const std::vector<uint32_t> kShards = {5000, 8192};
const SsdShape kShape{kShards, 64};

SsdIdentity Identity(uint64_t number) {
  SsdIdentity identity;
  identity.ns[0] = 7;
  identity.hash = HashFromNumber(number);
  return identity;
}

class SsdTierTest : public testing::TestWithParam<SsdBackend> {
 protected:
  SsdTierTest() {
    MemfdSegmentStoreOptions memory;
    memory.use_hugetlb = memory.lock_memory = false;
    memory.reserve_bytes = 0;
    segments_ = *MemfdSegmentStore::Open(memory);
    config_.backend = GetParam();
    config_.bytes_per_directory = 64ull << 20;
    config_.wake = [this] { shm::RingBell(&bell_); };
    AddDirectory("a");
  }
  ~SsdTierTest() override { tier_.reset(); }

  std::string AddDirectory(const std::string& name) {
    config_.directories.push_back(dir_.path() + "/" + name);
    EXPECT_EQ(mkdir(config_.directories.back().c_str(), 0700), 0);
    return config_.directories.back();
  }
  void Open() {
    results_.clear();
    tier_.reset();
    absl::StatusOr<std::unique_ptr<SsdTier>> tier = SsdTier::Open(config_, segments_.get());
    ASSERT_TRUE(tier.ok()) << tier.status();
    tier_ = *std::move(tier);
  }
  SsdPort* port(size_t device = 0) { return tier_->ports()[device]; }
  SsdDeviceSnapshot Snapshot() { return tier_->Snapshot(SteadyClock().Now())[0]; }

  // `told`: the devices know of it.
  SegmentId NewArena(bool told = true) {
    const absl::StatusOr<SegmentId> segment = tier_->segments()->Create(kSegment);
    EXPECT_TRUE(segment.ok()) << segment.status();
    if (told) {
      segments_->WaitPrefaulted(5000);
      tier_->Tick(SteadyClock().Now());
    }
    return segment.value_or(0);
  }
  // Shards of the n-th block of an arena segment, one after the other.
  static std::vector<ArenaShard> Place(SegmentId arena, uint64_t block = 0) {
    return {{arena, block * 16384}, {arena, block * 16384 + 8192}};
  }
  std::span<std::byte> Bytes(const std::vector<ArenaShard>& shards, size_t rank) {
    return {segments_->Data(shards[rank].segment) + shards[rank].offset_bytes, kShards[rank]};
  }
  void Fill(const std::vector<ArenaShard>& shards, uint64_t number) {
    for (uint32_t rank = 0; rank < 2; ++rank)
      FillContent(HashFromNumber(number), rank, Bytes(shards, rank));
  }
  bool Matches(const std::vector<ArenaShard>& shards, uint64_t number) {
    return ContentMatches(HashFromNumber(number), 0, Bytes(shards, 0)) &&
           ContentMatches(HashFromNumber(number), 1, Bytes(shards, 1));
  }

  // Until the command of this tag has ended; Unknown after ten seconds.
  SsdPortResult Wait(uint64_t tag) {
    Eventually(
        [&] {
          std::vector<SsdPortResult> taken;
          for (SsdPort* port : tier_->ports()) port->TakeResults(&taken);
          for (SsdPortResult& result : taken) {
            EXPECT_TRUE(results_.emplace(result.tag, result).second) << "told twice";
          }
          return results_.contains(tag);
        },
        10000);
    return results_.contains(tag) ? results_[tag]
                                  : SsdPortResult{tag, absl::UnknownError("no result"), 0};
  }
  uint32_t NewSegment(size_t device = 0) {
    EXPECT_TRUE(port(device)->CreateSegment(++tag_, kShape));
    const SsdPortResult result = Wait(tag_);
    EXPECT_TRUE(result.status.ok()) << result.status;
    return result.segment;
  }
  absl::Status WriteBlock(uint32_t segment, uint32_t slot, uint64_t number, SegmentId arena,
                          size_t device = 0) {
    Fill(Place(arena), number);
    EXPECT_TRUE(port(device)->Write(++tag_, {segment, slot}, Identity(number), Place(arena)));
    return Wait(tag_).status;
  }
  absl::Status ReadBlock(uint32_t segment, uint32_t slot, uint64_t number, SegmentId arena,
                         size_t device = 0) {
    const std::vector<ArenaShard> place = Place(arena, 1);
    Fill(place, ~number);
    EXPECT_TRUE(port(device)->Read(++tag_, {segment, slot}, Identity(number), place));
    absl::Status status = Wait(tag_).status;
    if (status.ok() && !Matches(place, number)) return absl::InternalError("wrong bytes");
    return status;
  }

  TempDir dir_;
  shm::Bell bell_{};
  std::unique_ptr<MemfdSegmentStore> segments_;
  SsdTierConfig config_;
  std::unique_ptr<SsdTier> tier_;
  std::map<uint64_t, SsdPortResult> results_;
  uint64_t tag_ = 1000;
};

TEST_P(SsdTierTest, BlocksComeBackFromEveryDeviceAlsoAfterARestart) {
  AddDirectory("b");
  AddDirectory("c");
  Open();
  SegmentId arena = NewArena();
  std::vector<uint32_t> made;
  for (size_t device = 0; device < 3; ++device) {
    made.push_back(NewSegment(device));
    for (uint32_t slot = 0; slot < 5; ++slot) {
      ASSERT_TRUE(WriteBlock(made[device], slot, device * 100 + slot, arena, device).ok());
    }
  }
  Open();
  arena = NewArena();
  for (size_t device = 0; device < 3; ++device) {
    const SsdRecovery found = port(device)->TakeRecovery();
    EXPECT_EQ(found.blocks.size(), 5u);
    ASSERT_EQ(found.segments.size(), 1u);
    EXPECT_EQ(found.segments[0].shape.shard_bytes, kShards);
    EXPECT_TRUE(port(device)->TakeRecovery().blocks.empty());
    for (uint32_t slot = 0; slot < 5; ++slot) {
      EXPECT_TRUE(ReadBlock(made[device], slot, device * 100 + slot, arena, device).ok());
    }
    EXPECT_TRUE(absl::IsNotFound(ReadBlock(made[device], 5, 5, arena, device)));
  }
  EXPECT_EQ(Snapshot().status.store.recovered_blocks, 5u);
}

TEST_P(SsdTierTest, ADamagedFileIsDataLossAndCounted) {
  Open();
  SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(WriteBlock(segment, 0, 1, arena).ok());
  ASSERT_TRUE(WriteBlock(segment, 1, 2, arena).ok());
  tier_.reset();
  int damaged = 0;
  for (const auto& entry : std::filesystem::directory_iterator(config_.directories[0])) {
    if (entry.path().extension() != ".data") continue;
    std::fstream file(entry.path(), std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(4096 + 100);  // in the first shard of slot 0
    const char other = static_cast<char>(~file.peek());
    file.seekp(4096 + 100);
    file.put(other);
    ++damaged;
  }
  ASSERT_EQ(damaged, 1);
  Open();
  arena = NewArena();
  EXPECT_TRUE(absl::IsDataLoss(ReadBlock(segment, 0, 1, arena)));
  EXPECT_TRUE(ReadBlock(segment, 1, 2, arena).ok());
  EXPECT_EQ(Snapshot().read.ops, 2u);
  EXPECT_EQ(Snapshot().read.failed_ops, 1u);
  EXPECT_EQ(Snapshot().read.bytes, 16384u);
  EXPECT_TRUE(Eventually([&] { return Snapshot().status.store.corrupt_blocks == 1; }));
}

TEST_P(SsdTierTest, CommandsAreCountedAndTimed) {
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  const TimeNs start = SteadyClock().Now();
  tier_->Tick(start);
  for (uint32_t slot = 0; slot < 8; ++slot)
    ASSERT_TRUE(WriteBlock(segment, slot, slot, arena).ok());
  ASSERT_TRUE(ReadBlock(segment, 3, 3, arena).ok());
  const SsdDeviceSnapshot now = tier_->Snapshot(start + kNsPerSecond)[0];
  EXPECT_EQ(now.write.ops, 8u);
  EXPECT_EQ(now.write.failed_ops, 0u);
  EXPECT_EQ(now.write.bytes, 8u * 16384);
  EXPECT_LE(now.write.bytes_per_s, 8.0 * 16384);  // the first sample is a little older
  EXPECT_GT(now.write.bytes_per_s, 8.0 * 16384 / 10);
  EXPECT_EQ(now.write.latency_ns.count, 8u);
  EXPECT_GT(now.write.latency_ns.sum, 0u);
  EXPECT_EQ(now.read.ops, 1u);
  EXPECT_EQ(now.read.bytes, 16384u);
  EXPECT_EQ(now.quota_bytes, config_.bytes_per_directory);
  EXPECT_TRUE(Eventually([&] {
    const SsdDeviceSnapshot later = Snapshot();
    return later.blocks == 8 && later.open_segments == 1 && later.status.memory_bytes == kSegment;
  }));
}

// A place of the arena that is not there, and one that is not of that segment's shape.
TEST_P(SsdTierTest, PlacesThatAreNotThereEndInInvalidArgument) {
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  const std::vector<std::vector<ArenaShard>> wrong = {
      {},
      {{arena, 0}},
      {{arena, 0}, {arena, 8192}, {arena, 16384}},
      {{arena, 0}, {arena + 77, 0}},
      {{arena, 0}, {arena, 100}},
      {{arena, 0}, {arena, kSegment}},
      {{arena, 0}, {arena, kSegment - 4096}},
      {{arena, UINT64_MAX - 4095}, {arena, 0}},
  };
  for (const std::vector<ArenaShard>& shards : wrong) {
    ASSERT_TRUE(port()->Read(++tag_, {segment, 0}, Identity(1), shards));
    EXPECT_TRUE(tier_->HasResults());
    EXPECT_TRUE(absl::IsInvalidArgument(Wait(tag_).status)) << Wait(tag_).status;
    ASSERT_TRUE(port()->Write(++tag_, {segment, 0}, Identity(1), shards));
    EXPECT_TRUE(absl::IsInvalidArgument(Wait(tag_).status));
  }
  ASSERT_TRUE(port()->Read(++tag_, {segment + 1, 0}, Identity(1), Place(arena)));
  EXPECT_TRUE(absl::IsInvalidArgument(Wait(tag_).status));
  EXPECT_TRUE(port()->DropSegment(++tag_, segment));
  EXPECT_TRUE(Wait(tag_).status.ok());
  ASSERT_TRUE(port()->Read(++tag_, {segment, 0}, Identity(1), Place(arena)));
  EXPECT_TRUE(absl::IsInvalidArgument(Wait(tag_).status)) << "dropped";
}

// The control thread sleeps on its bell; a read that ended wakes it.
TEST_P(SsdTierTest, AResultWakesASleeper) {
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(WriteBlock(segment, 0, 1, arena).ok());
  for (int round = 0; round < 50; ++round) {
    ASSERT_TRUE(port()->Read(++tag_, {segment, 0}, Identity(1), Place(arena, 1)));
    const TimeNs start = SteadyClock().Now();
    shm::SleepOnBell(&bell_, 5 * kNsPerSecond, [&] { return tier_->HasResults(); });
    ASSERT_LT(SteadyClock().Now() - start, 4 * kNsPerSecond) << "nobody rang";
    EXPECT_TRUE(Wait(tag_).status.ok());
    EXPECT_FALSE(tier_->HasResults());
  }
}

TEST_P(SsdTierTest, ASegmentLivesUntilEveryDeviceLetGo) {
  AddDirectory("b");
  Open();
  const SegmentId arena = NewArena();
  tier_->segments()->Destroy(arena);
  EXPECT_NE(segments_->Data(arena), nullptr) << "nobody took the devices' answers yet";
  tier_->segments()->Destroy(arena);  // twice is once
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(port()->Read(++tag_, {segment, 0}, Identity(1), Place(arena)));
  EXPECT_TRUE(absl::IsInvalidArgument(Wait(tag_).status)) << "it is going";
  EXPECT_TRUE(Eventually([&] {
    tier_->Collect();
    return segments_->Data(arena) == nullptr;
  }));
  tier_->segments()->Destroy(arena + 1000);  // unknown
}

// Pages first, then the devices: a segment they were not told of is given back at once.
TEST_P(SsdTierTest, OnlyPrefaultedMemoryIsTold) {
  Open();
  const SegmentId arena = NewArena(false);
  const SegmentId other = NewArena(false);
  tier_->segments()->Destroy(other);
  EXPECT_EQ(segments_->Data(other), nullptr);
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(WriteBlock(segment, 0, 1, arena).ok()) << "commands need not wait for it";
  EXPECT_EQ(Snapshot().status.memory_bytes, 0u);
  EXPECT_TRUE(Eventually([&] {
    tier_->Tick(SteadyClock().Now());
    tier_->Collect();
    return Snapshot().status.memory_bytes == kSegment;
  }));
  EXPECT_TRUE(ReadBlock(segment, 0, 1, arena).ok());
  tier_->segments()->Destroy(arena);
  EXPECT_EQ(tier_->memory().dying(), 1u);
}

TEST_P(SsdTierTest, WithoutPrefaultNothingIsRegistered) {
  config_.register_memory = false;
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(WriteBlock(segment, 0, 1, arena).ok());
  tier_->segments()->Destroy(arena);
  EXPECT_EQ(segments_->Data(arena), nullptr);
}

// Addresses come back with other segments behind them: reads always land in the present one.
TEST_P(SsdTierTest, ReusedAddressesAreNeverStale) {
  Open();
  const SegmentId first = NewArena();
  const uint32_t segment = NewSegment();
  for (uint32_t slot = 0; slot < 8; ++slot)
    ASSERT_TRUE(WriteBlock(segment, slot, slot, first).ok());
  tier_->segments()->Destroy(first);
  int reused = 0;
  std::map<std::byte*, int> seen;
  for (uint32_t round = 0; round < 60; ++round) {
    const SegmentId arena = NewArena();
    reused += seen[segments_->Data(arena)]++ > 0;
    ASSERT_TRUE(ReadBlock(segment, round % 8, round % 8, arena).ok()) << round;
    tier_->segments()->Destroy(arena);
    if (round % 3 == 0) continue;  // sometimes several wait
    ASSERT_TRUE(Eventually([&] {
      tier_->Collect();
      return segments_->Data(arena) == nullptr;
    }));
    segments_->WaitPrefaulted(1000);  // its pages are given back by a thread
  }
  EXPECT_GT(reused, 0) << "no address came back: the test shows nothing";
}

// No room for a command: it is refused, while memory commands wait and none is lost.
TEST_P(SsdTierTest, AFullQueueRefusesCommandsAndKeepsMemoryCommands) {
  config_.max_commands = 4;
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  const SegmentId spare = NewArena();
  tier_->Collect();
  int accepted = 0;
  std::vector<uint64_t> tags;
  for (int i = 0; i < 10; ++i) {
    if (!port()->Read(++tag_, {segment, 9}, Identity(1), Place(arena))) continue;
    tags.push_back(tag_);
    ++accepted;
  }
  EXPECT_GE(accepted, 3);
  EXPECT_LE(accepted, 4);
  tier_->segments()->Destroy(spare);
  std::vector<SegmentId> more;
  for (int i = 0; i < 8; ++i) more.push_back(NewArena());
  for (const SegmentId one : more) tier_->segments()->Destroy(one);
  EXPECT_FALSE(port()->Read(++tag_, {segment, 9}, Identity(1), Place(arena)));
  for (const uint64_t tag : tags) EXPECT_TRUE(absl::IsNotFound(Wait(tag).status));
  EXPECT_TRUE(Eventually([&] {
    tier_->Collect();
    return std::all_of(more.begin(), more.end(),
                       [&](SegmentId one) { return segments_->Data(one) == nullptr; }) &&
           segments_->Data(spare) == nullptr;
  }));
  EXPECT_TRUE(Eventually([&] { return Snapshot().status.memory_bytes == kSegment; }));
}

TEST_P(SsdTierTest, ClosingLetsGoOfWhatStillWaits) {
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  Fill(Place(arena), 5);
  ASSERT_TRUE(port()->Write(++tag_, {segment, 5}, Identity(5), Place(arena)));
  tier_->segments()->Destroy(NewArena());
  const SegmentId dying = NewArena();
  tier_->segments()->Destroy(dying);
  Open();
  EXPECT_EQ(segments_->Data(dying), nullptr);
  EXPECT_EQ(port()->TakeRecovery().blocks.size(), 1u) << "accepted writes are committed";
}

// As in a daemon that ends: what was accepted is written from the arena, so that goes last.
TEST_P(SsdTierTest, OnceClosedTheArenaGoesAtOnce) {
  config_.register_memory = false;  // no device knows the memory, so none holds it
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  for (uint32_t slot = 0; slot < 6; ++slot) {
    Fill(Place(arena, slot), slot);
    ASSERT_TRUE(port()->Write(++tag_, {segment, slot}, Identity(slot), Place(arena, slot)));
  }
  tier_->Close();
  tier_->segments()->Destroy(arena);
  EXPECT_EQ(segments_->Data(arena), nullptr);
  Open();
  EXPECT_EQ(port()->TakeRecovery().blocks.size(), 6u);
}

TEST_P(SsdTierTest, ADirectoryInUseIsSaidAndTheOthersAreLetGo) {
  AddDirectory("b");
  Open();
  SsdTierConfig other = config_;
  other.directories = {AddDirectory("free"), config_.directories[1]};
  const auto second = SsdTier::Open(other, segments_.get());
  EXPECT_TRUE(absl::IsAlreadyExists(second.status())) << second.status();
  EXPECT_THAT(std::string(second.status().message()),
              HasSubstr(absl::StrCat("ssd_cache_dir: ", config_.directories[1], " is in use")));
  EXPECT_FALSE(SsdDirectoryInUse(other.directories[0]));
}

TEST_P(SsdTierTest, AForeignSuperblockIsRefused) {
  std::ofstream(config_.directories[0] + "/superblock.a") << std::string(4096, 'x');
  chmod((config_.directories[0] + "/superblock.a").c_str(), 0600);
  const auto tier = SsdTier::Open(config_, segments_.get());
  EXPECT_TRUE(absl::IsInvalidArgument(tier.status())) << tier.status();
  EXPECT_THAT(std::string(tier.status().message()), HasSubstr("not a superblock of FlexKV"));
}

// A file system without room: segments cannot be made, what is there goes on, and it comes back.
TEST_P(SsdTierTest, AFullDiskRefusesSegmentsAndServesTheOthers) {
  const std::string mounted = AddDirectory("small");
  if (mount("tmpfs", mounted.c_str(), "tmpfs", 0, "size=8m,mode=0700") != 0)
    GTEST_SKIP() << "mounting a tmpfs is not allowed here";
  config_.directories = {mounted + "/ssd"};
  ASSERT_EQ(mkdir(config_.directories[0].c_str(), 0700), 0);
  Open();
  const SegmentId arena = NewArena();
  const uint32_t segment = NewSegment();
  ASSERT_TRUE(WriteBlock(segment, 0, 1, arena).ok());
  std::ofstream filler(mounted + "/filler");
  const std::string mebibyte(1 << 20, 'f');
  for (int i = 0; i < 16 && filler; ++i) filler << mebibyte << std::flush;
  filler.close();
  ASSERT_TRUE(port()->CreateSegment(++tag_, kShape));
  EXPECT_TRUE(absl::IsResourceExhausted(Wait(tag_).status)) << Wait(tag_).status;
  EXPECT_TRUE(ReadBlock(segment, 0, 1, arena).ok());
  EXPECT_TRUE(WriteBlock(segment, 1, 2, arena).ok()) << "its space is allocated";
  EXPECT_TRUE(ReadBlock(segment, 1, 2, arena).ok());
  unlink((mounted + "/filler").c_str());
  NewSegment();
  tier_.reset();
  umount2(mounted.c_str(), MNT_DETACH);
}

std::string BackendName(const testing::TestParamInfo<SsdBackend>& info) {
  return SsdBackendName(info.param);
}
INSTANTIATE_TEST_SUITE_P(Backends, SsdTierTest,
                         testing::Values(SsdBackend::kAuto, SsdBackend::kThreads), BackendName);

}  // namespace
}  // namespace flexkv
