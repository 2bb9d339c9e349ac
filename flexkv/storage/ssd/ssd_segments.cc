// Making and removing segments, and what the parts of the store share.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv::ssd {

Segment* StoreState::Find(uint32_t segment) {
  auto it = segments.find(segment);
  return it == segments.end() ? nullptr : it->second.get();
}

void StoreState::Retire(Segment* segment) {
  if (segment->state != SegmentState::kOpen) return;
  segment->state = SegmentState::kRetired;
  segment->carries_epochs = false;
  ++stats.retired_segments;
}

absl::Status StoreState::CheckWritable() const {
  if (!options.read_only) return absl::OkStatus();
  return absl::FailedPreconditionError("the store is open for reading only");
}

bool StoreState::HasRoomFor(uint64_t bytes) const {
  return stats.file_bytes <= options.max_bytes && bytes <= options.max_bytes - stats.file_bytes;
}

bool StoreState::RunTurnOver(Segment* segment,
                             std::optional<std::span<const RecoveredBlock>> blocks) {
  TurnOver turn_over = blocks.has_value() ? TurnOver(superblock.store, segment, epochs, *blocks)
                                          : TurnOver(superblock.store, segment, epochs);
  while (const std::optional<LogIo> next = turn_over.Next()) {
    bool ok = false;
    switch (next->kind) {
      case IoKind::kRead:
        ok = io.Read(segment->log, next->offset, next->memory);
        break;
      case IoKind::kWrite:
        ok = io.Write(segment->log, next->offset, next->memory);
        break;
      case IoKind::kSync:
        ok = SyncFile(segment->log);
        break;
    }
    if (!ok || !turn_over.Done()) return false;
  }
  segment->carries_epochs = true;
  return true;
}

namespace {

// The new segment's files: the log first and whole, so that data without a log is always damage.
absl::Status MakeFiles(StoreState* state, Segment* segment) {
  Disk* disk = state->io.disk();
  const uint64_t log_bytes = 2 * segment->RegionOffset(1);
  absl::StatusOr<FileId> log = disk->Create(LogName(segment->id), log_bytes);
  if (!log.ok()) return log.status();
  segment->log = *log;
  segment->log_open = true;
  segment->log_bytes = log_bytes;
  // Region 1 has nothing yet; the first checkpoint goes to region 0.
  segment->position.region = 1;
  if (!state->RunTurnOver(segment, std::span<const RecoveredBlock>())) {
    return absl::UnavailableError(absl::StrCat("cannot write the log of segment ", segment->id));
  }
  absl::StatusOr<FileId> data = disk->Create(DataName(segment->id), segment->shape.segment_bytes());
  if (!data.ok()) return data.status();
  segment->data = *data;
  segment->data_open = true;
  segment->data_bytes = segment->shape.segment_bytes();
  return absl::OkStatus();
}

// Epochs must outlive the segment that is dropped: another one's log has to have them all.
absl::Status KeepEpochs(StoreState* state, const Segment* dropped) {
  if (state->epochs.empty() || state->segments.size() == 1) return absl::OkStatus();
  const auto carries = [&](const auto& entry) {
    return entry.second.get() != dropped && entry.second->carries_epochs;
  };
  if (std::any_of(state->segments.begin(), state->segments.end(), carries)) return absl::OkStatus();
  for (const auto& [id, segment] : state->segments) {
    if (segment.get() == dropped || segment->state != SegmentState::kOpen) continue;
    if (segment->committing) continue;
    if (state->RunTurnOver(segment.get(), std::nullopt)) return absl::OkStatus();
    state->Retire(segment.get());
  }
  return absl::FailedPreconditionError("no other segment can take over the namespaces' epochs");
}

}  // namespace

absl::StatusOr<uint32_t> CreateSegment(StoreState* state, const SsdShape& shape) {
  if (absl::Status status = state->CheckWritable(); !status.ok()) return status;
  if (!ShapeIsValid(shape)) return absl::InvalidArgumentError("a segment's shape is out of range");
  auto segment = std::make_unique<Segment>();
  segment->SetShape(shape);
  segment->slots.Reset(shape.slots, 0);
  const uint64_t bytes = SegmentFileBytes(shape);
  if (!state->HasRoomFor(bytes)) {
    return absl::ResourceExhaustedError(
        absl::StrCat("a segment of ", bytes, " bytes does not fit: ", state->stats.file_bytes,
                     " of ", state->options.max_bytes, " are used"));
  }
  segment->id = state->superblock.next_segment;
  // The id is given away for good before anything bears it.
  absl::Status status = UpdateSuperblock(state, segment->id + 1);
  if (!status.ok()) return status;
  status = MakeFiles(state, segment.get());
  if (status.ok()) {
    state->stats.file_bytes += segment->file_bytes();
    const uint32_t id = segment->id;
    state->segments.emplace(id, std::move(segment));
    return id;
  }
  if (segment->log_open) {
    state->io.disk()->Close(segment->log);
    // What cannot be removed now is at the next Open: it has no data file.
    if (!state->io.disk()->Remove(LogName(segment->id)).ok()) {
      state->stats.file_bytes += segment->log_bytes;
    }
  }
  return status;
}

absl::Status DropSegment(StoreState* state, uint32_t id) {
  if (absl::Status status = state->CheckWritable(); !status.ok()) return status;
  Segment* segment = state->Find(id);
  if (segment == nullptr) return absl::NotFoundError(absl::StrCat("no segment ", id));
  const std::vector<uint32_t>& told = state->result_segments;
  if (segment->pending_ops > 0 || segment->committing ||
      std::find(told.begin(), told.end(), id) != told.end()) {
    return absl::FailedPreconditionError(absl::StrCat("segment ", id, " has ops"));
  }
  if (absl::Status status = KeepEpochs(state, segment); !status.ok()) return status;
  Disk* disk = state->io.disk();
  if (segment->data_open) disk->Close(segment->data);
  if (segment->log_open) disk->Close(segment->log);
  segment->data_open = segment->log_open = false;
  // Data first, see MakeFiles.
  for (const bool log : {false, true}) {
    const absl::Status removed = disk->Remove(log ? LogName(id) : DataName(id));
    if (!removed.ok() && !absl::IsNotFound(removed)) {
      segment->state = SegmentState::kUnreadable;
      return removed;
    }
    uint64_t& bytes = log ? segment->log_bytes : segment->data_bytes;
    state->stats.file_bytes -= bytes;
    bytes = 0;
  }
  state->segments.erase(id);
  return absl::OkStatus();
}

}  // namespace flexkv::ssd
