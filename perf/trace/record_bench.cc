// What recording costs the control thread for one request: its messages handled (lookup, the
// engine's record, a put with its end, the request's end) with a recorder and its writer against
// without, in processor time of that thread.
//
//   flexkv_trace_record_bench [--blocks 64] [--requests 40000] [--repeats 9] [--dir /tmp]
//                             [--hashes short|none|full] [--json FILE]
//
// Both run on the same manager in turn, chunk by chunk, so that both see the same machine; the
// result is the median of the chunks' differences, the limit the budget of 1 us.
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/server/message_handler.h"
#include "flexkv/trace/trace_writer.h"
#include "perf/bench_util.h"

namespace flexkv {
namespace {

constexpr uint64_t kBlockBytes = 4096;
constexpr uint32_t kTokens = 16;

[[noreturn]] void Die(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  std::exit(1);
}

class NumberedStore : public SegmentStore {
 public:
  absl::StatusOr<SegmentId> Create(uint64_t) override { return next_++; }
  void Destroy(SegmentId) override {}

 private:
  SegmentId next_ = 1;
};

// Copies are over when they begin.
class InstantExecutor : public Executor {
 public:
  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override {
    done_.push_back({op.id, OpStatus::kOk, {}});
    return true;
  }
  void Poll(TimeNs, std::vector<OpResult>* results) override {
    results->insert(results->end(), done_.begin(), done_.end());
    done_.clear();
  }

 private:
  std::vector<OpResult> done_;
};

struct NoSink : EngineSink {
  void ToScheduler(const shm::Message& message) override { bench::KeepAlive(message); }
  void RefuseAtWorkers(OpKey, Route) override {}
  void OnStats(const shm::EngineStatsBody&) override {}
};

class WriterSink : public RecordSink {
 public:
  explicit WriterSink(trace::TraceWriter* writer) : writer_(writer) {}
  void Name(NamespaceId ns, std::string_view label) override { writer_->NameNamespace(ns, label); }
  void Take(const trace::TraceRecord& record, std::span<const BlockHash> hashes) override {
    writer_->Record(record, hashes);
  }

 private:
  trace::TraceWriter* writer_;
};

class Daemon {
 public:
  Daemon(uint32_t blocks, const trace::TraceWriterOptions& options) : chain_(blocks) {
    CacheManagerOptions cache;
    cache.cpu_cache_bytes = 64ull << 20;
    transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{},
                                                  std::vector<Executor*>{&executor_});
    manager_ = std::make_unique<CacheManager>(cache, &segments_, transfers_.get());
    const auto engine =
        manager_->AttachEngine(EngineSpec{"key", "bench", {kBlockBytes}, kTokens}, clock_.Now());
    if (!engine.ok()) Die(engine.status());
    engine_ = *engine;
    auto writer = trace::TraceWriter::Open(options);
    if (!writer.ok()) Die(writer.status());
    writer_ = *std::move(writer);
    sink_ = std::make_unique<WriterSink>(writer_.get());
    recorder_ = std::make_unique<TraceRecorder>(
        TraceRecorderOptions{.hashes = options.hashes != trace::TraceHashes::kNone}, manager_.get(),
        &clock_, sink_.get());
  }

  // Nanoseconds of this thread a request; half of the requests are hits.
  double Serve(uint64_t requests, TraceRecorder* recorder) {
    const uint64_t began = bench::ThreadCpuNs();
    for (uint64_t i = 0; i < requests; ++i) One(recorder);
    return static_cast<double>(bench::ThreadCpuNs() - began) / static_cast<double>(requests);
  }
  TraceRecorder* recorder() { return recorder_.get(); }
  // Until it has taken everything and sleeps.
  void AwaitWriter() { usleep(15'000); }
  trace::TraceWriterStats Close() {
    recorder_->Finish();
    writer_->Close(10 * kNsPerSecond);
    return writer_->stats();
  }

 private:
  void Handle(const shm::Message& message, std::span<const std::byte> payload,
              TraceRecorder* recorder) {
    const absl::Status status = HandleSchedulerMessage(manager_.get(), engine_, message, payload,
                                                       &sink_of_engine_, clock_.Now(), recorder);
    if (!status.ok()) Die(status);
  }

  void One(TraceRecorder* recorder) {
    const RequestKey request = next_request_++;
    if (request % 2 == 0) ++next_chain_;
    for (size_t i = 0; i < chain_.size(); ++i) chain_[i].words = {next_chain_, i, 1, 2};
    const auto blocks = static_cast<uint32_t>(chain_.size());
    shm::Message message = shm::MakeMessage(shm::MessageType::kLookup);
    message.request = request;
    message.count = blocks;
    Handle(message, std::as_bytes(std::span(chain_)), recorder);
    message = shm::MakeMessage(shm::MessageType::kRecordGet);
    message.request = request;
    const shm::GetRecordBody body{blocks * kTokens + 5, 0, 0, 0, 0, 0};
    Handle(message, std::as_bytes(std::span(&body, 1)), recorder);
    message = shm::MakeMessage(shm::MessageType::kPut);
    message.request = request;
    message.op = request;
    message.count = blocks;
    message.lease = blocks;
    Handle(message, {}, recorder);
    manager_->Tick(clock_.Now());
    if (recorder != nullptr) recorder->Tick(clock_.Now());
    events_.clear();
    manager_->TakeEvents(&events_);
    for (const ManagerEvent& event : events_) {
      if (recorder != nullptr) recorder->OnEvent(event);
    }
    message = shm::MakeMessage(shm::MessageType::kEndRequest);
    message.request = request;
    Handle(message, {}, recorder);
  }

  SteadyClock clock_;
  NumberedStore segments_;
  InstantExecutor executor_;
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
  EngineHandle engine_ = 0;
  NoSink sink_of_engine_;
  std::unique_ptr<trace::TraceWriter> writer_;
  std::unique_ptr<WriterSink> sink_;
  std::unique_ptr<TraceRecorder> recorder_;
  std::vector<BlockHash> chain_;
  std::vector<ManagerEvent> events_;
  RequestKey next_request_ = 1;
  uint64_t next_chain_ = 0;
};

int Run(int argc, char** argv) {
  const bench::Args args(argc, argv);
  const auto blocks = static_cast<uint32_t>(args.GetInt("blocks", 64));
  const uint64_t requests = args.GetInt("requests", 40000);
  const uint64_t repeats = args.GetInt("repeats", 9);
  const std::string hashes = args.Get("hashes", "short");
  const std::string path =
      absl::StrCat(args.Get("dir", "/tmp"), "/flexkv-record-bench-", getpid(), ".jsonl");
  trace::TraceWriterOptions options;
  options.path = path;
  options.rotate_bytes = 0;
  options.hashes = hashes == "none"   ? trace::TraceHashes::kNone
                   : hashes == "full" ? trace::TraceHashes::kFull
                                      : trace::TraceHashes::kShort;
  Daemon daemon(blocks, options);
  for (int i = 0; i < 20; ++i) {
    daemon.Serve(20, daemon.recorder());
    daemon.AwaitWriter();
  }
  std::vector<double> cost, without;
  // Well below what the writer's ring holds: a record that is dropped costs less.
  const uint64_t chunk = std::clamp<uint64_t>(30'000 / blocks, 20, 500);
  for (uint64_t repeat = 0; repeat < repeats; ++repeat) {
    std::vector<double> chunks;
    for (uint64_t done = 0; done < requests; done += 2 * chunk) {
      daemon.Serve(chunk / 2, nullptr);  // awake, with warm caches
      double spent[2];
      for (const int which : {0, 1}) {
        const bool with = (done / (2 * chunk) + static_cast<uint64_t>(which)) % 2 == 0;
        spent[with ? 1 : 0] = daemon.Serve(chunk, with ? daemon.recorder() : nullptr);
      }
      chunks.push_back(spent[1] - spent[0]);
      without.push_back(spent[0]);
      daemon.AwaitWriter();
    }
    cost.push_back(bench::Median(chunks));
  }
  const trace::TraceWriterStats stats = daemon.Close();
  std::filesystem::remove(path);
  std::fprintf(stderr,
               "# %u blocks a request, hashes %s: %.0f ns a request without; %llu records, %llu "
               "dropped\n",
               blocks, hashes.c_str(), bench::Median(without),
               static_cast<unsigned long long>(stats.records),
               static_cast<unsigned long long>(stats.dropped));
  bench::JsonSink sink(args.Get("json", ""));
  sink.Add({.name = "trace.record_ns",
            .unit = "ns",
            .limit_name = "goal",
            .value = bench::Median(cost),
            .limit = 1000,
            .n = requests * repeats,
            .repeats = cost});
  return 0;
}

}  // namespace
}  // namespace flexkv

int main(int argc, char** argv) { return flexkv::Run(argc, argv); }
