// What is recorded is read back, whatever happens to the files meanwhile.
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/trace/keyed_hash.h"
#include "flexkv/trace/trace_writer.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_seed.h"
#include "tests/trace/trace_files.h"

namespace flexkv::trace {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<BlockHash> Chain(uint64_t seed, size_t blocks) {
  TestRng rng(seed);
  std::vector<BlockHash> chain(blocks);
  for (BlockHash& hash : chain) {
    for (uint64_t& word : hash.words) word = rng.Next();
  }
  return chain;
}

TraceRecord Get(uint64_t request, uint32_t blocks, TimeNs time_ns = 0) {
  TraceRecord record;
  record.time_ns = time_ns;
  record.request = request;
  record.tokens_per_block = 16;
  record.prompt_tokens = blocks * 16 + 3;
  return record;
}

TraceRecord Put(uint64_t request, uint32_t first, uint32_t blocks, TimeNs time_ns = 0) {
  TraceRecord record;
  record.kind = RecordKind::kPut;
  record.time_ns = time_ns;
  record.request = request;
  record.tokens_per_block = 16;
  record.first_block = first;
  record.blocks = blocks;
  return record;
}

class WriterTest : public testing::Test {
 protected:
  WriterTest() { options_.path = folder_.Path("t.jsonl"); }
  ~WriterTest() override { EXPECT_TRUE(ArmFaults("").ok()); }

  std::unique_ptr<TraceWriter> Open() {
    auto writer = TraceWriter::Open(options_);
    EXPECT_TRUE(writer.ok()) << writer.status();
    return *std::move(writer);
  }
  // All files of the folder, oldest first.
  std::vector<std::string> Files() {
    std::vector<std::string> names = folder_.Names();
    const auto number = [](const std::string& name) {
      return name.size() > 2 && std::isdigit(name[2]) != 0 ? std::stoi(name.substr(2)) : 0;
    };
    std::sort(names.begin(), names.end(),
              [&](const auto& a, const auto& b) { return number(a) < number(b); });
    for (std::string& name : names) name = folder_.Path(name);
    return names;
  }

  TempFolder folder_;
  TraceWriterOptions options_;
};

TEST(KeyedHashTest, IsSipHash) {
  // Test vector of the SipHash paper's reference code: key 00..0f, message 00..07.
  EXPECT_EQ(KeyedHash({0x0706050403020100u, 0x0f0e0d0c0b0a0908u}, 0x0706050403020100u),
            0x93f5f5799a932462u);
}

TraceRecord RandomRecord(TestRng* rng, TimeNs time_ns) {
  TraceRecord r;
  const auto any32 = [&] { return static_cast<uint32_t>(rng->Next() >> (32 + rng->Below(32))); };
  const auto any64 = [&] { return rng->Next() >> rng->Below(64); };
  r.time_ns = time_ns;
  r.kind = rng->OneIn(8) ? RecordKind::kEvict : RecordKind::kGet;
  r.result = static_cast<RecordResult>(rng->Below(4));
  r.tier = static_cast<Tier>(rng->Below(3));
  r.engine = any32();
  r.ns = static_cast<NamespaceId>(rng->Below(5));
  r.request = any64();
  r.tokens_per_block = 16;
  r.prompt_tokens = static_cast<uint32_t>(rng->Below(3000));
  r.engine_tokens = any32();
  r.matched_cpu_tokens = any32();
  r.matched_ssd_tokens = any32();
  r.matched_remote_tokens = any32();
  r.loaded_tokens = any32();
  r.blocks = any32();
  r.held_blocks = any32();
  r.accepted_blocks = any32();
  r.refused_blocks = any32();
  r.match_ns = any64();
  r.queue_ns = any64();
  r.load_ns = any64();
  r.load_bytes = any64();
  r.ssd_ns = any64();
  r.ssd_bytes = any64();
  r.store_ns = any64();
  r.store_bytes = any64();
  if (rng->OneIn(2)) r.hint = {static_cast<float>(rng->Below(1000)) / 999.0f, 0.1f};
  if (rng->OneIn(4)) r.hint.expected_in_s = -1;
  return r;
}

void ExpectSame(const TraceRecord& r, const TraceRequest& request, const TraceInfo& info) {
  const Measured& m = request.measured;
  EXPECT_EQ(info.namespaces[request.ns], absl::StrCat("label ", r.ns));
  EXPECT_EQ(request.prompt_tokens, r.prompt_tokens);
  EXPECT_EQ(request.tokens_per_block, r.tokens_per_block);
  EXPECT_EQ(static_cast<int>(m.result), static_cast<int>(r.result));
  EXPECT_EQ(m.engine_tokens, r.engine_tokens);
  EXPECT_EQ(m.cpu_tokens, r.matched_cpu_tokens);
  EXPECT_EQ(m.ssd_tokens, r.matched_ssd_tokens);
  EXPECT_EQ(m.remote_tokens, r.matched_remote_tokens);
  EXPECT_EQ(m.loaded_tokens, r.loaded_tokens);
  EXPECT_EQ(m.held_blocks, r.held_blocks);
  EXPECT_EQ(m.accepted_blocks, r.accepted_blocks);
  EXPECT_EQ(m.refused_blocks, r.refused_blocks);
  EXPECT_EQ(m.match_ns, r.match_ns);
  EXPECT_EQ(m.queue_ns, r.queue_ns);
  EXPECT_EQ(m.load_ns, r.load_ns);
  EXPECT_EQ(m.load_bytes, r.load_bytes);
  EXPECT_EQ(m.ssd_ns, r.ssd_ns);
  EXPECT_EQ(m.ssd_bytes, r.ssd_bytes);
  EXPECT_EQ(m.store_ns, r.store_ns);
  EXPECT_EQ(m.store_bytes, r.store_bytes);
  if (r.hint.known()) {
    EXPECT_EQ(request.hint, r.hint);
  } else {
    EXPECT_FALSE(request.hint.known());
  }
}

class WriterStyleTest : public WriterTest,
                        public testing::WithParamInterface<std::tuple<TraceHashes, bool>> {};

TEST_P(WriterStyleTest, EveryFieldComesBack) {
  options_.hashes = std::get<0>(GetParam());
  options_.zstd = std::get<1>(GetParam());
  options_.rotate_bytes = options_.zstd ? 4 << 10 : 32 << 10;
  options_.start_ns = 1000;
  options_.config_json = "{\"tiers\": {\"cpu\": 1},\n \"path\": \"/a\\n\"}";
  TestRng rng(TestSeed());
  std::vector<TraceRecord> records;
  {
    auto writer = Open();
    for (NamespaceId id = 0; id < 5; ++id) writer->NameNamespace(id, absl::StrCat("label ", id));
    for (uint64_t i = 0; i < 500; ++i) {
      records.push_back(RandomRecord(&rng, 1000 + i * 777));
      writer->Record(records.back(), Chain(rng.Below(50), rng.Below(40)));
    }
    ASSERT_TRUE(writer->Close(10 * kNsPerSecond));
    EXPECT_EQ(writer->stats().records, 500u);
    EXPECT_EQ(writer->stats().dropped + writer->stats().lost, 0u);
    EXPECT_GT(writer->stats().files, 1u);
  }
  const WholeTrace trace = ReadAll(Files());
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.bad_lines, 0u);
  EXPECT_EQ(trace.info.clamped_times, 0u);
  EXPECT_EQ(trace.info.config_json, R"({"path":"/a\n","tiers":{"cpu":1}})");
  EXPECT_EQ(trace.info.has_blocks, options_.hashes != TraceHashes::kNone);
  size_t requests = 0, evictions = 0;
  for (const TraceRecord& record : records) {
    if (record.kind == RecordKind::kEvict) {
      ASSERT_LT(evictions, trace.all.evictions.size());
      const TraceEviction& eviction = trace.all.evictions[evictions++];
      EXPECT_EQ(eviction.tier, static_cast<uint8_t>(record.tier));
      EXPECT_EQ(eviction.blocks, record.blocks);
      EXPECT_EQ(eviction.time_ns, record.time_ns - records[0].time_ns);
      continue;
    }
    ASSERT_LT(requests, trace.all.requests.size());
    const TraceRequest& request = trace.all.requests[requests++];
    EXPECT_EQ(request.time_ns, record.time_ns - records[0].time_ns);
    ExpectSame(record, request, trace.info);
  }
  EXPECT_EQ(requests, trace.all.requests.size());
}

INSTANTIATE_TEST_SUITE_P(All, WriterStyleTest,
                         testing::Combine(testing::Values(TraceHashes::kNone, TraceHashes::kShort,
                                                          TraceHashes::kFull),
                                          testing::Bool()));

TEST_F(WriterTest, ChainsComeBackThroughTheirRanges) {
  const std::vector<BlockHash> chain = Chain(1, 100), other = Chain(2, 3);
  auto writer = Open();
  writer->Record(Get(1, 60), std::span(chain).first(60));
  writer->Record(Put(1, 0, 40), std::span(chain).first(40));
  writer->Record(Get(2, 3), other);
  writer->Record(Put(1, 40, 20), std::span(chain).first(60));
  for (uint32_t i = 60; i < 100; ++i) writer->Record(Put(1, i, 1), std::span(chain).first(i + 1));
  writer->Record(Get(3, 100), chain);
  writer->Record(Put(7, 5, 2), std::span(chain).first(7));  // no lookup told its prefix
  ASSERT_TRUE(writer->Close(kNsPerSecond));
  const WholeTrace trace = ReadAll(Files());
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.info.unresolved_puts, 1u);
  ASSERT_EQ(trace.all.requests.size(), 46u);
  const auto whole = trace.all.BlocksOf(trace.all.requests[44]);
  ASSERT_EQ(whole.size(), 100u);
  for (size_t i = 4; i < 44; ++i) {
    const auto blocks = trace.all.BlocksOf(trace.all.requests[i]);
    ASSERT_EQ(blocks.size(), 57 + i);
    EXPECT_TRUE(std::equal(blocks.begin(), blocks.end(), whole.begin()));
  }
  EXPECT_EQ(trace.all.requests[45].num_blocks, 0u);
  // The decode's puts were written as one hash and its parent, not as chains.
  EXPECT_LT(std::filesystem::file_size(options_.path), 12000u);
}

TEST_F(WriterTest, ShortHashesHideAndFullOnesShow) {
  const std::vector<BlockHash> chain = Chain(1, 1);
  const auto word = [](const std::string& text) {
    return text.substr(text.rfind("\"hashes\":\"") + 10, 16);
  };
  std::vector<std::string> words;
  for (const TraceHashes hashes : {TraceHashes::kShort, TraceHashes::kShort, TraceHashes::kFull}) {
    options_.hashes = hashes;
    options_.path = folder_.Path(absl::StrCat("w", words.size(), ".jsonl"));
    auto writer = Open();
    writer->Record(Get(1, 1), chain);
    ASSERT_TRUE(writer->Close(kNsPerSecond));
    words.push_back(word(ReadFile(options_.path)));
  }
  const uint64_t tag = chain[0].tag();
  std::string plain;
  for (int i = 0; i < 8; ++i) {
    char hex[3];
    std::snprintf(hex, sizeof(hex), "%02x", static_cast<unsigned>(tag >> (8 * i)) & 0xff);
    plain += hex;
  }
  EXPECT_EQ(words[2], plain);
  EXPECT_NE(words[0], plain);
  EXPECT_NE(words[0], words[1]);  // another writer, another salt
}

TEST_F(WriterTest, RotatedFilesStandAloneAndOldOnesGo) {
  options_.rotate_bytes = 5000;
  options_.max_files = 3;
  const std::vector<BlockHash> chain = Chain(1, 10);
  auto writer = Open();
  writer->NameNamespace(4, "the model");
  for (uint64_t i = 0; i < 200; ++i) {
    TraceRecord record = Get(i, 10, i);
    record.ns = 4;
    writer->Record(record, chain);
  }
  ASSERT_TRUE(writer->Close(kNsPerSecond));
  const std::vector<std::string> files = Files();
  ASSERT_EQ(files.size(), 3u);
  EXPECT_GT(writer->stats().files, 8u);
  std::vector<uint64_t> seen;
  for (const std::string& file : files) {
    struct stat info {};
    ASSERT_EQ(stat(file.c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u);
    const WholeTrace trace = ReadAll({file});
    ASSERT_TRUE(trace.ended.ok()) << trace.ended;
    EXPECT_THAT(trace.info.namespaces, ElementsAre("the model"));
    EXPECT_EQ(trace.info.bad_lines, 0u);
    seen.insert(seen.end(), trace.all.blocks.begin(), trace.all.blocks.end());
  }
  // The same prompt in every file, and the same ids.
  std::sort(seen.begin(), seen.end());
  seen.erase(std::unique(seen.begin(), seen.end()), seen.end());
  EXPECT_EQ(seen.size(), 10u);
}

TEST_F(WriterTest, ALaterRunGoesOnBehindTheFilesThereAre) {
  folder_.Write("t.jsonl", "mine");
  folder_.Write("t.7.jsonl", "mine too");
  folder_.Write("t.8.jsonl.zst", "of another kind");
  folder_.Write("t.x.jsonl", "none of these");
  auto writer = Open();
  writer->Record(Get(1, 0), {});
  ASSERT_TRUE(writer->Close(kNsPerSecond));
  EXPECT_EQ(ReadFile(options_.path), "mine");
  EXPECT_EQ(ReadFile(folder_.Path("t.7.jsonl")), "mine too");
  EXPECT_EQ(ReadAll({folder_.Path("t.8.jsonl")}).all.requests.size(), 1u);
}

TEST_F(WriterTest, AResetSeparatesWhatWasBefore) {
  const std::vector<BlockHash> chain = Chain(1, 2);
  auto writer = Open();
  const auto get = [&](NamespaceId ns) {
    TraceRecord record = Get(ns, 2);
    record.ns = ns;
    writer->Record(record, chain);
  };
  writer->NameNamespace(1, "a");
  writer->NameNamespace(2, "b");
  get(1);
  get(2);
  TraceRecord reset;
  reset.kind = RecordKind::kReset;
  reset.ns = 1;
  writer->Record(reset, {});
  writer->NameNamespace(3, "a");
  get(3);
  get(2);
  ASSERT_TRUE(writer->Close(kNsPerSecond));
  const WholeTrace trace = ReadAll(Files());
  EXPECT_THAT(trace.info.namespaces, ElementsAre("a", "b"));
  EXPECT_THAT(BlockNumbers(trace.all), ElementsAre(ElementsAre(0, 1), ElementsAre(2, 3),
                                                   ElementsAre(4, 5), ElementsAre(2, 3)));
}

TEST_F(WriterTest, RefusesWhatCannotWork) {
  const auto code = [this] { return TraceWriter::Open(options_).status().code(); };
  options_.config_json = "[]";
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.config_json = "{";
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.config_json = "{}";
  options_.ring_bytes = 100;
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.ring_bytes = 1 << 20;
  options_.path = "";
  EXPECT_EQ(code(), absl::StatusCode::kInvalidArgument);
  options_.path = folder_.Path("no/such/folder.jsonl");
  EXPECT_EQ(code(), absl::StatusCode::kNotFound);
}

// A disk whose writes wait until they are let go.
class StuckDisk : public TraceDisk {
 public:
  absl::StatusOr<std::unique_ptr<TraceFile>> Create(const std::string&) override {
    return std::make_unique<File>(this);
  }
  absl::Status Remove(const std::string&) override { return absl::OkStatus(); }
  absl::StatusOr<std::vector<std::string>> List(const std::string&) override {
    return std::vector<std::string>();
  }
  void Hold() { held_ = true; }
  void LetGo() { held_ = false; }
  std::string text() {
    std::lock_guard<std::mutex> lock(mutex_);
    return text_;
  }

 private:
  class File : public TraceFile {
   public:
    explicit File(StuckDisk* disk) : disk_(disk) {}
    absl::Status Append(std::string_view bytes) override {
      while (disk_->held_) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      std::lock_guard<std::mutex> lock(disk_->mutex_);
      disk_->text_.append(bytes);
      return absl::OkStatus();
    }

   private:
    StuckDisk* disk_;
  };
  std::atomic<bool> held_{false};
  std::mutex mutex_;
  std::string text_;
};

TEST_F(WriterTest, AFullRingDropsAndSaysSo) {
  StuckDisk disk;
  options_.disk = &disk;
  options_.ring_bytes = 64 << 10;
  options_.rotate_bytes = 0;
  auto writer = Open();
  disk.Hold();
  const std::vector<BlockHash> chain = Chain(1, 100);
  for (uint64_t i = 0; i < 3000; ++i) writer->Record(Get(i, 100), chain);
  const TraceWriterStats stats = writer->stats();
  EXPECT_GT(stats.dropped, 500u);
  EXPECT_EQ(stats.records + stats.dropped, 3000u);
  disk.LetGo();
  ASSERT_TRUE(writer->Close(20 * kNsPerSecond));
  const WholeTrace trace = ReadAll({folder_.Write("text", disk.text())});
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.all.requests.size(), stats.records);
  EXPECT_EQ(trace.info.dropped_records, stats.dropped);
}

TEST_F(WriterTest, AChainLargerThanTheRingIsDropped) {
  options_.ring_bytes = 64 << 10;
  auto writer = Open();
  writer->Record(Get(1, 50000), Chain(1, 50000));
  writer->Record(Get(2, 5), Chain(1, 5));
  ASSERT_TRUE(writer->Close(kNsPerSecond));
  EXPECT_EQ(writer->stats().dropped, 1u);
  EXPECT_EQ(ReadAll(Files()).info.dropped_records, 1u);
}

TEST_F(WriterTest, ClosingDoesNotWaitForAStuckDisk) {
  // The thread outlives the writer, and so must what it uses.
  static StuckDisk& disk = *new StuckDisk;
  options_.disk = &disk;
  auto writer = Open();
  disk.Hold();
  writer->Record(Get(1, 0), {});
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(writer->Close(50 * kNsPerMs));
  EXPECT_FALSE(writer->Close(kNsPerSecond));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(5));
  writer.reset();
  disk.LetGo();
  while (disk.text().find("\"k\":\"get\"") == std::string::npos) {
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

TEST_F(WriterTest, AFailingDiskLosesLinesAndNothingElse) {
  for (const std::string fault : {"trace.enospc:3", "trace.short_write:3", "trace.open_fails:2",
                                  "trace.enospc:4,trace.short_write:5,trace.open_fails:3"}) {
    for (const bool zstd : {false, true}) {
      options_.path = folder_.Path("t.jsonl");
      options_.zstd = zstd;
      options_.rotate_bytes = 3000;
      options_.retry_after_ns = 0;
      std::atomic<int> told{0};
      options_.on_error = [&](const absl::Status& status) {
        EXPECT_FALSE(status.ok());
        ++told;
      };
      auto writer = Open();
      ASSERT_TRUE(ArmFaults(fault).ok());
      const std::vector<BlockHash> chain = Chain(1, 20);
      for (uint64_t i = 0; i < 300; ++i) writer->Record(Get(i, 20), chain);
      EXPECT_TRUE(writer->Close(10 * kNsPerSecond));
      ASSERT_TRUE(ArmFaults("").ok());
      const TraceWriterStats stats = writer->stats();
      EXPECT_EQ(stats.records, 300u);
      EXPECT_TRUE(zstd || stats.disk_errors > 0) << fault;  // packed, there are few writes
      EXPECT_EQ(told, stats.disk_errors > 0 ? 1 : 0);
      OpenTraceOptions lenient;
      lenient.max_bad_share = 1;
      const WholeTrace trace = ReadAll(Files(), lenient);
      ASSERT_TRUE(trace.ended.ok()) << trace.ended;
      EXPECT_LE(trace.all.requests.size(), 300u);
      // Torn lines may hold whole ones that were counted as lost with them.
      EXPECT_GE(trace.all.requests.size() + stats.lost, 300u) << fault;
      for (const std::string& file : Files()) std::filesystem::remove(file);
    }
  }
}

TEST_F(WriterTest, ADiskThatStaysFullLeavesNoFiles) {
  options_.retry_after_ns = 0;
  options_.rotate_bytes = 1000;
  auto writer = Open();
  ASSERT_TRUE(ArmFaults("trace.enospc").ok());
  for (uint64_t i = 0; i < 200; ++i) writer->Record(Get(i, 0), {});
  EXPECT_TRUE(writer->Close(10 * kNsPerSecond));
  EXPECT_EQ(writer->stats().lost, 200u);
  EXPECT_EQ(Files().size(), 1u);  // the one made by Open
}

TEST_F(WriterTest, WhatIsRecordedIsThereASecondLater) {
  options_.flush_every_ns = 20 * kNsPerMs;
  for (const bool zstd : {false, true}) {
    options_.zstd = zstd;
    auto writer = Open();
    writer->Record(Get(1, 0), {});
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    size_t requests = 0;
    while (requests == 0 && std::chrono::steady_clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
      requests = ReadAll({zstd ? options_.path + ".zst" : options_.path}).all.requests.size();
    }
    EXPECT_EQ(requests, 1u);
  }
}

TEST_F(WriterTest, AKilledWriterLeavesAReadableTrace) {
  TestRng rng(TestSeed());
  for (int round = 0; round < 6; ++round) {
    options_.zstd = round % 2 == 1;
    options_.flush_every_ns = 2 * kNsPerMs;
    options_.rotate_bytes = 200 << 10;
    const pid_t child = fork();
    if (child == 0) {
      auto writer = TraceWriter::Open(options_);
      const std::vector<BlockHash> chain = Chain(1, 50);
      for (uint64_t i = 0;; ++i) {
        (*writer)->Record(Get(i, 50, i), chain);
        if (i % 50 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
      }
    }
    const auto written = [this] {
      uint64_t bytes = 0;
      for (const std::string& file : Files()) bytes += std::filesystem::file_size(file);
      return bytes;
    };
    const auto limit = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (written() < 5000 && std::chrono::steady_clock::now() < limit) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(rng.Below(100)));
    kill(child, SIGKILL);
    waitpid(child, nullptr, 0);
    const WholeTrace trace = ReadAll(Files());
    EXPECT_TRUE(trace.ended.ok()) << trace.ended;
    EXPECT_GT(trace.all.requests.size(), 10u);
    EXPECT_LE(trace.info.bad_lines, options_.zstd ? 2u : 1u);  // the line, and the packing
    for (const std::string& file : Files()) std::filesystem::remove(file);
  }
}

TEST_F(WriterTest, RecordingFromOneThreadWhileOthersLook) {
  options_.rotate_bytes = 100 << 10;
  options_.ring_bytes = 64 << 10;
  auto writer = Open();
  std::atomic<bool> stop{false};
  std::thread watcher([&] {
    while (!stop) EXPECT_LE(writer->stats().lost, writer->stats().records);
  });
  const std::vector<BlockHash> chain = Chain(1, 64);
  for (uint64_t i = 0; i < 20000; ++i) {
    if (i % 1000 == 0) writer->NameNamespace(static_cast<NamespaceId>(i), "x");
    TraceRecord record = Get(i, 64, i);
    record.ns = static_cast<NamespaceId>(i / 1000 * 1000);
    writer->Record(record, std::span(chain).first(i % 64));
  }
  EXPECT_TRUE(writer->Close(20 * kNsPerSecond));
  stop = true;
  watcher.join();
  const TraceWriterStats stats = writer->stats();
  EXPECT_EQ(stats.records + stats.dropped, 20000u);
  const WholeTrace trace = ReadAll(Files(), {}, 1 << 16);
  ASSERT_TRUE(trace.ended.ok()) << trace.ended;
  EXPECT_EQ(trace.all.requests.size(), stats.records);
  EXPECT_EQ(trace.info.dropped_records, stats.dropped);
}

}  // namespace
}  // namespace flexkv::trace
