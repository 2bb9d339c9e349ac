// The worker's half against a scripted daemon: real agent, real memory, every promise reported
// once.
#include "flexkv/client/worker_session.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sched.h>

#include <chrono>
#include <filesystem>
#include <fstream>
#include <string>
#include <thread>

#include "flexkv/base/fault.h"
#include "flexkv/client/step_plan.h"
#include "tests/client/scripted_daemon.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

using ::flexkv::testing::ScriptedClient;
using ::flexkv::testing::ScriptedDaemon;
using shm::MessageType;

constexpr uint32_t kBlocks = 32;
constexpr uint32_t kBlockBytes = 8192;
constexpr SegmentId kSegment = 5;

class WorkerSessionTest : public ::testing::Test {
 protected:
  WorkerSessionTest() : tensor_(kBlocks * kBlockBytes) {}
  ~WorkerSessionTest() override { ArmFaults("").IgnoreError(); }

  void Open(uint32_t load_timeout_ms = 10000) {
    TensorView view;
    view.layer = "layer.0";
    view.data = reinterpret_cast<uintptr_t>(tensor_.data());
    view.element_bytes = 1;
    view.shape = {kBlocks, kBlockBytes};
    view.strides = {kBlockBytes, 1};
    KvLayout layout;
    layout.groups.push_back(*MakeKvGroup({&view, 1}, 16));
    layout.descriptor = "one layer";
    WorkerOptions options;
    options.socket_path = daemon_.path();
    options.load_timeout_ms = load_timeout_ms;
    session_ = *WorkerSession::Open(options, std::move(layout));
    Attach();
  }
  void Attach() {
    client_ = daemon_.Accept();
    ASSERT_NE(client_, nullptr);
    arena_fd_ = *MakeSealedMemfd("arena", 2 << 20);
    arena_ = *SharedMapping::Map(arena_fd_.get(), 2 << 20);
    client_->SendSegment(kSegment, arena_fd_.get(), 2 << 20);
    while (!session_->stats().attached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::span<std::byte> GpuBlock(uint32_t id) {
    return std::span(tensor_).subspan(size_t{id} * kBlockBytes, kBlockBytes);
  }
  std::span<std::byte> Slot(uint32_t slot) {
    return arena_.span().subspan(size_t{slot} * kBlockBytes, kBlockBytes);
  }
  void Bind(OpKey key, Route route, std::vector<uint32_t> ids, bool dead = false,
            std::vector<uint32_t> fences = {}) {
    PlanBuilder builder;
    builder.Start(++plan_);
    for (uint32_t fence : fences) builder.AddFence(fence);
    builder.AddOp(key, route, ids, route == Route::kCpuToDevice ? "request" : "", dead);
    const auto bytes = builder.Finish();
    session_->Fence(bytes);
    session_->Bind(bytes);
    session_->Bind(bytes);  // some engines call twice
  }
  // The daemon's half: engine index i in slot `first_slot` + i.
  void SendOp(OpKey key, Route route, uint32_t count, uint32_t first_slot) {
    SendPart(key, route, 0, shm::PartFollows::kLast, count, 0, first_slot);
  }
  // Engine index first_index + i in slot `first_slot` + i.
  void SendPart(OpKey key, Route route, uint32_t part, shm::PartFollows follows, uint32_t count,
                uint32_t first_index, uint32_t first_slot) {
    std::vector<shm::OpBlock> blocks;
    for (uint32_t i = 0; i < count; ++i) {
      blocks.push_back({kSegment, first_index + i, uint64_t{first_slot + i} * kBlockBytes});
    }
    shm::Message message = shm::MakeMessage(shm::MessageType::kOp);
    message.op = key;
    message.first = part;
    message.status = static_cast<uint32_t>(follows);
    message.route = static_cast<uint32_t>(route);
    message.count = count;
    client_->Reply(message, std::as_bytes(std::span(blocks)));
  }
  void ExpectDone(OpKey key, uint32_t part, shm::WireStatus status) {
    const shm::Message done = client_->Next(MessageType::kOpDone);
    EXPECT_EQ(done.op, key);
    EXPECT_EQ(done.first, part);
    EXPECT_EQ(done.status, static_cast<uint32_t>(status)) << "part " << part;
  }
  WorkerSession::Report PollUntilReported() {
    WorkerSession::Report report;
    for (int i = 0; i < 3000; ++i) {
      session_->Poll(&report);
      if (!report.loads.empty()) return report;
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return report;
  }
  void ExpectNothingMore() {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    WorkerSession::Report report;
    session_->Poll(&report);
    EXPECT_TRUE(report.loads.empty());
    EXPECT_TRUE(report.failed_block_ids.empty());
  }

  ScriptedDaemon daemon_;
  std::vector<std::byte> tensor_;
  UniqueFd arena_fd_;
  SharedMapping arena_;
  std::unique_ptr<WorkerSession> session_;
  std::unique_ptr<ScriptedClient> client_;
  uint64_t plan_ = 0;
};

// Engines bind the thread that opens the session to one core, and keep that core busy.
TEST_F(WorkerSessionTest, ItsThreadsRunOnEveryAllowedCore) {
  cpu_set_t before, one;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  if (CPU_COUNT(&before) < 2) GTEST_SKIP() << "one core only";
  CPU_ZERO(&one);
  for (int core = 0; CPU_COUNT(&one) == 0; ++core) {
    if (CPU_ISSET(core, &before)) CPU_SET(core, &one);
  }
  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  Open();
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
  int ours = 0;
  for (const auto& task : std::filesystem::directory_iterator("/proc/self/task")) {
    std::string name;
    std::getline(std::ifstream(task.path() / "comm"), name);
    if (!name.starts_with("flexkv-")) continue;
    ++ours;
    cpu_set_t allowed;
    ASSERT_EQ(sched_getaffinity(std::stoi(task.path().filename()), sizeof(allowed), &allowed), 0);
    EXPECT_EQ(CPU_COUNT(&allowed), CPU_COUNT(&before)) << name;
  }
  EXPECT_EQ(ours, 3);  // agent, link, pump
}

TEST_F(WorkerSessionTest, StoreThenLoadBringsTheSameBytesBack) {
  Open();
  FillContent(HashFromNumber(1), 0, GpuBlock(3));
  FillContent(HashFromNumber(2), 0, GpuBlock(9));
  Bind(1, Route::kDeviceToCpu, {3, 9});
  SendOp(1, Route::kDeviceToCpu, 2, 4);
  session_->StepDone();
  const shm::Message stored = client_->Next(MessageType::kOpDone);
  EXPECT_EQ(stored.op, 1u);
  EXPECT_EQ(stored.status, static_cast<uint32_t>(shm::WireStatus::kOk));
  EXPECT_TRUE(ContentMatches(HashFromNumber(1), 0, Slot(4)));
  EXPECT_TRUE(ContentMatches(HashFromNumber(2), 0, Slot(5)));

  Bind(2, Route::kCpuToDevice, {20, 21});
  SendOp(2, Route::kCpuToDevice, 2, 4);
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.loads, (std::vector<std::string>{"request"}));
  EXPECT_TRUE(report.failed_block_ids.empty());
  EXPECT_TRUE(ContentMatches(HashFromNumber(1), 0, GpuBlock(20)));
  EXPECT_TRUE(ContentMatches(HashFromNumber(2), 0, GpuBlock(21)));
  EXPECT_EQ(client_->Next(MessageType::kOpDone).op, 2u);
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, StoreWaitsForItsStep) {
  Open();
  Bind(1, Route::kDeviceToCpu, {3});
  SendOp(1, Route::kDeviceToCpu, 1, 0);
  std::this_thread::sleep_for(std::chrono::milliseconds(50));
  FillContent(HashFromNumber(1), 0, GpuBlock(3));  // the forward writes after the halves met
  session_->StepDone();
  ASSERT_EQ(client_->Next(MessageType::kOpDone).op, 1u);
  EXPECT_TRUE(ContentMatches(HashFromNumber(1), 0, Slot(0)));
}

TEST_F(WorkerSessionTest, RefusedLoadIsReportedFailedOnce) {
  Open();
  Bind(1, Route::kCpuToDevice, {1, 2});
  shm::Message refuse = shm::MakeMessage(shm::MessageType::kRefuseOp);
  refuse.op = 1;
  refuse.route = static_cast<uint32_t>(Route::kCpuToDevice);
  client_->Reply(refuse);
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.loads.size(), 1u);
  EXPECT_EQ(report.failed_block_ids, (std::vector<uint32_t>{1, 2}));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, PartsOfALoadEndOneByOneAndAreReportedTogether) {
  Open();
  for (uint32_t slot = 0; slot < 3; ++slot) FillContent(HashFromNumber(slot), 0, Slot(slot));
  Bind(1, Route::kCpuToDevice, {20, 21, 22, 23});
  SendPart(1, Route::kCpuToDevice, 0, shm::PartFollows::kMore, 2, 0, 0);
  ExpectDone(1, 0, shm::WireStatus::kOk);
  ExpectNothingMore();
  SendPart(1, Route::kCpuToDevice, 1, shm::PartFollows::kMore, 1, 2, 2);
  ExpectDone(1, 1, shm::WireStatus::kOk);
  SendPart(1, Route::kCpuToDevice, 2, shm::PartFollows::kLast, 0, 0, 0);
  ExpectDone(1, 2, shm::WireStatus::kOk);
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.loads.size(), 1u);
  EXPECT_EQ(report.failed_block_ids, (std::vector<uint32_t>{23}));
  for (uint32_t i = 0; i < 3; ++i)
    EXPECT_TRUE(ContentMatches(HashFromNumber(i), 0, GpuBlock(20 + i)));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, PartsThatStopComingEndInATimeoutAndALateOneTouchesNothing) {
  Open(/*load_timeout_ms=*/80);
  Bind(1, Route::kCpuToDevice, {1, 2});
  SendPart(1, Route::kCpuToDevice, 0, shm::PartFollows::kMore, 1, 0, 0);
  ExpectDone(1, 0, shm::WireStatus::kOk);
  EXPECT_EQ(PollUntilReported().failed_block_ids, (std::vector<uint32_t>{1, 2}));
  EXPECT_EQ(session_->stats().load_timeouts, 1u);
  FillContent(HashFromNumber(8), 0, GpuBlock(1));  // they have new owners
  FillContent(HashFromNumber(9), 0, GpuBlock(2));
  SendPart(1, Route::kCpuToDevice, 1, shm::PartFollows::kMore, 1, 1, 1);
  SendPart(1, Route::kCpuToDevice, 2, shm::PartFollows::kLast, 0, 0, 0);
  ExpectDone(1, 1, shm::WireStatus::kFailed);
  ExpectDone(1, 2, shm::WireStatus::kFailed);
  EXPECT_TRUE(ContentMatches(HashFromNumber(8), 0, GpuBlock(1)));
  EXPECT_TRUE(ContentMatches(HashFromNumber(9), 0, GpuBlock(2)));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, ARefusalOfALaterPartEndsTheLoad) {
  Open();
  FillContent(HashFromNumber(1), 0, Slot(0));
  Bind(1, Route::kCpuToDevice, {1, 2});
  SendPart(1, Route::kCpuToDevice, 0, shm::PartFollows::kMore, 1, 0, 0);
  ExpectDone(1, 0, shm::WireStatus::kOk);
  shm::Message refuse = shm::MakeMessage(shm::MessageType::kRefuseOp);
  refuse.op = 1;
  refuse.first = 1;
  refuse.route = static_cast<uint32_t>(Route::kCpuToDevice);
  client_->Reply(refuse);
  ExpectDone(1, 1, shm::WireStatus::kFailed);
  EXPECT_EQ(PollUntilReported().failed_block_ids, (std::vector<uint32_t>{2}));
  EXPECT_TRUE(ContentMatches(HashFromNumber(1), 0, GpuBlock(1)));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, LostDaemonBetweenTwoParts) {
  Open();
  Bind(1, Route::kCpuToDevice, {1, 2});
  SendPart(1, Route::kCpuToDevice, 0, shm::PartFollows::kMore, 1, 0, 0);
  ExpectDone(1, 0, shm::WireStatus::kOk);
  client_->Close();
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.loads.size(), 1u);
  EXPECT_THAT(report.failed_block_ids, ::testing::Contains(2u));
  ExpectNothingMore();
}

// A part of an unknown kind is not acted upon.
TEST_F(WorkerSessionTest, NonsenseAboutPartsIsIgnored) {
  Open();
  FillContent(HashFromNumber(1), 0, Slot(0));
  Bind(1, Route::kCpuToDevice, {1});
  SendPart(1, Route::kCpuToDevice, 0, static_cast<shm::PartFollows>(2), 1, 0, 0);
  ExpectNothingMore();
  SendOp(1, Route::kCpuToDevice, 1, 0);
  ExpectDone(1, 0, shm::WireStatus::kOk);
  EXPECT_TRUE(PollUntilReported().failed_block_ids.empty());
}

TEST_F(WorkerSessionTest, LoadTheDaemonWasNeverAskedForFailsAtOnce) {
  Open();
  Bind(1, Route::kCpuToDevice, {1}, /*dead=*/true);
  WorkerSession::Report report;
  session_->Poll(&report);
  EXPECT_EQ(report.loads.size(), 1u);
  EXPECT_EQ(report.failed_block_ids, (std::vector<uint32_t>{1}));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, SilentDaemonEndsInATimeoutAndALateOpTouchesNothing) {
  Open(/*load_timeout_ms=*/60);
  FillContent(HashFromNumber(9), 0, GpuBlock(1));
  Bind(1, Route::kCpuToDevice, {1});
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.failed_block_ids, (std::vector<uint32_t>{1}));
  EXPECT_EQ(session_->stats().load_timeouts, 1u);
  SendOp(1, Route::kCpuToDevice, 1, 0);  // the daemon wakes up; the block has a new owner by now
  EXPECT_EQ(client_->Next(MessageType::kOpDone).status,
            static_cast<uint32_t>(shm::WireStatus::kFailed));
  EXPECT_TRUE(ContentMatches(HashFromNumber(9), 0, GpuBlock(1)));
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, LostDaemonFailsWhatIsOutstandingAndTheNextOneServes) {
  Open();
  Bind(1, Route::kCpuToDevice, {1});
  client_->Close();
  const WorkerSession::Report report = PollUntilReported();
  EXPECT_EQ(report.loads.size(), 1u);
  EXPECT_EQ(report.failed_block_ids, (std::vector<uint32_t>{1}));
  daemon_.Restart(2);
  Attach();
  FillContent(HashFromNumber(4), 0, Slot(0));
  Bind(2, Route::kCpuToDevice, {2});
  SendOp(2, Route::kCpuToDevice, 1, 0);
  EXPECT_EQ(PollUntilReported().failed_block_ids.size(), 0u);
  EXPECT_TRUE(ContentMatches(HashFromNumber(4), 0, GpuBlock(2)));
  EXPECT_EQ(client_->Next(MessageType::kOpDone).op, 2u) << "nothing of the old daemon's ops";
}

TEST_F(WorkerSessionTest, FencedStoreNeverReadsTheNewOwnersBytes) {
  Open();
  ASSERT_TRUE(ArmFaults("agent.slow_chunk").ok());
  FillContent(HashFromNumber(1), 0, GpuBlock(3));
  Bind(1, Route::kDeviceToCpu, {3});
  session_->StepDone();
  Bind(2, Route::kDeviceToCpu, {9}, false, /*fences=*/{3});
  FillContent(HashFromNumber(7), 0, GpuBlock(3));  // the new owner writes
  SendOp(1, Route::kDeviceToCpu, 1, 0);
  std::vector<std::byte> failed;
  const shm::Message done = client_->Next(MessageType::kOpDone, &failed);
  EXPECT_NE(done.status, static_cast<uint32_t>(shm::WireStatus::kOk));
  EXPECT_FALSE(ContentMatches(HashFromNumber(7), 0, Slot(0)));
}

TEST_F(WorkerSessionTest, GarbagePlansAreCountedAndIgnored) {
  Open();
  const std::vector<std::byte> garbage(100, std::byte{0x5a});
  session_->Fence(garbage);
  session_->Bind(garbage);
  EXPECT_GE(session_->stats().bad_plans, 1u);
  ExpectNothingMore();
}

TEST_F(WorkerSessionTest, EndsInOrder) {
  Open();
  session_.reset();
  EXPECT_TRUE(client_->SaidGoodbye());
}

}  // namespace
}  // namespace flexkv
