// A whole daemon, raw clients, real shared memory: what engines see.
#include <signal.h>
#include <unistd.h>

#include <chrono>
#include <thread>

#include "gmock/gmock.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using EngineTest = DaemonTest;

TEST_F(EngineTest, BlocksComeBackByteForByte) {
  RawEngine engine(Socket(), 1);
  for (uint64_t seed = 100; seed < 1000; seed += 100) engine.ExpectWorks(seed);
  const admin::v1::StatusReply status = Status();
  EXPECT_EQ(status.memory().ready_blocks(), 9u * 20u);
  EXPECT_EQ(status.counters().put_blocks_ready(), 9u * 20u);
  EXPECT_EQ(status.match_latency().count(), 9u);
  EXPECT_EQ(status.routes(0).bytes(), 9u * 20u * kTestShardBytes);
  EXPECT_EQ(status.routes(1).bytes(), 9u * 20u * kTestShardBytes);
  EXPECT_EQ(status.ops_in_flight(), 0u);
}

TEST_F(EngineTest, TwoEnginesOfOneModelShareAndOthersDoNot) {
  RawEngine first(Socket(), 1), second(Socket(), 2), stranger(Socket(), 3, "other weights");
  const std::vector<BlockHash> chain = Chain(5, 12);
  EXPECT_EQ(first.Store(1, chain), 12u);
  const RawEngine::Hit hit = second.Lookup(1, chain);
  EXPECT_EQ(hit.matched, 12u);
  EXPECT_EQ(second.LoadAndCheck(1, chain, hit), 12);
  EXPECT_EQ(stranger.Lookup(1, chain).matched, 0u);
  EXPECT_EQ(Status().namespaces_size(), 2);
}

TEST_F(EngineTest, ALookupExtendsItsChainBySuffixes) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(5, 30);
  EXPECT_EQ(engine.Store(1, chain), 30u);
  EXPECT_EQ(engine.Lookup(2, {chain.begin(), chain.begin() + 10}).matched, 10u);
  const std::span<const BlockHash> rest(chain.data() + 10, 20);
  engine.scheduler().Push(LookupMessage(2, 10, 20), HashBytes(rest));
  const std::optional<RawMessage> reply =
      engine.scheduler().WaitFor(shm::MessageType::kLookupReply);
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->message.first, 30u);
  // A gap is answered, not punished: it can follow from a detach.
  engine.scheduler().Push(LookupMessage(77, 10, 20), HashBytes(rest));
  const std::optional<RawMessage> gap = engine.scheduler().WaitFor(shm::MessageType::kLookupReply);
  ASSERT_TRUE(gap.has_value());
  EXPECT_EQ(gap->message.first, 0u);
  EXPECT_EQ(gap->message.status, static_cast<uint32_t>(shm::WireStatus::kInvalid));
  engine.ExpectWorks(500);
}

TEST_F(EngineTest, BeforeItIsCompleteAnEngineGetsNothing) {
  auto scheduler = RawClient::Attach(Socket(), SchedulerHello(1, 2), SchedulerText("m"));
  auto worker = RawClient::Attach(Socket(), WorkerHello(1, 0, 2), "layout");
  ASSERT_TRUE(scheduler.ok() && worker.ok());
  const std::vector<BlockHash> chain = Chain(1, 4);
  (*scheduler)->Push(LookupMessage(1, 0, 4), HashBytes(chain));
  const std::optional<RawMessage> found = (*scheduler)->WaitFor(shm::MessageType::kLookupReply);
  ASSERT_TRUE(found.has_value());
  EXPECT_EQ(found->message.first, 0u);
  (*scheduler)->Push(PutMessage(1, 9, 0, 4, 0), HashBytes(chain));
  const std::optional<RawMessage> put = (*scheduler)->WaitFor(shm::MessageType::kPutReply);
  ASSERT_TRUE(put.has_value());
  EXPECT_EQ(put->message.count, 0u);
  EXPECT_EQ(put->message.lease, 4u);
  const std::optional<RawMessage> refused = (*worker)->WaitFor(shm::MessageType::kRefuseOp);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->message.op, 9u);
  (*scheduler)->Push(LoadMessage(1, 10, 0, 0, 4));
  const std::optional<RawMessage> ended = (*scheduler)->WaitFor(shm::MessageType::kOpEnded);
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->message.status, static_cast<uint32_t>(shm::WireStatus::kRefused));
}

// A welcomed rank may not have seen the Welcome yet: it turns engine halves away until it has.
TEST_F(EngineTest, AnEngineIsReadyWhenEveryRankSaysSo) {
  auto scheduler = RawClient::Attach(Socket(), SchedulerHello(1, 1), SchedulerText("m"));
  auto worker = RawClient::Attach(Socket(), WorkerHello(1, 0, 1), "layout", /*say_ready=*/false);
  ASSERT_TRUE(scheduler.ok() && worker.ok());
  EXPECT_FALSE((*scheduler)->WaitFor(shm::MessageType::kEngineReady, 100).has_value());
  shm::Message ready = shm::MakeMessage(shm::MessageType::kWorkerReady);
  (*worker)->Push(ready);
  EXPECT_TRUE((*scheduler)->WaitFor(shm::MessageType::kEngineReady).has_value());
  (*worker)->Push(ready);  // twice is a violation
  EXPECT_TRUE(Eventually([&] { return Status().clients_dropped() == 1; }));
}

TEST_F(EngineTest, MembersThatDisagreeNeverBecomeReady) {
  auto scheduler = RawClient::Attach(Socket(), SchedulerHello(1, 1), SchedulerText("m"));
  shm::Hello hello = WorkerHello(1, 0, 1);
  hello.tokens_per_block *= 2;
  auto worker = RawClient::Attach(Socket(), hello, "layout");
  ASSERT_TRUE(scheduler.ok() && worker.ok());
  const std::optional<RawMessage> answer = (*scheduler)->WaitFor(shm::MessageType::kEngineReady);
  ASSERT_TRUE(answer.has_value());
  EXPECT_EQ(answer->message.first, 0u);
  EXPECT_EQ(answer->message.status, static_cast<uint32_t>(shm::WireStatus::kInvalid));
}

TEST_F(EngineTest, ARefusedLoadIsToldToBothSides) {
  RawEngine engine(Socket(), 1);
  engine.scheduler().Push(LoadMessage(1, 44, 12345, 0, 4));  // no such lease
  const std::optional<RawMessage> ended = engine.scheduler().WaitFor(shm::MessageType::kOpEnded);
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->message.op, 44u);
  EXPECT_EQ(ended->message.count, 4u);
  const std::optional<RawMessage> refused = engine.worker().WaitFor(shm::MessageType::kRefuseOp);
  ASSERT_TRUE(refused.has_value());
  EXPECT_EQ(refused->message.op, 44u);
  EXPECT_EQ(refused->message.route, static_cast<uint32_t>(Route::kCpuToDevice));
  // The worker answers a refused half too; that is no crime.
  shm::Message done = shm::MakeMessage(shm::MessageType::kOpDone);
  done.op = 44;
  done.route = static_cast<uint32_t>(Route::kCpuToDevice);
  done.status = static_cast<uint32_t>(shm::WireStatus::kFailed);
  engine.worker().Push(done);
  engine.ExpectWorks(100);
}

TEST_F(EngineTest, FailedPositionsNeverBecomeVisible) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(5, 10);
  engine.scheduler().Push(PutMessage(1, 70, 0, 10, 0), HashBytes(chain));
  const std::optional<RawMessage> op = engine.worker().WaitFor(shm::MessageType::kOp);
  ASSERT_TRUE(op.has_value());
  const uint32_t failed[] = {6};
  engine.worker().ReportDone(op->message, 70, failed);
  const std::optional<RawMessage> ended = engine.scheduler().WaitFor(shm::MessageType::kOpEnded);
  ASSERT_TRUE(ended.has_value());
  EXPECT_EQ(ended->message.first + ended->message.count, 10u);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 6u);
}

TEST_F(EngineTest, ResetForgetsForAllEnginesOfTheNamespace) {
  RawEngine first(Socket(), 1), second(Socket(), 2);
  const std::vector<BlockHash> chain = Chain(5, 12);
  EXPECT_EQ(first.Store(1, chain), 12u);
  shm::Message reset = shm::MakeMessage(shm::MessageType::kReset);
  reset.request = 4711;
  first.scheduler().Push(reset);
  const std::optional<RawMessage> reply = first.scheduler().WaitFor(shm::MessageType::kResetReply);
  ASSERT_TRUE(reply.has_value());
  EXPECT_EQ(reply->message.request, 4711u);
  EXPECT_EQ(second.Lookup(1, chain).matched, 0u);
  second.ExpectWorks(100);
}

TEST_F(EngineTest, ClearByLabelAndStopOverGrpc) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(5, 12);
  EXPECT_EQ(engine.Store(1, chain), 12u);
  auto client = AdminClient::Connect(server_->paths().admin);
  ASSERT_TRUE(client.ok());
  EXPECT_EQ((*client)->Clear("nobody", 5000).status().code(), absl::StatusCode::kNotFound);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 12u);
  const absl::StatusOr<uint32_t> cleared = (*client)->Clear("model", 5000);
  ASSERT_TRUE(cleared.ok()) << cleared.status();
  EXPECT_EQ(*cleared, 1u);
  EXPECT_EQ(engine.Lookup(3, chain).matched, 0u);
  const absl::StatusOr<admin::v1::StatusReply> status = (*client)->Status(5000);
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->counters().resets(), 1u);
  EXPECT_EQ(status->boot_id(), server_->boot_id());
  EXPECT_TRUE((*client)->Stop(5000).ok());
  EXPECT_EQ(stops_wanted_, 1);
}

TEST_F(EngineTest, ALostWorkerDetachesAndAnotherCompletesAgain) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(5, 12);
  EXPECT_EQ(engine.Store(1, chain), 12u);
  EXPECT_TRUE(engine.worker().SayGoodbye());
  engine.worker().Close();
  std::optional<RawMessage> ready = engine.scheduler().WaitFor(shm::MessageType::kEngineReady);
  ASSERT_TRUE(ready.has_value());
  EXPECT_EQ(ready->message.first, 0u);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 0u);
  auto again = RawClient::Attach(Socket(), WorkerHello(1, 0, 1, kTestShardBytes), "layout");
  ASSERT_TRUE(again.ok()) << again.status();
  ready = engine.scheduler().WaitFor(shm::MessageType::kEngineReady);
  ASSERT_TRUE(ready.has_value());
  EXPECT_EQ(ready->message.first, 1u);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 12u);
}

TEST_F(EngineTest, AHangUpAloneDoesNotEndCopies) {
  RawEngine engine(Socket(), 1);
  const std::vector<BlockHash> chain = Chain(5, 12);
  engine.scheduler().Push(PutMessage(1, 70, 0, 12, 0), HashBytes(chain));
  const std::optional<RawMessage> op = engine.worker().WaitFor(shm::MessageType::kOp);
  ASSERT_TRUE(op.has_value());
  engine.worker().Close();
  EXPECT_TRUE(Eventually([&] { return !Status().engines(0).ready(); }));
  EXPECT_EQ(Status().ops_in_flight(), 1u) << "the process lives: its thread may still be copying";
  EXPECT_EQ(Status().memory().used_slots(), 12u);
  engine.worker().ReportDone(op->message, 70);  // the ring still works
  EXPECT_TRUE(Eventually([&] { return Status().ops_in_flight() == 0; }));
  EXPECT_EQ(Status().clients(), 1u);
}

TEST_F(EngineTest, AKilledWorkerGivesEverythingBackWithinASecond) {
  RawEngine other(Socket(), 9);
  const int descriptors = CountDescriptors();
  auto scheduler = RawClient::Attach(Socket(), SchedulerHello(1, 2), SchedulerText("model"));
  ASSERT_TRUE(scheduler.ok());
  const std::string uid = std::to_string(geteuid());
  ChildProcess rank0({FLEXKV_TEST_PEER, Socket(), "worker", "1", "0", "2", uid});
  ChildProcess rank1({FLEXKV_TEST_PEER, Socket(), "worker", "1", "1", "2", uid});
  ASSERT_EQ(rank0.ReadLine(), "welcome");
  ASSERT_EQ(rank1.ReadLine(), "welcome");
  ASSERT_TRUE((*scheduler)->WaitFor(shm::MessageType::kEngineReady).has_value());
  const std::vector<BlockHash> chain = Chain(5, 12);
  (*scheduler)->Push(PutMessage(1, 70, 0, 12, 0), HashBytes(chain));
  ASSERT_EQ(rank0.ReadLine(), "op");
  ASSERT_EQ(rank1.ReadLine(), "op");
  EXPECT_EQ(Status().ops_in_flight(), 1u);

  const auto start = std::chrono::steady_clock::now();
  rank0.Kill(SIGKILL);
  rank1.Kill(SIGKILL);
  (*scheduler)->Close();
  EXPECT_TRUE(Eventually([&] {
    const admin::v1::StatusReply status = Status();
    return status.ops_in_flight() == 0 && status.memory().used_slots() == 0 &&
           status.clients() == 2 && status.leases() == 0 && status.requests() == 0;
  }));
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  rank0.Wait();
  rank1.Wait();
  // Ours of the children's pipes and of the attached scheduler are not the daemon's: compare after
  // they are gone.
  scheduler->reset();
  EXPECT_TRUE(Eventually([&] { return CountDescriptors() <= descriptors + 4 + 2; }, 1000))
      << CountDescriptors() << " descriptors, " << descriptors << " before";
  other.ExpectWorks(100);
}

TEST_F(EngineTest, AKilledSchedulersLeasesEnd) {
  RawEngine engine(Socket(), 2, "fp");
  const std::vector<BlockHash> chain = Chain(5, 12);
  EXPECT_EQ(engine.Store(1, chain), 12u);
  EXPECT_EQ(engine.Lookup(2, chain).matched, 12u);
  EXPECT_EQ(Status().leases(), 1u);
  engine.scheduler().Close();
  EXPECT_TRUE(Eventually([&] { return Status().leases() == 0; }, 1000));
  EXPECT_EQ(Status().memory().ready_blocks(), 12u);
}

TEST_F(EngineTest, AttachingOverAndOverLeaksNothing) {
  {
    RawEngine warm(Socket(), 50);
    warm.ExpectWorks(1);  // the arena's first segment stays
  }
  EXPECT_TRUE(Eventually([&] { return Status().clients() == 0; }));
  const int before = CountDescriptors();
  for (uint64_t id = 100; id < 130; ++id) {
    RawEngine engine(Socket(), id);
    engine.ExpectWorks(id * 100);
    engine.worker().SayGoodbye();
  }
  EXPECT_TRUE(Eventually([&] { return Status().clients() == 0 && CountDescriptors() <= before; }))
      << Status().clients() << " clients, " << CountDescriptors() << " descriptors, " << before
      << " before";
  EXPECT_EQ(Status().ops_in_flight(), 0u);
}

TEST_F(EngineTest, WhoReadsNothingIsDroppedAndOthersGoOn) {
  RawEngine good(Socket(), 1), deaf(Socket(), 2);
  // More answers than its completion ring holds, none read.
  const std::vector<BlockHash> chain = Chain(5, 1);
  int pushed = 0;
  EXPECT_TRUE(Eventually([&] {
    while (pushed < 3000 && deaf.scheduler().Push(LookupMessage(1, 0, 1), HashBytes(chain)))
      ++pushed;
    return pushed >= 2000;
  }));
  good.ExpectWorks(100);
  EXPECT_TRUE(deaf.scheduler().WaitCut(5000));
  EXPECT_TRUE(Eventually([&] { return Status().clients_dropped() == 1; }));
  good.ExpectWorks(200);
}

TEST_F(EngineTest, EngineStatisticsReachStatusAndMetrics) {
  RawEngine engine(Socket(), 1);
  shm::Message message = shm::MakeMessage(shm::MessageType::kEngineStats);
  shm::EngineStatsBody body;
  body.prefill_tokens_per_s = 1234;
  body.min_load_tokens = 77;
  engine.scheduler().Push(message, shm::AsBytes(body));
  message.type = static_cast<uint32_t>(shm::MessageType::kRecordGet);
  const shm::GetRecordBody record{100, 10, 80, 60, 60, 0};
  engine.scheduler().Push(message, shm::AsBytes(record));
  EXPECT_TRUE(Eventually([&] { return Status().counters().taken_tokens() == 60; }));
  EXPECT_EQ(Status().engines(0).min_load_tokens(), 77u);
  EXPECT_EQ(Status().engines(0).prefill_tokens_per_s(), 1234);
}

}  // namespace
}  // namespace flexkv
