// What a crash, a failed transfer or a broken device left of each segment.
//
// The region with the higher epoch counts. It may end anywhere while its checkpoint is being
// written: then the older region has everything. But where it had been in use and is damaged, the
// older one is history, and the segment is rebuilt from the headers of its slots.
#include "flexkv/storage/ssd/ssd_recovery.h"

#include <algorithm>
#include <map>

namespace flexkv::ssd {

Probe SegmentRecovery::ProbeRegion(uint32_t region, uint64_t offset) {
  Probe probe;
  const uint64_t end = std::min(log_end(), offset + 2 * kPageBytes);
  PieceReader reader(&state_->io, SequentialPlan(segment_->log, offset, end));
  const std::span<const std::byte> pages = reader.Next();
  if (pages.size() < kPageBytes) return probe;
  const StoreId& store = state_->superblock.store;
  RegionHeader& header = probe.header;
  probe.good = ParseRegionHeader(pages.data(), &header) && header.store == store &&
               header.segment == segment_->id && header.region == region;
  if (probe.good) probe.max_epoch = header.epoch;
  LogPageInfo info;
  if (pages.size() == 2 * kPageBytes &&
      ParsePageOf(store, segment_->id, pages.data() + kPageBytes, &info)) {
    probe.max_epoch = std::max(probe.max_epoch, info.region_epoch);
  }
  return probe;
}

void SegmentRecovery::ProbeRegions() {
  probes_[0] = ProbeRegion(0, 0);
  const uint64_t half = log_end() / 2 / kPageBytes * kPageBytes;
  const uint64_t second =
      probes_[0].good ? uint64_t{RegionPages(probes_[0].header.shape.slots)} * kPageBytes : half;
  probes_[1] = ProbeRegion(1, second);
}

const Probe* SegmentRecovery::Newest() const {
  if (!probes_[0].good && !probes_[1].good) return nullptr;
  if (!probes_[0].good || !probes_[1].good) return probes_[0].good ? &probes_[0] : &probes_[1];
  return probes_[1].header.epoch > probes_[0].header.epoch ? &probes_[1] : &probes_[0];
}

RegionVerdict SegmentRecovery::Replay(uint32_t region, SegmentImage* image) {
  const RegionHeader& header = probes_[region].header;
  const uint64_t begin = segment_->RegionOffset(region) + kPageBytes;
  const uint64_t end = std::min(log_end(), segment_->RegionOffset(region + 1));
  image->Reset(header.generation_floor);
  RegionReplay replay(state_->superblock.store, *segment_, header.epoch, image);
  PieceReader reader(&state_->io, SequentialPlan(segment_->log, begin, end));
  for (auto pages = reader.Next(); !pages.empty() && replay.wants_more(); pages = reader.Next()) {
    for (size_t at = 0; at < pages.size() && replay.wants_more(); at += kPageBytes) {
      replay.Feed(pages.data() + at);
    }
  }
  if (replay.verdict() == RegionVerdict::kGood) {
    segment_->position.region = region;
    segment_->position.epoch = header.epoch;
    segment_->position.next_page = replay.next_page();
  }
  return replay.verdict();
}

// True: the log has told all. REQUIRES: a header is good.
bool SegmentRecovery::ReadLog(SegmentImage* image) {
  if (probes_[0].header_lost() || probes_[1].header_lost()) return false;
  const auto newest = static_cast<uint32_t>(Newest() - probes_);
  switch (Replay(newest, image)) {
    case RegionVerdict::kGood:
      return true;
    case RegionVerdict::kDamaged:
      return false;
    case RegionVerdict::kIncomplete:
      break;
  }
  const uint32_t older = 1 - newest;
  return probes_[older].good && Replay(older, image) == RegionVerdict::kGood;
}

void SegmentRecovery::MarkUnreadable() {
  segment_->state = SegmentState::kUnreadable;
  segment_->shape = {};
  segment_->slots.Reset(0, 0);
  blocks_->resize(first_);
}

bool SegmentRecovery::Run() {
  const absl::StatusOr<FileId> data = state_->io.disk()->Open(DataName(segment_->id));
  segment_->data_open = data.ok();
  if (!data.ok()) {
    MarkUnreadable();
    return true;
  }
  segment_->data = *data;
  const absl::StatusOr<FileId> log = state_->io.disk()->Open(LogName(segment_->id));
  segment_->log_open = log.ok();
  if (log.ok()) {
    segment_->log = *log;
    ProbeRegions();
  }
  for (const Probe& probe : probes_) {
    LogPosition& position = segment_->position;
    position.max_epoch = std::max(position.max_epoch, probe.max_epoch);
  }
  // A rebuilt log goes to the region that does not hold the newest pages.
  segment_->position.region = probes_[1].max_epoch > probes_[0].max_epoch ? 1 : 0;
  const Probe* newest = Newest();
  if (newest == nullptr) {
    Rebuild();
    return true;
  }
  segment_->SetShape(newest->header.shape);
  const bool whole = *files_.data_bytes == segment_->shape.segment_bytes();
  const EpochMap before = whole ? EpochMap() : state_->epochs;
  SegmentImage image(segment_, *files_.data_bytes, blocks_, &state_->epochs);
  if (!ReadLog(&image)) {
    Rebuild();
    return true;
  }
  image.Compact();
  segment_->damaged_records = image.dropped();
  state_->stats.dropped_records += image.dropped();
  // A data file cut short without a block in it: the end of its making was not reached. Its log
  // goes, so epochs that only this one knows, never acknowledged, must not count.
  if (!whole && blocks_->size() == first_ && image.dropped() == 0) {
    state_->epochs = before;
    return false;
  }
  // What was read need not be durable yet, and slots are about to be reused on its word.
  if (!whole || !state_->SyncFile(segment_->log)) state_->Retire(segment_);
  return true;
}

// --- all of them --------------------------------------------------------------------------------

namespace {

std::map<uint32_t, SegmentFiles> SortFiles(const std::vector<DiskFile>& files) {
  std::map<uint32_t, SegmentFiles> segments;
  for (const DiskFile& file : files) {
    uint32_t id = 0;
    bool is_log = false;
    if (!ParseSegmentName(file.name, &id, &is_log)) continue;
    (is_log ? segments[id].log_bytes : segments[id].data_bytes) = file.bytes;
  }
  return segments;
}

void RemoveFiles(StoreState* state, uint32_t id, const SegmentFiles& files) {
  state->stats.leftover_files += files.data_bytes.has_value() ? 1 : 0;
  state->stats.leftover_files += files.log_bytes.has_value() ? 1 : 0;
  if (state->options.read_only) return;
  Disk* disk = state->io.disk();
  // Data first: a log without data says nothing, data without a log looks like damage.
  if (files.data_bytes.has_value() && disk->Remove(DataName(id)).ok()) {
    state->stats.file_bytes -= *files.data_bytes;
  }
  if (files.log_bytes.has_value() && disk->Remove(LogName(id)).ok()) {
    state->stats.file_bytes -= *files.log_bytes;
  }
}

std::unique_ptr<Segment> NewSegment(uint32_t id, const SegmentFiles& files) {
  auto segment = std::make_unique<Segment>();
  segment->id = id;
  segment->data_bytes = *files.data_bytes;
  segment->log_bytes = files.log_bytes.value_or(0);
  return segment;
}

// Room for as many blocks as the files can hold, so that the list never moves. An upper bound by
// the logs: two regions of pages, each slot with a record in a checkpoint of one.
size_t MostBlocks(const std::map<uint32_t, SegmentFiles>& segments) {
  size_t most = 0;
  for (const auto& [id, files] : segments) {
    most += files.log_bytes.value_or(0) / kPageBytes / 4 * kRecordsPerPage;
  }
  return most;
}

// Blocks of epochs that are over go; their slots are free.
void DropOver(StoreState* state, std::vector<RecoveredBlock>* blocks) {
  if (state->epochs.empty()) return;
  const size_t before = blocks->size();
  const auto over = [&](const RecoveredBlock& block) {
    if (!IsOver(state->epochs, block.identity)) return false;
    state->Find(block.place.segment)->slots.Set(block.place.slot, SlotState::kFree);
    return true;
  };
  blocks->erase(std::remove_if(blocks->begin(), blocks->end(), over), blocks->end());
  state->stats.dropped_records += before - blocks->size();
}

// Blocks of one segment lie together.
std::span<const RecoveredBlock> BlocksOf(uint32_t segment,
                                         const std::vector<RecoveredBlock>& blocks) {
  const auto begin = std::partition_point(
      blocks.begin(), blocks.end(),
      [segment](const RecoveredBlock& block) { return block.place.segment < segment; });
  const auto end = std::partition_point(
      begin, blocks.end(),
      [segment](const RecoveredBlock& block) { return block.place.segment == segment; });
  return {begin, end};
}

}  // namespace

std::vector<RecoveredBlock> RecoverSegments(StoreState* state, const std::vector<DiskFile>& files) {
  const std::map<uint32_t, SegmentFiles> sorted = SortFiles(files);
  std::vector<RecoveredBlock> blocks;
  blocks.reserve(MostBlocks(sorted));
  for (const auto& [id, of_segment] : sorted) {
    if (!of_segment.data_bytes.has_value()) {
      RemoveFiles(state, id, of_segment);
      continue;
    }
    std::unique_ptr<Segment> segment = NewSegment(id, of_segment);
    SegmentRecovery recovery(state, segment.get(), of_segment, &blocks);
    if (recovery.Run()) {
      state->segments.emplace(id, std::move(segment));
      continue;
    }
    state->io.disk()->Close(segment->data);
    state->io.disk()->Close(segment->log);
    RemoveFiles(state, id, of_segment);
  }
  DropOver(state, &blocks);
  for (const auto& [id, segment] : state->segments) {
    if (state->options.read_only) break;
    if (!segment->rebuilt && !state->options.fresh_logs) continue;
    WriteNewLog(state, segment.get(), BlocksOf(id, blocks));
  }
  state->stats.recovered_blocks = blocks.size();
  return blocks;
}

}  // namespace flexkv::ssd
