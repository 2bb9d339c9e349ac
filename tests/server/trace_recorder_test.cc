// Records as they come out: their order, what is in them, and what happens when there is too much.
#include "flexkv/server/trace_recorder.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <vector>

#include "flexkv/server/message_handler.h"
#include "proto/lookup_fields.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_segment_store.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

using shm::Message;
using shm::MessageType;
using trace::RecordKind;
using trace::RecordResult;
using trace::TraceRecord;

constexpr uint32_t kTokens = 16;
constexpr uint64_t kBlockBytes = 64 << 10;

struct Taken {
  TraceRecord record;
  std::vector<BlockHash> hashes;
};

class ListSink : public RecordSink {
 public:
  void Name(NamespaceId ns, std::string_view label) override { names[ns] = std::string(label); }
  void Take(const TraceRecord& record, std::span<const BlockHash> hashes) override {
    EXPECT_GE(record.time_ns, last_time) << "times fall";
    last_time = record.time_ns;
    if (record.ns != 0 && record.kind != RecordKind::kReset) {
      EXPECT_TRUE(names.contains(record.ns));
    }
    taken.push_back({record, {hashes.begin(), hashes.end()}});
  }
  std::vector<Taken> Of(RecordKind kind) const {
    std::vector<Taken> found;
    for (const Taken& one : taken) {
      if (one.record.kind == kind) found.push_back(one);
    }
    return found;
  }
  std::map<NamespaceId, std::string> names;
  std::vector<Taken> taken;
  TimeNs last_time = 0;
};

// Holds ops until they are told to end.
class HeldExecutor : public Executor {
 public:
  bool Supports(Route) const override { return true; }
  bool Submit(const TransferOp& op) override {
    held.push_back(op);
    return true;
  }
  void Poll(TimeNs, std::vector<OpResult>* results) override {
    results->swap(done);
    done.clear();
  }
  void End(OpKey key, TimeNs copy_ns, std::vector<uint32_t> failed = {}) {
    for (auto op = held.begin(); op != held.end();) {
      if (op->key != key) {
        ++op;
        continue;
      }
      const OpStatus status = failed.empty() ? OpStatus::kOk : OpStatus::kPartial;
      done.push_back({op->id, status, failed, copy_ns});
      op = held.erase(op);
    }
  }
  std::vector<TransferOp> held;
  std::vector<OpResult> done;
};

struct Replies : EngineSink {
  void ToScheduler(const Message& message) override { last = message; }
  void RefuseAtWorkers(OpKey, Route) override {}
  void OnStats(const shm::EngineStatsBody&) override {}
  Message last;
};

std::vector<BlockHash> Chain(uint64_t name, uint32_t blocks) {
  std::vector<BlockHash> chain = {HashFromNumber(name)};
  while (chain.size() < blocks) chain.push_back(ChildHash(chain.back(), name));
  return chain;
}

class TraceRecorderTest : public ::testing::Test {
 protected:
  void Start(uint64_t blocks, TraceRecorderOptions options = {}) {
    CacheManagerOptions cache;
    cache.cpu_cache_bytes = blocks * kBlockBytes;
    cache.segment_bytes = 2ull << 20;
    transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{},
                                                  std::vector<Executor*>{&executor_});
    manager_ = std::make_unique<CacheManager>(cache, &segments_, transfers_.get());
    recorder_ = std::make_unique<TraceRecorder>(options, manager_.get(), &clock_, &sink_);
    engine_ = *manager_->AttachEngine(EngineSpec{"secret key", "model", {kBlockBytes}, kTokens},
                                      clock_.Now());
  }
  void Handle(Message message, std::span<const std::byte> payload = {}) {
    ASSERT_TRUE(HandleSchedulerMessage(manager_.get(), engine_, message, payload, &replies_,
                                       clock_.Now(), recorder_.get())
                    .ok());
  }
  void Lookup(RequestKey request, const std::vector<BlockHash>& chain,
              const shm::LookupFields& fields = {}) {
    Message message = shm::MakeMessage(MessageType::kLookup);
    message.request = request;
    message.count = static_cast<uint32_t>(chain.size());
    shm::PackLookup(fields, &message);
    Handle(message, std::as_bytes(std::span(chain)));
  }
  void Get(RequestKey request, uint32_t prompt, uint32_t engine_matched, uint32_t taken) {
    Message message = shm::MakeMessage(MessageType::kRecordGet);
    message.request = request;
    const shm::GetRecordBody body{prompt, engine_matched, taken, taken, 0, 0};
    Handle(message, std::as_bytes(std::span(&body, 1)));
  }
  void Load(RequestKey request, OpKey op, LeaseId lease, uint32_t first, uint32_t count) {
    Message message = shm::MakeMessage(MessageType::kLoad);
    message.request = request;
    message.op = op;
    message.lease = lease;
    message.first = first;
    message.count = count;
    Handle(message);
  }
  void Put(RequestKey request, OpKey op, uint32_t first, uint32_t count, uint32_t suffix_first,
           std::span<const BlockHash> suffix) {
    Message message = shm::MakeMessage(MessageType::kPut);
    message.request = request;
    message.op = op;
    message.first = first;
    message.count = count;
    message.lease = suffix_first;
    Handle(message, std::as_bytes(suffix));
  }
  void End(RequestKey request) {
    Message message = shm::MakeMessage(MessageType::kEndRequest);
    message.request = request;
    Handle(message);
  }
  void Tick(TimeNs step = kNsPerMs) {
    clock_.Advance(step);
    manager_->Tick(clock_.Now());
    recorder_->Tick(clock_.Now());
    std::vector<ManagerEvent> events;
    manager_->TakeEvents(&events);
    for (const ManagerEvent& event : events) recorder_->OnEvent(event);
  }
  // A prompt that is looked up, missed and stored.
  void Fill(RequestKey request, const std::vector<BlockHash>& chain, OpKey op) {
    const auto blocks = static_cast<uint32_t>(chain.size());
    Lookup(request, chain, {.prompt_tokens = blocks * kTokens});
    Get(request, blocks * kTokens, 0, 0);
    Put(request, op, 0, blocks, blocks, {});
    executor_.End(op, 1000);
    Tick();
    End(request);
  }

  ManualClock clock_;
  FakeSegmentStore segments_;
  HeldExecutor executor_;
  std::unique_ptr<TransferEngine> transfers_;
  std::unique_ptr<CacheManager> manager_;
  ListSink sink_;
  Replies replies_;
  std::unique_ptr<TraceRecorder> recorder_;
  EngineHandle engine_ = 0;
};

TEST_F(TraceRecorderTest, AHitFromLookupToLoad) {
  Start(64);
  const std::vector<BlockHash> chain = Chain(1, 6);
  Fill(1, chain, 10);
  sink_.taken.clear();
  clock_.Advance(kNsPerMs);
  const TimeNs asked = clock_.Now();
  std::vector<BlockHash> longer = Chain(1, 8);
  Lookup(2, longer, {.prompt_tokens = 133, .hint = {.continue_p = 0.25f, .expected_in_s = 3.0f}});
  EXPECT_TRUE(sink_.taken.empty()) << "the load is not over";
  Get(2, 133, 2 * kTokens, 4 * kTokens);
  Load(2, 20, replies_.last.lease, 2, 4);
  Tick(5 * kNsPerMs);
  executor_.End(20, 2 * kNsPerMs);
  Tick();
  ASSERT_EQ(sink_.taken.size(), 1u);
  const TraceRecord& r = sink_.taken[0].record;
  EXPECT_EQ(r.kind, RecordKind::kGet);
  EXPECT_EQ(r.result, RecordResult::kOk);
  EXPECT_EQ(r.time_ns, asked);
  EXPECT_EQ(r.request, 2u);
  EXPECT_EQ(r.prompt_tokens, 133u);
  EXPECT_EQ(r.tokens_per_block, kTokens);
  EXPECT_EQ(r.engine_tokens, 2 * kTokens);
  EXPECT_EQ(r.matched_cpu_tokens, 6 * kTokens);
  EXPECT_EQ(r.matched_ssd_tokens, 0u);
  EXPECT_EQ(r.loaded_tokens, 4 * kTokens);
  EXPECT_EQ(r.load_bytes, 4 * kBlockBytes);
  EXPECT_EQ(r.load_ns, 2 * kNsPerMs);
  EXPECT_EQ(r.queue_ns, 4 * kNsPerMs);
  EXPECT_EQ(r.hint.continue_p, 0.25f);
  EXPECT_EQ(r.hint.expected_in_s, 3.0f);
  EXPECT_EQ(sink_.taken[0].hashes, longer);
  EXPECT_EQ(sink_.names.at(r.ns), "model") << "the label, never the key";
}

TEST_F(TraceRecorderTest, RecordsComeInTheOrderOfTheCore) {
  Start(64);
  const std::vector<BlockHash> a = Chain(1, 4), b = Chain(2, 4);
  Lookup(1, a);
  Get(1, 64, 0, 0);
  Put(1, 10, 0, 4, 4, {});
  Lookup(2, b);
  Get(2, 64, 0, 0);  // complete long before the put in front of it
  EXPECT_EQ(sink_.taken.size(), 1u);
  executor_.End(10, 5);
  Tick();
  ASSERT_EQ(sink_.taken.size(), 3u);
  EXPECT_EQ(sink_.taken[0].record.request, 1u);
  EXPECT_EQ(sink_.taken[1].record.kind, RecordKind::kPut);
  EXPECT_EQ(sink_.taken[2].record.request, 2u);
}

TEST_F(TraceRecorderTest, APutBringsItsRangeAndTheBlockInFront) {
  Start(64);
  const std::vector<BlockHash> chain = Chain(1, 6);
  Fill(1, Chain(1, 4), 10);
  ASSERT_EQ(sink_.Of(RecordKind::kPut).size(), 1u);
  EXPECT_EQ(sink_.Of(RecordKind::kPut)[0].hashes, Chain(1, 4));
  Lookup(2, Chain(1, 4));
  Get(2, 64, 64, 0);
  Put(2, 11, 3, 3, 4, std::span(chain).subspan(4));
  executor_.End(11, 7, {1});
  Tick();
  const Taken put = sink_.Of(RecordKind::kPut).at(1);
  EXPECT_EQ(put.hashes, std::vector<BlockHash>(chain.begin() + 2, chain.end()));
  EXPECT_EQ(put.record.first_block, 3u);
  EXPECT_EQ(put.record.blocks, 3u);
  EXPECT_EQ(put.record.held_blocks, 1u);
  EXPECT_EQ(put.record.accepted_blocks, 2u);
  EXPECT_EQ(put.record.failed_blocks, 1u);
  EXPECT_EQ(put.record.result, RecordResult::kPartial);
  EXPECT_EQ(put.record.store_bytes, kBlockBytes);
  EXPECT_EQ(put.record.store_ns, 7u);
}

TEST_F(TraceRecorderTest, PutsThatGetNothing) {
  Start(32);
  const std::vector<BlockHash> chain = Chain(1, 4);
  Fill(1, chain, 10);
  Lookup(2, chain);
  Get(2, 64, 0, 0);
  Put(2, 11, 0, 4, 4, {});  // all held
  const Taken held = sink_.Of(RecordKind::kPut).at(1);
  EXPECT_EQ(held.record.held_blocks, 4u);
  EXPECT_EQ(held.record.result, RecordResult::kOk);
  const std::vector<BlockHash> large = Chain(3, 200), other = Chain(4, 8);
  Put(3, 12, 0, 200, 0, large);  // takes what room there is
  Put(4, 13, 0, 8, 0, other);
  executor_.End(12, 1);
  Tick();
  const std::vector<Taken> puts = sink_.Of(RecordKind::kPut);
  EXPECT_EQ(puts.at(2).record.accepted_blocks + puts.at(2).record.refused_blocks, 200u);
  EXPECT_EQ(puts.at(3).record.refused_blocks, 8u);
  EXPECT_EQ(puts.at(3).record.result, RecordResult::kRefused);
}

TEST_F(TraceRecorderTest, TheLookupThatDecidedIsTheRecordedOne) {
  Start(64);
  Lookup(1, Chain(1, 4));  // a miss; the request waits in its engine
  Fill(2, Chain(1, 4), 10);
  EXPECT_TRUE(sink_.taken.empty()) << "the first lookup holds the others back";
  clock_.Advance(kNsPerMs);
  Lookup(1, Chain(1, 4));
  Get(1, 64, 0, 0);
  Lookup(1, Chain(1, 4));  // preempted, and scheduled again: not another request
  Get(1, 64, 0, 0);
  End(1);
  const std::vector<Taken> gets = sink_.Of(RecordKind::kGet);
  ASSERT_EQ(gets.size(), 2u);
  EXPECT_EQ(gets[0].record.request, 2u);
  EXPECT_EQ(gets[1].record.request, 1u);
  EXPECT_EQ(gets[1].record.matched_cpu_tokens, 64u);
  EXPECT_EQ(recorder_->open(), 0u);
}

TEST_F(TraceRecorderTest, WhatIsNotDecidedIsSetAsideAndComesBack) {
  Start(64);
  Lookup(1, Chain(1, 4), {.prompt_tokens = 70});
  Lookup(2, Chain(2, 4));
  Lookup(3, Chain(3, 4));
  Fill(4, Chain(4, 4), 10);
  Tick(11 * kNsPerSecond);
  EXPECT_TRUE(sink_.taken.empty());
  Tick(2 * kNsPerSecond);
  EXPECT_EQ(sink_.Of(RecordKind::kGet).size(), 1u) << "request 4 no longer waits";
  Get(1, 70, 16, 0);
  End(2);  // aborted before its turn
  recorder_->Finish();
  const std::vector<Taken> gets = sink_.Of(RecordKind::kGet);
  ASSERT_EQ(gets.size(), 3u);
  EXPECT_EQ(gets[1].record.request, 1u);
  EXPECT_EQ(gets[1].record.engine_tokens, 16u);
  EXPECT_EQ(gets[1].hashes, Chain(1, 4));
  EXPECT_EQ(gets[1].record.time_ns, clock_.Now());
  EXPECT_EQ(gets[2].record.request, 2u);
  EXPECT_EQ(recorder_->unfinished(), 0u);
}

TEST_F(TraceRecorderTest, ShortPromptsAndRefusedLoads) {
  Start(64);
  Get(1, 9, 0, 0);  // shorter than a block: it has no hashes to look up
  ASSERT_EQ(sink_.taken.size(), 1u);
  EXPECT_EQ(sink_.taken[0].record.prompt_tokens, 9u);
  Fill(2, Chain(1, 4), 10);
  Lookup(3, Chain(1, 4));
  Get(3, 64, 0, 64);
  Load(3, 11, replies_.last.lease + 5, 0, 4);
  const Taken refused = sink_.Of(RecordKind::kGet).back();
  EXPECT_EQ(refused.record.request, 3u);
  EXPECT_EQ(refused.record.result, RecordResult::kRefused);
  EXPECT_EQ(refused.record.matched_cpu_tokens, 64u);
  EXPECT_EQ(refused.record.loaded_tokens, 0u);
}

TEST_F(TraceRecorderTest, ADetachEndsWhatIsOpen) {
  Start(64);
  Fill(1, Chain(1, 4), 10);
  Lookup(2, Chain(1, 4));
  Get(2, 64, 0, 64);
  Load(2, 20, replies_.last.lease, 0, 4);
  Lookup(3, Chain(5, 4));
  Put(3, 30, 0, 4, 4, {});
  recorder_->OnDetach(engine_, clock_.Now());
  manager_->DetachEngine(engine_, clock_.Now());
  EXPECT_EQ(recorder_->open(), 0u);
  const std::vector<Taken> gets = sink_.Of(RecordKind::kGet);
  ASSERT_EQ(gets.size(), 3u);
  EXPECT_EQ(gets[1].record.result, RecordResult::kFailed);
  EXPECT_EQ(gets[2].record.result, RecordResult::kOk) << "a lookup, and nothing came of it";
  EXPECT_EQ(sink_.Of(RecordKind::kPut).back().record.result, RecordResult::kFailed);
  executor_.End(20, 1);
  executor_.End(30, 1);
  Tick();
}

TEST_F(TraceRecorderTest, ResetsAndEvictions) {
  Start(32);
  for (uint64_t i = 0; i < 12; ++i) Fill(100 + i, Chain(100 + i, 8), 100 + i);
  Tick(kNsPerSecond);
  uint64_t evicted = 0;
  for (const Taken& one : sink_.Of(RecordKind::kEvict)) {
    EXPECT_EQ(one.record.tier, Tier::kCpu);
    evicted += one.record.blocks;
  }
  EXPECT_EQ(evicted, manager_->counters().evicted_blocks);
  EXPECT_GT(evicted, 0u);
  const NamespaceId before = manager_->NamespaceOf(engine_).id;
  Message reset = shm::MakeMessage(MessageType::kReset);
  reset.request = 7;
  Handle(reset);
  EXPECT_EQ(sink_.Of(RecordKind::kReset).at(0).record.ns, before);
  Fill(200, Chain(100, 8), 200);
  EXPECT_NE(sink_.taken.back().record.ns, before) << "equal hashes are other blocks now";
}

TEST_F(TraceRecorderTest, WithoutHashesNoneAreKept) {
  Start(64, {.hashes = false});
  Fill(1, Chain(1, 6), 10);
  ASSERT_EQ(sink_.taken.size(), 2u);
  EXPECT_TRUE(sink_.taken[0].hashes.empty());
  EXPECT_EQ(sink_.taken[0].record.prompt_tokens, 96u);
  EXPECT_EQ(sink_.taken[1].record.blocks, 6u);
}

// Random requests with few places: what gives way is set aside or recorded as it stands, and every
// request is recorded once, in order, with its own hashes.
TEST_F(TraceRecorderTest, NothingIsLostInALittleRoom) {
  Start(64, {.max_open = 8, .max_open_blocks = 64});
  std::mt19937_64 random(TestSeed());
  struct Model {
    uint32_t chain = 0, state = 0;
    LeaseId lease = 0;
    uint32_t matched = 0;
  };
  std::map<RequestKey, Model> live;
  std::map<RequestKey, uint32_t> chains;
  RequestKey next = 1;
  OpKey op = 1;
  size_t puts = 0;
  for (int step = 0; step < 20000; ++step) {
    const auto pick = random() % 100;
    if (live.size() < 20 && pick < 40) {
      Model model{.chain = static_cast<uint32_t>(random() % 12 + 1)};
      Lookup(next, Chain(model.chain, model.chain));
      model.lease = replies_.last.lease;
      model.matched = replies_.last.first;
      chains[next] = model.chain;
      live[next++] = model;
    } else if (!live.empty()) {
      auto it = live.begin();
      std::advance(it, random() % live.size());
      auto& [request, model] = *it;
      if (model.state == 0 && pick < 60) {
        Lookup(request, Chain(model.chain, model.chain));
        model.lease = replies_.last.lease;
        model.matched = replies_.last.first;
      } else if (model.state == 0) {
        Get(request, model.chain * kTokens, 0, model.matched * kTokens);
        if (model.matched > 0) Load(request, op++, model.lease, 0, model.matched);
        model.state = 1;
      } else if (model.state == 1) {
        Put(request, op++, 0, model.chain, model.chain, {});
        ++puts;
        model.state = 2;
      } else {
        End(request);
        live.erase(it);
      }
    }
    if (!executor_.held.empty() && pick % 3 == 0) {
      executor_.End(executor_.held[random() % executor_.held.size()].key, 1);
    }
    if (pick % 4 == 0) Tick(pick == 0 ? 3 * kNsPerSecond : kNsPerMs);
    ASSERT_LE(recorder_->open(), 8u);
  }
  while (!live.empty()) {
    End(live.begin()->first);
    live.erase(live.begin());
  }
  recorder_->Finish();
  std::map<RequestKey, int> seen;
  for (const Taken& get : sink_.Of(RecordKind::kGet)) {
    ++seen[get.record.request];
    const uint32_t chain = chains.at(get.record.request);
    EXPECT_EQ(get.hashes, Chain(chain, chain));
  }
  EXPECT_EQ(seen.size(), chains.size());
  for (const auto& [request, times] : seen) EXPECT_EQ(times, 1) << request;
  const std::vector<Taken> recorded = sink_.Of(RecordKind::kPut);
  EXPECT_EQ(recorded.size(), puts);
  for (const Taken& put : recorded) {
    const uint32_t chain = chains.at(put.record.request);
    EXPECT_EQ(put.hashes, Chain(chain, chain));
  }
}

}  // namespace
}  // namespace flexkv
