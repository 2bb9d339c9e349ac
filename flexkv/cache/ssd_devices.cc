// The SSD devices: commands and their results, segments, frees, epochs.
//
// Segments are made as they are needed, up to the budget; then blocks give way a little ahead of
// writes. A segment is given back, after the blocks in it were erased, when its device retired it,
// when the budget shrank, or when another size class is due a segment.
#include <algorithm>
#include <limits>
#include <utility>

#include "flexkv/cache/manager_state.h"
#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv {
namespace {

constexpr uint64_t kMinSegments = 8;  // of a device's budget, so that memory can change hands
constexpr uint64_t kMinAhead = 16, kMaxAhead = 4096;  // slots kept free
constexpr uint32_t kDrainSlotsPerTick = 1024;
constexpr TimeNs kSsdWaitingNs = 10 * kNsPerSecond;

// How many slots the segments of a class get; 0: no block fits the device's budget.
uint32_t PlanSlots(SsdShape shape, const SsdTierOptions& options, uint64_t devices) {
  const uint64_t unlimited = std::numeric_limits<uint64_t>::max();
  const uint64_t per_device = options.cache_bytes > 0 ? options.cache_bytes / devices : unlimited;
  const uint64_t target = std::min(options.segment_bytes, per_device / kMinSegments);
  uint64_t slots = std::clamp<uint64_t>(target / shape.record_bytes(), 1, ssd::kMaxSlots);
  if (options.num_blocks > 0) {
    const uint64_t blocks = std::max<uint64_t>(1, options.num_blocks / devices);
    const uint64_t segments = (blocks + slots - 1) / slots;
    slots = std::max<uint64_t>(1, blocks / segments);
  }
  for (shape.slots = static_cast<uint32_t>(slots); shape.slots > 0; shape.slots /= 2) {
    if (SegmentFileBytes(shape) <= per_device) break;
  }
  return shape.slots;
}

}  // namespace

uint64_t SegmentFileBytes(const SsdShape& shape) {
  return shape.segment_bytes() + 2ull * ssd::RegionPages(shape.slots) * ssd::kPageBytes;
}

// --- set-up --------------------------------------------------------------------------------------

void CacheManager::Impl::OpenSsd(std::vector<SsdPort*> ports) {
  for (SsdPort* port : ports) {
    SsdDeviceState device;
    device.port = port;
    SsdRecovery found = port->TakeRecovery();
    for (const auto& [digest, epoch] : found.epochs) {
      uint32_t& known = ssd.epochs[digest];
      known = std::max(known, epoch);
    }
    for (const RecoveredBlock& block : found.blocks) {
      ssd.written.insert(block.identity.ns);
      // A reset may have been lost while blocks of the epoch it began were kept: it holds.
      if (block.identity.epoch > 1) {
        uint32_t& known = ssd.epochs[block.identity.ns];
        known = std::max(known, block.identity.epoch);
      }
    }
    for (const SsdSegmentInfo& segment : found.segments) {
      device.bytes += SegmentFileBytes(segment.shape);
      ssd.unread |= segment.state == SegmentState::kUnreadable || segment.damaged_records > 0;
    }
    ssd.devices.push_back(device);
    ssd.recoveries.push_back(std::move(found));
  }
  AdoptRecovered();
}

std::optional<SsdSlots::Options> CacheManager::Impl::PlanSsd(std::span<const uint64_t> shard_bytes,
                                                             ClassSsd* plan) {
  if (!ssd.enabled()) return std::nullopt;
  SsdShape shape;
  for (uint64_t bytes : shard_bytes) {
    if (bytes > ssd::kMaxShardBytes) return std::nullopt;
    shape.shard_bytes.push_back(static_cast<uint32_t>(bytes));
  }
  const uint64_t devices = ssd.devices.size();
  shape.slots = PlanSlots(shape, options.ssd, devices);
  uint64_t groups = 0;
  uint32_t stride = std::max(1u, shape.slots);
  for (const SsdRecovery& found : ssd.recoveries) {
    for (const SsdSegmentInfo& segment : found.segments) {
      if (segment.shape.shard_bytes != shape.shard_bytes) continue;
      ++groups;
      stride = std::max(stride, segment.shape.slots);
    }
  }
  if (shape.slots > 0) {
    const uint64_t by_bytes = options.ssd.cache_bytes / SegmentFileBytes(shape);
    const uint64_t by_blocks = options.ssd.num_blocks / shape.slots;
    groups += devices + (options.ssd.cache_bytes > 0 ? by_bytes : by_blocks);
    plan->segment_file_bytes = SegmentFileBytes(shape);
  }
  groups = std::min<uint64_t>(groups, SlotId::kMaxIndex / 2 / stride);
  if (groups == 0) return std::nullopt;
  plan->shape = std::move(shape);
  return SsdSlots::Options{.devices = static_cast<uint32_t>(devices),
                           .stride = stride,
                           .max_groups = static_cast<uint32_t>(groups)};
}

SsdIdentity CacheManager::Impl::IdentityOf(const ClassState& size_class, const Namespace& ns,
                                           SlotId handle) const {
  const RadixTree& tree = size_class.store->tree();
  SsdIdentity identity;
  identity.ns = ns.digest;
  identity.epoch = ns.ssd_epoch;
  identity.depth = tree.DepthOf(handle);
  identity.hash = tree.HashOf(handle);
  if (identity.depth > 0) identity.parent = tree.HashOf(tree.Ancestor(handle, 1));
  return identity;
}

std::vector<ArenaShard> CacheManager::Impl::ShardsOf(const ClassState& size_class,
                                                     SlotId cpu) const {
  const auto ranks = static_cast<uint32_t>(size_class.store->shard_bytes().size());
  std::vector<ArenaShard> shards;
  shards.reserve(ranks);
  for (uint32_t rank = 0; rank < ranks; ++rank) {
    const ArenaPlace place = size_class.store->PlaceOf(cpu, rank, 0);
    shards.push_back({place.segment, place.offset_bytes});
  }
  return shards;
}

// --- results -------------------------------------------------------------------------------------

void CacheManager::Impl::TickSsd() {
  TakeSsdResults();
  for (const auto& c : classes) {
    if (c->store->ssd() == nullptr) continue;
    EraseDamaged(c.get());
    MoveWritten(c.get());
    for (SlotId slot : c->store->TakeLeft()) c->ssd.to_free.push_back(slot);
    EvictAheadOnSsd(c.get());
    DrainSsd(c.get());
    SubmitFrees(c.get());
  }
  SubmitRaises();
  AdvanceLoads();
  Prefetch();
  StartWrites();
  BalanceSsd();
}

void CacheManager::Impl::TakeSsdResults() {
  for (SsdDeviceState& device : ssd.devices) {
    ssd.results.clear();
    device.port->TakeResults(&ssd.results);
    for (const SsdPortResult& result : ssd.results) {
      auto it = ssd.commands.find(result.tag);
      if (it == ssd.commands.end()) continue;
      const SsdCommand command = it->second;
      ssd.commands.erase(it);
      EndCommand(command, result);
    }
  }
}

void CacheManager::Impl::EndCommand(const SsdCommand& command, const SsdPortResult& result) {
  switch (command.kind) {
    case SsdCommandKind::kWrite:
      return EndWrite(command, result.status);
    case SsdCommandKind::kRead:
      return EndRead(command, result.status);
    case SsdCommandKind::kFree:
      return EndFree(command, result.status);
    case SsdCommandKind::kRaiseEpoch:
      return EndRaise(command, result.status);
    case SsdCommandKind::kCreate:
      return EndCreate(command, result);
    case SsdCommandKind::kDrop:
      return EndDrop(command, result.status);
  }
}

// A block that did not read back leaves the tree with what hangs below it, as soon as no lease
// needs that; no new lease takes it in.
void CacheManager::Impl::EraseDamaged(ClassState* size_class) {
  constexpr size_t kLooksPerTick = 64;  // each may walk a subtree
  SizeClass& store = *size_class->store;
  std::deque<SlotId>& damaged = size_class->ssd.damaged;
  for (size_t looks = std::min(damaged.size(), kLooksPerTick); looks > 0; --looks) {
    const SlotId slot = damaged.front();
    damaged.pop_front();
    if (store.tree().SubtreeInUse(slot)) {
      damaged.push_back(slot);
    } else {
      store.Erase(slot);
    }
  }
}

// --- frees ---------------------------------------------------------------------------------------

void CacheManager::Impl::SubmitFrees(ClassState* size_class) {
  SsdSlots& slots = *size_class->store->ssd();
  std::deque<SlotId>& list = size_class->ssd.to_free;
  size_t looked = list.size();
  for (uint32_t sent = 0; looked > 0 && sent < kSsdCommandsPerTick; --looked) {
    const SlotId slot = list.front();
    list.pop_front();
    const uint32_t group = slots.GroupOf(slot);
    if (size_class->ssd.reads.contains(slot.value)) {  // its read ends first
      list.push_back(slot);
      continue;
    }
    if (group == size_class->ssd.draining) {  // goes with its segment
      slots.Free(slot);
      continue;
    }
    const uint32_t device = slots.DeviceOf(group);
    const uint64_t tag = ssd.next_command;
    if (!ssd.devices[device].port->Free(tag, slots.PlaceOf(slot))) {
      list.push_front(slot);
      return;
    }
    ++ssd.next_command;
    ssd.commands.emplace(tag, SsdCommand{.kind = SsdCommandKind::kFree,
                                         .device = device,
                                         .size_class = size_class,
                                         .ssd = slot});
    ++ssd.frees_in_flight;
    ++sent;
  }
}

void CacheManager::Impl::EndFree(const SsdCommand& command, const absl::Status& status) {
  --ssd.frees_in_flight;
  SsdSlots& slots = *command.size_class->store->ssd();
  status.ok() ? slots.Free(command.ssd) : slots.Lose(command.ssd);
  // A retired segment of which all slots were in use sees no write that could fail.
  const uint32_t group = slots.GroupOf(command.ssd);
  if (slots.NoteResult(group, status.ok())) slots.CloseGroup(group);
}

// --- epochs --------------------------------------------------------------------------------------

void CacheManager::Impl::SubmitRaises() {
  while (!ssd.raises.empty()) {
    const EpochRaise& raise = ssd.raises.front();
    const uint64_t tag = ssd.next_command;
    if (!ssd.devices[raise.device].port->RaiseEpoch(tag, raise.ns, raise.epoch)) return;
    ++ssd.next_command;
    ssd.commands.emplace(tag, SsdCommand{.kind = SsdCommandKind::kRaiseEpoch,
                                         .device = raise.device,
                                         .reset = raise.reset});
    ssd.raises.pop_front();
  }
}

void CacheManager::Impl::EndRaise(const SsdCommand& command, const absl::Status& status) {
  PendingReset& reset = ssd.resets.at(command.reset);
  --reset.unanswered;
  reset.failed |= !status.ok();
  EndResetIfDone(command.reset);
}

// --- segments ------------------------------------------------------------------------------------

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
  const uint64_t tag = ssd.next_command;
  if (!best->port->CreateSegment(tag, size_class->ssd.shape)) return false;
  ++ssd.next_command;
  ssd.commands.emplace(tag, SsdCommand{.kind = SsdCommandKind::kCreate,
                                       .device = static_cast<uint32_t>(best - ssd.devices.data()),
                                       .size_class = size_class,
                                       .bytes = bytes});
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
  // No position for it: it goes again.
  const uint64_t tag = ssd.next_command++;
  ssd.commands.emplace(tag, SsdCommand{.kind = SsdCommandKind::kDrop,
                                       .device = command.device,
                                       .size_class = size_class,
                                       .group = ClassSsd::kNoDrain,
                                       .bytes = command.bytes});
  if (!device.port->DropSegment(tag, result.segment)) ssd.commands.erase(tag);
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
  const uint32_t device = slots.DeviceOf(state.draining);
  SsdShape shape = state.shape;
  shape.slots =
      slots.GroupSlots(state.draining);  // found ones may have other numbers than new ones
  const uint64_t tag = ssd.next_command;
  if (!ssd.devices[device].port->DropSegment(tag, slots.SegmentOf(state.draining))) return;
  ++ssd.next_command;
  ssd.commands.emplace(tag, SsdCommand{.kind = SsdCommandKind::kDrop,
                                       .device = device,
                                       .size_class = size_class,
                                       .group = state.draining,
                                       .bytes = SegmentFileBytes(shape)});
  state.dropping = true;
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
