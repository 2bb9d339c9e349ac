// A segment whose log is lost, from its slots' own headers. Frees are forgotten by that, as far as
// no page of the log is left: such blocks come back, with the right bytes.
#include <algorithm>

#include "flexkv/storage/ssd/ssd_recovery.h"

namespace flexkv::ssd {
namespace {

constexpr uint32_t kHeadersAhead = 32;
constexpr uint32_t kBlankPages = 256;

}  // namespace

std::optional<SsdShape> SegmentRecovery::FindShape() {
  PieceReader reader(&state_->io, SequentialPlan(segment_->data, 0, *files_.data_bytes));
  uint64_t offset = 0;
  uint64_t written_pages = 0;
  for (auto pages = reader.Next(); !pages.empty(); pages = reader.Next()) {
    for (size_t at = 0; at < pages.size(); at += kPageBytes, offset += kPageBytes) {
      SlotHeader header;
      if (ParseSlotHeader(pages.data() + at, &header) && header.store == state_->superblock.store &&
          header.segment == segment_->id && offset == header.shape.record_bytes() * header.slot) {
        return header.shape;
      }
      written_pages += IsBlank(pages.data() + at) ? 0 : 1;
    }
  }
  state_->stats.dropped_records += written_pages;
  return std::nullopt;
}

void SegmentRecovery::SalvagePage(const std::byte* page, uint64_t region_epoch,
                                  SegmentImage* image) {
  LogPageInfo info;
  if (!ParsePageOf(state_->superblock.store, segment_->id, page, &info)) return;
  uint64_t& max_epoch = segment_->position.max_epoch;
  max_epoch = std::max(max_epoch, info.region_epoch);
  for (uint32_t i = 0; i < info.count; ++i) {
    const LogRecord& record = RecordsOf(page)[i];
    const bool epoch = record.kind == static_cast<uint32_t>(RecordKind::kEpoch);
    // Of slots only what belongs to the region's present use: the rest is out of order.
    if (epoch || info.region_epoch == region_epoch) image->Apply(record);
  }
}

// What pages of the log are left still tells frees and epochs. The older region goes first.
void SegmentRecovery::Salvage(SegmentImage* image) {
  if (!segment_->log_open) return;
  const uint32_t newer = probes_[1].max_epoch > probes_[0].max_epoch ? 1 : 0;
  for (const uint32_t region : {1 - newer, newer}) {
    const uint64_t end = std::min(log_end(), segment_->RegionOffset(region + 1));
    PieceReader reader(&state_->io,
                       SequentialPlan(segment_->log, segment_->RegionOffset(region), end));
    for (auto pages = reader.Next(); !pages.empty(); pages = reader.Next()) {
      for (size_t at = 0; at < pages.size(); at += kPageBytes) {
        SalvagePage(pages.data() + at, probes_[region].max_epoch, image);
      }
    }
  }
}

void SegmentRecovery::ReadHeaders(SegmentImage* image) {
  const SsdShape& shape = segment_->shape;
  PieceReader reader(&state_->io, {segment_->data, 0, segment_->record_bytes, 1, shape.slots,
                                   *files_.data_bytes, kHeadersAhead});
  for (uint32_t slot = 0; slot < shape.slots; ++slot) {
    const std::span<const std::byte> page = reader.Next();
    SlotHeader header;
    if (page.empty()) break;  // the file ends here
    if (ParseSlotHeader(page.data(), &header) && header.store == state_->superblock.store &&
        header.segment == segment_->id && header.slot == slot &&
        header.shape.slots == shape.slots && header.shape.shard_bytes == shape.shard_bytes) {
      image->ApplyHeader(header);
    } else {
      image->CountDamage(page.data());
    }
  }
}

void SegmentRecovery::Rebuild() {
  if (segment_->shape.slots == 0) {
    const std::optional<SsdShape> shape = FindShape();
    if (!shape.has_value()) {
      MarkUnreadable();
      return;
    }
    segment_->SetShape(*shape);
  }
  blocks_->resize(first_);  // what the log has told so far is told again
  SegmentImage image(segment_, *files_.data_bytes, blocks_, &state_->epochs);
  Salvage(&image);
  ReadHeaders(&image);
  image.Compact();
  segment_->damaged_records = image.dropped();
  state_->stats.dropped_records += image.dropped();
  segment_->rebuilt = true;
  if (*files_.data_bytes != segment_->shape.segment_bytes()) state_->Retire(segment_);
}

namespace {

// False: there is no room, or the file cannot be made.
bool ReplaceLogFile(StoreState* state, Segment* segment, uint64_t bytes) {
  Disk* disk = state->io.disk();
  if (segment->log_open) disk->Close(segment->log);
  segment->log_open = false;
  const std::string name = LogName(segment->id);
  if (disk->Remove(name).ok()) {
    state->stats.file_bytes -= segment->log_bytes;
    segment->log_bytes = 0;
  }
  if (!state->HasRoomFor(bytes)) return false;
  const absl::StatusOr<FileId> log = disk->Create(name, bytes);
  if (!log.ok()) return false;
  segment->log = *log;
  segment->log_open = true;
  segment->log_bytes = bytes;
  state->stats.file_bytes += bytes;
  return true;
}

// The header last: without it, pages that are left would look like those of a header that was lost.
bool BlankRegion(StoreState* state, const Segment* segment, uint32_t region) {
  const PageBuffer zeros(std::min(segment->region_pages, kBlankPages));
  const uint64_t begin = segment->RegionOffset(region);
  for (uint32_t page = 1; page < segment->region_pages;) {
    const uint32_t count = std::min(segment->region_pages - page, kBlankPages);
    if (!state->io.Write(segment->log, begin + uint64_t{page} * kPageBytes, zeros.span(0, count))) {
      return false;
    }
    page += count;
  }
  return state->SyncFile(segment->log) && state->io.Write(segment->log, begin, zeros.span(0, 1)) &&
         state->SyncFile(segment->log);
}

}  // namespace

void WriteNewLog(StoreState* state, Segment* segment, std::span<const RecoveredBlock> blocks) {
  if (segment->state != SegmentState::kOpen) return;
  const uint64_t bytes = 2 * segment->RegionOffset(1);
  const bool fits = segment->log_open && segment->log_bytes == bytes;
  const bool blank = state->options.fresh_logs;
  const uint32_t old_region = segment->position.region;
  const bool written = (fits || ReplaceLogFile(state, segment, bytes)) &&
                       (!blank || BlankRegion(state, segment, 1 - old_region)) &&
                       state->RunTurnOver(segment, blocks) &&
                       (!blank || BlankRegion(state, segment, old_region));
  if (!written) state->Retire(segment);
}

}  // namespace flexkv::ssd
