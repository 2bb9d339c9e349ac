#include "flexkv/storage/ssd/ssd_commit.h"

#include <algorithm>
#include <utility>

namespace flexkv::ssd {
namespace {

constexpr size_t kMaxRecords = size_t{kMaxGroupPages} * kRecordsPerPage;  // of a segment and group
constexpr size_t kMaxRaises = 64;                                         // of a group

}  // namespace

void Committer::Joined() {
  if (filling_.size() + raises_.size() == 1) filling_since_ = state_->clock->Now();
}

void Committer::Add(const GroupEntry& entry) {
  filling_.push_back(entry);
  filling_bytes_ += entry.bytes;
  Joined();
}

void Committer::Raise(const EpochRaise& raise) {
  raises_.push_back(raise);
  Joined();
}

std::optional<TimeNs> Committer::deadline() const {
  if (committing_ || (filling_.empty() && raises_.empty())) return std::nullopt;
  return filling_since_ + state_->options.group_delay_ns;
}

bool Committer::IsDue(bool writes_outstanding) const {
  if (!deadline().has_value()) return false;
  return (flush_ && !writes_outstanding) || filling_bytes_ >= state_->options.group_bytes ||
         filling_.size() >= kMaxRecords || state_->clock->Now() >= *deadline();
}

void Committer::Pump(bool writes_outstanding) {
  if (stopped_) return;
  while (!waiting_.empty() && Launch(waiting_.back())) waiting_.pop_back();
  while (IsDue(writes_outstanding)) StartGroup();
  if (idle() && !writes_outstanding) flush_ = false;
}

Committer::SegmentCommit* Committer::CommitOf(Segment* segment) {
  for (const auto& commit : commits_) {
    if (commit->segment == segment) return commit.get();
  }
  commits_.push_back(std::make_unique<SegmentCommit>());
  commits_.back()->segment = segment;
  segment->committing = true;
  return commits_.back().get();
}

// Into the commits of their segments; what is too much for one group stays.
void Committer::TakeEntries() {
  std::vector<GroupEntry> rest;
  for (const GroupEntry& entry : filling_) {
    Segment* segment = state_->Find(entry.segment);
    if (segment == nullptr) continue;  // a quarantine whose segment was dropped
    if (segment->state != SegmentState::kOpen) {
      listener_->OnCommitted(entry, false);
      continue;
    }
    SegmentCommit* commit = CommitOf(segment);
    if (commit->entries.size() + committing_raises_.size() >= kMaxRecords) {
      rest.push_back(entry);
      continue;
    }
    commit->data_written |= entry.record.kind == static_cast<uint32_t>(RecordKind::kCommit);
    commit->entries.push_back(entry);
  }
  filling_ = std::move(rest);
  filling_bytes_ = 0;
  for (const GroupEntry& entry : filling_) filling_bytes_ += entry.bytes;
}

void Committer::StartGroup() {
  commits_.clear();  // of the group before; not in EndGroup, which runs inside one of them
  committing_ = true;
  ++state_->stats.groups;
  const size_t raises = std::min(raises_.size(), kMaxRaises);
  committing_raises_.assign(raises_.begin(), raises_.begin() + static_cast<ptrdiff_t>(raises));
  raises_.erase(raises_.begin(), raises_.begin() + static_cast<ptrdiff_t>(raises));
  if (raises > 0) {
    for (const auto& [id, segment] : state_->segments) {
      if (segment->state == SegmentState::kOpen) CommitOf(segment.get());
    }
  }
  TakeEntries();
  filling_since_ = state_->clock->Now();
  running_ = commits_.size();
  if (running_ == 0) {
    EndGroup();
    return;
  }
  for (size_t i = 0; i < commits_.size(); ++i) Advance(i);
}

bool Committer::NeedsTurnOver(const SegmentCommit& commit) const {
  const Segment& segment = *commit.segment;
  const size_t records = commit.entries.size() + committing_raises_.size();
  const size_t pages = (records + kRecordsPerPage - 1) / kRecordsPerPage;
  return !segment.position.appendable || segment.position.next_page + pages > segment.region_pages;
}

LogIo Committer::Append(SegmentCommit* commit) {
  Segment* segment = commit->segment;
  const size_t records = commit->entries.size() + committing_raises_.size();
  commit->pages.emplace(AppendPageId(state_->superblock.store, *segment),
                        (records + kRecordsPerPage - 1) / kRecordsPerPage);
  for (const EpochRaise& raise : committing_raises_) {
    commit->pages->Add(EpochRecord(raise.ns, raise.epoch));
  }
  for (const GroupEntry& entry : commit->entries) commit->pages->Add(entry.record);
  const std::span<const std::byte> pages = commit->pages->SealAll(/*last=*/false);
  const uint64_t offset = segment->RegionOffset(segment->position.region) +
                          uint64_t{segment->position.next_page} * kPageBytes;
  return {IoKind::kWrite, offset, {const_cast<std::byte*>(pages.data()), pages.size()}};
}

std::optional<LogIo> Committer::NextIo(SegmentCommit* commit) {
  Segment* segment = commit->segment;
  if (commit->step == Step::kNone) {
    commit->step = Step::kDataSync;
    if (commit->data_written) return LogIo{};
  }
  if (commit->step == Step::kDataSync) {
    commit->step = Step::kTurnOver;
    if (NeedsTurnOver(*commit)) {
      commit->turn_over.emplace(state_->superblock.store, segment, state_->epochs);
    }
  }
  if (commit->step == Step::kTurnOver) {
    if (commit->turn_over.has_value()) {
      if (const std::optional<LogIo> io = commit->turn_over->Next()) return io;
      commit->turn_over.reset();
      segment->carries_epochs = true;
      ++state_->stats.checkpoints;
    }
    commit->step = Step::kAppend;
    return Append(commit);
  }
  if (commit->step == Step::kAppend) {
    commit->step = Step::kAppendSync;
    return LogIo{};
  }
  segment->position.next_page = commit->pages->next_page();
  return std::nullopt;
}

// Up to the next transfer, or to the end.
void Committer::Advance(size_t index) {
  SegmentCommit* commit = commits_[index].get();
  while (const std::optional<LogIo> io = NextIo(commit)) {
    commit->io = *io;
    if (io->kind != IoKind::kSync || state_->options.sync) {
      if (!Launch(index)) waiting_.push_back(index);
      return;
    }
    if (commit->turn_over.has_value()) commit->turn_over->Done();  // of a sync: never fails
  }
  End(commit, true);
}

bool Committer::Launch(size_t index) {
  const SegmentCommit& commit = *commits_[index];
  const FileId file = commit.step == Step::kDataSync ? commit.segment->data : commit.segment->log;
  const iovec slice{commit.io.memory.data(), commit.io.memory.size()};
  const size_t slices = commit.io.kind == IoKind::kSync ? 0 : 1;
  return state_->io.Start(commit.io.kind, file, commit.io.offset, {&slice, slices}, this, index);
}

void Committer::CountError(const SegmentCommit& commit) {
  SsdStoreStats& stats = state_->stats;
  switch (commit.io.kind) {
    case IoKind::kRead:
      ++stats.read_errors;
      break;
    case IoKind::kWrite:
      ++stats.write_errors;
      break;
    case IoKind::kSync:
      ++stats.sync_errors;
      break;
  }
}

void Committer::OnTransfer(uint64_t cookie, bool ok, int64_t) {
  if (stopped_) return;
  SegmentCommit* commit = commits_[cookie].get();
  if (ok && commit->turn_over.has_value()) ok = commit->turn_over->Done();
  if (!ok) {
    CountError(*commit);
    state_->Retire(commit->segment);
  }
  // Another fault may have retired the segment meanwhile.
  if (commit->segment->state != SegmentState::kOpen) {
    End(commit, false);
  } else {
    Advance(cookie);
  }
}

void Committer::End(SegmentCommit* commit, bool ok) {
  commit->ended = true;
  commit->ok = ok;
  commit->segment->committing = false;
  for (const GroupEntry& entry : commit->entries) listener_->OnCommitted(entry, ok);
  commit->entries.clear();
  if (--running_ == 0) EndGroup();
}

void Committer::EndGroup() {
  // One segment that has it is enough: recovery takes the highest epoch seen in any.
  const bool raised =
      state_->segments.empty() ||
      std::any_of(commits_.begin(), commits_.end(), [](const auto& commit) { return commit->ok; });
  for (const EpochRaise& raise : committing_raises_) listener_->OnRaised(raise, raised);
  committing_raises_.clear();
  committing_ = false;
}

}  // namespace flexkv::ssd
