// A disk in memory that behaves as badly as a real one may: what was not synced can be lost, torn
// or reordered by a crash, completions come in any order, and faults come by seed, by rule or at
// the N-th I/O. Everything follows from the seed and the calls made; no wall clock, no threads.
//
// Time is a ManualClock: Poll moves it on to the next completion, at most by its timeout.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "flexkv/base/clock.h"
#include "flexkv/storage/ssd/disk.h"
#include "tests/support/test_seed.h"

namespace flexkv {

// What a power loss does to writes that no sync covered (finished or still in flight).
enum class CrashMode : uint8_t {
  kDrop,     // any subset is lost
  kTear,     // of each, some 512-byte sectors are there
  kReorder,  // later ones are there, earlier ones not; of two to one place the older may win
};

enum class SimFault : uint8_t {
  kNone,
  kShort,    // fewer bytes moved, and the result says so
  kEio,      // -EIO; a write may have landed in part; a failed sync loses what it should have kept
  kEnospc,   // -ENOSPC, nothing written
  kBitFlip,  // one bit of what is read or written differs; result OK
  kMisdirect,  // the transfer goes to another place of the disk; result OK
  kStale,      // a read gets the version before the last; a write never lands; result OK
  kSlow,       // takes SimDiskOptions::slow_ns
};

// Odds: one in N transfers, 0 = never.
struct SimFaultOdds {
  uint32_t short_transfer = 0, eio = 0, enospc = 0, sync_error = 0;
  uint32_t bit_flip = 0, misdirect = 0, stale = 0, slow = 0;
  uint32_t create_enospc = 0;
  uint32_t busy = 0;  // Submit refuses although there is room (only while something is in flight)
};

struct SimDiskOptions {
  uint64_t seed = 1;
  uint64_t capacity_bytes = 1ull << 40;
  uint32_t queue_depth = 64;
  TimeNs min_delay_ns = 10 * kNsPerUs;
  TimeNs max_delay_ns = kNsPerMs;
  TimeNs slow_ns = 10 * kNsPerSecond;
  ManualClock* clock = nullptr;  // null: one of its own
  bool registers_memory = true;
};

// Applies `fault` to the transfers that match, after letting `skip` of them pass, `count` times.
struct SimRule {
  std::string name_part = {};       // part of the file's name; empty: any file
  std::optional<IoKind> kind = {};  // none: any
  SimFault fault = SimFault::kEio;
  uint64_t skip = 0;
  uint64_t count = UINT64_MAX;
};

class SimDisk : public Disk {
 public:
  static constexpr uint64_t kPage = 4096;
  static constexpr uint64_t kSector = 512;

  explicit SimDisk(const SimDiskOptions& options);

  // --- Disk
  const DiskLimits& limits() const override { return limits_; }
  absl::StatusOr<FileId> Open(const std::string& name) override;
  absl::StatusOr<FileId> Create(const std::string& name, uint64_t bytes) override;
  void Close(FileId file) override;
  absl::Status Remove(const std::string& name) override;
  absl::StatusOr<std::vector<DiskFile>> List() override;
  absl::StatusOr<uint64_t> FreeBytes() override;
  bool Submit(const IoRequest& request) override;
  void Poll(TimeNs timeout_ns, std::vector<IoResult>* results) override;
  uint32_t in_flight() const override { return static_cast<uint32_t>(ops_.size()); }
  void Wake() override { woken_.store(true, std::memory_order_relaxed); }
  bool RegisterMemory(std::span<std::byte> memory) override;
  void UnregisterMemory(const std::byte* memory) override;
  DiskStats stats() const override { return stats_; }

  // --- crashes
  // Called whenever a crash could find something else: a transfer was accepted, a transfer had its
  // effect (its result is not told yet), in the midst of and after Create and Remove. The observer
  // may look and take CrashedCopy, no more.
  void SetObserver(std::function<void()> observer) { observer_ = std::move(observer); }
  // What a power loss right now would leave, as a disk of its own (its clock is `clock`, or its own
  // when null). This disk goes on as if nothing happened. No faults are armed in the copy.
  std::unique_ptr<SimDisk> CrashedCopy(CrashMode mode, uint64_t seed,
                                       ManualClock* clock = nullptr) const;
  // The same for this object: files are closed, what is in flight ends with -EIO at the next Polls
  // without effect, and nothing is accepted until Restart.
  void Crash(CrashMode mode, uint64_t seed);
  void Restart() { off_ = false; }
  // The process died, the machine did not: files are closed, transfers in flight take effect or
  // not.
  std::unique_ptr<SimDisk> KilledCopy(uint64_t seed, ManualClock* clock = nullptr) const;

  // --- faults
  void set_odds(const SimFaultOdds& odds) { odds_ = odds; }
  void AddRule(const SimRule& rule) { rules_.push_back(rule); }
  // The n-th transfer accepted from now on (1 = the next).
  void FailNth(uint64_t n, SimFault fault) { rules_.push_back({"", {}, fault, n - 1, 1}); }
  void ClearFaults();
  void FailCreates(uint64_t count) { failing_creates_ = count; }
  void set_capacity(uint64_t bytes) { options_.capacity_bytes = bytes; }

  // --- at the medium, past every queue, durable at once
  bool Exists(const std::string& name) const { return files_.count(name) > 0; }
  uint64_t FileBytes(const std::string& name) const;  // 0 when there is none
  std::vector<std::byte> ReadRaw(const std::string& name, uint64_t offset, uint64_t bytes) const;
  void WriteRaw(const std::string& name, uint64_t offset, std::span<const std::byte> bytes);
  void FlipBit(const std::string& name, uint64_t bit);
  void Truncate(const std::string& name, uint64_t bytes);
  void EraseRaw(const std::string& name) { files_.erase(name); }

  // --- what happened
  uint64_t transfers() const { return transfers_; }  // accepted by Submit
  uint64_t faults() const { return faults_; }        // applied
  uint64_t unsynced_writes() const;
  uint64_t open_files() const { return handles_.size(); }
  // First thing the caller did that the contract forbids (buffer changed under a write, overlapping
  // transfers with a write among them, Close under a transfer); empty when none.
  const std::string& violation() const { return violation_; }

 private:
  struct Page {
    std::byte bytes[kPage];
  };
  using PageRef = std::shared_ptr<const Page>;  // immutable; null = zeros
  using PageMap = absl::flat_hash_map<uint64_t, PageRef>;
  struct Write {
    uint64_t sequence = 0;  // of its completion
    uint64_t first_page = 0;
    std::vector<PageRef> pages;
  };
  struct File {
    uint64_t bytes = 0;
    PageMap cached;    // what reads see
    PageMap durable;   // what a crash cannot take
    PageMap previous;  // the version before, for stale reads
    std::vector<Write> unsynced;
  };
  struct Op {
    uint64_t tag = 0;
    IoKind kind = IoKind::kRead;
    FileId file = 0;
    std::string name;
    uint64_t offset = 0;
    uint64_t bytes = 0;
    std::vector<iovec> slices;
    std::vector<PageRef> pages;  // writes: content at Submit
    uint64_t covered = 0;        // syncs: the last write that had completed at Submit
    TimeNs ready_at = 0;
    SimFault fault = SimFault::kNone;
    int64_t result = 0;   // malformed: told with this, without effect
    bool orphan = false;  // of before a crash: -EIO, no effect
  };

  TimeNs Now() const { return clock_->Now(); }
  void Observe() {
    if (observer_) observer_();
  }
  void Violate(const std::string& what);
  bool WellFormed(const Op& op) const;
  void CheckOverlap(const Op& op);
  SimFault ChooseFault(const Op& op);
  static std::vector<PageRef> PagesOf(std::span<const iovec> slices, uint64_t bytes);
  uint64_t UsedBytes() const;
  const Op* Next() const;
  bool DeliverReady(std::vector<IoResult>* results);
  int64_t Finish(Op* op);
  int64_t FinishRead(const Op& op);
  int64_t FinishWrite(Op* op);
  int64_t FinishSync(const Op& op);
  void CheckUnchanged(const Op& op);
  void Land(File* file, uint64_t first_page, std::vector<PageRef> pages);
  // `fresh` where keep(sector) says so, else `old`.
  static PageRef Mix(const PageRef& old, const PageRef& fresh,
                     const std::function<bool(uint64_t)>& keep);
  static void Survive(File* file, std::vector<const Write*> writes, CrashMode mode, TestRng* rng);
  static PageRef Find(const PageMap& pages, uint64_t index);
  void CopyFiles(const SimDisk& from, std::optional<CrashMode> mode, TestRng* rng);

  SimDiskOptions options_;
  DiskLimits limits_;
  TestRng rng_;
  ManualClock own_clock_;
  ManualClock* clock_;
  std::map<std::string, File> files_;
  std::map<FileId, std::string> handles_;
  FileId next_file_ = 1;
  std::list<Op> ops_;  // in flight, in the order of Submit
  uint64_t sequence_ = 0;
  // Create or Remove that has begun and not returned: a crash may find it done, undone or half
  // done.
  std::string pending_create_, pending_remove_;
  uint64_t pending_bytes_ = 0;
  std::function<void()> observer_;
  SimFaultOdds odds_;
  std::vector<SimRule> rules_;
  uint64_t failing_creates_ = 0;
  bool off_ = false;
  std::atomic<bool> woken_ = false;
  std::vector<std::span<std::byte>> registered_;
  DiskStats stats_;
  uint64_t transfers_ = 0, faults_ = 0;
  std::string violation_;
};

}  // namespace flexkv
