#include "proto/shm_ring.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <algorithm>
#include <climits>

#include "flexkv/base/fault.h"

namespace flexkv::shm {
namespace {

constexpr size_t kPayloadAlign = 8;
constexpr uint64_t kWarmBytes = 256u
                                << 10;  // of the payload area are used while the consumer keeps up

size_t Padded(size_t bytes) { return (bytes + kPayloadAlign - 1) & ~(kPayloadAlign - 1); }

}  // namespace

RegionView::RegionView(std::byte* base)
    : header(reinterpret_cast<RegionHeader*>(base)),
      request_slots(reinterpret_cast<Message*>(base + kRequestRingOffset)),
      completion_slots(reinterpret_cast<Message*>(base + kCompletionRingOffset)),
      request_payload(base + kRequestPayloadOffset),
      completion_payload(base + kCompletionPayloadOffset) {}

bool RingProducer::ReservePayload(size_t bytes, uint64_t* position) {
  if (bytes > kMaxPayload) return false;
  uint64_t start = payload_tail_;
  const uint64_t to_end = kPayloadBytes - start % kPayloadBytes;
  if (start % kPayloadBytes >= kWarmBytes && to_end + bytes <= kPayloadBytes &&
      indexes_->payload_head.load(std::memory_order_acquire) == payload_tail_) {
    // All is consumed: go on at the start of the area, whose pages are mapped and whose lines are
    // warm.
    start += to_end;
    seen_payload_head_ = payload_tail_;
  }
  const uint64_t place = start % kPayloadBytes;
  if (place + bytes > kPayloadBytes) start += kPayloadBytes - place;  // a run never wraps
  const auto fits = [&] { return start + bytes - seen_payload_head_ <= kPayloadBytes; };
  if (!fits()) {
    const uint64_t head = indexes_->payload_head.load(std::memory_order_acquire);
    if (head > payload_tail_ || head < seen_payload_head_)
      return false;  // nonsense: behave as full
    seen_payload_head_ = head;
    if (!fits()) return false;
  }
  *position = start;
  return true;
}

bool RingProducer::Push(Message message, std::span<const std::byte> payload) {
  return Push(message, payload, {});
}

bool RingProducer::Push(Message message, std::span<const std::byte> head,
                        std::span<const std::byte> rest) {
  if (FaultFires("client.ring_full")) return false;
  if (tail_ - seen_head_ >= kRingSlots) {
    const uint64_t consumed = indexes_->head.load(std::memory_order_acquire);
    if (consumed > tail_ || consumed < seen_head_) return false;
    seen_head_ = consumed;
    if (tail_ - seen_head_ >= kRingSlots) return false;
  }
  const size_t bytes = head.size() + rest.size();
  message.payload_bytes = static_cast<uint32_t>(bytes);
  message.payload_position = 0;
  if (bytes > 0) {
    uint64_t position = 0;
    if (!ReservePayload(Padded(bytes), &position)) return false;
    std::byte* target = payload_ + position % kPayloadBytes;
    if (!head.empty()) std::memcpy(target, head.data(), head.size());
    if (!rest.empty()) std::memcpy(target + head.size(), rest.data(), rest.size());
    message.payload_position = position;
    payload_tail_ = position + Padded(bytes);
  }
  Message* slot = &slots_[tail_ % kRingSlots];
  message.stamp = 0;
  // All but the stamp first; the stamp with release order publishes the rest.
  std::memcpy(static_cast<void*>(slot), &message, offsetof(Message, stamp));
  std::atomic_ref<uint32_t>(slot->stamp)
      .store(static_cast<uint32_t>(tail_ + 1), std::memory_order_release);
  ++tail_;
  return true;
}

bool RingConsumer::Empty() const {
  // atomic_ref needs a non-const object; the slot is only read.
  auto* slot = const_cast<Message*>(&slots_[head_ % kRingSlots]);
  return std::atomic_ref<uint32_t>(slot->stamp).load(std::memory_order_acquire) !=
         static_cast<uint32_t>(head_ + 1);
}

PopResult RingConsumer::Pop(Message* message, std::vector<std::byte>* payload) {
  if (Empty()) return PopResult::kEmpty;
  std::memcpy(static_cast<void*>(message), &slots_[head_ % kRingSlots], sizeof(Message));
  payload->clear();
  if (message->payload_bytes > 0) {
    const uint64_t bytes = message->payload_bytes;
    const uint64_t position = message->payload_position;
    const uint64_t ahead = position - payload_head_;  // wraps to a huge number when behind
    if (bytes > kMaxPayload || ahead > kPayloadBytes || ahead + Padded(bytes) > kPayloadBytes ||
        position % kPayloadBytes + bytes > kPayloadBytes) {
      return PopResult::kViolation;
    }
    const std::byte* source = payload_ + position % kPayloadBytes;
    payload->assign(source, source + bytes);
    payload_head_ = position + Padded(bytes);
    indexes_->payload_head.store(payload_head_, std::memory_order_release);
  }
  ++head_;
  indexes_->head.store(head_, std::memory_order_release);
  return PopResult::kMessage;
}

void RingBell(Bell* bell) {
  FullFence(bell);
  // Who takes the flag down wakes the sleeper: a burst of messages costs one system call, not one
  // each until it runs.
  if (bell->sleeping.load(std::memory_order_relaxed) == 0 ||
      bell->sleeping.exchange(0, std::memory_order_seq_cst) == 0) {
    return;
  }
  bell->value.fetch_add(1, std::memory_order_seq_cst);
  FutexWake(&bell->value);
}

void FutexWake(std::atomic<uint32_t>* word) {
  syscall(SYS_futex, word, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0);
}

void FutexWait(std::atomic<uint32_t>* word, uint32_t expected, TimeNs timeout_ns) {
  timespec timeout{static_cast<time_t>(timeout_ns / kNsPerSecond),
                   static_cast<long>(timeout_ns % kNsPerSecond)};
  syscall(SYS_futex, word, FUTEX_WAIT, expected, &timeout, nullptr, 0);
}

}  // namespace flexkv::shm
