// The two ends of a ring of shm_layout.h, and the bell that wakes its consumer. Used by daemon and
// clients. The other side of the memory is another process and may be hostile: indexes it writes
// are only ever used to decide "full" or "violation", never as an address.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "flexkv/base/clock.h"
#include "proto/shm_layout.h"

namespace flexkv::shm {

// Where the parts of a client region lie.
struct RegionView {
  explicit RegionView(std::byte* base);  // REQUIRES: kRegionBytes mapped at base
  RegionHeader* header;
  Message* request_slots;
  Message* completion_slots;
  std::byte* request_payload;
  std::byte* completion_payload;
};

// The producing end. One thread.
class RingProducer {
 public:
  RingProducer() = default;
  RingProducer(RingIndexes* indexes, Message* slots, std::byte* payload)
      : indexes_(indexes), slots_(slots), payload_(payload) {}

  // Copies message and payload in and publishes them. False: the ring or its payload area is full,
  // or the payload is larger than kMaxPayload. Sets payload fields and stamp; `sequence` is the
  // caller's.
  bool Push(Message message, std::span<const std::byte> payload = {});
  // The same with the payload in two pieces, so that a caller need not join them.
  bool Push(Message message, std::span<const std::byte> head, std::span<const std::byte> rest);

 private:
  bool ReservePayload(size_t bytes, uint64_t* position);

  RingIndexes* indexes_ = nullptr;
  Message* slots_ = nullptr;
  std::byte* payload_ = nullptr;
  uint64_t tail_ = 0;
  uint64_t payload_tail_ = 0;
  uint64_t seen_head_ = 0;
  uint64_t seen_payload_head_ = 0;
};

enum class PopResult : uint8_t { kEmpty, kMessage, kViolation };

// The consuming end. One thread.
class RingConsumer {
 public:
  RingConsumer() = default;
  RingConsumer(RingIndexes* indexes, const Message* slots, const std::byte* payload)
      : indexes_(indexes), slots_(slots), payload_(payload) {}

  // Copies the next message and its payload out, checks them, frees their room. kViolation: the
  // producer broke the format; the consumer must drop the client (nothing more is read).
  PopResult Pop(Message* message, std::vector<std::byte>* payload);
  bool Empty() const;

 private:
  RingIndexes* indexes_ = nullptr;
  const Message* slots_ = nullptr;
  const std::byte* payload_ = nullptr;
  uint64_t head_ = 0;
  uint64_t payload_head_ = 0;
};

// Publishes "there is work" to a sleeper of `bell`. Call after Push. No system call unless someone
// sleeps.
void RingBell(Bell* bell);

// Sleeps until the bell is rung or `timeout_ns` is over, unless `has_work()` is true on the second
// look. One sleeper per bell.
template <typename HasWork>
void SleepOnBell(Bell* bell, TimeNs timeout_ns, HasWork has_work);

void FutexWake(std::atomic<uint32_t>* word);
void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, TimeNs timeout_ns);

// Orders what was written before against what is read after. ThreadSanitizer does not know fences:
// there, an operation on the bell's own word does the same.
inline void FullFence([[maybe_unused]] Bell* bell) {
#if defined(__SANITIZE_THREAD__)
  bell->sleeping.fetch_or(0, std::memory_order_seq_cst);
#else
  std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

template <typename HasWork>
void SleepOnBell(Bell* bell, TimeNs timeout_ns, HasWork has_work) {
  const uint32_t seen = bell->value.load(std::memory_order_seq_cst);
  bell->sleeping.store(1, std::memory_order_seq_cst);
  FullFence(bell);
  if (!has_work()) FutexWait(&bell->value, seen, timeout_ns);
  bell->sleeping.store(0, std::memory_order_relaxed);
}

}  // namespace flexkv::shm
