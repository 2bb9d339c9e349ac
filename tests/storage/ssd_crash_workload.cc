#include "tests/storage/ssd_crash_workload.h"

#include <algorithm>
#include <cstring>
#include <set>

#include "absl/strings/str_cat.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint32_t kNamespaces = 3;
constexpr uint32_t kMaxSegments = 4;

const std::vector<SsdShape>& Shapes() {
  static const std::vector<SsdShape> shapes = {
      {.shard_bytes = {1000}, .slots = 8},          {.shard_bytes = {4096, 4096}, .slots = 5},
      {.shard_bytes = {5000, 300, 70}, .slots = 4}, {.shard_bytes = {1}, .slots = 40},
      {.shard_bytes = {60'000}, .slots = 4},
  };
  return shapes;
}

uint32_t NumberOf(const SsdShape& shape) {
  uint32_t number = 0;
  while (number < Shapes().size() && Shapes()[number].shard_bytes != shape.shard_bytes) ++number;
  return number;
}

std::string Describe(SsdPlace place) { return absl::StrCat(place.segment, "/", place.slot); }

}  // namespace

void SsdWorkloadStats::Add(const SsdWorkloadStats& other) {
  writes += other.writes, commits += other.commits, reads += other.reads;
  reads_ok += other.reads_ok, frees += other.frees, raises += other.raises;
  creates += other.creates, drops += other.drops, recovered += other.recovered;
  bytes_checked += other.bytes_checked, failed_ops += other.failed_ops, misses += other.misses;
  opens += other.opens, checkpoints += other.checkpoints;
}

std::string SsdWorkloadStats::ToString() const {
  return absl::StrCat("opens ", opens, ", recovered ", recovered, ", writes ", writes, ", commits ",
                      commits, ", reads ", reads, " (", reads_ok, " ok, ", misses,
                      " misses), frees ", frees, ", raises ", raises, ", segments +", creates, " -",
                      drops, ", checkpoints ", checkpoints, ", failed ops ", failed_ops,
                      ", MiB checked ", bytes_checked >> 20);
}

// --- construction -------------------------------------------------------------------------------

SsdWorkload::SsdWorkload(Disk* disk, const Clock* clock, uint64_t seed, SsdTrust trust)
    : disk_(disk), clock_(clock), rng_(seed), trust_(trust), next_hash_(seed << 20) {
  options_.max_bytes = 8 << 20;
  options_.max_inflight_bytes = 64 << 10;
  options_.group_bytes = rng_.OneIn(2) ? 40 << 10 : 4 << 20;
  options_.group_delay_ns = 2 * kNsPerMs;
  options_.new_store_id = {0x5D, static_cast<uint8_t>(seed)};
  for (uint32_t i = 0; i < kNamespaces; ++i) {
    Namespace ns;
    ns.digest[0] = static_cast<uint8_t>(i + 1);
    ns.digest[31] = 0x55;
    namespaces_.push_back(ns);
  }
  // Runs of different character find what an average one does not.
  raise_one_in_ = 1 + rng_.Below(8);
  drop_one_in_ = 1 + rng_.Below(8);
}

SsdWorkload::SsdWorkload(const SsdWorkload& crashed, Disk* disk, const Clock* clock, uint64_t seed)
    : disk_(disk),
      clock_(clock),
      rng_(seed),
      trust_(crashed.trust_),
      options_(crashed.options_),
      segments_(crashed.segments_),
      namespaces_(crashed.namespaces_),
      freed_(crashed.freed_),
      creating_(crashed.creating_),
      dropping_(crashed.dropping_),
      raise_one_in_(crashed.raise_one_in_),
      drop_one_in_(crashed.drop_one_in_),
      next_hash_(crashed.next_hash_) {}

const SsdWorkloadStats& SsdWorkload::stats() {
  if (store_ != nullptr) stats_.checkpoints = store_->stats().checkpoints;
  return stats_;
}

SsdWorkload::~SsdWorkload() { store_.reset(); }  // before the buffers it may still use

void SsdWorkload::Fail(const std::string& what) {
  if (status_.ok()) status_ = absl::InternalError(what);
}

// --- the model ----------------------------------------------------------------------------------

void SsdWorkload::Tell(const SsdEvent& event) {
  Apply(event);
  if (listener_) listener_(event);
}

void SsdWorkload::Apply(const SsdEvent& event) {
  Block* block = BlockAt(event.place);
  switch (event.kind) {
    case SsdEventKind::kWriteBegun:
    case SsdEventKind::kCommitted:
    case SsdEventKind::kFreeBegun:
    case SsdEventKind::kFreed:
    case SsdEventKind::kLost:
      if (block == nullptr) return Fail("an event of no known place");
      break;
    case SsdEventKind::kRaiseBegun:
      namespaces_[event.number].target = event.epoch;
      return;
    case SsdEventKind::kRaised: {
      Namespace& ns = namespaces_[event.number];
      if (event.epoch <= ns.acked) return;
      ns.acked = event.epoch;
      ns.vouchers.clear();
      for (const auto& [id, segment] : segments_) {
        if (segment.writable) ns.vouchers.push_back(id);
      }
      return;
    }
    default:
      return ApplyToSegments(event);
  }
  switch (event.kind) {
    case SsdEventKind::kWriteBegun:
      *block = {State::kWriting, event.identity};
      return;
    case SsdEventKind::kCommitted:
      block->state = State::kCommitted;
      return;
    case SsdEventKind::kFreeBegun:
      block->state = State::kFreeing;
      return;
    case SsdEventKind::kFreed:
      block->state = State::kFree;
      return;
    default:
      block->state = State::kLost;
      return;
  }
}

void SsdWorkload::ApplyToSegments(const SsdEvent& event) {
  const uint32_t id = event.place.segment;
  switch (event.kind) {
    case SsdEventKind::kCreateBegun:
      creating_ = true;
      return;
    case SsdEventKind::kFound:
      if (segments_.count(id) > 0) return;
      if (!creating_ && !adopt_ && trust_ == SsdTrust::kSound) {
        return Fail(absl::StrCat("segment ", id, " was dropped and is back"));
      }
      [[fallthrough]];
    case SsdEventKind::kCreated: {
      creating_ = creating_ && event.kind == SsdEventKind::kFound;
      Segment& segment = segments_[id];
      segment.shape = Shapes()[event.number];
      segment.blocks.resize(segment.shape.slots);
      return;
    }
    case SsdEventKind::kCreateFailed:
      creating_ = false;
      return;
    case SsdEventKind::kDropBegun:
      dropping_.insert(id);
      return;
    case SsdEventKind::kDropped:
      segments_.erase(id);
      [[fallthrough]];
    default:
      dropping_.erase(id);
      return;
  }
}

SsdWorkload::Block* SsdWorkload::BlockAt(SsdPlace place) {
  auto it = segments_.find(place.segment);
  if (it == segments_.end() || place.slot >= it->second.blocks.size()) return nullptr;
  return &it->second.blocks[place.slot];
}

SsdWorkload::Namespace* SsdWorkload::NamespaceOf(const SsdIdentity& identity) {
  for (Namespace& ns : namespaces_) {
    if (ns.digest == identity.ns) return &ns;
  }
  return nullptr;
}

bool SsdWorkload::TooOld(const SsdIdentity& identity, bool even_undecided) {
  const Namespace* ns = NamespaceOf(identity);
  return identity.epoch < (even_undecided ? ns->target : ns->acked);
}

bool SsdWorkload::Choose(State state, SsdPlace* place) {
  if (segments_.empty()) return false;
  auto it = std::next(segments_.begin(), static_cast<int64_t>(rng_.Below(segments_.size())));
  const auto& blocks = it->second.blocks;
  const uint64_t start = rng_.Below(blocks.size());
  for (uint64_t i = 0; i < blocks.size(); ++i) {
    const uint64_t slot = (start + i) % blocks.size();
    if (blocks[slot].state != state) continue;
    *place = {it->first, static_cast<uint32_t>(slot)};
    return true;
  }
  return false;
}

SsdIdentity SsdWorkload::NewIdentity() {
  if (!freed_.empty() && rng_.OneIn(4)) {  // as an engine does: the same prompt again
    const size_t index = rng_.Below(freed_.size());
    SsdIdentity again = freed_[index];
    freed_.erase(freed_.begin() + static_cast<int64_t>(index));
    again.epoch = NamespaceOf(again)->target;
    return again;
  }
  const Namespace& ns = namespaces_[rng_.Below(namespaces_.size())];
  SsdIdentity identity{.ns = ns.digest, .epoch = ns.target, .hash = HashFromNumber(next_hash_++)};
  // Now and then a write that was on its way while the namespace was reset.
  if (identity.epoch > 0 && rng_.OneIn(16)) --identity.epoch;
  SsdPlace parent;
  if (rng_.OneIn(2) && Choose(State::kCommitted, &parent)) {
    const SsdIdentity& above = BlockAt(parent)->identity;
    identity.parent = above.hash;
    identity.depth = above.depth + 1;
  }
  return identity;
}

// --- opening ------------------------------------------------------------------------------------

const absl::Status& SsdWorkload::Open() {
  auto store = SsdStore::Open(options_, disk_, clock_);
  ++stats_.opens;
  if (!store.ok()) {
    Fail(absl::StrCat("Open: ", store.status().ToString()));
    return status_;
  }
  store_ = *std::move(store);
  LearnSegments();
  if (status_.ok()) LearnBlocks();
  if (status_.ok()) LearnEpochs();
  creating_ = false;
  adopt_ = false;
  dropping_.clear();
  const absl::Status invariants = store_->CheckInvariants();
  if (!invariants.ok()) Fail(absl::StrCat("after Open: ", invariants.ToString()));
  return VerifyAll();
}

void SsdWorkload::LearnSegments() {
  std::set<uint32_t> found;
  for (const SsdSegmentInfo& info : store_->segments()) {
    found.insert(info.id);
    const bool known = segments_.count(info.id) > 0;
    const bool unreadable = info.state == SegmentState::kUnreadable;
    if (!known && unreadable && trust_ != SsdTrust::kSound) continue;
    if (!known) {
      const uint32_t number = NumberOf(info.shape);
      if (number == Shapes().size()) return Fail(absl::StrCat("segment ", info.id, " of no shape"));
      Tell({.kind = SsdEventKind::kFound, .place = {info.id, 0}, .number = number});
      if (!status_.ok()) return;
    } else if (listener_) {
      listener_(
          {.kind = SsdEventKind::kFound, .place = {info.id, 0}, .number = NumberOf(info.shape)});
    }
    Segment& segment = segments_.at(info.id);
    if (!unreadable && info.shape.shard_bytes != segment.shape.shard_bytes) {
      Fail(absl::StrCat("segment ", info.id, " has another shape"));
    }
    segment.busy = 0;
    segment.writable = info.state == SegmentState::kOpen;
    const bool excused = dropping_.count(info.id) > 0 || trust_ != SsdTrust::kSound;
    if (!segment.writable && !excused) {
      Fail(absl::StrCat("segment ", info.id, " came back in state ", static_cast<int>(info.state)));
    }
  }
  for (auto it = segments_.begin(); it != segments_.end();) {
    if (found.count(it->first) > 0) {
      ++it;
      continue;
    }
    if (dropping_.count(it->first) == 0 && trust_ != SsdTrust::kSilent) {
      Fail(absl::StrCat("segment ", it->first, " is gone"));
    }
    it = segments_.erase(it);
  }
}

void SsdWorkload::CheckFound(SsdPlace place, const SsdIdentity& identity) {
  const Block& block = *BlockAt(place);
  if (block.state == State::kFree && trust_ != SsdTrust::kSilent) {
    Fail(absl::StrCat("found at a place that is free: ", Describe(place)));
  } else if (!(block.identity == identity) && trust_ != SsdTrust::kSilent) {
    Fail(absl::StrCat("another block found at ", Describe(place), ", state ",
                      static_cast<int>(block.state), ", epoch ", identity.epoch, " for ",
                      block.identity.epoch, ", depth ", identity.depth, " for ",
                      block.identity.depth, ", hash ", identity.hash.tag() % 1000, " for ",
                      block.identity.hash.tag() % 1000));
  } else if (TooOld(identity, false) && trust_ != SsdTrust::kSilent) {
    Fail(absl::StrCat("block of an old epoch found at ", Describe(place)));
  }
}

void SsdWorkload::LearnBlocks() {
  std::set<std::pair<uint32_t, uint32_t>> found;
  for (const RecoveredBlock& recovered : store_->TakeRecovered()) {
    const SsdPlace place = recovered.place;
    ++stats_.recovered;
    Block* block = BlockAt(place);
    if (block == nullptr) return Fail(absl::StrCat("found at no place: ", Describe(place)));
    if (!found.insert({place.segment, place.slot}).second) {
      return Fail(absl::StrCat("found twice: ", Describe(place)));
    }
    if (!adopt_) CheckFound(place, recovered.identity);
    if (!status_.ok()) return;
    block->identity = recovered.identity;
  }
  for (auto& [id, segment] : segments_) {
    for (uint32_t slot = 0; slot < segment.blocks.size(); ++slot) {
      Block& block = segment.blocks[slot];
      const bool back = found.count({id, slot}) > 0;
      const bool promised = block.state == State::kCommitted && !TooOld(block.identity, true);
      const bool excused = dropping_.count(id) > 0 || trust_ == SsdTrust::kSilent;
      if (!back && promised && !excused) {
        return Fail(absl::StrCat("committed block lost: ", id, "/", slot));
      }
      const State absent = segment.writable ? State::kFree : State::kLost;
      block.state = back ? State::kCommitted : absent;
    }
  }
}

void SsdWorkload::LearnEpochs() {
  std::map<NamespaceDigest, uint32_t> epochs;
  for (const auto& [digest, epoch] : store_->Epochs()) epochs[digest] = epoch;
  for (Namespace& ns : namespaces_) {
    const bool vouched = std::any_of(ns.vouchers.begin(), ns.vouchers.end(), [this](uint32_t id) {
      return segments_.count(id) > 0 && dropping_.count(id) == 0;
    });
    auto it = epochs.find(ns.digest);
    const uint32_t epoch = it == epochs.end() ? 0 : it->second;
    if (epoch < ns.acked && vouched && trust_ != SsdTrust::kSilent) {
      Fail(absl::StrCat("epoch ", ns.acked, " forgotten: ", epoch));
    }
    if (adopt_) ns.target = ns.acked = epoch;
    if (epoch > ns.target && trust_ != SsdTrust::kSilent)
      Fail(absl::StrCat("epoch ", epoch, " out of thin air"));
    if (epoch >= ns.acked || trust_ == SsdTrust::kSilent) ns.acked = epoch;
    // What was told once must be told again, whichever of them is left.
    ns.vouchers.clear();
    for (const auto& [id, segment] : segments_) ns.vouchers.push_back(id);
    ns.target = ns.acked;
  }
}

const absl::Status& SsdWorkload::VerifyAll() {
  for (auto& [id, segment] : segments_) {
    for (uint32_t slot = 0; slot < segment.blocks.size() && status_.ok(); ++slot) {
      const Block& block = segment.blocks[slot];
      if (block.state != State::kCommitted) continue;
      const bool sure = trust_ == SsdTrust::kSound && !TooOld(block.identity, true);
      SubmitRead({id, slot}, block.identity, sure, TooOld(block.identity, false));
      if (ops_.size() > 64) Poll(kNsPerMs);
    }
  }
  return Settle();
}

// --- steps --------------------------------------------------------------------------------------

const absl::Status& SsdWorkload::Run(uint64_t steps) {
  for (uint64_t i = 0; i < steps && status_.ok(); ++i) Step();
  return status_;
}

void SsdWorkload::Step() {
  if (segments_.empty()) Create();
  const uint64_t dice = rng_.Below(100);
  if (dice < 45) {
    Write();
  } else if (dice < 55) {
    Free();
  } else if (dice < 70) {
    Read();
  } else if (dice < 72) {
    if (rng_.OneIn(raise_one_in_)) Raise();
  } else if (dice < 76) {
    Create();
  } else if (dice < 77) {
    if (rng_.OneIn(drop_one_in_)) Drop();
  } else if (dice < 78) {  // groups of several log pages
    for (uint64_t n = rng_.Below(60); n > 0; --n) rng_.OneIn(4) ? Free() : Write();
  } else if (dice < 84) {
    store_->Flush();
  } else {
    Poll(rng_.OneIn(3) ? 0 : rng_.Below(2 * kNsPerMs));
  }
}

void SsdWorkload::Write() {
  SsdPlace place;
  if (!Choose(State::kFree, &place)) return Free();
  Segment& segment = segments_.at(place.segment);
  if (!segment.writable) return;
  Op op{.kind = SsdOpKind::kWrite, .place = place, .identity = NewIdentity()};
  op.buffer = std::make_unique<SsdBlockBuffer>(segment.shape.shard_bytes);
  op.buffer->Fill(op.identity);
  const uint64_t tag = next_tag_++;
  SsdWrite write{
      .tag = tag, .place = place, .identity = op.identity, .shards = op.buffer->ToWrite()};
  Tell({.kind = SsdEventKind::kWriteBegun, .place = place, .identity = op.identity});
  ++segment.busy;
  ++stats_.writes;
  ops_.emplace(tag, std::move(op));
  if (!store_->SubmitWrite(std::move(write))) Fail("a write was refused");
}

void SsdWorkload::Read() {
  const uint64_t dice = rng_.Below(8);
  SsdPlace place;
  if (dice == 0) {  // nothing there, or a block that only asks to be confused
    if (!Choose(State::kFree, &place)) return;
    const Namespace& ns = namespaces_[0];
    return SubmitRead(place, {.ns = ns.digest, .epoch = ns.target, .hash = HashFromNumber(1)},
                      false, true);
  }
  const State state = dice == 1 ? State::kWriting : dice == 2 ? State::kFreeing : State::kCommitted;
  if (!Choose(state, &place)) return;
  SsdIdentity identity = BlockAt(place)->identity;
  if (dice == 3) {
    identity.depth += 1;
    return SubmitRead(place, identity, false, true);
  }
  const bool sure =
      state == State::kCommitted && trust_ == SsdTrust::kSound && !TooOld(identity, true);
  SubmitRead(place, identity, sure, TooOld(identity, false));
}

void SsdWorkload::SubmitRead(SsdPlace place, const SsdIdentity& identity, bool must_succeed,
                             bool must_miss) {
  Segment& segment = segments_.at(place.segment);
  Op op{.kind = SsdOpKind::kRead, .place = place, .identity = identity};
  op.buffer = std::make_unique<SsdBlockBuffer>(segment.shape.shard_bytes);
  op.must_succeed = must_succeed;
  op.must_miss = must_miss;
  const uint64_t tag = next_tag_++;
  SsdRead read{.tag = tag, .place = place, .identity = identity, .shards = op.buffer->ToRead()};
  ++segment.busy;
  ++stats_.reads;
  ops_.emplace(tag, std::move(op));
  if (!store_->SubmitRead(std::move(read))) Fail("a read was refused");
}

void SsdWorkload::Free() {
  SsdPlace place;
  if (!Choose(State::kCommitted, &place)) return;
  for (auto& [tag, op] : ops_) {
    if (op.kind == SsdOpKind::kRead && op.place == place) op.must_succeed = false;
  }
  const uint64_t tag = next_tag_++;
  Tell({.kind = SsdEventKind::kFreeBegun, .place = place});
  ++segments_.at(place.segment).busy;
  ++stats_.frees;
  ops_.emplace(tag,
               Op{.kind = SsdOpKind::kFree, .place = place, .identity = BlockAt(place)->identity});
  if (!store_->SubmitFree(tag, place)) Fail("a free was refused");
}

void SsdWorkload::Raise() {
  const size_t index = rng_.Below(namespaces_.size());
  Namespace& ns = namespaces_[index];
  const uint32_t epoch = ns.target + 1 + static_cast<uint32_t>(rng_.Below(2));
  Tell({.kind = SsdEventKind::kRaiseBegun, .number = static_cast<uint32_t>(index), .epoch = epoch});
  for (auto& [tag, op] : ops_) {
    if (op.kind == SsdOpKind::kRead && op.identity.ns == ns.digest) op.must_succeed = false;
  }
  const uint64_t tag = next_tag_++;
  ++stats_.raises;
  ops_.emplace(tag, Op{.kind = SsdOpKind::kRaiseEpoch, .epoch = ns.target, .ns = index});
  if (!store_->SubmitRaiseEpoch(tag, ns.digest, ns.target)) Fail("an epoch was refused");
}

void SsdWorkload::Create() {
  if (segments_.size() >= kMaxSegments) return;
  if (rng_.OneIn(4)) Raise();  // the new segment knows an epoch that the others do not have yet
  const auto number = static_cast<uint32_t>(rng_.Below(Shapes().size()));
  Tell({.kind = SsdEventKind::kCreateBegun});
  auto id = store_->CreateSegment(Shapes()[number]);
  if (!id.ok()) {
    Tell({.kind = SsdEventKind::kCreateFailed});
    if (trust_ == SsdTrust::kSound) Fail(absl::StrCat("CreateSegment: ", id.status().ToString()));
    return;
  }
  if (segments_.count(*id) > 0) return Fail("a segment id was used again");
  Tell({.kind = SsdEventKind::kCreated, .place = {*id, 0}, .number = number});
  ++stats_.creates;
}

void SsdWorkload::Drop() {
  if (segments_.size() < 2) return;
  auto it = std::next(segments_.begin(), static_cast<int64_t>(rng_.Below(segments_.size())));
  const SsdPlace place{it->first, 0};
  const bool busy = it->second.busy > 0;
  Tell({.kind = SsdEventKind::kDropBegun, .place = place});
  const absl::Status status = store_->DropSegment(place.segment);
  Tell({.kind = status.ok() ? SsdEventKind::kDropped : SsdEventKind::kDropRefused, .place = place});
  if (status.ok() && busy) return Fail("a segment with ops queued was dropped");
  // With ops under way no other segment may be free to take over the epochs.
  const bool excused = !ops_.empty() || trust_ != SsdTrust::kSound;
  if (!status.ok() && !excused) return Fail(absl::StrCat("Drop: ", status.ToString()));
  stats_.drops += status.ok() ? 1 : 0;
}

// --- results ------------------------------------------------------------------------------------

void SsdWorkload::Poll(TimeNs timeout_ns) {
  std::vector<SsdResult> results;
  store_->Poll(timeout_ns, &results);
  for (const SsdResult& result : results) Ended(result);
}

const absl::Status& SsdWorkload::Settle() {
  for (uint64_t i = 0; status_.ok() && (!ops_.empty() || !store_->idle()); ++i) {
    if (i % 64 == 63) store_->Flush();
    if (i > 100'000) Fail(absl::StrCat("does not settle, ", ops_.size(), " ops without result"));
    Poll(5 * kNsPerMs);
  }
  if (!status_.ok()) return status_;
  const absl::Status invariants = store_->CheckInvariants();
  if (!invariants.ok()) Fail(invariants.ToString());
  return status_;
}

void SsdWorkload::Ended(const SsdResult& result) {
  auto it = ops_.find(result.tag);
  if (it == ops_.end()) return Fail(absl::StrCat("a result nobody waits for: ", result.tag));
  Op op = std::move(it->second);
  ops_.erase(it);
  if (result.kind != op.kind) return Fail("a result of another kind");
  if (op.kind != SsdOpKind::kRaiseEpoch) {
    auto segment = segments_.find(op.place.segment);
    if (segment == segments_.end()) return Fail("a result of a segment that is gone");
    --segment->second.busy;
  }
  switch (op.kind) {
    case SsdOpKind::kWrite:
      return WriteEnded(op, result.status);
    case SsdOpKind::kRead:
      return ReadEnded(op, result.status);
    case SsdOpKind::kFree:
      return FreeEnded(op, result.status);
    case SsdOpKind::kRaiseEpoch:
      return RaiseEnded(op, result.status);
  }
}

void SsdWorkload::WriteEnded(const Op& op, const absl::Status& status) {
  if (status.ok()) {
    ++stats_.commits;
    return Tell({.kind = SsdEventKind::kCommitted, .place = op.place});
  }
  ++stats_.failed_ops;
  Tell({.kind = SsdEventKind::kLost, .place = op.place});
  const bool excused = TooOld(op.identity, true);  // late for its epoch
  if (trust_ == SsdTrust::kSound && !excused) Fail(absl::StrCat("write: ", status.ToString()));
}

void SsdWorkload::ReadEnded(const Op& op, const absl::Status& status) {
  if (status.ok()) {
    ++stats_.reads_ok;
    stats_.bytes_checked += op.buffer->bytes();
    if (!op.buffer->Matches(op.identity)) {
      return Fail(absl::StrCat("WRONG BYTES at ", Describe(op.place)));
    }
    if (op.must_miss) Fail(absl::StrCat("read of what is not there: ", Describe(op.place)));
    return;
  }
  ++stats_.misses;
  if (op.must_succeed) Fail(absl::StrCat("read of ", Describe(op.place), ": ", status.ToString()));
  if (trust_ == SsdTrust::kSound && !absl::IsNotFound(status)) {
    Fail(absl::StrCat("read of ", Describe(op.place), ": ", status.ToString()));
  }
  Block* block = BlockAt(op.place);
  if (block->state == State::kCommitted && block->identity == op.identity &&
      !absl::IsNotFound(status)) {
    Tell({.kind = SsdEventKind::kLost, .place = op.place});
  }
}

void SsdWorkload::FreeEnded(const Op& op, const absl::Status& status) {
  if (status.ok()) {
    if (freed_.size() < 16) freed_.push_back(op.identity);
    return Tell({.kind = SsdEventKind::kFreed, .place = op.place});
  }
  ++stats_.failed_ops;
  Tell({.kind = SsdEventKind::kLost, .place = op.place});
  if (trust_ == SsdTrust::kSound) Fail(absl::StrCat("free: ", status.ToString()));
}

void SsdWorkload::RaiseEnded(const Op& op, const absl::Status& status) {
  if (status.ok()) {
    return Tell(
        {.kind = SsdEventKind::kRaised, .number = static_cast<uint32_t>(op.ns), .epoch = op.epoch});
  }
  ++stats_.failed_ops;
  if (trust_ == SsdTrust::kSound) Fail(absl::StrCat("epoch: ", status.ToString()));
}

}  // namespace flexkv
