// An SsdStore on a simulated disk.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/storage/ssd/ssd_store.h"
#include "tests/storage/ssd_block_buffer.h"
#include "tests/support/sim_disk.h"

namespace flexkv {

SsdIdentity TestIdentity(uint64_t number, uint32_t epoch = 0, uint8_t ns = 1);

class SsdHarness {
 public:
  explicit SsdHarness(const SimDiskOptions& disk_options = {});

  SsdStoreOptions options;
  SsdShape shape{{5000, 4096}, 16};

  absl::Status Open();
  void Close() { store_.reset(); }
  // The process dies: what the disk keeps is opened again.
  absl::Status Crash(CrashMode mode, uint64_t seed);
  absl::Status Kill(uint64_t seed);

  SimDisk& disk() { return *disk_; }
  SsdStore& store() { return *store_; }
  ManualClock& clock() { return clock_; }

  uint64_t Write(SsdPlace place, const SsdIdentity& identity);  // returns the tag
  uint64_t Read(SsdPlace place, const SsdIdentity& identity);
  uint64_t Free(SsdPlace place);
  uint64_t Raise(uint8_t ns, uint32_t epoch);
  void PollOnce(TimeNs timeout_ns = kNsPerMs);
  // Until the store is idle; false: it does not become so.
  bool Drain(bool flush = true);
  bool Has(uint64_t tag) const { return results_.count(tag) > 0; }
  const absl::Status& Result(uint64_t tag) const { return results_.at(tag); }

  // Submits one op and waits for it. A read that is OK has the right bytes or the result is
  // Internal.
  absl::Status WriteNow(SsdPlace place, const SsdIdentity& identity);
  absl::Status ReadNow(SsdPlace place, const SsdIdentity& identity);
  absl::Status FreeNow(SsdPlace place);
  absl::Status RaiseNow(uint8_t ns, uint32_t epoch);

 private:
  struct Op {
    SsdIdentity identity;
    std::unique_ptr<SsdBlockBuffer> memory;
  };
  absl::Status Wait(uint64_t tag);

  ManualClock clock_;
  SimDiskOptions disk_options_;
  std::unique_ptr<SimDisk> disk_;
  std::map<uint64_t, Op> ops_;  // memory outlives the store's transfers
  std::unique_ptr<SsdStore> store_;
  std::map<uint64_t, absl::Status> results_;
  uint64_t next_tag_ = 1;
};

}  // namespace flexkv
