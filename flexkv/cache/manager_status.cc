// Status for people, and the invariants that tests check after every step.
#include <algorithm>

#include "absl/strings/str_cat.h"
#include "flexkv/cache/manager_state.h"

namespace flexkv {

ManagerStatus CacheManager::Impl::Status() const {
  ManagerStatus status;
  status.budget_bytes = budget_bytes;
  for (const auto& c : classes) {
    const SizeClass& store = *c->store;
    const RadixTreeStats tree = store.tree().stats();
    status.segment_bytes_in_use += store.bytes_held();
    status.slots += store.slots().capacity();
    status.used_slots += store.slots().used();
    status.cached_blocks += tree.blocks;
    status.ready_blocks += tree.ready;
    status.pinned_blocks += tree.pinned;
    status.index_bytes += tree.bytes;
  }
  status.engines = static_cast<uint32_t>(engines.size());
  status.size_classes = static_cast<uint32_t>(classes.size());
  status.leases = leases;
  status.ops_in_flight = static_cast<uint32_t>(ops.size());
  status.requests = requests;
  status.counters = total;
  status.ssd = StatusOfSsd();
  for (const auto& ns : namespaces) {
    status.namespaces.push_back(NamespaceStatus{.label = ns->label,
                                                .id = ns->id,
                                                .epoch = ns->epoch,
                                                .engines = ns->engines,
                                                .tokens_per_block = ns->tokens_per_block,
                                                .block_bytes = ns->size_class->store->block_bytes(),
                                                .counters = ns->counters});
  }
  return status;
}

SsdTierStatus CacheManager::Impl::StatusOfSsd() const {
  SsdTierStatus status;
  status.devices = static_cast<uint32_t>(ssd.devices.size());
  for (const auto& c : classes) {
    const SsdSlots* slots = c->store->ssd();
    if (slots == nullptr) continue;
    status.segments += slots->num_groups();
    status.closed_segments += slots->closed_groups();
    status.slots += slots->capacity();
    status.used_slots += slots->used();
    status.blocks += c->store->resident(Tier::kSsd);
    status.copies_in_memory += c->store->num_copies();
    status.writes_waiting += c->ssd.write_queue.size();
    status.damaged_blocks += c->ssd.damaged.size();
  }
  for (const auto& [tag, command] : ssd.commands)
    status.writes_in_flight += command.kind == SsdCommandKind::kWrite;
  status.reads_waiting = ssd.waiting_loads.size();
  status.reads_in_flight = ssd.reads_in_flight;
  status.frees_in_flight = ssd.frees_in_flight;
  status.recovered_blocks = ssd.recovered_blocks;
  status.orphaned_blocks = ssd.orphaned_blocks;
  status.out_of_space = std::any_of(ssd.devices.begin(), ssd.devices.end(),
                                    [&](const auto& device) { return now < device.space.until; });
  return status;
}

absl::Status CacheManager::Impl::CheckRequests() const {
  uint32_t open_requests = 0;
  uint32_t open_leases = 0;
  uint32_t with_deadline = 0;
  for (const auto& [handle, engine] : engines) {
    uint64_t chain_blocks = 0;
    for (const auto& [key, request] : engine->requests) {
      const Lease& lease = request->lease;
      ++open_requests;
      chain_blocks += request->chain.size();
      if (request->listed != (lease.id != 0 && lease.loads == 0)) {
        return absl::InternalError("a lease is listed wrongly");
      }
      if (lease.id == 0) continue;
      ++open_leases;
      with_deadline += request->listed ? 1 : 0;
      if (lease.ns != engine->ns->id) return absl::InternalError("a lease outlived its epoch");
    }
    if (chain_blocks != engine->chain_blocks)
      return absl::InternalError("chain blocks do not add up");
  }
  uint32_t listed = 0;
  for (const Request* r = oldest_lease; r != nullptr; r = r->newer) {
    ++listed;
    if (r->newer != nullptr && r->newer->lease.deadline < r->lease.deadline) {
      return absl::InternalError("leases are not in order of their deadlines");
    }
  }
  if (open_requests != requests || open_leases != leases || listed != with_deadline) {
    return absl::InternalError(absl::StrCat("requests ", requests, "/", open_requests, ", leases ",
                                            leases, "/", open_leases, ", listed ", listed, "/",
                                            with_deadline));
  }
  return absl::OkStatus();
}

absl::Status CacheManager::Impl::CheckPins() const {
  for (const auto& c : classes) {
    uint64_t expected = 0;
    for (const auto& [handle, engine] : engines) {
      if (engine->size_class != c.get()) continue;
      for (const auto& [key, request] : engine->requests)
        expected += request->lease.id != 0 ? 1 : 0;
    }
    for (const auto& [id, op] : ops) {
      const bool pins = op->route == Route::kCpuToDevice && op->ns->id == op->pin_ns;
      expected += pins && op->size_class == c.get() ? 1 : 0;
    }
    const uint64_t pinned = c->store->tree().stats().pinned;
    if (pinned != expected) {
      return absl::InternalError(absl::StrCat(pinned, " pins, ", expected, " leases and loads"));
    }
  }
  return absl::OkStatus();
}

absl::Status CacheManager::Impl::CheckOps() const {
  size_t attached = 0;
  absl::flat_hash_map<uint64_t, uint32_t> open_parts;
  for (const auto& [tag, part] : parts) {
    if (part.ranks_left == 0) return absl::InternalError("an ended part is still kept");
    ++open_parts[part.op];
  }
  for (const auto& [id, op] : ops) {
    if (op->open_parts != open_parts[id]) return absl::InternalError("parts do not add up");
    if (op->closed && op->open_parts == 0) return absl::InternalError("an ended op is still kept");
    attached += op->attached ? 1 : 0;
  }
  size_t known = 0;
  for (const auto& [handle, engine] : engines) {
    known += engine->ops.size();
    for (const auto& [key, id] : engine->ops) {
      auto it = ops.find(id);
      if (it == ops.end() || it->second->key != key)
        return absl::InternalError("an engine's op is gone");
    }
  }
  if (known != attached) return absl::InternalError("ops do not add up");
  for (const auto& ns : namespaces) {
    const auto count = std::count_if(
        ops.begin(), ops.end(), [&](const auto& entry) { return entry.second->ns == ns.get(); });
    if (count != ns->ops) return absl::InternalError("a namespace's ops do not add up");
  }
  return absl::OkStatus();
}

// References on CPU slots beside residency, by slot index.
std::vector<uint32_t> CacheManager::Impl::TransferRefs(const ClassState& size_class) const {
  std::vector<uint32_t> refs;
  const auto add = [&](SlotId slot) {
    if (!slot.valid()) return;
    if (refs.size() <= slot.index()) refs.resize(slot.index() + 1u);
    ++refs[slot.index()];
  };
  for (const auto& [id, op] : ops) {
    if (op->size_class != &size_class) continue;
    for (SlotId slot : op->slots) add(slot);
  }
  for (const auto& [tag, command] : ssd.commands) {
    if (command.size_class == &size_class) add(command.cpu);
  }
  for (const PendingMove& move : size_class.ssd.moves) add(move.cpu);
  return refs;
}

// Every used SSD slot holds a block of the tree, or somebody knows what will become of it.
absl::Status CacheManager::Impl::CheckSsd(const ClassState& size_class) const {
  const SsdSlots* slots = size_class.store->ssd();
  if (slots == nullptr) return absl::OkStatus();
  uint64_t known = size_class.store->resident(Tier::kSsd) + size_class.ssd.to_free.size() +
                   size_class.ssd.moves.size() + size_class.store->left();
  for (const auto& [tag, command] : ssd.commands) {
    const bool holds =
        command.kind == SsdCommandKind::kWrite || command.kind == SsdCommandKind::kFree;
    known += holds && command.size_class == &size_class ? 1 : 0;
  }
  if (known != slots->used())
    return absl::InternalError(
        absl::StrCat("SSD slots: ", slots->used(), " used, ", known, " known"));
  return absl::OkStatus();
}

absl::Status CacheManager::Impl::CheckInvariants() const {
  uint64_t bytes = 0;
  for (const auto& c : classes) {
    if (absl::Status status = c->store->CheckInvariants(TransferRefs(*c)); !status.ok())
      return status;
    if (absl::Status status = CheckSsd(*c); !status.ok()) return status;
    bytes += c->store->bytes_held();
  }
  if (bytes > budget_bytes) return absl::InternalError("over the budget");
  if (absl::Status status = CheckRequests(); !status.ok()) return status;
  if (absl::Status status = CheckPins(); !status.ok()) return status;
  return CheckOps();
}

}  // namespace flexkv
