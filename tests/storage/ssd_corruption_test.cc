// Damage of every kind to what lies on the disk: each read gives the bytes of its identity or a
// miss, misses are counted, and blocks that were not touched are served on.
// FLEXKV_CORRUPTION_BITS=N samples N data bits instead of 20,000.
#include <algorithm>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "gtest/gtest.h"
#include "tests/storage/ssd_crash_workload.h"
#include "tests/support/content_oracle.h"
#include "tests/support/sim_disk.h"

namespace flexkv {
namespace {

constexpr uint64_t kPage = 4096;

std::string DataFile(uint32_t segment) {
  char name[40];
  std::snprintf(name, sizeof(name), "segment-%08u.data", segment);
  return name;
}
std::string LogFile(uint32_t segment) {
  char name[40];
  std::snprintf(name, sizeof(name), "segment-%08u.log", segment);
  return name;
}

struct Known {
  SsdPlace place;
  SsdIdentity identity;
};

// A store on a disk of its own.
struct Opened {
  ManualClock clock;
  std::unique_ptr<SimDisk> disk;
  std::unique_ptr<SsdStore> store;
  ~Opened() { store.reset(); }

  std::vector<SsdResult> Finish() {
    std::vector<SsdResult> results;
    while (!store->idle()) {
      store->Flush();
      store->Poll(10 * kNsPerMs, &results);
    }
    return results;
  }
};

struct Outcome {
  uint64_t right = 0, missed = 0, wrong = 0;
  std::vector<bool> served;  // of each known block
  SsdStoreStats stats;
  uint64_t noticed() const {
    return stats.corrupt_blocks + stats.read_errors + stats.dropped_records;
  }
};

class SsdCorruptionTest : public testing::Test {
 protected:
  void SetUp() override {
    golden_.disk = std::make_unique<SimDisk>(SimDiskOptions{.seed = 5, .clock = &golden_.clock});
    OpenStore(&golden_);
    for (const SsdShape& shape : {small_, small_, wide_}) {
      segments_.push_back(*golden_.store->CreateSegment(shape));
    }
    for (int round = 0; round < 2; ++round) {  // twice: every slot has a stale version
      for (const Known& known : known_) EXPECT_TRUE(golden_.store->SubmitFree(1, known.place));
      Expect(golden_.Finish(), known_.size());
      if (round == 1) old_ = golden_.disk->CrashedCopy(CrashMode::kDrop, 1);
      known_.clear();
      WriteAll(static_cast<uint64_t>(round) * 1000);
    }
  }

  void OpenStore(Opened* opened) {
    auto store = SsdStore::Open({.max_bytes = 64 << 20}, opened->disk.get(), &opened->clock);
    ASSERT_TRUE(store.ok()) << store.status();
    opened->store = *std::move(store);
  }
  static void Expect(const std::vector<SsdResult>& results, size_t count) {
    ASSERT_EQ(results.size(), count);
    for (const SsdResult& result : results) ASSERT_TRUE(result.status.ok()) << result.status;
  }
  const SsdShape& ShapeOf(uint32_t segment) const {
    return segment == segments_[2] ? wide_ : small_;
  }

  void WriteAll(uint64_t first_hash) {
    std::vector<std::unique_ptr<SsdBlockBuffer>> buffers;
    for (uint32_t segment : segments_) {
      for (uint32_t slot = 0; slot + 1 < ShapeOf(segment).slots; ++slot) {  // the last stays free
        Known known{.place = {segment, slot}};
        known.identity.ns[0] = 1;
        known.identity.hash = HashFromNumber(first_hash + known_.size());
        buffers.push_back(std::make_unique<SsdBlockBuffer>(ShapeOf(segment).shard_bytes));
        buffers.back()->Fill(known.identity);
        ASSERT_TRUE(golden_.store->SubmitWrite({.tag = known_.size(),
                                                .place = known.place,
                                                .identity = known.identity,
                                                .shards = buffers.back()->ToWrite()}));
        known_.push_back(known);
      }
    }
    Expect(golden_.Finish(), known_.size());
  }

  // A copy of the golden disk, damaged, then opened.
  std::unique_ptr<Opened> Damaged(const std::function<void(SimDisk*)>& damage) {
    auto opened = std::make_unique<Opened>();
    opened->disk = golden_.disk->CrashedCopy(CrashMode::kDrop, 1, &opened->clock);
    damage(opened->disk.get());
    OpenStore(opened.get());
    return opened;
  }

  // Reads every known block.
  Outcome ReadAll(Opened* opened) {
    Outcome outcome;
    std::vector<SsdBlockBuffer> buffers;
    for (size_t i = 0; i < known_.size(); ++i) {
      const Known& known = known_[i];
      buffers.emplace_back(ShapeOf(known.place.segment).shard_bytes);
      EXPECT_TRUE(opened->store->SubmitRead({.tag = i,
                                             .place = known.place,
                                             .identity = known.identity,
                                             .shards = buffers.back().ToRead()}));
    }
    outcome.served.resize(known_.size());
    for (const SsdResult& result : opened->Finish()) {
      if (!result.status.ok()) {
        ++outcome.missed;
      } else if (buffers[result.tag].Matches(known_[result.tag].identity)) {
        ++outcome.right;
        outcome.served[result.tag] = true;
      } else {
        ++outcome.wrong;
      }
    }
    EXPECT_EQ(outcome.wrong, 0u) << "WRONG BYTES";
    EXPECT_EQ(outcome.right + outcome.missed, known_.size());
    outcome.stats = opened->store->stats();
    const absl::Status invariants = opened->store->CheckInvariants();
    EXPECT_TRUE(invariants.ok()) << invariants;
    return outcome;
  }

  Outcome After(const std::function<void(SimDisk*)>& damage) {
    auto opened = Damaged(damage);
    return ReadAll(opened.get());
  }

  std::vector<std::byte> Record(const SimDisk& disk, SsdPlace place) const {
    const uint64_t bytes = ShapeOf(place.segment).record_bytes();
    return disk.ReadRaw(DataFile(place.segment), place.slot * bytes, bytes);
  }
  void PutRecord(SimDisk* disk, SsdPlace place, std::span<const std::byte> record) const {
    disk->WriteRaw(DataFile(place.segment), place.slot * ShapeOf(place.segment).record_bytes(),
                   record);
  }
  void LoseLogs(SimDisk* disk) const {
    for (uint32_t segment : segments_) {
      const std::vector<std::byte> nothing(disk->FileBytes(LogFile(segment)));
      disk->WriteRaw(LogFile(segment), 0, nothing);
    }
  }
  uint64_t Slot(size_t index, uint64_t* record_bytes) const {
    *record_bytes = ShapeOf(known_[index].place.segment).record_bytes();
    return known_[index].place.slot;
  }

  const SsdShape small_{.shard_bytes = {3000}, .slots = 12};
  const SsdShape wide_{.shard_bytes = {5000, 4096, 1}, .slots = 8};
  Opened golden_;
  std::unique_ptr<SimDisk> old_;  // the disk before the second round of writes
  std::vector<uint32_t> segments_;
  std::vector<Known> known_;
};

TEST_F(SsdCorruptionTest, NoDamageNoMiss) {
  const Outcome outcome = After([](SimDisk*) {});
  EXPECT_EQ(outcome.right, known_.size());
  EXPECT_EQ(outcome.noticed(), 0u);
  EXPECT_EQ(outcome.stats.recovered_blocks, known_.size());
}

TEST_F(SsdCorruptionTest, LostLogsAreRebuiltFromHeaders) {
  const Outcome outcome = After([this](SimDisk* disk) { LoseLogs(disk); });
  EXPECT_EQ(outcome.right, known_.size());
}

TEST_F(SsdCorruptionTest, SampledDataBits) {
  const char* given = std::getenv("FLEXKV_CORRUPTION_BITS");
  const uint64_t wanted = given != nullptr ? std::strtoull(given, nullptr, 0) : 20'000;
  TestRng rng(TestSeed());
  uint64_t flips = 0;
  while (flips < wanted) {  // one bit of every block at a time
    const Outcome outcome = After([&](SimDisk* disk) {
      for (const Known& known : known_) {
        const SsdShape& shape = ShapeOf(known.place.segment);
        uint64_t at = known.place.slot * shape.record_bytes() + kPage;
        const uint64_t shard = rng.Below(shape.shard_bytes.size());
        for (uint64_t i = 0; i < shard; ++i) {
          at += RoundUp(shape.shard_bytes[i], kPage);
        }
        disk->FlipBit(DataFile(known.place.segment),
                      at * 8 + rng.Below(uint64_t{shape.shard_bytes[shard]} * 8));
      }
    });
    ASSERT_EQ(outcome.missed, known_.size());
    ASSERT_EQ(outcome.stats.corrupt_blocks, known_.size());
    flips += known_.size();
  }
  std::printf("%" PRIu64 " data bits flipped, all misses\n", flips);
}

TEST_F(SsdCorruptionTest, BitsOfPaddingHurtNobody) {
  const Outcome outcome = After([this](SimDisk* disk) {
    for (const Known& known : known_) {
      const SsdShape& shape = ShapeOf(known.place.segment);
      disk->FlipBit(DataFile(known.place.segment),
                    (known.place.slot * shape.record_bytes() + kPage + shape.shard_bytes[0]) * 8);
    }
  });
  EXPECT_EQ(outcome.right, known_.size());
}

// Headers vouch when the log is gone. Blocks of one kind take turns, a bit each.
TEST_F(SsdCorruptionTest, EveryHeaderBit) {
  uint64_t missed = 0;
  for (uint64_t first = 0; first < kPage * 8;) {
    std::vector<uint64_t> bits;
    const Outcome outcome = After([&](SimDisk* disk) {
      LoseLogs(disk);
      for (size_t i = 0; i < known_.size() && first < kPage * 8; ++i) {
        uint64_t record_bytes = 0;
        const uint64_t slot = Slot(i, &record_bytes);
        disk->FlipBit(DataFile(known_[i].place.segment), slot * record_bytes * 8 + first);
        bits.push_back(first++);
      }
    });
    missed += outcome.missed;
    for (size_t i = 0; i < bits.size(); ++i) {
      ASSERT_FALSE(outcome.served[i]) << "bit " << bits[i] << " of the header does not matter";
    }
    for (size_t i = bits.size(); i < known_.size(); ++i) ASSERT_TRUE(outcome.served[i]);
    ASSERT_GE(outcome.noticed(), bits.size());
  }
  EXPECT_EQ(missed, kPage * 8);
}

// The log vouches, and the header is not even read.
TEST_F(SsdCorruptionTest, HeadersDoNotMatterWhileTheLogLives) {
  const Outcome outcome = After([this](SimDisk* disk) {
    for (const Known& known : known_) {
      PutRecord(disk, known.place, std::vector<std::byte>(kPage));
    }
  });
  EXPECT_EQ(outcome.right, known_.size());
}

TEST_F(SsdCorruptionTest, EveryBitOfTheLogs) {
  TestRng rng(TestSeed());
  uint64_t missed = 0;
  uint64_t noticed = 0;
  uint64_t flips = 0;
  for (uint32_t segment : segments_) {
    const uint64_t bits = golden_.disk->FileBytes(LogFile(segment)) * 8;
    for (uint64_t bit = rng.Below(61); bit < bits; bit += 1 + rng.Below(bits / 250)) {
      const Outcome outcome = After([&](SimDisk* disk) { disk->FlipBit(LogFile(segment), bit); });
      missed += outcome.missed;
      noticed += outcome.noticed();
      ASSERT_TRUE(outcome.missed == 0 || outcome.noticed() > 0) << "bit " << bit;
      ++flips;
      for (size_t i = 0; i < known_.size(); ++i) {  // the others know nothing of it
        ASSERT_TRUE(outcome.served[i] || known_[i].place.segment == segment) << "bit " << bit;
      }
    }
  }
  std::printf("%" PRIu64 " log bits flipped: %" PRIu64 " misses, %" PRIu64 " noticed\n", flips,
              missed, noticed);
}

TEST_F(SsdCorruptionTest, SwappedRecords) {
  const auto swap = [this](SimDisk* disk, size_t a, size_t b, uint64_t skip) {
    const auto first = Record(*disk, known_[a].place);
    const auto second = Record(*disk, known_[b].place);
    auto to_first = first;
    auto to_second = second;
    std::copy(second.begin() + static_cast<int64_t>(skip), second.end(),
              to_first.begin() + static_cast<int64_t>(skip));
    std::copy(first.begin() + static_cast<int64_t>(skip), first.end(),
              to_second.begin() + static_cast<int64_t>(skip));
    PutRecord(disk, known_[a].place, to_first);
    PutRecord(disk, known_[b].place, to_second);
  };
  const size_t other = small_.slots;  // first block but one of the second segment
  for (size_t b : {size_t{1}, other}) {
    for (uint64_t skip : {uint64_t{0}, kPage}) {
      for (bool logs : {true, false}) {
        const Outcome outcome = After([&](SimDisk* disk) {
          swap(disk, 0, b, skip);
          if (!logs) LoseLogs(disk);
        });
        EXPECT_FALSE(outcome.served[0]);
        EXPECT_FALSE(outcome.served[b]);
        EXPECT_EQ(outcome.right, known_.size() - 2);
        EXPECT_GE(outcome.noticed(), 2u);
      }
    }
  }
}

TEST_F(SsdCorruptionTest, StaleRecordsOfReusedSlots) {
  const Outcome outcome = After([this](SimDisk* disk) {
    for (const Known& known : known_) PutRecord(disk, known.place, Record(*old_, known.place));
  });
  EXPECT_EQ(outcome.right, 0u);
  EXPECT_EQ(outcome.stats.corrupt_blocks, known_.size());
}

TEST_F(SsdCorruptionTest, StaleLogs) {
  const Outcome outcome = After([this](SimDisk* disk) {
    for (uint32_t segment : segments_) {
      disk->WriteRaw(LogFile(segment), 0,
                     old_->ReadRaw(LogFile(segment), 0, old_->FileBytes(LogFile(segment))));
    }
  });
  EXPECT_EQ(outcome.right, 0u);
}

TEST_F(SsdCorruptionTest, MisdirectedAndStaleReads) {
  for (SimFault fault : {SimFault::kMisdirect, SimFault::kStale, SimFault::kBitFlip,
                         SimFault::kShort, SimFault::kEio}) {
    auto opened = Damaged([](SimDisk*) {});
    opened->disk->AddRule({.name_part = ".data", .kind = IoKind::kRead, .fault = fault});
    const Outcome outcome = ReadAll(opened.get());
    // A flipped bit may lie in the padding.
    if (fault != SimFault::kBitFlip) {
      EXPECT_EQ(outcome.right, 0u) << static_cast<int>(fault);
    }
    EXPECT_GE(outcome.noticed(), outcome.missed) << static_cast<int>(fault);
  }
}

TEST_F(SsdCorruptionTest, LostAndStrayWrites) {
  for (SimFault fault : {SimFault::kStale, SimFault::kMisdirect, SimFault::kBitFlip}) {
    auto opened = Damaged([](SimDisk*) {});
    opened->disk->AddRule({.name_part = ".data", .kind = IoKind::kWrite, .fault = fault});
    SsdIdentity identity;
    identity.ns[0] = 9;
    identity.hash = HashFromNumber(77);
    const SsdPlace place{segments_[0], small_.slots - 1};
    SsdBlockBuffer buffer(small_.shard_bytes);
    buffer.Fill(identity);
    ASSERT_TRUE(opened->store->SubmitWrite(
        {.tag = 1, .place = place, .identity = identity, .shards = buffer.ToWrite()}));
    opened->Finish();
    SsdBlockBuffer target(small_.shard_bytes);
    ASSERT_TRUE(opened->store->SubmitRead(
        {.tag = 2, .place = place, .identity = identity, .shards = target.ToRead()}));
    const auto results = opened->Finish();
    ASSERT_EQ(results.size(), 1u);
    EXPECT_TRUE(!results[0].status.ok() || target.Matches(identity));
    ReadAll(opened.get());
  }
}

TEST_F(SsdCorruptionTest, TruncatedFiles) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 60; ++round) {
    const uint32_t segment = segments_[rng.Below(segments_.size())];
    const std::string name = rng.OneIn(2) ? DataFile(segment) : LogFile(segment);
    const uint64_t whole = golden_.disk->FileBytes(name);
    const uint64_t bytes = round < 3      ? 0
                           : rng.OneIn(2) ? rng.Below(whole)
                                          : rng.Below(whole / kPage) * kPage;
    const Outcome outcome = After([&](SimDisk* disk) { disk->Truncate(name, bytes); });
    for (size_t i = 0; i < known_.size(); ++i) {
      ASSERT_TRUE(outcome.served[i] || known_[i].place.segment == segment) << name << " " << bytes;
    }
  }
}

TEST_F(SsdCorruptionTest, MissingAndReplacedFiles) {
  const auto whole = [](const SimDisk& disk, const std::string& name) {
    return disk.ReadRaw(name, 0, disk.FileBytes(name));
  };
  const std::string data = DataFile(segments_[0]);
  const std::string log = LogFile(segments_[0]);
  std::vector<std::byte> noise(
      std::max(golden_.disk->FileBytes(data), golden_.disk->FileBytes(log)));
  FillContent(HashFromNumber(3), 0, noise);
  const std::vector<std::function<void(SimDisk*)>> damages = {
      [&](SimDisk* disk) { disk->EraseRaw(data); },
      [&](SimDisk* disk) { disk->EraseRaw(log); },
      [&](SimDisk* disk) { disk->EraseRaw(data), disk->EraseRaw(log); },
      [&](SimDisk* disk) {
        disk->WriteRaw(data, 0, std::span(noise).first(disk->FileBytes(data)));
      },
      [&](SimDisk* disk) { disk->WriteRaw(log, 0, std::span(noise).first(disk->FileBytes(log))); },
      [&](SimDisk* disk) { disk->WriteRaw(data, 0, whole(*disk, DataFile(segments_[1]))); },
      [&](SimDisk* disk) { disk->WriteRaw(log, 0, whole(*disk, LogFile(segments_[1]))); },
      [&](SimDisk* disk) {
        disk->WriteRaw(data, 0, whole(*disk, DataFile(segments_[1])));
        disk->WriteRaw(log, 0, whole(*disk, LogFile(segments_[1])));
      },
      [&](SimDisk* disk) { disk->WriteRaw("segment-99999999.data", 0, noise); },
      [&](SimDisk* disk) { disk->WriteRaw("segment-garbage", 0, noise); },
      [&](SimDisk* disk) { disk->EraseRaw("superblock.a"); },
      [&](SimDisk* disk) { disk->EraseRaw("superblock.b"); },
  };
  for (size_t i = 0; i < damages.size(); ++i) {
    SCOPED_TRACE(absl::StrCat("damage ", i));
    const Outcome outcome = After(damages[i]);
    for (size_t block = 0; block < known_.size(); ++block) {
      EXPECT_TRUE(outcome.served[block] || known_[block].place.segment == segments_[0]);
    }
  }
}

// Either copy is enough; whatever is flipped, nothing is lost.
TEST_F(SsdCorruptionTest, EveryKindOfSuperblockDamage) {
  TestRng rng(TestSeed());
  for (const char* name : {"superblock.a", "superblock.b"}) {
    const uint64_t bits = golden_.disk->FileBytes(name) * 8;
    ASSERT_GT(bits, 0u);
    for (uint64_t bit = 0; bit < bits; bit += bit < 1024 ? 1 : 1 + rng.Below(bits / 50)) {
      const Outcome outcome = After([&](SimDisk* disk) { disk->FlipBit(name, bit); });
      ASSERT_EQ(outcome.right, known_.size()) << name << " bit " << bit;
    }
  }
}

}  // namespace
}  // namespace flexkv
