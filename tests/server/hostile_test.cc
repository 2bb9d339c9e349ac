// Clients that break the protocol: each is dropped, a good engine beside it notices nothing.
#include <cstring>
#include <functional>
#include <limits>
#include <string>

#include "gtest/gtest.h"
#include "proto/lookup_fields.h"
#include "tests/server/daemon_fixture.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

struct Attack {
  const char* name;
  bool worker;  // who attacks
  std::function<void(RawEngine&)> run;
};

shm::Message OfType(uint32_t type) {
  shm::Message message;
  message.type = type;
  return message;
}

// Writes a request slot by hand, past every check of the producer.
void WriteRaw(RawClient& client, uint64_t position, shm::Message message) {
  message.stamp = static_cast<uint32_t>(position + 1);
  client.view().request_slots[position % shm::kRingSlots] = message;
  std::atomic_thread_fence(std::memory_order_seq_cst);
  client.RingDaemon();
}

shm::DeviceReportBody Report() {
  shm::DeviceReportBody body;
  std::strcpy(body.device, "NVIDIA H200");
  body.num_points = 2;
  body.points[0].fragment_bytes = 4096;
  body.points[1].fragment_bytes = 8192;
  return body;
}

Attack BadReport(const char* name, void (*spoil)(shm::DeviceReportBody* body)) {
  return {name, true, [spoil](RawEngine& e) {
            shm::DeviceReportBody body = Report();
            spoil(&body);
            e.worker().Push(OfType(18), shm::AsBytes(body));
          }};
}

std::vector<Attack> Attacks() {
  const std::vector<std::byte> bytes(100);
  return {
      {"unknown type", false, [](RawEngine& e) { e.scheduler().Push(OfType(999)); }},
      {"type none", false, [](RawEngine& e) { e.scheduler().Push(OfType(0)); }},
      {"a worker's message", false, [](RawEngine& e) { e.scheduler().Push(OfType(16)); }},
      {"a scheduler's message", true, [](RawEngine& e) { e.worker().Push(OfType(1)); }},
      {"a daemon's message", true, [](RawEngine& e) { e.worker().Push(OfType(48)); }},
      {"lookup with torn hashes", false,
       [bytes](RawEngine& e) { e.scheduler().Push(LookupMessage(1, 0, 3), bytes); }},
      {"lookup with another count", false,
       [](RawEngine& e) { e.scheduler().Push(LookupMessage(1, 0, 5), HashBytes(Chain(1, 3))); }},
      {"lookup beyond the end of numbers", false,
       [](RawEngine& e) {
         e.scheduler().Push(LookupMessage(1, 0xffffffff, 3), HashBytes(Chain(1, 3)));
       }},
      {"load range overflows", false,
       [](RawEngine& e) { e.scheduler().Push(LoadMessage(1, 5, 1, 0xffffffff, 0xffffffff)); }},
      {"load without op", false,
       [](RawEngine& e) { e.scheduler().Push(LoadMessage(1, 0, 1, 0, 1)); }},
      {"load with a payload", false,
       [bytes](RawEngine& e) { e.scheduler().Push(LoadMessage(1, 5, 1, 0, 1), bytes); }},
      {"put with a suffix far away", false,
       [](RawEngine& e) {
         shm::Message put = PutMessage(1, 5, 0, 3, 0);
         put.lease = 1ull << 40;
         e.scheduler().Push(put, HashBytes(Chain(1, 3)));
       }},
      {"a hint that is no probability", false,
       [](RawEngine& e) {
         shm::Message m = LookupMessage(1, 0, 1);
         m.status = shm::kHintOne + 2;
         e.scheduler().Push(m, HashBytes(Chain(1, 1)));
       }},
      {"a prompt longer than can be", false,
       [](RawEngine& e) {
         shm::Message m = LookupMessage(1, 0, 1);
         m.lease = uint64_t{1} << 32;
         e.scheduler().Push(m, HashBytes(Chain(1, 1)));
       }},
      {"get record of the wrong size", false,
       [bytes](RawEngine& e) { e.scheduler().Push(OfType(7), bytes); }},
      {"statistics that are no numbers", false,
       [](RawEngine& e) {
         shm::EngineStatsBody body;
         body.step_ms = std::numeric_limits<double>::quiet_NaN();
         e.scheduler().Push(OfType(8), shm::AsBytes(body));
       }},
      {"end of an op never sent", true,
       [](RawEngine& e) { e.worker().ReportDone(OfType(48), 4242); }},
      {"a device report from a scheduler", false,
       [](RawEngine& e) { e.scheduler().Push(OfType(18), shm::AsBytes(Report())); }},
      {"a device report without a payload", true,
       [](RawEngine& e) { e.worker().Push(OfType(18)); }},
      {"a device report one byte short", true,
       [](RawEngine& e) {
         const shm::DeviceReportBody body = Report();
         e.worker().Push(OfType(18), shm::AsBytes(body).first(sizeof(body) - 1));
       }},
      BadReport("a device's name without an end",
                [](auto* b) { std::memset(b->device, 'x', sizeof(b->device)); }),
      BadReport("a device's problem without an end",
                [](auto* b) { std::memset(b->problem, 'x', sizeof(b->problem)); }),
      BadReport("too many points", [](auto* b) { b->num_points = 17; }),
      BadReport("points without end", [](auto* b) { b->num_points = 0xffffffff; }),
      BadReport("sizes that fall", [](auto* b) { b->points[1].fragment_bytes = 4095; }),
      BadReport("a size twice", [](auto* b) { b->points[1].fragment_bytes = 4096; }),
      BadReport("a size of nothing", [](auto* b) { b->points[0].fragment_bytes = 0; }),
      BadReport("a rate below nothing", [](auto* b) { b->points[0].kernel[1] = -1; }),
      BadReport(
          "a rate that is no number",
          [](auto* b) { b->points[1].copy_engine[0] = std::numeric_limits<float>::quiet_NaN(); }),
      BadReport("a rate without limit",
                [](auto* b) { b->points[1].kernel[0] = std::numeric_limits<float>::infinity(); }),
      BadReport("a yes or no that is neither", [](auto* b) { b->pinning_refused = 2; }),
      {"payload longer than allowed", false,
       [](RawEngine& e) {
         shm::Message m = OfType(1);
         m.payload_bytes = shm::kMaxPayload + 8;
         WriteRaw(e.scheduler(), 0, m);
       }},
      {"payload outside its area", false,
       [](RawEngine& e) {
         shm::Message m = OfType(1);
         m.payload_bytes = 64;
         m.payload_position = 0xfffffffffffffff0ull;
         WriteRaw(e.scheduler(), 0, m);
       }},
      {"payload across the wrap", true,
       [](RawEngine& e) {
         shm::Message m = OfType(16);
         m.payload_bytes = 64;
         m.payload_position = shm::kPayloadBytes - 8;
         WriteRaw(e.worker(), 1, m);  // after its kWorkerReady
       }},
      {"a packet after the handshake", true,
       [](RawEngine& e) {
         const uint32_t hello = static_cast<uint32_t>(shm::PacketType::kHello);
         EXPECT_TRUE(shm::SendPacket(e.worker().socket(), shm::AsBytes(hello)).ok());
       }},
  };
}

using HostileTest = DaemonTest;

TEST_F(HostileTest, EachAttackerIsDroppedAndNobodyElse) {
  RawEngine good(Socket(), 1);
  uint64_t seed = 1000, dropped = 0;
  for (const Attack& attack : Attacks()) {
    SCOPED_TRACE(attack.name);
    RawEngine bad(Socket(), 100 + seed);
    attack.run(bad);
    EXPECT_TRUE((attack.worker ? bad.worker() : bad.scheduler()).WaitCut());
    EXPECT_TRUE(Eventually([&] { return Status().clients_dropped() == dropped + 1; }));
    ++dropped;
    good.ExpectWorks(seed += 1000);
  }
}

// Attacks on an op under way: the worker is cut off, its op's slots stay pinned while its process
// lives.
TEST_F(HostileTest, FalseEndsOfRealOps) {
  using Forge = std::function<void(shm::Message*, std::vector<uint32_t>*)>;
  const std::vector<std::pair<const char*, Forge>> forgeries = {
      {"positions out of range", [](shm::Message*, std::vector<uint32_t>* f) { *f = {12}; }},
      {"positions out of order",
       [](shm::Message*, std::vector<uint32_t>* f) {
         *f = {5, 4};
       }},
      {"positions twice",
       [](shm::Message*, std::vector<uint32_t>* f) {
         *f = {5, 5};
       }},
      {"more positions than blocks",
       [](shm::Message*, std::vector<uint32_t>* f) { f->assign(13, 0); }},
      {"another route", [](shm::Message* m, std::vector<uint32_t>*) { m->route = 1; }},
      {"another part", [](shm::Message* m, std::vector<uint32_t>*) { m->first = 1; }},
      {"a part far away", [](shm::Message* m, std::vector<uint32_t>*) { m->first = 0xffffffff; }},
      {"an unknown status", [](shm::Message* m, std::vector<uint32_t>*) { m->status = 77; }},
      {"ok with failures",
       [](shm::Message* m, std::vector<uint32_t>* f) { m->status = 0, *f = {1}; }},
      {"a count that is not the payload's",
       [](shm::Message* m, std::vector<uint32_t>*) { m->count = 3; }},
  };
  RawEngine good(Socket(), 1);
  uint64_t seed = 1000;
  for (const auto& [name, forge] : forgeries) {
    SCOPED_TRACE(name);
    RawEngine bad(Socket(), 100 + seed);
    bad.scheduler().Push(PutMessage(1, 70, 0, 12, 0), HashBytes(Chain(seed + 7, 12)));
    const std::optional<RawMessage> op = bad.worker().WaitFor(shm::MessageType::kOp);
    ASSERT_TRUE(op.has_value());
    shm::Message done = OfType(static_cast<uint32_t>(shm::MessageType::kOpDone));
    done.op = 70;
    done.route = op->message.route;
    done.status = static_cast<uint32_t>(shm::WireStatus::kPartial);
    std::vector<uint32_t> failed;
    forge(&done, &failed);
    if (done.count == 0) done.count = static_cast<uint32_t>(failed.size());
    bad.worker().Push(done, std::as_bytes(std::span(failed)));
    EXPECT_TRUE(bad.worker().WaitCut());
    EXPECT_EQ(Status().ops_in_flight(), 1u);
    EXPECT_TRUE(bad.worker().SayGoodbye());
    EXPECT_TRUE(Eventually([&] { return Status().ops_in_flight() == 0; }));
    good.ExpectWorks(seed += 1000);
  }
}

// The answer to a refusal carries the refused part; another one is no answer.
TEST_F(HostileTest, AnAnswerToNoRefusal) {
  RawEngine good(Socket(), 1), bad(Socket(), 2);
  for (const uint32_t part : {0u, 1u}) {
    bad.scheduler().Push(LoadMessage(1, 44 + part, 12345, 0, 4));  // no such lease
    const std::optional<RawMessage> refused = bad.worker().WaitFor(shm::MessageType::kRefuseOp);
    ASSERT_TRUE(refused.has_value());
    EXPECT_EQ(refused->message.first, 0u);
    shm::Message done = OfType(static_cast<uint32_t>(shm::MessageType::kOpDone));
    done.op = 44 + part;
    done.first = part;
    done.route = refused->message.route;
    done.status = static_cast<uint32_t>(shm::WireStatus::kFailed);
    bad.worker().Push(done);
    if (part == 0) bad.ExpectWorks(5000);
  }
  EXPECT_TRUE(bad.worker().WaitCut());
  good.ExpectWorks(9000);
}

TEST_F(HostileTest, AReplayedEndIsDropped) {
  RawEngine engine(Socket(), 1);
  EXPECT_EQ(engine.Store(1, Chain(5, 4)), 4u);
  shm::Message op;
  op.route = static_cast<uint32_t>(Route::kDeviceToCpu);
  engine.worker().ReportDone(op, 1);  // op 1 ended already
  EXPECT_TRUE(engine.worker().WaitCut());
}

// Random bytes over the whole client region, while a good engine works.
TEST_F(HostileTest, ScribblingOverTheRegion) {
  RawEngine good(Socket(), 1);
  TestRng rng(TestSeed());
  uint64_t seed = 100000;
  for (int round = 0; round < 20; ++round) {
    RawEngine bad(Socket(), 1000 + static_cast<uint64_t>(round));
    RawClient& client = rng.OneIn(2) ? bad.worker() : bad.scheduler();
    auto* base = reinterpret_cast<std::byte*>(client.view().header);
    for (int i = 0; i < 2000; ++i) {
      const uint64_t place =
          rng.OneIn(2) ? shm::kRequestRingOffset + rng.Below(4096) : rng.Below(shm::kRegionBytes);
      base[place] = static_cast<std::byte>(rng.Next());
      if (rng.OneIn(50)) {
        shm::Message m;
        for (size_t w = 0; w < sizeof(m) / 4; ++w) {
          const uint32_t word = rng.OneIn(2) ? static_cast<uint32_t>(rng.Below(64))
                                             : static_cast<uint32_t>(rng.Next());
          std::memcpy(reinterpret_cast<char*>(&m) + w * 4, &word, 4);
        }
        client.Push(m);
      }
    }
    client.RingDaemon();
    good.ExpectWorks(seed += 1000);
    bad.worker().SayGoodbye();
  }
}

}  // namespace
}  // namespace flexkv
