// The scheduler's half against a scripted daemon: what it asks, when it waits, what it promises.
#include "flexkv/client/scheduler_session.h"

#include <gtest/gtest.h>

#include <cmath>
#include <map>
#include <numeric>
#include <thread>

#include "flexkv/client/step_plan.h"
#include "proto/lookup_fields.h"
#include "tests/client/scripted_daemon.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

using ::flexkv::testing::ScriptedClient;
using ::flexkv::testing::ScriptedDaemon;
using shm::MessageType;

constexpr uint32_t kBlock = 16;

class FakeHashes : public HashSource {
 public:
  void Set(const std::string& id, uint64_t first, uint32_t count) {
    std::vector<BlockHash>& chain = chains_[id];
    chain.clear();
    for (uint32_t i = 0; i < count; ++i) chain.push_back(HashFromNumber(first + i));
  }
  bool CurrentBlocks(std::string_view, std::vector<uint32_t>* block_ids) override {
    *block_ids = table_;
    return !table_.empty();
  }
  void SetTable(std::vector<uint32_t> table) { table_ = std::move(table); }
  void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override {
    const std::vector<BlockHash>& chain = chains_[std::string(id)];
    if (from < chain.size()) hashes->insert(hashes->end(), chain.begin() + from, chain.end());
  }

 private:
  std::map<std::string, std::vector<BlockHash>> chains_;
  std::vector<uint32_t> table_;
};

std::vector<uint32_t> Ids(uint32_t first, uint32_t count) {
  std::vector<uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

class SchedulerSessionTest : public ::testing::Test {
 protected:
  void Open() {
    options_.socket_path = daemon_.path();
    options_.tokens_per_block = kBlock;
    options_.min_load_tokens = 0;
    options_.label = "model";
    options_.fingerprint = "identity";
    session_ = *SchedulerSession::Open(options_, &hashes_);
    client_ = daemon_.Accept();
    ASSERT_NE(client_, nullptr);
    client_->EngineReady(true);
    ASSERT_TRUE(session_->WaitReady(2000));
  }
  // Reads the lookup and answers it.
  shm::Message AnswerLookup(uint32_t matched, LeaseId lease = 77) {
    const shm::Message lookup = client_->Next(MessageType::kLookup);
    shm::Message reply = shm::MakeMessage(shm::MessageType::kLookupReply);
    reply.sequence = lookup.sequence;
    reply.request = lookup.request;
    reply.first = matched;
    reply.lease = matched > 0 ? lease : 0;
    client_->Reply(reply);
    return lookup;
  }
  void NewRequest(const std::string& id, uint64_t first_hash, uint32_t blocks) {
    hashes_.Set(id, first_hash, blocks);
    session_->NewRequest(id, blocks * kBlock);
  }
  int64_t MatchedEventually(const std::string& id, uint32_t computed, uint32_t tokens) {
    for (int i = 0; i < 1000; ++i) {
      const int64_t matched = session_->MatchedTokens(id, computed, tokens);
      if (matched != SchedulerSession::kAskAgain) return matched;
    }
    return SchedulerSession::kAskAgain;
  }
  ParsedPlan Step() {
    ParsedPlan plan;
    const auto bytes = session_->EndStep();
    if (!bytes.empty()) {
      EXPECT_TRUE(ParsePlan(bytes, &plan).ok());
    }
    return plan;
  }

  ScriptedDaemon daemon_;
  SchedulerOptions options_;
  FakeHashes hashes_;
  std::unique_ptr<SchedulerSession> session_;
  std::unique_ptr<ScriptedClient> client_;
};

// The daemon keeps the chain of a request until it hears of its end.
TEST_F(SchedulerSessionTest, EndsThatARingHadNoRoomForAreToldLater) {
  Open();
  constexpr int kRequests = 700;  // a lookup and an end each: more than the ring's slots
  for (int i = 0; i < kRequests; ++i) NewRequest(std::to_string(i), 1000u * i, 2);
  for (int i = 0; i < kRequests; ++i) session_->RequestFinished(std::to_string(i));
  EXPECT_GT(session_->stats().ring_full, 0u);
  int lookups = 0, ends = 0;
  for (int round = 0; round < 2; ++round) {
    while (lookups < kRequests || ends < kRequests) {
      const shm::Message message = client_->Next();
      if (message.type == static_cast<uint32_t>(MessageType::kNone)) break;
      lookups += message.type == static_cast<uint32_t>(MessageType::kLookup);
      ends += message.type == static_cast<uint32_t>(MessageType::kEndRequest);
    }
    session_->BeginStep(0);
    Step();
  }
  EXPECT_EQ(lookups, kRequests);
  EXPECT_EQ(ends, kRequests);
}

TEST_F(SchedulerSessionTest, WithoutDaemonNothingIsCachedAndNothingWaits) {
  options_.socket_path = "/nonexistent/daemon.sock";
  options_.tokens_per_block = kBlock;
  session_ = *SchedulerSession::Open(options_, &hashes_);
  NewRequest("a", 1, 4);
  EXPECT_EQ(session_->MatchedTokens("a", 0, 64), 0);
  session_->BlocksAllocated("a", Ids(1, 4), 0);
  session_->BeginStep(64);
  session_->ScheduledNew("a", Ids(1, 4), 0, 64);
  EXPECT_TRUE(session_->EndStep().empty());
  EXPECT_FALSE(session_->ResetCache(10));
}

TEST_F(SchedulerSessionTest, HelloSaysWhoWeAre) {
  Open();
  EXPECT_EQ(client_->hello().role, static_cast<uint32_t>(shm::Role::kScheduler));
  EXPECT_EQ(client_->hello().tokens_per_block, kBlock);
  EXPECT_EQ(client_->text(), std::string("model\0identity", 14));
  session_.reset();
  EXPECT_TRUE(client_->SaidGoodbye());
}

TEST_F(SchedulerSessionTest, LookupsCarryPromptLengthAndHint) {
  Open();
  hashes_.Set("a", 1, 8);
  session_->NewRequest("a", 8 * kBlock + 5, {.continue_p = 0.9f, .expected_in_s = 12.5f});
  shm::LookupFields fields;
  ASSERT_TRUE(shm::UnpackLookup(AnswerLookup(8), &fields));
  EXPECT_EQ(fields.prompt_tokens, 8 * kBlock + 5);
  EXPECT_NEAR(fields.hint.continue_p, 0.9, 1e-6);
  EXPECT_NEAR(fields.hint.expected_in_s, 12.5, 1e-3);
  // A later lookup of the same request brings it again.
  EXPECT_EQ(MatchedEventually("a", 0, 8 * kBlock + 5), 8 * kBlock);
  session_->BlocksAllocated("a", Ids(1, 9), 0);
  const shm::Message record = client_->Next(MessageType::kRecordGet);
  session_->MatchedTokens("a", 0, 8 * kBlock + 5);
  const shm::Message again = client_->Next(MessageType::kLookup);
  ASSERT_TRUE(shm::UnpackLookup(again, &fields));
  EXPECT_NEAR(fields.hint.continue_p, 0.9, 1e-6);
  EXPECT_EQ(record.request, again.request) << "the daemon must know whose record it is";
}

TEST_F(SchedulerSessionTest, WithoutAValidHintNoneIsSent) {
  Open();
  const float nan = std::nanf("");
  const std::vector<RequestHint> hints = {
      {}, {.continue_p = nan}, {.continue_p = 1.5f}, {.continue_p = 0.5f, .expected_in_s = nan}};
  for (size_t i = 0; i < hints.size(); ++i) {
    const std::string id = std::to_string(i);
    hashes_.Set(id, 1, 2);
    session_->NewRequest(id, 2 * kBlock, hints[i]);
    shm::LookupFields fields;
    ASSERT_TRUE(shm::UnpackLookup(AnswerLookup(0), &fields));
    EXPECT_EQ(fields.hint, RequestHint{}) << i;
  }
}

TEST_F(SchedulerSessionTest, HitIsOfferedThenLoadedUnderItsLease) {
  Open();
  NewRequest("a", 1, 8);
  AnswerLookup(6);
  EXPECT_EQ(MatchedEventually("a", 2 * kBlock, 8 * kBlock), 4 * kBlock);
  session_->BlocksAllocated("a", Ids(100, 8), 4 * kBlock);
  const shm::Message load = client_->Next(MessageType::kLoad);
  EXPECT_EQ(load.lease, 77u);
  EXPECT_EQ(load.first, 2u);
  EXPECT_EQ(load.count, 4u);
  session_->BeginStep(0);
  const ParsedPlan plan = Step();
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].op.key, load.op);
  EXPECT_EQ(plan.ops[0].block_ids, Ids(102, 4));
  EXPECT_EQ(plan.ops[0].request_id, "a");
  EXPECT_EQ(plan.ops[0].op.dead, 0u);
  EXPECT_TRUE(session_->LoadOutstanding("a"));
  session_->LoadEnded("a", false);
  EXPECT_FALSE(session_->LoadOutstanding("a"));
  EXPECT_EQ(session_->stats().loaded_tokens, 4u * kBlock);
}

TEST_F(SchedulerSessionTest, UnusedHitGivesItsLeaseBack) {
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(4);
  EXPECT_EQ(MatchedEventually("a", 0, 64), 64);
  session_->BlocksAllocated("a", Ids(1, 4), 0);
  EXPECT_EQ(client_->Next(MessageType::kReleaseLease).lease, 77u);
}

TEST_F(SchedulerSessionTest, FailedLoadIsNeverOfferedAgain) {
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(4);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 64);
  session_->BlocksAllocated("a", Ids(1, 4), 64);
  session_->LoadEnded("a", true);
  EXPECT_EQ(session_->MatchedTokens("a", 0, 64), 0);
}

TEST_F(SchedulerSessionTest, LateAnswerMeansNothingCachedAndOpensTheBreaker) {
  options_.lookup_timeout_ms = 20;
  Open();
  NewRequest("a", 1, 4);
  EXPECT_EQ(session_->MatchedTokens("a", 0, 64), SchedulerSession::kAskAgain);
  std::this_thread::sleep_for(std::chrono::milliseconds(25));
  EXPECT_EQ(session_->MatchedTokens("a", 0, 64), 0);
  EXPECT_TRUE(session_->stats().breaker_open);
  NewRequest("b", 50, 4);
  EXPECT_EQ(session_->MatchedTokens("b", 0, 64), 0) << "no waiting while the breaker is open";
  AnswerLookup(4);  // the late answer to "a": the daemon lives again
  NewRequest("c", 90, 4);
  AnswerLookup(2);
  EXPECT_EQ(MatchedEventually("c", 0, 64), 32);
  EXPECT_FALSE(session_->stats().breaker_open);
}

TEST_F(SchedulerSessionTest, OneCallWaitsAtMostItsBound) {
  options_.lookup_wait_us = 200;
  options_.lookup_timeout_ms = 1000;
  Open();
  NewRequest("a", 1, 4);
  const auto start = std::chrono::steady_clock::now();
  EXPECT_EQ(session_->MatchedTokens("a", 0, 64), SchedulerSession::kAskAgain);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(100));
}

TEST_F(SchedulerSessionTest, SecondRequestWithTheSamePrefixWaitsForTheFirstLoad) {
  Open();
  NewRequest("a", 1, 4);
  NewRequest("b", 1, 4);
  AnswerLookup(4, 71);
  AnswerLookup(4, 72);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 64);
  session_->BlocksAllocated("a", Ids(1, 4), 64);
  EXPECT_EQ(session_->MatchedTokens("b", 0, 64), SchedulerSession::kAskAgain);
  session_->LoadEnded("a", false);
  EXPECT_EQ(session_->MatchedTokens("b", 0, 64), SchedulerSession::kAskAgain)
      << "the engine has not entered the blocks into its own cache yet";
  session_->BlocksAllocated("a", Ids(1, 4), 0);
  EXPECT_EQ(session_->MatchedTokens("b", 64, 64), 0) << "now they are found locally";
}

TEST_F(SchedulerSessionTest, BlocksAreStoredAsTheyFillAndOnlyOnce) {
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(1);
  ASSERT_EQ(MatchedEventually("a", 0, 70), 16);
  session_->BlocksAllocated("a", Ids(10, 5), 0);
  session_->BeginStep(40);
  session_->ScheduledNew("a", Ids(10, 5), 0, 40);
  ParsedPlan plan = Step();
  shm::Message put = client_->Next(MessageType::kPut);
  EXPECT_EQ(put.first, 1u) << "the first block is held already";
  EXPECT_EQ(put.count, 1u) << "40 tokens fill two blocks";
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].block_ids, Ids(11, 1));
  session_->BeginStep(30);
  session_->ScheduledCached("a", {}, false, 40, 30);
  plan = Step();
  put = client_->Next(MessageType::kPut);
  EXPECT_EQ(put.first, 2u);
  EXPECT_EQ(put.count, 2u);
}

TEST_F(SchedulerSessionTest, TokensWithoutHashAreNeverStored) {
  Open();
  NewRequest("a", 1, 2);  // drafts and placeholders: more tokens computed than hashes known
  AnswerLookup(0);
  EXPECT_EQ(MatchedEventually("a", 0, 64), 0);
  session_->BlocksAllocated("a", Ids(1, 4), 0);
  session_->BeginStep(64);
  session_->ScheduledNew("a", Ids(1, 4), 0, 64);
  const ParsedPlan plan = Step();
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].block_ids, Ids(1, 2));
}

TEST_F(SchedulerSessionTest, NewOwnerOfASourceBlockIsFencedUntilTheStoreEnded) {
  Open();
  NewRequest("a", 1, 2);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("a", 0, 32), 0);
  session_->BlocksAllocated("a", Ids(5, 2), 0);
  session_->BeginStep(32);
  session_->ScheduledNew("a", Ids(5, 2), 0, 32);
  Step();
  const shm::Message put = client_->Next(MessageType::kPut);
  session_->RequestFinished("a");

  NewRequest("b", 100, 2);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("b", 0, 32), 0);
  session_->BlocksAllocated("b", Ids(6, 2), 0);
  session_->BeginStep(32);
  session_->ScheduledNew("b", Ids(6, 2), 0, 32);
  EXPECT_EQ(Step().fences, (std::vector<uint32_t>{6}));

  shm::Message ended = shm::MakeMessage(shm::MessageType::kOpEnded);
  ended.op = put.op;
  ended.route = static_cast<uint32_t>(Route::kDeviceToCpu);
  client_->Reply(ended);
  NewRequest("c", 200, 1);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("c", 0, 16), 0);
  session_->BeginStep(16);
  session_->ScheduledNew("c", Ids(5, 1), 0, 16);
  EXPECT_TRUE(Step().fences.empty());
}

TEST_F(SchedulerSessionTest, ResumedRequestReplacesItsBlocks) {
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 0);
  session_->BeginStep(32);
  session_->ScheduledNew("a", Ids(1, 2), 0, 32);
  Step();
  session_->BeginStep(64);
  session_->ScheduledCached("a", Ids(40, 4), /*resumed=*/true, 0, 64);
  const ParsedPlan plan = Step();
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].block_ids, Ids(42, 2)) << "blocks 0 and 1 were offered before";
}

TEST_F(SchedulerSessionTest, NullBlocksAreNeitherStoredNorLoaded) {
  options_.block_tables_change = true;
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 0);
  session_->BlocksAllocated("a", Ids(10, 4), 0);
  hashes_.SetTable({10, 11, kNullBlock, 13});
  session_->BeginStep(64);
  session_->ScheduledNew("a", Ids(10, 4), 0, 64);
  EXPECT_EQ(Step().ops[0].block_ids, Ids(10, 2)) << "a hole ends what can be stored";

  NewRequest("b", 100, 4);
  AnswerLookup(4);
  ASSERT_EQ(MatchedEventually("b", 0, 64), 64);
  session_->BlocksAllocated("b", std::vector<uint32_t>{kNullBlock, kNullBlock, 22, 23}, 64);
  session_->BeginStep(0);
  EXPECT_EQ(Step().ops[0].block_ids, Ids(22, 2));
  const shm::Message load = client_->Next(MessageType::kLoad);
  EXPECT_EQ(load.first, 2u);
  EXPECT_EQ(load.count, 2u);
}

TEST_F(SchedulerSessionTest, BlocksGivenBackAreNotStoredLater) {
  options_.block_tables_change = true;
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(0);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 0);
  hashes_.SetTable(
      {kNullBlock, kNullBlock, 12, 13});  // the first two left the window before they were stored
  session_->BeginStep(64);
  session_->ScheduledNew("a", Ids(10, 4), 0, 64);
  EXPECT_TRUE(Step().ops.empty());
}

TEST_F(SchedulerSessionTest, ShortHitsAreNotTaken) {
  options_.min_load_tokens = 3 * kBlock;
  options_.socket_path = daemon_.path();
  options_.tokens_per_block = kBlock;
  session_ = *SchedulerSession::Open(options_, &hashes_);
  client_ = daemon_.Accept();
  client_->EngineReady(true);
  ASSERT_TRUE(session_->WaitReady(2000));
  NewRequest("a", 1, 4);
  AnswerLookup(2);
  EXPECT_EQ(MatchedEventually("a", 0, 64), 0);
  EXPECT_EQ(session_->stats().short_hits_skipped, 1u);
}

TEST_F(SchedulerSessionTest, NewDaemonIsFoundAndAskedFromTheStart) {
  Open();
  NewRequest("a", 1, 4);
  AnswerLookup(4);
  ASSERT_EQ(MatchedEventually("a", 0, 64), 64);
  client_->Close();
  daemon_.Restart(2);
  client_ = daemon_.Accept();
  ASSERT_NE(client_, nullptr);
  client_->EngineReady(true);
  ASSERT_TRUE(session_->WaitReady(2000));
  // Until the session has noticed, it may answer from its memory or say "nothing"; never for long.
  int64_t answer = 0;
  for (int i = 0; i < 1000 && answer != SchedulerSession::kAskAgain; ++i) {
    answer = session_->MatchedTokens("a", 0, 64);
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  const shm::Message lookup = AnswerLookup(3);
  EXPECT_EQ(lookup.first, 0u);
  EXPECT_EQ(lookup.count, 4u);
  EXPECT_EQ(MatchedEventually("a", 0, 64), 48);
}

TEST_F(SchedulerSessionTest, ResetWaitsForTheAnswer) {
  Open();
  std::thread answer([&] {
    shm::Message reply = client_->Next(MessageType::kReset);
    reply.type = static_cast<uint32_t>(MessageType::kResetReply);
    client_->Reply(reply);
  });
  EXPECT_TRUE(session_->ResetCache(1000));
  answer.join();
  EXPECT_FALSE(session_->ResetCache(5)) << "nobody answers";
}

}  // namespace
}  // namespace flexkv
