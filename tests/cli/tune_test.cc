// flexkv tune: what it finds on workloads whose best cache is known, and that flexkvd takes what it
// prints.
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>

#include "absl/strings/str_cat.h"
#include "flexkv/cli/tuner.h"
#include "flexkv/trace/generate.h"
#include "flexkv/trace/memory_source.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;
using testing::Not;
using Json = nlohmann::json;

constexpr uint64_t kMiB = 1ull << 20;

// `prompts` prompts of two blocks, one after another, over and over.
trace::RequestBatch Scan(uint64_t prompts, uint64_t requests) {
  trace::RequestBatch batch;
  for (uint64_t i = 0; i < requests; ++i) {
    trace::TraceRequest request;
    request.time_ns = i * kNsPerSecond;
    request.prompt_tokens = 1024;
    request.tokens_per_block = 512;
    request.first_block = batch.blocks.size();
    request.num_blocks = 2;
    batch.blocks.push_back(2 * (i % prompts) + 1);
    batch.blocks.push_back(2 * (i % prompts) + 2);
    batch.requests.push_back(request);
  }
  return batch;
}

cli::TuneRequest Budget(uint64_t memory, uint64_t ssd) {
  cli::TuneRequest request;
  request.memory_bytes = memory;
  request.ssd_bytes = ssd;
  request.block_bytes = kMiB;
  request.policies = {"lru", "lfu"};
  return request;
}

cli::TuneResult Tuned(const trace::RequestBatch& batch, const cli::TuneRequest& request) {
  const auto source = trace::MakeMemorySource(batch);
  const absl::StatusOr<cli::TuneResult> result = cli::Tune(source.get(), request);
  EXPECT_TRUE(result.ok()) << result.status();
  return result.ok() ? *result : cli::TuneResult{};
}

TEST(TunerTest, TakesWhatIsEnoughAndNoMore) {
  const cli::TuneResult result = Tuned(Scan(50, 2000), Budget(100000 * kMiB, 0));
  EXPECT_EQ(result.enough_blocks, 100u);
  EXPECT_LE(result.chosen.result.cell.cpu_blocks, 100u);
  EXPECT_NEAR(result.chosen.result.hit_rate(), result.infinite_rate, 0.005);
  EXPECT_TRUE(result.tops_out);
  EXPECT_TRUE(result.target_reached);
}

TEST(TunerTest, StaysWithinTheBudget) {
  const cli::TuneResult result = Tuned(Scan(50, 2000), Budget(60 * kMiB, 0));
  EXPECT_LE(result.chosen.result.cell.cpu_blocks, 60u);
  EXPECT_EQ(result.chosen.result.cell.ssd_blocks, 0u);
  EXPECT_FALSE(result.tops_out) << "twice the memory holds all of it";
}

TEST(TunerTest, AnSsdHoldsWhatMemoryCannot) {
  const cli::TuneResult result = Tuned(Scan(50, 2000), Budget(30 * kMiB, 1000 * kMiB));
  EXPECT_GT(result.chosen.result.cell.ssd_blocks, 60u);
  EXPECT_LE(result.chosen.result.cell.cpu_blocks, 30u);
  EXPECT_GT(result.chosen.result.hit_rate(), 0.9);
}

TEST(TunerTest, TargetsOutOfReachAreSaidToBe) {
  cli::TuneRequest request = Budget(60 * kMiB, 0);
  request.target_value = 0.99;
  EXPECT_FALSE(Tuned(Scan(50, 2000), request).target_reached);
}

TEST(TunerTest, TheCheapestThatReachesTheValue) {
  trace::TrafficOptions traffic = *trace::NamedTraffic("chat");
  traffic.requests = 1500;
  const trace::RequestBatch batch = *trace::GenerateTraffic(traffic);
  cli::TuneRequest request = Budget(1000000 * kMiB, 0);
  const double best = Tuned(batch, request).chosen.result.hit_rate();
  request.target = cli::TuneTarget::kCost;
  request.target_value = best / 2;
  const cli::TuneResult cheap = Tuned(batch, request);
  EXPECT_TRUE(cheap.target_reached);
  EXPECT_GE(cheap.chosen.result.hit_rate(), best / 2);
  request.target = cli::TuneTarget::kTtft;
  request.target_value.reset();
  const cli::TuneResult quick = Tuned(batch, request);
  EXPECT_GE(quick.chosen.cost, cheap.chosen.cost);
  EXPECT_LE(quick.chosen.ttft_s, cheap.chosen.ttft_s);
}

TEST(TunerTest, NothingToTune) {
  const auto source = trace::MakeMemorySource({});
  EXPECT_FALSE(cli::Tune(source.get(), Budget(kMiB, 0)).ok());
  const auto scan = trace::MakeMemorySource(Scan(5, 10));
  EXPECT_TRUE(absl::IsInvalidArgument(cli::Tune(scan.get(), Budget(1, 0)).status()));
}

TEST(VerifyTest, ADaemonAnswersWhatWasPredicted) {
  trace::TrafficOptions traffic = *trace::NamedTraffic("mixed");
  traffic.requests = 800;
  const auto source = trace::MakeMemorySource(*trace::GenerateTraffic(traffic));
  for (const uint64_t ssd : {0, 3000}) {
    trace::Cell cell;
    cell.policy = "lru";
    cell.cpu_blocks = 1500;
    cell.ssd_blocks = ssd;
    const absl::StatusOr<cli::VerifyResult> result = cli::VerifyLive(source.get(), cell);
    ASSERT_TRUE(result.ok()) << result.status();
    EXPECT_EQ(result->cell.cpu_blocks, 1536u) << "whole segments";
    EXPECT_EQ(result->requests, 800u);
    EXPECT_EQ(result->failed_loads, 0u);
    EXPECT_NEAR(result->predicted, result->measured, 0.005);
    EXPECT_GT(result->measured, 0.1);
  }
}

class TuneCommandTest : public testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(Run("trace generate chat --seed 3 --requests 400 -o chat.jsonl").code, 0);
  }
  CommandResult Run(const std::string& arguments) const {
    return Execute(absl::StrCat("cd ", dir_.path(), " && ", FLEXKV_CLI, " ", arguments));
  }
  CommandResult Check(const std::string& name) const {
    return Execute(absl::StrCat(FLEXKVD, " --check-config ", dir_.path(), "/", name));
  }
  void Write(const std::string& name, const std::string& text) const {
    std::ofstream(dir_.path() + "/" + name) << text;
  }
  TempDir dir_;
};

TEST_F(TuneCommandTest, TheDaemonTakesWhatItPrints) {
  Write("node.json",
        absl::StrCat(R"({"cache_config": {
    // what runs now
    "cpu_cache_bytes": "8MiB", "evict_ratio": 0.05, "evict_start_ratio": 0.7,
    "enable_ssd": true, "ssd_cache_dir": ")",
                     dir_.path(), R"(/ssd", "ssd_cache_bytes": "16MiB", "idle_exit_s": 60}})"));
  ASSERT_EQ(Check("node.json").code, 0) << Check("node.json").output;
  const CommandResult text =
      Run("tune chat.jsonl --memory 64MiB --ssd 256MiB --config node.json --block-bytes 64KiB "
          "-o better.json");
  ASSERT_EQ(text.code, 0) << text.output;
  EXPECT_EQ(Check("better.json").code, 0) << Check("better.json").output;
  EXPECT_THAT(text.output, HasSubstr("Now:"));
  EXPECT_THAT(text.output, HasSubstr("- evict_ratio: 0.05"));
  EXPECT_THAT(text.output, HasSubstr("Sensitivity"));
  EXPECT_THAT(text.output, HasSubstr("\"idle_exit_s\": 60"));
  const CommandResult json =
      Run("tune chat.jsonl --memory 64MiB --config node.json --block-bytes 64KiB --json");
  ASSERT_EQ(json.code, 0) << json.output;
  const Json found = Json::parse(json.output, nullptr, false);
  ASSERT_TRUE(found.is_object()) << json.output;
  EXPECT_EQ(found["config"]["cache_config"]["enable_ssd"], false);
  EXPECT_GT(found["expected"]["hit_rate"], found["present"]["hit_rate"]);
  Write("json.json", found["config"].dump());
  EXPECT_EQ(Check("json.json").code, 0) << Check("json.json").output;
}

TEST_F(TuneCommandTest, EveryTargetAndNoConfiguration) {
  for (const char* target : {"hit-rate", "ttft", "cost"}) {
    const std::string name = absl::StrCat(target, ".json");
    const CommandResult result = Run(absl::StrCat("tune chat.jsonl --memory 32MiB --block-bytes ",
                                                  "64KiB --target ", target, " -o ", name));
    EXPECT_EQ(result.code, 0) << result.output;
    EXPECT_EQ(Check(name).code, 0) << Check(name).output;
  }
}

TEST_F(TuneCommandTest, WrongArgumentsAreOneLine) {
  const auto refused = [&](const std::string& arguments, const std::string& words) {
    const CommandResult result = Run("tune chat.jsonl " + arguments);
    EXPECT_EQ(result.code, 2) << arguments;
    EXPECT_THAT(result.output, HasSubstr(words)) << arguments;
    EXPECT_EQ(std::count(result.output.begin(), result.output.end(), '\n'), 1) << result.output;
  };
  refused("--memory 64MiB", "--block-bytes");
  refused("--memory lots --block-bytes 1MiB", "--memory");
  refused("--memory 1KiB --block-bytes 1MiB", "--memory");
  refused("--memory 1GiB --ssd many --block-bytes 1MiB", "--ssd");
  refused("--memory 1GiB --block-bytes 1MiB --target-value 90", "0.9");
  refused("--memory 1GiB --block-bytes 1MiB --config nowhere.json", "nowhere.json");
  EXPECT_EQ(Run("tune chat.jsonl").code, 2);
  EXPECT_THAT(Run("tune --help").output, HasSubstr("Examples:"));
}

TEST_F(TuneCommandTest, VerifiedOnALiveDaemon) {
  const CommandResult result =
      Run("tune chat.jsonl --memory 64MiB --block-bytes 64KiB --policy lru --verify --json");
  ASSERT_EQ(result.code, 0) << result.output;
  const Json verified = Json::parse(result.output)["verified"];
  EXPECT_EQ(verified["requests"], 400);
  EXPECT_EQ(verified["failed_loads"], 0);
  EXPECT_NEAR(verified["predicted_hit_rate"].get<double>(),
              verified["measured_hit_rate"].get<double>(), 0.005);
}

}  // namespace
}  // namespace flexkv
