#include "perf/restart/block_maker.h"

#include <cstdio>
#include <cstdlib>
#include <new>

#include "flexkv/base/units.h"
#include "perf/bench_util.h"
#include "perf/daemon/bench_engine.h"

namespace flexkv::bench {
namespace {

constexpr size_t kPage = 4096;
constexpr uint32_t kQueueDepth = 256;
constexpr uint32_t kWritesAtOnce = 2048;  // so that commit groups are full
constexpr uint32_t kMixedBranches = 8;    // of a family, being stored at the same time

[[noreturn]] void Fail(const std::string& why) {
  std::fprintf(stderr, "flexkv_restart_bench: %s\n", why.c_str());
  std::exit(2);
}

struct Branch {
  uint64_t chain = 0;
  uint32_t next = 0, end = 0;  // depths
  BlockHash parent;
};

// A piece of memory for each write under way.
class Buffers {
 public:
  Buffers(size_t bytes_each, size_t count)
      : bytes_(bytes_each), memory_(new (std::align_val_t{kPage}) std::byte[bytes_each * count]()) {
    for (uint32_t i = 0; i < count; ++i) unused.push_back(i);
  }
  ~Buffers() { operator delete[](memory_, std::align_val_t{kPage}); }
  Buffers(const Buffers&) = delete;
  Buffers& operator=(const Buffers&) = delete;
  std::span<std::byte> at(uint32_t index) const { return {memory_ + index * bytes_, bytes_}; }

  std::vector<uint32_t> unused;

 private:
  const size_t bytes_;
  std::byte* const memory_;
};

}  // namespace

std::vector<MadeBlock> MakeFamilies(const FamilyShape& shape, uint64_t first_chain, uint32_t count,
                                    uint64_t seed) {
  Rng rng(seed);
  std::vector<MadeBlock> blocks;
  blocks.reserve(count);
  uint64_t chain = first_chain;
  const auto add = [&](Branch* branch) {
    const BlockHash hash = BenchHash(branch->chain, branch->next);
    blocks.push_back({hash, branch->parent, branch->next});
    branch->parent = hash;
    ++branch->next;
  };
  while (blocks.size() < count) {
    Branch trunk{chain++, 0, shape.trunk_blocks, {}};
    while (trunk.next < trunk.end) add(&trunk);
    std::vector<Branch> open;
    uint32_t begun = 0;
    while (begun < shape.branches || !open.empty()) {
      while (begun < shape.branches && open.size() < kMixedBranches) {
        const auto length = static_cast<uint32_t>(
            shape.min_blocks + rng.Below(shape.max_blocks - shape.min_blocks + 1));
        open.push_back({chain++, trunk.end, trunk.end + length, trunk.parent});
        ++begun;
      }
      const size_t turn = rng.Below(open.size());
      // Prompts are stored in pieces as they are computed.
      for (int i = 0; i < 16 && open[turn].next < open[turn].end; ++i) add(&open[turn]);
      if (open[turn].next == open[turn].end)
        open.erase(open.begin() + static_cast<ptrdiff_t>(turn));
    }
  }
  blocks.resize(count);
  return blocks;
}

BlockMaker::BlockMaker(const std::string& directory, uint64_t max_bytes) {
  absl::StatusOr<std::unique_ptr<Disk>> disk =
      MakeUringDisk({.directory = directory, .queue_depth = kQueueDepth});
  if (!disk.ok()) disk = MakeThreadDisk({.directory = directory, .queue_depth = kQueueDepth});
  if (!disk.ok()) Fail(disk.status().ToString());
  disk_ = *std::move(disk);
  SsdStoreOptions options;
  options.max_bytes = max_bytes;
  absl::StatusOr<std::unique_ptr<SsdStore>> store = SsdStore::Open(options, disk_.get(), &clock_);
  if (!store.ok()) Fail(store.status().ToString());
  store_ = *std::move(store);
  found_ = store_->TakeRecovered();
}

BlockMaker::~BlockMaker() = default;

void BlockMaker::Write(const std::vector<uint32_t>& shard_bytes, uint64_t segment_bytes,
                       const SsdIdentity& identity, const std::vector<MadeBlock>& blocks) {
  SsdShape shape{shard_bytes, 1};
  shape.slots = static_cast<uint32_t>(segment_bytes / shape.record_bytes());
  const size_t room = shape.record_bytes() - kPage;  // of all shards
  Buffers buffers(room, kWritesAtOnce);
  std::vector<SsdResult> results;
  uint32_t segment = 0;
  size_t next = 0, written = 0;
  uint64_t told = NowNs();
  while (written < blocks.size()) {
    while (next < blocks.size() && !buffers.unused.empty()) {
      const auto slot = static_cast<uint32_t>(next % shape.slots);
      if (slot == 0) {
        const absl::StatusOr<uint32_t> made = store_->CreateSegment(shape);
        if (!made.ok()) Fail(made.status().ToString());
        segment = *made;
      }
      const MadeBlock& block = blocks[next++];
      const uint32_t buffer = buffers.unused.back();
      buffers.unused.pop_back();
      SsdWrite write{buffer, {segment, slot}, identity, {}};
      write.identity.depth = block.depth;
      write.identity.hash = block.hash;
      write.identity.parent = block.parent;
      size_t at = 0;
      for (uint32_t rank = 0; rank < shard_bytes.size(); ++rank) {
        const size_t bytes = RoundUp(shard_bytes[rank], kPage);
        FillShard(block.hash, rank, 0, buffers.at(buffer).subspan(at, shard_bytes[rank]));
        write.shards.push_back(buffers.at(buffer).subspan(at, bytes));
        at += bytes;
      }
      store_->SubmitWrite(std::move(write));
    }
    results.clear();
    store_->Poll(kNsPerSecond, &results);
    for (const SsdResult& result : results) {
      if (!result.status.ok()) Fail("a block could not be written: " + result.status.ToString());
      buffers.unused.push_back(static_cast<uint32_t>(result.tag));
    }
    written += results.size();
    if (NowNs() - told < 2000000000u && written < blocks.size()) continue;
    told = NowNs();
    std::fprintf(stderr, "# wrote %zu of %zu blocks of %zu shard(s)\n", written, blocks.size(),
                 shard_bytes.size());
  }
}

}  // namespace flexkv::bench
