// Groups of commits. What was written, freed or quarantined joins the group that is filling; when
// it closes, each segment of it runs on its own, one transfer after the other:
//
//   sync of the data file -> [log moves to its other region] -> log pages -> sync of the log
//
// and its entries end. Meanwhile the next group fills.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "flexkv/storage/ssd/ssd_log.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv::ssd {

struct GroupEntry {
  uint64_t tag = 0;  // of the op; none for kQuarantine
  uint32_t segment = 0;
  uint64_t bytes = 0;
  LogRecord record;
};

struct EpochRaise {
  uint64_t tag = 0;
  NamespaceDigest ns{};
  uint32_t epoch = 0;
};

class CommitListener {
 public:
  virtual void OnCommitted(const GroupEntry& entry, bool ok) = 0;
  virtual void OnRaised(const EpochRaise& raise, bool ok) = 0;

 protected:
  ~CommitListener() = default;
};

class Committer final : public TransferSink {
 public:
  Committer(StoreState* state, CommitListener* listener) : state_(state), listener_(listener) {}

  void Add(const GroupEntry& entry);
  void Raise(const EpochRaise& raise);
  // The group closes as soon as no write is outstanding.
  void Flush() { flush_ = true; }
  // Closes the group where it is due, starts transfers that found the queue full.
  void Pump(bool writes_outstanding);
  void Stop() { stopped_ = true; }  // starts nothing more

  bool idle() const { return !committing_ && filling_.empty() && raises_.empty(); }
  bool has_waiting() const { return !waiting_.empty(); }
  std::optional<TimeNs> deadline() const;  // when the filling group closes by itself

 private:
  enum class Step : uint8_t { kNone, kDataSync, kTurnOver, kAppend, kAppendSync };
  struct SegmentCommit {
    Segment* segment = nullptr;
    std::vector<GroupEntry> entries;
    bool data_written = false;
    Step step = Step::kNone;
    LogIo io;  // in flight or waiting
    std::optional<TurnOver> turn_over;
    std::optional<PageBuilder> pages;
    bool ended = false, ok = false;
  };

  void OnTransfer(uint64_t cookie, bool ok, int64_t result) override;
  void Joined();
  bool IsDue(bool writes_outstanding) const;
  void StartGroup();
  void TakeEntries();
  SegmentCommit* CommitOf(Segment* segment);
  void Advance(size_t index);
  std::optional<LogIo> NextIo(SegmentCommit* commit);
  bool NeedsTurnOver(const SegmentCommit& commit) const;
  LogIo Append(SegmentCommit* commit);
  void CountError(const SegmentCommit& commit);
  bool Launch(size_t index);
  void End(SegmentCommit* commit, bool ok);
  void EndGroup();

  StoreState* const state_;
  CommitListener* const listener_;
  std::vector<GroupEntry> filling_;
  std::vector<EpochRaise> raises_;
  uint64_t filling_bytes_ = 0;
  TimeNs filling_since_ = 0;
  bool flush_ = false;
  bool stopped_ = false;

  bool committing_ = false;
  std::vector<std::unique_ptr<SegmentCommit>> commits_;
  std::vector<EpochRaise> committing_raises_;
  size_t running_ = 0;           // commits_ that have not ended
  std::vector<size_t> waiting_;  // commits_ whose transfer found the queue full
};

}  // namespace flexkv::ssd
