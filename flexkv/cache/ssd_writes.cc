// Write-back: blocks in memory are written to the devices behind everything else.
//
// A block is queued when it becomes ready (or is loaded, with admission on the second touch),
// written when its turn comes and it is still there, and gets its SSD slot for a handle once the
// device has committed it. While a lease holds the old handle the change waits.
#include <algorithm>
#include <utility>

#include "flexkv/cache/manager_state.h"

namespace flexkv {

void CacheManager::Impl::QueueWrite(ClassState* size_class, SlotId cpu) {
  SizeClass& store = *size_class->store;
  if (store.ssd() == nullptr || !store.tree().Contains(cpu)) return;
  std::vector<WriteState>& states = size_class->ssd.write_states;
  if (states.size() <= cpu.index()) states.resize(cpu.index() + 1u, WriteState::kNone);
  if (states[cpu.index()] != WriteState::kNone) return;
  states[cpu.index()] = WriteState::kQueued;
  size_class->ssd.write_queue.push_back(cpu);
}

void CacheManager::Impl::RefillWriteTokens() {
  const auto rate = static_cast<double>(options.ssd.write_bytes_per_s);
  const TimeNs elapsed = std::min(now - std::exchange(ssd.tokens_at, now), kNsPerSecond);
  ssd.write_tokens =
      std::min(rate, ssd.write_tokens + rate * static_cast<double>(elapsed) / kNsPerSecond);
}

// Classes take turns, one block each.
void CacheManager::Impl::StartWrites() {
  RefillWriteTokens();
  std::vector<bool> usable = WritableDevices();
  size_t idle = 0;
  while (!classes.empty() && idle < classes.size()) {
    if (ssd.write_bytes_in_flight >= options.ssd.max_inflight_write_bytes) return;
    if (options.ssd.write_bytes_per_s > 0 && ssd.write_tokens <= 0) return;
    ssd.next_class = (ssd.next_class + 1) % classes.size();
    idle = StartNextWrite(classes[ssd.next_class].get(), &usable) ? 0 : idle + 1;
  }
}

// False: nothing to write in this class now. A device that takes no more is `usable` no longer.
bool CacheManager::Impl::StartNextWrite(ClassState* size_class, std::vector<bool>* usable) {
  SizeClass& store = *size_class->store;
  std::deque<SlotId>& queue = size_class->ssd.write_queue;
  for (size_t looked = queue.size(); looked > 0; --looked) {
    const SlotId cpu = queue.front();
    if (!store.tree().Contains(cpu)) {  // gone before its turn
      queue.pop_front();
      size_class->ssd.write_states[cpu.index()] = WriteState::kNone;
      Count(nullptr, &CacheCounters::ssd_skipped_blocks, 1);
      continue;
    }
    if (!store.tree().IsReady(cpu)) {  // bytes of it or its parent are still arriving
      queue.pop_front();
      queue.push_back(cpu);
      continue;
    }
    Namespace* ns = NamespaceById(store.OwnerOf(cpu));
    const std::optional<SlotId> slot =
        ns == nullptr ? std::nullopt : store.ssd()->Allocate(*usable);
    if (!slot.has_value()) return false;
    if (!SubmitWrite(size_class, cpu, ns, *slot)) {
      (*usable)[store.ssd()->DeviceOf(store.ssd()->GroupOf(*slot))] = false;
      store.ssd()->Free(*slot);
      continue;
    }
    queue.pop_front();
    return true;
  }
  return false;
}

bool CacheManager::Impl::SubmitWrite(ClassState* size_class, SlotId cpu, Namespace* ns,
                                     SlotId slot) {
  SizeClass& store = *size_class->store;
  const uint64_t bytes = size_class->ssd.shape.record_bytes();
  const SsdCommand command{.kind = SsdCommandKind::kWrite,
                           .device = store.ssd()->DeviceOf(store.ssd()->GroupOf(slot)),
                           .size_class = size_class,
                           .ssd = slot,
                           .cpu = cpu,
                           .bytes = bytes};
  if (!Issue(command, [&](SsdPort* port, uint64_t tag) {
        return port->Write(tag, store.ssd()->PlaceOf(slot), IdentityOf(*size_class, *ns, cpu),
                           ShardsOf(*size_class, cpu));
      })) {
    return false;
  }
  store.slots().Ref(cpu);
  size_class->ssd.write_states[cpu.index()] = WriteState::kWriting;
  ssd.written.insert(ns->digest);
  ssd.write_bytes_in_flight += bytes;
  ssd.write_tokens -= static_cast<double>(bytes);
  return true;
}

void CacheManager::Impl::EndWrite(const SsdCommand& command, const absl::Status& status) {
  ClassState* size_class = command.size_class;
  SizeClass& store = *size_class->store;
  SsdSlots& slots = *store.ssd();
  ssd.write_bytes_in_flight -= command.bytes;
  if (status.ok()) {
    ssd.devices[command.device].writes.Succeed();
    slots.NoteResult(slots.GroupOf(command.ssd), true);
    Count(nullptr, &CacheCounters::ssd_written_blocks, 1);
    if (!MoveOrFree(size_class, command.cpu, command.ssd))
      size_class->ssd.moves.push_back({command.cpu, command.ssd});
    return;
  }
  size_class->ssd.write_states[command.cpu.index()] = WriteState::kNone;
  if (absl::IsFailedPrecondition(status)) {  // a reset overtook it; nothing was written
    slots.Free(command.ssd);
  } else {
    Count(nullptr, &CacheCounters::ssd_write_failed_blocks, 1);
    slots.Lose(command.ssd);
    const uint32_t group = slots.GroupOf(command.ssd);
    if (slots.NoteResult(group, false) && !slots.IsClosed(group)) {
      slots.CloseGroup(group);
      ssd.devices[command.device].writes.Fail(now);
    }
    if (!absl::IsInvalidArgument(status)) QueueWrite(size_class, command.cpu);
  }
  store.slots().Unref(command.cpu);
}

// The block is on the device: its handle changes, or, when it has left the tree meanwhile, the
// device may forget it. False: a lease holds the handle.
bool CacheManager::Impl::MoveOrFree(ClassState* size_class, SlotId cpu, SlotId slot) {
  SizeClass& store = *size_class->store;
  if (store.tree().Contains(cpu)) {
    if (store.tree().Pins(cpu) > 0) return false;
    store.MoveToSsd(cpu, slot);
  } else {
    size_class->ssd.to_free.push_back(slot);
  }
  size_class->ssd.write_states[cpu.index()] = WriteState::kNone;
  store.slots().Unref(cpu);
  return true;
}

void CacheManager::Impl::MoveWritten(ClassState* size_class) {
  std::erase_if(size_class->ssd.moves, [&](const PendingMove& move) {
    return MoveOrFree(size_class, move.cpu, move.ssd);
  });
}

}  // namespace flexkv
