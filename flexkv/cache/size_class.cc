#include "flexkv/cache/size_class.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv {

SizeClass::SizeClass(std::vector<uint64_t> shard_bytes, GroupGeometry geometry,
                     std::unique_ptr<EvictionPolicy> policy, SegmentStore* segments)
    : shard_bytes_(std::move(shard_bytes)),
      geometry_(std::move(geometry)),
      segments_(segments),
      slots_({.slots_per_group = geometry_.slots_per_group,
              .max_groups = geometry_.max_groups,
              .tier = Tier::kCpu}) {
  RadixTree::Options options;
  options.max_slots = geometry_.slots_per_group * geometry_.max_groups;
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
  const size_t slots_needed = groups_.size() * geometry_.slots_per_group;
  if (owner_.size() < slots_needed) owner_.resize(slots_needed);
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
    if (!tree_->Contains(slot) || tree_->SubtreeInUse(slot)) continue;
    freed_.clear();
    tree_->Erase(slot, &freed_);
    for (SlotId gone : freed_) drained_.push_back(owner_[gone.index()]);
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
  const uint32_t group = slot.index() / geometry_.slots_per_group;
  const uint32_t within = slot.index() % geometry_.slots_per_group;
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
                               std::span<const SlotId> slots) {
  if (absl::Status status = tree_->InsertPending(ns, chain, first, slots); !status.ok())
    return status;
  for (SlotId slot : slots) owner_[slot.index()] = ns;
  blocks_of_[ns] += slots.size();
  return absl::OkStatus();
}

// The blocks in `freed` left the tree: residency's references drop.
void SizeClass::Forget(std::span<const SlotId> freed) {
  for (SlotId slot : freed) {
    auto count = blocks_of_.find(owner_[slot.index()]);
    if (count != blocks_of_.end()) --count->second;
    slots_.Unref(slot);
  }
}

uint32_t SizeClass::Erase(SlotId slot) {
  freed_.clear();
  tree_->Erase(slot, &freed_);
  Forget(freed_);
  return static_cast<uint32_t>(freed_.size());
}

bool SizeClass::EvictOne(NamespaceId* ns) {
  const SlotId slot = tree_->EvictOne(Tier::kCpu);
  if (!slot.valid()) return false;
  *ns = owner_[slot.index()];
  Forget(std::span(&slot, 1));
  return true;
}

void SizeClass::AddNamespace(NamespaceId ns) {
  tree_->AddNamespace(ns);
  blocks_of_[ns] = 0;
}

void SizeClass::DropNamespace(NamespaceId ns) {
  freed_.clear();
  tree_->DropNamespace(ns, &freed_);
  Forget(freed_);
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
  uint64_t resident = 0;
  uint64_t used = 0;
  absl::flat_hash_map<NamespaceId, uint64_t> blocks_of;
  for (uint32_t i = 0; i < owner_.size(); ++i) {
    const SlotId slot = SlotId::Make(Tier::kCpu, i);
    const bool in_tree = tree_->Contains(slot);
    const uint32_t expected = (in_tree ? 1 : 0) + (i < op_refs.size() ? op_refs[i] : 0);
    if (expected > 0 && !slots_.HasGroup(i / geometry_.slots_per_group)) {
      return absl::InternalError(absl::StrCat("slot ", i, " is used but its group is gone"));
    }
    const uint32_t count =
        slots_.HasGroup(i / geometry_.slots_per_group) ? slots_.RefCount(slot) : 0;
    if (count != expected) {
      return absl::InternalError(
          absl::StrCat("slot ", i, " has ", count, " references, expected ", expected));
    }
    resident += in_tree ? 1 : 0;
    used += expected > 0 ? 1 : 0;
    if (in_tree) ++blocks_of[owner_[i]];
  }
  if (resident != tree_->stats().blocks)
    return absl::InternalError("tree holds blocks outside the slot table");
  if (used != slots_.used()) return absl::InternalError("used slots do not add up");
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

}  // namespace flexkv
