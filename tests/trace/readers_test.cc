// Files as they come: packed, cut, corrupt, empty, mixed, huge, hostile.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <chrono>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/trace/trace_files.h"

namespace flexkv::trace {
namespace {

using testing::HasSubstr;

std::string Line(uint64_t time_ms, const std::string& ids, uint64_t tokens = 5120) {
  return absl::StrCat("{\"timestamp\": ", time_ms, ", \"input_length\": ", tokens,
                      ", \"output_length\": 1, \"hash_ids\": [", ids, "]}\n");
}

std::string Lines(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += Line(static_cast<uint64_t>(i), absl::StrCat("0, 1, ", i));
  return text;
}

std::string Words(const absl::Status& status) { return std::string(status.message()); }

long PeakMemoryMb() {
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_maxrss / 1024;
}

class ReadersTest : public testing::Test {
 protected:
  WholeTrace Read(const std::string& text, const OpenTraceOptions& options = {}) {
    return ReadAll({folder_.Write("trace", text)}, options);
  }
  // The reason of the one bad line between two good ones.
  std::string WhyBad(const std::string& line) {
    const WholeTrace trace = Read(Line(1, "1") + line + "\n" + Line(2, "2"));
    EXPECT_TRUE(trace.ended.ok()) << trace.ended << " of " << line;
    EXPECT_EQ(trace.all.requests.size(), 2u) << line;
    EXPECT_EQ(trace.info.bad_lines, 1u) << line;
    if (trace.info.first_bad_lines.empty()) return "";
    EXPECT_EQ(trace.info.first_bad_lines[0].number, 2u);
    return trace.info.first_bad_lines[0].reason;
  }

  TempFolder folder_;
};

TEST_F(ReadersTest, PackedFilesReadTheSame) {
  const std::string text = Lines(3000);
  const WholeTrace plain = Read(text);
  ASSERT_EQ(plain.all.requests.size(), 3000u);
  const std::string half = text.substr(0, text.size() / 2), rest = text.substr(text.size() / 2);
  for (const std::string& packed :
       {Gzip(text), Zstd(text), Gzip(half) + Gzip(rest), Zstd(half) + Zstd(rest),
        Gzip(text) + std::string(512, '\0'), Gzip("") + Gzip(text), Zstd("") + Zstd(text)}) {
    const WholeTrace trace = Read(packed);
    ASSERT_TRUE(trace.ended.ok()) << trace.ended;
    EXPECT_EQ(trace.all.blocks, plain.all.blocks);
    EXPECT_EQ(trace.info.bytes_read, packed.size());
    EXPECT_EQ(trace.info.lines, 3000u);
  }
}

TEST_F(ReadersTest, CutPackedFilesAreToldAfterWhatTheyHold) {
  const std::string text = Lines(20000);
  for (const std::string& packed : {Gzip(text), Zstd(text)}) {
    const WholeTrace trace = Read(packed.substr(0, packed.size() * 9 / 10));
    ASSERT_TRUE(trace.opened.ok());
    EXPECT_TRUE(absl::IsDataLoss(trace.ended)) << trace.ended;
    EXPECT_THAT(Words(trace.ended), HasSubstr("cut"));
    EXPECT_GT(trace.all.requests.size(), 1000u);
  }
}

TEST_F(ReadersTest, CorruptPackedFilesAreTold) {
  const std::string text = Lines(20000);
  for (std::string packed : {Gzip(text), Zstd(text)}) {
    for (size_t i = packed.size() / 2; i < packed.size() / 2 + 64; ++i) packed[i] ^= 0x55;
    const WholeTrace trace = Read(packed);
    const absl::Status status = trace.opened.ok() ? trace.ended : trace.opened;
    EXPECT_FALSE(status.ok());
    EXPECT_TRUE(absl::IsDataLoss(status) || absl::IsInvalidArgument(status)) << status;
  }
}

TEST_F(ReadersTest, EmptyFilesAreRefused) {
  for (const std::string& text : {std::string(), std::string("\n \r\n\t\n"), Gzip(""), Zstd("")}) {
    const WholeTrace trace = Read(text);
    EXPECT_TRUE(absl::IsInvalidArgument(trace.opened)) << trace.opened;
    EXPECT_THAT(Words(trace.opened), HasSubstr("is empty"));
  }
}

TEST_F(ReadersTest, WhatIsNoTraceIsRefused) {
  for (const std::string& text :
       {std::string("hello\n"), std::string("{}\n"), std::string("[1,2]\n"),
        std::string("{\"a\":1}\n{\"timestamp\":1}\n"), std::string(100000, '\0'),
        std::string("\x89PNG\r\n\x1a\n\0\0", 10)}) {
    const WholeTrace trace = Read(text);
    EXPECT_TRUE(absl::IsInvalidArgument(trace.opened)) << trace.opened;
    EXPECT_THAT(Words(trace.opened), HasSubstr("known format"));
  }
}

TEST_F(ReadersTest, FilesThatCannotBeOpened) {
  EXPECT_TRUE(absl::IsNotFound(ReadAll({folder_.Path("none")}).opened));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAll({folder_.Path("")}).opened));
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAll({}).opened));
  if (geteuid() != 0) {
    const std::string path = folder_.Write("secret", Lines(1));
    std::filesystem::permissions(path, std::filesystem::perms::none);
    EXPECT_TRUE(absl::IsPermissionDenied(ReadAll({path}).opened));
  }
}

TEST_F(ReadersTest, MixedFormatsAreRefused) {
  const std::string qwen =
      "{\"chat_id\":1,\"parent_chat_id\":-1,\"timestamp\":1,\"input_length\":16,"
      "\"output_length\":1,\"hash_ids\":[1]}\n";
  const std::string ours = "{\"k\":\"get\",\"t\":1}\n";
  for (const auto& [first, second] : std::vector<std::pair<std::string, std::string>>{
           {Line(1, "1"), qwen}, {qwen, Line(1, "1")}, {Line(1, "1"), ours}, {ours, qwen}}) {
    const WholeTrace one = Read(first + second);
    EXPECT_TRUE(absl::IsInvalidArgument(one.opened.ok() ? one.ended : one.opened));
    EXPECT_THAT(Words(one.opened.ok() ? one.ended : one.opened), HasSubstr("trace:2: a line of"));
    const WholeTrace two = ReadAll({folder_.Write("a", first), folder_.Write("b", second)});
    EXPECT_THAT(Words(two.opened.ok() ? two.ended : two.opened), HasSubstr("b:1: a line of the"));
  }
}

TEST_F(ReadersTest, OddButSoundFiles) {
  const WholeTrace plain = Read(Line(1, "1, 2") + Line(2, "1, 3"));
  std::string windows = "\xEF\xBB\xBF" + Line(1, "1, 2") + "\r\n" + Line(2, "1, 3");
  for (size_t i = windows.find("]}\n"); i != std::string::npos; i = windows.find("]}\n", i + 4)) {
    windows.replace(i, 3, "]}\r\n");
  }
  const std::string unended = Line(1, "1, 2") + "\n\n   \n" + Line(2, "1, 3");
  for (const std::string& text : {windows, unended.substr(0, unended.size() - 1)}) {
    const WholeTrace trace = Read(text);
    ASSERT_TRUE(trace.ended.ok()) << trace.ended;
    EXPECT_EQ(trace.all.blocks, plain.all.blocks);
    EXPECT_EQ(trace.info.bad_lines, 0u);
  }
}

TEST_F(ReadersTest, HostileLinesAreBadLines) {
  const auto with = [](const std::string& time, const std::string& tokens, const std::string& ids) {
    return absl::StrCat("{\"timestamp\":", time, ",\"input_length\":", tokens,
                        ",\"output_length\":1,\"hash_ids\":", ids, "}");
  };
  EXPECT_EQ(WhyBad(with("-1", "512", "[1]")), "a negative number");
  EXPECT_EQ(WhyBad(with("1", "-512", "[1]")), "a negative number");
  EXPECT_EQ(WhyBad(with("1", "512", "[-1]")), "a negative number");
  EXPECT_EQ(WhyBad(with("1", "512", "[1.5]")), "no whole number");
  EXPECT_EQ(WhyBad(with("1", "4294967296", "[1]")), "a number out of range");
  EXPECT_EQ(WhyBad(with("1e999", "512", "[1]")), "a number out of range");
  EXPECT_EQ(WhyBad(with("1e300", "512", "[1]")), "a number out of range");
  EXPECT_EQ(WhyBad(with("1", "512", "[99999999999999999999]")), "no whole number");
  EXPECT_EQ(WhyBad(with("1", "512", "[01]")), "a number starts with 0");
  EXPECT_EQ(WhyBad(with("1", "512", "[1,,2]")), "no number");
  EXPECT_EQ(WhyBad(with("1", "512", "[1, 2, ]")), "no number");
  EXPECT_EQ(WhyBad(with("1", "512", "[1 2]")), "a comma or ] is missing");
  EXPECT_EQ(WhyBad(with("1", "512", "[1, 2")), "a comma or ] is missing");
  EXPECT_EQ(WhyBad(with("NaN", "512", "[1]")), "no number");
  EXPECT_EQ(WhyBad(with("\"1\"", "512", "[1]")), "no number");
  EXPECT_EQ(WhyBad(with("1", "null", "[1]")), "no number");
  EXPECT_EQ(WhyBad(with("1", "512", "{}")), "no array");
  EXPECT_EQ(WhyBad(with("1", "512", "[1]") + "x"), "something follows the object");
  EXPECT_EQ(WhyBad("{\"timestamp\":1}"), "fields of the format are missing");
  EXPECT_EQ(WhyBad("{\"timestamp\": 1, \"input_len"), "the line is cut");
  EXPECT_EQ(WhyBad(std::string("{\"a\0b\": 1}", 10)), "a control character");
  EXPECT_EQ(WhyBad(std::string(30, '\0')), "no JSON object");
  EXPECT_EQ(WhyBad("{\"a\": \"\\x\"}"), "a bad escape");
  EXPECT_EQ(WhyBad("{\"a\": \"\\ud800\"}"), "half of a surrogate pair");
  EXPECT_EQ(WhyBad("{\"a\": \"\xC0\x80\"}"), "no UTF-8");
  const std::string deep = std::string(1000, '[') + std::string(1000, ']');
  EXPECT_EQ(WhyBad("{\"deep\": " + deep + "}"), "nested too deep");
}

TEST_F(ReadersTest, UnusualShapesOfGoodLines) {
  const std::string twice =
      "{\"hash_ids\":[9,9,9],\"timestamp\":1,\"input_length\":1024,\"hash_ids\":[1,2]}\n";
  const std::string spaced =
      "\t{ \"input_length\":1024.0 ,\"hash_ids\":[ 1\t,  2 ] , "
      "\"timestamp\" :\r1 }  \n";
  const WholeTrace trace = Read(Line(1, "1, 2", 1024) + twice + spaced);
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.bad_lines, 0u);
  EXPECT_THAT(BlockNumbers(trace.all), testing::Each(testing::ElementsAre(0, 1)));
}

TEST_F(ReadersTest, NumbersOfEveryLengthAndPlaceChainAlike) {
  // The same ids in shapes that take different paths through the parser.
  std::vector<std::string> ids;
  for (uint64_t i = 0, id = 1; i < 300; ++i, id = id * 7 + 3) {
    ids.push_back(std::to_string(i % 5 == 0 ? i : id % (uint64_t{1} << (1 + i % 63))));
  }
  std::vector<std::string> texts;
  for (const std::string separator : {", ", ",", " ,", ",  ", "\t, "}) {
    std::string joined;
    for (size_t i = 0; i < ids.size(); ++i) joined += (i > 0 ? separator : "") + ids[i];
    texts.push_back(joined);
  }
  std::string text;
  for (const std::string& joined : texts) text += Line(1, joined, 512 * 300);
  const WholeTrace trace = Read(text);
  ASSERT_EQ(trace.all.requests.size(), texts.size());
  const auto first = trace.all.BlocksOf(trace.all.requests[0]);
  ASSERT_EQ(first.size(), 300u);
  for (const TraceRequest& request : trace.all.requests) {
    const auto blocks = trace.all.BlocksOf(request);
    EXPECT_TRUE(std::equal(blocks.begin(), blocks.end(), first.begin(), first.end()));
  }
}

TEST_F(ReadersTest, TooManyBadLinesEndIt) {
  std::string text;
  for (int i = 0; i < 1000; ++i) text += i % 50 == 7 ? "broken\n" : Line(1, "1");  // 2 %
  const WholeTrace trace = Read(text);
  EXPECT_TRUE(absl::IsInvalidArgument(trace.ended)) << trace.ended;
  EXPECT_THAT(Words(trace.ended), HasSubstr("the first is line 8 of"));
  EXPECT_EQ(trace.info.first_bad_lines.size(), std::min<uint64_t>(trace.info.bad_lines, 20));
  OpenTraceOptions patient;
  patient.max_bad_share = 0.03;
  const WholeTrace allowed = Read(text, patient);
  EXPECT_TRUE(allowed.ended.ok()) << allowed.ended;
  EXPECT_EQ(allowed.info.bad_lines, 20u);
  EXPECT_EQ(allowed.all.requests.size(), 980u);
}

TEST_F(ReadersTest, ABadStretchOfALongTraceIsForgiven) {
  std::string text = Line(1, "1");
  for (int i = 0; i < 50; ++i) text += "broken\n";
  text += Lines(20000);
  const WholeTrace trace = Read(text);
  EXPECT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.bad_lines, 50u);
  EXPECT_EQ(trace.info.first_bad_lines.size(), 20u);
}

TEST_F(ReadersTest, LongLines) {
  OpenTraceOptions options;
  options.max_line_bytes = 1000;
  std::string ids = "1";
  while (ids.size() < 2000) ids += ", 1";
  const std::string text = Line(1, "1") + Line(2, ids) + Line(3, "3");
  const WholeTrace trace = Read(text, options);
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.all.requests.size(), 2u);
  ASSERT_EQ(trace.info.bad_lines, 1u);
  EXPECT_EQ(trace.info.first_bad_lines[0].number, 2u);
  EXPECT_EQ(trace.info.first_bad_lines[0].reason, "longer than 1000 bytes");
  EXPECT_EQ(Read(text).all.requests.size(), 3u);
  // Longer than the buffer, allowed and not; as the last line as well.
  while (ids.size() < 3 << 20) ids += ids;
  const std::string huge = Line(1, "1") + Line(2, ids, 100000000) + Line(3, "3");
  EXPECT_EQ(Read(huge).all.requests.size(), 3u);
  EXPECT_GT(Read(huge).all.requests[1].num_blocks, 100000u);
  options.max_line_bytes = 1 << 20;
  EXPECT_EQ(Read(huge, options).all.requests.size(), 2u);
  EXPECT_EQ(Read(Line(1, "1") + Line(2, ids).substr(0, 3 << 20), options).info.bad_lines, 1u);
}

TEST_F(ReadersTest, SparseFilesAreQuickAndSmall) {
  const long before = PeakMemoryMb();
  const auto start = std::chrono::steady_clock::now();
  constexpr off_t kTenGb = off_t{10} << 30;
  const std::string zeros = folder_.Write("zeros", "");
  ASSERT_EQ(truncate(zeros.c_str(), kTenGb), 0);
  EXPECT_TRUE(absl::IsInvalidArgument(ReadAll({zeros}).opened));
  const std::string tail = folder_.Write("tail", Lines(100));
  ASSERT_EQ(truncate(tail.c_str(), kTenGb), 0);
  const WholeTrace trace = ReadAll({tail});
  EXPECT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.all.requests.size(), 100u);
  EXPECT_EQ(trace.info.bad_lines, 1u);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(20));
  EXPECT_LT(PeakMemoryMb() - before, 300);
}

TEST_F(ReadersTest, FilesOneAfterAnother) {
  const std::string a = folder_.Write("a", Line(100, "1") + Line(300, "2"));
  const std::string b = folder_.Write("b", Line(50, "1") + Line(60, "2") + Line(55, "3"));
  const std::string c = folder_.Write("c", Line(1000, "1"));
  const WholeTrace trace = ReadAll({a, folder_.Write("empty", ""), b, c});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  std::vector<uint64_t> times;
  for (const TraceRequest& request : trace.all.requests) times.push_back(request.time_ns / 1000000);
  // The second file starts before the first one ends: it is moved behind it, and the third with it.
  EXPECT_THAT(times, testing::ElementsAre(0, 200, 200, 210, 210, 1150));
  EXPECT_EQ(trace.info.clamped_times, 1u);
}

TEST_F(ReadersTest, RewindReadsTheSameAgain) {
  const std::string path = folder_.Write("trace", Lines(50) + "broken\n" + Lines(50));
  auto source = OpenTrace({path});
  ASSERT_TRUE(source.ok());
  EXPECT_EQ((*source)->info().tokens_per_block, 512u);  // known before the first batch
  const absl::StatusOr<RequestBatch> first = ReadWholeTrace(source->get(), 1 << 20);
  ASSERT_TRUE(first.ok());
  EXPECT_EQ((*source)->progress(), 1.0);
  ASSERT_TRUE((*source)->Rewind().ok());
  const absl::StatusOr<RequestBatch> second = ReadWholeTrace(source->get(), 1 << 20);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(first->blocks, second->blocks);
  EXPECT_EQ(second->requests.size(), 100u);
  EXPECT_EQ((*source)->info().bad_lines, 1u);
  EXPECT_EQ((*source)->info().lines, 101u);
}

TEST_F(ReadersTest, BatchesAreBounded) {
  std::string text;
  for (int i = 0; i < 100; ++i) text += Line(1, "1, 2, 3, 4, 5, 6, 7, 8, 9, 10");
  auto source = OpenTrace({folder_.Write("trace", text)});
  ASSERT_TRUE(source.ok());
  RequestBatch batch;
  size_t requests = 0;
  while ((*source)->Next(100, &batch).value()) {
    EXPECT_LE(batch.blocks.size(), 110u);
    requests += batch.requests.size();
  }
  EXPECT_EQ(requests, 100u);
}

TEST_F(ReadersTest, APipeIsReadOnce) {
  const std::string path = folder_.Path("fifo");
  ASSERT_EQ(mkfifo(path.c_str(), 0600), 0);
  const std::string text = Zstd(Lines(5000));
  std::thread writer([&] { folder_.Write("fifo", text); });
  auto source = OpenTrace({path});
  ASSERT_TRUE(source.ok()) << source.status();
  const absl::StatusOr<RequestBatch> all = ReadWholeTrace(source->get(), 1 << 24);
  ASSERT_TRUE(all.ok()) << all.status();
  writer.join();
  EXPECT_EQ(all->requests.size(), 5000u);
  EXPECT_TRUE(absl::IsFailedPrecondition((*source)->Rewind()));
}

TEST_F(ReadersTest, StandardInput) {
  const std::string path = folder_.Write("trace", Lines(10));
  const int saved = dup(STDIN_FILENO), file = open(path.c_str(), O_RDONLY);
  dup2(file, STDIN_FILENO);
  const WholeTrace trace = ReadAll({"-"});
  dup2(saved, STDIN_FILENO);
  close(saved);
  close(file);
  EXPECT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.all.requests.size(), 10u);
}

TEST_F(ReadersTest, OtherBlockSizes) {
  OpenTraceOptions options;
  options.tokens_per_block = 1024;
  const WholeTrace trace = Read(Line(1, "1, 2, 3", 2500), options);
  EXPECT_EQ(trace.all.requests[0].num_blocks, 2u);
  EXPECT_EQ(trace.info.tokens_per_block, 1024u);
}

TEST_F(ReadersTest, OurTracesOfOtherVersionsAreRefused) {
  const WholeTrace trace = Read("{\"k\":\"config\",\"flexkv_trace\":2,\"hashes\":\"short\"}\n");
  EXPECT_TRUE(absl::IsInvalidArgument(trace.opened));
  EXPECT_THAT(Words(trace.opened), HasSubstr("version 2"));
}

TEST_F(ReadersTest, OurTracesWithoutHashes) {
  const WholeTrace trace = Read(
      "{\"k\":\"config\",\"flexkv_trace\":1,\"run\":\"1\",\"hashes\":\"none\"}\n"
      "{\"k\":\"get\",\"t\":1,\"tokens_per_block\":16,\"prompt\":160}\n"
      "{\"k\":\"put\",\"t\":2,\"tokens_per_block\":16,\"first\":3,\"blocks\":2}\n");
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_FALSE(trace.info.has_blocks);
  EXPECT_EQ(trace.all.requests.size(), 2u);
  EXPECT_EQ(trace.info.unresolved_puts, 0u);
}

}  // namespace
}  // namespace flexkv::trace
