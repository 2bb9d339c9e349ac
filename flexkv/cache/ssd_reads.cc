// Reads from the SSD tier into memory.
//
// A load of blocks that are not all in memory is cut into parts of a few MiB. Parts are read in
// order, a few ahead; each goes to the ranks as soon as its blocks are there, while the next ones
// are still being read. What was read stays as a copy. A part that cannot be read ends the load
// behind the parts before it: an engine has no use for blocks behind a gap.
//
// Loads take CPU slots in the order of their arrival: only the first one that finds no room may
// hold a part half filled, so loads never wait for each other's slots in a circle.
#include <algorithm>
#include <utility>

#include "flexkv/cache/manager_state.h"

namespace flexkv {

bool CacheManager::Impl::NeedsSsd(const ClassState& size_class,
                                  const std::vector<SlotId>& handles) const {
  if (!ssd.enabled()) return false;
  return std::any_of(handles.begin(), handles.end(),
                     [&](SlotId handle) { return !size_class.store->InMemory(handle).valid(); });
}

// What is used stays in memory, and is worth a place on the devices.
void CacheManager::Impl::NoteLoaded(ClassState* size_class, const std::vector<SlotId>& handles) {
  SizeClass& store = *size_class->store;
  for (SlotId handle : handles) {
    if (handle.tier() == Tier::kCpu) {
      QueueWrite(size_class, handle);
    } else if (store.InMemory(handle).valid()) {
      store.TouchCopy(handle);
    }
  }
}

void CacheManager::Impl::LoadFromSsd(Engine* engine, std::unique_ptr<Op> op) {
  const auto blocks = static_cast<uint32_t>(op->slots.size());
  auto load = std::make_unique<SsdLoad>();
  load->handles = std::exchange(op->slots, std::vector<SlotId>(blocks, kNoSlot));
  load->deadline = now + options.ssd.read_timeout_ns;
  // Several parts of several loads fit a small CPU tier.
  const SizeClass& store = *engine->size_class->store;
  const uint64_t most = uint64_t{store.geometry().slots_per_group} * store.geometry().max_groups;
  const uint64_t wanted = options.ssd.load_part_bytes / store.block_bytes();
  const auto length = static_cast<uint32_t>(
      std::clamp<uint64_t>(std::min(wanted, most / 8), 1, std::max(1u, blocks)));
  for (uint32_t begin = 0; begin < blocks; begin += length) {
    load->parts.push_back({.begin = begin, .end = std::min(blocks, begin + length)});
  }
  op->from_ssd = std::move(load);
  Prepare(engine, op.get());
  ssd.waiting_loads.push_back(op->id);
  Register(engine, std::move(op));
}

void CacheManager::Impl::AdvanceLoads() {
  bool no_room = false;
  for (size_t left = ssd.waiting_loads.size(); left > 0; --left) {
    const uint64_t id = ssd.waiting_loads.front();
    ssd.waiting_loads.pop_front();
    auto it = ops.find(id);
    if (it == ops.end() || it->second->closed) continue;
    AdvanceLoad(it->second.get(), &no_room);
    it = ops.find(id);
    if (it != ops.end() && !it->second->closed) ssd.waiting_loads.push_back(id);
  }
}

void CacheManager::Impl::AdvanceLoad(Op* op, bool* no_room) {
  std::vector<SsdLoadPart>& list = op->from_ssd->parts;
  if (now >= op->from_ssd->deadline) FailPartsFrom(op, 0);
  bool fresh = false;  // the handles; long loads wait for many ticks in which they need none
  uint32_t ahead = 0;
  for (size_t i = 0; i < list.size() && ahead < kSsdLoadPartsAhead && !*no_room; ++i) {
    SsdLoadPart& part = list[i];
    if (part.state == SsdLoadPart::State::kSent) continue;
    if (part.state == SsdLoadPart::State::kFailed) break;
    ++ahead;
    if (part.state != SsdLoadPart::State::kWaiting) continue;
    // A block that was only in memory has another handle once it is written.
    if (!std::exchange(fresh, true)) {
      op->size_class->store->tree().PathSlots(op->pinned, static_cast<uint32_t>(op->slots.size()),
                                              &op->from_ssd->handles);
    }
    *no_room = !StartPartReads(op, &part);
  }
  SendParts(op);
  CloseLoad(op);
}

// Has every block of the part brought into memory. False: no room for all now.
bool CacheManager::Impl::StartPartReads(Op* op, SsdLoadPart* part) {
  ClassState* size_class = op->size_class;
  SizeClass& store = *size_class->store;
  for (uint32_t i = part->begin; i < part->end; ++i) {
    const SlotId handle = op->from_ssd->handles[i];
    if (op->slots[i].valid()) continue;
    auto reading = size_class->ssd.reads.find(handle.value);
    BlockRead* read = reading == size_class->ssd.reads.end() ? nullptr : &reading->second;
    if (read != nullptr) {
      const bool waits = std::any_of(read->waiters.begin(), read->waiters.end(),
                                     [&](const BlockRead::Waiter& waiter) {
                                       return waiter.op == op->id && waiter.position == i;
                                     });
      if (waits) continue;
    } else if (!store.tree().Contains(handle)) {
      FailPartsFrom(op, static_cast<size_t>(part - op->from_ssd->parts.data()));
      return true;
    } else if (const SlotId cpu = store.InMemory(handle); cpu.valid()) {
      store.slots().Ref(cpu);
      op->slots[i] = cpu;
      continue;
    } else {
      read = StartRead(size_class, handle, false);
      if (read == nullptr) return false;
    }
    read->waiters.push_back({op->id, i});
    ++op->ssd_blocks;
    ++part->missing;
  }
  part->state = SsdLoadPart::State::kReading;
  return true;
}

void CacheManager::Impl::FailPartsFrom(Op* op, size_t first) {
  std::vector<SsdLoadPart>& list = op->from_ssd->parts;
  for (size_t i = first; i < list.size(); ++i) {
    SsdLoadPart& part = list[i];
    if (part.state == SsdLoadPart::State::kSent || part.state == SsdLoadPart::State::kFailed)
      continue;
    part.state = SsdLoadPart::State::kFailed;
    op->Fail(part.begin, part.end);
    ReleaseSlots(op, part.begin, part.end);
  }
}

void CacheManager::Impl::SendParts(Op* op) {
  std::vector<SsdLoadPart>& list = op->from_ssd->parts;
  const auto open = [](const SsdLoadPart& part) {
    return part.state == SsdLoadPart::State::kWaiting || part.state == SsdLoadPart::State::kReading;
  };
  for (SsdLoadPart& part : list) {
    if (part.state != SsdLoadPart::State::kReading || part.missing > 0) continue;
    const bool more = std::count_if(list.begin(), list.end(), open) > 1;
    if (!SubmitPart(op, part.begin, part.end, more).ok()) return;  // tried again in the next tick
    part.state = SsdLoadPart::State::kSent;
    op->from_ssd->deadline = now + options.ssd.read_timeout_ns;  // it makes progress
  }
}

// When no part is left to send, the ranks must know. An op of which nothing was sent is refused.
void CacheManager::Impl::CloseLoad(Op* op) {
  const std::vector<SsdLoadPart>& list = op->from_ssd->parts;
  const bool done = std::all_of(list.begin(), list.end(), [](const SsdLoadPart& part) {
    return part.state == SsdLoadPart::State::kSent || part.state == SsdLoadPart::State::kFailed;
  });
  if (!done || op->closed) return;
  if (op->sent_parts > 0) {
    const auto end = static_cast<uint32_t>(op->slots.size());
    SubmitPart(op, end, end, false).IgnoreError();  // refused: in the next tick
    return;
  }
  op->closed = true;
  if (Engine* engine = FindEngine(op->engine)) Refuse(engine, op->key, op->route);
  FinishOp(op->id);
}

// --- one block -----------------------------------------------------------------------------------

// `ahead`: nothing may be lost for it. nullptr: no room, or the device takes no more.
BlockRead* CacheManager::Impl::StartRead(ClassState* size_class, SlotId handle, bool ahead) {
  SizeClass& store = *size_class->store;
  Namespace* ns = NamespaceById(store.OwnerOf(handle));
  if (ns == nullptr) return nullptr;
  SlotId cpu;
  if (!AllocateForRead(size_class, ahead, &cpu)) return nullptr;
  const SsdCommand command{.kind = SsdCommandKind::kRead,
                           .device = store.ssd()->DeviceOf(store.ssd()->GroupOf(handle)),
                           .size_class = size_class,
                           .ssd = handle,
                           .cpu = cpu};
  if (!Issue(command, [&](SsdPort* port, uint64_t tag) {
        return port->Read(tag, store.ssd()->PlaceOf(handle), IdentityOf(*size_class, *ns, handle),
                          ShardsOf(*size_class, cpu));
      })) {
    store.slots().Unref(cpu);
    return nullptr;
  }
  ++ssd.reads_in_flight;
  Count(ns, &CacheCounters::ssd_load_blocks, 1);
  BlockRead& read = size_class->ssd.reads[handle.value];
  read.cpu = cpu;
  return &read;
}

void CacheManager::Impl::EndRead(const SsdCommand& command, const absl::Status& status) {
  ClassState* size_class = command.size_class;
  SizeClass& store = *size_class->store;
  const BlockRead read = std::move(size_class->ssd.reads.extract(command.ssd.value).mapped());
  --ssd.reads_in_flight;
  for (const BlockRead::Waiter& waiter : read.waiters) {
    auto it = ops.find(waiter.op);
    if (it == ops.end()) continue;
    Op* op = it->second.get();
    auto part =
        std::find_if(op->from_ssd->parts.begin(), op->from_ssd->parts.end(),
                     [&](const SsdLoadPart& candidate) { return waiter.position < candidate.end; });
    if (part->state == SsdLoadPart::State::kFailed) continue;
    --part->missing;
    op->last_read = now;
    if (!status.ok()) {
      FailPartsFrom(op, static_cast<size_t>(part - op->from_ssd->parts.begin()));
      continue;
    }
    store.slots().Ref(read.cpu);
    op->slots[waiter.position] = read.cpu;
  }
  const bool resident = store.tree().Contains(command.ssd);
  if (!status.ok()) {
    Count(nullptr, &CacheCounters::ssd_read_failed_blocks, 1);
    std::deque<SlotId>& damaged = size_class->ssd.damaged;
    const bool known = std::find(damaged.begin(), damaged.end(), command.ssd) != damaged.end();
    if (resident && !known) damaged.push_back(command.ssd);
  }
  if (status.ok() && resident) {
    store.AddCopy(command.ssd, read.cpu);
  } else {
    store.slots().Unref(read.cpu);
  }
}

// --- ahead of loads ------------------------------------------------------------------------------

// A request that was looked up and is not loaded within a moment waits for its turn in the engine:
// time to read what it will need.
void CacheManager::Impl::Prefetch() {
  for (; !ssd.hints.empty() && ssd.hints.front().due <= now; ssd.hints.pop_front()) {
    const PrefetchHint& hint = ssd.hints.front();
    Engine* engine = FindEngine(hint.engine);
    const Request* request = engine == nullptr ? nullptr : FindRequest(engine, hint.request);
    if (request == nullptr || request->lease.id != hint.lease || request->lease.loads > 0) continue;
    ClassState* size_class = engine->size_class;
    std::vector<SlotId> handles;
    size_class->store->tree().PathSlots(request->lease.last, request->lease.blocks, &handles);
    for (SlotId handle : handles) {
      if (size_class->store->InMemory(handle).valid()) continue;
      if (size_class->ssd.reads.contains(handle.value)) continue;
      // Loads are not to wait behind what only may be needed.
      if (ssd.reads_in_flight >= kMaxReadsForPrefetch) break;
      if (StartRead(size_class, handle, true) == nullptr) break;
    }
  }
}

}  // namespace flexkv
