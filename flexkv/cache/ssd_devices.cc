// The SSD devices: how a size class lies on them, commands and their results, frees, epochs.
#include <algorithm>
#include <limits>
#include <utility>

#include "flexkv/cache/manager_state.h"
#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv {
namespace {

constexpr uint64_t kMinSegments = 8;  // of a device's budget, so that memory can change hands

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
    if (ssd::SegmentFileBytes(shape) <= per_device) break;
  }
  return shape.slots;
}

}  // namespace

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
      device.bytes += ssd::SegmentFileBytes(segment.shape);
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
    const uint64_t by_bytes = options.ssd.cache_bytes / ssd::SegmentFileBytes(shape);
    const uint64_t by_blocks = options.ssd.num_blocks / shape.slots;
    groups += devices + (options.ssd.cache_bytes > 0 ? by_bytes : by_blocks);
    plan->segment_file_bytes = ssd::SegmentFileBytes(shape);
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
    const SsdCommand command{.kind = SsdCommandKind::kFree,
                             .device = slots.DeviceOf(group),
                             .size_class = size_class,
                             .ssd = slot};
    if (!Issue(command,
               [&](SsdPort* port, uint64_t tag) { return port->Free(tag, slots.PlaceOf(slot)); })) {
      list.push_front(slot);
      return;
    }
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
    const SsdCommand command{
        .kind = SsdCommandKind::kRaiseEpoch, .device = raise.device, .reset = raise.reset};
    if (!Issue(command, [&](SsdPort* port, uint64_t tag) {
          return port->RaiseEpoch(tag, raise.ns, raise.epoch);
        })) {
      return;
    }
    ssd.raises.pop_front();
  }
}

void CacheManager::Impl::EndRaise(const SsdCommand& command, const absl::Status& status) {
  PendingReset& reset = ssd.resets.at(command.reset);
  --reset.unanswered;
  reset.failed |= !status.ok();
  EndResetIfDone(command.reset);
}

}  // namespace flexkv
