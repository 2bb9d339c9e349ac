// What stands behind the cache manager in a simulation: nothing but time. Segments without memory,
// copies and devices that say "done" once their bytes would have moved.
#pragma once

#include <cstdint>
#include <deque>
#include <vector>

#include "flexkv/storage/segment_store.h"
#include "flexkv/storage/ssd/ssd_port.h"
#include "flexkv/transfer/transfer_engine.h"

namespace flexkv::trace {

// Segments are numbers.
class NumberedSegments final : public SegmentStore {
 public:
  absl::StatusOr<SegmentId> Create(uint64_t /*bytes*/) override { return next_++; }
  void Destroy(SegmentId /*segment*/) override {}

 private:
  SegmentId next_ = 1;
};

// One thing after another at a fixed rate.
template <typename T>
class TimedQueue {
 public:
  static constexpr TimeNs kNever = UINT64_MAX;

  // `ns_per_block` 0: at once.
  explicit TimedQueue(double ns_per_block) : ns_per_block_(ns_per_block) {}

  void Push(TimeNs now, uint64_t blocks, T item) {
    const auto takes = static_cast<TimeNs>(ns_per_block_ * static_cast<double>(blocks));
    free_at_ = (now > free_at_ ? now : free_at_) + takes;
    waiting_.push_back({free_at_, std::move(item)});
  }
  template <typename Sink>
  void Pop(TimeNs now, Sink sink) {
    for (; !waiting_.empty() && waiting_.front().at <= now; waiting_.pop_front())
      sink(std::move(waiting_.front().item));
  }
  TimeNs next() const { return waiting_.empty() ? kNever : waiting_.front().at; }
  void Rest() { free_at_ = 0; }  // as if nothing had been asked of it yet

 private:
  struct Entry {
    TimeNs at = 0;
    T item;
  };
  const double ns_per_block_;
  TimeNs free_at_ = 0;
  std::deque<Entry> waiting_;
};

// Copies between arena and devices, each direction at its own rate.
class TimedCopies final : public Executor {
 public:
  explicit TimedCopies(double ns_per_block) : loads_(ns_per_block), stores_(ns_per_block) {}

  void SetNow(TimeNs now) { now_ = now; }
  TimeNs next() const { return std::min(loads_.next(), stores_.next()); }
  void Rest() {
    loads_.Rest();
    stores_.Rest();
  }

  bool Supports(Route /*route*/) const override { return true; }
  bool Submit(const TransferOp& op) override;
  void Poll(TimeNs timeout_ns, std::vector<OpResult>* results) override;

 private:
  TimeNs now_ = 0;
  TimedQueue<OpId> loads_, stores_;
};

// A device that keeps everything, reads and writes each at their own rate.
class TimedSsd final : public SsdPort {
 public:
  explicit TimedSsd(double ns_per_block) : reads_(ns_per_block), writes_(ns_per_block), rest_(0) {}

  void SetNow(TimeNs now) { now_ = now; }
  TimeNs next() const { return std::min({reads_.next(), writes_.next(), rest_.next()}); }

  SsdRecovery TakeRecovery() override { return {}; }
  bool Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
             std::span<const ArenaShard> shards) override;
  bool Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
            std::span<const ArenaShard> shards) override;
  bool Free(uint64_t tag, SsdPlace place) override;
  bool RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) override;
  bool CreateSegment(uint64_t tag, const SsdShape& shape) override;
  bool DropSegment(uint64_t tag, uint32_t segment) override;
  void TakeResults(std::vector<SsdPortResult>* results) override;

 private:
  TimeNs now_ = 0;
  uint32_t next_segment_ = 1;
  TimedQueue<uint64_t> reads_, writes_;
  TimedQueue<SsdPortResult> rest_;
};

}  // namespace flexkv::trace
