// Transfers of blocks. A place's state changes when an op is accepted, so later ops of the same
// caller see it; the disk sees it when it is the op's turn.
#include <algorithm>
#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_checksum.h"
#include "flexkv/storage/ssd/ssd_store_impl.h"

namespace flexkv {

using ssd::kPageBytes;
using ssd::Segment;
using ssd::Slot;
using ssd::SlotState;

namespace {

constexpr uint32_t kFaultsToRetire = 3;
constexpr uint32_t kVerifiedPerPoll = 4;

template <typename Span>
bool ShardsFit(const std::vector<Span>& shards, const SsdShape& shape) {
  if (shards.size() != shape.shard_bytes.size()) return false;
  for (size_t i = 0; i < shards.size(); ++i) {
    if (shards[i].size() != ssd::RoundUpToPage(shape.shard_bytes[i])) return false;
    if (reinterpret_cast<uintptr_t>(shards[i].data()) % kPageBytes != 0) return false;
  }
  return true;
}

absl::Status PlaceError(SsdPlace place) {
  return absl::InvalidArgumentError(
      absl::StrCat("no place ", place.slot, " in segment ", place.segment));
}

absl::Status RetiredError() { return absl::UnavailableError("the segment is retired"); }

absl::Status NotThere() { return absl::NotFoundError("no such block at that place"); }

// Says something about the machine's state, not about the block.
bool IsTransient(int64_t result) {
  return result == -EAGAIN || result == -EINTR || result == -ENOMEM || result == -ECANCELED;
}

}  // namespace

absl::Status SsdStore::Impl::CheckWrite(const SsdWrite& op, Segment* segment) const {
  if (segment == nullptr) return PlaceError(op.place);
  if (segment->state != SegmentState::kOpen) return RetiredError();
  if (op.place.slot >= segment->slots.size()) return PlaceError(op.place);
  if (!ShardsFit(op.shards, segment->shape)) {
    return absl::InvalidArgumentError("shards do not fit the segment's shape");
  }
  const Slot& slot = segment->slots[op.place.slot];
  if (slot.state() == SlotState::kQuarantined || slot.state() == SlotState::kLost) {
    return absl::UnavailableError("the place is not used any more");
  }
  if (slot.state() != SlotState::kFree) return absl::InvalidArgumentError("the place is not free");
  if (slot.generation == UINT32_MAX) return absl::UnavailableError("the place is worn out");
  if (ssd::IsOver(state.epochs, op.identity)) {
    return absl::FailedPreconditionError("the block's epoch is over");
  }
  return absl::OkStatus();
}

void SsdStore::Impl::AcceptWrite(SsdWrite op) {
  Segment* segment = state.Find(op.place.segment);
  absl::Status status = state.CheckWritable();
  if (status.ok()) status = CheckWrite(op, segment);
  if (!status.ok()) {
    Finish(op.place.segment, op.tag, SsdOpKind::kWrite, std::move(status));
    return;
  }
  const uint32_t generation = segment->slots[op.place.slot].generation + 1;
  segment->slots.Write(op.place.slot, SlotState::kWriting, generation, 0, 0);
  ++segment->pending_ops;
  writes.push_back(std::move(op));
}

void SsdStore::Impl::AcceptRead(SsdRead op) {
  Segment* segment = state.Find(op.place.segment);
  if (segment == nullptr) {
    Finish(op.place.segment, op.tag, SsdOpKind::kRead, PlaceError(op.place));
    return;
  }
  ++segment->pending_ops;
  reads.push_back(std::move(op));
}

void SsdStore::Impl::AcceptFree(uint64_t tag, SsdPlace place) {
  if (absl::Status status = state.CheckWritable(); !status.ok()) {
    Finish(place.segment, tag, SsdOpKind::kFree, std::move(status));
    return;
  }
  Segment* segment = state.Find(place.segment);
  const bool unreadable = segment != nullptr && segment->state == SegmentState::kUnreadable;
  if (segment == nullptr || (!unreadable && place.slot >= segment->slots.size())) {
    Finish(place.segment, tag, SsdOpKind::kFree, PlaceError(place));
    return;
  }
  const SlotState slot_state = unreadable ? SlotState::kLost : segment->slots[place.slot].state();
  absl::Status status;  // kFree: it may be written already
  if (slot_state == SlotState::kWriting || slot_state == SlotState::kFreeing) {
    status = absl::InvalidArgumentError("the place is being written or freed");
  } else if (slot_state == SlotState::kQuarantined || slot_state == SlotState::kLost) {
    status = absl::UnavailableError("the place is not used any more");
  } else if (slot_state == SlotState::kCommitted && segment->state != SegmentState::kOpen) {
    segment->slots.Set(place.slot, SlotState::kLost);
    status = RetiredError();
  } else if (slot_state == SlotState::kCommitted) {
    segment->slots.Set(place.slot, SlotState::kFreeing);
    ++segment->pending_ops;
    committer.Add({tag, place.segment, 0,
                   ssd::SlotRecord(ssd::RecordKind::kFree, place.slot,
                                   segment->slots[place.slot].generation)});
    return;
  }
  Finish(place.segment, tag, SsdOpKind::kFree, std::move(status));
}

bool SsdStore::Impl::HasRoomInFlight(uint64_t bytes) const {
  if (state.io.in_flight() >= state.io.disk()->limits().queue_depth) return false;
  const uint64_t in_flight_bytes = state.io.in_flight_bytes();
  return in_flight_bytes == 0 || in_flight_bytes + bytes <= state.options.max_inflight_bytes;
}

uint32_t SsdStore::Impl::NewInFlight() {
  if (unused_in_flight.empty()) {
    unused_in_flight.push_back(static_cast<uint32_t>(in_flight.size()));
    in_flight.emplace_back();
  }
  return unused_in_flight.back();  // taken only when the transfer has started
}

absl::Status SsdStore::Impl::CheckRead(const SsdRead& op, const Segment& segment) const {
  if (segment.state == SegmentState::kUnreadable) return NotThere();
  if (op.place.slot >= segment.slots.size()) return PlaceError(op.place);
  if (!ShardsFit(op.shards, segment.shape)) {
    return absl::InvalidArgumentError("shards do not fit the segment's shape");
  }
  const Slot& slot = segment.slots[op.place.slot];
  const bool there = slot.state() == SlotState::kCommitted &&
                     slot.tag() == Slot::TagOf(op.identity) &&
                     !ssd::IsOver(state.epochs, op.identity);
  return there ? absl::OkStatus() : NotThere();
}

// False: the disk takes no more now.
bool SsdStore::Impl::StartRead(SsdRead* op) {
  Segment* segment = state.Find(op->place.segment);
  absl::Status status = CheckRead(*op, *segment);
  if (!status.ok()) {
    FinishOn(segment, op->tag, SsdOpKind::kRead, std::move(status));
    return true;
  }
  const uint64_t bytes = segment->record_bytes - kPageBytes;
  if (!HasRoomInFlight(bytes)) return false;
  slices.clear();
  for (const std::span<std::byte> shard : op->shards) {
    slices.push_back({shard.data(), shard.size()});
  }
  const uint32_t index = NewInFlight();
  if (!state.io.Start(IoKind::kRead, segment->data, segment->PayloadOffset(op->place.slot), slices,
                      this, index)) {
    return false;
  }
  unused_in_flight.pop_back();
  const Slot& slot = segment->slots[op->place.slot];
  in_flight[index] = {true,
                      SsdOpKind::kRead,
                      op->tag,
                      op->place,
                      segment,
                      op->identity,
                      slot.generation,
                      slot.checksum,
                      bytes,
                      0,
                      std::move(op->shards)};
  return true;
}

bool SsdStore::Impl::StartWrite(SsdWrite* op) {
  Segment* segment = state.Find(op->place.segment);
  const uint32_t slot = op->place.slot;
  if (segment->state != SegmentState::kOpen) {
    segment->slots.Set(slot, SlotState::kLost);
    FinishOn(segment, op->tag, SsdOpKind::kWrite, RetiredError());
    return true;
  }
  const uint64_t bytes = segment->record_bytes;
  if (!HasRoomInFlight(bytes) || unused_headers.empty()) return false;
  ssd::SlotHeader header{
      state.superblock.store, segment->id,   slot, segment->slots[slot].generation, 0,
      op->identity,           segment->shape};
  pieces.clear();
  slices.clear();
  std::byte* page = headers.page(unused_headers.back());
  slices.push_back({page, kPageBytes});
  for (size_t i = 0; i < op->shards.size(); ++i) {
    pieces.push_back(op->shards[i].first(segment->shape.shard_bytes[i]));
    slices.push_back({const_cast<std::byte*>(op->shards[i].data()), op->shards[i].size()});
  }
  header.payload_checksum = ssd::Checksum(
      pieces, ssd::PayloadSeed(header.store, op->place, header.generation, op->identity));
  ssd::EncodeSlotHeader(header, page);
  const uint32_t index = NewInFlight();
  if (!state.io.Start(IoKind::kWrite, segment->data, slot * segment->record_bytes, slices, this,
                      index)) {
    return false;
  }
  unused_in_flight.pop_back();
  segment->slots.Write(slot, SlotState::kWriting, header.generation, Slot::TagOf(op->identity),
                       header.payload_checksum);
  in_flight[index] = {true,
                      SsdOpKind::kWrite,
                      op->tag,
                      op->place,
                      segment,
                      op->identity,
                      header.generation,
                      header.payload_checksum,
                      bytes,
                      unused_headers.back(),
                      {}};
  unused_headers.pop_back();
  ++writes_in_flight;
  return true;
}

void SsdStore::Impl::OnTransfer(uint64_t cookie, bool ok, int64_t result) {
  const auto index = static_cast<uint32_t>(cookie);
  if (in_flight[index].kind == SsdOpKind::kRead) {
    arrived.push_back({index, ok, result});
    return;
  }
  const InFlight op = std::exchange(in_flight[index], InFlight{});
  unused_in_flight.push_back(index);
  EndWrite(op, ok);
}

// Verifying a block takes as long as a fast device needs for the next few: whatever can be on its
// way is submitted before, and the caller gets results in small portions.
void SsdStore::Impl::EndArrived() {
  if (arrived.empty()) return;
  state.io.Poll(0);
  for (uint32_t i = 0; i < kVerifiedPerPoll && !arrived.empty(); ++i) {
    const Arrived read = arrived.front();
    arrived.pop_front();
    const InFlight op = std::exchange(in_flight[read.index], InFlight{});
    unused_in_flight.push_back(read.index);
    EndRead(op, read.ok, read.result);
    ReleaseHeldFrees(op.place);
  }
}

bool SsdStore::Impl::PayloadVerifies(const InFlight& op) {
  pieces.clear();
  for (size_t i = 0; i < op.shards.size(); ++i) {
    pieces.push_back(op.shards[i].first(op.segment->shape.shard_bytes[i]));
  }
  const uint64_t seed =
      ssd::PayloadSeed(state.superblock.store, op.place, op.generation, op.identity);
  return ssd::Checksum(pieces, seed) == op.checksum;
}

void SsdStore::Impl::EndRead(const InFlight& op, bool ok, int64_t result) {
  Segment* segment = op.segment;
  const Slot& slot = segment->slots[op.place.slot];
  // The place may have been freed since; what was read of it then says nothing about the device.
  const bool unchanged = slot.state() == SlotState::kCommitted && slot.generation == op.generation;
  absl::Status status;
  if (!ok) {
    ++state.stats.read_errors;
    if (unchanged && !IsTransient(result)) Quarantine(segment, op.place.slot);
    status = absl::UnavailableError(result < 0 ? absl::StrCat("read failed, error ", -result)
                                               : "the read was short");
  } else {
    if (!state.options.verify_reads || PayloadVerifies(op)) {
      if (ssd::IsOver(state.epochs, op.identity)) status = NotThere();
    } else if (unchanged) {
      ++state.stats.corrupt_blocks;
      Quarantine(segment, op.place.slot);
      status = absl::DataLossError("the block does not verify");
    } else {
      status = NotThere();
    }
  }
  if (status.ok()) {
    ++state.stats.reads;
    state.stats.read_bytes += op.bytes;
  }
  FinishOn(segment, op.tag, SsdOpKind::kRead, std::move(status));
}

void SsdStore::Impl::EndWrite(const InFlight& op, bool ok) {
  --writes_in_flight;
  unused_headers.push_back(op.header);
  if (ok) {
    committer.Add({op.tag, op.place.segment, op.bytes,
                   ssd::CommitRecord(op.place.slot, op.generation, op.checksum, op.identity)});
    return;
  }
  ++state.stats.write_errors;
  state.Retire(op.segment);
  op.segment->slots.Set(op.place.slot, SlotState::kLost);
  FinishOn(op.segment, op.tag, SsdOpKind::kWrite, absl::UnavailableError("the write failed"));
}

void SsdStore::Impl::Quarantine(Segment* segment, uint32_t slot) {
  if (state.options.read_only) return;
  segment->slots.Set(slot, SlotState::kQuarantined);
  ++state.stats.quarantined_slots;
  committer.Add(
      {0, segment->id, 0,
       ssd::SlotRecord(ssd::RecordKind::kQuarantine, slot, segment->slots[slot].generation)});
  if (++segment->faults >= kFaultsToRetire) state.Retire(segment);
}

bool SsdStore::Impl::IsBeingRead(SsdPlace place) const {
  return std::any_of(in_flight.begin(), in_flight.end(), [place](const InFlight& op) {
    return op.used && op.kind == SsdOpKind::kRead && op.place == place;
  });
}

void SsdStore::Impl::EndFree(uint64_t tag, SsdPlace place) {
  Segment* segment = state.Find(place.segment);
  segment->slots.Set(place.slot, SlotState::kFree);
  ++state.stats.frees;
  FinishOn(segment, tag, SsdOpKind::kFree, absl::OkStatus());
}

void SsdStore::Impl::ReleaseHeldFrees(SsdPlace place) {
  for (size_t i = 0; i < held_frees.size(); ++i) {
    if (held_frees[i].place != place || IsBeingRead(place)) continue;
    EndFree(held_frees[i].tag, place);
    held_frees.erase(held_frees.begin() + static_cast<ptrdiff_t>(i));
    return;
  }
}

void SsdStore::Impl::OnCommitted(const ssd::GroupEntry& entry, bool ok) {
  Segment* segment = state.Find(entry.segment);
  const SsdPlace place{entry.segment, entry.record.slot};
  switch (static_cast<ssd::RecordKind>(entry.record.kind)) {
    case ssd::RecordKind::kCommit:
      segment->slots.Set(place.slot, ok ? SlotState::kCommitted : SlotState::kLost);
      if (ok) {
        ++state.stats.writes;
        state.stats.written_bytes += entry.bytes;
      }
      FinishOn(segment, entry.tag, SsdOpKind::kWrite, ok ? absl::OkStatus() : RetiredError());
      return;
    case ssd::RecordKind::kFree:
      if (!ok) {
        segment->slots.Set(place.slot, SlotState::kLost);
        FinishOn(segment, entry.tag, SsdOpKind::kFree, RetiredError());
      } else if (IsBeingRead(place)) {
        held_frees.push_back({entry.tag, place});
      } else {
        EndFree(entry.tag, place);
      }
      return;
    case ssd::RecordKind::kQuarantine:
    case ssd::RecordKind::kEpoch:
      return;
  }
}

void SsdStore::Impl::OnRaised(const ssd::EpochRaise& raise, bool ok) {
  Finish(0, raise.tag, SsdOpKind::kRaiseEpoch,
         ok ? absl::OkStatus() : absl::UnavailableError("no segment could record the epoch"));
}

}  // namespace flexkv
