// The store is opened anew, this time for writing: that alone rebuilds lost logs and superblocks,
// and every segment gets a fresh log. Then blocks that did not verify are freed. A sector that
// cannot be read is written again with the next block of its slot, which is when a drive replaces
// it; the read after that tells whether it did.
//
// A segment that can only be read (its file was cut short) gives its good blocks to a new one.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_scrub.h"

namespace flexkv::ssd {
namespace {

constexpr TimeNs kWaitNs = 100 * kNsPerMs;
constexpr uint32_t kMoveBlocks = 64;      // at a time
constexpr size_t kMaxQueuedFrees = 1024;  // below the store's own bound

bool IsUnwanted(Verdict verdict, bool keep_orphans) {
  switch (verdict) {
    case Verdict::kCorrupt:
    case Verdict::kUnreadable:
    case Verdict::kDuplicate:
      return true;
    case Verdict::kOrphan:
      return !keep_orphans;
    case Verdict::kGood:
    case Verdict::kUnread:
      return false;
  }
  return false;
}

}  // namespace

void Scrub::Fail(const absl::Status& status) {
  if (report.repair.failures++ == 0) report.repair.first_failure = std::string(status.message());
}

bool Scrub::NeedsRepair() const {
  return report.damaged() || std::any_of(verdicts_.begin(), verdicts_.end(), [this](Verdict v) {
           return IsUnwanted(v, options_.keep_orphans);
         });
}

void Scrub::Repair() {
  if (!NeedsRepair()) return;
  store_.reset();
  SsdStoreOptions options;
  options.fresh_logs = true;
  if (absl::Status status = OpenStore(options); !status.ok()) {
    Fail(status);
    return;
  }
  for (const auto& [id, segment] : segments_) {
    report.repair.fresh_logs += segment.state == SegmentState::kOpen ? 1 : 0;
  }
  FreeBlocks();
  ReplaceSegments();
  Drain();
  store_.reset();
}

std::vector<SsdResult> Scrub::Drain() {
  std::vector<SsdResult> results;
  while (!store_->idle()) {
    store_->Flush();
    store_->Poll(kWaitNs, &results);
  }
  store_->Poll(0, &results);
  return results;
}

void Scrub::FreeBlocks() {
  const auto end = [this] {
    for (const SsdResult& result : Drain()) {
      if (!result.status.ok()) {
        Fail(result.status);
        continue;
      }
      const Verdict verdict = verdicts_[result.tag];
      SsdRepairReport& repair = report.repair;
      ++(verdict == Verdict::kOrphan      ? repair.freed_orphans
         : verdict == Verdict::kDuplicate ? repair.freed_duplicates
                                          : repair.freed_blocks);
    }
  };
  size_t queued = 0;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (!IsUnwanted(verdicts_[i], options_.keep_orphans)) continue;
    const auto segment = segments_.find(blocks_[i].place.segment);
    // Others are dropped as a whole.
    if (segment == segments_.end() || segment->second.state != SegmentState::kOpen) continue;
    store_->SubmitFree(i, blocks_[i].place);
    if (++queued % kMaxQueuedFrees == 0) end();
  }
  end();
}

void Scrub::ReplaceSegments() {
  for (const auto& [id, segment] : segments_) {
    if (segment.state == SegmentState::kOpen) continue;
    const bool holds_good = std::any_of(verdicts_.begin(), verdicts_.end(), [&, id = id](auto& v) {
      return blocks_[static_cast<size_t>(&v - verdicts_.data())].place.segment == id &&
             !IsUnwanted(v, options_.keep_orphans);
    });
    if (segment.state == SegmentState::kRetired && holds_good) {
      const absl::StatusOr<uint32_t> target = store_->CreateSegment(segment.shape);
      if (!target.ok()) {  // its blocks are served on from where they are
        Fail(target.status());
        continue;
      }
      report.repair.moved_blocks += MoveBlocks(id, *target, segment.shape);
      ++report.repair.fresh_logs;
    }
    Drop(id);
  }
}

uint64_t Scrub::MoveBlocks(uint32_t source, uint32_t target, const SsdShape& shape) {
  memory_.Reset(disk_.get(), shape, options_.max_inflight_bytes, kMoveBlocks);
  uint64_t moved = 0;
  std::vector<size_t> batch;
  for (size_t i = 0; i < blocks_.size(); ++i) {
    if (blocks_[i].place.segment == source && !IsUnwanted(verdicts_[i], options_.keep_orphans)) {
      batch.push_back(i);
    }
    if (batch.size() == memory_.count() || (i + 1 == blocks_.size() && !batch.empty())) {
      moved += MoveBatch(batch, target);
      batch.clear();
    }
  }
  memory_.Release();
  return moved;
}

// To the same slots. What does not verify now is left behind.
uint64_t Scrub::MoveBatch(std::span<const size_t> batch, uint32_t target) {
  for (uint32_t i = 0; i < batch.size(); ++i) {
    const RecoveredBlock& block = blocks_[batch[i]];
    store_->SubmitRead({i, block.place, block.identity, memory_.Shards(i)});
  }
  for (const SsdResult& read : Drain()) {
    if (!read.status.ok()) {
      Fail(read.status);
      continue;
    }
    const auto i = static_cast<uint32_t>(read.tag);
    const RecoveredBlock& block = blocks_[batch[i]];
    const std::vector<std::span<std::byte>> shards = memory_.Shards(i);
    store_->SubmitWrite(
        {i, {target, block.place.slot}, block.identity, {shards.begin(), shards.end()}});
  }
  uint64_t moved = 0;
  for (const SsdResult& write : Drain()) {
    if (write.status.ok()) {
      ++moved;
    } else {
      Fail(write.status);
    }
  }
  return moved;
}

void Scrub::Drop(uint32_t segment) {
  const absl::Status status = store_->DropSegment(segment);
  if (status.ok()) {
    ++report.repair.dropped_segments;
  } else {
    Fail(status);
  }
}

}  // namespace flexkv::ssd
