#include "flexkv/cache/planner.h"

#include <algorithm>

#include "flexkv/base/ids.h"
#include "flexkv/base/units.h"
#include "flexkv/storage/segment_store.h"

namespace flexkv {
namespace {

constexpr uint64_t kMaxBytes = 1ull << 56;  // keeps every sum below far away from overflow

// Sum of the strides; nullopt when a size is zero or absurd.
std::optional<uint64_t> Strides(std::span<const uint64_t> shard_bytes, bool whole_pages,
                                std::vector<uint64_t>* strides) {
  uint64_t sum = 0;
  for (uint64_t bytes : shard_bytes) {
    if (bytes == 0 || bytes > kMaxBytes / 1024) return std::nullopt;
    strides->push_back(ShardStride(bytes, whole_pages));
    sum += strides->back();
    if (sum > kMaxBytes) return std::nullopt;
  }
  if (sum == 0) return std::nullopt;
  return sum;
}

uint64_t AlignedBytes(const std::vector<uint64_t>& strides, uint64_t slots) {
  uint64_t sum = 0;
  for (uint64_t stride : strides) sum += RoundUp(slots * stride, kSegmentAlign);
  return sum;
}

// Most slots whose aligned segments fit `target`; 0 when none does.
uint64_t AlignedSlots(const std::vector<uint64_t>& strides, uint64_t target) {
  uint64_t low = 0;
  uint64_t high = target / strides[0];
  while (low < high) {
    const uint64_t middle = low + (high - low + 1) / 2;
    if (AlignedBytes(strides, middle) <= target) {
      low = middle;
    } else {
      high = middle - 1;
    }
  }
  return low;
}

uint64_t GroupTarget(uint64_t segment_bytes, uint64_t budget_bytes) {
  const uint64_t wanted = std::max<uint64_t>(1, segment_bytes);
  const uint64_t groups = std::max<uint64_t>(kMinGroups, (budget_bytes + wanted - 1) / wanted);
  return budget_bytes / groups;
}

uint64_t FairShare(std::span<const ClassShare> classes, uint64_t budget_bytes) {
  uint64_t sharing = 0;
  for (const ClassShare& c : classes) sharing += c.entitled || c.waiting ? 1 : 0;
  return budget_bytes / std::max<uint64_t>(1, sharing);
}

uint64_t ShareOf(const ClassShare& c, uint64_t fair_share) {
  return c.entitled || c.waiting ? fair_share : 0;
}

uint64_t UsedBytes(std::span<const ClassShare> classes) {
  uint64_t used = 0;
  for (const ClassShare& c : classes) used += c.bytes;
  return used;
}

// One group is everybody's due, whatever its size.
bool BelowShare(const ClassShare& c, uint64_t fair_share) {
  return c.bytes == 0 || c.bytes + c.group_bytes <= ShareOf(c, fair_share);
}

}  // namespace

uint64_t ShardStride(uint64_t shard_bytes, bool whole_pages) {
  return RoundUp(shard_bytes, whole_pages || shard_bytes >= 4096 ? 4096 : 64);
}

std::optional<GroupGeometry> PlanGeometry(std::span<const uint64_t> shard_bytes,
                                          uint64_t segment_bytes, uint64_t budget_bytes,
                                          bool whole_pages) {
  GroupGeometry geometry;
  budget_bytes = std::min(budget_bytes, kMaxBytes);
  const std::optional<uint64_t> block = Strides(shard_bytes, whole_pages, &geometry.strides);
  if (!block.has_value() || *block > budget_bytes) return std::nullopt;
  const uint64_t target = std::max(GroupTarget(segment_bytes, budget_bytes), *block);
  uint64_t slots = AlignedSlots(geometry.strides, target);
  const bool aligned = slots > 0;
  if (!aligned) slots = std::max<uint64_t>(1, target / *block);
  slots = std::min<uint64_t>(slots, SlotId::kMaxIndex);
  geometry.slots_per_group = static_cast<uint32_t>(slots);
  for (uint64_t stride : geometry.strides) {
    geometry.segment_bytes.push_back(RoundUp(slots * stride, kSegmentAlign));
  }
  geometry.group_bytes = aligned ? AlignedBytes(geometry.strides, slots) : slots * *block;
  const uint64_t groups =
      std::min<uint64_t>(budget_bytes / geometry.group_bytes, SlotId::kMaxIndex / slots);
  geometry.max_groups = static_cast<uint32_t>(groups);
  return geometry;
}

std::optional<uint64_t> BudgetForBlocks(std::span<const uint64_t> shard_bytes,
                                        uint64_t segment_bytes, uint64_t num_blocks,
                                        bool whole_pages) {
  std::vector<uint64_t> strides;
  const std::optional<uint64_t> block = Strides(shard_bytes, whole_pages, &strides);
  if (!block.has_value() || num_blocks == 0 || num_blocks > kMaxBytes / 2 / *block)
    return std::nullopt;
  uint64_t budget = num_blocks * *block;
  // Cutting loses a little at the end of each segment: grow until all blocks fit.
  for (int round = 0; round < 64; ++round) {
    const std::optional<GroupGeometry> cut =
        PlanGeometry(shard_bytes, segment_bytes, budget, whole_pages);
    if (!cut.has_value()) return std::nullopt;
    if (uint64_t{cut->max_groups} * cut->slots_per_group >= num_blocks) return budget;
    const uint64_t groups = (num_blocks + cut->slots_per_group - 1) / cut->slots_per_group;
    budget = std::max(budget + *block, groups * cut->group_bytes);
  }
  return budget;
}

PutPlan PlanPut(const PutOffer& offer, const PutRoom& room) {
  PutPlan plan;
  if (offer.present < offer.first) {
    plan.verdict = PutVerdict::kParentMissing;
    return plan;
  }
  plan.held = std::min(offer.present - offer.first, offer.count);
  plan.start = offer.first + plan.held;
  const uint32_t remaining = offer.count - plan.held;
  if (remaining == 0) return plan;
  if (room.busy) {
    plan.verdict = PutVerdict::kBusy;
    return plan;
  }
  plan.verdict = PutVerdict::kCopy;
  plan.wanted = remaining;
  if (remaining <= room.free_slots) return plan;
  const uint64_t missing = remaining - room.free_slots;
  const uint64_t per_group = std::max<uint32_t>(1, room.slots_per_group);
  plan.new_groups = static_cast<uint32_t>(
      std::min<uint64_t>(room.addable_groups, (missing + per_group - 1) / per_group));
  const uint64_t added = uint64_t{plan.new_groups} * per_group;
  if (missing > added) plan.evictions = static_cast<uint32_t>(missing - added);
  return plan;
}

uint32_t RankOfStore(uint64_t key, uint32_t world_size) {
  const uint64_t mixed =
      (key * 0x9e3779b97f4a7c15ull) >> 32;  // the upper half depends on all of it
  return static_cast<uint32_t>((mixed * world_size) >> 32);
}

bool RangeInLease(uint32_t first, uint32_t count, uint32_t leased) {
  return count > 0 && uint64_t{first} + count <= leased;
}

bool MayGrow(std::span<const ClassShare> classes, size_t index, uint64_t budget_bytes) {
  const uint64_t fair_share = FairShare(classes, budget_bytes);
  const ClassShare& own = classes[index];
  const uint64_t used = UsedBytes(classes);
  if (used + own.group_bytes > budget_bytes) return false;
  if (BelowShare(own, fair_share)) return true;
  for (size_t i = 0; i < classes.size(); ++i) {
    const ClassShare& other = classes[i];
    if (i == index || !other.waiting || !BelowShare(other, fair_share)) continue;
    if (used + own.group_bytes + other.group_bytes > budget_bytes) return false;
  }
  return true;
}

std::optional<size_t> PlanDonor(std::span<const ClassShare> classes, size_t needy,
                                uint64_t budget_bytes) {
  const uint64_t fair_share = FairShare(classes, budget_bytes);
  const ClassShare& own = classes[needy];
  if (!BelowShare(own, fair_share)) return std::nullopt;
  if (UsedBytes(classes) + own.group_bytes <= budget_bytes) return std::nullopt;
  const auto above_share = [&](const ClassShare& c) { return c.bytes > ShareOf(c, fair_share); };
  const bool somebody_above = std::any_of(classes.begin(), classes.end(), above_share);
  std::optional<size_t> donor;
  uint64_t most = 0;
  for (size_t i = 0; i < classes.size(); ++i) {
    // A class with nothing at all may push others below their share: its one group may be larger
    // than a share.
    const uint64_t share = !somebody_above && own.bytes == 0 ? 0 : ShareOf(classes[i], fair_share);
    if (i == needy || classes[i].bytes <= share) continue;
    const uint64_t excess = classes[i].bytes - share;
    if (excess <= most) continue;
    most = excess;
    donor = i;
  }
  return donor;
}

uint64_t PlanEvictAhead(uint64_t used, uint64_t capacity, bool can_grow, double start_ratio,
                        double evict_ratio) {
  if (can_grow || evict_ratio <= 0 || capacity == 0) return 0;
  if (static_cast<double>(used) <= static_cast<double>(capacity) * start_ratio) return 0;
  return static_cast<uint64_t>(static_cast<double>(capacity) * std::min(evict_ratio, 1.0));
}

}  // namespace flexkv
