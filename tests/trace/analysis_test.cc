// Analysis against plain counting over random traces, and what advice says in plain situations.
#include "flexkv/trace/analysis.h"

#include <cmath>
#include <map>
#include <set>
#include <string>
#include <vector>

#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis_json.h"
#include "flexkv/trace/log_histogram.h"
#include "flexkv/trace/memory_source.h"
#include "flexkv/trace/prefix_table.h"
#include "flexkv/trace/regroup.h"
#include "flexkv/trace/report/report.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_seed.h"
#include "tests/trace/random_trace.h"

namespace flexkv::trace {
namespace {

using testing::HasSubstr;
using testing::Not;

constexpr uint64_t kMiB = 1ull << 20;

// A few hundred prompts of up to 12 blocks of 16 tokens that share beginnings.
RequestBatch RandomPrompts(uint64_t seed, uint32_t requests) {
  TestRng rng(seed);
  ChainMaker chains;
  RequestBatch batch;
  for (uint32_t i = 0; i < requests; ++i) {
    std::vector<uint64_t> labels(rng.Below(13));
    for (uint64_t& label : labels) label = rng.Below(3);
    AddRequest(chains.Chain(labels), &batch, RequestKind::kGetPut, 16);
    TraceRequest& request = batch.requests.back();
    request.prompt_tokens = request.num_blocks * 16 + static_cast<uint32_t>(rng.Below(16));
    request.ns = static_cast<uint32_t>(rng.Below(2));
  }
  return batch;
}

Analysis AnalysisOf(const RequestBatch& batch, const AnalyzeOptions& options = {}) {
  const auto source = MakeMemorySource(batch);
  absl::StatusOr<Analysis> analysis = Analyze(source.get(), options);
  EXPECT_TRUE(analysis.ok()) << analysis.status();
  return analysis.ok() ? std::move(*analysis) : Analysis{};
}

// `lookups` lookups of one block each of 1 MiB, of which `hits` were found in memory.
RequestBatch Measurements(uint32_t lookups, uint32_t hits, uint64_t load_ns) {
  RequestBatch batch;
  ChainMaker chains;
  for (uint32_t i = 0; i < lookups; ++i) {
    AddRequest(chains.Chain({i % 4}), &batch, RequestKind::kGetPut, 100);
    TraceRequest& request = batch.requests.back();
    request.prompt_tokens = 100;
    Measured& measured = request.measured;
    measured.present = true;
    measured.result = Result::kOk;
    measured.match_ns = 1000;
    if (i < hits) {
      measured.cpu_tokens = measured.loaded_tokens = 100;
      measured.load_ns = load_ns;
      measured.load_bytes = kMiB;
    } else {
      measured.accepted_blocks = 1;
      measured.store_ns = 100000;
      measured.store_bytes = kMiB;
    }
  }
  return batch;
}

TEST(LogHistogramTest, PercentilesAreWithinTheStatedError) {
  TestRng rng(TestSeed());
  LogHistogram histogram;
  std::vector<uint64_t> values;
  for (int i = 0; i < 20000; ++i) {
    values.push_back(rng.Next() >> rng.Below(63));
    histogram.Add(values.back());
  }
  std::sort(values.begin(), values.end());
  for (const double share : {0.001, 0.1, 0.5, 0.9, 0.99, 0.999, 1.0}) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(values.size())));
    const auto exact = static_cast<double>(values[std::max<size_t>(1, rank) - 1]);
    EXPECT_NEAR(static_cast<double>(histogram.Percentile(share)), exact, exact / 64 + 1) << share;
  }
  EXPECT_EQ(histogram.max(), values.back());
  uint64_t total = 0, last = 0;
  histogram.ForEachOctave([&](uint64_t low, uint64_t high, uint64_t count) {
    EXPECT_LE(low, high);
    EXPECT_TRUE(total == 0 || low > last);
    last = high;
    total += count;
  });
  EXPECT_EQ(total, values.size());
  EXPECT_EQ(LogHistogram().Percentile(0.5), 0u);
}

TEST(AnalysisTest, CountsWhatAPlainCountCounts) {
  const RequestBatch batch = RandomPrompts(TestSeed(), 400);
  const Analysis analysis = AnalysisOf(batch);
  std::map<uint64_t, uint64_t> found;  // by block
  uint64_t reachable = 0, accesses = 0, prompt = 0, partial = 0;
  for (const TraceRequest& request : batch.requests) {
    prompt += request.prompt_tokens;
    partial += request.prompt_tokens % 16;
    accesses += request.num_blocks;
    for (const uint64_t id : batch.BlocksOf(request)) {
      const auto it = found.find(id);
      if (it != found.end()) {
        reachable += 16;
        ++it->second;
      }
    }
    for (const uint64_t id : batch.BlocksOf(request)) found.try_emplace(id, 0);
  }
  uint64_t unread = 0;
  for (const auto& [id, uses] : found) unread += uses == 0;
  EXPECT_EQ(analysis.total.prompt_tokens, prompt);
  EXPECT_EQ(analysis.total.reachable_tokens, reachable);
  EXPECT_EQ(analysis.block_accesses, accesses);
  EXPECT_EQ(analysis.unique_blocks, found.size());
  EXPECT_EQ(analysis.never_read_blocks, unread);
  EXPECT_EQ(analysis.partial_tokens, partial);
  EXPECT_FALSE(analysis.measured);
  // Both ways to an infinite cache agree, and what is spread over rows adds up.
  ASSERT_TRUE(analysis.curve.has_value()) << analysis.no_curve;
  EXPECT_DOUBLE_EQ(analysis.curve->HitRateAt(kInfiniteBlocks), analysis.total.reachable_rate());
  TokenCounts by_namespace, by_time;
  for (const TokenCounts& row : analysis.by_namespace) by_namespace.Add(row);
  for (const TimeBucket& row : analysis.over_time) by_time.Add(row.tokens);
  EXPECT_EQ(by_namespace.reachable_tokens, reachable);
  EXPECT_EQ(by_time.reachable_tokens, reachable);
  uint64_t hits = 0;
  for (const ReuseDistance& row : analysis.reuse_distance) hits += row.hits;
  EXPECT_EQ(hits * 16, reachable);
  // Every found token is in exactly one run of the tree.
  AnalyzeOptions all;
  all.tree_segments = 100000;
  uint64_t saved = 0;
  for (const SharedPrefix& prefix : AnalysisOf(batch, all).tree) saved += prefix.saved_tokens;
  EXPECT_EQ(saved, reachable);
}

TEST(PrefixTableTest, ASampleStaysInItsMemoryAndEstimates) {
  constexpr uint64_t kBlocks = 60000;
  PrefixTable table(PrefixTable::kBytesPerBlock * 8192);
  LogHistogram gaps;
  uint64_t found = 0;
  for (uint64_t chain = 0; chain < kBlocks / 60; ++chain) {
    std::vector<uint64_t> ids;
    for (uint64_t i = 0; i < 60; ++i) ids.push_back(chain * 1000003 + i * 7919 + 1);
    table.Insert(ids, chain);
    if (chain % 2 == 0) found += table.Lookup(ids, chain + 1, &gaps);
  }
  EXPECT_GT(table.sample_shift(), 0u);
  EXPECT_NEAR(static_cast<double>(table.blocks()), kBlocks, 0.1 * kBlocks);
  EXPECT_NEAR(static_cast<double>(table.never_read()), kBlocks / 2.0, 0.1 * kBlocks);
  EXPECT_NEAR(static_cast<double>(found), kBlocks / 2.0, 0.1 * kBlocks);
  for (const PrefixTable::Segment& segment : table.SharedSegments()) {
    EXPECT_LE(segment.depth_blocks, 60u);
    EXPECT_GE(segment.blocks, 1u);
  }
}

TEST(PrefixTableTest, SharedRunsHangTogetherAsATree) {
  PrefixTable table(kMiB);
  LogHistogram gaps;
  const std::vector<uint64_t> left = {1, 2, 3, 4}, right = {1, 2, 5, 6};
  for (int i = 0; i < 4; ++i) {
    for (const auto& chain : {left, right}) {
      table.Lookup(chain, 0, &gaps);
      table.Insert(chain, 0);
    }
  }
  const auto segments = table.SharedSegments();
  ASSERT_EQ(segments.size(), 3u);
  EXPECT_EQ(segments[0].id, 2u);
  EXPECT_EQ(segments[0].blocks, 2u);
  EXPECT_EQ(segments[0].uses, 7u);
  EXPECT_EQ(segments[0].children, 2u);
  EXPECT_EQ(segments[0].saved_blocks, 14u);
  for (const size_t i : {1u, 2u}) {
    EXPECT_EQ(segments[i].parent, 0u);
    EXPECT_EQ(segments[i].depth_blocks, 4u);
    EXPECT_EQ(segments[i].blocks, 2u);
    EXPECT_EQ(segments[i].uses, 3u);
  }
}

TEST(AnalysisTest, MeasuredRatesLatenciesAndVerdicts) {
  const Analysis good = AnalysisOf(Measurements(1000, 900, 2 * kNsPerMs));
  EXPECT_TRUE(good.measured);
  EXPECT_DOUBLE_EQ(good.rate(), 0.9);
  EXPECT_EQ(good.verdict(), Verdict::kExcellent);
  EXPECT_EQ(good.block_bytes(), kMiB);
  EXPECT_EQ(good.leg(Leg::kLoad).operations, 900u);
  EXPECT_NEAR(static_cast<double>(good.leg(Leg::kLoad).ns_per_block.Percentile(0.5)), 2e6, 4e4);
  EXPECT_EQ(good.leg(Leg::kLoad).late_operations, 0u);
  EXPECT_EQ(good.leg(Leg::kStore).blocks, 100u);
  EXPECT_EQ(good.slowest.size(), 10u);
  EXPECT_EQ(good.slowest.front().total_ns(), 2 * kNsPerMs + 1000);
  EXPECT_EQ(AnalysisOf(Measurements(1000, 600, 1)).verdict(), Verdict::kGood);
  EXPECT_EQ(AnalysisOf(Measurements(1000, 499, 1)).verdict(), Verdict::kNeedsWork);
  EXPECT_EQ(AnalysisOf({}).verdict(), Verdict::kNothingToFind);
}

TEST(AdviceTest, NeverMoreMemoryWhereItCannotHelp) {
  RequestBatch batch;
  ChainMaker chains;
  for (uint64_t i = 0; i < 100; ++i) {  // every prompt once
    AddRequest(chains.Chain({i}), &batch, RequestKind::kGetPut, 100);
    batch.requests.back().measured.present = true;
  }
  const Analysis analysis = AnalysisOf(batch);
  const std::vector<Advice> advice = Advise(analysis, FactsOf(analysis));
  ASSERT_FALSE(advice.empty());
  EXPECT_THAT(advice.front().title, HasSubstr("more memory cannot help"));
  for (const Advice& piece : advice) EXPECT_THAT(piece.action, Not(HasSubstr("cpu_cache_bytes")));
}

TEST(AdviceTest, MemoryWhereTheCurveSaysSo) {
  RequestBatch batch;
  ChainMaker chains;
  for (uint64_t i = 0; i < 1000; ++i) {  // a scan of 100 prompts: LRU needs all 100 blocks
    AddRequest(chains.Chain({i % 100}), &batch, RequestKind::kGetPut, 100);
    batch.requests.back().prompt_tokens = 100;
    batch.requests.back().measured.present = true;
  }
  const Analysis analysis = AnalysisOf(batch);
  const std::vector<Advice> advice =
      Advise(analysis, FactsOfConfig(R"({"cpu_cache_bytes": 52428800})", kMiB));
  ASSERT_FALSE(advice.empty());
  EXPECT_THAT(advice.front().title, HasSubstr("90.0 % can be reached"));
  EXPECT_THAT(advice.front().action, HasSubstr("100 blocks (100 MiB)"));
  EXPECT_THAT(advice.front().evidence, HasSubstr("it holds 50 blocks (50.0 MiB)"));
}

TEST(AdviceTest, SlowTransfersAndEagerEviction) {
  const Analysis slow = AnalysisOf(Measurements(1000, 500, 30 * kNsPerMs));
  std::string titles;
  for (const Advice& piece : Advise(slow, FactsOf(slow))) titles += piece.title + "\n";
  EXPECT_THAT(titles, HasSubstr("CPU to GPU is slow"));
  CacheFacts eager = FactsOfConfig(
      R"({"cache_config": {"num_cpu_blocks": 50, "evict_ratio": 0.05, "evict_start_ratio": 0.7}})",
      0);
  EXPECT_EQ(eager.cpu_blocks, 50u);
  RequestBatch batch;
  ChainMaker chains;
  for (uint64_t i = 0; i < 1000; ++i) {
    AddRequest(chains.Chain({i % 45}), &batch, RequestKind::kGetPut, 100);
    batch.requests.back().prompt_tokens = 100;
    batch.requests.back().measured.present = true;
  }
  const Analysis scan = AnalysisOf(batch);
  titles.clear();
  for (const Advice& piece : Advise(scan, eager)) titles += piece.title + "\n";
  EXPECT_THAT(titles, HasSubstr("Blocks are evicted before there is need"));
}

TEST(AdviceTest, ConfigurationsThatAreNoneSayNothing) {
  for (const char* text : {"", "null", "[1]", "{", "{}", "12", R"({"cache_config": 7})"}) {
    EXPECT_FALSE(FactsOfConfig(text, 1).known) << text;
  }
  EXPECT_TRUE(FactsOfConfig(R"({"evict_ratio": "x", "cpu_cache_bytes": -1})", 1).known);
}

TEST(RegroupTest, ThreeBlocksBecomeOne) {
  RequestBatch batch;
  ChainMaker chains;
  AddRequest(chains.Chain({1, 2, 3, 4, 5, 6, 7}), &batch, RequestKind::kGetPut, 16);
  AddRequest(chains.Chain({1, 2}), &batch, RequestKind::kGetPut, 16);
  AddRequest(chains.Chain({1, 2, 3, 9, 9, 9}), &batch, RequestKind::kGetPut, 16);
  const auto source = MakeMemorySource(batch);
  const auto regrouped = MakeRegroupedSource(source.get(), 3);
  const absl::StatusOr<RequestBatch> read = ReadWholeTrace(regrouped.get(), kMiB);
  ASSERT_TRUE(read.ok()) << read.status();
  ASSERT_EQ(read->requests.size(), 3u);
  EXPECT_EQ(regrouped->info().tokens_per_block, 48u);
  const auto ids = [&](size_t i) {
    const auto span = read->BlocksOf(read->requests[i]);
    return std::vector<uint64_t>(span.begin(), span.end());
  };
  const auto whole = batch.BlocksOf(batch.requests[0]);
  EXPECT_EQ(ids(0), (std::vector<uint64_t>{whole[2], whole[5]}));
  EXPECT_TRUE(ids(1).empty());
  EXPECT_EQ(ids(2).front(), whole[2]);
  EXPECT_EQ(ids(2).size(), 2u);
}

TEST(ReportTest, NothingFromTheTraceCanLeaveItsPlace) {
  const std::string nasty =
      "</script><script>alert(1)</script><!--<script>&{{chart}}\xff\xe2\x80\xa8";
  Analysis analysis = AnalysisOf(Measurements(10, 5, 1));
  analysis.info.namespaces = {nasty};
  analysis.info.first_bad_lines = {{nasty, 1, nasty}};
  ReportInput input;
  input.files = {nasty};
  input.analysis = &analysis;
  input.advice = {{nasty, nasty, nasty, 1}};
  const std::string page = ReportHtml(input);
  EXPECT_THAT(page, Not(HasSubstr("alert(1)</script>")));
  EXPECT_THAT(page, Not(HasSubstr("\xff")));
  size_t scripts = 0;
  for (size_t at = page.find("</script"); at != std::string::npos;
       at = page.find("</script", at + 1)) {
    ++scripts;
  }
  EXPECT_EQ(scripts, 3u);
  EXPECT_THAT(page, HasSubstr("Chart.js"));
  EXPECT_THAT(page, Not(HasSubstr("src=")));
  EXPECT_EQ(page.find("{{data}}"), std::string::npos);
}

TEST(ReportTest, EmptyTracesHaveAPageToo) {
  const Analysis analysis = AnalysisOf({});
  ReportInput input;
  input.analysis = &analysis;
  input.advice = Advise(analysis, {});
  EXPECT_THAT(ReportHtml(input), HasSubstr("No lookups in this trace"));
}

}  // namespace
}  // namespace flexkv::trace
