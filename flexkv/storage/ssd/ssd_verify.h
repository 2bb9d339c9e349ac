// Scrubs the directories of an SSD tier while no daemon uses them: every committed block is read
// and held against its checksum, which binds its bytes to its identity and place. Without `repair`
// nothing is written: files are open for reading only.
//
// Prints nothing. One thread; returns when all is done.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/storage/ssd/disk.h"

namespace flexkv {

enum class SsdVerifyPhase : uint8_t { kReading, kRepairing };

struct SsdVerifyProgress {
  SsdVerifyPhase phase = SsdVerifyPhase::kReading;
  std::string directory;     // being worked on
  uint64_t bytes = 0;        // read so far, of all directories
  uint64_t total_bytes = 0;  // of all committed blocks
  uint64_t bad_blocks = 0;   // so far
  TimeNs reading_ns = 0;     // time since the first block was asked for
};

struct SsdVerifyOptions {
  // All directories of a daemon together: a block's parent may lie in any of them.
  std::vector<std::string> directories;
  bool repair = false;
  // With repair: blocks whose parent is nowhere in the directories stay.
  bool keep_orphans = false;
  uint64_t max_inflight_bytes = 64ull << 20;  // memory for blocks being read
  uint32_t queue_depth = 128;                 // 1..4096, reads in flight
  bool use_threads = false;                   // never io_uring
  TimeNs lock_wait_ns = 2 * kNsPerSecond;     // see DirectoryDiskOptions
  // Called after each wait for the device, 50 times a second at least while the device answers.
  // False: end now; nothing is repaired then.
  std::function<bool(const SsdVerifyProgress&)> on_progress;
};

struct SsdRepairReport {
  uint64_t freed_blocks = 0;      // did not verify
  uint64_t freed_orphans = 0;     // parent missing
  uint64_t freed_duplicates = 0;  // at a second place
  uint64_t moved_blocks = 0;      // good ones, out of segments that can only be read
  uint64_t dropped_segments = 0;
  uint64_t fresh_logs = 0;
  uint64_t failures = 0;
  std::string first_failure;
};

struct SsdDirectoryReport {
  std::string directory;
  // What is there. Segments of one state are not counted in another, `rebuilt` ones apart.
  uint64_t open_segments = 0, cut_segments = 0, unreadable_segments = 0;
  uint64_t rebuilt_segments = 0;  // their log is lost, their slots' headers told
  uint64_t damaged_records = 0;   // of logs: pages and records that do not verify
  uint64_t bad_superblocks = 0;   // copies missing or damaged, of two
  uint64_t leftover_files = 0;  // of segments being made when a crash came; the next start ends it
  uint64_t quarantined_slots = 0;
  uint64_t namespaces = 0;  // with an epoch, that is: reset at least once
  uint32_t highest_epoch = 0;
  uint64_t file_bytes = 0;
  // Committed blocks; `unread` ones only after an early end.
  uint64_t good_blocks = 0, corrupt_blocks = 0, unreadable_blocks = 0, unread_blocks = 0;
  uint64_t read_bytes = 0;
  // Among the good ones. Both are waste and no damage: a parent may have lived in memory only.
  uint64_t orphans = 0, duplicates = 0;
  SsdRepairReport repair;

  bool damaged() const {
    return cut_segments + unreadable_segments + rebuilt_segments + damaged_records +
               bad_superblocks + corrupt_blocks + unreadable_blocks >
           0;
  }
};

struct SsdVerifyReport {
  std::vector<SsdDirectoryReport> directories;  // as given
  bool interrupted = false;  // by on_progress; counts are of what was read until then
  bool repaired = false;     // repair was asked for and carried out
  TimeNs elapsed_ns = 0;     // all of it
  TimeNs reading_ns = 0;     // of the reads alone

  bool damaged() const;  // any directory
  uint64_t repair_failures() const;
};

// Locks all directories first. Errors are of the directory that the message names: NotFound: no
// such directory, or nothing of FlexKV in it; PermissionDenied; FailedPrecondition: in use
// (IsInUse), another's or another format's files; Unavailable: neither superblock can be read;
// InvalidArgument: options out of range, one directory twice.
absl::StatusOr<SsdVerifyReport> VerifySsd(const SsdVerifyOptions& options);

}  // namespace flexkv
