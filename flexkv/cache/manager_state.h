// What the cache manager keeps, and its parts by topic. Private to flexkv/cache.
//
//   cache_manager.cc   the public face; engines and namespaces
//   requests.cc        chains, lookups, leases
//   ops.cc             loads and puts from launch to end
//   room.cc            slots for puts, memory between size classes, ticks
//   ssd_*.cc           the SSD tier (ssd_state.h)
//   manager_status.cc  status and invariants
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/cache/size_class.h"
#include "flexkv/cache/ssd_state.h"

namespace flexkv {

struct Engine;

struct ClassState {
  std::unique_ptr<SizeClass> store;
  uint32_t engines = 0;
  TimeNs waiting_until = 0;    // was short of room; others leave it a group until then
  TimeNs no_memory_until = 0;  // the SegmentStore had nothing; not asked again before
  ClassSsd ssd;
};

struct Namespace {
  std::string key;
  std::string label;
  NamespaceId id = 0;  // of the present epoch
  uint32_t epoch = 1;
  uint32_t engines = 0;
  uint32_t ops = 0;  // in flight, of any epoch
  uint32_t tokens_per_block = 0;
  uint32_t replicas = 0;  // ranks that hold every block alike; 0: each has a shard of its own
  ClassState* size_class = nullptr;
  NamespaceDigest digest{};  // with an SSD tier
  uint32_t ssd_epoch = 1;    // what its blocks on disk carry
  bool nameless = false;     // found on a device; its engine has not come yet, so no key is known
  CacheCounters counters;
};

struct Lease {
  LeaseId id = 0;  // 0 = none
  uint32_t blocks = 0;
  SlotId last;         // the pinned block
  NamespaceId ns = 0;  // for Unpin
  uint32_t loads = 0;  // running under it; with any the lease has no deadline
  TimeNs deadline = 0;
};

struct Request {
  RequestKey key = 0;
  Engine* engine = nullptr;
  std::vector<BlockHash> chain;
  uint32_t touched = 0;  // leading blocks of the chain that its lookups have found so far
  RequestHint hint;
  bool accessed = false;  // looked up at least one block
  Lease lease;
  Request* older = nullptr;  // list of leases with a deadline, by deadline
  Request* newer = nullptr;
  bool listed = false;
};

struct Engine {
  EngineHandle handle = 0;
  uint32_t world_size = 0;
  bool replicated = false;
  Namespace* ns = nullptr;
  ClassState* size_class = nullptr;
  uint64_t chain_blocks = 0;  // sum of all chains
  absl::flat_hash_map<RequestKey, std::unique_ptr<Request>> requests;
  absl::flat_hash_map<OpKey, uint64_t> ops;  // in flight: key -> tag
};

// A load or put in flight. Holds one reference on each slot in `slots`.
struct Op {
  uint64_t id = 0;
  OpKey key = 0;
  EngineHandle engine = 0;
  uint32_t first_rank = 0, num_ranks = 0;  // who copies
  bool replicated = false;                 // all of them to or from the one shard there is
  bool attached = true;  // false: the engine is gone, nothing of the op becomes ready
  Route route = Route::kDeviceToCpu;
  Namespace* ns = nullptr;
  NamespaceId ns_id = 0;  // the epoch it was launched in
  ClassState* size_class = nullptr;
  TimeNs launched = 0;
  uint32_t first_engine_index = 0;  // of position 0
  std::vector<SlotId> slots;        // CPU slots; kNoSlot: not in memory yet, or done with
  std::vector<bool> failed;         // by position; empty: none
  uint32_t ssd_blocks = 0;          // loads: read from an SSD, or awaited from one
  TimeNs last_read = 0;             // loads: when the last of them was there
  TimeNs copy_ns = 0;               // of its parts that ended
  uint32_t sent_parts = 0;
  uint32_t open_parts = 0;  // sent and not ended
  bool closed = false;      // no more parts follow
  SlotId pinned;            // loads: keeps the prefix until all ranks are done
  NamespaceId pin_ns = 0;   // loads: for Unpin
  RequestKey request = 0;   // loads: whose lease ends with the op
  LeaseId lease = 0;
  std::unique_ptr<SsdLoad> from_ssd;  // loads of which not all is in memory

  bool Failed(size_t position) const { return !failed.empty() && failed[position]; }
  void Fail(uint32_t begin, uint32_t end) {
    failed.resize(slots.size());
    std::fill(failed.begin() + begin, failed.begin() + end, true);
  }
};

// Part of an op under way: one graph with one transfer op per rank.
struct LaunchedPart {
  uint64_t op = 0;
  uint32_t begin = 0, end = 0;  // positions
  uint32_t ranks_left = 0;
  TimeNs copy_ns = 0;  // of the slowest rank
};

struct CacheManager::Impl {
  static constexpr uint32_t kDrainSlotsPerCall = 1024;
  static constexpr uint64_t kEvictAheadPerTick = 1024;
  static constexpr TimeNs kHousekeepingNs = 100 * kNsPerMs;
  static constexpr TimeNs kWaitingNs = 10 * kNsPerSecond;
  static constexpr TimeNs kNoMemoryNs = kNsPerSecond;
  static constexpr size_t kSpareRequests = 256;
  static constexpr size_t kSpareOps = 64;
  static constexpr size_t kSpareChainBlocks = 4096;

  static constexpr uint32_t kSsdCommandsPerTick = 256;
  static constexpr uint32_t kSsdBlocksForOne = 64;
  static constexpr uint32_t kSsdLoadPartsAhead = 4;      // of one load, being read
  static constexpr uint64_t kMaxReadsForPrefetch = 256;  // in flight; beyond, nothing is read ahead
  static constexpr TimeNs kPrefetchDelayNs = 2 * kNsPerMs;

  Impl(Options o, SegmentStore* s, TransferEngine* t, std::vector<SsdPort*> ssd_ports);

  // --- cache_manager.cc
  Engine* FindEngine(EngineHandle handle);
  absl::Status CheckSpec(const EngineSpec& spec);
  absl::StatusOr<ClassState*> ClassFor(const std::vector<uint64_t>& shard_bytes);
  Namespace* NamespaceFor(const EngineSpec& spec, ClassState* size_class);
  absl::StatusOr<EngineHandle> Attach(const EngineSpec& spec, TimeNs at);
  void Detach(EngineHandle handle);
  void ResetNamespace(Namespace* ns, uint64_t reset);
  uint32_t ResetUnknown(uint64_t reset);
  void RaiseEpoch(const NamespaceDigest& ns, uint32_t epoch, uint64_t reset);
  uint64_t BeginReset(EngineHandle engine, uint64_t tag);
  void EndResetIfDone(uint64_t reset);
  void Advance(TimeNs at) { now = at > now ? at : now; }
  void Count(Namespace* ns, uint64_t CacheCounters::*field, uint64_t amount);
  Namespace* NamespaceById(NamespaceId id);
  void SetEpoch(Namespace* ns, NamespaceId id);
  void CollectGarbage();

  // --- requests.cc
  Request* FindRequest(Engine* engine, RequestKey key);
  absl::StatusOr<Request*> RequestFor(Engine* engine, RequestKey key, uint32_t first);
  absl::Status Extend(Request* request, uint32_t first, std::span<const BlockHash> suffix);
  absl::StatusOr<Request*> ExtendOrCreate(Engine* engine, RequestKey key, uint32_t first,
                                          std::span<const BlockHash> suffix);
  absl::StatusOr<LookupAnswer> Lookup(Engine* engine, RequestKey key, uint32_t first,
                                      std::span<const BlockHash> suffix, RequestHint hint);
  BlockAccess NextAccess(Request* request, bool lookup) const;
  PrefixMatch WithoutDamaged(const ClassState& size_class, PrefixMatch match) const;
  void FindTiers(const ClassState& size_class, const Lease& lease, LookupAnswer* answer);
  void EndLease(Request* request);
  void EndRequest(Engine* engine, RequestKey key);
  void EndLeases(Engine* engine);
  void EndAllRequests(Engine* engine);
  void Retire(std::unique_ptr<Request> request);
  void Enlist(Request* request);
  void Unlist(Request* request);
  void ExpireLeases();

  // --- ops.cc
  absl::Status CheckNewOp(Engine* engine, OpKey key);
  void Refuse(Engine* engine, OpKey key, Route route, uint32_t spared_rank = ManagerEvent::kNoRank);
  void Prepare(Engine* engine, Op* op);
  absl::Status Launch(Engine* engine, std::unique_ptr<Op> op);
  void ReleaseSlots(Op* op, uint32_t begin, uint32_t end);
  absl::Status SubmitPart(Op* op, uint32_t begin, uint32_t end, bool more);
  Op* Register(Engine* engine, std::unique_ptr<Op> op);
  absl::Status CheckLoad(Engine* engine, RequestKey request, LeaseId lease, uint32_t first,
                         uint32_t count);
  absl::Status Load(Engine* engine, RequestKey request, OpKey key, uint32_t first, uint32_t count);
  void TrimLease(Request* request, SlotId last, uint32_t blocks);
  absl::StatusOr<PutAnswer> Put(Engine* engine, RequestKey request, OpKey key, uint32_t first,
                                uint32_t count, uint32_t suffix_first,
                                std::span<const BlockHash> suffix, RequestHint hint);
  PutPlan PlanPutOf(Engine* engine, std::span<const BlockHash> chain, uint32_t first,
                    uint32_t count);
  uint32_t LaunchPut(Request* request, OpKey key, std::span<const BlockHash> chain, uint32_t first,
                     const PutPlan& plan);
  void TakeCompletions();
  void EndPart(uint64_t tag);
  void FinishOp(uint64_t id);
  std::unique_ptr<Op> NewOp(OpKey key, Route route);
  void Retire(std::unique_ptr<Op> op);
  uint32_t FinishPut(Op* op);
  uint32_t FinishLoad(Op* op);

  // --- room.cc
  std::vector<ClassShare> Shares() const;
  size_t IndexOf(const ClassState* size_class) const;
  uint32_t AddableGroups(ClassState* size_class, uint32_t most) const;
  bool Grow(ClassState* size_class);
  bool Evict(ClassState* size_class, SlotId* reuse = nullptr);
  bool Reclaim(ClassState* needy);
  void AllocateSlots(ClassState* size_class, const PutPlan& plan, std::vector<SlotId>* slots);
  void EvictAhead(ClassState* size_class);
  void BalanceClasses();
  void Housekeeping();

  bool AllocateForRead(ClassState* size_class, bool ahead, SlotId* slot);

  // --- ssd_devices.cc
  void OpenSsd(std::vector<SsdPort*> ports);
  std::optional<SsdSlots::Options> PlanSsd(std::span<const uint64_t> shard_bytes, ClassSsd* ssd);
  SsdIdentity IdentityOf(const ClassState& size_class, const Namespace& ns, SlotId handle) const;
  std::vector<ArenaShard> ShardsOf(const ClassState& size_class, SlotId cpu) const;
  // Gives a command to its device by `submit(port, tag)`, and remembers it. False: the device takes
  // no more now; nothing changed.
  template <typename Submit>
  bool Issue(const SsdCommand& command, Submit submit) {
    if (!submit(ssd.devices[command.device].port, ssd.next_command)) return false;
    ssd.commands.emplace(ssd.next_command++, command);
    return true;
  }
  void TickSsd();
  void TakeSsdResults();
  void EndCommand(const SsdCommand& command, const SsdPortResult& result);
  void EndFree(const SsdCommand& command, const absl::Status& status);
  void EndRaise(const SsdCommand& command, const absl::Status& status);
  void EraseDamaged(ClassState* size_class);
  void SubmitRaises();
  void SubmitFrees(ClassState* size_class);

  // --- ssd_segments.cc
  void DropUnplaced(uint32_t device, uint32_t segment, uint64_t bytes);
  void EndCreate(const SsdCommand& command, const SsdPortResult& result);
  void EndDrop(const SsdCommand& command, const absl::Status& status);
  std::vector<bool> WritableDevices() const;
  uint64_t SsdBytes() const;
  std::vector<ClassShare> SsdShares() const;
  uint64_t SsdSlotsOfAll() const;
  bool MayGrowSsd(ClassState* size_class) const;
  bool GrowSsd(ClassState* size_class);
  void EvictAheadOnSsd(ClassState* size_class);
  void BalanceSsd();
  void DrainSsd(ClassState* size_class);
  void StartDrainSsd(ClassState* size_class, bool closed_only);

  // --- ssd_writes.cc
  void QueueWrite(ClassState* size_class, SlotId cpu);
  void StartWrites();
  bool StartNextWrite(ClassState* size_class, std::vector<bool>* usable);
  bool SubmitWrite(ClassState* size_class, SlotId cpu, Namespace* ns, SlotId ssd);
  void EndWrite(const SsdCommand& command, const absl::Status& status);
  bool MoveOrFree(ClassState* size_class, SlotId cpu, SlotId ssd);
  void MoveWritten(ClassState* size_class);
  void RefillWriteTokens();

  // --- ssd_reads.cc
  bool NeedsSsd(const ClassState& size_class, const std::vector<SlotId>& handles) const;
  void NoteLoaded(ClassState* size_class, const std::vector<SlotId>& handles);
  void LoadFromSsd(Engine* engine, std::unique_ptr<Op> op);
  void AdvanceLoads();
  void AdvanceLoad(Op* op, bool* no_room);
  bool StartPartReads(Op* op, SsdLoadPart* part);
  void FailPartsFrom(Op* op, size_t first);
  void SendParts(Op* op);
  void CloseLoad(Op* op);
  BlockRead* StartRead(ClassState* size_class, SlotId handle, bool ahead);
  void EndRead(const SsdCommand& command, const absl::Status& status);
  void Prefetch();

  // --- ssd_recovery.cc
  void AdoptRecovered();
  void AdoptSegment(uint32_t device, const SsdSegmentInfo& segment);
  void AdoptBlocks();

  // --- manager_status.cc
  ManagerStatus Status() const;
  absl::Status CheckInvariants() const;
  SsdTierStatus StatusOfSsd() const;
  std::vector<uint32_t> TransferRefs(const ClassState& size_class) const;
  absl::Status CheckSsd(const ClassState& size_class) const;
  absl::Status CheckRequests() const;
  absl::Status CheckPins() const;
  absl::Status CheckOps() const;

  const Options options;
  SegmentStore* const segments;
  TransferEngine* const transfers;
  uint64_t budget_bytes = 0;
  TimeNs now = 0;
  TimeNs next_housekeeping = 0;

  std::vector<std::unique_ptr<ClassState>> classes;
  std::vector<std::unique_ptr<Namespace>> namespaces;
  absl::flat_hash_map<NamespaceId, Namespace*> namespace_by_id;  // present epochs
  // The one asked for last, as evictions ask for the same again and again; nullptr: look it up.
  NamespaceId found_ns_id = 0;
  Namespace* found_ns = nullptr;
  absl::flat_hash_map<EngineHandle, std::unique_ptr<Engine>> engines;
  absl::flat_hash_map<uint64_t, std::unique_ptr<Op>> ops;  // by id
  absl::flat_hash_map<uint64_t, LaunchedPart> parts;       // by graph tag
  std::vector<std::unique_ptr<Request>> spare_requests;    // so that a lookup allocates nothing
  std::vector<std::unique_ptr<Op>> spare_ops;
  TransferEngine::Completed completed;  // scratch
  Request* oldest_lease = nullptr;
  Request* newest_lease = nullptr;
  uint32_t leases = 0;
  uint32_t requests = 0;

  EngineHandle next_engine = 1;
  NamespaceId next_namespace = 1;
  LeaseId next_lease = 1;
  uint64_t next_op = 1;
  uint64_t next_tag = 1;
  SsdTier ssd;
  std::vector<SlotId> path_slots;  // scratch
  CacheCounters total;
  std::vector<ManagerEvent> events;
};

}  // namespace flexkv
