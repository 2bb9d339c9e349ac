// SegmentStore without memory: a byte budget, a Create that fails on demand, and a list of what
// lives.
#pragma once

#include <cstdint>
#include <map>

#include "flexkv/storage/segment_store.h"

namespace flexkv {

class FakeSegmentStore : public SegmentStore {
 public:
  explicit FakeSegmentStore(uint64_t budget_bytes = UINT64_MAX) : budget_bytes_(budget_bytes) {}

  // ResourceExhausted over the budget, or when this is the call FailCreate named.
  absl::StatusOr<SegmentId> Create(uint64_t bytes) override;
  void Destroy(SegmentId segment) override;

  // The n-th Create from now on fails (1 = the next one), once. 0 disarms.
  void FailCreate(uint32_t nth) { fail_in_ = nth; }
  void SetBudget(uint64_t bytes) { budget_bytes_ = bytes; }

  const std::map<SegmentId, uint64_t>& live() const { return live_; }  // id -> bytes
  uint64_t live_bytes() const { return live_bytes_; }
  uint32_t creates() const { return creates_; }  // successful ones
  uint32_t failed_creates() const { return failed_creates_; }
  uint32_t unknown_destroys() const { return unknown_destroys_; }  // a caller's bug, usually

 private:
  uint64_t budget_bytes_;
  uint32_t fail_in_ = 0;
  SegmentId next_ = 1;
  std::map<SegmentId, uint64_t> live_;
  uint64_t live_bytes_ = 0;
  uint32_t creates_ = 0;
  uint32_t failed_creates_ = 0;
  uint32_t unknown_destroys_ = 0;
};

}  // namespace flexkv
