#include "flexkv/server/device_executor.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "absl/strings/str_cat.h"
#include "proto/packet_socket.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

constexpr size_t kRememberedRefusals = 16384;  // more than a worker's agent keeps waiting

std::vector<uint32_t> AllPositions(uint32_t count) {
  std::vector<uint32_t> all(count);
  std::iota(all.begin(), all.end(), 0u);
  return all;
}

// The failed positions of a kOpDone, checked. InvalidArgument: the message contradicts itself.
absl::StatusOr<std::vector<uint32_t>> FailedPositions(const shm::Message& message,
                                                      std::span<const std::byte> payload,
                                                      uint32_t num_blocks) {
  if (payload.size() != uint64_t{message.count} * sizeof(uint32_t) || message.count > num_blocks) {
    return absl::InvalidArgumentError("an op's end has a payload of the wrong size");
  }
  std::vector<uint32_t> failed(message.count);
  if (!payload.empty()) std::memcpy(failed.data(), payload.data(), payload.size());
  for (size_t i = 0; i < failed.size(); ++i) {
    if (failed[i] >= num_blocks || (i > 0 && failed[i] <= failed[i - 1])) {
      return absl::InvalidArgumentError("an op's end names failed blocks out of order or range");
    }
  }
  switch (static_cast<OpStatus>(message.status)) {
    case OpStatus::kOk:
      if (!failed.empty())
        return absl::InvalidArgumentError("an op's end is ok and names failed blocks");
      return failed;
    case OpStatus::kPartial:
      if (failed.empty())
        return absl::InvalidArgumentError("an op's end is partial and names no failed block");
      return failed;
    case OpStatus::kFailed:
      return AllPositions(num_blocks);
  }
  return absl::InvalidArgumentError("an op's end has an unknown status");
}

}  // namespace

void DeviceExecutor::AddEngine(EngineHandle engine, std::span<ClientConnection* const> clients) {
  for (uint32_t rank = 0; rank < clients.size(); ++rank) {
    Worker& worker = workers_[clients[rank]->id()];
    worker.client = clients[rank];
    worker.engine = engine;
    worker.rank = rank;
    worker.seen_segments = 0;  // versions of another handle say nothing about this one
    by_rank_[{engine, rank}] = clients[rank]->id();
  }
}

void DeviceExecutor::RemoveEngine(EngineHandle engine) {
  std::erase_if(by_rank_, [engine](const auto& entry) { return entry.first.first == engine; });
  for (auto& [id, worker] : workers_) {
    if (worker.engine == engine) worker.engine = 0;
  }
}

void DeviceExecutor::RemoveWorker(ClientConnection* client) {
  auto it = workers_.find(client->id());
  if (it == workers_.end()) return;
  for (const auto& [part, op] : it->second.running) {
    Finish(it->second, op, {op.id, OpStatus::kFailed, AllPositions(op.num_blocks)});
  }
  std::erase_if(by_rank_, [client](const auto& entry) { return entry.second == client->id(); });
  workers_.erase(it);
}

size_t DeviceExecutor::OpsOf(const ClientConnection* client) const {
  auto it = workers_.find(client->id());
  return it == workers_.end() ? 0 : it->second.running.size();
}

DeviceExecutor::Worker* DeviceExecutor::Find(EngineHandle engine, uint32_t rank) {
  auto it = by_rank_.find({engine, rank});
  return it == by_rank_.end() ? nullptr : &workers_.at(it->second);
}

DeviceExecutor::Worker* DeviceExecutor::Find(const ClientConnection* client) {
  auto it = workers_.find(client->id());
  return it == workers_.end() ? nullptr : &it->second;
}

absl::Status DeviceExecutor::OnOpDone(const ClientConnection* client, const shm::Message& message,
                                      std::span<const std::byte> payload) {
  Worker* worker = Find(client);
  if (worker == nullptr) return absl::InvalidArgumentError("an op ended that was never sent");
  const PartKey part{message.op, message.first};
  auto it = worker->running.find(part);
  if (it == worker->running.end()) {
    auto refused = std::find(worker->refused.begin(), worker->refused.end(), part);
    if (refused == worker->refused.end())
      return absl::InvalidArgumentError("an op ended that was not under way");
    worker->refused.erase(refused);
    return absl::OkStatus();
  }
  const Running op = it->second;
  if (message.route != static_cast<uint32_t>(op.route)) {
    return absl::InvalidArgumentError("an op ended on another route than its own");
  }
  absl::StatusOr<std::vector<uint32_t>> failed = FailedPositions(message, payload, op.num_blocks);
  if (!failed.ok()) return failed.status();
  worker->running.erase(it);
  Finish(*worker, op,
         {op.id, static_cast<OpStatus>(message.status), std::move(*failed), message.lease});
  return absl::OkStatus();
}

void DeviceExecutor::Finish(const Worker& worker, const Running& op, OpResult result) {
  RouteMetrics& metrics = metrics_[static_cast<size_t>(op.route)];
  const uint64_t copied = op.num_blocks - result.failed.size();
  metrics.ops.fetch_add(1, std::memory_order_relaxed);
  if (result.status == OpStatus::kFailed)
    metrics.failed_ops.fetch_add(1, std::memory_order_relaxed);
  metrics.bytes.fetch_add(copied * worker.client->hello().shard_bytes, std::memory_order_relaxed);
  const TimeNs latency_ns = clock_->Now() - op.started;
  metrics.latency_ns.Record(latency_ns);
  if (result.copy_ns != 0) metrics.copy_ns.Record(std::min(result.copy_ns, latency_ns));
  results_.push_back(std::move(result));
}

void DeviceExecutor::Refuse(ClientConnection* client, OpKey key, Route route, uint32_t part) {
  Worker& worker = workers_[client->id()];
  worker.client = client;
  if (worker.running.contains({key, part})) return;
  worker.refused.push_back({key, part});
  if (worker.refused.size() > kRememberedRefusals) worker.refused.pop_front();
  shm::Message message = shm::MakeMessage(shm::MessageType::kRefuseOp);
  message.op = key;
  message.first = part;
  message.route = static_cast<uint32_t>(route);
  client->Send(message, clock_->Now());
}

void DeviceExecutor::SyncSegments() {
  for (auto& [id, worker] : workers_) {
    if (worker.engine != 0) SyncSegments(&worker);
  }
}

bool DeviceExecutor::SyncSegments(Worker* worker) {
  std::vector<SegmentId> wanted;
  if (directory_->SegmentsOf(worker->engine, worker->rank, &worker->seen_segments, &wanted)) {
    for (const SegmentId segment : wanted) {
      if (!worker->segments.insert(segment).second) continue;
      worker->packets.push_back(
          {static_cast<uint32_t>(shm::PacketType::kSegment), segment, directory_->Bytes(segment)});
    }
    std::erase_if(worker->segments, [&](SegmentId segment) {
      if (std::binary_search(wanted.begin(), wanted.end(), segment)) return false;
      worker->packets.push_back({static_cast<uint32_t>(shm::PacketType::kSegmentGone), segment, 0});
      return true;
    });
  }
  while (!worker->packets.empty()) {
    const shm::SegmentPacket& packet = worker->packets.front();
    const int fd = packet.type == static_cast<uint32_t>(shm::PacketType::kSegment)
                       ? directory_->Fd(packet.segment)
                       : -1;
    const bool given_back =
        packet.type == static_cast<uint32_t>(shm::PacketType::kSegment) && fd < 0;
    if (!given_back) {  // else its kSegmentGone is behind it in the queue: a client ignores unknown
                        // ids there
      const std::span<const int> fds =
          fd >= 0 ? std::span<const int>(&fd, 1) : std::span<const int>();
      const bool took = worker->client->SendPacket(shm::AsBytes(packet), fds).ok();
      worker->client->NoteSocket(took, clock_->Now());
      if (!took) return false;
    }
    worker->packets.pop_front();
  }
  return true;
}

bool DeviceExecutor::KnowsSegments(const Worker& worker, const TransferOp& op) const {
  const ArenaPlace* last = nullptr;
  for (const ArenaPlace& place : op.blocks) {
    if (last != nullptr && last->segment == place.segment) continue;
    if (!worker.segments.contains(place.segment)) return false;
    last = &place;
  }
  return true;
}

bool DeviceExecutor::Supports(Route route) const {
  return route == Route::kDeviceToCpu || route == Route::kCpuToDevice;
}

// An op that its worker (null: gone) never sees ends without a copy. The worker is told, or the
// engine would wait in vain for this half, or for the parts behind it.
void DeviceExecutor::EndUnsent(Worker* worker, const TransferOp& op) {
  if (worker != nullptr) Refuse(worker->client, op.key, op.route, op.part);
  results_.push_back(
      {op.id, OpStatus::kFailed, AllPositions(static_cast<uint32_t>(op.blocks.size()))});
}

// A message can carry it, and the worker would take it.
bool DeviceExecutor::Sendable(const TransferOp& op) {
  if (op.blocks.size() > kMaxOpBlocks) return false;
  if (op.route == Route::kDeviceToCpu && (op.part > 0 || op.more)) return false;
  return !op.blocks.empty() || (op.part > 0 && !op.more);
}

bool DeviceExecutor::Submit(const TransferOp& op) {
  Worker* worker = Find(op.engine, op.rank);
  const PartKey part{op.key, op.part};
  // Of a lost engine, or a key that is still under way from an earlier attachment.
  if (worker == nullptr || !Sendable(op) || worker->running.contains(part)) {
    EndUnsent(worker, op);
    return true;
  }
  if (!SyncSegments(worker)) {
    blocked_ = true;
    return false;
  }
  if (!KnowsSegments(*worker, op)) {
    spdlog::error("an op uses a segment that is not its engine's; it ends as failed");
    EndUnsent(worker, op);
    return true;
  }
  scratch_.clear();
  for (const ArenaPlace& place : op.blocks) {
    scratch_.push_back({place.segment, place.engine_index, place.offset_bytes});
  }
  shm::Message message = shm::MakeMessage(shm::MessageType::kOp);
  message.op = op.key;
  message.first = op.part;
  message.status =
      static_cast<uint32_t>(op.more ? shm::PartFollows::kMore : shm::PartFollows::kLast);
  message.route = static_cast<uint32_t>(op.route);
  message.count = static_cast<uint32_t>(op.blocks.size());
  const TimeNs now = clock_->Now();
  if (!worker->client->TrySend(message, std::as_bytes(std::span(scratch_)), now)) {
    blocked_ = true;
    return false;
  }
  worker->running.emplace(part, Running{op.id, op.route, message.count, now});
  return true;
}

void DeviceExecutor::Poll(TimeNs /*timeout_ns*/, std::vector<OpResult>* results) {
  // Never waits: the control thread sleeps on its doorbell, which workers ring.
  results->insert(results->end(), std::make_move_iterator(results_.begin()),
                  std::make_move_iterator(results_.end()));
  results_.clear();
}

}  // namespace flexkv
