// The public face of the manager: checks who is calling, keeps time, and leaves the work to its
// parts. Engines and namespaces are kept here too.
#include "flexkv/cache/cache_manager.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/cache/manager_state.h"
#include "flexkv/cache/namespace_digest.h"

namespace flexkv {
namespace {

absl::Status UnknownEngine() { return absl::InvalidArgumentError("unknown engine"); }

}  // namespace

CacheManager::Impl::Impl(Options o, SegmentStore* s, TransferEngine* t,
                         std::vector<SsdPort*> ssd_ports)
    : options(o),
      segments(s),
      transfers(t),
      budget_bytes(o.num_cpu_blocks > 0 ? 0 : o.cpu_cache_bytes) {
  OpenSsd(std::move(ssd_ports));
}

void CacheManager::Impl::Count(Namespace* ns, uint64_t CacheCounters::*field, uint64_t amount) {
  total.*field += amount;
  if (ns != nullptr) ns->counters.*field += amount;
}

// --- engines and namespaces ----------------------------------------------------------------------

Engine* CacheManager::Impl::FindEngine(EngineHandle handle) {
  auto it = engines.find(handle);
  return it == engines.end() ? nullptr : it->second.get();
}

Namespace* CacheManager::Impl::NamespaceById(NamespaceId id) {
  if (found_ns != nullptr && found_ns_id == id) return found_ns;
  auto it = namespace_by_id.find(id);
  if (it == namespace_by_id.end()) return nullptr;
  found_ns_id = id;
  found_ns = it->second;
  return found_ns;
}

void CacheManager::Impl::SetEpoch(Namespace* ns, NamespaceId id) {
  found_ns = nullptr;
  namespace_by_id.erase(ns->id);
  ns->id = id;
  namespace_by_id.emplace(id, ns);
  ns->size_class->store->AddNamespace(id);
}

absl::Status CacheManager::Impl::CheckSpec(const EngineSpec& spec) {
  constexpr size_t kMaxRanks = 256;
  if (spec.shard_bytes.empty() || spec.shard_bytes.size() > kMaxRanks) {
    return absl::InvalidArgumentError(
        absl::StrCat("world size ", spec.shard_bytes.size(), " is not in 1..256"));
  }
  if (std::count(spec.shard_bytes.begin(), spec.shard_bytes.end(), 0u) > 0) {
    return absl::InvalidArgumentError("a rank's block has no bytes");
  }
  if (spec.tokens_per_block == 0) return absl::InvalidArgumentError("tokens_per_block is 0");
  const auto alike =
      std::count(spec.shard_bytes.begin(), spec.shard_bytes.end(), spec.shard_bytes.front());
  if (spec.replicated && static_cast<size_t>(alike) != spec.shard_bytes.size())
    return absl::InvalidArgumentError("replicas of a block differ in size");
  if (engines.size() >= options.max_engines)
    return absl::ResourceExhaustedError("too many engines");
  return absl::OkStatus();
}

absl::StatusOr<ClassState*> CacheManager::Impl::ClassFor(const std::vector<uint64_t>& shard_bytes) {
  for (const auto& c : classes) {
    if (c->store->shard_bytes() == shard_bytes) return c.get();
  }
  const bool whole_pages = ssd.enabled();  // direct I/O into the arena
  if (budget_bytes == 0) {
    std::optional<uint64_t> bytes =
        BudgetForBlocks(shard_bytes, options.segment_bytes, options.num_cpu_blocks, whole_pages);
    if (!bytes.has_value())
      return absl::InvalidArgumentError("num_cpu_blocks of this layout is no amount of memory");
    budget_bytes = *bytes;
  }
  std::optional<GroupGeometry> geometry =
      PlanGeometry(shard_bytes, options.segment_bytes, budget_bytes, whole_pages);
  if (!geometry.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("one block is larger than the cache of ", budget_bytes, " bytes"));
  }
  absl::StatusOr<std::unique_ptr<EvictionPolicy>> policy =
      NewEvictionPolicy(options.eviction_policy, options.objective);
  if (!policy.ok()) return policy.status();
  auto made = std::make_unique<ClassState>();
  std::optional<SsdSlots::Options> ssd_slots = PlanSsd(shard_bytes, &made->ssd);
  made->store = std::make_unique<SizeClass>(shard_bytes, *std::move(geometry), ssd_slots,
                                            *std::move(policy), segments);
  classes.push_back(std::move(made));
  return classes.back().get();
}

Namespace* CacheManager::Impl::NamespaceFor(const EngineSpec& spec, ClassState* size_class) {
  const auto replicas = static_cast<uint32_t>(spec.replicated ? spec.shard_bytes.size() : 0);
  NamespaceDigest digest{};
  if (ssd.enabled())
    digest = DigestOfNamespace(spec.namespace_key, spec.tokens_per_block,
                               size_class->store->shard_bytes(), replicas);
  for (const auto& ns : namespaces) {
    if (!ns->nameless && ns->size_class == size_class &&
        ns->tokens_per_block == spec.tokens_per_block && ns->replicas == replicas &&
        ns->key == spec.namespace_key) {
      return ns.get();
    }
    if (!ns->nameless || ns->size_class != size_class || ns->digest != digest) continue;
    ns->nameless = false;
    ns->key = spec.namespace_key;
    ns->label = spec.namespace_label;
    ns->tokens_per_block = spec.tokens_per_block;
    ns->replicas = replicas;
    return ns.get();
  }
  auto made = std::make_unique<Namespace>();
  made->key = spec.namespace_key;
  made->label = spec.namespace_label;
  made->tokens_per_block = spec.tokens_per_block;
  made->replicas = replicas;
  made->size_class = size_class;
  made->digest = digest;
  if (auto epoch = ssd.epochs.find(digest); epoch != ssd.epochs.end())
    made->ssd_epoch = epoch->second;
  SetEpoch(made.get(), next_namespace++);
  namespaces.push_back(std::move(made));
  return namespaces.back().get();
}

absl::StatusOr<EngineHandle> CacheManager::Impl::Attach(const EngineSpec& spec, TimeNs at) {
  Advance(at);
  if (absl::Status status = CheckSpec(spec); !status.ok()) return status;
  absl::StatusOr<ClassState*> size_class =
      spec.replicated ? ClassFor({spec.shard_bytes.front()}) : ClassFor(spec.shard_bytes);
  if (!size_class.ok()) return size_class.status();
  AdoptRecovered();  // where the budget was known only now
  auto engine = std::make_unique<Engine>();
  engine->handle = next_engine++;
  engine->world_size = static_cast<uint32_t>(spec.shard_bytes.size());
  engine->replicated = spec.replicated;
  engine->size_class = *size_class;
  engine->ns = NamespaceFor(spec, *size_class);
  ++engine->size_class->engines;
  ++engine->ns->engines;
  const EngineHandle handle = engine->handle;
  engines.emplace(handle, std::move(engine));
  return handle;
}

void CacheManager::Impl::Detach(EngineHandle handle) {
  Engine* engine = FindEngine(handle);
  if (engine == nullptr) return;
  EndAllRequests(engine);
  // In a fixed order: the same calls give the same run, whatever a hash table's order is.
  std::vector<uint64_t> ids;
  for (const auto& [key, id] : engine->ops) ids.push_back(id);
  std::sort(ids.begin(), ids.end());
  for (uint64_t id : ids) {
    Op* op = ops.at(id).get();
    op->attached = false;
    if (op->from_ssd != nullptr) {
      FailPartsFrom(op, 0);
      op->closed = true;
      if (op->open_parts == 0) FinishOp(id);
      continue;
    }
    if (op->route != Route::kDeviceToCpu) continue;
    // Nobody shall wait for blocks that will never be ready.
    for (SlotId slot : op->slots) op->size_class->store->Erase(slot);
  }
  std::erase_if(events, [&](const ManagerEvent& event) { return event.engine == handle; });
  --engine->ns->engines;
  --engine->size_class->engines;
  engines.erase(handle);
}

void CacheManager::Impl::ResetNamespace(Namespace* ns, uint64_t reset) {
  for (auto& [handle, engine] : engines) {
    if (engine->ns == ns) EndLeases(engine.get());
  }
  // The slots that loads still mean to read from may soon hold other blocks. In a fixed order.
  for (uint64_t id : ssd.waiting_loads) {
    auto it = ops.find(id);
    if (it != ops.end() && it->second->ns == ns) FailPartsFrom(it->second.get(), 0);
  }
  ns->size_class->store->DropNamespace(ns->id);
  SetEpoch(ns, next_namespace++);
  ++ns->epoch;
  Count(ns, &CacheCounters::resets, 1);
  if (!ssd.unread && !ssd.written.contains(ns->digest)) return;
  RaiseEpoch(ns->digest, ++ns->ssd_epoch, reset);
}

// Namespaces that a device may hold something of, and that nobody has named since or any more.
uint32_t CacheManager::Impl::ResetUnknown(uint64_t reset) {
  absl::flat_hash_set<NamespaceDigest> unknown = ssd.written;
  for (const auto& ns : namespaces) unknown.erase(ns->digest);
  std::vector<NamespaceDigest> digests(unknown.begin(), unknown.end());
  std::sort(digests.begin(), digests.end());  // the same run every time
  for (const NamespaceDigest& digest : digests) {
    auto epoch = ssd.epochs.find(digest);
    RaiseEpoch(digest, epoch == ssd.epochs.end() ? 2 : epoch->second + 1, reset);
  }
  return static_cast<uint32_t>(digests.size());
}

void CacheManager::Impl::RaiseEpoch(const NamespaceDigest& ns, uint32_t epoch, uint64_t reset) {
  ssd.epochs[ns] = epoch;
  for (uint32_t device = 0; device < ssd.devices.size(); ++device) {
    ssd.raises.push_back({reset, device, ns, epoch});
    ++ssd.resets.at(reset).unanswered;
  }
}

uint64_t CacheManager::Impl::BeginReset(EngineHandle engine, uint64_t tag) {
  const uint64_t reset = ssd.next_reset++;
  ssd.resets.emplace(reset, PendingReset{.tag = tag, .engine = engine});
  return reset;
}

void CacheManager::Impl::EndResetIfDone(uint64_t reset) {
  auto it = ssd.resets.find(reset);
  if (it->second.unanswered > 0) return;
  const PendingReset done = it->second;
  ssd.resets.erase(it);
  if (done.engine != 0 && FindEngine(done.engine) == nullptr) return;
  events.push_back(ManagerEvent{.kind = ManagerEvent::Kind::kResetDone,
                                .engine = done.engine,
                                .key = done.tag,
                                .status = done.failed ? OpStatus::kFailed : OpStatus::kOk});
}

// Namespaces and classes that hold nothing and serve nobody.
void CacheManager::Impl::CollectGarbage() {
  std::erase_if(namespaces, [&](const std::unique_ptr<Namespace>& ns) {
    SizeClass& store = *ns->size_class->store;
    if (ns->engines > 0 || ns->ops > 0 || store.BlocksOf(ns->id) > 0) return false;
    store.DropNamespace(ns->id);
    found_ns = nullptr;
    namespace_by_id.erase(ns->id);
    return true;
  });
  std::erase_if(classes, [&](const std::unique_ptr<ClassState>& c) {
    if (c->engines > 0 || c->store->slots().num_groups() > 0) return false;
    if (c->store->ssd() != nullptr && c->store->ssd()->num_groups() > 0) return false;
    const bool named =
        std::any_of(ssd.commands.begin(), ssd.commands.end(),
                    [&](const auto& entry) { return entry.second.size_class == c.get(); });
    return !named && std::none_of(namespaces.begin(), namespaces.end(),
                                  [&](const auto& ns) { return ns->size_class == c.get(); });
  });
}

// --- public --------------------------------------------------------------------------------------

CacheManager::CacheManager(Options options, SegmentStore* segments, TransferEngine* transfers,
                           std::vector<SsdPort*> ssd)
    : impl_(std::make_unique<Impl>(options, segments, transfers, std::move(ssd))) {}

CacheManager::~CacheManager() = default;

absl::StatusOr<EngineHandle> CacheManager::AttachEngine(const EngineSpec& spec, TimeNs now) {
  return impl_->Attach(spec, now);
}

void CacheManager::DetachEngine(EngineHandle engine, TimeNs now) {
  impl_->Advance(now);
  impl_->Detach(engine);
}

absl::StatusOr<LookupAnswer> CacheManager::Lookup(EngineHandle engine, RequestKey request,
                                                  uint32_t first, std::span<const BlockHash> suffix,
                                                  TimeNs now, RequestHint hint) {
  impl_->Advance(now);
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return UnknownEngine();
  return impl_->Lookup(found, request, first, suffix, hint);
}

absl::Status CacheManager::Load(EngineHandle engine, RequestKey request, OpKey key, LeaseId lease,
                                uint32_t first, uint32_t count, TimeNs now) {
  impl_->Advance(now);
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return UnknownEngine();
  if (absl::Status status = impl_->CheckNewOp(found, key); !status.ok()) return status;
  absl::Status status = impl_->CheckLoad(found, request, lease, first, count);
  if (status.ok()) status = impl_->Load(found, request, key, first, count);
  if (!status.ok()) {
    impl_->Refuse(found, key, Route::kCpuToDevice);
    impl_->Count(found->ns, &CacheCounters::loads_refused, 1);
  }
  return status;
}

absl::StatusOr<PutAnswer> CacheManager::Put(EngineHandle engine, RequestKey request, OpKey key,
                                            uint32_t first, uint32_t count, uint32_t suffix_first,
                                            std::span<const BlockHash> suffix, TimeNs now,
                                            RequestHint hint) {
  impl_->Advance(now);
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return UnknownEngine();
  if (absl::Status status = impl_->CheckNewOp(found, key); !status.ok()) return status;
  absl::StatusOr<PutAnswer> answer =
      impl_->Put(found, request, key, first, count, suffix_first, suffix, hint);
  if (!answer.ok() || answer->accepted == 0) impl_->Refuse(found, key, Route::kDeviceToCpu);
  return answer;
}

void CacheManager::ReleaseLease(EngineHandle engine, RequestKey request, LeaseId lease) {
  Engine* found = impl_->FindEngine(engine);
  Request* held = found == nullptr ? nullptr : impl_->FindRequest(found, request);
  if (held == nullptr || (lease != 0 && held->lease.id != lease)) return;
  impl_->EndLease(held);
}

void CacheManager::EndRequest(EngineHandle engine, RequestKey request) {
  if (Engine* found = impl_->FindEngine(engine); found != nullptr)
    impl_->EndRequest(found, request);
}

absl::Status CacheManager::Reset(EngineHandle engine, uint64_t tag, TimeNs now) {
  impl_->Advance(now);
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return UnknownEngine();
  const uint64_t reset = impl_->BeginReset(engine, tag);
  impl_->ResetNamespace(found->ns, reset);
  impl_->SubmitRaises();
  impl_->EndResetIfDone(reset);
  return absl::OkStatus();
}

uint32_t CacheManager::ResetByLabel(const std::string& label, uint64_t tag, TimeNs now) {
  impl_->Advance(now);
  uint32_t count = 0;
  const uint64_t reset = impl_->BeginReset(0, tag);
  for (const auto& ns : impl_->namespaces) {
    if (!label.empty() && ns->label != label) continue;
    impl_->ResetNamespace(ns.get(), reset);
    ++count;
  }
  if (label.empty()) count += impl_->ResetUnknown(reset);
  impl_->SubmitRaises();
  impl_->EndResetIfDone(reset);
  return count;
}

void CacheManager::RecordGet(EngineHandle engine, const GetRecord& record) {
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return;
  impl_->Count(found->ns, &CacheCounters::gets, 1);
  impl_->Count(found->ns, &CacheCounters::prompt_tokens, record.prompt_tokens);
  impl_->Count(found->ns, &CacheCounters::engine_matched_tokens, record.engine_matched_tokens);
  impl_->Count(found->ns, &CacheCounters::offered_tokens, record.offered_tokens);
  impl_->Count(found->ns, &CacheCounters::taken_tokens, record.taken_tokens);
  impl_->Count(found->ns, &CacheCounters::loaded_tokens, record.loaded_tokens);
  impl_->Count(found->ns, &CacheCounters::failed_tokens, record.failed_tokens);
}

void CacheManager::Tick(TimeNs now) {
  impl_->Advance(now);
  impl_->TakeCompletions();
  impl_->ExpireLeases();
  if (impl_->ssd.enabled()) impl_->TickSsd();
  for (const auto& c : impl_->classes) impl_->EvictAhead(c.get());
  impl_->BalanceClasses();
  impl_->Housekeeping();
}

bool CacheManager::WantsTicks() const {
  return !impl_->ssd.hints.empty() || !impl_->ssd.waiting_loads.empty();
}

void CacheManager::TakeEvents(std::vector<ManagerEvent>* events) {
  events->clear();
  events->swap(impl_->events);
}

bool CacheManager::SegmentsOf(EngineHandle engine, uint32_t rank, uint64_t* seen,
                              std::vector<SegmentId>* segments) const {
  Engine* found = impl_->FindEngine(engine);
  if (found == nullptr || rank >= found->world_size) return false;
  const SizeClass& store = *found->size_class->store;
  if (*seen == store.version()) return false;
  *seen = store.version();
  store.SegmentsOf(found->replicated ? 0 : rank, segments);
  return true;
}

ManagerStatus CacheManager::status() const { return impl_->Status(); }
const CacheCounters& CacheManager::counters() const { return impl_->total; }

std::span<const BlockHash> CacheManager::ChainOf(EngineHandle engine, RequestKey request) const {
  Engine* found = impl_->FindEngine(engine);
  const Request* known = found == nullptr ? nullptr : impl_->FindRequest(found, request);
  if (known == nullptr) return {};
  return known->chain;
}

CacheManager::NamespaceInfo CacheManager::NamespaceOf(EngineHandle engine) const {
  const Engine* found = impl_->FindEngine(engine);
  if (found == nullptr) return {};
  return {found->ns->id, found->ns->tokens_per_block, found->ns->label};
}

absl::Status CacheManager::CheckInvariants() const { return impl_->CheckInvariants(); }

}  // namespace flexkv
