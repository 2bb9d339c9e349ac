// Rounds of chunks: planned, given what they need, put on the device. See cuda_copier_impl.h.
#include <algorithm>
#include <cstring>
#include <utility>

#include "flexkv/transfer/cuda/cuda_copier_impl.h"
#include "flexkv/transfer/host_copy.h"

namespace flexkv::cuda {
namespace {

// So many events stay for layers, which an engine waits for.
constexpr size_t kEventsForLayers = 256;

}  // namespace

// The chunk's next round, of whatever thread. False: the chunk waits for supplies. Without its
// caller's `pieces` it goes on with its own.
bool CudaCopierImpl::BeginRound(Chunk* chunk, std::span<const ChunkPiece> pieces) {
  LaneState& lane = LaneOf(chunk->lane);
  std::lock_guard<std::mutex> lane_lock(lane.mutex);
  const size_t first_piece = chunk->next_piece;
  const uint32_t first_layer = chunk->next_layer;
  const Settings settings = SettingsOf(*chunk);
  lane.planner.Begin(chunk->route, settings.kernel_below);
  if (!Plan(chunk, pieces, &lane) || !TakeSupplies(chunk, &lane)) {
    const bool own = pieces.data() == chunk->pieces.data();
    std::lock_guard<std::mutex> lock(mutex_);
    chunk->next_piece = first_piece;
    chunk->next_layer = first_layer;
    if (!own) KeepPieces(chunk, pieces);
    std::deque<Chunk*>& waiting = WaitingLike(*chunk);
    waiting.insert(own ? waiting.begin() : waiting.end(), chunk);
    chunk->busy = false;
    return false;
  }
  if (chunk->route == Route::kCpuToDevice) CopyStaged(chunk);
  lane.batches = 0;
  Launch(chunk, &lane, settings);
  return Publish(chunk, pieces, lane);
}

CudaCopierImpl::Settings CudaCopierImpl::SettingsOf(const Chunk& chunk) const {
  const size_t direction = Direction(chunk.route);
  std::lock_guard<std::mutex> lock(mutex_);
  Settings settings{.batch_copies = options_.batch_copies,
                    .sms = std::clamp(static_cast<int>(options_.kernel_sms[direction]), 1,
                                      std::max(info_.num_sms, 1)),
                    .above_compute = options_.above_compute};
  if (!kernels_work_.load(std::memory_order_relaxed)) return settings;
  switch (options_.engine[direction]) {
    case CopyOptions::Engine::kAuto:
      settings.kernel_below = kernel_below_[direction];
      break;
    case CopyOptions::Engine::kCopyEngine:
      break;
    case CopyOptions::Engine::kKernel:
      settings.kernel_below = UINT64_MAX;
      break;
  }
  return settings;
}

// --- planning ------------------------------------------------------------------------------------

// False: a staging buffer is needed, and there is none now.
bool CudaCopierImpl::Plan(Chunk* chunk, std::span<const ChunkPiece> pieces, LaneState* lane) {
  lane->cuts.clear();
  chunk->staged.clear();
  uint64_t used = 0;  // of the staging buffer
  while (chunk->next_piece < pieces.size()) {
    const ChunkPiece& piece = pieces[chunk->next_piece];
    const uint32_t from = std::max(piece.first_layer, chunk->next_layer);
    if (from < piece.end_layer) {
      const internal::ShardMap::Layer& first = map_->layers[from];
      const internal::ShardMap::Layer& last = map_->layers[piece.end_layer - 1];
      if (IsHeld(piece.shard + first.offset, last.offset + last.bytes - first.offset, lane)) {
        lane->planner.Add(piece.shard, piece.block_ids, from, piece.end_layer);
      } else {
        if (chunk->staged.empty()) pinned_->Prefer(piece.shard + first.offset);
        if (!TakeStaging(chunk)) return false;
        const uint32_t to = Stage(chunk, piece, from, &used, lane);
        if (to < piece.end_layer) {  // the buffer is full; the rest in another round
          chunk->next_layer = to;
          break;
        }
      }
    }
    ++chunk->next_piece;
    chunk->next_layer = 0;
  }
  lane->planner.Finish();
  if (!chunk->staged.empty()) {
    // Where the buffer happens to lie beside other registered memory.
    lane->cuts.push_back(chunk->staging);
    lane->cuts.push_back(chunk->staging + staging_bytes_);
  }
  for (const std::byte* cut : lane->cuts) lane->planner.CutAt(cut);
  return true;
}

// Notes where registrations end, since copies must not reach over.
bool CudaCopierImpl::IsHeld(const std::byte* memory, uint64_t bytes, LaneState* lane) const {
  for (;;) {
    const uint64_t held = pinned_->HeldBytes(memory);
    if (held == 0) return false;
    if (held > bytes) return true;
    if (lane->cuts.empty() || lane->cuts.back() != memory + held) {
      lane->cuts.push_back(memory + held);
    }
    if (held == bytes) return true;
    memory += held;
    bytes -= held;
  }
}

bool CudaCopierImpl::TakeStaging(Chunk* chunk) {
  if (chunk->staging != nullptr) return true;
  std::lock_guard<std::mutex> lock(mutex_);
  std::vector<std::byte*>& free = free_staging_[Direction(chunk->route)];
  if (free.empty()) return false;
  chunk->staging = free.back();
  free.pop_back();
  return true;
}

// As many layers as there is room for; returns the first that does not fit.
uint32_t CudaCopierImpl::Stage(Chunk* chunk, const ChunkPiece& piece, uint32_t from, uint64_t* used,
                               LaneState* lane) {
  const uint64_t begin = map_->layers[from].offset;
  uint32_t to = from;
  uint64_t bytes = 0;
  while (to < piece.end_layer && *used + bytes + map_->layers[to].bytes <= staging_bytes_) {
    bytes += map_->layers[to++].bytes;
  }
  if (bytes == 0) return to;
  std::byte* const buffer = chunk->staging + *used;
  lane->planner.Add(buffer - begin, piece.block_ids, from, to);
  chunk->staged.push_back({.arena = piece.shard + begin, .buffer = buffer, .bytes = bytes});
  *used += bytes;
  return to;
}

// --- supplies ------------------------------------------------------------------------------------

bool CudaCopierImpl::TakeSupplies(Chunk* chunk, LaneState* lane) {
  const bool of_layers = chunk->lane == Lane::kLayer;
  size_t lists = (lane->planner.kernel().count + kListItems - 1) / kListItems;
  std::lock_guard<std::mutex> lock(mutex_);
  // An engine waits for layers: rather by the slower way than later.
  if (lists > kMaxListsOfRound || (of_layers && lists > free_lists_.size())) {
    lane->planner.UseEngineOnly();
    lists = 0;
  }
  const size_t events = 4 + (of_layers ? 0 : kEventsForLayers);
  if (lists > free_lists_.size() || events > free_events_.size()) return false;
  for (; lists > 0; --lists) {
    chunk->lists.push_back(free_lists_.back());
    free_lists_.pop_back();
  }
  for (Leg& leg : chunk->legs) {
    leg.start = free_events_.back();
    free_events_.pop_back();
    leg.end = free_events_.back();
    free_events_.pop_back();
  }
  return true;
}

// REQUIRES: nothing of the round is under way any more, or the device is lost.
void CudaCopierImpl::GiveSupplies(Chunk* chunk) {
  free_lists_.insert(free_lists_.end(), chunk->lists.begin(), chunk->lists.end());
  chunk->lists.clear();
  for (Leg& leg : chunk->legs) {
    if (leg.start != nullptr) free_events_.push_back(std::exchange(leg.start, nullptr));
    if (leg.end != nullptr) free_events_.push_back(std::exchange(leg.end, nullptr));
    leg.chunk = nullptr;
  }
}

void CudaCopierImpl::CopyStaged(Chunk* chunk) {
  if (chunk->staged.empty()) return;
  const bool load = chunk->route == Route::kCpuToDevice;
  const TimeNs start = clock_.Now();
  for (const Staged& part : chunk->staged) {
    CopyNonTemporal(load ? part.buffer : part.arena, load ? part.arena : part.buffer, part.bytes);
  }
  CopyFence();
  chunk->copy_ns += clock_.Now() - start;
}

// --- the device ----------------------------------------------------------------------------------

// The kernel's copies first: a device that turns out to have no kernels leaves them to the engine.
void CudaCopierImpl::Launch(Chunk* chunk, LaneState* lane, const Settings& settings) {
  const uint8_t stream = chunk->lane == Lane::kLayer
                             ? static_cast<uint8_t>(kLayers)
                             : static_cast<uint8_t>(Direction(chunk->route));
  CopyPlanner& planner = lane->planner;
  if (planner.kernel().count > 0) {
    const uint8_t kernels = stream + (settings.above_compute ? kAboveCompute : kKernels);
    Leg* leg = &chunk->legs[1];
    Error error = BeginLeg(leg, chunk, kernels, planner.kernel().bytes);
    if (Ok(error)) {
      error = EnqueueKernels(planner.kernel(), *chunk, settings.sms, streams_[kernels].handle);
      if (error == Error::kNotSupported) {
        kernels_work_.store(false, std::memory_order_relaxed);
        planner.UseEngineOnly();
        leg->chunk = nullptr;
      } else {
        EndLeg(leg, error);
      }
    }
  }
  if (planner.engine().count > 0 && !chunk->failed) {
    Leg* leg = &chunk->legs[0];
    if (Ok(BeginLeg(leg, chunk, stream, planner.engine().bytes))) {
      EndLeg(leg, EnqueueBatches(lane, settings.batch_copies, streams_[stream].handle));
    }
  }
}

// An error here: nothing of the leg is under way, and the chunk has failed.
Error CudaCopierImpl::BeginLeg(Leg* leg, Chunk* chunk, uint8_t stream, uint64_t bytes) {
  StreamState& at = streams_[stream];
  Error error = loss_.lost() ? Error::kSticky : Error::kOk;
  if (Ok(error) && chunk->after > at.waited) {
    error = loss_.Note(api_->WaitEvent(at.handle, compute_.EventOf(chunk->after)));
    if (Ok(error)) at.waited = chunk->after;
  }
  if (Ok(error)) error = loss_.Note(api_->RecordEvent(leg->start, at.handle));
  if (!Ok(error)) {
    chunk->failed = true;
    return error;
  }
  *leg = {.chunk = chunk, .stream = stream, .start = leg->start, .end = leg->end, .bytes = bytes};
  return error;
}

// Whatever the calls answered, some copies may be under way: the leg ends behind them.
void CudaCopierImpl::EndLeg(Leg* leg, Error error) {
  if (!loss_.lost()) {
    leg->has_end = Ok(loss_.Note(api_->RecordEvent(leg->end, streams_[leg->stream].handle)));
  }
  if (!Ok(error) || !leg->has_end) leg->chunk->failed = true;
}

Error CudaCopierImpl::EnqueueBatches(LaneState* lane, uint32_t batch_copies, Stream stream) {
  const EngineCopies& copies = lane->planner.engine();
  for (size_t at = 0; at < copies.count; at += batch_copies) {
    const size_t count = std::min<size_t>(batch_copies, copies.count - at);
    const Error error =
        loss_.Note(api_->CopyBatch(copies.targets.data() + at, copies.sources.data() + at,
                                   copies.sizes.data() + at, count, stream));
    ++lane->batches;
    if (!Ok(error)) return error;
  }
  return Error::kOk;
}

Error CudaCopierImpl::EnqueueKernels(const KernelCopies& copies, const Chunk& chunk, int sms,
                                     Stream stream) {
  for (size_t list = 0; list < chunk.lists.size(); ++list) {
    const CopyItem* items = copies.items.data() + list * kListItems;
    const size_t count = std::min(kListItems, copies.count - list * kListItems);
    std::memcpy(chunk.lists[list], items, count * sizeof(CopyItem));
    const Error error = loss_.Note(api_->CopyKernel(chunk.lists[list], count, sms, stream));
    if (error == Error::kNotSupported && list > 0) return Error::kOther;  // some are under way
    if (!Ok(error)) return error;
  }
  return Error::kOk;
}

// The round is where Collect finds it, or the chunk has ended.
bool CudaCopierImpl::Publish(Chunk* chunk, std::span<const ChunkPiece> pieces,
                             const LaneState& lane) {
  std::lock_guard<std::mutex> lock(mutex_);
  chunk->busy = false;
  chunk->handed = chunk->next_piece == pieces.size();
  chunk->legs_open = chunk->legs[0].chunk != nullptr;
  chunk->legs_open += chunk->legs[1].chunk != nullptr;
  chunk->round_ns = 0;
  if (loss_.lost() || chunk->legs_open == 0) {
    EndChunk(chunk, !loss_.lost() && !chunk->failed);
    return true;
  }
  stats_.copies += lane.planner.engine().count + lane.planner.kernel().count;
  stats_.batches += lane.batches;
  stats_.kernels += chunk->lists.size();
  for (const Staged& part : chunk->staged) stats_.staged_bytes += part.bytes;
  if (!chunk->handed && pieces.data() != chunk->pieces.data()) KeepPieces(chunk, pieces);
  for (Leg& leg : chunk->legs) {
    if (leg.chunk == nullptr) continue;
    StreamState& stream = streams_[leg.stream];
    leg.number = ++stream.last_number;
    stream.under_way.push_back(&leg);
    if (stream.under_way.size() == 1) LookAtFirst(&stream);
  }
  return true;
}

}  // namespace flexkv::cuda
