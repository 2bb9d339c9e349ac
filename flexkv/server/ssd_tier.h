// The daemon's side of the SSD tier: the devices, a port to each for the core, and the arena memory
// they may use.
//
// Life: Open (recovery of all devices at once), then the control thread uses it, then the loop is
// stopped, then Close closes the devices, then its manager, and with it the arena, may go: what a
// device still writes lies in the arena.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "flexkv/server/snapshot.h"
#include "flexkv/server/ssd_device_port.h"
#include "flexkv/server/ssd_memory.h"
#include "flexkv/storage/ssd/ssd_device.h"

namespace flexkv {

struct SsdTierConfig {
  std::vector<std::string> directories;  // they exist; one device each
  uint64_t bytes_per_directory = 0;      // quota
  uint32_t queue_depth = 64;
  SsdBackend backend = SsdBackend::kAuto;
  uint32_t max_commands = 4096;  // under way, of one device
  // Registers arena memory with the kernel once it is prefaulted. False where it is not: that would
  // populate all of it.
  bool register_memory = true;
  // Called on devices' threads when results are there; must not block.
  std::function<void()> wake;
};

class SsdTier {
 public:
  // Returns when every device has recovered what it holds; a log line for each. `segments` outlives
  // the tier. AlreadyExists: a directory is in use. InvalidArgument: it is not the tier's, or
  // io_uring was asked for and is refused. PermissionDenied, NotFound: not usable. Otherwise the
  // device does not work.
  static absl::StatusOr<std::unique_ptr<SsdTier>> Open(const SsdTierConfig& config,
                                                       MemfdSegmentStore* segments);
  ~SsdTier() { Close(); }
  // Commits what was written, within two seconds. From then on no device touches the arena, and
  // the manager may do nothing but die.
  void Close();

  // Control thread from here on. Both are the manager's.
  SegmentStore* segments() { return &memory_; }
  const SsdMemory& memory() const { return memory_; }
  std::vector<SsdPort*> ports() const;

  bool HasResults() const;
  // Takes what ended from the devices; true when there was something.
  bool Collect();
  // Housekeeping; call about ten times a second.
  void Tick(TimeNs now);
  std::vector<SsdDeviceSnapshot> Snapshot(TimeNs now) const;

 private:
  explicit SsdTier(MemfdSegmentStore* segments) : memory_(segments) {}

  SsdMemory memory_;
  std::vector<std::unique_ptr<SsdDevicePort>> ports_;
};

}  // namespace flexkv
