// One SSD device as the core drives it: places in the arena become memory, tags are kept with what
// they were, results are counted and timed. Thread: the control thread, except where said.
#pragma once

#include <atomic>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <variant>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/base/metrics.h"
#include "flexkv/server/rate_meter.h"
#include "flexkv/server/snapshot.h"
#include "flexkv/server/ssd_memory.h"
#include "flexkv/storage/ssd/ssd_device.h"
#include "flexkv/storage/ssd/ssd_port.h"

namespace flexkv {

class SsdDevicePort final : public SsdPort {
 public:
  // `wake` is called on the device's thread when results are there; must not block. `memory`
  // outlives the port.
  SsdDevicePort(std::string directory, SsdMemory* memory, std::function<void()> wake);

  // The device's thread: on_results of the device.
  void NoteResults();
  // The device that was opened with it. Once, before anything below.
  void Attach(std::unique_ptr<SsdDevice> device, TimeNs recovery_ns, uint64_t quota_bytes);
  // Commits what was written, within two seconds. No memory of a command is touched any more.
  void Close() { device_.reset(); }

  // SsdPort. A command whose segment, shards or memory are not there ends in InvalidArgument.
  SsdRecovery TakeRecovery() override;
  bool Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
             std::span<const ArenaShard> shards) override;
  bool Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
            std::span<const ArenaShard> shards) override;
  bool Free(uint64_t tag, SsdPlace place) override;
  bool RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) override;
  bool CreateSegment(uint64_t tag, const SsdShape& shape) override;
  bool DropSegment(uint64_t tag, uint32_t segment) override;
  void TakeResults(std::vector<SsdPortResult>* results) override;

  // For SsdMemory. Never refused: what the device has no room for waits here, in order and before
  // any later command.
  void AddMemory(SegmentId segment, std::span<std::byte> memory);
  void RemoveMemory(SegmentId segment, const std::byte* memory);

  // Results are there that were not collected.
  bool HasResults() const { return waiting_.load(std::memory_order_acquire); }
  // Takes what ended from the device; memory commands are dealt with here, the rest waits for
  // TakeResults.
  void Collect();
  void Sample(TimeNs now);
  const std::string& directory() const { return directory_; }
  SsdDeviceSnapshot Snapshot(TimeNs now) const;

 private:
  enum class Kind : uint8_t { kRead, kWrite, kCreate, kDrop, kOther, kAddMemory, kRemoveMemory };

  struct Command {
    Kind kind = Kind::kOther;
    uint64_t tag = 0;  // the core's
    uint64_t bytes = 0;
    TimeNs start = 0;
    uint32_t drop = 0;      // kDrop: the SSD segment
    SegmentId segment = 0;  // memory commands: the arena segment
    SsdShape shape;         // kCreate
  };
  struct MemoryCommand {
    SegmentId segment = 0;
    std::span<std::byte> memory;  // kAddMemory
    const std::byte* address = nullptr;
    bool add = false;
  };
  struct Traffic {
    uint64_t ops = 0, failed_ops = 0, bytes = 0;
    Histogram latency_ns;
    RateMeter rate;
    void Count(const Command& command, bool ok, TimeNs now);
    SsdTrafficSnapshot Snapshot(TimeNs now) const;
  };

  // Keeps the command and gives it to the device through `send`, which gets the device's tag.
  // False: there was no room.
  template <typename Send>
  bool Start(Command command, Send send);
  template <typename Op>
  bool StartTransfer(Kind kind, uint64_t tag, Op op, std::span<const ArenaShard> shards);
  // False: not what the place's segment asks for.
  template <typename Span>
  bool Resolve(uint32_t segment, std::span<const ArenaShard> shards, std::vector<Span>* memory,
               uint64_t* bytes) const;
  // Gives the device the memory commands that wait; true when none is left.
  bool SendMemory();
  void End(const SsdDeviceResult& result);
  void EndNow(uint64_t tag, absl::Status status);
  void TellRegistration(bool registered);

  const std::string directory_;
  SsdMemory* memory_;
  const std::function<void()> wake_;
  SteadyClock clock_;
  std::unique_ptr<SsdDevice> device_;
  TimeNs recovery_ns_ = 0;
  uint64_t quota_bytes_ = 0;
  std::map<uint32_t, std::vector<uint32_t>> shapes_;  // shard bytes of each SSD segment

  std::atomic<bool> waiting_{false};  // set by the device's thread
  std::vector<Command> commands_;     // by device tag
  std::vector<uint64_t> free_tags_;
  std::deque<MemoryCommand> memory_waiting_;
  std::vector<SsdPortResult> ended_;    // for TakeResults
  std::vector<SsdDeviceResult> taken_;  // scratch
  Traffic reads_, writes_;
  bool registration_told_ = false;
};

}  // namespace flexkv
