#include "tests/sim/sim_ssd.h"

#include <utility>

namespace flexkv {

void SimSsd::Fail(const std::string& what) {
  if (status_.ok()) status_ = absl::InternalError("SSD: " + what);
}

bool SimSsd::Fault(Kind kind, uint64_t one_in) {
  if (uint32_t& forced = forced_[kind]; forced > 0) {
    --forced;
    return true;
  }
  if (!faults_ || !rng_->OneIn(one_in)) return false;
  ++fault_count_;
  return true;
}

SsdRecovery SimSsd::TakeRecovery() {
  SsdRecovery found;
  for (const auto& [id, segment] : segments_) {
    found.segments.push_back({.id = id, .shape = segment.shape});
    for (const auto& [place, one] : unusable_) {
      if (place.first == id) found.segments.back().unusable.push_back(place.second);
    }
  }
  std::erase_if(blocks_, [&](const auto& entry) {
    const auto epoch = epochs_.find(entry.second.identity.ns);
    return epoch != epochs_.end() && entry.second.identity.epoch < epoch->second;
  });
  for (const auto& [place, block] : blocks_) {
    found.blocks.push_back({{place.first, place.second}, block.identity});
  }
  found.epochs.assign(epochs_.begin(), epochs_.end());
  return found;
}

void SimSsd::Crash() {
  for (Pending& op : pending_) {
    if (op.kind != Kind::kRead && rng_->OneIn(2)) Execute(std::move(op));
  }
  pending_.clear();
  results_.clear();
  writing_.clear();
  for (auto& [id, segment] : segments_) segment.retired = false;
}

void SimSsd::RetireAll() {
  for (auto& [id, segment] : segments_) segment.retired = true;
}

bool SimSsd::Accept(Pending pending) {
  if (faults_ && rng_->OneIn(20)) return false;
  pending_.push_back(std::move(pending));
  return true;
}

void SimSsd::CheckPlace(SsdPlace place, size_t shards) {
  auto segment = segments_.find(place.segment);
  if (segment == segments_.end()) return Fail("a place in a segment that is gone");
  if (place.slot >= segment->second.shape.slots) Fail("a slot past its segment");
  if (shards != segment->second.shape.shard_bytes.size()) Fail("a wrong number of shards");
}

bool SimSsd::Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                   std::span<const ArenaShard> shards) {
  CheckPlace(place, shards.size());
  const Key key{place.segment, place.slot};
  if (blocks_.contains(key) || unusable_.contains(key) || writing_.contains(key))
    Fail("a write to a place in use");
  if (!Accept({.kind = Kind::kWrite,
               .tag = tag,
               .place = place,
               .identity = identity,
               .shards = {shards.begin(), shards.end()}})) {
    return false;
  }
  writing_[key] = 1;
  for (const ArenaShard& shard : shards) arena_->BeginUse(shard.segment, shard.offset_bytes, false);
  return true;
}

bool SimSsd::Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                  std::span<const ArenaShard> shards) {
  CheckPlace(place, shards.size());
  if (!Accept({.kind = Kind::kRead,
               .tag = tag,
               .place = place,
               .identity = identity,
               .shards = {shards.begin(), shards.end()}})) {
    return false;
  }
  for (const ArenaShard& shard : shards) arena_->BeginUse(shard.segment, shard.offset_bytes, true);
  return true;
}

bool SimSsd::Free(uint64_t tag, SsdPlace place) {
  CheckPlace(place, segments_.contains(place.segment)
                        ? segments_.at(place.segment).shape.shard_bytes.size()
                        : 0);
  return Accept({.kind = Kind::kFree, .tag = tag, .place = place});
}

bool SimSsd::RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) {
  Pending op{.kind = Kind::kRaise, .tag = tag};
  op.identity.ns = ns;
  op.identity.epoch = epoch;
  return Accept(std::move(op));
}

bool SimSsd::CreateSegment(uint64_t tag, const SsdShape& shape) {
  return Accept({.kind = Kind::kCreate, .tag = tag, .shape = shape});
}

bool SimSsd::DropSegment(uint64_t tag, uint32_t segment) {
  for (const Pending& op : pending_) {
    const bool names = op.kind == Kind::kWrite || op.kind == Kind::kRead || op.kind == Kind::kFree;
    if (names && op.place.segment == segment) Fail("a segment is dropped under an op");
  }
  return Accept({.kind = Kind::kDrop, .tag = tag, .place = {segment, 0}});
}

absl::Status SimSsd::DoWrite(const Pending& op) {
  const Key key{op.place.segment, op.place.slot};
  writing_.erase(key);
  SimSsdBlock block{.identity = op.identity};
  for (const ArenaShard& shard : op.shards) {
    block.words.push_back(arena_->Word(shard.segment, shard.offset_bytes));
    arena_->EndUse(shard.segment, shard.offset_bytes, false);
  }
  Segment& segment = segments_.at(op.place.segment);
  const auto epoch = epochs_.find(op.identity.ns);
  if (epoch != epochs_.end() && op.identity.epoch < epoch->second)
    return absl::FailedPreconditionError("epoch");
  if (segment.retired || Fault(Kind::kWrite, 400)) {
    segment.retired = true;
    return absl::UnavailableError("write");
  }
  blocks_[key] = std::move(block);
  return absl::OkStatus();
}

absl::Status SimSsd::DoRead(const Pending& op) {
  const Key key{op.place.segment, op.place.slot};
  auto block = blocks_.find(key);
  absl::Status status;
  if (block == blocks_.end() || !(block->second.identity == op.identity)) {
    status = absl::NotFoundError("block");
  } else if (Fault(Kind::kRead, 300)) {
    status = absl::DataLossError("block");
    unusable_[key] = 1;
    blocks_.erase(block);
  }
  for (size_t i = 0; i < op.shards.size(); ++i) {
    const ArenaShard& shard = op.shards[i];
    if (status.ok()) arena_->Word(shard.segment, shard.offset_bytes) = block->second.words[i];
    arena_->EndUse(shard.segment, shard.offset_bytes, true);
  }
  return status;
}

absl::Status SimSsd::DoFree(const Pending& op) {
  const Key key{op.place.segment, op.place.slot};
  if (segments_.at(op.place.segment).retired || unusable_.contains(key))
    return absl::UnavailableError("free");
  blocks_.erase(key);
  return absl::OkStatus();
}

absl::Status SimSsd::DoDrop(const Pending& op) {
  if (Fault(Kind::kDrop, 20)) return absl::FailedPreconditionError("drop");
  segments_.erase(op.place.segment);
  const auto of_segment = [&](const auto& entry) { return entry.first.first == op.place.segment; };
  std::erase_if(blocks_, of_segment);
  std::erase_if(unusable_, of_segment);
  return absl::OkStatus();
}

void SimSsd::Execute(Pending op) {
  SsdPortResult result{.tag = op.tag};
  ++ended_[op.kind];
  switch (op.kind) {
    case Kind::kWrite:
      result.status = DoWrite(op);
      break;
    case Kind::kRead:
      result.status = DoRead(op);
      break;
    case Kind::kFree:
      result.status = DoFree(op);
      break;
    case Kind::kRaise:
      if (Fault(Kind::kRaise, 10)) {
        result.status = absl::UnavailableError("epoch");
      } else {
        uint32_t& epoch = epochs_[op.identity.ns];
        epoch = std::max(epoch, op.identity.epoch);
      }
      break;
    case Kind::kCreate: {
      uint64_t slots = op.shape.slots;
      for (const auto& [id, segment] : segments_) slots += segment.shape.slots;
      if (slots > max_slots_ || Fault(Kind::kCreate, 8)) {
        result.status = absl::ResourceExhaustedError("space");
      } else {
        result.segment = next_segment_++;
        segments_[result.segment] = {.shape = op.shape};
      }
      break;
    }
    case Kind::kDrop:
      result.status = DoDrop(op);
      break;
  }
  results_.push_back(std::move(result));
}

void SimSsd::Step() {
  if (pending_.empty()) return;
  const size_t index = rng_->Below(pending_.size());
  Pending& op = pending_[index];
  if (op.kind == Kind::kRead && !std::exchange(op.torn, true)) {
    for (const ArenaShard& shard : op.shards)
      arena_->Word(shard.segment, shard.offset_bytes) = rng_->Next();
    return;
  }
  Pending taken = std::move(op);
  pending_.erase(pending_.begin() + static_cast<std::ptrdiff_t>(index));
  Execute(std::move(taken));
}

void SimSsd::Drain() {
  while (!pending_.empty()) Step();
}

void SimSsd::TakeResults(std::vector<SsdPortResult>* results) {
  results->insert(results->end(), results_.begin(), results_.end());
  results_.clear();
}

}  // namespace flexkv
