// The agent's thread: picks an op, checks it, starts it chunk by chunk, collects the ends. See
// agent_core.h.
#include <algorithm>
#include <chrono>
#include <utility>

#include "flexkv/base/fault.h"
#include "flexkv/base/thread_setup.h"
#include "flexkv/transfer/agent_core.h"

namespace flexkv::internal {
namespace {

// With both kinds ready, a store gets one chunk after this many of loads: loads hold requests up,
// but a store that never ends holds slots for ever.
constexpr uint32_t kLoadChunksPerStoreChunk = 8;
// A segment is announced before the op that needs it, but by another way.
constexpr TimeNs kSegmentWaitNs = kNsPerSecond;
// Between two looks at a device that is later than it said.
constexpr TimeNs kLeastSleepNs = 20 * kNsPerUs;
constexpr size_t kSpareChunks = 16;

}  // namespace

void AgentCore::Run() {
  SetUpThread("flexkv-agent");
  copier_->EnterThread();
  Lock lock(mutex_);
  while (!stopping_) {
    EndOrphans(clock_.Now());
    if (Tell(lock) || CollectEnds(lock) || StartLeftLayer(lock) || StartSome(lock)) continue;
    Sleep(lock);
  }
  while (!chunks_.empty()) {
    if (!CollectEnds(lock)) Sleep(lock);
  }
}

// Until there is work, the next end is due, or it is time to look at orphans. A half that waits for
// its other half does not wake this thread (a system call in the engine's thread for each store),
// so it looks by itself.
void AgentCore::Sleep(Lock& lock) {
  TimeNs wait = options_.orphan_timeout_ns / 4;
  if (!orphans_.empty()) {
    const TimeNs deadline = orphans_.front()->since + options_.orphan_timeout_ns;
    const TimeNs now = clock_.Now();
    wait = deadline > now ? std::min(wait, deadline - now) : 0;
  }
  if (chunks_to_collect_ > 0) {
    wait = std::max(kLeastSleepNs, std::min(wait, copier_->CollectAfter()));
  }
  if (wait > 0) work_.wait_for(lock, std::chrono::nanoseconds(wait));
}

bool AgentCore::Tell(Lock& lock) {
  if (!std::exchange(tell_, false)) return false;
  if (on_result_ == nullptr) return true;
  lock.unlock();
  on_result_();
  lock.lock();
  return true;
}

bool AgentCore::HasRoom(Route route) const {
  const uint64_t bytes = bytes_in_flight_[static_cast<int>(route)];
  return bytes == 0 || bytes + largest_chunk_bytes_ <= copier_->MaxBytesInFlight(route);
}

AgentOp* AgentCore::PickOp() {
  const bool store = !stores_.empty() && HasRoom(Route::kDeviceToCpu);
  const bool load = !loads_.empty() && HasRoom(Route::kCpuToDevice);
  if (store && (!load || load_chunks_in_a_row_ >= kLoadChunksPerStoreChunk)) {
    load_chunks_in_a_row_ = 0;
    return stores_.front();
  }
  if (!load) return nullptr;
  load_chunks_in_a_row_ = store ? load_chunks_in_a_row_ + 1 : 0;
  return loads_.front();
}

// Checks the present part of the next op the first time, then starts one chunk of it.
bool AgentCore::StartSome(Lock& lock) {
  AgentOp* op = PickOp();
  if (op == nullptr) return false;
  if (!op->prepared) Check(op, kSegmentWaitNs, lock);
  Chunk chunk = NewChunk();
  if (op->usable && !op->cancelled) op->TakeChunk(map_, options_.chunk_bytes, &chunk.positions);
  if (op->done()) MoveTo(nullptr, op);
  if (chunk.positions.empty()) {
    Settle(op);
    return true;
  }
  chunk.job.op = op->key;
  chunk.job.route = op->route;
  chunk.job.after = MarkOf(*op);
  chunk.ops.push_back(op);
  for (const Piece& piece : chunk.positions) AddPiece(op, piece, &chunk);
  bytes_in_flight_[static_cast<int>(op->route)] += chunk.job.bytes;
  StartChunk(std::move(chunk), lock);
  return true;
}

bool AgentCore::CollectEnds(Lock& lock) {
  if (chunks_to_collect_ == 0 || copier_->CollectAfter() > 0) return false;
  lock.unlock();
  ends_.clear();
  copier_->Collect(&ends_);
  lock.lock();
  for (const ChunkEnd& end : ends_) {
    auto it = chunks_.find(end.ticket);
    if (it == chunks_.end() || it->second.ended) continue;
    it->second.ended = true;
    it->second.end = end;
    if (!it->second.started) continue;  // StartChunk will see it
    --chunks_to_collect_;
    EndChunk(end.ticket);
  }
  if (!ends_.empty()) chunk_changed_.notify_all();
  return !ends_.empty();
}

// --- checks and chunks, of both lanes ------------------------------------------------------------

void AgentCore::Check(AgentOp* op, TimeNs wait_ns, Lock& lock) {
  ++op->pins;
  lock.unlock();
  const bool usable = Prepare(op, wait_ns);
  lock.lock();
  op->usable = usable;
  --op->pins;
}

// Everything the daemon said is checked here, before the first byte moves. Only fields of the op
// that are fixed or the checking thread's are used.
bool AgentCore::Prepare(AgentOp* op, TimeNs wait_ns) {
  op->prepared = true;
  const bool fails = FaultFires("agent.fail_op");
  if (!op->NameBlocks() || fails) return false;
  std::span<std::byte> mapping;
  SegmentId mapped = 0;
  op->shards.reserve(op->places.size());
  for (const ArenaPlace& place : op->places) {
    if (mapping.empty() || place.segment != mapped) {
      mapping = mapper_->Map(place.segment, wait_ns);
      mapped = place.segment;
    }
    if (place.offset_bytes > mapping.size() ||
        map_.shard_bytes > mapping.size() - place.offset_bytes) {
      return false;
    }
    op->shards.push_back(mapping.data() + place.offset_bytes);
  }
  if (op->is_load() && op->shards.size() > 1 && FaultFires("agent.swap_blocks")) {
    std::swap(op->shards[0], op->shards[1]);
  }
  return true;
}

void AgentCore::AddPiece(AgentOp* op, const Piece& piece, Chunk* chunk) const {
  chunk->pieces.push_back({.shard = op->shards[piece.position],
                           .first_layer = piece.first_layer,
                           .end_layer = piece.end_layer});
  op->AppendIds(piece.position, &chunk->block_ids);
  for (uint32_t layer = piece.first_layer; layer < piece.end_layer; ++layer) {
    chunk->job.bytes += map_.layers[layer].bytes;
  }
}

Chunk AgentCore::NewChunk() {
  if (spare_chunks_.empty()) return {};
  Chunk chunk = std::move(spare_chunks_.back());
  spare_chunks_.pop_back();
  return chunk;
}

void Chunk::Clear() {
  job = {};
  end = {};
  of_layers = started = ended = false;
  ops.clear();
  positions.clear();
  pieces.clear();
  block_ids.clear();
}

void Chunk::Seal(uint32_t num_groups) {
  const std::span<const uint32_t> ids(block_ids);
  for (size_t at = 0; at < pieces.size(); ++at) {
    pieces[at].block_ids = ids.subspan(at * num_groups, num_groups);
  }
  job.pieces = pieces;
}

// On the agent's thread or, for layers, on the engine's.
void AgentCore::StartChunk(Chunk made, Lock& lock) {
  made.job.ticket = ++last_ticket_;
  made.Seal(map_.num_groups());
  for (AgentOp* op : made.ops) ++op->pins;
  Chunk& chunk = chunks_.emplace(made.job.ticket, std::move(made)).first->second;
  lock.unlock();
  copier_->Start(chunk.job);
  lock.lock();
  chunk.started = true;
  if (chunk.ended) {
    EndChunk(chunk.job.ticket);
  } else if (chunks_to_collect_++ == 0 && chunk.job.lane == Lane::kLayer) {
    work_.notify_one();
  }
  chunk_changed_.notify_all();
}

void AgentCore::EndChunk(ChunkTicket ticket) {
  auto it = chunks_.find(ticket);
  Chunk chunk = std::move(it->second);
  chunks_.erase(it);
  const bool is_load = chunk.job.route == Route::kCpuToDevice;
  if (!chunk.of_layers) bytes_in_flight_[static_cast<int>(chunk.job.route)] -= chunk.job.bytes;
  if (chunk.end.ok) (is_load ? stats_.load_bytes : stats_.store_bytes) += chunk.job.bytes;
  (is_load ? stats_.load_copy_ns : stats_.store_copy_ns) += chunk.end.copy_ns;
  const uint64_t piece_bytes = chunk.job.bytes / chunk.pieces.size();
  for (AgentOp* op : chunk.ops) {
    --op->pins;
    op->copy_ns += chunk.end.copy_ns / chunk.ops.size();
    if (chunk.end.ok) {
      op->bytes += chunk.of_layers ? piece_bytes * op->places.size() : chunk.job.bytes;
    } else if (chunk.of_layers) {
      op->cancelled = true;  // a load with a layer missing is worth nothing
      op->position = 0;
    }
    for (const Piece& piece : chunk.positions) {
      if (!chunk.end.ok) op->failed.push_back(piece.position);
    }
    Settle(op);
  }
  if (spare_chunks_.size() == kSpareChunks) return;
  chunk.Clear();
  spare_chunks_.push_back(std::move(chunk));
}

void AgentCore::HoldChunks(std::vector<ChunkTicket> tickets, Lock& lock) {
  const auto is_gone = [this](ChunkTicket ticket) { return !chunks_.contains(ticket); };
  const auto is_started = [this](ChunkTicket ticket) {
    auto it = chunks_.find(ticket);
    return it == chunks_.end() || it->second.started;
  };
  if (tickets.empty()) return;
  chunk_changed_.wait(lock, [&] { return std::ranges::all_of(tickets, is_started); });
  std::erase_if(tickets, is_gone);
  if (tickets.empty()) return;
  lock.unlock();
  const bool held = copier_->HoldCompute(tickets);
  load_mark_.store(kNoMark, std::memory_order_relaxed);
  lock.lock();
  if (!held) chunk_changed_.wait(lock, [&] { return std::ranges::all_of(tickets, is_gone); });
}

ComputeMark AgentCore::LoadMark() {
  ComputeMark mark = load_mark_.load(std::memory_order_relaxed);
  if (mark != kNoMark) return mark;
  mark = copier_->Mark();
  load_mark_.store(mark, std::memory_order_relaxed);
  return mark;
}

ComputeMark AgentCore::MarkOf(const AgentOp& op) const {
  return op.is_load() ? op.mark : step_marks_[op.step % step_marks_.size()];
}

}  // namespace flexkv::internal
