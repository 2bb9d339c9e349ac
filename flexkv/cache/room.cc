// Slots for puts, memory between size classes, and what a tick does.
//
// A put takes free slots, then a new group out of the budget, then slots of blocks that give way in
// its own class. A class that had to evict (or got nothing) while below its fair share is
// *waiting*: the class furthest above its share empties a group for it, a bounded piece of work per
// call, while leases and copies in it run out. Classes at their share leave freed budget to those
// waiting.
#include <algorithm>

#include "flexkv/cache/manager_state.h"

namespace flexkv {

std::vector<ClassShare> CacheManager::Impl::Shares() const {
  std::vector<ClassShare> shares;
  shares.reserve(classes.size());
  for (const auto& c : classes) {
    shares.push_back(ClassShare{.bytes = c->store->bytes_held(),
                                .group_bytes = c->store->geometry().group_bytes,
                                .entitled = c->engines > 0,
                                .waiting = c->engines > 0 && now < c->waiting_until});
  }
  return shares;
}

size_t CacheManager::Impl::IndexOf(const ClassState* size_class) const {
  size_t index = 0;
  while (classes[index].get() != size_class) ++index;
  return index;
}

// How many groups, up to `most`, the unused budget and the others' claims leave to this class.
uint32_t CacheManager::Impl::AddableGroups(ClassState* size_class, uint32_t most) const {
  const uint32_t left = std::min(
      most, size_class->store->geometry().max_groups - size_class->store->slots().num_groups());
  if (left == 0 || now < size_class->no_memory_until) return 0;
  std::vector<ClassShare> shares = Shares();
  const size_t own = IndexOf(size_class);
  uint32_t groups = 0;
  while (groups < left && MayGrow(shares, own, budget_bytes)) {
    ++groups;
    shares[own].bytes += shares[own].group_bytes;
  }
  return groups;
}

bool CacheManager::Impl::Grow(ClassState* size_class) {
  if (AddableGroups(size_class, 1) == 0) return false;
  if (!size_class->store->AddGroup().ok()) {
    size_class->no_memory_until = now + kNoMemoryNs;
    return false;
  }
  size_class->waiting_until = 0;
  return true;
}

// `reuse` as in SizeClass::EvictOne.
bool CacheManager::Impl::Evict(ClassState* size_class, SlotId* reuse) {
  SizeClass& store = *size_class->store;
  // With every block on its way to an SSD, one that is there is the cheaper loss.
  const bool keep_copies = options.ssd.admission == SsdAdmission::kSecondTouch;
  NamespaceId owner = 0;
  bool evicted = store.EvictOne(keep_copies, &owner, reuse);
  // Blocks that are only in memory may all have descendants on an SSD: those go first then. But not
  // while memory is only held by writes that will end: what is on disk would be lost in vain.
  const bool stuck = ssd.write_bytes_in_flight == 0 && store.resident(Tier::kCpu) > 0;
  for (uint32_t i = 0; stuck && !evicted && i < kSsdBlocksForOne; ++i) {
    if (!store.EvictFromSsd(&owner)) break;
    Count(NamespaceById(owner), &CacheCounters::ssd_evicted_blocks, 1);
    evicted = store.EvictOne(keep_copies, &owner, reuse);
  }
  if (evicted && owner != 0) Count(NamespaceById(owner), &CacheCounters::evicted_blocks, 1);
  return evicted;
}

// A CPU slot for a block that comes from an SSD. `ahead`: nothing but copies may give way.
bool CacheManager::Impl::AllocateForRead(ClassState* size_class, bool ahead, SlotId* slot) {
  constexpr int kTries = 8;  // what gives way may be under a copy still
  SizeClass& store = *size_class->store;
  for (int i = 0; i < kTries; ++i) {
    if (std::optional<SlotId> free = store.slots().Allocate(); free.has_value()) {
      *slot = *free;
      return true;
    }
    if (Grow(size_class)) continue;
    if (!(ahead ? store.DropOneCopy() : Evict(size_class))) return false;
  }
  return false;
}

// Moves a group nearer to `needy`, if it has a right to one. True when it may grow now.
bool CacheManager::Impl::Reclaim(ClassState* needy) {
  const size_t index = IndexOf(needy);
  const std::optional<size_t> donor = PlanDonor(Shares(), index, budget_bytes);
  if (!donor.has_value()) return false;
  SizeClass& store = *classes[*donor]->store;
  if (!store.StartDraining()) return false;
  store.ContinueDraining(kDrainSlotsPerCall);
  for (NamespaceId owner : store.TakeDrained())
    Count(NamespaceById(owner), &CacheCounters::evicted_blocks, 1);
  return AddableGroups(needy, 1) > 0;
}

void CacheManager::Impl::AllocateSlots(ClassState* size_class, const PutPlan& plan,
                                       std::vector<SlotId>* slots) {
  SlotTable& table = size_class->store->slots();
  slots->reserve(plan.wanted);
  // A group that cannot be had (no memory) is made up for by eviction, so the plan's numbers are
  // upper bounds.
  uint32_t new_groups = plan.new_groups;
  uint32_t evictions = plan.wanted;
  bool short_of_room = false;
  while (slots->size() < plan.wanted) {
    if (std::optional<SlotId> slot = table.Allocate(); slot.has_value()) {
      slots->push_back(*slot);
      continue;
    }
    if (new_groups > 0) {
      new_groups = Grow(size_class) ? new_groups - 1 : 0;
      continue;
    }
    if (!short_of_room && classes.size() > 1) {
      short_of_room = true;
      size_class->waiting_until = now + kWaitingNs;
      if (Reclaim(size_class)) new_groups = 1;
      continue;
    }
    SlotId reuse;
    if (evictions == 0 || !Evict(size_class, &reuse)) break;
    --evictions;
    if (reuse.valid()) slots->push_back(reuse);
  }
}

// Near full, blocks give way before a put has to wait for it. The class must be as large as it can
// get.
void CacheManager::Impl::EvictAhead(ClassState* size_class) {
  const SlotTable& table = size_class->store->slots();
  const double start = options.evict_start_ratio;
  if (PlanEvictAhead(table.used(), table.capacity(), false, start, options.evict_ratio) == 0)
    return;
  const bool can_grow = AddableGroups(size_class, 1) > 0;
  uint64_t count =
      PlanEvictAhead(table.used(), table.capacity(), can_grow, start, options.evict_ratio);
  count = std::min(count, kEvictAheadPerTick);
  for (uint64_t i = 0; i < count; ++i) {
    if (!Evict(size_class)) break;
  }
}

// Goes on emptying groups for those waiting; when nobody is, half-emptied groups are used again.
void CacheManager::Impl::BalanceClasses() {
  if (classes.size() < 2) return;
  bool somebody_waits = false;
  for (const auto& c : classes) {
    if (now >= c->waiting_until || c->engines == 0) continue;
    somebody_waits = true;
    Reclaim(c.get());
  }
  if (somebody_waits) return;
  for (const auto& c : classes) c->store->StopDraining();
}

void CacheManager::Impl::Housekeeping() {
  if (now < next_housekeeping) return;
  next_housekeeping = now + kHousekeepingNs;
  const bool somebody_waits = std::any_of(classes.begin(), classes.end(), [&](const auto& c) {
    return c->engines > 0 && now < c->waiting_until;
  });
  const TimeNs keep_ns = somebody_waits ? 0 : options.empty_group_keep_ns;
  const TimeNs cutoff = now > keep_ns ? now - keep_ns : 0;
  for (const auto& c : classes) c->store->GiveBackEmpty(now, cutoff, c->engines > 0 ? 1 : 0);
  CollectGarbage();
}

}  // namespace flexkv
