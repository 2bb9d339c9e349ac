// Simulation: the manager in it against a model that keeps a set and a time per block; tiers, time,
// hints and threads.
#include "flexkv/trace/simulate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <set>

#include "flexkv/cache/planner.h"
#include "flexkv/index/policies.h"
#include "flexkv/trace/generate.h"
#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/replay.h"
#include "tests/trace/random_trace.h"

namespace flexkv::trace {
namespace {

constexpr uint64_t kMemory = 1ull << 30;  // keeps the address space of infinite cells small

std::vector<CellResult> RunCells(const RequestBatch& batch, const std::vector<Cell>& cells,
                                 SimulateOptions options = {}) {
  options.max_memory_bytes = kMemory;
  auto source = MakeMemorySource(batch);
  auto results = Simulate(source.get(), cells, options);
  EXPECT_TRUE(results.ok()) << results.status();
  if (!results.ok()) return std::vector<CellResult>(cells.size());
  return *std::move(results);
}

// Least recently used, leaves first, an insert keeps its own path.
class PlainLru {
 public:
  explicit PlainLru(uint64_t capacity) : capacity_(capacity) {}

  void Run(const RequestBatch& batch) {
    for (const TraceRequest& request : batch.requests) {
      const auto ids = batch.BlocksOf(request);
      if (request.kind != RequestKind::kPut) LookUp(ids);
      if (request.kind != RequestKind::kGet) Insert(ids);
    }
  }
  uint64_t hits = 0, inserted = 0, evicted = 0, read = 0;

 private:
  struct Block {
    uint64_t used = 0;
    uint64_t parent = 0;
    uint32_t children = 0;
    bool read = false;
  };
  void LookUp(std::span<const uint64_t> ids) {
    ++now_;
    for (uint64_t id : ids) {
      const auto block = blocks_.find(id);
      if (block == blocks_.end()) break;
      block->second.used = now_;
      read += !std::exchange(block->second.read, true);
      ++hits;
    }
  }
  void Insert(std::span<const uint64_t> ids) {
    ++now_;
    uint64_t parent = 0;
    for (uint64_t id : ids) {
      if (!blocks_.contains(id)) {
        const std::set<uint64_t> own(ids.begin(), ids.end());
        if (blocks_.size() >= capacity_ && !EvictOne(own)) return;
        blocks_[id] = {.used = now_, .parent = parent};
        if (parent != 0) ++blocks_[parent].children;
        ++inserted;
      }
      parent = id;
    }
  }
  bool EvictOne(const std::set<uint64_t>& own) {
    uint64_t oldest = 0;
    for (const auto& [id, block] : blocks_) {
      if (block.children > 0 || own.contains(id)) continue;
      if (oldest == 0 || block.used < blocks_[oldest].used) oldest = id;
    }
    if (oldest == 0) return false;
    if (const uint64_t parent = blocks_[oldest].parent; parent != 0) --blocks_[parent].children;
    blocks_.erase(oldest);
    ++evicted;
    return true;
  }

  const uint64_t capacity_;
  uint64_t now_ = 0;
  std::map<uint64_t, Block> blocks_;
};

TEST(SimulateTest, EqualsAPlainModelForLookupsAndInserts) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 8; ++round) {
    const RequestBatch batch = RandomTrace(
        {.requests = 400, .longest = 2 + rng.Below(12), .labels = 3, .all_kinds = round % 2 == 0},
        &rng);
    std::vector<Cell> cells;
    for (uint64_t c : {1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 200})
      cells.push_back({.policy = "lru", .cpu_blocks = c});
    for (const CellResult& result : RunCells(batch, cells)) {
      PlainLru plain(result.cell.cpu_blocks);
      plain.Run(batch);
      const std::string where =
          "round " + std::to_string(round) + ", " + std::to_string(result.cell.cpu_blocks);
      ASSERT_EQ(result.hit_tokens_cpu, plain.hits) << where;
      ASSERT_EQ(result.inserted_blocks, plain.inserted) << where;
      ASSERT_EQ(result.evicted_blocks, plain.evicted) << where;
      ASSERT_EQ(result.never_read_blocks, plain.inserted - plain.read) << where;
      ASSERT_EQ(result.hit_tokens_ssd, 0u);
    }
  }
}

TEST(SimulateTest, CapacitiesAreExact) {
  TestRng rng(TestSeed() + 1);
  for (int i = 0; i < 3000; ++i) {
    const uint64_t n =
        i < 1500 ? static_cast<uint64_t>(i) + 1 : 1 + rng.Below(1ull << (8 + i % 20));
    for (bool with_ssd : {false, true}) {
      const ReplayGeometry plan = PlanReplay(n, with_ssd);
      const uint64_t shard[] = {kReplayBlockBytes};
      const auto cut = PlanGeometry(shard, plan.segment_bytes, plan.cache_bytes, with_ssd);
      ASSERT_TRUE(cut.has_value()) << n;
      const uint64_t slots = uint64_t{cut->slots_per_group} * cut->max_groups - plan.ballast;
      if (with_ssd && n > 8192) {
        ASSERT_GE(slots, n);
        ASSERT_LT(slots, n + 512) << n;
      } else {
        ASSERT_EQ(slots, n) << with_ssd;
      }
    }
  }
}

TEST(SimulateTest, BallastTakesNoPart) {
  // A prime above what groups of slots divide: held down by blocks that never leave.
  constexpr uint64_t kCapacity = 40009;
  ASSERT_GT(PlanReplay(kCapacity, false).ballast, 0u);
  ChainMaker ids;
  RequestBatch batch;
  std::vector<uint64_t> labels(kCapacity);
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = i;
  AddRequest(ids.Chain(labels), &batch);
  AddRequest(ids.Chain(labels), &batch);
  AddRequest(ids.Chain({kCapacity + 1}), &batch);
  AddRequest(ids.Chain(labels), &batch);
  const CellResult result = RunCells(batch, {{.policy = "lru", .cpu_blocks = kCapacity}})[0];
  EXPECT_EQ(result.hit_tokens_cpu, kCapacity + kCapacity - 1);
  EXPECT_EQ(result.inserted_blocks, kCapacity + 2);
  EXPECT_EQ(result.evicted_blocks, 2u);
}

TEST(SimulateTest, SsdTierKeepsWhatMemoryLoses) {
  TestRng rng(TestSeed() + 2);
  for (int round = 0; round < 4; ++round) {
    const RequestBatch batch = RandomTrace(
        {.requests = 600, .longest = 12, .labels = 4, .all_kinds = round % 2 == 1}, &rng);
    std::vector<Cell> cells = {{.policy = "lru"}, {.policy = "lru", .cpu_blocks = 40}};
    for (uint64_t ssd : {60, 200, 5000, 100000}) {
      cells.push_back({.policy = "lru", .cpu_blocks = 40, .ssd_blocks = ssd});
      cells.push_back({.policy = "lru",
                       .cpu_blocks = 40,
                       .ssd_blocks = ssd,
                       .admission = SsdAdmission::kSecondTouch});
    }
    const std::vector<CellResult> results = RunCells(batch, cells);
    const uint64_t infinite = results[0].hit_tokens_cpu;
    for (size_t i = 2; i < results.size(); ++i) {
      const CellResult& result = results[i];
      const bool always = result.cell.admission == SsdAdmission::kAlways;
      ASSERT_LE(result.hit_tokens_cpu + result.hit_tokens_ssd, infinite);
      ASSERT_LE(result.ssd_written_blocks, result.inserted_blocks);
      ASSERT_LE(result.never_read_blocks, result.inserted_blocks);
      ASSERT_LE(result.evicted_blocks, result.inserted_blocks);
      ASSERT_EQ(result.prompt_tokens, results[0].prompt_tokens);
      if (!always) {
        ASSERT_LE(result.ssd_written_blocks, results[i - 1].ssd_written_blocks);
      }
      if (always && result.cell.ssd_blocks >= 5000) {  // holds everything
        ASSERT_EQ(result.hit_tokens_cpu + result.hit_tokens_ssd, infinite);
        ASSERT_EQ(result.ssd_written_blocks, result.inserted_blocks);
        ASSERT_EQ(result.evicted_blocks, 0u);
        ASSERT_GT(result.hit_tokens_ssd, 0u);
      }
    }
  }
}

TEST(SimulateTest, CellsConserveSlots) {
  TestRng rng(TestSeed() + 3);
  const RequestBatch batch =
      RandomTrace({.requests = 300, .longest = 12, .labels = 4, .all_kinds = true}, &rng);
  SimulateOptions options;
  options.max_memory_bytes = kMemory;
  ReplayBatch shared;
  shared.batch = &batch;
  for (uint64_t id : batch.blocks) {
    BlockHash hash;
    hash.words = {id * 0x9E3779B97F4A7C15ull, id, 0, 0};
    shared.hashes.push_back(hash);
    shared.numbers.push_back(static_cast<uint32_t>(id));
  }
  shared.hints.resize(batch.requests.size());
  shared.numbers_end = 1 << 20;
  for (bool timed : {false, true}) {
    options.timed = timed;
    for (uint64_t ssd : {0, 100, 3000}) {
      auto cell =
          CellReplay::New({.policy = "lru", .cpu_blocks = 50, .ssd_blocks = ssd}, options, 16);
      ASSERT_TRUE(cell.ok());
      ASSERT_TRUE((*cell)->Run(shared).ok());
      EXPECT_TRUE((*cell)->manager().CheckInvariants().ok());
      ASSERT_TRUE((*cell)->Finish().ok());
      EXPECT_TRUE((*cell)->manager().CheckInvariants().ok())
          << (*cell)->manager().CheckInvariants();
      const ManagerStatus status = (*cell)->manager().status();
      EXPECT_EQ(status.ops_in_flight, 0u);
      EXPECT_EQ(status.requests, 0u);
      EXPECT_EQ(status.pinned_blocks, 0u);
      EXPECT_LE(status.used_slots, 50u);
    }
  }
}

TEST(SimulateTest, ThreadsDoNotChangeResults) {
  TestRng rng(TestSeed() + 4);
  const RequestBatch batch =
      RandomTrace({.requests = 3000, .longest = 20, .labels = 3, .all_kinds = true}, &rng);
  std::vector<Cell> cells;
  for (std::string_view policy : PolicyNames()) {
    for (uint64_t c : {17, 100, 400}) {
      cells.push_back({.policy = std::string(policy), .cpu_blocks = c});
      cells.push_back({.policy = std::string(policy), .cpu_blocks = c, .ssd_blocks = 300});
    }
  }
  cells.push_back({.policy = "min", .cpu_blocks = 100});
  cells.push_back({});
  for (bool timed : {false, true}) {
    SimulateOptions options{.timed = timed, .hint_oracle = 0.9};
    options.threads = 1;
    const auto one = RunCells(batch, cells, options);
    options.threads = 4;
    const auto four = RunCells(batch, cells, options);
    for (size_t i = 0; i < cells.size(); ++i) {
      EXPECT_EQ(one[i].hit_tokens_cpu, four[i].hit_tokens_cpu) << cells[i].policy;
      EXPECT_EQ(one[i].hit_tokens_ssd, four[i].hit_tokens_ssd);
      EXPECT_EQ(one[i].inserted_blocks, four[i].inserted_blocks);
      EXPECT_EQ(one[i].evicted_blocks, four[i].evicted_blocks);
      EXPECT_EQ(one[i].never_read_blocks, four[i].never_read_blocks);
      EXPECT_EQ(one[i].ssd_written_blocks, four[i].ssd_written_blocks);
    }
  }
}

// Whatever gives way for good, what was used lately stays in memory: an SSD behind it takes nothing
// from what memory serves.
TEST(SimulateTest, MemoryInFrontOfAnSsdServesWhatWasUsedLately) {
  TrafficOptions traffic = NamedTraffic("mixed").value();
  traffic.requests = 2000;
  const RequestBatch batch = GenerateTraffic(traffic).value();
  std::vector<Cell> cells;
  for (const char* policy : {"lru", "hazard", "lrfu", "arc"}) {
    cells.push_back({.policy = policy, .cpu_blocks = 500, .ssd_blocks = 4000});
  }
  const auto results = RunCells(batch, cells, {});
  ASSERT_GT(results[0].hit_rate_cpu(), 0.05);
  for (const CellResult& result : results) {
    EXPECT_GT(result.hit_rate_cpu(), 0.9 * results[0].hit_rate_cpu()) << result.cell.policy;
    EXPECT_GT(result.hit_rate(), 0.9 * results[0].hit_rate()) << result.cell.policy;
  }
}

TEST(SimulateTest, EveryPolicyKeepsItsBounds) {
  TestRng rng(TestSeed() + 5);
  const RequestBatch batch = RandomTrace({.requests = 2000, .longest = 20, .labels = 3}, &rng);
  std::vector<Cell> cells = {{.policy = "min", .cpu_blocks = 150}, {.policy = "lru"}};
  for (std::string_view policy : PolicyNames())
    cells.push_back({.policy = std::string(policy), .cpu_blocks = 150});
  const auto results = RunCells(batch, cells);
  for (size_t i = 2; i < results.size(); ++i) {
    EXPECT_LE(results[i].hit_tokens_cpu, results[0].hit_tokens_cpu) << cells[i].policy;
    EXPECT_LE(results[0].hit_tokens_cpu, results[1].hit_tokens_cpu);
    EXPECT_EQ(results[i].inserted_blocks - results[i].evicted_blocks, 150u) << cells[i].policy;
  }
}

TEST(SimulateTest, HintsFromTheFutureAreRightAsOftenAsAsked) {
  // Hints reach nobody with LRU; what is told is checked through the policies elsewhere. Here: the
  // oracle changes nothing for LRU, and the same seed gives the same run.
  TestRng rng(TestSeed() + 6);
  const RequestBatch batch =
      RandomTrace({.requests = 500, .longest = 12, .labels = 3, .all_kinds = true}, &rng);
  const std::vector<Cell> cells = {{.policy = "lru", .cpu_blocks = 60}};
  const uint64_t plain = RunCells(batch, cells)[0].hit_tokens_cpu;
  EXPECT_EQ(RunCells(batch, cells, {.hint_oracle = 0.9})[0].hit_tokens_cpu, plain);
  EXPECT_EQ(RunCells(batch, cells, {.hint_oracle = 1, .hint_seed = 7})[0].hit_tokens_cpu, plain);
}

TEST(SimulateTest, RefusesWhatItCannotDo) {
  TestRng rng(TestSeed() + 7);
  const RequestBatch batch = RandomTrace({.requests = 3000, .longest = 30, .labels = 90}, &rng);
  const auto status_of = [&](const Cell& cell, uint64_t memory) {
    auto source = MakeMemorySource(batch);
    return Simulate(source.get(), {cell}, {.max_memory_bytes = memory}).status();
  };
  EXPECT_TRUE(absl::IsInvalidArgument(status_of({.policy = "no such"}, kMemory)));
  EXPECT_TRUE(absl::IsInvalidArgument(status_of({.cpu_blocks = 0}, kMemory)));
  EXPECT_TRUE(absl::IsInvalidArgument(status_of({.cpu_blocks = 1ull << 40}, kMemory)));
  const absl::Status full = status_of({.policy = "lru"}, 1 << 20);
  EXPECT_TRUE(absl::IsResourceExhausted(full)) << full;
  EXPECT_TRUE(absl::IsResourceExhausted(status_of({.policy = "min"}, 1 << 16)));
  EXPECT_TRUE(status_of({.policy = "min", .cpu_blocks = 0}, kMemory).ok());
  EXPECT_TRUE(Simulate(MakeMemorySource(batch).get(), {}).ok());
  EXPECT_EQ(RunCells({}, {{.cpu_blocks = 5}})[0].requests, 0u);
}

TEST(SimulateTest, SurvivesIdsThatAreNotChained) {
  TestRng rng(TestSeed() + 8);
  RequestBatch batch;
  for (int i = 0; i < 1000; ++i) {
    std::vector<uint64_t> ids(rng.Below(20));
    for (uint64_t& id : ids) id = rng.Below(25);
    AddRequest(ids, &batch, static_cast<RequestKind>(rng.Below(3)));
  }
  RunCells(batch,
           {{.cpu_blocks = 7},
            {.cpu_blocks = 30},
            {.cpu_blocks = 10, .ssd_blocks = 40},
            {.policy = "min", .cpu_blocks = 10},
            {}},
           {.hint_oracle = 0.8});
}

TEST(SimulateTest, ReportsProgress) {
  TestRng rng(TestSeed() + 9);
  const RequestBatch batch = RandomTrace({.requests = 20000, .longest = 20, .labels = 3}, &rng);
  std::vector<double> seen;
  SimulateOptions options;
  options.progress = [&](double done) { seen.push_back(done); };
  RunCells(batch, {{.cpu_blocks = 100}, {.policy = "min", .cpu_blocks = 100}}, options);
  ASSERT_GE(seen.size(), 3u);
  EXPECT_TRUE(std::is_sorted(seen.begin(), seen.end()));
  EXPECT_EQ(seen.back(), 1);
}

TEST(ParseBlockCountTest, ReadsPeoplesNumbers) {
  const std::vector<std::pair<const char*, uint64_t>> good = {{"0", 0},
                                                              {"800", 800},
                                                              {"10k", 10000},
                                                              {"1.5M", 1500000},
                                                              {"2G", 2000000000},
                                                              {"inf", kInfiniteBlocks},
                                                              {"INF", kInfiniteBlocks},
                                                              {"0.5k", 500}};
  for (const auto& [text, value] : good) {
    const auto parsed = ParseBlockCount(text);
    ASSERT_TRUE(parsed.ok()) << parsed.status();
    EXPECT_EQ(*parsed, value) << text;
  }
  for (const char* text :
       {"", "k", "-1", "1.5", "10kk", "ten", "1e5", "0x10", "9999999T", " 5", "nan"}) {
    const auto parsed = ParseBlockCount(text);
    ASSERT_FALSE(parsed.ok()) << text;
    EXPECT_NE(std::string(parsed.status().message()).find(text), std::string::npos);
  }
}

}  // namespace
}  // namespace flexkv::trace
