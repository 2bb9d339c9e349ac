// Puts trace records together from what passes through the control thread: a lookup, what the
// engine took of it and the load's end are one record; an offer and the copy's end another. Hands
// them on in the order in which the core saw them, so that a replay in that order asks what the
// daemon was asked.
//
// So a record that is still open holds back the ones behind it. Both the number of records and the
// time are bounded:
// - A lookup that the engine does not decide on (its request waits for its turn) is set aside after
//   `undecided_ns`; it takes its place in the order when the engine decides, or ends it. A later
//   lookup of the same request before that replaces it: the answer that decided is the recorded
//   one.
// - A copy that does not end within `in_flight_ns` is recorded as it stands.
// - With no room for another record, the oldest gives way in the same way.
//
// Control thread only. No I/O, and after warm-up hardly an allocation: well below a microsecond a
// request.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/trace/trace_record.h"

namespace flexkv {

// Where records go: the writer, or a test.
class RecordSink {
 public:
  virtual ~RecordSink() = default;
  // Both must not wait. A namespace is named before its first record; `hashes` as in
  // TraceWriter::Record.
  virtual void Name(NamespaceId ns, std::string_view label) = 0;
  virtual void Take(const trace::TraceRecord& record, std::span<const BlockHash> hashes) = 0;
};

struct TraceRecorderOptions {
  bool hashes = true;                       // false: none are kept or handed on
  uint32_t max_open = 16384;                // records held back
  uint32_t max_open_blocks = 1u << 20;      // their hashes, 32 bytes each
  TimeNs undecided_ns = 12 * kNsPerSecond;  // longer than a client uses an answer (10 s)
  TimeNs in_flight_ns = 30 * kNsPerSecond;
};

class TraceRecorder {
 public:
  using Options = TraceRecorderOptions;

  // `manager` answers ChainOf and NamespaceOf; `clock` says when a lookup was over. All outlive
  // the recorder.
  TraceRecorder(Options options, const CacheManager* manager, const Clock* clock, RecordSink* sink);

  // --- after the manager's call of the same name, which went well --------------------------------
  struct LookupInfo {
    uint32_t prompt_tokens = 0;  // 0: not known
    RequestHint hint;
  };
  // `now`: when the lookup began.
  void OnLookup(EngineHandle engine, RequestKey request, const LookupAnswer& answer,
                const LookupInfo& info, TimeNs now);
  void OnGet(EngineHandle engine, RequestKey request, const CacheManager::GetRecord& record,
             TimeNs now);
  // `status` is the manager's answer: a refused load is the record's result.
  void OnLoad(EngineHandle engine, RequestKey request, OpKey op, const absl::Status& status,
              TimeNs now);
  void OnPut(EngineHandle engine, RequestKey request, OpKey op, uint32_t first, uint32_t count,
             const PutAnswer& answer, TimeNs now);
  void OnEvent(const ManagerEvent& event);
  // Of one namespace, or (0) of those of a label.
  void OnReset(NamespaceId ns, TimeNs now);

  // --- before the manager's call: chains are gone after it ---------------------------------------
  void OnEndRequest(EngineHandle engine, RequestKey request, TimeNs now);
  void OnDetach(EngineHandle engine, TimeNs now);

  // Records evictions (now and then), hands on what has waited for too long.
  void Tick(TimeNs now);
  // Hands on everything, as it stands.
  void Finish();

  uint64_t unfinished() const { return unfinished_; }  // records handed on as they stood
  uint64_t skipped() const { return skipped_; }        // requests not recorded: too many at a time
  size_t open() const { return static_cast<size_t>(tail_ - head_); }

 private:
  using RequestId = std::pair<EngineHandle, RequestKey>;
  using OpId = std::pair<EngineHandle, OpKey>;

  static constexpr size_t kMaxRequests = 1u << 17;

  enum class State : uint8_t {
    kUndecided,  // a lookup; the engine has not said what it takes
    kTaken,      // the engine takes something; its load has not been seen yet
    kCopying,    // an op is under way
    kClosed,     // complete
    kDead,       // replaced or set aside: not handed on
  };
  struct Slot {
    trace::TraceRecord record;
    State state = State::kDead;
    OpKey op = 0;
    uint64_t hashes_begin = 0, hashes_end = 0;  // positions in the ring of hashes
  };
  struct Known {
    uint64_t place = 0;     // of its slot while `open`
    bool open = false;      // its record is in the queue, and not closed
    bool recorded = false;  // its record is complete; what else it looks up is not recorded
    std::unique_ptr<trace::TraceRecord> aside;  // set aside
  };

  Slot& At(uint64_t place) { return slots_[(place - first_place_) % slots_.size()]; }
  // A record at the end of the queue. Its hashes are left out where the options say so.
  Slot& Append(trace::RecordKind kind, EngineHandle engine, TimeNs now,
               std::span<const BlockHash> hashes);
  uint64_t ReserveHashes(size_t count);
  uint64_t last_place() const { return tail_ - 1; }
  // What was set aside, at the end of the queue.
  void BringBack(const RequestId& id, Known* known, TimeNs now);
  void StartCopy(uint64_t place, EngineHandle engine, OpKey op);
  void Close(uint64_t place);
  void HandOnClosed();
  void GiveWay();
  void SetAside(Slot* slot);
  void AsItStands(uint64_t place);
  void Pop();
  void RecordEvictions(Tier tier, uint64_t total, uint64_t* seen, TimeNs now);

  const Options options_;
  const CacheManager* manager_;
  const Clock* clock_;
  RecordSink* sink_;
  std::vector<Slot> slots_;  // a ring: places head_ to tail_
  uint64_t head_ = 0, tail_ = 0;
  uint64_t first_place_ = 0;  // that lies in slots_[0]: an empty queue starts over, in warm memory
  std::unique_ptr<std::byte[]> hashes_;  // a ring; a record's lie in one piece
  uint64_t hashes_head_ = 0, hashes_tail_ = 0;
  absl::flat_hash_map<RequestId, Known> requests_;
  absl::flat_hash_map<OpId, uint64_t> ops_;  // under way: place
  absl::flat_hash_set<NamespaceId> named_;
  TimeNs last_time_ = 0;
  uint64_t evicted_ = 0, ssd_evicted_ = 0;  // counters as last recorded
  TimeNs next_evictions_ = 0;
  uint64_t unfinished_ = 0, skipped_ = 0;
};

}  // namespace flexkv
