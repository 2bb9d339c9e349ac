// What the manager keeps of the SSD tier. Private to flexkv/cache.
//
//   ssd_devices.cc   commands and results, frees, epochs
//   ssd_segments.cc  segments made and given back, blocks that give way
//   ssd_writes.cc    write-back
//   ssd_reads.cc     reads into memory: for loads, part by part, and ahead of them
//   ssd_recovery.cc  what the devices held when they were opened
#pragma once

#include <cstdint>
#include <deque>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "flexkv/base/clock.h"
#include "flexkv/cache/size_class.h"
#include "flexkv/storage/ssd/ssd_port.h"

namespace flexkv {

struct ClassState;

// Doubles with every failure up to a limit; over with the first success.
struct BackOff {
  static constexpr TimeNs kFirstNs = kNsPerSecond;
  static constexpr TimeNs kLongestNs = 32 * kNsPerSecond;
  TimeNs until = 0;
  TimeNs wait = kFirstNs;

  void Fail(TimeNs now) {
    until = now + wait;
    wait = wait < kLongestNs ? 2 * wait : kLongestNs;
  }
  void Succeed() { *this = BackOff{}; }
};

struct SsdDeviceState {
  SsdPort* port = nullptr;
  uint64_t bytes = 0;     // files of all segments, the one being made included
  bool creating = false;  // one segment at a time
  BackOff space;          // a segment could not be made
  BackOff writes;         // a write failed
};

enum class SsdCommandKind : uint8_t { kWrite, kRead, kFree, kRaiseEpoch, kCreate, kDrop };

struct SsdCommand {
  SsdCommandKind kind = SsdCommandKind::kFree;
  uint32_t device = 0;
  ClassState* size_class = nullptr;
  SlotId ssd, cpu;
  uint32_t group = 0;  // of kDrop
  uint64_t bytes = 0;  // of kWrite; of kCreate and kDrop: the segment's files
  uint64_t reset = 0;  // of kRaiseEpoch
};

// A block on its way from a device into a CPU slot, and the positions of loads that wait for it.
struct BlockRead {
  SlotId cpu;
  struct Waiter {
    uint64_t op = 0;
    uint32_t position = 0;
  };
  std::vector<Waiter> waiters;
};

enum class WriteState : uint8_t { kNone, kQueued, kWriting };

// Written, but leased at that moment: the handle changes when no lease is on it.
struct PendingMove {
  SlotId cpu, ssd;
};

// One size class on the devices.
struct ClassSsd {
  SsdShape shape;                   // of new segments; no slots: blocks of this class do not fit
  uint64_t segment_file_bytes = 0;  // of new segments
  uint64_t bytes = 0;               // files of all its segments
  std::deque<SlotId> write_queue;   // CPU slots, each at most once
  std::vector<WriteState> write_states;  // by CPU slot
  std::vector<PendingMove> moves;
  absl::flat_hash_map<uint32_t, BlockRead> reads;  // by SSD slot
  std::deque<SlotId> damaged;  // did not read back; erased when nothing uses what hangs below
  std::deque<SlotId> to_free;  // left the tree
  static constexpr uint32_t kNoDrain = UINT32_MAX;
  uint32_t draining = kNoDrain;  // group being emptied to be given back
  uint32_t drain_cursor = 0;
  bool dropping = false;     // its segment is being removed
  BackOff drops;             // a segment could not be removed
  TimeNs waiting_until = 0;  // was short of room; others leave it a segment until then
};

struct SsdLoadPart {
  enum class State : uint8_t { kWaiting, kReading, kSent, kFailed };
  uint32_t begin = 0, end = 0;  // positions
  uint32_t missing = 0;         // blocks not in memory yet, in kReading
  State state = State::kWaiting;
};

// What a load still needs from the devices.
struct SsdLoad {
  std::vector<SlotId> handles;  // by position
  std::vector<SsdLoadPart> parts;
  TimeNs deadline = 0;
};

// A reset on its way to the devices.
struct PendingReset {
  uint64_t tag = 0;         // the caller's
  uint32_t engine = 0;      // who hears of it
  uint32_t unanswered = 0;  // commands
  bool failed = false;
};

struct EpochRaise {
  uint64_t reset = 0;
  uint32_t device = 0;
  NamespaceDigest ns{};
  uint32_t epoch = 0;
};

struct PrefetchHint {
  uint32_t engine = 0;
  uint64_t request = 0;
  uint64_t lease = 0;
  TimeNs due = 0;
};

struct SsdTier {
  std::vector<SsdDeviceState> devices;
  std::vector<SsdRecovery> recoveries;  // until there are size classes to put them in
  absl::flat_hash_map<uint64_t, SsdCommand> commands;
  uint64_t next_command = 1;
  absl::flat_hash_map<NamespaceDigest, uint32_t> epochs;  // those raised or found; others are at 1
  // Namespaces of which a device may hold something. Never taken out: that a device did not note an
  // epoch, or a freeing, shows only after a crash.
  absl::flat_hash_set<NamespaceDigest> written;
  // Something on a device could not be read when it was opened: it may hold blocks of anybody.
  bool unread = false;
  absl::flat_hash_map<uint64_t, PendingReset> resets;
  uint64_t next_reset = 1;
  std::deque<EpochRaise> raises;       // not submitted yet
  std::deque<uint64_t> waiting_loads;  // ops with parts that are not sent
  std::deque<PrefetchHint> hints;
  uint64_t write_bytes_in_flight = 0;
  uint64_t reads_in_flight = 0, frees_in_flight = 0;
  uint64_t slots_being_made = 0;  // in segments that are
  double write_tokens = 0;        // bytes that the write budget allows now
  TimeNs tokens_at = 0;
  size_t next_class = 0;  // whose turn it is to write
  uint64_t recovered_blocks = 0, orphaned_blocks = 0;
  std::vector<SsdPortResult> results;  // scratch

  bool enabled() const { return !devices.empty(); }
};

}  // namespace flexkv
