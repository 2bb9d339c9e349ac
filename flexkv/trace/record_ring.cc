#include "flexkv/trace/record_ring.h"

#include <cstring>
#include <type_traits>

namespace flexkv::trace {

static_assert(std::is_trivially_copyable_v<TraceRecord> && alignof(TraceRecord) <= 8);

RecordRing::RecordRing(uint64_t bytes, uint32_t words_per_hash)
    : bytes_(bytes), words_per_hash_(words_per_hash), memory_(new std::byte[bytes]) {
  std::memset(memory_.get(), 0, bytes);  // page faults now, not on the control thread
}

void RecordRing::CopyHashes(std::byte* target, std::span<const BlockHash> hashes) const {
  if (words_per_hash_ == 4) {
    std::memcpy(target, hashes.data(), hashes.size_bytes());
    return;
  }
  for (size_t i = 0; i < hashes.size(); ++i) {
    const uint64_t tag = hashes[i].tag();
    std::memcpy(target + i * sizeof(tag), &tag, sizeof(tag));
  }
}

bool RecordRing::Push(const TraceRecord& record, std::span<const BlockHash> hashes) {
  const uint64_t words = hashes.size() * words_per_hash_;
  const uint64_t need = sizeof(Header) + sizeof(TraceRecord) + words * sizeof(uint64_t);
  if (need > bytes_ / 2) return false;
  uint64_t tail = tail_.load(std::memory_order_relaxed);
  const uint64_t to_end = bytes_ - (tail & (bytes_ - 1));
  const uint64_t skip = to_end < need ? to_end : 0;
  if (tail + skip + need - seen_head_ > bytes_) {
    seen_head_ = head_.load(std::memory_order_acquire);
    if (tail + skip + need - seen_head_ > bytes_) return false;
  }
  if (skip != 0) {
    const Header filler{static_cast<uint32_t>(skip), kSkip};
    std::memcpy(memory_.get() + (tail & (bytes_ - 1)), &filler, sizeof(filler));
    tail += skip;
  }
  std::byte* place = memory_.get() + (tail & (bytes_ - 1));
  const Header header{static_cast<uint32_t>(need), static_cast<uint32_t>(words)};
  std::memcpy(place, &header, sizeof(header));
  std::memcpy(place + sizeof(header), &record, sizeof(record));
  if (words != 0) CopyHashes(place + sizeof(header) + sizeof(record), hashes);
  tail_.store(tail + need, std::memory_order_release);
  return true;
}

bool RecordRing::filling() {
  const uint64_t tail = tail_.load(std::memory_order_relaxed);
  if (tail - seen_head_ <= bytes_ / 4) return false;  // seen_head_ lags: never too few
  seen_head_ = head_.load(std::memory_order_acquire);
  return tail - seen_head_ > bytes_ / 4;
}

bool RecordRing::Front(Entry* entry) {
  uint64_t head = head_.load(std::memory_order_relaxed);
  while (true) {
    if (head == seen_tail_) {
      seen_tail_ = tail_.load(std::memory_order_acquire);
      if (head == seen_tail_) return false;
    }
    const std::byte* place = memory_.get() + (head & (bytes_ - 1));
    Header header;
    std::memcpy(&header, place, sizeof(header));
    if (header.words == kSkip) {
      head += header.bytes;
      head_.store(head, std::memory_order_release);
      continue;
    }
    place += sizeof(header);
    entry->record = reinterpret_cast<const TraceRecord*>(place);
    entry->words = {reinterpret_cast<const uint64_t*>(place + sizeof(TraceRecord)), header.words};
    return true;
  }
}

void RecordRing::Pop() {
  const uint64_t head = head_.load(std::memory_order_relaxed);
  Header header;
  std::memcpy(&header, memory_.get() + (head & (bytes_ - 1)), sizeof(header));
  head_.store(head + header.bytes, std::memory_order_release);
}

}  // namespace flexkv::trace
