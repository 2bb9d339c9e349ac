// The device's tags are places in commands_, so that a result finds what it was about without a
// search; a place is reused only after its result, of which there is exactly one.
#include "flexkv/server/ssd_device_port.h"

#include <sys/resource.h>

#include <iterator>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

constexpr uint64_t kPageBytes = 4096;

std::string MemlockLimit() {
  rlimit limit{};
  if (getrlimit(RLIMIT_MEMLOCK, &limit) != 0) return "unknown";
  return limit.rlim_cur == RLIM_INFINITY ? "unlimited" : FormatBytes(limit.rlim_cur);
}

}  // namespace

SsdDevicePort::SsdDevicePort(std::string directory, SsdMemory* memory, std::function<void()> wake)
    : directory_(std::move(directory)), memory_(memory), wake_(std::move(wake)) {}

void SsdDevicePort::NoteResults() {
  waiting_.store(true, std::memory_order_release);
  if (wake_) wake_();
}

void SsdDevicePort::Attach(std::unique_ptr<SsdDevice> device, TimeNs recovery_ns,
                           uint64_t quota_bytes) {
  device_ = std::move(device);
  recovery_ns_ = recovery_ns;
  quota_bytes_ = quota_bytes;
  for (const SsdSegmentInfo& segment : device_->status().segments) {
    shapes_[segment.id] = segment.shape.shard_bytes;
  }
}

SsdRecovery SsdDevicePort::TakeRecovery() {
  return {device_->status().segments, device_->TakeRecovered(), device_->TakeEpochs()};
}

// --- commands -----------------------------------------------------------------------------------

template <typename Send>
bool SsdDevicePort::Start(Command command, Send send) {
  if (free_tags_.empty()) {
    free_tags_.push_back(commands_.size());
    commands_.emplace_back();
  }
  const uint64_t tag = free_tags_.back();
  if (!send(tag)) return false;
  free_tags_.pop_back();
  command.start = clock_.Now();
  commands_[tag] = std::move(command);
  return true;
}

template <typename Span>
bool SsdDevicePort::Resolve(uint32_t segment, std::span<const ArenaShard> shards,
                            std::vector<Span>* memory, uint64_t* bytes) const {
  const auto shape = shapes_.find(segment);
  if (shape == shapes_.end() || shape->second.size() != shards.size()) return false;
  memory->reserve(shards.size());
  for (size_t rank = 0; rank < shards.size(); ++rank) {
    const uint64_t length = RoundUp(shape->second[rank], kPageBytes);
    const std::span<std::byte> found =
        memory_->Find(shards[rank].segment, shards[rank].offset_bytes, length);
    if (found.empty()) return false;
    memory->push_back(found);
    *bytes += length;
  }
  return true;
}

template <typename Op>
bool SsdDevicePort::StartTransfer(Kind kind, uint64_t tag, Op op,
                                  std::span<const ArenaShard> shards) {
  if (!SendMemory()) return false;
  uint64_t bytes = 0;
  if (!Resolve(op.place.segment, shards, &op.shards, &bytes)) {
    EndNow(tag, absl::InvalidArgumentError(absl::StrCat("no such segment (", op.place.segment,
                                                        "), number of shards (", shards.size(),
                                                        ") or place in the arena")));
    return true;
  }
  return Start({.kind = kind, .tag = tag, .bytes = bytes}, [&](uint64_t device_tag) {
    op.tag = device_tag;
    if constexpr (std::is_same_v<Op, SsdRead>) {
      return device_->Read(std::move(op));
    } else {
      return device_->Write(std::move(op));
    }
  });
}

bool SsdDevicePort::Write(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                          std::span<const ArenaShard> shards) {
  return StartTransfer(Kind::kWrite, tag, SsdWrite{0, place, identity, {}}, shards);
}

bool SsdDevicePort::Read(uint64_t tag, SsdPlace place, const SsdIdentity& identity,
                         std::span<const ArenaShard> shards) {
  return StartTransfer(Kind::kRead, tag, SsdRead{0, place, identity, {}}, shards);
}

bool SsdDevicePort::Free(uint64_t tag, SsdPlace place) {
  return SendMemory() &&
         Start({.tag = tag}, [&](uint64_t device_tag) { return device_->Free(device_tag, place); });
}

bool SsdDevicePort::RaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) {
  return SendMemory() && Start({.tag = tag}, [&](uint64_t device_tag) {
           return device_->RaiseEpoch(device_tag, ns, epoch);
         });
}

bool SsdDevicePort::CreateSegment(uint64_t tag, const SsdShape& shape) {
  return SendMemory() &&
         Start({.kind = Kind::kCreate, .tag = tag, .shape = shape},
               [&](uint64_t device_tag) { return device_->CreateSegment(device_tag, shape); });
}

bool SsdDevicePort::DropSegment(uint64_t tag, uint32_t segment) {
  return SendMemory() &&
         Start({.kind = Kind::kDrop, .tag = tag, .drop = segment},
               [&](uint64_t device_tag) { return device_->DropSegment(device_tag, segment); });
}

void SsdDevicePort::AddMemory(SegmentId segment, std::span<std::byte> memory) {
  memory_waiting_.push_back({.segment = segment, .memory = memory, .add = true});
  SendMemory();
}

void SsdDevicePort::RemoveMemory(SegmentId segment, const std::byte* memory) {
  memory_waiting_.push_back({.segment = segment, .address = memory});
  SendMemory();
}

bool SsdDevicePort::SendMemory() {
  while (!memory_waiting_.empty()) {
    const MemoryCommand& next = memory_waiting_.front();
    const bool sent =
        Start({.kind = next.add ? Kind::kAddMemory : Kind::kRemoveMemory, .segment = next.segment},
              [&](uint64_t device_tag) {
                return next.add ? device_->AddMemory(device_tag, next.memory)
                                : device_->RemoveMemory(device_tag, next.address);
              });
    if (!sent) return false;
    memory_waiting_.pop_front();
  }
  return true;
}

// --- results ------------------------------------------------------------------------------------

// The flag goes down before results are taken: what comes meanwhile raises it again.
void SsdDevicePort::Collect() {
  if (!waiting_.exchange(false, std::memory_order_acq_rel)) return;
  device_->TakeResults(&taken_);
  for (const SsdDeviceResult& result : taken_) End(result);
  taken_.clear();
  SendMemory();  // before the core uses the room that there is now
}

void SsdDevicePort::TakeResults(std::vector<SsdPortResult>* results) {
  Collect();
  std::move(ended_.begin(), ended_.end(), std::back_inserter(*results));
  ended_.clear();
}

void SsdDevicePort::End(const SsdDeviceResult& result) {
  Command command = std::move(commands_[result.tag]);
  free_tags_.push_back(result.tag);
  const bool ok = result.status.ok();
  switch (command.kind) {
    case Kind::kRead:
      reads_.Count(command, ok, clock_.Now());
      break;
    case Kind::kWrite:
      writes_.Count(command, ok, clock_.Now());
      break;
    case Kind::kCreate:
      if (ok) shapes_[result.segment] = std::move(command.shape.shard_bytes);
      break;
    case Kind::kDrop:
      if (ok) shapes_.erase(command.drop);
      break;
    case Kind::kOther:
      break;
    case Kind::kAddMemory:
      TellRegistration(result.registered);
      return;
    case Kind::kRemoveMemory:
      memory_->OnRemoved(command.segment);
      return;
  }
  ended_.push_back({command.tag, result.status, result.segment});
}

void SsdDevicePort::EndNow(uint64_t tag, absl::Status status) {
  ended_.push_back({tag, std::move(status), 0});
  waiting_.store(true, std::memory_order_release);
}

// Said once, with the first segment; the status goes on saying it.
void SsdDevicePort::TellRegistration(bool registered) {
  if (std::exchange(registration_told_, true)) return;
  if (device_->status().backend != SsdBackend::kIoUring) return;
  if (registered) {
    spdlog::info("SSD tier {}: arena memory is registered with the kernel", directory_);
  } else {
    spdlog::warn(
        "SSD tier {}: the kernel does not register arena memory (RLIMIT_MEMLOCK is {}); transfers "
        "cost more CPU",
        directory_, MemlockLimit());
  }
}

// --- what it tells about itself -----------------------------------------------------------------

void SsdDevicePort::Traffic::Count(const Command& command, bool ok, TimeNs now) {
  ++ops;
  if (ok) {
    bytes += command.bytes;
  } else {
    ++failed_ops;
  }
  latency_ns.Record(now - command.start);
}

SsdTrafficSnapshot SsdDevicePort::Traffic::Snapshot(TimeNs now) const {
  return {ops, failed_ops, bytes, rate.PerSecond(now, bytes), latency_ns.snapshot()};
}

void SsdDevicePort::Sample(TimeNs now) {
  reads_.rate.Sample(now, reads_.bytes);
  writes_.rate.Sample(now, writes_.bytes);
}

SsdDeviceSnapshot SsdDevicePort::Snapshot(TimeNs now) const {
  SsdDeviceSnapshot snapshot;
  snapshot.directory = directory_;
  snapshot.quota_bytes = quota_bytes_;
  snapshot.recovery_ns = recovery_ns_;
  snapshot.status = device_->status();
  for (const SsdSegmentInfo& segment : snapshot.status.segments) {
    ++(segment.state == SegmentState::kOpen      ? snapshot.open_segments
       : segment.state == SegmentState::kRetired ? snapshot.retired_segments
                                                 : snapshot.unreadable_segments);
    snapshot.rebuilt_segments += segment.rebuilt ? 1 : 0;
    snapshot.quarantined_slots += segment.quarantined;
    snapshot.blocks += segment.committed;
  }
  snapshot.read = reads_.Snapshot(now);
  snapshot.write = writes_.Snapshot(now);
  return snapshot;
}

}  // namespace flexkv
