// A page that does not verify ends the log: the group that it belonged to was never acknowledged.
// Unless a later page of the same epoch says that the bad one had been synced before: then the
// device lost something that it had promised to keep, and what it lost may be anything.
#include "flexkv/storage/ssd/ssd_replay.h"

#include <algorithm>

namespace flexkv::ssd {
namespace {

// Pages that one group writes at most lie between a bad page and the next group's first.
constexpr uint32_t kLookAheadPages = 64;
static_assert(kLookAheadPages > kMaxGroupPages);

}  // namespace

SegmentImage::SegmentImage(Segment* segment, uint64_t data_bytes,
                           std::vector<RecoveredBlock>* blocks, EpochMap* epochs)
    : segment_(segment),
      readable_slots_(static_cast<uint32_t>(
          std::min<uint64_t>(data_bytes / segment->record_bytes, segment->shape.slots))),
      blocks_(blocks),
      epochs_(epochs),
      first_(blocks->size()) {
  Reset(0);
}

void SegmentImage::Reset(uint32_t generation_floor) {
  segment_->slots.Reset(segment_->shape.slots, generation_floor);
  entry_.assign(segment_->shape.slots, kUntouched);
  blocks_->resize(first_);
  dropped_ = 0;
}

void SegmentImage::Commit(uint32_t slot, uint32_t generation, uint64_t checksum,
                          const SsdIdentity& identity) {
  if (slot >= readable_slots_) {
    ++dropped_;
    return;
  }
  segment_->slots.Write(slot, SlotState::kCommitted, generation, Slot::TagOf(identity), checksum);
  const RecoveredBlock block{{segment_->id, slot}, identity};
  if (entry_[slot] >= kNoBlock) {
    entry_[slot] = static_cast<uint32_t>(blocks_->size() - first_);
    blocks_->push_back(block);
  } else {
    (*blocks_)[first_ + entry_[slot]] = block;
  }
}

void SegmentImage::Apply(const LogRecord& record) {
  SlotArray& slots = segment_->slots;
  if (!RecordIsValid(record, slots.size())) {
    ++dropped_;
    return;
  }
  const auto kind = static_cast<RecordKind>(record.kind);
  if (kind == RecordKind::kEpoch) {
    if (!RaiseEpoch(record.ns, record.epoch, epochs_)) ++dropped_;
    return;
  }
  const Slot& slot = slots[record.slot];
  uint32_t& entry = entry_[record.slot];
  // Only a slot without records may have a generation (the floor) above its first record's.
  if (record.generation < slot.generation && entry != kUntouched) {
    ++dropped_;
    return;
  }
  if (kind == RecordKind::kCommit) {
    Commit(record.slot, record.generation, record.checksum, IdentityOf(record));
    return;
  }
  if (entry == kUntouched) entry = kNoBlock;
  slots.Write(record.slot, kind == RecordKind::kFree ? SlotState::kFree : SlotState::kQuarantined,
              std::max(record.generation, slot.generation), 0, 0);
}

void SegmentImage::ApplyHeader(const SlotHeader& header) {
  const Slot& slot = segment_->slots[header.slot];
  if (slot.state() == SlotState::kQuarantined || header.generation <= slot.generation) return;
  Commit(header.slot, header.generation, header.payload_checksum, header.identity);
  // The record of the epoch may be lost with the log; that the block was written vouches for it.
  if (header.identity.epoch == 0) return;
  if (!RaiseEpoch(header.identity.ns, header.identity.epoch, epochs_)) ++dropped_;
}

void SegmentImage::Compact() {
  const auto gone = [&](const RecoveredBlock& block) {
    return segment_->slots[block.place.slot].state() != SlotState::kCommitted;
  };
  const auto begin = blocks_->begin() + static_cast<ptrdiff_t>(first_);
  blocks_->erase(std::remove_if(begin, blocks_->end(), gone), blocks_->end());
}

void SegmentImage::CountDamage(const std::byte* page) {
  if (!IsBlank(page)) ++dropped_;
}

bool ParsePageOf(const StoreId& store, uint32_t segment, const std::byte* page, LogPageInfo* info) {
  return ParseLogPage(page, info) && info->store == store && info->segment == segment;
}

RegionReplay::RegionReplay(const StoreId& store, const Segment& segment, uint64_t epoch,
                           SegmentImage* image)
    : store_(store),
      segment_(segment.id),
      region_pages_(segment.region_pages),
      epoch_(epoch),
      image_(image) {}

// Good as the next page of the log.
bool RegionReplay::Accept(const LogPageInfo& info) const {
  return first_bad_ == 0 && info.checkpoint == !complete_;
}

void RegionReplay::Feed(const std::byte* page) {
  const uint32_t number = page_++;
  LogPageInfo info;
  const bool ours = ParsePageOf(store_, segment_, page, &info) && info.region_epoch == epoch_ &&
                    info.page == number;
  if (ours && Accept(info)) {
    for (uint32_t i = 0; i < info.count; ++i) image_->Apply(RecordsOf(page)[i]);
    if (info.last) complete_ = true;
    return;
  }
  if (first_bad_ == 0) {
    first_bad_ = number;
    // Of an earlier use of the region, or never written: the end. Else torn, or worse.
    if (!ParsePageOf(store_, segment_, page, &info)) image_->CountDamage(page);
  }
  if (!ours) return;
  damaged_ |= complete_ ? info.group_page > first_bad_ : !info.checkpoint;
}

bool RegionReplay::wants_more() const {
  if (page_ >= region_pages_ || damaged_) return false;
  return first_bad_ == 0 || !complete_ || page_ <= first_bad_ + kLookAheadPages;
}

RegionVerdict RegionReplay::verdict() const {
  if (damaged_) return RegionVerdict::kDamaged;
  return complete_ ? RegionVerdict::kGood : RegionVerdict::kIncomplete;
}

uint32_t RegionReplay::next_page() const { return first_bad_ != 0 ? first_bad_ : page_; }

}  // namespace flexkv::ssd
