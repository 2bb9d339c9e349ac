// The agent's thread: picks an op, checks it, copies it chunk by chunk. See host_agent.h.
#include <algorithm>
#include <chrono>
#include <utility>

#include "flexkv/base/fault.h"
#include "flexkv/base/thread_setup.h"
#include "flexkv/transfer/host_agent.h"
#include "flexkv/transfer/host_copy.h"

namespace flexkv::internal {
namespace {

// With both kinds ready, a store gets one chunk after this many of loads: loads hold requests up,
// but a store that never ends holds slots for ever.
constexpr uint32_t kLoadChunksPerStoreChunk = 8;
constexpr auto kSlowChunk = std::chrono::milliseconds(20);

}  // namespace

void HostAgent::Run() {
  SetUpThread("flexkv-agent");
  std::unique_lock<std::mutex> lock(mutex_);
  while (!stopping_) {
    EndOrphans(clock_.Now());
    if (std::exchange(tell_, false)) {
      if (on_result_ == nullptr) continue;
      lock.unlock();
      on_result_();
      lock.lock();
    } else if (AgentOp* op = PickOp(); op != nullptr) {
      RunSome(op, lock);
    } else {
      Sleep(lock);
    }
  }
}

// Until there is work, or it is time to look at orphans. A half that waits for its other half does
// not wake this thread (a system call in the engine's thread for each store), so it looks by
// itself.
void HostAgent::Sleep(std::unique_lock<std::mutex>& lock) {
  TimeNs wait = options_.orphan_timeout_ns / 4;
  if (!orphans_.empty()) {
    const TimeNs deadline = orphans_.front()->since + options_.orphan_timeout_ns;
    const TimeNs now = clock_.Now();
    wait = deadline > now ? std::min(wait, deadline - now) : 0;
  }
  if (wait > 0) work_.wait_for(lock, std::chrono::nanoseconds(wait));
}

AgentOp* HostAgent::PickOp() {
  const bool store_is_due = load_chunks_in_a_row_ >= kLoadChunksPerStoreChunk;
  if (!stores_.empty() && (loads_.empty() || store_is_due)) {
    load_chunks_in_a_row_ = 0;
    return stores_.front();
  }
  if (loads_.empty()) return nullptr;
  load_chunks_in_a_row_ = stores_.empty() ? 0 : load_chunks_in_a_row_ + 1;
  return loads_.front();
}

// Checks the op's present part the first time, then copies one chunk of it.
void HostAgent::RunSome(AgentOp* op, std::unique_lock<std::mutex>& lock) {
  running_ = op;
  if (!op->prepared) {
    lock.unlock();
    const bool usable = Prepare(op);
    lock.lock();
    op->usable = usable;
  }
  const auto goes_on = [op] { return op->usable && !op->cancelled; };
  if (goes_on()) op->TakeChunk(map_, options_.chunk_bytes, &chunk_);
  if (goes_on() && !chunk_.empty()) {
    copying_ = true;
    lock.unlock();
    const TimeNs start = clock_.Now();
    CopyChunk(op);
    const TimeNs copy_ns = clock_.Now() - start;
    lock.lock();
    copying_ = false;
    ++chunk_number_;
    chunk_ended_.notify_all();
    uint64_t bytes = 0;
    for (const Piece& piece : chunk_) {
      for (uint32_t layer = piece.first_layer; layer < piece.end_layer; ++layer) {
        bytes += map_.layers[layer].bytes;
      }
    }
    op->bytes += bytes;
    op->copy_ns += copy_ns;
    (op->is_load() ? stats_.load_bytes : stats_.store_bytes) += bytes;
    (op->is_load() ? stats_.load_copy_ns : stats_.store_copy_ns) += copy_ns;
  }
  running_ = nullptr;
  if (goes_on() && !op->done()) return;
  if (!op->cancelled && !op->on_last_part()) {
    EndPart(op);
    return;
  }
  if (goes_on()) ++(op->is_load() ? stats_.loads : stats_.stores);
  EndOp(op);
}

// Everything the daemon said is checked here, before the first byte moves. Only fields of the op
// that are fixed or the thread's are used.
bool HostAgent::Prepare(AgentOp* op) {
  op->prepared = true;
  const bool fails = FaultFires("agent.fail_op");
  if (!op->NameBlocks() || fails) return false;
  std::span<std::byte> mapping;
  SegmentId mapped = 0;
  op->shards.reserve(op->places.size());
  for (const ArenaPlace& place : op->places) {
    if (mapping.empty() || place.segment != mapped) {
      mapping = mapper_->Map(place.segment);
      mapped = place.segment;
    }
    if (place.offset_bytes > mapping.size() ||
        map_.shard_bytes > mapping.size() - place.offset_bytes) {
      return false;
    }
    op->shards.push_back(mapping.data() + place.offset_bytes);
  }
  if (op->is_load()) {
    op->flip_byte = FaultFires("agent.flip_byte");
    if (op->shards.size() > 1 && FaultFires("agent.swap_blocks")) {
      std::swap(op->shards[0], op->shards[1]);
    }
  }
  return true;
}

void HostAgent::CopyChunk(AgentOp* op) {
  if (FaultFires("agent.slow_chunk")) std::this_thread::sleep_for(kSlowChunk);
  BlockCopier copier;
  for (const Piece& piece : chunk_) {
    const uint32_t block = op->BlockAt(piece.position);
    for (uint32_t at = piece.first_layer; at < piece.end_layer; ++at) {
      const ShardMap::Layer& layer = map_.layers[at];
      std::byte* packed = op->shards[piece.position] + layer.offset;
      op->is_load() ? copier.Scatter(layer.view, block, packed)
                    : copier.Gather(layer.view, block, packed);
    }
  }
  copier.Flush();
  if (op->flip_byte && !chunk_.empty() && chunk_.front().position == 0)
    FlipBytes(*op, chunk_.front());
}

// The highest byte of a number, so that the engine's tokens show it.
void HostAgent::FlipBytes(const AgentOp& op, const Piece& piece) {
  for (uint32_t at = piece.first_layer; at < piece.end_layer; ++at) {
    const LayerView& view = map_.layers[at].view;
    auto* fragment = reinterpret_cast<std::byte*>(
        view.base + op.BlockAt(piece.position) * static_cast<uint64_t>(view.block_stride_bytes));
    fragment[view.fragment_bytes - 1] ^= std::byte{0x40};
  }
}

}  // namespace flexkv::internal
