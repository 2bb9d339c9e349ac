// Loads and puts from launch to end.
//
// An op goes to the ranks in one part, or, a load of blocks that come from an SSD, in several: one
// part is one graph with a transfer op per rank. The op holds one reference on each of its slots
// until every rank has reported the part, so bytes under a copy are never handed out again,
// whatever happens to the index meanwhile: a slot that the tree no longer holds when the op ends
// (reset, erased parent, detached engine) is simply freed.
#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fault.h"
#include "flexkv/cache/manager_state.h"

namespace flexkv {
namespace {

OpStatus StatusOf(uint32_t ok, size_t all) {
  if (ok == all) return OpStatus::kOk;
  return ok == 0 ? OpStatus::kFailed : OpStatus::kPartial;
}

}  // namespace

absl::Status CacheManager::Impl::CheckNewOp(Engine* engine, OpKey key) {
  if (key == 0) return absl::InvalidArgumentError("op key 0");
  if (engine->ops.contains(key)) return absl::InvalidArgumentError("op key in use");
  return absl::OkStatus();
}

void CacheManager::Impl::Refuse(Engine* engine, OpKey key, Route route, uint32_t spared_rank) {
  events.push_back(ManagerEvent{.kind = ManagerEvent::Kind::kRefuseOp,
                                .engine = engine->handle,
                                .key = key,
                                .route = route,
                                .status = OpStatus::kFailed,
                                .spared_rank = spared_rank});
}

// Submits positions [begin, end) to the ranks that copy; none of them is missing. On failure
// nothing is changed.
absl::Status CacheManager::Impl::SubmitPart(Op* op, uint32_t begin, uint32_t end, bool more) {
  const SizeClass& store = *op->size_class->store;
  TransferGraph graph;
  graph.tag = next_tag;
  graph.ops.resize(op->num_ranks);
  for (uint32_t index = 0; index < op->num_ranks; ++index) {
    TransferOp& copy = graph.ops[index];
    const uint32_t rank = op->first_rank + index;
    const uint32_t shard = op->replicated ? 0 : rank;
    copy.route = op->route;
    copy.engine = op->engine;
    copy.rank = rank;
    copy.key = op->key;
    copy.part = op->sent_parts;
    copy.more = more;
    copy.blocks.reserve(end - begin);
    for (uint32_t i = begin; i < end; ++i) {
      copy.blocks.push_back(store.PlaceOf(op->slots[i], shard, op->first_engine_index + i));
    }
  }
  absl::StatusOr<GraphId> submitted = transfers->SubmitTransferGraph(std::move(graph));
  if (!submitted.ok()) return submitted.status();
  parts.emplace(
      next_tag++,
      LaunchedPart{.op = op->id, .begin = begin, .end = end, .ranks_left = op->num_ranks});
  ++op->sent_parts;
  ++op->open_parts;
  op->closed = !more;
  return absl::OkStatus();
}

// Fills in what follows from the engine.
void CacheManager::Impl::Prepare(Engine* engine, Op* op) {
  op->id = next_op++;
  op->engine = engine->handle;
  op->replicated = engine->replicated;
  op->num_ranks = engine->world_size;
  if (op->replicated && op->route == Route::kDeviceToCpu) {
    op->first_rank = RankOfStore(op->key, engine->world_size);
    op->num_ranks = 1;
  }
  op->ns = engine->ns;
  op->ns_id = engine->ns->id;
  op->size_class = engine->size_class;
  op->launched = now;
}

Op* CacheManager::Impl::Register(Engine* engine, std::unique_ptr<Op> op) {
  Op* raw = op.get();
  ++engine->ns->ops;
  engine->ops.emplace(raw->key, raw->id);
  ops.emplace(raw->id, std::move(op));
  return raw;
}

// Sends an op whose blocks are all in memory, and takes its references. On failure nothing is
// changed.
absl::Status CacheManager::Impl::Launch(Engine* engine, std::unique_ptr<Op> op) {
  Prepare(engine, op.get());
  const auto blocks = static_cast<uint32_t>(op->slots.size());
  if (absl::Status status = SubmitPart(op.get(), 0, blocks, false); !status.ok()) return status;
  for (SlotId slot : op->slots) engine->size_class->store->slots().Ref(slot);
  Register(engine, std::move(op));
  return absl::OkStatus();
}

// --- load ----------------------------------------------------------------------------------------

absl::Status CacheManager::Impl::CheckLoad(Engine* engine, RequestKey request_key, LeaseId lease,
                                           uint32_t first, uint32_t count) {
  const Request* request = FindRequest(engine, request_key);
  if (request == nullptr || lease == 0 || request->lease.id != lease) {
    return absl::NotFoundError("the lease is over, or not this request's");
  }
  if (!RangeInLease(first, count, request->lease.blocks)) {
    return absl::InvalidArgumentError(absl::StrCat("load of [", first, ", +", count,
                                                   ") outside a lease of ", request->lease.blocks,
                                                   " blocks"));
  }
  if (engine->ops.size() >= options.max_ops_per_engine)
    return absl::ResourceExhaustedError("too many ops in flight");
  if (FaultFires("manager.refuse_load")) return absl::ResourceExhaustedError("told to refuse");
  return absl::OkStatus();
}

absl::Status CacheManager::Impl::Load(Engine* engine, RequestKey request_key, OpKey key,
                                      uint32_t first, uint32_t count) {
  Request* request = FindRequest(engine, request_key);
  RadixTree& tree = engine->size_class->store->tree();
  const uint32_t end = first + count;
  const SlotId last = tree.Ancestor(request->lease.last, request->lease.blocks - end);
  if (!last.valid()) return absl::InternalError("lease without its path");
  std::unique_ptr<Op> op = NewOp(key, Route::kCpuToDevice);
  op->request = request_key;
  op->lease = request->lease.id;
  op->pinned = last;
  tree.PathSlots(last, count, &op->slots);
  op->pin_ns = tree.Pin(last);
  if (ssd.enabled()) NoteLoaded(engine->size_class, op->slots);
  const NamespaceId pin_ns = op->pin_ns;
  if (NeedsSsd(*engine->size_class, op->slots)) {
    LoadFromSsd(engine, std::move(op));
  } else {
    for (SlotId& slot : op->slots) slot = engine->size_class->store->InMemory(slot);
    if (absl::Status status = Launch(engine, std::move(op)); !status.ok()) {
      tree.Unpin(pin_ns, last);
      return status;
    }
  }
  TrimLease(request, last, end);
  ++request->lease.loads;
  Unlist(request);
  Count(engine->ns, &CacheCounters::loads, 1);
  Count(engine->ns, &CacheCounters::load_blocks, count);
  AdvanceLoads();
  return absl::OkStatus();
}

void CacheManager::Impl::TrimLease(Request* request, SlotId last, uint32_t blocks) {
  Lease& lease = request->lease;
  if (lease.blocks == blocks) return;
  RadixTree& tree = request->engine->size_class->store->tree();
  const NamespaceId ns = tree.Pin(last);
  tree.Unpin(lease.ns, lease.last);
  lease.ns = ns;
  lease.last = last;
  lease.blocks = blocks;
}

// --- put -----------------------------------------------------------------------------------------

PutPlan CacheManager::Impl::PlanPutOf(Engine* engine, std::span<const BlockHash> chain,
                                      uint32_t first, uint32_t count) {
  ClassState* size_class = engine->size_class;
  PutOffer offer{.first = first, .count = count};
  offer.present = size_class->store->tree().PresentLength(engine->ns->id, chain);
  PutRoom room;
  room.free_slots = size_class->store->slots().free_slots();
  room.slots_per_group = size_class->store->geometry().slots_per_group;
  // The budget is looked at only when free slots do not suffice: most puts need no new group.
  if (room.free_slots < count) {
    const uint64_t missing = count - room.free_slots;
    const uint64_t groups = missing / std::max(1u, room.slots_per_group) + 1;
    room.addable_groups = AddableGroups(size_class, static_cast<uint32_t>(groups));
  }
  room.busy = engine->ops.size() >= options.max_ops_per_engine || FaultFires("manager.refuse_put");
  return PlanPut(offer, room);
}

// Returns how many blocks are being copied now.
uint32_t CacheManager::Impl::LaunchPut(Request* request, OpKey key,
                                       std::span<const BlockHash> chain, uint32_t first,
                                       const PutPlan& plan) {
  Engine* engine = request->engine;
  SizeClass& store = *engine->size_class->store;
  // The parent may be the next leaf to give way: hold it while room is made. A parent that is still
  // pending cannot be evicted, and neither can the ready blocks before it. A lease that ends there
  // holds it already.
  const bool leased = request->lease.id != 0 && request->lease.blocks == plan.start;
  PrefixMatch parent;
  if (!leased) parent = store.tree().Find(engine->ns->id, chain.first(plan.start));
  NamespaceId pin = 0;
  if (parent.num_blocks > 0) pin = store.tree().Pin(parent.last);
  std::unique_ptr<Op> op = NewOp(key, Route::kDeviceToCpu);
  AllocateSlots(engine->size_class, plan, &op->slots);
  if (parent.num_blocks > 0) store.tree().Unpin(pin, parent.last);
  const std::vector<SlotId>& slots = op->slots;
  if (slots.empty()) return 0;
  const SlotId first_slot = slots.front();
  const auto accepted = static_cast<uint32_t>(slots.size());
  const auto path = chain.first(plan.start + slots.size());
  if (!store.Insert(engine->ns->id, path, plan.start, slots, NextAccess(request, false)).ok()) {
    for (SlotId slot : slots) store.slots().Unref(slot);
    return 0;
  }
  op->first_engine_index = plan.start - first;
  if (!Launch(engine, std::move(op)).ok()) {
    store.Erase(first_slot);  // the rest hangs below it
    return 0;
  }
  if (engine->replicated && engine->world_size > 1)
    Refuse(engine, key, Route::kDeviceToCpu, RankOfStore(key, engine->world_size));
  return accepted;
}

absl::StatusOr<PutAnswer> CacheManager::Impl::Put(Engine* engine, RequestKey request_key, OpKey key,
                                                  uint32_t first, uint32_t count,
                                                  uint32_t suffix_first,
                                                  std::span<const BlockHash> suffix,
                                                  RequestHint hint) {
  absl::StatusOr<Request*> request = ExtendOrCreate(engine, request_key, suffix_first, suffix);
  if (!request.ok()) return request.status();
  if (hint.known()) (*request)->hint = hint;
  const std::vector<BlockHash>& known = (*request)->chain;
  if (count == 0 || uint64_t{first} + count > known.size()) {
    return absl::InvalidArgumentError(absl::StrCat("put of [", first, ", +", count,
                                                   ") with a chain of ", known.size(), " blocks"));
  }
  const std::span<const BlockHash> chain = std::span(known).first(size_t{first} + count);
  const PutPlan plan = PlanPutOf(engine, chain, first, count);
  PutAnswer answer{.held = plan.held};
  if (plan.verdict == PutVerdict::kCopy)
    answer.accepted = LaunchPut(*request, key, chain, first, plan);
  answer.refused = count - answer.held - answer.accepted;
  Count(engine->ns, &CacheCounters::puts, 1);
  Count(engine->ns, &CacheCounters::put_blocks_offered, count);
  Count(engine->ns, &CacheCounters::put_blocks_held, answer.held);
  Count(engine->ns, &CacheCounters::put_blocks_accepted, answer.accepted);
  Count(engine->ns, &CacheCounters::put_blocks_refused, answer.refused);
  return answer;
}

// --- end of ops ----------------------------------------------------------------------------------

void CacheManager::Impl::TakeCompletions() {
  transfers->TakeCompleted(0, &completed);
  for (const CompletedOp& done : completed.ops) {
    auto it = parts.find(done.tag);
    if (it == parts.end() || it->second.ranks_left == 0) continue;
    LaunchedPart& part = it->second;
    Op* op = ops.at(part.op).get();
    for (uint32_t position : done.result.failed) {
      if (position >= part.end - part.begin) continue;
      op->Fail(part.begin + position, part.begin + position + 1);
    }
    part.copy_ns = std::max(part.copy_ns, done.result.copy_ns);
    if (--part.ranks_left == 0) EndPart(done.tag);
  }
}

// Slots of a part that ended are done with: later parts may need the room.
void CacheManager::Impl::EndPart(uint64_t tag) {
  const LaunchedPart part = parts.extract(tag).mapped();
  Op* op = ops.at(part.op).get();
  --op->open_parts;
  op->copy_ns += part.copy_ns;
  if (op->from_ssd != nullptr) ReleaseSlots(op, part.begin, part.end);
  if (op->closed && op->open_parts == 0) FinishOp(op->id);
}

void CacheManager::Impl::ReleaseSlots(Op* op, uint32_t begin, uint32_t end) {
  for (uint32_t i = begin; i < end; ++i) {
    if (op->slots[i].valid()) op->size_class->store->slots().Unref(op->slots[i]);
    op->slots[i] = kNoSlot;
  }
}

// Blocks that every rank delivered become ready; the others leave the tree with what hangs below
// them.
uint32_t CacheManager::Impl::FinishPut(Op* op) {
  SizeClass& store = *op->size_class->store;
  uint32_t ok = 0;
  for (size_t i = 0; i < op->failed.size(); ++i) {
    if (op->failed[i]) store.Erase(op->slots[i]);
  }
  for (size_t i = 0; i < op->slots.size(); ++i) {
    if (op->attached && !op->Failed(i) && store.tree().Commit(op->slots[i])) ++ok;
  }
  if (ssd.enabled() && options.ssd.admission == SsdAdmission::kAlways) {
    for (SlotId slot : op->slots) QueueWrite(op->size_class, slot);
  }
  Count(op->ns, &CacheCounters::put_blocks_ready, ok);
  Count(op->ns, &CacheCounters::put_blocks_failed, op->slots.size() - ok);
  Count(op->ns, &CacheCounters::store_bytes, ok * store.block_bytes());
  return ok;
}

uint32_t CacheManager::Impl::FinishLoad(Op* op) {
  SizeClass& store = *op->size_class->store;
  store.tree().Unpin(op->pin_ns, op->pinned);
  const auto failed = static_cast<uint32_t>(std::count(op->failed.begin(), op->failed.end(), true));
  const auto ok = static_cast<uint32_t>(op->slots.size()) - failed;
  Count(op->ns, &CacheCounters::load_blocks_failed, failed);
  Count(op->ns, &CacheCounters::load_bytes, ok * store.block_bytes());
  Engine* engine = op->attached ? FindEngine(op->engine) : nullptr;
  Request* request = engine != nullptr ? FindRequest(engine, op->request) : nullptr;
  if (request != nullptr && request->lease.id == op->lease && --request->lease.loads == 0)
    EndLease(request);
  return ok;
}

// Ops are used again, so that a put allocates little.
std::unique_ptr<Op> CacheManager::Impl::NewOp(OpKey key, Route route) {
  std::unique_ptr<Op> op;
  if (spare_ops.empty()) {
    op = std::make_unique<Op>();
  } else {
    op = std::move(spare_ops.back());
    spare_ops.pop_back();
  }
  op->key = key;
  op->route = route;
  return op;
}

void CacheManager::Impl::Retire(std::unique_ptr<Op> op) {
  if (spare_ops.size() >= kSpareOps || op->slots.capacity() > kSpareChainBlocks) return;
  std::vector<SlotId> slots = std::move(op->slots);
  slots.clear();
  *op = Op{};
  op->slots = std::move(slots);
  spare_ops.push_back(std::move(op));
}

void CacheManager::Impl::FinishOp(uint64_t id) {
  std::unique_ptr<Op> op = std::move(ops.extract(id).mapped());
  const uint32_t ok = op->route == Route::kDeviceToCpu ? FinishPut(op.get()) : FinishLoad(op.get());
  ReleaseSlots(op.get(), 0, static_cast<uint32_t>(op->slots.size()));
  --op->ns->ops;
  if (!op->attached) return Retire(std::move(op));
  Engine* engine = FindEngine(op->engine);
  engine->ops.erase(op->key);
  events.push_back(ManagerEvent{.kind = ManagerEvent::Kind::kOpDone,
                                .engine = op->engine,
                                .key = op->key,
                                .route = op->route,
                                .status = StatusOf(ok, op->slots.size()),
                                .ok_blocks = ok,
                                .failed_blocks = static_cast<uint32_t>(op->slots.size()) - ok,
                                .ssd_blocks = op->ssd_blocks,
                                .duration_ns = now - op->launched,
                                .ssd_ns = op->last_read == 0 ? 0 : op->last_read - op->launched,
                                .copy_ns = std::min(op->copy_ns, now - op->launched),
                                .block_bytes = op->size_class->store->block_bytes()});
  Retire(std::move(op));
}

}  // namespace flexkv
