#include "flexkv/trace/generate.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <set>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace flexkv::trace {
namespace {

RequestBatch Make(TrafficOptions options) {
  absl::StatusOr<RequestBatch> batch = GenerateTraffic(options);
  EXPECT_TRUE(batch.ok()) << batch.status();
  return *std::move(batch);
}

RequestBatch Make(std::string_view name, uint64_t requests, uint64_t seed = 1) {
  TrafficOptions options = NamedTraffic(name).value();
  options.requests = requests;
  options.seed = seed;
  return Make(options);
}

// Blocks asked for before, of all blocks asked for.
double InfiniteHits(const RequestBatch& batch) {
  std::unordered_set<uint64_t> seen;
  double hits = 0;
  for (uint64_t block : batch.blocks) hits += !seen.insert(block).second;
  return hits / static_cast<double>(batch.blocks.size());
}

TEST(GenerateTest, EqualSeedsGiveEqualTraffic) {
  for (std::string_view name : TrafficNames()) {
    const RequestBatch a = Make(name, 500), b = Make(name, 500), other = Make(name, 500, 2);
    EXPECT_EQ(a.blocks, b.blocks) << name;
    EXPECT_NE(a.blocks, other.blocks) << name;
    for (size_t i = 0; i < a.requests.size(); ++i) {
      ASSERT_EQ(a.requests[i].time_ns, b.requests[i].time_ns);
      ASSERT_EQ(a.requests[i].output_tokens, b.requests[i].output_tokens);
    }
  }
}

// What every reader and simulator relies on: full blocks only, ids that stand for their whole
// prefix, time that never falls.
TEST(GenerateTest, IdsAreChainedAndTimeRises) {
  for (std::string_view name : TrafficNames()) {
    const RequestBatch batch = Make(name, 2000);
    ASSERT_EQ(batch.requests.size(), 2000u);
    std::unordered_map<uint64_t, uint64_t> parents;
    int64_t last_ns = 0;
    for (const TraceRequest& request : batch.requests) {
      EXPECT_GE(static_cast<int64_t>(request.time_ns), last_ns);
      last_ns = static_cast<int64_t>(request.time_ns);
      EXPECT_EQ(request.num_blocks, request.prompt_tokens / 512);
      uint64_t parent = request.ns + 1;  // tenants share nothing
      for (uint64_t block : batch.BlocksOf(request)) {
        EXPECT_EQ(parents.try_emplace(block, parent).first->second, parent) << name;
        parent = block;
      }
    }
  }
}

TEST(GenerateTest, RateAndReuseAreTheFamilys) {
  const std::map<std::string, std::pair<double, double>> reuse = {
      {"chat", {0.4, 0.9}},      {"chat-pareto", {0.3, 0.9}}, {"chat-long", {0.6, 0.95}},
      {"agents", {0.85, 0.999}}, {"documents", {0.4, 0.95}},  {"flood", {0.15, 0.6}},
      {"scan", {0.5, 0.99}},     {"mixed", {0.5, 0.95}},      {"bursts", {0.4, 0.95}},
      {"tenants", {0.4, 0.95}}};
  for (std::string_view name : TrafficNames()) {
    const RequestBatch batch = Make(name, 10000);
    const auto [low, high] = reuse.at(std::string(name));
    EXPECT_GT(InfiniteHits(batch), low) << name;
    EXPECT_LT(InfiniteHits(batch), high) << name;
    const double seconds = static_cast<double>(batch.requests.back().time_ns) / 1e9;
    const double rate = 10000 / seconds / NamedTraffic(name)->requests_per_s;
    EXPECT_GT(rate, 0.4) << name;                           // sessions are still starting up
    EXPECT_LT(rate, name == "bursts" ? 2.6 : 1.7) << name;  // bursts come on top
  }
}

TEST(GenerateTest, TurnsContinueTheirConversation) {
  const RequestBatch batch = Make("chat", 5000);
  std::unordered_map<uint64_t, std::vector<const TraceRequest*>> sessions;
  for (const TraceRequest& request : batch.requests) sessions[request.session].push_back(&request);
  std::vector<double> gaps;
  for (const auto& [session, turns] : sessions) {
    for (size_t i = 1; i < turns.size(); ++i) {
      ASSERT_GE(turns[i]->num_blocks, turns[i - 1]->num_blocks);
      const auto before = batch.BlocksOf(*turns[i - 1]), now = batch.BlocksOf(*turns[i]);
      EXPECT_TRUE(std::equal(before.begin(), before.end(), now.begin()));
      gaps.push_back(static_cast<double>(turns[i]->time_ns - turns[i - 1]->time_ns) / 1e9);
    }
  }
  std::sort(gaps.begin(), gaps.end());
  EXPECT_NEAR(std::log(gaps[gaps.size() / 2]), std::log(45), 0.3);
  EXPECT_GT(gaps[gaps.size() * 95 / 100], 4 * gaps[gaps.size() / 2]);
}

TEST(GenerateTest, ScansComeAroundInOrder) {
  TrafficOptions options;
  options.scan.weight = 1;
  options.scan.items = 10;
  options.requests = 100;
  const RequestBatch batch = Make(options);
  for (size_t i = 10; i < 100; ++i) {
    const auto now = batch.BlocksOf(batch.requests[i]);
    const auto before = batch.BlocksOf(batch.requests[i - 10]);
    EXPECT_TRUE(std::equal(before.begin(), before.end(), now.begin(), now.end()));
  }
}

TEST(GenerateTest, MooncakeLines) {
  RequestBatch batch;
  batch.blocks = {77, 99, 77};
  batch.requests = {{.prompt_tokens = 1030,
                     .output_tokens = 7,
                     .tokens_per_block = 512,
                     .first_block = 0,
                     .num_blocks = 2},
                    {.time_ns = 2'500'000,
                     .prompt_tokens = 512,
                     .output_tokens = 1,
                     .tokens_per_block = 512,
                     .first_block = 2,
                     .num_blocks = 1}};
  std::ostringstream out;
  ASSERT_TRUE(WriteMooncake(batch, &out).ok());
  EXPECT_EQ(out.str(),
            "{\"timestamp\": 0, \"input_length\": 1030, \"output_length\": 7, \"hash_ids\": [0, 1, "
            "2]}\n{\"timestamp\": 2, \"input_length\": 512, \"output_length\": 1, \"hash_ids\": "
            "[0]}\n");
  out.setstate(std::ios::badbit);
  EXPECT_EQ(WriteMooncake(batch, &out).code(), absl::StatusCode::kUnavailable);
}

TEST(GenerateTest, NonsenseIsRefused) {
  EXPECT_EQ(NamedTraffic("chatter").status().code(), absl::StatusCode::kNotFound);
  EXPECT_FALSE(GenerateTraffic(TrafficOptions{}).ok());  // no weight
  TrafficOptions options = NamedTraffic("chat").value();
  options.chat.gap.median_s = std::nan("");
  EXPECT_FALSE(GenerateTraffic(options).ok());
  options = NamedTraffic("chat").value();
  options.tenants = 0;
  EXPECT_FALSE(GenerateTraffic(options).ok());
  options = NamedTraffic("chat").value();
  options.requests = 0;
  EXPECT_TRUE(Make(options).requests.empty());
}

}  // namespace
}  // namespace flexkv::trace
