#include "flexkv/server/engine_connection.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/server/log.h"
#include "spdlog/spdlog.h"

namespace flexkv {
namespace {

// Length before text, so that no two lists of texts look the same.
void AppendPart(const std::string& text, std::string* key) {
  absl::StrAppend(key, text.size(), ":", text);
}

}  // namespace

EngineConnection::EngineConnection(const ClientHello& first, CacheManager* manager,
                                   DeviceExecutor* executor)
    : id_(first.engine),
      world_size_(first.world_size),
      manager_(manager),
      executor_(executor),
      workers_(first.world_size, nullptr),
      ready_(first.world_size, false) {}

ClientConnection* EngineConnection::Occupant(const ClientHello& hello) const {
  if (hello.role == shm::Role::kScheduler) return scheduler_;
  return hello.rank < workers_.size() ? workers_[hello.rank] : nullptr;
}

absl::Status EngineConnection::Admits(const ClientHello& hello) const {
  if (hello.world_size != world_size_) {
    return absl::FailedPreconditionError(absl::StrCat("the engine's other members say world size ",
                                                      world_size_, ", this one says ",
                                                      hello.world_size));
  }
  if (Occupant(hello) != nullptr) {
    return absl::FailedPreconditionError(
        hello.role == shm::Role::kScheduler
            ? std::string("this engine has a scheduler attached already")
            : absl::StrCat("rank ", hello.rank, " of this engine is attached already"));
  }
  return absl::OkStatus();
}

void EngineConnection::Add(ClientConnection* client, TimeNs now) {
  now_ = now;
  client->engine = this;
  if (client->is_worker()) {
    workers_[client->hello().rank] = client;
    ++present_workers_;
  } else {
    scheduler_ = client;
    label_ = client->hello().label;
    tokens_per_block_ = client->hello().tokens_per_block;
    stats_ = {};
  }
  if (Complete()) Attach(now);
}

absl::Status EngineConnection::OnWorkerReady(ClientConnection* worker, TimeNs now) {
  now_ = now;
  const uint32_t rank = worker->hello().rank;
  if (ready_[rank]) return absl::InvalidArgumentError("a worker says twice that it is ready");
  ready_[rank] = true;
  ++ready_workers_;
  if (Complete()) Attach(now);
  return absl::OkStatus();
}

bool EngineConnection::Replicated() const {
  return std::any_of(workers_.begin(), workers_.end(), [](const ClientConnection* worker) {
    return worker != nullptr && worker->hello().replicated;
  });
}

EngineSpec EngineConnection::MakeSpec() const {
  EngineSpec spec;
  spec.replicated = Replicated();
  spec.namespace_label = label_;
  spec.tokens_per_block = tokens_per_block_;
  spec.namespace_key = absl::StrCat("flexkv-namespace-1 world ", world_size_, " tokens ",
                                    tokens_per_block_, spec.replicated ? " replicated " : " ");
  AppendPart(scheduler_->hello().identity, &spec.namespace_key);
  for (const ClientConnection* worker : workers_) {
    spec.shard_bytes.push_back(worker->hello().shard_bytes);
    absl::StrAppend(&spec.namespace_key, " shard ", worker->hello().shard_bytes, " ");
    AppendPart(worker->hello().identity, &spec.namespace_key);
  }
  return spec;
}

absl::Status EngineConnection::CheckMembers() const {
  for (const ClientConnection* worker : workers_) {
    const ClientHello& hello = worker->hello();
    if (hello.tokens_per_block != tokens_per_block_) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", hello.rank, " says ", hello.tokens_per_block,
                       " tokens per block, the scheduler ", tokens_per_block_));
    }
    if (!Replicated()) continue;
    const ClientHello& first = workers_[0]->hello();
    if (!hello.replicated || !first.replicated) {
      return absl::InvalidArgumentError("some ranks hold replicas of each other, others do not");
    }
    if (hello.shard_bytes != first.shard_bytes || hello.identity != first.identity) {
      return absl::InvalidArgumentError(
          absl::StrCat("rank ", hello.rank, " is not a replica of rank 0: its layout differs"));
    }
  }
  return absl::OkStatus();
}

void EngineConnection::Attach(TimeNs now) {
  const absl::Status agreed = CheckMembers();
  const absl::StatusOr<EngineHandle> handle =
      agreed.ok() ? manager_->AttachEngine(MakeSpec(), now) : agreed;
  if (!handle.ok()) {
    spdlog::error("engine {} cannot be attached: {}", label_, Words(handle.status()));
    SendReady(0, shm::WireStatus::kInvalid, now);
    return;
  }
  handle_ = *handle;
  attached_at_ = now;
  executor_->AddEngine(handle_, workers_);
  spdlog::info("engine {} attached: {} rank(s){}, {} tokens and {} bytes per block", label_,
               world_size_, Replicated() ? " that are replicas" : "", tokens_per_block_,
               block_bytes());
  SendReady(1, shm::WireStatus::kOk, now);
}

void EngineConnection::Remove(ClientConnection* client, TimeNs now) {
  now_ = now;
  client->engine = nullptr;
  if (client->is_worker()) {
    const uint32_t rank = client->hello().rank;
    workers_[rank] = nullptr;
    --present_workers_;
    if (ready_[rank]) --ready_workers_;
    ready_[rank] = false;
    devices_.erase(rank);
  } else {
    scheduler_ = nullptr;
  }
  if (handle_ == 0) return;
  executor_->RemoveEngine(handle_);
  manager_->DetachEngine(std::exchange(handle_, 0), now);
  spdlog::info(
      "engine {} detached: its {} (pid {}) is gone", label_,
      client->is_worker() ? absl::StrCat("rank ", client->hello().rank) : std::string("scheduler"),
      client->pid());
  SendReady(0, shm::WireStatus::kOk, now);
}

void EngineConnection::SendReady(uint32_t ready, shm::WireStatus status, TimeNs now) {
  if (scheduler_ == nullptr) return;
  shm::Message message = shm::MakeMessage(shm::MessageType::kEngineReady);
  message.first = ready;
  message.status = static_cast<uint32_t>(status);
  scheduler_->Send(message, now);
}

uint64_t EngineConnection::block_bytes() const {
  uint64_t bytes = 0;
  for (const ClientConnection* worker : workers_) {
    if (worker == nullptr) continue;
    if (worker->hello().replicated) return worker->hello().shard_bytes;
    bytes += worker->hello().shard_bytes;
  }
  return bytes;
}

void EngineConnection::OnEvent(const ManagerEvent& event, TimeNs now) {
  now_ = now;
  if (event.kind == ManagerEvent::Kind::kRefuseOp) {
    RefuseAtWorkers(event.key, event.route, event.spared_rank);
    return;
  }
  if (event.kind == ManagerEvent::Kind::kResetDone) {
    shm::Message reply = shm::MakeMessage(shm::MessageType::kResetReply);
    reply.request = event.key;
    reply.status = static_cast<uint32_t>(event.status == OpStatus::kOk ? shm::WireStatus::kOk
                                                                       : shm::WireStatus::kFailed);
    ToScheduler(reply);
    return;
  }
  shm::Message message = shm::MakeMessage(shm::MessageType::kOpEnded);
  message.op = event.key;
  message.status = static_cast<uint32_t>(event.status);
  message.first = event.ok_blocks;
  message.count = event.failed_blocks;
  message.lease = event.duration_ns;
  message.request = event.ssd_blocks;
  message.route = static_cast<uint32_t>(event.route);
  ToScheduler(message);
}

void EngineConnection::ToScheduler(const shm::Message& message) {
  if (scheduler_ != nullptr) scheduler_->Send(message, now_);
}

void EngineConnection::RefuseAtWorkers(OpKey key, Route route) {
  RefuseAtWorkers(key, route, ManagerEvent::kNoRank);
}

void EngineConnection::RefuseAtWorkers(OpKey key, Route route, uint32_t spared_rank) {
  for (uint32_t rank = 0; rank < world_size_; ++rank) {
    if (workers_[rank] != nullptr && rank != spared_rank)
      executor_->Refuse(workers_[rank], key, route);
  }
}

}  // namespace flexkv
