#include "flexkv/server/trace_recorder.h"

#include <algorithm>
#include <cstring>

namespace flexkv {
namespace {

using trace::RecordKind;
using trace::RecordResult;
using trace::TraceRecord;

constexpr TimeNs kEvictionsEveryNs = 100 * kNsPerMs;

RecordResult ResultOf(OpStatus status) {
  switch (status) {
    case OpStatus::kOk:
      return RecordResult::kOk;
    case OpStatus::kPartial:
      return RecordResult::kPartial;
    case OpStatus::kFailed:
      break;
  }
  return RecordResult::kFailed;
}

// Of an op's time, what neither reading nor copying took: it waited for the engine's step, for its
// turn, or for room. An executor that does not say how long it copied has copied all the time.
struct Times {
  explicit Times(const ManagerEvent& event) {
    const TimeNs rest = event.duration_ns - std::min(event.duration_ns, event.ssd_ns);
    copy_ns = event.copy_ns == 0 ? rest : std::min(event.copy_ns, rest);
    queue_ns = rest - copy_ns;
  }
  TimeNs copy_ns = 0, queue_ns = 0;
};

void EndLoad(const ManagerEvent& event, TraceRecord* record) {
  const Times times(event);
  record->result = ResultOf(event.status);
  record->loaded_tokens = event.ok_blocks * record->tokens_per_block;
  record->load_ns = times.copy_ns;
  record->queue_ns = times.queue_ns;
  record->load_bytes = event.ok_blocks * event.block_bytes;
  record->ssd_ns = event.ssd_ns;
  record->ssd_bytes = event.ssd_blocks * event.block_bytes;
}

void EndPut(const ManagerEvent& event, TraceRecord* record) {
  const Times times(event);
  record->result = ResultOf(event.status);
  record->failed_blocks = event.failed_blocks;
  record->store_ns = times.copy_ns;
  record->queue_ns = times.queue_ns;
  record->store_bytes = event.ok_blocks * event.block_bytes;
}

}  // namespace

TraceRecorder::TraceRecorder(Options options, const CacheManager* manager, const Clock* clock,
                             RecordSink* sink)
    : options_(options),
      manager_(manager),
      clock_(clock),
      sink_(sink),
      slots_(std::max(1u, options.max_open)) {
  if (options_.hashes) hashes_.reset(new std::byte[sizeof(BlockHash) * options_.max_open_blocks]);
}

// --- the queue ----------------------------------------------------------------------------------

// Where so many hashes can lie in one piece.
uint64_t TraceRecorder::ReserveHashes(size_t count) {
  const uint64_t capacity = options_.max_open_blocks;
  uint64_t begin = hashes_tail_;
  if (begin % capacity + count > capacity) begin += capacity - begin % capacity;
  while (head_ != tail_ && begin + count - hashes_head_ > capacity) GiveWay();
  if (head_ == tail_) hashes_head_ = begin;
  hashes_tail_ = begin + count;
  return begin;
}

TraceRecorder::Slot& TraceRecorder::Append(RecordKind kind, EngineHandle engine, TimeNs now,
                                           std::span<const BlockHash> hashes) {
  if (hashes.size() > options_.max_open_blocks) ++unfinished_;
  if (!options_.hashes || hashes.size() > options_.max_open_blocks) hashes = {};
  if (tail_ - head_ == slots_.size()) GiveWay();
  const uint64_t begin = ReserveHashes(hashes.size());
  if (!hashes.empty()) {
    std::memcpy(hashes_.get() + begin % options_.max_open_blocks * sizeof(BlockHash), hashes.data(),
                hashes.size_bytes());
  }
  Slot& slot = At(tail_++);
  slot = Slot{};
  slot.hashes_begin = begin;
  slot.hashes_end = begin + hashes.size();
  slot.record.kind = kind;
  slot.record.engine = engine;
  slot.record.time_ns = last_time_ = std::max(last_time_, now);
  if (engine == 0) return slot;
  const CacheManager::NamespaceInfo ns = manager_->NamespaceOf(engine);
  slot.record.ns = ns.id;
  slot.record.tokens_per_block = ns.tokens_per_block;
  if (named_.insert(ns.id).second) sink_->Name(ns.id, ns.label);
  return slot;
}

void TraceRecorder::Pop() {
  hashes_head_ = At(head_).hashes_end;
  if (++head_ != tail_) return;
  first_place_ = tail_;
  hashes_head_ = hashes_tail_ = 0;
}

void TraceRecorder::HandOnClosed() {
  for (; head_ != tail_; Pop()) {
    const Slot& slot = At(head_);
    if (slot.state == State::kDead) continue;
    if (slot.state != State::kClosed) return;
    const std::byte* first =
        hashes_.get() + slot.hashes_begin % options_.max_open_blocks * sizeof(BlockHash);
    sink_->Take(slot.record, {reinterpret_cast<const BlockHash*>(first),
                              static_cast<size_t>(slot.hashes_end - slot.hashes_begin)});
  }
}

void TraceRecorder::Close(uint64_t place) {
  Slot& slot = At(place);
  slot.state = State::kClosed;
  if (slot.record.kind == RecordKind::kGet) {
    const auto known = requests_.find({slot.record.engine, slot.record.request});
    if (known != requests_.end() && known->second.open && known->second.place == place) {
      known->second.open = false;
      known->second.recorded = true;
    }
  }
  if (place == head_) HandOnClosed();
}

void TraceRecorder::SetAside(Slot* slot) {
  Known& known = requests_.at({slot->record.engine, slot->record.request});
  known.open = false;
  known.aside = std::make_unique<TraceRecord>(slot->record);
  slot->state = State::kDead;
}

void TraceRecorder::AsItStands(uint64_t place) {
  Slot& slot = At(place);
  if (slot.state == State::kCopying) ops_.erase({slot.record.engine, slot.op});
  slot.record.result = RecordResult::kFailed;
  ++unfinished_;
  Close(place);
}

// Takes the oldest record, whatever it waits for, out of the queue.
void TraceRecorder::GiveWay() {
  if (At(head_).state == State::kUndecided) {
    SetAside(&At(head_));
  } else if (At(head_).state != State::kDead) {
    AsItStands(head_);
    return;
  }
  HandOnClosed();
}

void TraceRecorder::BringBack(const RequestId& id, Known* known, TimeNs now) {
  const std::unique_ptr<TraceRecord> aside = std::move(known->aside);
  Slot& slot = Append(RecordKind::kGet, id.first, now, manager_->ChainOf(id.first, id.second));
  const TimeNs time = slot.record.time_ns;
  slot.record = *aside;
  slot.record.time_ns = time;
  slot.state = State::kUndecided;
  known->place = last_place();
  known->open = true;
}

// --- what happens -------------------------------------------------------------------------------

void TraceRecorder::OnLookup(EngineHandle engine, RequestKey request, const LookupAnswer& answer,
                             const LookupInfo& info, TimeNs now) {
  const TimeNs match_ns = clock_->Now() - now;
  if (requests_.size() >= kMaxRequests && !requests_.contains({engine, request})) {
    ++skipped_;
    return;
  }
  Known& known = requests_[{engine, request}];
  if (known.recorded || (known.open && At(known.place).state != State::kUndecided)) return;
  if (known.open) {
    At(known.place).state = State::kDead;
    HandOnClosed();
  }
  known.aside.reset();
  Slot& slot = Append(RecordKind::kGet, engine, now, manager_->ChainOf(engine, request));
  TraceRecord& record = slot.record;
  const uint32_t tokens = record.tokens_per_block;
  record.request = request;
  record.prompt_tokens = std::max(
      info.prompt_tokens, static_cast<uint32_t>(slot.hashes_end - slot.hashes_begin) * tokens);
  record.matched_cpu_tokens = (answer.matched_blocks - answer.ssd_blocks) * tokens;
  record.matched_ssd_tokens = answer.ssd_blocks * tokens;
  record.match_ns = match_ns;
  record.hint = info.hint;
  slot.state = State::kUndecided;
  known.place = last_place();
  known.open = true;
}

void TraceRecorder::OnGet(EngineHandle engine, RequestKey request,
                          const CacheManager::GetRecord& get, TimeNs now) {
  if (get.prompt_tokens == 0) return;  // of a load's end, which the event tells
  const RequestId id{engine, request};
  const auto found = requests_.find(id);
  if (found == requests_.end()) {  // nothing to look up, or nothing was
    TraceRecord& record = Append(RecordKind::kGet, engine, now, {}).record;
    record.request = request;
    record.prompt_tokens = get.prompt_tokens;
    record.engine_tokens = get.engine_matched_tokens;
    Close(last_place());
    return;
  }
  Known& known = found->second;
  if (known.aside != nullptr) BringBack(id, &known, now);
  if (!known.open) return;
  Slot& slot = At(known.place);
  slot.record.prompt_tokens = get.prompt_tokens;
  slot.record.engine_tokens = get.engine_matched_tokens;
  if (slot.state != State::kUndecided) return;
  slot.state = State::kTaken;
  if (get.taken_tokens == 0) Close(known.place);
}

void TraceRecorder::StartCopy(uint64_t place, EngineHandle engine, OpKey op) {
  Slot& slot = At(place);
  slot.state = State::kCopying;
  slot.op = op;
  ops_[{engine, op}] = place;
}

void TraceRecorder::OnLoad(EngineHandle engine, RequestKey request, OpKey op,
                           const absl::Status& status, TimeNs now) {
  const RequestId id{engine, request};
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Known& known = found->second;
  if (known.aside != nullptr) BringBack(id, &known, now);
  if (!known.open || At(known.place).state == State::kCopying) return;
  if (status.ok()) return StartCopy(known.place, engine, op);
  At(known.place).record.result = RecordResult::kRefused;
  Close(known.place);
}

void TraceRecorder::OnPut(EngineHandle engine, RequestKey request, OpKey op, uint32_t first,
                          uint32_t count, const PutAnswer& answer, TimeNs now) {
  const std::span<const BlockHash> chain = manager_->ChainOf(engine, request);
  if (uint64_t{first} + count > chain.size()) return;  // the manager has refused it
  const uint32_t parent = first > 0 ? 1 : 0;
  TraceRecord& record =
      Append(RecordKind::kPut, engine, now, chain.subspan(first - parent, count + parent)).record;
  record.request = request;
  record.first_block = first;
  record.blocks = count;
  record.held_blocks = answer.held;
  record.accepted_blocks = answer.accepted;
  record.refused_blocks = answer.refused;
  if (answer.accepted > 0) return StartCopy(last_place(), engine, op);
  if (answer.refused > 0) record.result = RecordResult::kRefused;
  Close(last_place());
}

void TraceRecorder::OnEvent(const ManagerEvent& event) {
  if (event.kind != ManagerEvent::Kind::kOpDone) return;
  const auto op = ops_.find({event.engine, event.key});
  if (op == ops_.end()) return;
  const uint64_t place = op->second;
  ops_.erase(op);
  TraceRecord& record = At(place).record;
  record.kind == RecordKind::kPut ? EndPut(event, &record) : EndLoad(event, &record);
  Close(place);
}

void TraceRecorder::OnReset(NamespaceId ns, TimeNs now) {
  Append(RecordKind::kReset, 0, now, {}).record.ns = ns;
  Close(last_place());
}

void TraceRecorder::OnEndRequest(EngineHandle engine, RequestKey request, TimeNs now) {
  const RequestId id{engine, request};
  const auto found = requests_.find(id);
  if (found == requests_.end()) return;
  Known& known = found->second;
  if (known.aside != nullptr) BringBack(id, &known, now);
  if (known.open) {
    Slot& slot = At(known.place);
    // What the engine took and then did not load did not come.
    if (slot.state == State::kTaken) slot.record.result = RecordResult::kFailed;
    if (slot.state != State::kCopying) Close(known.place);
  }
  requests_.erase(found);
}

// There will be no events of its ops.
void TraceRecorder::OnDetach(EngineHandle engine, TimeNs now) {
  std::vector<RequestKey> keys;
  for (const auto& [id, known] : requests_) {
    if (id.first == engine) keys.push_back(id.second);
  }
  std::sort(keys.begin(), keys.end());
  for (const RequestKey key : keys) OnEndRequest(engine, key, now);
  std::vector<uint64_t> places;
  absl::erase_if(ops_, [&](const auto& op) {
    if (op.first.first != engine) return false;
    places.push_back(op.second);
    return true;
  });
  for (const uint64_t place : places) {
    At(place).record.result = RecordResult::kFailed;
    Close(place);
  }
}

void TraceRecorder::RecordEvictions(Tier tier, uint64_t total, uint64_t* seen, TimeNs now) {
  if (total == *seen) return;
  TraceRecord& record = Append(RecordKind::kEvict, 0, now, {}).record;
  record.tier = tier;
  record.blocks = static_cast<uint32_t>(std::min<uint64_t>(total - *seen, UINT32_MAX));
  *seen = total;
  Close(last_place());
}

void TraceRecorder::Tick(TimeNs now) {
  if (now >= next_evictions_) {
    next_evictions_ = now + kEvictionsEveryNs;
    RecordEvictions(Tier::kCpu, manager_->counters().evicted_blocks, &evicted_, now);
    RecordEvictions(Tier::kSsd, manager_->counters().ssd_evicted_blocks, &ssd_evicted_, now);
  }
  while (head_ != tail_) {
    const Slot& slot = At(head_);
    const TimeNs limit =
        slot.state == State::kUndecided ? options_.undecided_ns : options_.in_flight_ns;
    if (now < slot.record.time_ns + limit) return;
    GiveWay();
  }
}

void TraceRecorder::Finish() {
  while (head_ != tail_) {
    if (At(head_).state == State::kUndecided) {
      Close(head_);  // its request still waits
    } else {
      GiveWay();
    }
  }
}

}  // namespace flexkv
