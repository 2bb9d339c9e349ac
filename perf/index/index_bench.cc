// flexkv_index_bench [--blocks N] [--repeats R] [--json FILE]
//
// The radix tree beside a flat open-addressing table that holds the same blocks (open_table.h), in
// the same run, one after the other in every repeat. Trees of runs of 8, 64 and 512 blocks; with 64
// also insert, eviction, hit length and memory. Requests are random leaves, new ones in each
// repeat, so that the tree is cold. Batches are timed in processor time of the one thread, so that
// a busy machine does not count as work; single operations by the wall clock.
#include <cinttypes>
#include <memory>

#include "flexkv/index/radix_tree.h"
#include "perf/bench_util.h"
#include "perf/index/forest.h"
#include "perf/index/open_table.h"

namespace flexkv::bench {
namespace {

constexpr NamespaceId kNs = 1;
constexpr uint64_t kBlocksPerMatchRepeat = 1u << 20;

// What must not fail for the numbers to mean anything.
void Demand(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "benchmark is wrong: %s\n", what);
  std::exit(1);
}

class IndexBench {
 public:
  IndexBench(Forest forest, const OpenTable* table, uint64_t repeats)
      : forest_(std::move(forest)),
        table_(table),
        slots_(forest_.blocks()),
        repeats_(repeats),
        tree_(std::make_unique<RadixTree>(RadixTree::Options{
            .max_slots = static_cast<uint32_t>(forest_.blocks()), .policy = MakeLruPolicy()})) {
    tree_->AddNamespace(kNs);
    std::vector<BlockHash> chain;
    for (uint32_t run = 0; run < forest_.runs(); ++run) {
      forest_.Chain(run, &chain);
      InsertRun(run, chain);
    }
    const RadixTreeStats stats = tree_->stats();
    std::fprintf(stderr,
                 "# runs of %u: %" PRIu64 " blocks, %" PRIu64 " nodes, %" PRIu64
                 " leaves, %.1f bytes a block\n",
                 forest_.run_blocks(), stats.blocks, stats.nodes, stats.evictable_leaves,
                 static_cast<double>(stats.bytes) / static_cast<double>(stats.blocks));
  }

  void Match(const char* name, JsonSink* sink) {
    std::vector<double> ours, limit;
    uint64_t requests = 0;
    for (uint64_t repeat = 0; repeat < repeats_; ++repeat) {
      Requests batch = MakeRequests(kBlocksPerMatchRepeat);
      requests += batch.ends.size();
      ours.push_back(TimeMatch(batch));
      limit.push_back(TimeTable(batch));
    }
    sink->Add({.name = name,
               .unit = "ns",
               .limit_name = "open-addressing lookup, prefetch 16 ahead",
               .value = Median(ours),
               .limit = Median(limit),
               .n = requests,
               .repeats = ours});
  }

  void HitLength(JsonSink* sink, uint32_t trunks) {
    constexpr uint32_t kQueries = 200;
    std::vector<double> ours, limit;
    std::vector<uint64_t> samples;
    std::vector<BlockHash> chain;
    std::vector<uint64_t> other(1u << 19);  // 4 MiB, twice the second level cache
    for (uint64_t repeat = 0; repeat < repeats_; ++repeat) {
      samples.clear();
      for (uint32_t query = 0; query < kQueries; ++query) {
        for (uint64_t& word : other) word += query;  // the tree goes out of the near caches
        KeepAlive(other);
        const uint32_t runs = Forest::kTrunkBlocks / forest_.run_blocks();
        forest_.Chain((static_cast<uint32_t>(rng_.Below(trunks)) + 1) * runs - 1, &chain);
        const uint32_t cut = static_cast<uint32_t>(rng_.Below(chain.size() + 1));
        for (size_t i = cut; i < chain.size(); ++i) chain[i].words[2] ^= 0x5555;
        const uint64_t begin = NowNs();
        const uint32_t length = tree_->HitLength(kNs, chain);
        samples.push_back(NowNs() - begin);
        Demand(length == cut, "HitLength answers the cut");
      }
      ours.push_back(Percentile(samples, 0.5));
      limit.push_back(TimeTable(MakeRequests(kBlocksPerMatchRepeat / 4)));
    }
    sink->Add({.name = "index.hit_length",
               .unit = "ns",
               .limit_name = "one open-addressing lookup",
               .value = Median(ours),
               .limit = Median(limit),
               .n = repeats_ * kQueries,
               .repeats = ours});
  }

  // Random leaf runs leave tree and table, and come back: insert and commit per block.
  void Insert(JsonSink* sink, OpenTable* table) {
    constexpr uint32_t kRuns = 1000;
    std::vector<double> ours, limit;
    for (uint64_t repeat = 0; repeat < repeats_; ++repeat) {
      std::vector<uint32_t> runs;
      std::vector<std::vector<BlockHash>> chains;
      std::vector<Entry> entries;
      std::vector<SlotId> freed;
      while (runs.size() < kRuns) {
        const uint32_t run = RandomLeaf();
        if (std::find(runs.begin(), runs.end(), run) != runs.end()) continue;
        runs.push_back(run);
        tree_->Erase(slots_.Of(uint64_t{run} * forest_.run_blocks()), &freed);
        chains.emplace_back();
        forest_.Chain(run, &chains.back());
        for (uint32_t b = 0; b < forest_.run_blocks(); ++b) {
          const uint64_t block = uint64_t{run} * forest_.run_blocks() + b;
          entries.push_back({KeyOf(HashOfBlock(block)), slots_.Of(block)});
          Demand(table->Erase(entries.back().key), "erase finds");
        }
      }
      Demand(freed.size() == uint64_t{kRuns} * forest_.run_blocks(), "leaves are erased whole");
      ours.push_back(TimeInsert(runs, chains));
      limit.push_back(TimeTableInsert(entries, table));
    }
    sink->Add({.name = "index.insert_ns",
               .unit = "ns",
               .limit_name = "open-addressing insert",
               .value = Median(ours),
               .limit = Median(limit),
               .n = repeats_ * kRuns * forest_.run_blocks(),
               .repeats = ours});
  }

  // The leaves' ages in random order; then the oldest go, block by block.
  void Evict(JsonSink* sink, OpenTable* table) {
    constexpr uint32_t kEvictions = 40000;
    Shuffle();
    std::vector<double> ours, limit, ours_p50, ours_max;
    for (uint64_t repeat = 0; repeat < repeats_; ++repeat) {
      std::vector<uint64_t> samples, erases;
      for (uint32_t i = 0; i < kEvictions; ++i) {
        const uint64_t begin = NowNs();
        const SlotId slot = tree_->EvictOne(Tier::kCpu);
        samples.push_back(NowNs() - begin);
        Demand(slot.valid(), "there is a leaf to evict");
      }
      for (uint32_t i = 0; i < kEvictions; ++i) {
        const uint64_t block = rng_.Below(forest_.blocks());
        const Key128 key = KeyOf(HashOfBlock(block));
        const uint64_t begin = NowNs();
        const bool erased = table->Erase(key);
        erases.push_back(NowNs() - begin);
        Demand(erased, "erase finds");
        table->Insert(key, slots_.Of(block).value);
      }
      ours.push_back(Percentile(samples, 0.99));
      ours_p50.push_back(Percentile(samples, 0.5));
      ours_max.push_back(Percentile(samples, 1.0));
      limit.push_back(Percentile(erases, 0.99));
    }
    std::fprintf(stderr, "# evict p50 %.0f ns, p99 %.0f ns, max %.0f ns\n", Median(ours_p50),
                 Median(ours), Median(ours_max));
    sink->Add({.name = "index.evict_p99",
               .unit = "ns",
               .limit_name = "open-addressing erase p99",
               .value = Median(ours),
               .limit = Median(limit),
               .n = repeats_ * kEvictions,
               .repeats = ours});
  }

  void BytesPerBlock(JsonSink* sink) const {
    const RadixTreeStats stats = tree_->stats();
    sink->Add({.name = "index.bytes_per_block",
               .unit = "B",
               .limit_name = "goal",
               .value = static_cast<double>(stats.bytes) / static_cast<double>(stats.blocks),
               .limit = 96,
               .n = stats.blocks,
               .repeats = {}});
  }

 private:
  struct Requests {
    std::vector<BlockHash> hashes;  // one chain behind the other
    std::vector<Key128> keys;
    std::vector<size_t> ends;
    size_t longest = 0;
  };
  struct Entry {
    Key128 key;
    SlotId slot;
  };

  uint32_t RandomLeaf() {
    return forest_.leaf_begin() + static_cast<uint32_t>(rng_.Below(forest_.leaves()));
  }
  void InsertRun(uint32_t run, const std::vector<BlockHash>& chain) {
    std::vector<SlotId> slots;
    const uint32_t count = forest_.run_blocks();
    for (uint32_t b = 0; b < count; ++b) slots.push_back(slots_.Of(uint64_t{run} * count + b));
    const absl::Status status =
        tree_->InsertPending(kNs, chain, static_cast<uint32_t>(chain.size()) - count, slots);
    Demand(status.ok(), "insert succeeds");
    for (SlotId slot : slots) tree_->Commit(slot);
  }

  Requests MakeRequests(uint64_t blocks) {
    Requests batch;
    std::vector<BlockHash> chain;
    while (batch.hashes.size() < blocks) {
      forest_.Chain(RandomLeaf(), &chain);
      batch.hashes.insert(batch.hashes.end(), chain.begin(), chain.end());
      batch.ends.push_back(batch.hashes.size());
      batch.longest = std::max(batch.longest, chain.size());
    }
    for (const BlockHash& hash : batch.hashes) batch.keys.push_back(KeyOf(hash));
    return batch;
  }

  double TimeMatch(const Requests& batch) {
    std::vector<SlotId> slots(batch.longest);
    uint64_t blocks = 0;
    size_t begin = 0;
    const uint64_t start = ThreadCpuNs();
    for (size_t end : batch.ends) {
      blocks += tree_->Match(kNs, {&batch.hashes[begin], end - begin}, slots).num_blocks;
      begin = end;
    }
    const uint64_t took = ThreadCpuNs() - start;
    KeepAlive(slots[0]);
    Demand(blocks == batch.hashes.size(), "every block matches");
    return static_cast<double>(took) / static_cast<double>(blocks);
  }

  double TimeTable(const Requests& batch) const {
    std::vector<uint32_t> slots(batch.longest);
    uint64_t blocks = 0;
    size_t begin = 0;
    const uint64_t start = ThreadCpuNs();
    for (size_t end : batch.ends) {
      blocks += table_->Match({&batch.keys[begin], end - begin}, slots.data());
      begin = end;
    }
    const uint64_t took = ThreadCpuNs() - start;
    KeepAlive(slots[0]);
    Demand(blocks == batch.keys.size(), "every key is found");
    return static_cast<double>(took) / static_cast<double>(blocks);
  }

  double TimeInsert(const std::vector<uint32_t>& runs,
                    const std::vector<std::vector<BlockHash>>& chains) {
    const uint64_t start = ThreadCpuNs();
    for (size_t i = 0; i < runs.size(); ++i) InsertRun(runs[i], chains[i]);
    return static_cast<double>(ThreadCpuNs() - start) /
           static_cast<double>(runs.size() * forest_.run_blocks());
  }

  static double TimeTableInsert(const std::vector<Entry>& entries, OpenTable* table) {
    const uint64_t start = ThreadCpuNs();
    for (const Entry& entry : entries) table->Insert(entry.key, entry.slot.value);
    return static_cast<double>(ThreadCpuNs() - start) / static_cast<double>(entries.size());
  }

  void Shuffle() {
    std::vector<uint32_t> order;
    for (uint32_t leaf = forest_.leaf_begin(); leaf < forest_.runs(); ++leaf) order.push_back(leaf);
    for (size_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[rng_.Below(i)]);
    std::vector<BlockHash> chain;
    for (uint32_t leaf : order) {
      forest_.Chain(leaf, &chain);
      tree_->Match(kNs, chain);
    }
  }

  Forest forest_;
  const OpenTable* table_;
  ScatteredSlots slots_;
  uint64_t repeats_;
  Rng rng_{9};
  std::unique_ptr<RadixTree> tree_;
};

int Run(const Args& args) {
  const uint64_t blocks = args.GetInt("blocks", 10000000) / 512 * 512;
  const uint64_t repeats = args.GetInt("repeats", 5);
  if (blocks < 512 * 512 || repeats == 0 || blocks > (1u << 29)) {
    std::fprintf(
        stderr,
        "usage: flexkv_index_bench [--blocks N, 262144 .. 2^29] [--repeats R] [--json FILE]\n");
    return 2;
  }
  JsonSink sink(args.Get("json", ""));
  OpenTable table(blocks);
  const ScatteredSlots slots(blocks);
  for (uint64_t block = 0; block < blocks; ++block) {
    table.Insert(KeyOf(HashOfBlock(block)), slots.Of(block).value);
  }
  const auto runs = [blocks](uint32_t run_blocks) {
    return static_cast<uint32_t>(blocks / run_blocks);
  };
  {  // inner runs must branch, or they would be one node with the next: 56 % of the runs are leaves
    IndexBench bench(Forest(runs(8), 8, static_cast<uint32_t>(runs(8) * 0.56), 2, 0, 1), &table,
                     repeats);
    bench.Match("index.match_ns_8", &sink);
  }
  {  // 512 blocks are eight nodes; there is room for no more than 12,500 leaves in 10 M blocks
    IndexBench bench(Forest(runs(512), 512, static_cast<uint32_t>(runs(512) * 0.64), 1, 0, 2),
                     &table, repeats);
    bench.Match("index.match_ns_512", &sink);
  }
  // 100,000 leaves in 10 M blocks. A tenth of the blocks are unbranched prompts of 8,192 blocks,
  // for the hit length.
  const uint32_t trunks =
      static_cast<uint32_t>(std::max<uint64_t>(1, blocks / 10 / Forest::kTrunkBlocks));
  IndexBench bench(Forest(runs(64), 64, static_cast<uint32_t>(blocks / 100), 1, trunks, 3), &table,
                   repeats);
  bench.Match("index.match_ns_64", &sink);
  bench.Match("index.match_ns", &sink);
  bench.HitLength(&sink, trunks);
  bench.BytesPerBlock(&sink);
  bench.Insert(&sink, &table);
  bench.Evict(&sink, &table);
  return 0;
}

}  // namespace
}  // namespace flexkv::bench

int main(int argc, char** argv) { return flexkv::bench::Run(flexkv::bench::Args(argc, argv)); }
