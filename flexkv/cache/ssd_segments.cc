// Segments on the SSD devices.
//
// They are made as they are needed, up to the budget; then blocks give way a little ahead of
// writes. A segment is given back, after the blocks in it were erased, when its device retired it,
// when the budget shrank, or when another size class is due a segment.
#include <algorithm>

#include "flexkv/cache/manager_state.h"
#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv {
namespace {

constexpr uint64_t kMinAhead = 16, kMaxAhead = 4096;  // slots kept free
constexpr uint32_t kDrainSlotsPerTick = 1024;
constexpr TimeNs kSsdWaitingNs = 10 * kNsPerSecond;

}  // namespace

// --- segments that come --------------------------------------------------------------------------

std::vector<bool> CacheManager::Impl::WritableDevices() const {
  std::vector<bool> usable;
  for (const SsdDeviceState& device : ssd.devices) usable.push_back(now >= device.writes.until);
  return usable;
}

uint64_t CacheManager::Impl::SsdBytes() const {
  uint64_t bytes = 0;
  for (const SsdDeviceState& device : ssd.devices) bytes += device.bytes;
  return bytes;
}

uint64_t CacheManager::Impl::SsdSlotsOfAll() const {
  uint64_t slots = ssd.slots_being_made;
  for (const auto& c : classes) {
    if (const SsdSlots* own = c->store->ssd(); own != nullptr) slots += own->all_slots();
  }
  return slots;
}

// Whether the budget allows this class another segment.
bool CacheManager::Impl::MayGrowSsd(ClassState* size_class) const {
  const ClassSsd& plan = size_class->ssd;
  if (plan.shape.slots == 0) return false;
  if (options.ssd.num_blocks > 0 &&
      SsdSlotsOfAll() + plan.shape.slots > std::max<uint64_t>(options.ssd.num_blocks, 1)) {
    return false;
  }
  if (options.ssd.cache_bytes == 0) return true;
  if (classes.size() > 1 && !MayGrow(SsdShares(), IndexOf(size_class), options.ssd.cache_bytes))
    return false;
  const uint64_t per_device = options.ssd.cache_bytes / ssd.devices.size();
  return std::any_of(ssd.devices.begin(), ssd.devices.end(), [&](const SsdDeviceState& device) {
    return device.bytes + plan.segment_file_bytes <= per_device;
  });
}

// Asks the emptiest device that can for a segment. False: none can now.
bool CacheManager::Impl::GrowSsd(ClassState* size_class) {
  if (!MayGrowSsd(size_class)) return false;
  const uint64_t per_device = options.ssd.cache_bytes / ssd.devices.size();
  const uint64_t bytes = size_class->ssd.segment_file_bytes;
  SsdDeviceState* best = nullptr;
  for (SsdDeviceState& device : ssd.devices) {
    if (device.creating || now < device.space.until || now < device.writes.until) continue;
    if (options.ssd.cache_bytes > 0 && device.bytes + bytes > per_device) continue;
    if (best == nullptr || device.bytes < best->bytes) best = &device;
  }
  if (best == nullptr) return false;
  const SsdCommand command{.kind = SsdCommandKind::kCreate,
                           .device = static_cast<uint32_t>(best - ssd.devices.data()),
                           .size_class = size_class,
                           .bytes = bytes};
  if (!Issue(command, [&](SsdPort* port, uint64_t tag) {
        return port->CreateSegment(tag, size_class->ssd.shape);
      })) {
    return false;
  }
  best->creating = true;
  best->bytes += bytes;
  ssd.slots_being_made += size_class->ssd.shape.slots;
  return true;
}

void CacheManager::Impl::EndCreate(const SsdCommand& command, const SsdPortResult& result) {
  SsdDeviceState& device = ssd.devices[command.device];
  device.creating = false;
  ClassState* size_class = command.size_class;
  SsdSlots& slots = *size_class->store->ssd();
  ssd.slots_being_made -= size_class->ssd.shape.slots;
  if (!result.status.ok()) {
    device.bytes -= command.bytes;
    device.space.Fail(now);
    return;
  }
  device.space.Succeed();
  size_class->ssd.waiting_until = 0;
  if (slots.AddGroup(command.device, result.segment, size_class->ssd.shape.slots).has_value()) {
    size_class->ssd.bytes += command.bytes;
    return;
  }
  DropUnplaced(command.device, result.segment, command.bytes);
}

// A segment for which no size class has a place goes; where the device takes no command now, it
// stays until the next start.
void CacheManager::Impl::DropUnplaced(uint32_t device, uint32_t segment, uint64_t bytes) {
  const SsdCommand command{
      .kind = SsdCommandKind::kDrop, .device = device, .group = ClassSsd::kNoDrain, .bytes = bytes};
  Issue(command, [&](SsdPort* port, uint64_t tag) { return port->DropSegment(tag, segment); });
}

// Room for the writes to come: a segment more, or blocks that give way.
void CacheManager::Impl::EvictAheadOnSsd(ClassState* size_class) {
  if (size_class->engines == 0) return;
  SizeClass& store = *size_class->store;
  const uint64_t wanted = std::clamp(store.ssd()->capacity() / 64, kMinAhead, kMaxAhead);
  uint64_t room = store.ssd()->free_slots() + size_class->ssd.to_free.size() + ssd.frees_in_flight;
  if (room >= wanted || GrowSsd(size_class)) return;
  // Blocks give way only where a write would find no room otherwise, and could be written.
  const bool soon = std::any_of(
      ssd.devices.begin(), ssd.devices.end(),
      [&](const SsdDeviceState& device) { return device.creating || now < device.writes.until; });
  if (soon || size_class->ssd.write_queue.empty()) return;
  size_class->ssd.waiting_until = now + kSsdWaitingNs;
  for (uint32_t i = 0; i < kSsdCommandsPerTick && room < wanted; ++i, ++room) {
    NamespaceId owner = 0;
    if (!store.EvictFromSsd(&owner)) return;
    Count(NamespaceById(owner), &CacheCounters::ssd_evicted_blocks, 1);
  }
}

// --- segments that go ----------------------------------------------------------------------------

void CacheManager::Impl::StartDrainSsd(ClassState* size_class, bool closed_only) {
  if (size_class->ssd.draining != ClassSsd::kNoDrain) return;
  SsdSlots& slots = *size_class->store->ssd();
  uint32_t emptiest = ClassSsd::kNoDrain;
  for (uint32_t group = 0; group < slots.group_end(); ++group) {
    if (!slots.HasGroup(group) || (closed_only && !slots.IsClosed(group))) continue;
    if (emptiest == ClassSsd::kNoDrain || slots.GroupUsed(group) < slots.GroupUsed(emptiest))
      emptiest = group;
  }
  if (emptiest == ClassSsd::kNoDrain) return;
  slots.CloseGroup(emptiest);
  size_class->ssd.draining = emptiest;
  size_class->ssd.drain_cursor = 0;
}

void CacheManager::Impl::DrainSsd(ClassState* size_class) {
  ClassSsd& state = size_class->ssd;
  if (state.draining == ClassSsd::kNoDrain || state.dropping) return;
  SizeClass& store = *size_class->store;
  SsdSlots& slots = *store.ssd();
  const uint32_t gone =
      store.DrainSsdGroup(state.draining, kDrainSlotsPerTick, &state.drain_cursor);
  Count(nullptr, &CacheCounters::ssd_evicted_blocks, gone);
  for (SlotId slot : store.TakeLeft()) state.to_free.push_back(slot);
  if (!slots.GroupIsIdle(state.draining) || now < state.drops.until) return;
  SsdShape shape = state.shape;
  // Found ones may have other numbers than new ones.
  shape.slots = slots.GroupSlots(state.draining);
  const SsdCommand command{.kind = SsdCommandKind::kDrop,
                           .device = slots.DeviceOf(state.draining),
                           .size_class = size_class,
                           .group = state.draining,
                           .bytes = ssd::SegmentFileBytes(shape)};
  state.dropping = Issue(command, [&](SsdPort* port, uint64_t tag) {
    return port->DropSegment(tag, slots.SegmentOf(state.draining));
  });
}

void CacheManager::Impl::EndDrop(const SsdCommand& command, const absl::Status& status) {
  SsdDeviceState& device = ssd.devices[command.device];
  if (status.ok()) device.bytes -= std::min(device.bytes, command.bytes);
  if (command.group == ClassSsd::kNoDrain) return;
  ClassSsd& state = command.size_class->ssd;
  state.dropping = false;
  // Tried again, but not at once: a device whose file system takes no changes any more says so
  // within microseconds, over and over.
  if (!status.ok()) return state.drops.Fail(now);
  state.drops.Succeed();
  state.bytes -= std::min(state.bytes, command.bytes);
  command.size_class->store->ssd()->RemoveGroup(state.draining);
  state.draining = ClassSsd::kNoDrain;
}

std::vector<ClassShare> CacheManager::Impl::SsdShares() const {
  std::vector<ClassShare> shares;
  for (const auto& c : classes) {
    shares.push_back(ClassShare{.bytes = c->ssd.bytes,
                                .group_bytes = c->ssd.segment_file_bytes,
                                .entitled = c->engines > 0,
                                .waiting = c->engines > 0 && now < c->ssd.waiting_until});
  }
  return shares;
}

// Segments that no longer take writes go when there is no other room; beyond the budget, and from
// classes above their share, open ones too.
void CacheManager::Impl::BalanceSsd() {
  const uint64_t budget = options.ssd.cache_bytes;
  const std::vector<ClassShare> shares = SsdShares();
  for (size_t i = 0; i < classes.size(); ++i) {
    ClassState* c = classes[i].get();
    if (shares[i].waiting && !MayGrowSsd(c) && c->store->ssd()->closed_groups() > 0)
      StartDrainSsd(c, true);
  }
  if (budget == 0) return;
  if (SsdBytes() > budget) {
    auto largest = std::max_element(shares.begin(), shares.end(),
                                    [](const auto& a, const auto& b) { return a.bytes < b.bytes; });
    const size_t index = static_cast<size_t>(largest - shares.begin());
    if (largest != shares.end() && largest->bytes > 0) StartDrainSsd(classes[index].get(), false);
  }
  for (size_t i = 0; i < shares.size(); ++i) {
    if (!shares[i].waiting) continue;
    const std::optional<size_t> donor = PlanDonor(shares, i, budget);
    if (donor.has_value() && *donor != i && shares[*donor].bytes > 0)
      StartDrainSsd(classes[*donor].get(), false);
  }
}

}  // namespace flexkv
