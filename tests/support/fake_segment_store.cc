#include "tests/support/fake_segment_store.h"

namespace flexkv {

absl::StatusOr<SegmentId> FakeSegmentStore::Create(uint64_t bytes) {
  const bool told_to_fail = fail_in_ != 0 && --fail_in_ == 0;
  if (told_to_fail || bytes > budget_bytes_ || live_bytes_ > budget_bytes_ - bytes) {
    ++failed_creates_;
    return absl::ResourceExhaustedError(told_to_fail ? "told to fail" : "over the budget");
  }
  const SegmentId id = next_++;
  live_.emplace(id, bytes);
  live_bytes_ += bytes;
  ++creates_;
  return id;
}

void FakeSegmentStore::Destroy(SegmentId segment) {
  auto it = live_.find(segment);
  if (it == live_.end()) {
    ++unknown_destroys_;
    return;
  }
  live_bytes_ -= it->second;
  live_.erase(it);
}

}  // namespace flexkv
