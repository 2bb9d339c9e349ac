// A small store in a real directory whose every block is known, and ways to damage it.
#pragma once

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <memory>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "flexkv/storage/ssd/disk.h"
#include "flexkv/storage/ssd/ssd_store.h"
#include "tests/storage/disk_fixture.h"
#include "tests/storage/ssd_block_buffer.h"
#include "tests/support/content_oracle.h"

namespace flexkv {

// Block `depth` of a chain.
inline SsdIdentity ChainIdentity(uint64_t chain, uint32_t depth) {
  SsdIdentity identity;
  identity.ns.fill(1);
  identity.depth = depth;
  identity.hash = HashFromNumber(chain * 1000 + depth + 1);
  if (depth > 0) identity.parent = HashFromNumber(chain * 1000 + depth);
  return identity;
}

struct KnownBlock {
  SsdPlace place;
  SsdIdentity identity;
};

// An open store on its own disk.
struct OpenedStore {
  SteadyClock clock;
  std::unique_ptr<Disk> disk;
  std::unique_ptr<SsdStore> store;

  explicit OpenedStore(const std::string& directory) {
    absl::StatusOr<std::unique_ptr<Disk>> made =
        MakeThreadDisk({.directory = directory, .threads = 4, .direct = false});
    EXPECT_TRUE(made.ok()) << made.status();
    if (!made.ok()) return;
    disk = *std::move(made);
    auto opened = SsdStore::Open({.max_bytes = 256ull << 20}, disk.get(), &clock);
    EXPECT_TRUE(opened.ok()) << opened.status();
    if (opened.ok()) store = *std::move(opened);
  }
  ~OpenedStore() { store.reset(); }

  std::vector<SsdResult> Finish() {
    std::vector<SsdResult> results;
    while (!store->idle()) {
      store->Flush();
      store->Poll(10 * kNsPerMs, &results);
    }
    store->Poll(0, &results);
    return results;
  }
  void Write(const SsdShape& shape, const KnownBlock& block) {
    SsdBlockBuffer buffer(shape.shard_bytes);
    buffer.Fill(block.identity);
    ASSERT_TRUE(store->SubmitWrite({1, block.place, block.identity, buffer.ToWrite()}));
    const std::vector<SsdResult> results = Finish();
    ASSERT_EQ(results.size(), 1u);
    ASSERT_TRUE(results[0].status.ok()) << results[0].status;
  }
  bool Reads(const SsdShape& shape, const KnownBlock& block) {
    SsdBlockBuffer buffer(shape.shard_bytes);
    EXPECT_TRUE(store->SubmitRead({1, block.place, block.identity, buffer.ToRead()}));
    const std::vector<SsdResult> results = Finish();
    return results.size() == 1 && results[0].status.ok() && buffer.Matches(block.identity);
  }
};

class SsdDirectory {
 public:
  static constexpr uint32_t kPerSegment = 12;
  static constexpr uint32_t kPerChain = 6;

  explicit SsdDirectory(const std::string& parent = DiskPlace()) : path_(MakeDirectory(parent)) {}
  ~SsdDirectory() { std::filesystem::remove_all(path_); }
  SsdDirectory(const SsdDirectory&) = delete;
  SsdDirectory& operator=(const SsdDirectory&) = delete;

  const std::string& path() const { return path_; }
  const std::vector<KnownBlock>& known() const { return known_; }
  const SsdShape& ShapeOf(uint32_t segment) const { return shapes_.at(segment); }
  std::string FileOf(uint32_t segment, const char* kind) const {
    char name[40];
    std::snprintf(name, sizeof(name), "/segment-%08u.%s", segment, kind);
    return path_ + name;
  }

  // Two segments of different shapes, 12 of 16 slots in use, 4 chains of 6 blocks.
  void Fill() {
    OpenedStore opened(path_);
    for (const SsdShape& shape : {SsdShape{{5000, 4096}, 16}, SsdShape{{9000}, 16}}) {
      const absl::StatusOr<uint32_t> segment = opened.store->CreateSegment(shape);
      ASSERT_TRUE(segment.ok()) << segment.status();
      shapes_[*segment] = shape;
      for (uint32_t slot = 0; slot < kPerSegment; ++slot) {
        const auto number = static_cast<uint32_t>(known_.size());
        Add(&opened, {*segment, slot}, ChainIdentity(number / kPerChain, number % kPerChain));
      }
    }
  }
  void Add(OpenedStore* opened, SsdPlace place, const SsdIdentity& identity) {
    known_.push_back({place, identity});
    opened->Write(ShapeOf(place.segment), known_.back());
  }
  // One segment of one shape with just these blocks.
  void FillWith(const std::vector<SsdIdentity>& identities) {
    OpenedStore opened(path_);
    const SsdShape shape{{5000}, 16};
    const uint32_t segment = *opened.store->CreateSegment(shape);
    shapes_[segment] = shape;
    for (uint32_t i = 0; i < identities.size(); ++i) Add(&opened, {segment, i}, identities[i]);
  }

  // Every file, byte for byte.
  std::map<std::string, std::string> Snapshot() const {
    std::map<std::string, std::string> files;
    for (const auto& entry : std::filesystem::directory_iterator(path_)) {
      files[entry.path().filename().string()] = Content(entry.path().string());
    }
    return files;
  }
  static std::string Content(const std::string& file) {
    std::ifstream in(file, std::ios::binary);
    std::string bytes(std::filesystem::file_size(file), '\0');
    in.read(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    return bytes;
  }

  // --- damage
  static void Change(const std::string& file, const std::function<void(std::string*)>& change) {
    std::string bytes = Content(file);
    change(&bytes);
    // In place: owner and mode stay.
    std::ofstream(file, std::ios::binary | std::ios::trunc) << bytes;
  }
  static void FlipByte(const std::string& file, uint64_t at) {
    Change(file, [at](std::string* bytes) { (*bytes)[at] = static_cast<char>((*bytes)[at] ^ 4); });
  }
  uint64_t OffsetOf(const KnownBlock& block) const {
    return block.place.slot * ShapeOf(block.place.segment).record_bytes();
  }
  void FlipPayload(size_t number) const {
    const KnownBlock& block = known_[number];
    FlipByte(FileOf(block.place.segment, "data"), OffsetOf(block) + 4096 + 77);
  }
  void SwapRecords(size_t a, size_t b) const {
    const KnownBlock &first = known_[a], &second = known_[b];
    ASSERT_EQ(first.place.segment, second.place.segment);
    const auto bytes = static_cast<std::ptrdiff_t>(ShapeOf(first.place.segment).record_bytes());
    Change(FileOf(first.place.segment, "data"), [&](std::string* data) {
      const auto at_first = data->begin() + static_cast<std::ptrdiff_t>(OffsetOf(first));
      const auto at_second = data->begin() + static_cast<std::ptrdiff_t>(OffsetOf(second));
      std::swap_ranges(at_first, at_first + bytes, at_second);
    });
  }

  // A store opened now has exactly these blocks (by number of known()), each with its own bytes,
  // wherever it lies.
  void ExpectExactly(const std::set<size_t>& numbers) const {
    OpenedStore opened(path_);
    ASSERT_NE(opened.store, nullptr);
    EXPECT_EQ(opened.store->stats().dropped_records, 0u);
    std::map<uint32_t, SsdShape> shapes;
    for (const SsdSegmentInfo& segment : opened.store->segments()) {
      EXPECT_EQ(segment.state, SegmentState::kOpen);
      shapes[segment.id] = segment.shape;
    }
    std::set<size_t> found;
    for (const RecoveredBlock& block : opened.store->TakeRecovered()) {
      EXPECT_TRUE(opened.Reads(shapes.at(block.place.segment), {block.place, block.identity}));
      for (size_t i = 0; i < known_.size(); ++i) {
        if (known_[i].identity == block.identity && numbers.contains(i)) found.insert(i);
      }
    }
    EXPECT_EQ(found, numbers);
    EXPECT_EQ(opened.store->stats().recovered_blocks, numbers.size());
  }
  std::set<size_t> AllBut(const std::set<size_t>& missing) const {
    std::set<size_t> numbers;
    for (size_t i = 0; i < known_.size(); ++i) {
      if (!missing.contains(i)) numbers.insert(i);
    }
    return numbers;
  }

 private:
  std::string path_;
  std::vector<KnownBlock> known_;
  std::map<uint32_t, SsdShape> shapes_;
};

}  // namespace flexkv
