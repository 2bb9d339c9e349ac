// One SSD device at work: its disk, its store, and the thread that drives them. Commands come from
// one owner (the daemon's control thread), are bounded, never block it, and each accepted one ends
// in exactly one result.
//
// Why a thread of its own per device: a slow or stuck device must hold up nobody else. What blocks
// (recovery, making a segment's file) blocks this thread only.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/storage/ssd/disk.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv {

enum class SsdBackend : uint8_t {
  kAuto,     // io_uring, or threads where it is refused
  kIoUring,  // Open fails where it is refused
  kThreads,
};

struct SsdDeviceOptions {
  DirectoryDiskOptions disk;
  SsdBackend backend = SsdBackend::kAuto;
  SsdStoreOptions store;  // max_queued_ops also bounds the commands of this class
  // Called on the device's thread when results are there; must not block.
  std::function<void()> on_results;
};

struct SsdDeviceResult {
  uint64_t tag = 0;  // the caller's
  absl::Status status;
  uint32_t segment = 0;     // of CreateSegment
  bool registered = false;  // of AddMemory: with the kernel
};

struct SsdDeviceStatus {
  SsdBackend backend = SsdBackend::kAuto;  // in use
  bool direct = true;                      // false: through the page cache
  uint32_t commands = 0;                   // accepted, their results not taken; as of now
  uint64_t memory_bytes = 0;               // added and not removed
  uint64_t registered_bytes = 0;           // of that, registered with the kernel
  SsdStoreStats store;
  DiskStats disk;
  std::vector<SsdSegmentInfo> segments;
};

class SsdDevice {
 public:
  // Opens and recovers; returns when that is done. Errors of MakeUringDisk, MakeThreadDisk and
  // SsdStore::Open.
  static absl::StatusOr<std::unique_ptr<SsdDevice>> Open(SsdDeviceOptions options);
  // Carries out the writes, frees and epochs that were accepted and commits them, within two
  // seconds; the rest is dropped. No memory given to a command is touched after it returns.
  ~SsdDevice();

  // Found by Open; handed out once.
  std::vector<RecoveredBlock> TakeRecovered();
  std::vector<std::pair<NamespaceDigest, uint32_t>> TakeEpochs();

  // Commands; false: too many are under way. Their meaning and errors are those of SsdStore. Memory
  // of a Write or Read belongs to the device until its result was taken. A result's memory and
  // order between different commands follow from nothing but the results themselves.
  bool Write(SsdWrite op);
  bool Read(SsdRead op);
  bool Free(uint64_t tag, SsdPlace place);
  bool RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch);
  bool CreateSegment(uint64_t tag, SsdShape shape);
  bool DropSegment(uint64_t tag, uint32_t segment);
  // Memory that commands will use often (arena segments). OK even when the kernel refuses; result
  // and status say so. Both take effect in order with other commands: a Read or Write given after
  // AddMemory finds its memory registered, one given after RemoveMemory does not, and once the
  // result of RemoveMemory was taken the device knows nothing of that memory any more: its address
  // may come to mean something else. REQUIRES for RemoveMemory: no command under way uses it.
  bool AddMemory(uint64_t tag, std::span<std::byte> memory);
  bool RemoveMemory(uint64_t tag, const std::byte* memory);

  // Appends what ended since.
  void TakeResults(std::vector<SsdDeviceResult>* results);
  // As of at most 100 ms ago. Any thread.
  SsdDeviceStatus status() const;

 private:
  struct Impl;
  explicit SsdDevice(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
