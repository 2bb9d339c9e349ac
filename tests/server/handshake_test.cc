#include <sys/stat.h>
#include <unistd.h>

#include <chrono>

#include "absl/strings/str_cat.h"
#include "flexkv/server/hello.h"
#include "flexkv/server/io_thread.h"
#include "gmock/gmock.h"
#include "tests/server/daemon_fixture.h"

namespace flexkv {
namespace {

using testing::HasSubstr;

class HandshakeTest : public DaemonTest {
 protected:
  std::string Rejection(const shm::Hello& hello, const std::string& text) {
    const auto client = RawClient::Attach(Socket(), hello, text);
    return client.ok() ? "welcome" : std::string(client.status().message());
  }
};

TEST_F(HandshakeTest, AWholeEngineBecomesReady) {
  RawEngine engine(Socket(), 1);
  EXPECT_EQ(engine.scheduler().welcome().boot_id, server_->boot_id());
  EXPECT_EQ(engine.worker().view().header->magic, shm::kRegionMagic);
  EXPECT_EQ(engine.worker().view().header->version, shm::kProtocolVersion);
  const admin::v1::StatusReply status = Status();
  ASSERT_EQ(status.engines_size(), 1);
  EXPECT_TRUE(status.engines(0).ready());
  EXPECT_EQ(status.engines(0).label(), "model");
}

TEST_F(HandshakeTest, SocketsAreForTheirOwnerOnly) {
  struct stat info {};
  ASSERT_EQ(stat((dir_.path() + "/flexkv").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0700u);
  for (const char* name : {"daemon.sock", "admin.sock", "metrics.sock", "daemon.lock"}) {
    ASSERT_EQ(stat((dir_.path() + "/flexkv/" + name).c_str(), &info), 0);
    EXPECT_EQ(info.st_mode & 0777, 0600u) << name;
  }
}

TEST_F(HandshakeTest, WrongHellosAreRejectedWithASentence) {
  shm::Hello hello = SchedulerHello(1);
  hello.version = 99;
  EXPECT_THAT(Rejection(hello, SchedulerText("m")),
              HasSubstr(absl::StrCat("protocol version ", shm::kProtocolVersion,
                                     ", the client speaks 99")));
  hello = SchedulerHello(1);
  hello.pid = 1;
  EXPECT_THAT(Rejection(hello, SchedulerText("m")), HasSubstr("pid"));
  hello = SchedulerHello(1);
  hello.role = 9;
  EXPECT_THAT(Rejection(hello, SchedulerText("m")), HasSubstr("role"));
  hello = SchedulerHello(1, 300);
  EXPECT_THAT(Rejection(hello, SchedulerText("m")), HasSubstr("world size"));
  EXPECT_THAT(Rejection(WorkerHello(1, 2, 2), "layout"), HasSubstr("rank 2"));
  EXPECT_THAT(Rejection(WorkerHello(1, 0, 1, 0), "layout"), HasSubstr("no bytes"));
  hello = WorkerHello(1);
  hello.flags = 2;
  EXPECT_THAT(Rejection(hello, "layout"), HasSubstr("reserved"));
  hello = SchedulerHello(1);
  hello.flags = shm::kReplicated;
  EXPECT_THAT(Rejection(hello, SchedulerText("m")), HasSubstr("reserved"));
  EXPECT_THAT(Rejection(SchedulerHello(1), "no zero byte"), HasSubstr("label"));
  RawEngine good(Socket(), 2);
  good.ExpectWorks(10);
}

TEST_F(HandshakeTest, ASecondSchedulerOfOneEngineIsRejected) {
  RawEngine engine(Socket(), 1);
  EXPECT_THAT(Rejection(SchedulerHello(1), SchedulerText("m")),
              HasSubstr("scheduler attached already"));
  EXPECT_THAT(Rejection(WorkerHello(1), "layout"),
              HasSubstr("rank 0 of this engine is attached already"));
  EXPECT_THAT(Rejection(WorkerHello(1, 0, 2), "layout"), HasSubstr("world size"));
  engine.ExpectWorks(10);
}

TEST_F(HandshakeTest, HalfAHandshakeIsDroppedAndHoldsNobodyUp) {
  absl::StatusOr<UniqueFd> half = shm::ConnectPacketSocket(Socket());
  ASSERT_TRUE(half.ok());
  const auto start = std::chrono::steady_clock::now();
  RawEngine engine(Socket(), 1);
  engine.ExpectWorks(10);
  EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(2));
  const absl::StatusOr<shm::Packet> said = shm::ReceivePacket(half->get(), 4096, 4000);
  ASSERT_TRUE(said.ok()) << said.status();
  EXPECT_TRUE(Eventually([&] { return Status().handshakes_timed_out() == 1; }));
}

TEST_F(HandshakeTest, ACrowdOfHalfHandshakesIsTurnedAway) {
  std::vector<UniqueFd> crowd;
  for (int i = 0; i < 100; ++i) {
    absl::StatusOr<UniqueFd> socket = shm::ConnectPacketSocket(Socket());
    if (socket.ok()) crowd.push_back(std::move(*socket));
    usleep(500);
  }
  EXPECT_TRUE(Eventually([&] { return Status().clients_rejected() >= 30; }));
  crowd.clear();
  RawEngine engine(Socket(), 1);
  engine.ExpectWorks(10);
}

TEST_F(HandshakeTest, GarbageAndShortPacketsAreRejected) {
  for (const size_t size : {1u, 4u, 63u, 64u, 5000u}) {
    absl::StatusOr<UniqueFd> socket = shm::ConnectPacketSocket(Socket());
    ASSERT_TRUE(socket.ok());
    const std::vector<std::byte> garbage(size, std::byte{0xa5});
    ASSERT_TRUE(shm::SendPacket(socket->get(), garbage).ok());
    const absl::StatusOr<shm::Packet> said = shm::ReceivePacket(socket->get(), 4096, 3000);
    ASSERT_TRUE(said.ok()) << size << said.status();
    uint32_t type = 0;
    ASSERT_TRUE(shm::ReadStruct(said->bytes, &type));
    EXPECT_EQ(type, static_cast<uint32_t>(shm::PacketType::kReject));
  }
}

// A daemon that lets another user in as far as the credentials check.
class OtherUserTest : public DaemonTest {
 protected:
  static constexpr uid_t kNobody = 65534;
  void SetUp() override {
    if (geteuid() != 0) GTEST_SKIP() << "only root can become another user";
    chmod(dir_.path().c_str(), 0711);
    DaemonTest::SetUp();
  }
  void Adjust(DaemonConfig* config) override { config->allowed_uids = allowed_; }
  std::string TryAsNobody() {
    ChildProcess peer(
        {FLEXKV_TEST_PEER, Socket(), "scheduler", "5", "0", "1", std::to_string(kNobody)});
    return peer.ReadLine();
  }
  std::vector<uid_t> allowed_ = {0, 1234567};
};

TEST_F(OtherUserTest, AUidThatIsNotAllowedIsRefused) {
  EXPECT_THAT(TryAsNobody(), HasSubstr("reject: uid 65534 is not in this flexkvd's allowed_uids"));
  EXPECT_EQ(Status().clients_refused_uid(), 1u);
  RawEngine engine(Socket(), 1);
  engine.ExpectWorks(10);
}

class AllowedUserTest : public OtherUserTest {
 protected:
  AllowedUserTest() { allowed_ = {0, kNobody}; }
};

TEST_F(AllowedUserTest, AUidThatIsAllowedIsWelcome) { EXPECT_EQ(TryAsNobody(), "welcome"); }

TEST_F(HandshakeTest, ThePidOfAnotherProcessIsNoDisguise) {
  // The other process says its own pid: welcome. This one saying the other's: rejected.
  ChildProcess peer(
      {FLEXKV_TEST_PEER, Socket(), "worker", "5", "0", "1", std::to_string(geteuid())});
  EXPECT_EQ(peer.ReadLine(), "welcome");
  shm::Hello hello = SchedulerHello(5);
  hello.pid = static_cast<uint64_t>(peer.pid());
  EXPECT_THAT(Rejection(hello, SchedulerText("m")), HasSubstr("pid"));
}

TEST(HelloTest, LabelsAreMadeSafe) {
  EXPECT_EQ(SafeLabel("meta/Llama-3"), "meta/Llama-3");
  EXPECT_EQ(SafeLabel("a\"b\\c\nd\x80"), "a_b_c_d_");
  EXPECT_EQ(SafeLabel(""), "unnamed");
  EXPECT_EQ(SafeLabel(std::string(1000, 'x')).size(), 200u);
}

}  // namespace
}  // namespace flexkv
