// The two ends of a ring: order, bounds, wrap, a hostile producer, and the bell.
#include <gtest/gtest.h>

#include <memory>
#include <random>
#include <thread>

#include "proto/shm_ring.h"
#include "tests/support/test_seed.h"

namespace flexkv::shm {
namespace {

class RingTest : public ::testing::Test {
 protected:
  RingTest() {
    memory_ = std::make_unique<std::byte[]>(kRegionBytes + 4096);
    auto address = (reinterpret_cast<uintptr_t>(memory_.get()) + 4095) & ~uintptr_t{4095};
    view_ = std::make_unique<RegionView>(reinterpret_cast<std::byte*>(address));
    producer_ =
        RingProducer(&view_->header->requests, view_->request_slots, view_->request_payload);
    consumer_ =
        RingConsumer(&view_->header->requests, view_->request_slots, view_->request_payload);
  }
  static Message Make(uint64_t op) {
    Message message;
    message.type = static_cast<uint32_t>(MessageType::kPut);
    message.op = op;
    return message;
  }
  std::unique_ptr<std::byte[]> memory_;
  std::unique_ptr<RegionView> view_;
  RingProducer producer_;
  RingConsumer consumer_;
};

TEST_F(RingTest, EmptyRingHasNothing) {
  Message message;
  std::vector<std::byte> payload;
  EXPECT_TRUE(consumer_.Empty());
  EXPECT_EQ(consumer_.Pop(&message, &payload), PopResult::kEmpty);
}

TEST_F(RingTest, FullRingRefusesAndTakesAgainAfterAPop) {
  Message message;
  std::vector<std::byte> payload;
  for (uint32_t i = 0; i < kRingSlots; ++i) ASSERT_TRUE(producer_.Push(Make(i)));
  EXPECT_FALSE(producer_.Push(Make(kRingSlots)));
  ASSERT_EQ(consumer_.Pop(&message, &payload), PopResult::kMessage);
  EXPECT_EQ(message.op, 0u);
  EXPECT_TRUE(producer_.Push(Make(kRingSlots)));
  EXPECT_FALSE(producer_.Push(Make(kRingSlots + 1)));
}

TEST_F(RingTest, PayloadTooLargeIsRefused) {
  std::vector<std::byte> huge(kMaxPayload + 1);
  EXPECT_FALSE(producer_.Push(Make(1), huge));
}

// Messages of random size, pushed and popped in random bursts, come out as they went in.
TEST_F(RingTest, RandomBurstsKeepOrderAndBytes) {
  const uint64_t seed = TestSeed();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  uint64_t pushed = 0, popped = 0;
  std::vector<std::byte> payload;
  const auto size_of = [](uint64_t op) { return (op * 7919) % 300000; };
  while (popped < 3000) {
    for (uint64_t burst = random() % 40; burst > 0; --burst) {
      std::vector<std::byte> bytes(size_of(pushed), static_cast<std::byte>(pushed));
      if (!producer_.Push(Make(pushed), bytes)) break;
      ++pushed;
    }
    for (uint64_t burst = random() % 40; burst > 0; --burst) {
      Message message;
      const PopResult result = consumer_.Pop(&message, &payload);
      ASSERT_NE(result, PopResult::kViolation);
      if (result == PopResult::kEmpty) break;
      ASSERT_EQ(message.op, popped);
      ASSERT_EQ(payload.size(), size_of(popped));
      for (std::byte byte : payload) ASSERT_EQ(byte, static_cast<std::byte>(popped));
      ++popped;
    }
  }
}

TEST_F(RingTest, HostilePayloadPositionsAreViolations) {
  const struct {
    uint64_t position;
    uint32_t bytes;
  } kCases[] = {
      {0, kMaxPayload + 1},              // too long
      {kPayloadBytes - 8, 16},           // would wrap past the end
      {uint64_t{kPayloadBytes} * 4, 8},  // far ahead
      {UINT64_MAX - 7, 8},               // behind
      {kPayloadBytes, 8},                // just out of the window
  };
  for (const auto& bad : kCases) {
    RingProducer producer(&view_->header->completions, view_->completion_slots,
                          view_->completion_payload);
    RingConsumer consumer(&view_->header->completions, view_->completion_slots,
                          view_->completion_payload);
    std::memset(static_cast<void*>(view_->completion_slots), 0, sizeof(Message));
    ASSERT_TRUE(producer.Push(Make(1)));
    view_->completion_slots[0].payload_position = bad.position;
    view_->completion_slots[0].payload_bytes = bad.bytes;
    Message message;
    std::vector<std::byte> payload;
    EXPECT_EQ(consumer.Pop(&message, &payload), PopResult::kViolation)
        << bad.position << " " << bad.bytes;
  }
}

TEST_F(RingTest, NonsenseConsumerIndexMeansFull) {
  for (uint32_t i = 0; i < kRingSlots; ++i) ASSERT_TRUE(producer_.Push(Make(i)));
  view_->header->requests.head.store(UINT64_MAX);
  EXPECT_FALSE(producer_.Push(Make(0)));
}

TEST_F(RingTest, SleeperMissesNoWake) {
  constexpr uint64_t kMessages = 20000;
  std::thread consumer([&] {
    Message message;
    std::vector<std::byte> payload;
    for (uint64_t next = 0; next < kMessages;) {
      const PopResult result = consumer_.Pop(&message, &payload);
      if (result == PopResult::kMessage) {
        ASSERT_EQ(message.op, next++);
      } else {
        // A lost wake would show as this test taking kMessages * 10 s.
        SleepOnBell(&view_->header->client_bell, 10 * kNsPerSecond,
                    [&] { return !consumer_.Empty(); });
      }
    }
  });
  for (uint64_t i = 0; i < kMessages;) {
    if (!producer_.Push(Make(i))) {
      std::this_thread::yield();
      continue;
    }
    RingBell(&view_->header->client_bell);
    ++i;
  }
  consumer.join();
}

}  // namespace
}  // namespace flexkv::shm
