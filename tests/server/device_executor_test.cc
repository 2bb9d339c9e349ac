// The executor alone, with the rings and sockets of real connections: what a worker is sent, and
// what its answers do.
#include "flexkv/server/device_executor.h"

#include <sys/socket.h>

#include <memory>
#include <optional>

#include "gmock/gmock.h"
#include "proto/packet_socket.h"
#include "tests/server/raw_client.h"

namespace flexkv {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;
using testing::SizeIs;

constexpr EngineHandle kEngine = 3;
constexpr SegmentId kSegment = 5;
constexpr OpKey kKey = 70;
constexpr uint32_t kLoad = static_cast<uint32_t>(Route::kCpuToDevice);
constexpr bool kMore = true, kLast = false;

class OneSegment : public ArenaDirectory {
 public:
  OneSegment() : fd_(*MakeSealedMemfd("segment", 4096)) {}
  bool SegmentsOf(EngineHandle, uint32_t, uint64_t* seen,
                  std::vector<SegmentId>* segments) const override {
    if (*seen == 1) return false;
    *seen = 1;
    *segments = {kSegment};
    return true;
  }
  int Fd(SegmentId) const override { return fd_.get(); }
  uint64_t Bytes(SegmentId) const override { return 4096; }

 private:
  UniqueFd fd_;
};

class DeviceExecutorTest : public testing::Test {
 protected:
  DeviceExecutorTest() {
    UniqueFd region = *MakeSealedMemfd("region", shm::kRegionBytes);
    mapping_ = *SharedMapping::Map(region.get(), shm::kRegionBytes);
    int ends[2];
    EXPECT_EQ(socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends), 0);
    peer_ = UniqueFd(ends[1]);
    NewClient client;
    client.hello.role = shm::Role::kWorker;
    client.hello.shard_bytes = 64;
    client.link = std::make_shared<PeerLink>();
    client.link->client_id = 1;
    client.link->socket = UniqueFd(ends[0]);
    client.region = *SharedMapping::Map(region.get(), shm::kRegionBytes);
    client.region_fd = std::move(region);
    worker_ = std::make_unique<ClientConnection>(std::move(client));
    const shm::RegionView view(mapping_.data());
    sent_ = shm::RingConsumer(&view.header->completions, view.completion_slots,
                              view.completion_payload);
    executor_.SetDirectory(&directory_);
    ClientConnection* workers[] = {worker_.get()};
    executor_.AddEngine(kEngine, workers);
  }

  // Ids count from 1 in the order of the calls.
  OpId Submit(uint32_t part, bool more, uint32_t blocks, Route route = Route::kCpuToDevice) {
    TransferOp op{.id = ++last_id_, .route = route, .engine = kEngine, .key = kKey, .part = part};
    op.more = more;
    for (uint32_t i = 0; i < blocks; ++i) op.blocks.push_back({segment_, i, 64ull * i});
    EXPECT_TRUE(executor_.Submit(op));
    return op.id;
  }
  std::optional<RawMessage> Sent() {
    RawMessage result;
    if (sent_.Pop(&result.message, &result.payload) != shm::PopResult::kMessage)
      return std::nullopt;
    return result;
  }
  void ExpectSent(uint32_t part, uint32_t status, uint32_t count) {
    const std::optional<RawMessage> op = Sent();
    ASSERT_TRUE(op.has_value());
    EXPECT_EQ(op->message.type, static_cast<uint32_t>(shm::MessageType::kOp));
    EXPECT_EQ(op->message.op, kKey);
    EXPECT_EQ(op->message.first, part);
    EXPECT_EQ(op->message.status, status);
    EXPECT_EQ(op->message.count, count);
    EXPECT_THAT(OpBlocks(op->payload), SizeIs(count));
  }
  void ExpectRefused(uint32_t part) {
    const std::optional<RawMessage> refusal = Sent();
    ASSERT_TRUE(refusal.has_value());
    EXPECT_EQ(refusal->message.type, static_cast<uint32_t>(shm::MessageType::kRefuseOp));
    EXPECT_EQ(refusal->message.op, kKey);
    EXPECT_EQ(refusal->message.first, part);
  }
  absl::Status Done(uint32_t part, shm::WireStatus status, std::vector<uint32_t> failed = {},
                    uint32_t route = kLoad) {
    shm::Message message = shm::MakeMessage(shm::MessageType::kOpDone);
    message.op = kKey;
    message.first = part;
    message.route = route;
    message.status = static_cast<uint32_t>(status);
    message.count = static_cast<uint32_t>(failed.size());
    return executor_.OnOpDone(worker_.get(), message, std::as_bytes(std::span(failed)));
  }
  std::vector<OpResult> Results() {
    std::vector<OpResult> results;
    executor_.Poll(0, &results);
    return results;
  }
  void ExpectEnded(OpId id, OpStatus status, const std::vector<uint32_t>& failed) {
    const std::vector<OpResult> results = Results();
    ASSERT_THAT(results, SizeIs(1));
    EXPECT_EQ(results[0].id, id);
    EXPECT_EQ(results[0].status, status);
    EXPECT_EQ(results[0].failed, failed);
  }

  SteadyClock clock_;
  OneSegment directory_;
  SharedMapping mapping_;
  UniqueFd peer_;
  std::unique_ptr<ClientConnection> worker_;
  shm::RingConsumer sent_;
  DeviceExecutor executor_{&clock_};
  SegmentId segment_ = kSegment;
  OpId last_id_ = 0;
};

TEST_F(DeviceExecutorTest, PartsAreUnderWayTogetherAndEndEachByItself) {
  Submit(0, kMore, 3);
  Submit(1, kMore, 2);
  Submit(2, kLast, 0);
  ExpectSent(0, 1, 3);
  ExpectSent(1, 1, 2);
  ExpectSent(2, 0, 0);
  EXPECT_EQ(executor_.OpsOf(worker_.get()), 3u);
  EXPECT_TRUE(Done(1, shm::WireStatus::kPartial, {1}).ok());
  ExpectEnded(2, OpStatus::kPartial, {1});
  EXPECT_TRUE(Done(0, shm::WireStatus::kOk).ok());
  ExpectEnded(1, OpStatus::kOk, {});
  EXPECT_TRUE(Done(2, shm::WireStatus::kOk).ok());
  ExpectEnded(3, OpStatus::kOk, {});
  EXPECT_EQ(executor_.metrics(Route::kCpuToDevice).ops, 3u);
  EXPECT_EQ(executor_.metrics(Route::kCpuToDevice).bytes, 4u * 64u);
  EXPECT_EQ(executor_.OpsOf(worker_.get()), 0u);
}

TEST_F(DeviceExecutorTest, TheEndOfAPartNotUnderWayIsAViolation) {
  Submit(0, kMore, 3);
  EXPECT_FALSE(Done(1, shm::WireStatus::kOk).ok());
  EXPECT_FALSE(Done(UINT32_MAX, shm::WireStatus::kOk).ok());
  EXPECT_FALSE(Done(0, shm::WireStatus::kOk, {}, 0).ok()) << "another route";
  EXPECT_FALSE(Done(0, shm::WireStatus::kPartial, {3}).ok());
  EXPECT_TRUE(Done(0, shm::WireStatus::kFailed).ok());
  ExpectEnded(1, OpStatus::kFailed, {0, 1, 2});
  EXPECT_FALSE(Done(0, shm::WireStatus::kFailed).ok()) << "twice";
  EXPECT_THAT(Results(), IsEmpty());
}

TEST_F(DeviceExecutorTest, AnEmptyPartMayFailButNotInPart) {
  Submit(0, kMore, 1);
  Submit(1, kLast, 0);
  EXPECT_TRUE(Done(0, shm::WireStatus::kOk).ok());
  EXPECT_FALSE(Done(1, shm::WireStatus::kPartial).ok());
  EXPECT_FALSE(Done(1, shm::WireStatus::kPartial, {0}).ok());
  EXPECT_TRUE(Done(1, shm::WireStatus::kFailed).ok());
  const std::vector<OpResult> results = Results();
  ASSERT_THAT(results, SizeIs(2));
  EXPECT_EQ(results[1].status, OpStatus::kFailed);
  EXPECT_THAT(results[1].failed, IsEmpty());
}

// No message says such a thing. The worker hears that nothing (more) comes, so that its engine does
// not wait for it.
TEST_F(DeviceExecutorTest, WhatIsNoPartEndsAtOnce) {
  const auto expect_unsent = [this](uint32_t part, bool more, uint32_t blocks, Route route) {
    const OpId id = Submit(part, more, blocks, route);
    std::vector<uint32_t> all(blocks);
    for (uint32_t i = 0; i < blocks; ++i) all[i] = i;
    ExpectEnded(id, OpStatus::kFailed, all);
    ExpectRefused(part);
    EXPECT_TRUE(Done(part, shm::WireStatus::kFailed).ok()) << "the worker's answer to that";
    EXPECT_FALSE(Done(part, shm::WireStatus::kFailed).ok());
    EXPECT_THAT(Results(), IsEmpty());
  };
  expect_unsent(0, kLast, 0, Route::kCpuToDevice);
  expect_unsent(0, kMore, 0, Route::kCpuToDevice);
  expect_unsent(2, kMore, 0, Route::kCpuToDevice);
  expect_unsent(0, kMore, 2, Route::kDeviceToCpu);
  expect_unsent(1, kLast, 2, Route::kDeviceToCpu);
  segment_ = 99;  // not the engine's
  expect_unsent(1, kLast, 2, Route::kCpuToDevice);
}

TEST_F(DeviceExecutorTest, APartUnderWayIsNotSentAgainNorRefused) {
  Submit(0, kMore, 1);
  ExpectSent(0, 1, 1);
  const OpId again = Submit(0, kMore, 1);
  ExpectEnded(again, OpStatus::kFailed, {0});
  executor_.Refuse(worker_.get(), kKey, Route::kCpuToDevice, 0);
  EXPECT_FALSE(Sent().has_value());
  executor_.Refuse(worker_.get(), kKey, Route::kCpuToDevice, 1);
  ExpectRefused(1);
  EXPECT_TRUE(Done(1, shm::WireStatus::kFailed).ok());
  EXPECT_THAT(Results(), IsEmpty()) << "the end of the refused part is not that of the other";
  EXPECT_TRUE(Done(0, shm::WireStatus::kOk).ok());
  ExpectEnded(1, OpStatus::kOk, {});
}

TEST_F(DeviceExecutorTest, ALostEnginesLaterPartsEndAtOnceAndTheWorkersWithIt) {
  const OpId first = Submit(0, kMore, 2);
  ExpectSent(0, 1, 2);
  executor_.RemoveEngine(kEngine);
  const OpId second = Submit(1, kMore, 1), third = Submit(2, kLast, 0);
  std::vector<OpResult> results = Results();
  ASSERT_THAT(results, SizeIs(2));
  EXPECT_EQ(results[0].id, second);
  EXPECT_THAT(results[0].failed, ElementsAre(0));
  EXPECT_EQ(results[1].id, third);
  EXPECT_EQ(results[1].status, OpStatus::kFailed);
  EXPECT_FALSE(Sent().has_value());
  EXPECT_EQ(executor_.OpsOf(worker_.get()), 1u) << "its copy may be running";
  executor_.RemoveWorker(worker_.get());
  ExpectEnded(first, OpStatus::kFailed, {0, 1});
}

TEST_F(DeviceExecutorTest, ALostWorkerFailsAllPartsOnce) {
  Submit(0, kMore, 2);
  Submit(1, kMore, 1);
  Submit(2, kLast, 0);
  EXPECT_TRUE(Done(0, shm::WireStatus::kOk).ok());
  executor_.RemoveWorker(worker_.get());
  const std::vector<OpResult> results = Results();
  ASSERT_THAT(results, SizeIs(3));
  EXPECT_EQ(results[0].status, OpStatus::kOk);
  EXPECT_EQ(results[1].status, OpStatus::kFailed);
  EXPECT_EQ(results[2].status, OpStatus::kFailed);
  const OpId late = Submit(3, kLast, 1);
  ExpectEnded(late, OpStatus::kFailed, {0});
  EXPECT_FALSE(Done(1, shm::WireStatus::kOk).ok());
}

}  // namespace
}  // namespace flexkv
