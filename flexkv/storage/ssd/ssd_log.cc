#include "flexkv/storage/ssd/ssd_log.h"

#include <algorithm>
#include <cstring>

namespace flexkv::ssd {

PageBuilder::PageBuilder(const LogPageInfo& id, size_t capacity_pages)
    : id_(id), buffer_(capacity_pages) {}

bool PageBuilder::Add(const LogRecord& record) {
  if (used_ == 0 || count_ == kRecordsPerPage) {
    if (used_ == buffer_.pages()) return false;
    ++used_;
    count_ = 0;
  }
  RecordsOf(buffer_.page(used_ - 1))[count_++] = record;
  return true;
}

void PageBuilder::SealPage(size_t index, bool last) {
  LogPageInfo info = id_;
  info.page += static_cast<uint32_t>(index);
  info.last = last;
  info.count = index + 1 == used_ ? count_ : kRecordsPerPage;
  SealLogPage(info, buffer_.page(index));
}

std::span<const std::byte> PageBuilder::SealFull() {
  for (size_t i = 0; i < full_pages(); ++i) SealPage(i, /*last=*/false);
  return buffer_.span(0, full_pages());
}

std::span<const std::byte> PageBuilder::SealAll(bool last) {
  if (used_ == 0) ++used_;  // an empty checkpoint is a page, too
  for (size_t i = 0; i < used_; ++i) SealPage(i, last && i + 1 == used_);
  return buffer_.span(0, used_);
}

void PageBuilder::DropFull() {
  const size_t full = full_pages();
  if (full == 0) return;
  std::memcpy(buffer_.page(0), buffer_.page(full), kPageBytes);
  id_.page += static_cast<uint32_t>(full);
  used_ = 1;
}

LogPageInfo AppendPageId(const StoreId& store, const Segment& segment) {
  LogPageInfo id;
  id.store = store;
  id.segment = segment.id;
  id.region_epoch = segment.position.epoch;
  id.page = segment.position.next_page;
  id.group_page = segment.position.next_page;
  return id;
}

namespace {

LogPageInfo CheckpointPageId(const StoreId& store, const Segment& segment) {
  LogPageInfo id;
  id.store = store;
  id.segment = segment.id;
  id.region_epoch = segment.position.max_epoch + 1;
  id.page = 1;
  id.checkpoint = true;
  id.group_page = 1;
  return id;
}

}  // namespace

TurnOver::TurnOver(const StoreId& store, Segment* segment, const EpochMap& epochs)
    : store_(store),
      segment_(segment),
      source_end_(segment->position.next_page),
      region_(1 - segment->position.region),
      epoch_(segment->position.max_epoch + 1),
      header_(1),
      chunk_(std::min(kChunkPages, source_end_)),
      pages_(CheckpointPageId(store, *segment),
             std::min(kWritePages + kChunkPages, CheckpointPages(segment->shape.slots)) + 2) {
  Begin(epochs);
}

TurnOver::TurnOver(const StoreId& store, Segment* segment, const EpochMap& epochs,
                   std::span<const RecoveredBlock> blocks)
    : store_(store),
      segment_(segment),
      blocks_(blocks),
      source_end_(0),
      region_(1 - segment->position.region),
      epoch_(segment->position.max_epoch + 1),
      header_(1),
      pages_(CheckpointPageId(store, *segment),
             std::min(kWritePages + kChunkPages, CheckpointPages(segment->shape.slots)) + 2) {
  Begin(epochs);
}

void TurnOver::Begin(const EpochMap& epochs) {
  segment_->position.max_epoch = epoch_;
  segment_->position.appendable = false;
  RegionHeader header;
  header.store = store_;
  header.segment = segment_->id;
  header.epoch = epoch_;
  header.region = region_;
  header.generation_floor = segment_->slots.MaxGeneration();
  header.shape = segment_->shape;
  EncodeRegionHeader(header, header_.page(0));
  for (const auto& [ns, epoch] : epochs) pages_.Add(EpochRecord(ns, epoch));
}

uint64_t TurnOver::Offset(uint32_t region, uint32_t page) const {
  return segment_->RegionOffset(region) + uint64_t{page} * kPageBytes;
}

// Takes from what lies in memory until there is enough to write.
void TurnOver::Fill() {
  const SlotArray& slots = segment_->slots;
  for (; next_slot_ < slots.size() && pages_.full_pages() < kWritePages; ++next_slot_) {
    const Slot& slot = slots[next_slot_];
    if (slot.state() != SlotState::kQuarantined) continue;
    pages_.Add(SlotRecord(RecordKind::kQuarantine, next_slot_, slot.generation));
  }
  for (; next_block_ < blocks_.size() && pages_.full_pages() < kWritePages; ++next_block_) {
    const RecoveredBlock& block = blocks_[next_block_];
    const Slot& slot = slots[block.place.slot];
    const LogRecord record =
        CommitRecord(block.place.slot, slot.generation, slot.checksum, block.identity);
    if (slots.IsLive(record)) pages_.Add(record);
  }
}

LogIo TurnOver::ReadChunk() {
  step_ = Step::kRead;
  chunk_first_ = source_page_;
  chunk_count_ = std::min(kChunkPages, source_end_ - source_page_);
  source_page_ += chunk_count_;
  return {IoKind::kRead, Offset(1 - region_, chunk_first_), chunk_.span(0, chunk_count_)};
}

LogIo TurnOver::WritePages() {
  const std::span<const std::byte> pages =
      step_ == Step::kWrite ? pages_.SealFull() : pages_.SealAll(/*last=*/true);
  return {IoKind::kWrite,
          Offset(region_, pages_.first_page()),
          {const_cast<std::byte*>(pages.data()), pages.size()}};
}

LogIo TurnOver::ReadOrWrite() {
  Fill();
  if (pages_.full_pages() < kWritePages && source_page_ < source_end_) return ReadChunk();
  step_ = pages_.full_pages() < kWritePages ? Step::kWriteLast : Step::kWrite;
  return WritePages();
}

bool TurnOver::TakeChunk() {
  for (uint32_t i = 0; i < chunk_count_; ++i) {
    const std::byte* page = chunk_.page(i);
    LogPageInfo info;
    if (!ParseLogPage(page, &info) || info.store != store_ || info.segment != segment_->id ||
        info.region_epoch != segment_->position.epoch || info.page != chunk_first_ + i) {
      return false;
    }
    for (uint32_t at = 0; at < info.count; ++at) {
      const LogRecord& record = RecordsOf(page)[at];
      const bool commit = record.kind == static_cast<uint32_t>(RecordKind::kCommit);
      if (commit && segment_->slots.IsLive(record) && !pages_.Add(record)) return false;
    }
  }
  return true;
}

std::optional<LogIo> TurnOver::Next() {
  switch (step_) {
    case Step::kNone:
      step_ = Step::kHeader;
      return LogIo{IoKind::kWrite, Offset(region_, 0), header_.span(0, 1)};
    case Step::kHeader:
      step_ = Step::kHeaderSync;
      return LogIo{};
    case Step::kHeaderSync:
    case Step::kRead:
    case Step::kWrite:
      return ReadOrWrite();
    case Step::kWriteLast:
      step_ = Step::kSync;
      return LogIo{};
    case Step::kSync:
      break;
  }
  return std::nullopt;
}

bool TurnOver::Done() {
  switch (step_) {
    case Step::kRead:
      return TakeChunk();
    case Step::kWrite:
      pages_.DropFull();
      return true;
    case Step::kSync:
      segment_->position.region = region_;
      segment_->position.epoch = epoch_;
      segment_->position.next_page = pages_.next_page();
      segment_->position.appendable = true;
      return true;
    default:
      return true;
  }
}

}  // namespace flexkv::ssd
