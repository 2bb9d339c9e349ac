// Decisions of the cache manager as pure functions: from what is offered, what is here and what
// room there is, to a plan. No state, no I/O; a table of cases tests them
// (tests/cache/planner_test.cc).
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

namespace flexkv {

// --- geometry ------------------------------------------------------------------------------------

// How the arena of one size class is cut. Every rank has one segment per group.
struct GroupGeometry {
  std::vector<uint64_t> strides;        // per rank: bytes from shard to shard
  std::vector<uint64_t> segment_bytes;  // per rank: what is asked of the SegmentStore (aligned)
  uint32_t slots_per_group = 0;
  uint64_t group_bytes = 0;  // what one group costs of the budget
  uint32_t max_groups = 0;   // groups that fit the whole budget

  friend bool operator==(const GroupGeometry&, const GroupGeometry&) = default;
};

// Shards of 4 KiB or more start on a page, smaller ones on a cache line; with `whole_pages` all on
// a page, as direct I/O wants it.
uint64_t ShardStride(uint64_t shard_bytes, bool whole_pages = false);

// Cuts `budget_bytes` into groups of about `segment_bytes`, but at least kMinGroups of them where a
// slot allows it, so that memory can move between size classes piece by piece. nullopt: not even
// one slot fits, or the sizes overflow. A group too small to fill one aligned segment per rank
// costs only its slots' bytes.
inline constexpr uint32_t kMinGroups = 8;
std::optional<GroupGeometry> PlanGeometry(std::span<const uint64_t> shard_bytes,
                                          uint64_t segment_bytes, uint64_t budget_bytes,
                                          bool whole_pages = false);

// The budget in bytes that holds `num_blocks` blocks of this layout; nullopt on overflow.
std::optional<uint64_t> BudgetForBlocks(std::span<const uint64_t> shard_bytes,
                                        uint64_t segment_bytes, uint64_t num_blocks,
                                        bool whole_pages = false);

// --- put and load --------------------------------------------------------------------------------

struct PutOffer {
  uint32_t first = 0;  // blocks [first, first + count) of the chain are offered
  uint32_t count = 0;
  uint32_t present = 0;  // blocks of the chain in the tree, pending ones included
};

struct PutRoom {
  uint64_t free_slots = 0;
  uint32_t addable_groups = 0;  // groups the budget still allows this class
  uint32_t slots_per_group = 0;
  bool busy = false;  // too much in flight (or told to refuse)
};

enum class PutVerdict : uint8_t { kCopy, kNothingNew, kParentMissing, kBusy };

struct PutPlan {
  PutVerdict verdict = PutVerdict::kNothingNew;
  uint32_t held = 0;        // of the offered blocks, already here or arriving
  uint32_t start = 0;       // first block to copy
  uint32_t wanted = 0;      // blocks to copy when there is room for all
  uint32_t new_groups = 0;  // groups to add
  uint32_t evictions = 0;   // slots that must come from blocks that give way
};
PutPlan PlanPut(const PutOffer& offer, const PutRoom& room);

// Which rank copies a put down when all ranks hold the same bytes. By key, not always the first:
// every GPU has a link of its own to the host, and the slowest rank sets the pace of all, so the
// puts of an engine take turns. Mixed, since one counter numbers loads and puts: plain `key %
// world_size` would meet the same ranks again and again when both alternate.
uint32_t RankOfStore(uint64_t key, uint32_t world_size);

// Whether blocks [first, first + count) lie inside a lease of `leased` blocks.
bool RangeInLease(uint32_t first, uint32_t count, uint32_t leased);

// --- memory between size classes -----------------------------------------------------------------

struct ClassShare {
  uint64_t bytes = 0;  // budget it holds now
  uint64_t group_bytes = 0;
  bool entitled = false;  // has engines attached
  bool waiting = false;   // was short of room a moment ago
};

// Whether class `index` may take another group out of the unused budget: not when it is at its fair
// share and another class below its own is waiting.
bool MayGrow(std::span<const ClassShare> classes, size_t index, uint64_t budget_bytes);
// The class that must give a group back so that `needy` gets nearer to its fair share; nullopt when
// `needy` has its share, when the unused budget is enough for it, or when nobody is above the own
// share.
std::optional<size_t> PlanDonor(std::span<const ClassShare> classes, size_t needy,
                                uint64_t budget_bytes);

// How many blocks to evict ahead in this tick. Zero while the class can still grow.
uint64_t PlanEvictAhead(uint64_t used, uint64_t capacity, bool can_grow, double start_ratio,
                        double evict_ratio);

}  // namespace flexkv
