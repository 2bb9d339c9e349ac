#include "tests/fuzz/fuzz_targets.h"

#include <algorithm>
#include <array>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>

#include "flexkv/cache/cache_manager.h"
#include "flexkv/server/config.h"
#include "flexkv/server/hello.h"
#include "flexkv/server/message_handler.h"
#include "flexkv/server/trace_recorder.h"
#include "proto/shm_ring.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"

namespace flexkv {
namespace {

void Require(bool holds, const char* what) {
  if (holds) return;
  std::fprintf(stderr, "fuzz: %s\n", what);
  std::abort();
}

// Takes values off the front of the input; zeros once it is used up.
class Reader {
 public:
  explicit Reader(FuzzInput input) : input_(input) {}
  bool empty() const { return input_.empty(); }
  template <typename T>
  T Take() {
    T value{};
    const size_t bytes = std::min(sizeof(T), input_.size());
    std::memcpy(static_cast<void*>(&value), input_.data(), bytes);
    input_ = input_.subspan(bytes);
    return value;
  }
  FuzzInput TakeBytes(size_t count) {
    const FuzzInput taken = input_.first(std::min(count, input_.size()));
    input_ = input_.subspan(taken.size());
    return taken;
  }

 private:
  FuzzInput input_;
};

// Ends ops at once or later, well or badly, as the input says.
class FuzzExecutor : public Executor {
 public:
  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override {
    if (waiting_.size() >= 64) return false;
    waiting_.push_back(op);
    return true;
  }
  void Poll(TimeNs, std::vector<OpResult>* results) override {
    results->insert(results->end(), ended_.begin(), ended_.end());
    ended_.clear();
  }
  void End(uint8_t how) {
    if (waiting_.empty()) return;
    const size_t which = how % waiting_.size();
    const TransferOp& op = waiting_[which];
    OpResult result{op.id, static_cast<OpStatus>(how % 3), {}};
    for (uint32_t i = 0; i < op.blocks.size() && result.status != OpStatus::kOk; ++i) {
      if (result.status == OpStatus::kFailed || i % 2 == 1) result.failed.push_back(i);
    }
    ended_.push_back(result);
    waiting_.erase(waiting_.begin() + static_cast<ptrdiff_t>(which));
  }

 private:
  std::vector<TransferOp> waiting_;
  std::vector<OpResult> ended_;
};

// What comes of a hostile scheduler's messages must still be a trace.
struct CheckingRecords : RecordSink {
  void Name(NamespaceId ns, std::string_view label) override {
    Require(ns != 0 && label == "label", "a namespace without its name");
  }
  void Take(const trace::TraceRecord& record, std::span<const BlockHash> hashes) override {
    Require(record.time_ns >= last, "a trace's times fall");
    last = record.time_ns;
    Require(record.hint.valid(), "a hint that is none");
    if (record.kind == trace::RecordKind::kPut) {
      Require(hashes.size() == record.blocks + (record.first_block > 0 ? 1 : 0),
              "a put without its hashes");
      Require(record.held_blocks + record.accepted_blocks + record.refused_blocks == record.blocks,
              "a put's blocks do not add up");
    } else if (record.kind == trace::RecordKind::kGet) {
      const uint64_t matched = uint64_t{record.matched_cpu_tokens} + record.matched_ssd_tokens;
      Require(matched <= hashes.size() * 16, "more tokens matched than asked for");
    }
  }
  TimeNs last = 0;
};

struct CountingSink : EngineSink {
  void ToScheduler(const shm::Message& message) override {
    Require(message.type >= 32, "a reply has a request's type");
    if (message.type == static_cast<uint32_t>(shm::MessageType::kLookupReply)) {
      last_lease = message.lease;
      Require(message.first <= 1u << 20, "a match is longer than any chain");
    }
  }
  void RefuseAtWorkers(OpKey, Route) override {}
  void OnStats(const shm::EngineStatsBody&) override {}
  LeaseId last_lease = 0;
};

// A message with small numbers, so that requests, leases and ranges meet each other.
shm::Message TakeMessage(Reader* in, LeaseId last_lease) {
  constexpr std::array<uint32_t, 12> kTypes = {1, 1, 1, 2, 2, 3, 3, 4, 5, 6, 7, 8};
  const auto mode = in->Take<uint8_t>();
  shm::Message message;
  if (mode == 255) return in->Take<shm::Message>();  // anything at all
  message.type = kTypes[mode % kTypes.size()];
  message.request = in->Take<uint8_t>() % 4;
  message.op = in->Take<uint8_t>() % 16;
  message.first = in->Take<uint8_t>() % 32;
  message.count = in->Take<uint8_t>() % 32;
  message.lease = mode % 2 == 0 ? last_lease : in->Take<uint8_t>() % 32;
  if (message.type == 1 && mode % 3 == 0) {  // hints, some of them out of range
    message.status = message.first * 40'000;
    message.route = message.count * 1'000'000;
  }
  return message;
}

std::vector<std::byte> TakePayload(Reader* in, const shm::Message& message) {
  if (message.type == 7 || message.type == 8) {
    const FuzzInput bytes = in->TakeBytes(in->Take<uint8_t>() % 100);
    return {bytes.begin(), bytes.end()};
  }
  if (message.type != 1 && message.type != 3) return {};
  const auto choice = in->Take<uint8_t>();
  if (choice == 255) {
    const FuzzInput bytes = in->TakeBytes(100);
    return {bytes.begin(), bytes.end()};
  }
  // One of four chains, the part that the message names.
  std::vector<BlockHash> chain = {HashFromNumber(choice % 4)};
  while (chain.size() < 64) chain.push_back(ChildHash(chain.back(), 1));
  const uint64_t first = message.type == 3 ? message.lease : message.first;
  const auto begin = std::min<size_t>(first, 32);
  const auto span = std::as_bytes(std::span(chain).subspan(begin, message.count % 32));
  return {span.begin(), span.end()};
}

std::string Raw(const void* data, size_t bytes) {
  return std::string(static_cast<const char*>(data), bytes);
}

std::vector<std::string> ConfigCorpus() {
  return {
      R"({})",
      R"({"cache_config": {"cpu_cache_bytes": "25%", "evict_ratio": 0.05, "allowed_uids": [0, 1000]}})",
      R"({"cpu_cache_bytes": 1e10, "metrics": "127.0.0.1:9090", "numa_node": -1, "log_level": "info"})",
      R"({"segment_bytes": "1 GiB", "enable_ssd": false, "eviction_policy": "lru", "spin_us": 20})",
      R"({"enable_ssd": true, "ssd_cache_dir": ["/a", "/b/../c"], "ssd_cache_bytes": "12.5%",
          "ssd_write_budget": "200MB/s", "ssd_backend": "threads", "ssd_admission": "second_touch",
          "num_ssd_blocks": 7, "ssd_segment_bytes": "1GiB", "ssd_cache_iouring_entries": 64})",
      R"({"enable_trace": true, "trace_file_path": "/tmp/t.jsonl", "trace_rotate_bytes": "64KiB",
          "trace_compress": "zstd", "trace_hashes": "full", "trace_max_files": 3,
          "eviction_objective": "compute"})",
      R"([[[[[[[[[[[[[[[[[)",
      R"({"a":{"a":{"a":{"a":1}}}})",
      R"({"evict_ration": -1, "x": "\ud800"})"};
}

std::vector<std::string> HelloCorpus() {
  shm::Hello hello;
  hello.type = static_cast<uint32_t>(shm::PacketType::kHello);
  hello.version = shm::kProtocolVersion;
  hello.role = static_cast<uint32_t>(shm::Role::kScheduler);
  hello.world_size = 2;
  hello.tokens_per_block = 16;
  hello.engine_id[0] = 5;
  hello.pid = 1;
  const std::string text("label\0fingerprint", 17);
  hello.text_bytes = static_cast<uint32_t>(text.size());
  std::string scheduler = Raw(&hello, sizeof(hello)) + text;
  hello.role = static_cast<uint32_t>(shm::Role::kWorker);
  hello.rank = 1;
  hello.shard_bytes = 4096;
  return {scheduler, Raw(&hello, sizeof(hello)) + text, scheduler.substr(0, 10)};
}

std::vector<std::string> MessageCorpus() {
  std::string put_and_load;
  for (int i = 0; i < 40; ++i) {
    const unsigned char bytes[] = {5, 1, 1, 0, 20, 0,  1,
                                   0, 3, 1, 2, 0,  20, 0,
                                   3, 1, 9, 0, 20, 0,  static_cast<unsigned char>(i)};
    put_and_load += Raw(bytes, sizeof(bytes));
  }
  return {put_and_load, std::string(300, '\x01'), std::string(64, '\xff'), ""};
}

std::vector<std::string> RingCorpus() {
  shm::Message message;
  message.type = 1;
  message.stamp = 1;
  message.payload_bytes = 64;
  const std::string one = Raw(&message, sizeof(message));
  message.stamp = 2;
  message.payload_position = 64;
  return {one + Raw(&message, sizeof(message)), one, std::string(256, '\x01')};
}

}  // namespace

void FuzzConfig(FuzzInput input) {
  const ConfigContext context{64ull << 30, 1000};
  const std::string_view text(reinterpret_cast<const char*>(input.data()), input.size());
  const absl::StatusOr<DaemonConfig> config = ParseConfig(text, context);
  if (!config.ok()) {
    Require(config.status().message().find('\n') == absl::string_view::npos,
            "an error of more than one line");
    Require(!config.status().message().empty(), "an error without words");
    return;
  }
  Require(config->cpu_cache_bytes > 0 && config->cpu_cache_bytes <= context.available_memory_bytes,
          "a cache larger than memory, or none");
  Require(!config->allowed_uids.empty(), "nobody is allowed");
  const std::string printed = ConfigToJson(*config);
  const absl::StatusOr<DaemonConfig> again = ParseConfig(printed, context);
  Require(again.ok() && ConfigToJson(*again) == printed, "what is printed is not read back");
}

void FuzzHello(FuzzInput input) {
  const absl::StatusOr<ClientHello> hello = ParseHello(input);
  if (!hello.ok()) {
    Require(!hello.status().message().empty(), "an error without words");
    return;
  }
  Require(hello->world_size >= 1 && hello->world_size <= kMaxWorldSize &&
              hello->rank < hello->world_size,
          "a rank outside its world");
  Require(hello->identity.size() <= shm::kMaxHelloText, "a text longer than allowed");
  for (const char c : hello->label)
    Require(c >= 0x20 && c <= 0x7e && c != '"', "a label that is not safe");
}

void FuzzMessages(FuzzInput input) {
  FakeSegmentStore segments(8ull << 20);
  FuzzExecutor executor;
  TransferEngine transfers({}, {&executor});
  CacheManagerOptions options;
  options.cpu_cache_bytes = 4ull << 20;
  options.segment_bytes = 2ull << 20;
  options.max_chain_blocks = 256;
  options.max_requests_per_engine = 8;
  options.max_ops_per_engine = 16;
  CacheManager manager(options, &segments, &transfers);
  TimeNs now = kNsPerSecond;
  EngineSpec spec{"key", "label", {64 << 10, 64 << 10}, 16};  // few slots: eviction at once
  EngineHandle engine = manager.AttachEngine(spec, now).value();
  CountingSink sink;
  CheckingRecords records;
  ManualClock clock;
  TraceRecorder recorder({.max_open = 8, .max_open_blocks = 300}, &manager, &clock, &records);
  std::vector<ManagerEvent> events;
  Reader in(input.first(std::min<size_t>(input.size(), 4096)));
  while (!in.empty()) {
    const shm::Message message = TakeMessage(&in, sink.last_lease);
    const std::vector<std::byte> payload = TakePayload(&in, message);
    // A violation is one of the answers; a daemon would drop the client, the fuzzer goes on.
    HandleSchedulerMessage(&manager, engine, message, payload, &sink, now, &recorder).IgnoreError();
    const auto what = in.Take<uint8_t>();
    now += what * kNsPerMs;
    clock.Advance(what * kNsPerMs);
    executor.End(what);
    if (what % 4 == 0) {
      manager.Tick(now);
      recorder.Tick(now);
    }
    if (what == 254) {
      recorder.OnDetach(engine, now);
      manager.DetachEngine(engine, now);
      engine = manager.AttachEngine(spec, now).value();
    }
    events.clear();
    manager.TakeEvents(&events);
    for (const ManagerEvent& event : events) recorder.OnEvent(event);
  }
  recorder.Finish();
  Require(recorder.open() == 0, "a record was never handed on");
  const absl::Status invariants = manager.CheckInvariants();
  if (!invariants.ok()) std::fprintf(stderr, "%s\n", invariants.ToString().c_str());
  Require(invariants.ok(), "the manager's invariants are broken");
}

void FuzzRing(FuzzInput input) {
  // The region is large and only touched where the input says; it is made once and cleared where it
  // was written.
  static auto* memory = new std::vector<std::byte>(shm::kRegionBytes + 64);
  auto* base = memory->data() + (64 - reinterpret_cast<uintptr_t>(memory->data()) % 64) % 64;
  std::memset(base, 0, shm::kRequestRingOffset + 64 * sizeof(shm::Message));
  const shm::RegionView view(base);
  shm::RingConsumer consumer(&view.header->requests, view.request_slots, view.request_payload);
  Reader in(input);
  shm::Message message;
  std::vector<std::byte> payload;
  for (uint32_t position = 0; position < 64 && !in.empty(); ++position) {
    shm::Message hostile = in.Take<shm::Message>();
    if (position % 2 == 0)
      hostile.stamp = position + 1;  // else whatever the input says: mostly "empty"
    view.request_slots[position] = hostile;
    const shm::PopResult result = consumer.Pop(&message, &payload);
    if (result != shm::PopResult::kMessage) return;
    Require(payload.size() == message.payload_bytes && payload.size() <= shm::kMaxPayload,
            "a payload of the wrong size");
  }
}

std::span<const FuzzTarget> FuzzTargets() {
  static const std::array<FuzzTarget, 4> kTargets = {{{"config", &FuzzConfig, &ConfigCorpus},
                                                      {"hello", &FuzzHello, &HelloCorpus},
                                                      {"messages", &FuzzMessages, &MessageCorpus},
                                                      {"ring", &FuzzRing, &RingCorpus}}};
  return kTargets;
}

}  // namespace flexkv
