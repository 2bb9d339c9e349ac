// Blocks on one device: writes them durably, reads them back verified, knows after any crash which
// ones are committed. Design: docs/design/003-ssd-tier.md; formats: ssd_format.h.
//
// Not a cache: places are chosen, and eviction decided, by the caller (the cache manager's slot
// table). The store makes sure that a place is only reused when that is safe.
//
// A state machine over a Disk and a Clock: no thread, randomness or clock of its own, so the crash
// simulation runs this very code. One thread calls everything.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/storage/ssd/disk.h"

namespace flexkv {

// SHA-256 of a namespace's full key: what the engine's block hashes do not say.
using NamespaceDigest = std::array<uint8_t, 32>;

// Who a block is. All of it is bound by the block's checksum.
struct SsdIdentity {
  NamespaceDigest ns{};
  uint32_t epoch = 0;  // of the namespace; rises with each reset
  uint32_t depth = 0;  // position in its chain, 0 = first block
  BlockHash hash;
  BlockHash parent;  // all zero at depth 0
  friend bool operator==(const SsdIdentity&, const SsdIdentity&) = default;
};

// Where a block is. Segment ids are unique within a device and never reused in its life.
struct SsdPlace {
  uint32_t segment = 0;
  uint32_t slot = 0;
  friend bool operator==(const SsdPlace&, const SsdPlace&) = default;
};

// All slots of a segment have the same shape.
struct SsdShape {
  std::vector<uint32_t> shard_bytes;  // per rank, 1..256 of them, each > 0
  uint32_t slots = 0;
  // Bytes of one record: header page and each shard rounded up to 4 KiB.
  uint64_t record_bytes() const;
  uint64_t segment_bytes() const { return record_bytes() * slots; }
};

enum class SsdOpKind : uint8_t { kWrite, kRead, kFree, kRaiseEpoch };

struct SsdWrite {
  uint64_t tag = 0;
  SsdPlace place;  // REQUIRES: free (never written, or its Free completed)
  SsdIdentity identity;
  // One per shard of the shape: memory of the shard rounded up to 4 KiB, aligned to 4 KiB. Bytes
  // beyond the shard are written as they are and covered by nothing. Unchanged until the result.
  std::vector<std::span<const std::byte>> shards;
};

struct SsdRead {
  uint64_t tag = 0;
  SsdPlace place;
  SsdIdentity identity;                      // what the caller believes is there
  std::vector<std::span<std::byte>> shards;  // as for writes
};

struct SsdResult {
  uint64_t tag = 0;
  SsdOpKind kind = SsdOpKind::kRead;
  // kWrite: OK = committed, it will be found after any crash. Unavailable: the segment is retired
  // or the place out of use. FailedPrecondition: the namespace has a later epoch; the place is
  // free. kRead: OK = these bytes were written for exactly this identity. NotFound: no committed
  // block, or another one, at that place. DataLoss: the device's bytes do not verify. Unavailable:
  // I/O error. kFree: OK = the place may be written again; Unavailable = never again (quarantined,
  // retired). kRaiseEpoch: OK = durable, in one segment at least (recovery takes the
  // highest of all). Unavailable: in none, or more than 1024 namespaces have one.
  absl::Status status;
};

enum class SegmentState : uint8_t {
  kOpen,        // reads and writes
  kRetired,     // a write or sync failed: reads only
  kUnreadable,  // neither log nor headers could be read: nothing is served from it
};

struct SsdSegmentInfo {
  uint32_t id = 0;
  SsdShape shape;
  SegmentState state = SegmentState::kOpen;
  uint32_t committed = 0;          // blocks
  uint32_t quarantined = 0;        // slots never written again
  bool rebuilt = false;            // from slot headers, its log was lost
  std::vector<uint32_t> unusable;  // slots that are never written again, ascending
  // Pages and records that did not verify when it was recovered. Blocks of an epoch that is over
  // are not among them.
  uint64_t damaged_records = 0;
};

struct RecoveredBlock {
  SsdPlace place;
  SsdIdentity identity;
};

struct SsdStoreOptions {
  uint64_t max_bytes = 0;                     // of all files of this device together; required
  uint64_t max_inflight_bytes = 16ull << 20;  // transfers beyond wait inside the store
  uint32_t max_queued_ops = 4096;             // Submit* refuse beyond
  TimeNs group_delay_ns =
      5 * kNsPerMs;                   // a commit group closes this long after its first write ended
  uint64_t group_bytes = 8ull << 20;  // or when it holds this much
  bool sync = true;                   // false only in benchmarks that say so
  // False only in the benchmark of what checking costs (perf/ssd): reads then say OK without
  // looking at the bytes. Nothing in the daemon's configuration reaches it.
  bool verify_reads = true;
  // Nothing is written, made or removed: what Open would repair stays as it is, reads do not
  // quarantine, and all other ops and segments are refused (FailedPrecondition). NotFound from Open
  // where there is no store. For `flexkv ssd verify`.
  bool read_only = false;
  // Open gives every segment a new log, so that nothing is left of what did not verify in the old
  // one.
  bool fresh_logs = false;
  // Of the store, when the device is formatted; all zero: drawn at random. Simulations give one.
  std::array<uint8_t, 16> new_store_id{};
};

struct SsdStoreStats {
  uint64_t reads = 0, read_bytes = 0, writes = 0, written_bytes = 0, frees = 0, groups = 0;
  uint64_t read_errors = 0, corrupt_blocks = 0, write_errors = 0, sync_errors = 0;
  uint64_t retired_segments = 0, quarantined_slots = 0, checkpoints = 0;
  uint64_t recovered_blocks = 0, dropped_records = 0;  // at the last Open
  // At the last Open: superblock copies that were missing or damaged; files of segments whose
  // making or dropping a crash had cut short (removed, unless read_only).
  uint64_t bad_superblocks = 0, leftover_files = 0;
  uint64_t file_bytes = 0;  // of all files, against max_bytes
  uint32_t queued_ops = 0;
  uint64_t inflight_bytes = 0;
};

class SsdStore {
 public:
  using Options = SsdStoreOptions;
  // Opens or formats the device and recovers every segment. `disk` and `clock` outlive the store.
  // FailedPrecondition: the files are of another format version or another kind, or transfers must
  // be aligned to more than 4 KiB. Unavailable: neither superblock can be read (an I/O error;
  // nothing was changed). DataLoss never: damaged segments are kUnreadable or rebuilt.
  static absl::StatusOr<std::unique_ptr<SsdStore>> Open(const Options& options, Disk* disk,
                                                        const Clock* clock);
  ~SsdStore();  // drops what is queued, waits for what is in flight; commits nothing more

  // What Open found, present epochs only; handed out once. Parents may be missing (evicted,
  // damaged): such blocks are the caller's to free.
  std::vector<RecoveredBlock> TakeRecovered();
  // The highest epoch seen of each namespace.
  std::vector<std::pair<NamespaceDigest, uint32_t>> Epochs() const;

  // Makes an empty segment (preallocated, durable). ResourceExhausted: max_bytes or no space on the
  // device; InvalidArgument: a shape out of range. Blocks for the time of the allocation.
  absl::StatusOr<uint32_t> CreateSegment(const SsdShape& shape);
  // Removes a segment with all that is in it. FailedPrecondition: ops on it are queued, or their
  // results not polled yet; or no other segment can take over the namespaces' epochs.
  absl::Status DropSegment(uint32_t segment);
  std::vector<SsdSegmentInfo> segments() const;

  // Queue ops; false: max_queued_ops. Each accepted op ends in exactly one result. A malformed op
  // (place out of range, wrong number of shards, misaligned) ends in InvalidArgument. Reads go
  // before writes. Reading a place while it is being freed or written is NotFound.
  bool SubmitWrite(SsdWrite op);
  bool SubmitRead(SsdRead op);
  bool SubmitFree(uint64_t tag, SsdPlace place);
  // From now on only blocks of `epoch` or later are found in that namespace, after any crash too.
  bool SubmitRaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch);

  // Drives everything. Waits at most `timeout_ns` for a transfer to end; appends results.
  void Poll(TimeNs timeout_ns, std::vector<SsdResult>* results);
  // Closes the open group now instead of after its delay.
  void Flush();
  // True when nothing is queued or in flight and every group is committed.
  bool idle() const;

  SsdStoreStats stats() const;
  // Slot states, counters and logs agree. Internal otherwise. For tests.
  absl::Status CheckInvariants() const;

 private:
  struct Impl;
  explicit SsdStore(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
