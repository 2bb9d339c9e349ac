// One small file of each format, and exactly what is read from it.
#include <algorithm>
#include <string>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/trace/trace_files.h"

namespace flexkv::trace {
namespace {

using testing::ElementsAre;

std::string Golden(const std::string& name) { return std::string(FLEXKV_GOLDEN_DIR) + "/" + name; }

template <typename Get>
auto Each(const RequestBatch& batch, Get get) {
  std::vector<decltype(get(batch.requests[0]))> values;
  for (const TraceRequest& request : batch.requests) values.push_back(get(request));
  return values;
}

std::vector<uint64_t> TimesMs(const RequestBatch& batch) {
  return Each(batch, [](const TraceRequest& r) { return r.time_ns / 1000000; });
}

TEST(GoldenTest, Mooncake) {
  const WholeTrace trace = ReadAll({Golden("mooncake.jsonl")});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.format, TraceFormat::kMooncake);
  EXPECT_EQ(trace.info.tokens_per_block, 512u);
  EXPECT_THAT(trace.info.namespaces, ElementsAre(""));
  EXPECT_EQ(trace.info.lines, 6u);
  EXPECT_EQ(trace.info.bad_lines, 0u);
  EXPECT_EQ(trace.info.clamped_times, 1u);
  EXPECT_THAT(TimesMs(trace.all), ElementsAre(0, 250, 250, 300, 400, 400));
  EXPECT_EQ(trace.all.requests[2].time_ns, 250500000u);
  EXPECT_THAT(Each(trace.all, [](const TraceRequest& r) { return r.prompt_tokens; }),
              ElementsAre(1100, 1536, 2048, 512, 0, 600));
  EXPECT_THAT(Each(trace.all, [](const TraceRequest& r) { return r.output_tokens; }),
              ElementsAre(7, 1, 20, 0, 0, 2));
  // Full blocks only, and however a line is written, equal prefixes have equal ids.
  EXPECT_THAT(BlockNumbers(trace.all),
              ElementsAre(ElementsAre(0, 1), ElementsAre(0, 1, 2), ElementsAre(0, 1, 2, 3),
                          ElementsAre(4), ElementsAre(), ElementsAre(0)));
}

TEST(GoldenTest, QwenBailian) {
  const WholeTrace trace = ReadAll({Golden("qwen_bailian.jsonl")});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.format, TraceFormat::kQwenBailian);
  EXPECT_EQ(trace.info.tokens_per_block, 16u);
  EXPECT_THAT(TimesMs(trace.all), ElementsAre(0, 86, 14386, 18886));
  EXPECT_THAT(Each(trace.all, [](const TraceRequest& r) { return r.session; }),
              ElementsAre(8, 9, 8, 8));  // the root chat's id and one
  EXPECT_THAT(BlockNumbers(trace.all),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2), ElementsAre(0, 1, 3, 4),
                          ElementsAre(0, 1, 3, 4, 5)));
}

TEST(GoldenTest, Lmcache) {
  const WholeTrace trace = ReadAll({Golden("lmcache.jsonl")});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.format, TraceFormat::kLmcache);
  EXPECT_EQ(trace.info.tokens_per_block, 256u);
  EXPECT_THAT(trace.info.namespaces, ElementsAre("small", "large"));
  EXPECT_THAT(TimesMs(trace.all), ElementsAre(0, 375, 875, 1875));
  EXPECT_THAT(Each(trace.all, [](const TraceRequest& r) { return r.ns; }), ElementsAre(0, 1, 0, 0));
  EXPECT_THAT(BlockNumbers(trace.all),
              ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3), ElementsAre(0), ElementsAre(4)));
}

TEST(GoldenTest, FlexkvRequests) {
  const WholeTrace trace = ReadAll({Golden("flexkv_v1.jsonl")});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.format, TraceFormat::kFlexkv);
  EXPECT_THAT(trace.info.namespaces, ElementsAre("model-a"));
  EXPECT_EQ(trace.info.config_json, R"({"cpu":{"bytes":1073741824}})");
  EXPECT_TRUE(trace.info.has_blocks);
  EXPECT_EQ(trace.info.dropped_records, 5u);
  EXPECT_EQ(trace.info.unresolved_puts, 1u);
  EXPECT_EQ(trace.info.bad_lines, 1u);  // the last one is cut
  ASSERT_EQ(trace.info.first_bad_lines.size(), 1u);
  EXPECT_EQ(trace.info.first_bad_lines[0].number, 14u);
  EXPECT_EQ(trace.info.first_bad_lines[0].reason, "the line is cut");
  // The second put's chain is completed by the first's; the fourth's prefix is unknown; after the
  // reset the same hash is another block.
  EXPECT_THAT(BlockNumbers(trace.all),
              ElementsAre(ElementsAre(0, 1), ElementsAre(0, 1), ElementsAre(0, 1, 2),
                          ElementsAre(0, 1, 2, 3), ElementsAre(), ElementsAre(4)));
  EXPECT_THAT(Each(trace.all, [](const TraceRequest& r) { return r.time_ns; }),
              ElementsAre(0, 4000, 4500, 15000, 17000, 19000));
  ASSERT_EQ(trace.all.evictions.size(), 1u);
  EXPECT_EQ(trace.all.evictions[0].time_ns, 16000u);
  EXPECT_EQ(trace.all.evictions[0].tier, 1);
  EXPECT_EQ(trace.all.evictions[0].blocks, 3u);
}

TEST(GoldenTest, FlexkvMeasured) {
  const WholeTrace trace = ReadAll({Golden("flexkv_v1.jsonl")});
  ASSERT_EQ(trace.all.requests.size(), 6u);
  const TraceRequest& get = trace.all.requests[3];
  EXPECT_EQ(get.kind, RequestKind::kGet);
  EXPECT_EQ(get.prompt_tokens, 70u);
  EXPECT_EQ(get.tokens_per_block, 16u);
  EXPECT_EQ(get.hint, (RequestHint{0.75f, 30}));
  const Measured& measured = get.measured;
  EXPECT_TRUE(measured.present);
  EXPECT_EQ(measured.result, Result::kPartial);
  EXPECT_EQ(measured.engine_tokens, 16u);
  EXPECT_EQ(measured.cpu_tokens, 32u);
  EXPECT_EQ(measured.ssd_tokens, 16u);
  EXPECT_EQ(measured.remote_tokens, 16u);
  EXPECT_EQ(measured.loaded_tokens, 32u);
  EXPECT_EQ(measured.match_ns, 800u);
  EXPECT_EQ(measured.queue_ns, 11u);
  EXPECT_EQ(measured.load_ns, 12u);
  EXPECT_EQ(measured.load_bytes, 13u);
  EXPECT_EQ(measured.ssd_ns, 14u);
  EXPECT_EQ(measured.ssd_bytes, 15u);
  const TraceRequest& put = trace.all.requests[1];
  EXPECT_EQ(put.kind, RequestKind::kPut);
  EXPECT_EQ(put.prompt_tokens, 0u);
  EXPECT_EQ(put.measured.accepted_blocks, 2u);
  EXPECT_EQ(put.measured.store_ns, 90u);
  EXPECT_EQ(put.measured.store_bytes, 4096u);
}

}  // namespace
}  // namespace flexkv::trace
