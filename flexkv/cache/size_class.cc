#include "flexkv/cache/size_class.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv {

SizeClass::SizeClass(std::vector<uint64_t> shard_bytes, GroupGeometry geometry,
                     std::optional<SsdSlots::Options> ssd, std::unique_ptr<EvictionPolicy> policy,
                     SegmentStore* segments)
    : shard_bytes_(std::move(shard_bytes)),
      geometry_(std::move(geometry)),
      slots_per_group_(geometry_.slots_per_group),
      segments_(segments),
      slots_({.slots_per_group = geometry_.slots_per_group,
              .max_groups = geometry_.max_groups,
              .tier = Tier::kCpu}) {
  RadixTree::Options options;
  options.max_slots = geometry_.slots_per_group * geometry_.max_groups;
  if (ssd.has_value()) {
    ssd_ = std::make_unique<SsdSlots>(*ssd);
    // The bound of each tier's indexes, and of all blocks together.
    options.max_slots = static_cast<uint32_t>(
        std::min<uint64_t>(uint64_t{options.max_slots} + ssd_->index_bound(), SlotId::kMaxIndex));
  }
  options.policy = std::move(policy);
  tree_ = std::make_unique<RadixTree>(std::move(options));
  for (uint64_t bytes : shard_bytes_) block_bytes_ += bytes;
}

SizeClass::~SizeClass() {
  for (const Group& group : groups_) {
    for (SegmentId segment : group.segments) segments_->Destroy(segment);
  }
}

absl::Status SizeClass::AddGroup() {
  if (slots_.num_groups() >= geometry_.max_groups)
    return absl::ResourceExhaustedError("no more groups");
  Group group;
  for (uint64_t bytes : geometry_.segment_bytes) {
    absl::StatusOr<SegmentId> segment = segments_->Create(bytes);
    if (!segment.ok()) {
      for (SegmentId made : group.segments) segments_->Destroy(made);
      return segment.status();
    }
    group.segments.push_back(*segment);
  }
  absl::StatusOr<uint32_t> position = slots_.AddGroup();
  if (!position.ok()) {
    for (SegmentId made : group.segments) segments_->Destroy(made);
    return position.status();
  }
  if (groups_.size() <= *position) groups_.resize(*position + 1);
  groups_[*position] = std::move(group);
  ++version_;
  return absl::OkStatus();
}

void SizeClass::DestroyGroup(uint32_t position) {
  for (SegmentId segment : groups_[position].segments) segments_->Destroy(segment);
  groups_[position] = Group{};
  ++version_;
}

bool SizeClass::IsDraining(uint32_t group) const {
  return std::any_of(drains_.begin(), drains_.end(),
                     [&](const Drain& drain) { return drain.group == group; });
}

bool SizeClass::StartDraining() {
  const bool all_held_up =
      std::all_of(drains_.begin(), drains_.end(), [](const Drain& drain) { return drain.held_up; });
  if (!all_held_up || drains_.size() >= kMaxDrains) return true;
  uint32_t emptiest = kNoGroup;
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (!slots_.HasGroup(i) || IsDraining(i)) continue;
    if (emptiest == kNoGroup || slots_.GroupUsed(i) < slots_.GroupUsed(emptiest)) emptiest = i;
  }
  if (emptiest == kNoGroup) return !drains_.empty();
  slots_.CloseGroup(emptiest);
  drains_.push_back(Drain{.group = emptiest});
  return true;
}

void SizeClass::StopDraining() {
  for (const Drain& drain : drains_) slots_.ReopenGroup(drain.group);
  drains_.clear();
}

void SizeClass::ContinueDrain(Drain* drain, uint32_t budget) {
  const uint32_t base = drain->group * geometry_.slots_per_group;
  for (uint32_t looked = 0; looked < std::min(budget, geometry_.slots_per_group); ++looked) {
    if (slots_.GroupUsed(drain->group) == 0) return;
    const SlotId slot = SlotId::Make(Tier::kCpu, base + drain->cursor);
    drain->cursor = (drain->cursor + 1) % geometry_.slots_per_group;
    drain->held_up |= drain->cursor == 0;
    if (copies_.Contains(slot.index())) {
      DropCopy(copies_.HandleOf(slot.index()));
      continue;
    }
    if (!tree_->Contains(slot) || tree_->SubtreeInUse(slot)) continue;
    freed_.clear();
    tree_->Erase(slot, &freed_);
    for (SlotId gone : freed_) drained_.push_back(OwnerAt(gone));
    Forget(freed_);
  }
}

bool SizeClass::ContinueDraining(uint32_t budget) {
  bool gave_back = false;
  for (size_t i = 0; i < drains_.size();) {
    ContinueDrain(&drains_[i], budget);
    const uint32_t group = drains_[i].group;
    if (!slots_.RemoveGroup(group).ok()) {
      ++i;
      continue;
    }
    DestroyGroup(group);
    drains_.erase(drains_.begin() + static_cast<std::ptrdiff_t>(i));
    gave_back = true;
  }
  return gave_back;
}

bool SizeClass::GiveBackEmpty(TimeNs now, TimeNs cutoff, uint32_t keep) {
  uint32_t empty = 0;
  uint32_t oldest = kNoGroup;
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    Group& group = groups_[i];
    if (!slots_.HasGroup(i) || IsDraining(i)) continue;
    if (slots_.GroupUsed(i) > 0) {
      group.empty_since = 0;
      continue;
    }
    ++empty;
    if (group.empty_since == 0) group.empty_since = now;
    if (oldest == kNoGroup || group.empty_since < groups_[oldest].empty_since) oldest = i;
  }
  if (empty <= keep || groups_[oldest].empty_since > cutoff) return false;
  if (!slots_.RemoveGroup(oldest).ok()) return false;
  DestroyGroup(oldest);
  return true;
}

ArenaPlace SizeClass::PlaceOf(SlotId slot, uint32_t rank, uint32_t engine_index) const {
  const uint32_t group = slots_per_group_.Quotient(slot.index());
  const uint32_t within = slot.index() - group * geometry_.slots_per_group;
  return ArenaPlace{.segment = groups_[group].segments[rank],
                    .engine_index = engine_index,
                    .offset_bytes = within * geometry_.strides[rank]};
}

void SizeClass::SegmentsOf(uint32_t rank, std::vector<SegmentId>* segments) const {
  segments->clear();
  for (const Group& group : groups_) {
    if (rank < group.segments.size()) segments->push_back(group.segments[rank]);
  }
  std::sort(segments->begin(), segments->end());
}

absl::Status SizeClass::Insert(NamespaceId ns, std::span<const BlockHash> chain, uint32_t first,
                               std::span<const SlotId> slots, const BlockAccess& access) {
  if (absl::Status status = tree_->InsertPending(ns, chain, first, slots, access); !status.ok())
    return status;
  for (SlotId slot : slots) {
    SetOwner(slot, ns);
    ++resident_[static_cast<size_t>(slot.tier())];
  }
  if (uint64_t* count = CountOf(ns); count != nullptr) *count += slots.size();
  NoteCapacity();
  return absl::OkStatus();
}

// A copy takes a slot away from blocks of its own.
void SizeClass::NoteCapacity() {
  const uint64_t ssd_slots = ssd_ == nullptr ? 0 : ssd_->capacity();
  tree_->NoteCapacity(resident_[0] + resident_[1], slots_.capacity() + ssd_slots - copies_.size());
}

void SizeClass::SetOwner(SlotId handle, NamespaceId ns) {
  std::vector<NamespaceId>& owners = owner_[static_cast<size_t>(handle.tier())];
  if (owners.size() <= handle.index()) owners.resize(handle.index() + 1u);
  owners[handle.index()] = ns;
}

// nullptr: not one of ours.
uint64_t* SizeClass::CountOf(NamespaceId ns) {
  if (counted_ != nullptr && counted_ns_ == ns) return counted_;
  const auto found = blocks_of_.find(ns);
  if (found == blocks_of_.end()) return nullptr;
  counted_ns_ = ns;
  counted_ = &found->second;
  return counted_;
}

void SizeClass::NoteGone(SlotId slot) {
  if (uint64_t* count = CountOf(OwnerAt(slot)); count != nullptr) --*count;
  --resident_[static_cast<size_t>(slot.tier())];
}

// The blocks in `freed` left the tree: residency's references drop, and copies with them.
void SizeClass::Forget(std::span<const SlotId> freed) {
  for (SlotId slot : freed) {
    NoteGone(slot);
    if (slot.tier() == Tier::kCpu) {
      slots_.Unref(slot);
      continue;
    }
    if (InMemory(slot).valid()) DropCopy(slot);
    left_.push_back(slot);
  }
}

uint32_t SizeClass::Erase(SlotId slot) {
  freed_.clear();
  tree_->Erase(slot, &freed_);
  Forget(freed_);
  return static_cast<uint32_t>(freed_.size());
}

bool SizeClass::EvictOne(bool keep_copies, NamespaceId* ns, SlotId* reuse) {
  *ns = 0;
  if (reuse != nullptr) *reuse = kNoSlot;
  if (copies_.size() > 0) {
    const std::optional<uint64_t> leaf =
        keep_copies ? tree_->LowestScore(Tier::kCpu) : std::nullopt;
    const bool leaf_is_older = leaf.has_value() && *leaf < copies_.ScoreOf(copies_.first());
    if (!leaf_is_older && DropOneCopy()) return true;
  }
  const SlotId slot = tree_->EvictOne(Tier::kCpu);
  if (!slot.valid()) return false;
  *ns = OwnerAt(slot);
  if (reuse != nullptr && slots_.MayChangeHands(slot)) {
    NoteGone(slot);
    *reuse = slot;
    return true;
  }
  Forget(std::span(&slot, 1));
  return true;
}

// A copy whose block was looked up since it was put into the list has another turn; so has one that
// a transfer uses: dropping it would free no memory.
bool SizeClass::DropOneCopy() {
  constexpr int kTurns = 16;
  for (int turn = 0; turn < kTurns && copies_.size() > 0; ++turn) {
    const uint32_t cpu = copies_.first();
    const SlotId handle = copies_.HandleOf(cpu);
    const uint64_t score = tree_->ScoreOf(handle);
    const bool in_use = slots_.RefCount(SlotId::Make(Tier::kCpu, cpu)) > 1;
    if (!in_use && (score <= copies_.ScoreOf(cpu) || turn + 1 == kTurns)) {
      DropCopy(handle);
      return true;
    }
    copies_.MoveToEnd(cpu, score);
  }
  return false;
}

bool SizeClass::EvictFromSsd(NamespaceId* ns) {
  const SlotId slot = tree_->EvictOne(Tier::kSsd);
  if (!slot.valid()) return false;
  *ns = OwnerAt(slot);
  Forget(std::span(&slot, 1));
  return true;
}

// --- the SSD tier --------------------------------------------------------------------------------

void SizeClass::MoveToSsd(SlotId cpu, SlotId ssd) {
  const NamespaceId ns = OwnerAt(cpu);
  tree_->Rename(cpu, ssd);
  SetOwner(ssd, ns);
  --resident_[static_cast<size_t>(Tier::kCpu)];
  ++resident_[static_cast<size_t>(Tier::kSsd)];
  AddCopy(ssd, cpu);
}

SlotId SizeClass::InMemory(SlotId handle) const {
  if (handle.tier() == Tier::kCpu) return handle;
  const uint32_t cpu = handle.index() < copy_of_.size() ? copy_of_[handle.index()] : kNoCopy;
  return cpu == kNoCopy ? kNoSlot : SlotId::Make(Tier::kCpu, cpu);
}

void SizeClass::AddCopy(SlotId ssd, SlotId cpu) {
  if (copy_of_.size() <= ssd.index()) copy_of_.resize(ssd.index() + 1u, kNoCopy);
  copy_of_[ssd.index()] = cpu.index();
  copies_.Add(cpu.index(), ssd, tree_->ScoreOf(ssd));
}

void SizeClass::TouchCopy(SlotId ssd) {
  copies_.MoveToEnd(copy_of_[ssd.index()], tree_->ScoreOf(ssd));
}

void SizeClass::DropCopy(SlotId ssd) {
  const uint32_t cpu = std::exchange(copy_of_[ssd.index()], kNoCopy);
  copies_.Remove(cpu);
  slots_.Unref(SlotId::Make(Tier::kCpu, cpu));
}

std::vector<SlotId> SizeClass::TakeLeft() { return std::exchange(left_, {}); }

uint32_t SizeClass::DrainSsdGroup(uint32_t group, uint32_t budget, uint32_t* cursor) {
  const uint32_t slots = ssd_->GroupSlots(group);
  uint32_t gone = 0;
  for (uint32_t looked = 0; looked < std::min(budget, slots); ++looked) {
    const SlotId slot = ssd_->SlotAt(group, *cursor);
    *cursor = (*cursor + 1) % slots;
    if (tree_->Contains(slot) && !tree_->SubtreeInUse(slot)) gone += Erase(slot);
  }
  return gone;
}

void SizeClass::AddNamespace(NamespaceId ns) {
  tree_->AddNamespace(ns);
  counted_ = nullptr;
  blocks_of_[ns] = 0;
}

void SizeClass::DropNamespace(NamespaceId ns) {
  freed_.clear();
  tree_->DropNamespace(ns, &freed_);
  Forget(freed_);
  counted_ = nullptr;
  blocks_of_.erase(ns);
}

uint64_t SizeClass::BlocksOf(NamespaceId ns) const {
  auto it = blocks_of_.find(ns);
  return it == blocks_of_.end() ? 0 : it->second;
}

std::vector<NamespaceId> SizeClass::TakeDrained() { return std::exchange(drained_, {}); }

absl::Status SizeClass::CheckInvariants(const std::vector<uint32_t>& op_refs) const {
  if (absl::Status status = tree_->CheckInvariants(); !status.ok()) return status;
  if (absl::Status status = slots_.CheckInvariants(); !status.ok()) return status;
  if (absl::Status status = CheckCpuSlots(op_refs); !status.ok()) return status;
  if (ssd_ != nullptr) {
    if (absl::Status status = ssd_->CheckInvariants(); !status.ok()) return status;
  }
  if (absl::Status status = CheckCopies(); !status.ok()) return status;
  std::array<uint64_t, 2> resident{};
  absl::flat_hash_map<NamespaceId, uint64_t> blocks_of;
  for (size_t tier = 0; tier < owner_.size(); ++tier) {
    for (uint32_t i = 0; i < owner_[tier].size(); ++i) {
      const SlotId slot = SlotId::Make(static_cast<Tier>(tier), i);
      if (!tree_->Contains(slot)) continue;
      if (slot.tier() == Tier::kSsd && !ssd_->IsUsed(slot))
        return absl::InternalError("the tree holds a free SSD slot");
      ++resident[tier];
      ++blocks_of[owner_[tier][i]];
    }
  }
  if (resident != resident_ || resident[0] + resident[1] != tree_->stats().blocks)
    return absl::InternalError("tree holds blocks outside the slot table");
  for (const auto& [ns, count] : blocks_of_) {
    if (blocks_of[ns] != count)
      return absl::InternalError(absl::StrCat("namespace ", ns, " lost count"));
  }
  for (uint32_t i = 0; i < groups_.size(); ++i) {
    if (slots_.HasGroup(i) != !groups_[i].segments.empty()) {
      return absl::InternalError(absl::StrCat("group ", i, ": segments and slots disagree"));
    }
  }
  return absl::OkStatus();
}

absl::Status SizeClass::CheckCpuSlots(const std::vector<uint32_t>& op_refs) const {
  uint64_t used = 0;
  const auto slots = static_cast<uint32_t>(groups_.size() * geometry_.slots_per_group);
  for (uint32_t i = 0; i < slots; ++i) {
    const SlotId slot = SlotId::Make(Tier::kCpu, i);
    const bool in_tree = tree_->Contains(slot);
    const bool is_copy = copies_.Contains(i);
    if (in_tree && is_copy) return absl::InternalError("a CPU slot is handle and copy");
    const uint32_t expected = (in_tree || is_copy ? 1 : 0) + (i < op_refs.size() ? op_refs[i] : 0);
    const bool present = slots_.HasGroup(i / geometry_.slots_per_group);
    if (expected > 0 && !present)
      return absl::InternalError(absl::StrCat("slot ", i, " is used but its group is gone"));
    const uint32_t count = present ? slots_.RefCount(slot) : 0;
    if (count != expected) {
      return absl::InternalError(
          absl::StrCat("slot ", i, " has ", count, " references, expected ", expected));
    }
    used += expected > 0 ? 1 : 0;
  }
  if (used != slots_.used()) return absl::InternalError("used slots do not add up");
  return absl::OkStatus();
}

absl::Status SizeClass::CheckCopies() const {
  uint64_t copies = 0;
  for (uint32_t i = 0; i < copy_of_.size(); ++i) {
    if (copy_of_[i] == kNoCopy) continue;
    ++copies;
    const SlotId handle = SlotId::Make(Tier::kSsd, i);
    if (!tree_->Contains(handle)) return absl::InternalError("a copy of a block that is gone");
    if (!copies_.Contains(copy_of_[i]) || copies_.HandleOf(copy_of_[i]) != handle)
      return absl::InternalError("a copy is listed wrongly");
  }
  uint64_t listed = 0;
  for (uint32_t cpu = copies_.first(); cpu != CopyList::kNone; cpu = copies_.after(cpu)) ++listed;
  if (copies != copies_.size() || listed != copies)
    return absl::InternalError("copies do not add up");
  return absl::OkStatus();
}

}  // namespace flexkv
