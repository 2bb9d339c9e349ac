// The core: one single-threaded state machine that owns index, slots and transfer plans. Requests,
// completions and ticks go in; answers, ops (through TransferEngine) and events come out. It does
// no I/O, reads no clock and rolls no dice of its own: time is an argument, memory comes from
// SegmentStore, copies are run by executors. So the daemon, the trace simulator and the fault
// simulation run the same code.
//
// Words: an *engine* is a scheduler and `world_size` ranks attached under one handle. A *size
// class* is all engines whose ranks have the same shard sizes: they share slots, one radix tree and
// one eviction order. A *namespace* is everything under which equal block hashes mean equal bytes;
// each has an epoch, and Reset starts the next one. Block counts are in cache blocks (the engine's
// block size).
//
// Life of slots: see storage/slot_table.h. Residency holds one reference, each transfer op one more
// per rank graph; bytes under a copy are never handed out again before that copy ended.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/request_hint.h"
#include "flexkv/index/policies.h"
#include "flexkv/storage/segment_store.h"
#include "flexkv/storage/ssd/ssd_port.h"
#include "flexkv/transfer/transfer_engine.h"

namespace flexkv {

// Which blocks are written to the SSD tier.
enum class SsdAdmission : uint8_t {
  kAlways,       // every block that was put
  kSecondTouch,  // those that were loaded from memory: spares the device what is used once
};

struct SsdTierOptions {
  uint64_t cache_bytes = 0;  // of all devices together, for planning; each store has its own quota
  uint64_t num_blocks = 0;   // when not 0: the budget in blocks, of all size classes together
  uint64_t segment_bytes = 1ull << 30;  // of one segment, at most
  uint64_t write_bytes_per_s = 0;       // write-back is held to this rate; 0 = unlimited
  SsdAdmission admission = SsdAdmission::kAlways;
  uint64_t max_inflight_write_bytes = 64ull << 20;  // written back at one time
  uint64_t load_part_bytes =
      8ull << 20;  // a load from SSD goes on to the device in parts like this
  TimeNs read_timeout_ns = 20 * kNsPerSecond;  // a load that waits longer for SSD or room fails
};

struct CacheManagerOptions {
  uint64_t cpu_cache_bytes = 1ull << 30;  // byte budget of all segments together
  uint64_t num_cpu_blocks = 0;  // when not 0: the budget in blocks of the first registered layout
  // One segment group (all ranks' segments together), at most; the budget is cut into at least
  // eight groups where a block allows it, so that memory can move between size classes.
  uint64_t segment_bytes = 1ull << 30;
  double evict_ratio =
      0.01;  // share of a full size class evicted ahead per Tick; 0 = only what is needed
  double evict_start_ratio = 0.98;  // background eviction starts above this share of slots used
  TimeNs lease_timeout_ns = 30 * kNsPerSecond;  // a lease on which nothing was launched ends then
  uint32_t max_chain_blocks = 1u << 20;         // longest hash chain of one request
  uint32_t max_requests_per_engine = 65536;
  uint64_t max_chain_blocks_per_engine =
      1ull << 23;                      // all its requests' chains together (32 bytes a block)
  uint32_t max_ops_per_engine = 4096;  // loads and puts in flight
  uint32_t max_engines = 1024;
  TimeNs empty_group_keep_ns =
      10 * kNsPerSecond;  // an empty group beyond the first is given back after that time
  SsdTierOptions ssd;     // of no effect without devices
  std::string eviction_policy{kDefaultPolicy};               // a name of NewEvictionPolicy
  EvictionObjective objective = EvictionObjective::kTokens;  // for policies that weigh it
};

struct EngineSpec {
  std::string namespace_key;          // full identity, compared in full; never logged
  std::string namespace_label;        // what status shows (model name, short)
  std::vector<uint64_t> shard_bytes;  // per rank, each > 0; size = world size (1..256)
  uint32_t tokens_per_block = 0;
  // Every rank's shard of a block has the same bytes (MLA under tensor parallelism), so one is
  // stored, for all: a put is copied by one rank, a load by every rank from the same place. All
  // `shard_bytes` are equal. Such an engine shares blocks only with replicated ones of as many
  // ranks.
  bool replicated = false;
};

struct LookupAnswer {
  uint32_t matched_blocks = 0;  // ready prefix, in blocks from the root
  uint32_t warm_blocks = 0;     // of them, the first so many are in memory
  uint32_t ssd_blocks = 0;      // of them, so many are on an SSD only
  LeaseId lease = 0;            // 0 when matched_blocks is 0
};

struct PutAnswer {
  uint32_t held = 0;      // of the offered blocks: already here or arriving
  uint32_t accepted = 0;  // being copied
  uint32_t refused = 0;   // no room, too much in flight, or parent not here
};

// What the owner of the manager passes on to an engine's clients.
struct ManagerEvent {
  enum class Kind : uint8_t {
    kOpDone,     // to the scheduler: op ended on all ranks; ok/failed in blocks
    kRefuseOp,   // to every rank's agent (a refused daemon half) and nobody else: the op will not
                 // run there. With a `spared_rank` that one runs it: the store of a replicated
                 // engine.
    kResetDone,  // to whoever asked for the reset: `key` is its tag, `engine` 0 for ResetByLabel;
                 // `status` kFailed: memory is clear, a device would not note it (its old blocks
                 // may come back after a restart)
  };
  Kind kind = Kind::kOpDone;
  EngineHandle engine = 0;
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  OpStatus status = OpStatus::kOk;
  static constexpr uint32_t kNoRank = UINT32_MAX;
  uint32_t spared_rank = kNoRank;  // of a kRefuseOp: this rank runs the op, the others do not
  uint32_t ok_blocks = 0;
  uint32_t failed_blocks = 0;
  uint32_t ssd_blocks = 0;  // of a load: read from an SSD for it
  TimeNs duration_ns = 0;   // from launch to the end of the last rank
  TimeNs ssd_ns = 0;   // of it: until the last block that was read from an SSD for it was there
  TimeNs copy_ns = 0;  // of it: copying on the slowest rank, as the ranks say
  uint64_t block_bytes = 0;
};

// Counters since start; every one only rises. Tokens are counted by the engine (RecordGet).
struct CacheCounters {
  uint64_t lookups = 0, lookup_blocks = 0, matched_blocks = 0;
  uint64_t puts = 0, put_blocks_offered = 0, put_blocks_held = 0, put_blocks_accepted = 0,
           put_blocks_refused = 0;
  uint64_t put_blocks_ready = 0, put_blocks_failed = 0;
  uint64_t loads = 0, loads_refused = 0, load_blocks = 0, load_blocks_failed = 0;
  uint64_t evicted_blocks = 0, leases_expired = 0, resets = 0;
  uint64_t gets = 0, prompt_tokens = 0, engine_matched_tokens = 0, offered_tokens = 0,
           taken_tokens = 0, loaded_tokens = 0, failed_tokens = 0;
  uint64_t load_bytes = 0, store_bytes = 0;
  // SSD tier, in blocks: read for loads or ahead of them and failed reads; written back, failed,
  // and not tried (no room, not worth it, gone before their turn); evicted.
  uint64_t ssd_load_blocks = 0, ssd_read_failed_blocks = 0;
  uint64_t ssd_written_blocks = 0, ssd_write_failed_blocks = 0, ssd_skipped_blocks = 0;
  uint64_t ssd_evicted_blocks = 0;
};

struct NamespaceStatus {
  std::string label;
  NamespaceId id = 0;
  uint32_t epoch = 0;
  uint32_t engines = 0;
  uint32_t tokens_per_block = 0;
  uint64_t block_bytes = 0;
  CacheCounters counters;
};

struct SsdTierStatus {
  uint32_t devices = 0;                        // 0: no SSD tier
  uint32_t segments = 0, closed_segments = 0;  // closed: retired by a failed write, being emptied
  uint64_t slots = 0, used_slots = 0;          // used: written, being written or not free again yet
  uint64_t blocks = 0;                         // in the index
  uint64_t copies_in_memory = 0;               // of those, in the CPU tier too
  uint64_t writes_waiting = 0, writes_in_flight = 0, reads_waiting = 0, reads_in_flight = 0,
           frees_in_flight = 0;
  uint64_t damaged_blocks = 0;  // did not read back; they go when no lease is on what follows them
  uint64_t recovered_blocks = 0, orphaned_blocks = 0;  // at start; orphans had no parent left
  bool out_of_space = false;                           // a segment could not be made a moment ago
};

struct ManagerStatus {
  uint64_t budget_bytes = 0, segment_bytes_in_use = 0;
  uint64_t slots = 0, used_slots = 0, cached_blocks = 0, ready_blocks = 0, pinned_blocks = 0;
  uint64_t index_bytes = 0;
  uint32_t engines = 0, size_classes = 0, leases = 0, ops_in_flight = 0, requests = 0;
  SsdTierStatus ssd;
  CacheCounters counters;
  std::vector<NamespaceStatus> namespaces;
};

class CacheManager {
 public:
  using Options = CacheManagerOptions;

  // `segments`, `transfers` and the SSD devices (none: no SSD tier) outlive the manager. Takes what
  // the devices recovered.
  CacheManager(Options options, SegmentStore* segments, TransferEngine* transfers,
               std::vector<SsdPort*> ssd = {});
  ~CacheManager();

  // --- engines ----------------------------------------------------------------------------------
  // InvalidArgument: bad spec, or a block larger than the budget. ResourceExhausted: too many
  // engines. Creates the namespace and the size class as needed. InvalidArgument too when there is
  // no policy of the name in the options.
  absl::StatusOr<EngineHandle> AttachEngine(const EngineSpec& spec, TimeNs now);
  // Leases and requests end at once; ops in flight keep their slots until the TransferEngine
  // reports them (the owner makes the executor fail ops of dead processes). No more events for this
  // engine.
  void DetachEngine(EngineHandle engine, TimeNs now);

  // --- requests (hashes come from outside: everything is checked) --------------------------------
  // `suffix` are the request's block hashes from position `first` on; earlier ones must be known
  // from an earlier call of the same request. Extends the request's chain, matches all of it,
  // leases the ready prefix (an older lease of the request is replaced). InvalidArgument: gap,
  // chain too long, unknown engine. ResourceExhausted: too many requests. A known `hint` stays with
  // the request, for its puts too, until a later one replaces it. However often a request looks a
  // block up, it counts as one use.
  absl::StatusOr<LookupAnswer> Lookup(EngineHandle engine, RequestKey request, uint32_t first,
                                      std::span<const BlockHash> suffix, TimeNs now,
                                      RequestHint hint = {});
  // Launches the load of blocks [first, first + count) of the request's chain under its lease and
  // trims the lease to first + count. Each rank's agent gets an op whose engine_index counts from 0
  // at `first`. The lease now has no deadline and ends with the last load under it; the load keeps
  // a pin of its own, so a new Lookup, ReleaseLease or EndRequest meanwhile takes nothing from
  // under it. When it cannot be done a kRefuseOp event follows and the status says why (NotFound:
  // lease over or not this request's; InvalidArgument: range outside the lease or empty;
  // ResourceExhausted: too many ops). No event for an unknown engine, key 0, or the key of an op in
  // flight (InvalidArgument): a refusal would hit the running op.
  absl::Status Load(EngineHandle engine, RequestKey request, OpKey key, LeaseId lease,
                    uint32_t first, uint32_t count, TimeNs now);
  // Offers blocks [first, first + count); `suffix` extends the chain as in Lookup, from position
  // `suffix_first`. Blocks already held are dropped; the rest are reserved as pending and an op per
  // rank (replicated engines: on one rank, the others being refused theirs) is submitted,
  // engine_index counting from 0 at `first`. When nothing is accepted, or on an
  // error, a kRefuseOp event follows (with the exceptions of Load). Errors are those of Lookup, and
  // InvalidArgument for an empty range or one past the chain. A known `hint` stays with the
  // request, as in Lookup.
  absl::StatusOr<PutAnswer> Put(EngineHandle engine, RequestKey request, OpKey key, uint32_t first,
                                uint32_t count, uint32_t suffix_first,
                                std::span<const BlockHash> suffix, TimeNs now,
                                RequestHint hint = {});
  // Ends the request's lease (0 = whatever it has). Unknown ids are ignored.
  void ReleaseLease(EngineHandle engine, RequestKey request, LeaseId lease);
  // Forgets the request's chain and lease. Ops in flight go on.
  void EndRequest(EngineHandle engine, RequestKey request);
  // Next epoch of the engine's namespace for all its engines: nothing put before is ever matched
  // again, puts in flight never become ready. Visible on return; a kResetDone event with `tag`
  // follows, with an SSD tier once its devices have noted it durably.
  absl::Status Reset(EngineHandle engine, uint64_t tag, TimeNs now);
  // The same by label ("" = all namespaces); returns how many namespaces were reset. One event.
  uint32_t ResetByLabel(const std::string& label, uint64_t tag, TimeNs now);

  struct GetRecord {
    uint32_t prompt_tokens = 0, engine_matched_tokens = 0, offered_tokens = 0, taken_tokens = 0,
             loaded_tokens = 0, failed_tokens = 0;
  };
  void RecordGet(EngineHandle engine, const GetRecord& record);

  // --- progress ---------------------------------------------------------------------------------
  // Takes completions from the TransferEngine, expires leases, evicts ahead, gives back empty
  // segments. Bounded work per call.
  void Tick(TimeNs now);
  // Something is due within milliseconds: a load waits for the SSD tier, or may soon. Else a Tick
  // after each event, and now and then, is enough.
  bool WantsTicks() const;
  // Events since the last call, in order.
  void TakeEvents(std::vector<ManagerEvent>* events);
  // Segments of an engine's size class that rank `rank` must be able to map, ascending; and whether
  // the set changed since `*seen` (an opaque version, start with 0).
  bool SegmentsOf(EngineHandle engine, uint32_t rank, uint64_t* seen,
                  std::vector<SegmentId>* segments) const;

  ManagerStatus status() const;
  // What status() counts, of all namespaces together; cheap.
  const CacheCounters& counters() const;
  // As it is known now: empty for unknown ids; valid until the next call that changes anything.
  std::span<const BlockHash> ChainOf(EngineHandle engine, RequestKey request) const;
  struct NamespaceInfo {
    NamespaceId id = 0;  // of the present epoch; 0: unknown engine
    uint32_t tokens_per_block = 0;
    std::string_view label;  // valid until the next call that changes anything
  };
  NamespaceInfo NamespaceOf(EngineHandle engine) const;
  // Conservation (slots = free + resident + in flight), tree and table invariants, pins = leases.
  // Internal with the first that is broken. For tests; O(everything).
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
