// One SSD device as the cache manager sees it: commands that name arena memory by segment and
// offset, results by tag. The daemon's port drives an SsdDevice; the simulation's twin keeps
// imaginary blocks and injects faults.
//
// A command never blocks. Each accepted one ends in exactly one result; until then the arena memory
// that it names belongs to the device. Meaning and errors are those of SsdStore (ssd_store.h).
// Thread: the control thread only.
#pragma once

#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/ids.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv {

// One rank's shard of a block in the arena; offset and room are whole pages of 4 KiB.
struct ArenaShard {
  SegmentId segment = 0;
  uint64_t offset_bytes = 0;
};

struct SsdPortResult {
  uint64_t tag = 0;  // the caller's
  absl::Status status;
  uint32_t segment = 0;  // of CreateSegment
};

// What a device held when it was opened.
struct SsdRecovery {
  std::vector<SsdSegmentInfo> segments;
  std::vector<RecoveredBlock> blocks;
  std::vector<std::pair<NamespaceDigest, uint32_t>> epochs;
};

class SsdPort {
 public:
  virtual ~SsdPort() = default;

  virtual SsdRecovery TakeRecovery() = 0;  // once

  // False: too many commands are under way; nothing happened. `shards` has one entry per rank of
  // the segment's shape.
  virtual bool Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                     std::span<const ArenaShard> shards) = 0;
  virtual bool Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                    std::span<const ArenaShard> shards) = 0;
  virtual bool Free(uint64_t tag, SsdPlace place) = 0;
  virtual bool RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) = 0;
  virtual bool CreateSegment(uint64_t tag, const SsdShape& shape) = 0;
  virtual bool DropSegment(uint64_t tag, uint32_t segment) = 0;

  // Appends what ended since.
  virtual void TakeResults(std::vector<SsdPortResult>* results) = 0;
};

}  // namespace flexkv
