#include "flexkv/transfer/cuda/cuda_copier.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/transfer/cuda/copy_route.h"
#include "flexkv/transfer/cuda/cuda_copier_impl.h"

namespace flexkv::cuda {
namespace {

// A destructor waits no longer for chunks that should have ended before it was called.
constexpr TimeNs kLongestGoodbye = 2 * kNsPerSecond;

// "flexkv load cpu->gpu 12 blocks 3.1 MiB" in profiles, around the calls that start a chunk.
class ProfileRange {
 public:
  ProfileRange(Api* api, const ChunkJob& job) : api_(api) {
    char name[96];
    std::snprintf(name, sizeof(name), "flexkv %s%s %zu blocks %.1f MiB",
                  job.route == Route::kCpuToDevice ? "load cpu->gpu" : "store gpu->cpu",
                  job.lane == Lane::kLayer ? " layer" : "", job.pieces.size(),
                  static_cast<double>(job.bytes) / (1 << 20));
    api_->PushRange(name);
  }
  ~ProfileRange() { api_->PopRange(); }
  ProfileRange(const ProfileRange&) = delete;
  ProfileRange& operator=(const ProfileRange&) = delete;

 private:
  Api* const api_;
};

CopyOptions Sane(CopyOptions options) {
  options.batch_copies = std::max(options.batch_copies, 1u);
  for (uint32_t& sms : options.kernel_sms) sms = std::max(sms, 1u);
  return options;
}

}  // namespace

absl::StatusOr<std::unique_ptr<CudaCopier>> CudaCopier::Create(const CopyOptions& options,
                                                               const internal::ShardMap* map,
                                                               Api* api, PinnedSegments* pinned,
                                                               uint64_t staging_bytes) {
  auto copier = std::make_unique<CudaCopierImpl>(options, map, api, pinned, staging_bytes);
  if (absl::Status status = copier->Make(); !status.ok()) return status;
  return copier;
}

CudaCopierImpl::CudaCopierImpl(const CopyOptions& options, const internal::ShardMap* map, Api* api,
                               PinnedSegments* pinned, uint64_t staging_bytes)
    : map_(map),
      api_(api),
      pinned_(pinned),
      staging_bytes_(staging_bytes),
      compute_(api, &loss_),
      background_lane_(*map),
      layer_lane_(*map),
      options_(Sane(options)),
      kernel_below_{DefaultKernelBelow(Route::kDeviceToCpu),
                    DefaultKernelBelow(Route::kCpuToDevice)} {
  // A round must take one layer of one block at least.
  for (const internal::ShardMap::Layer& layer : map->layers) {
    staging_bytes_ = std::max(staging_bytes_, layer.bytes);
  }
}

absl::Status CudaCopierImpl::Refused(const char* what) {
  const char* message = loss_.lost() ? nullptr : api_->LastMessage();
  return absl::InternalError(absl::StrCat("the GPU refuses ", what, message == nullptr ? "" : ": ",
                                          message == nullptr ? "" : message));
}

absl::Status CudaCopierImpl::Make() {
  if (!Ok(loss_.Note(api_->UseDevice()))) return Refused("to be used");
  if (!Ok(loss_.Note(api_->GetDeviceInfo(&info_)))) return Refused("to say what it is");
  kernels_work_ = info_.kernels_read_host;
  if (absl::Status status = MakeStreams(); !status.ok()) return status;
  return MakeMemory();
}

absl::Status CudaCopierImpl::MakeStreams() {
  for (int index = 0; index < kStreams; ++index) {
    const bool above = index == kUp || index == kLayers || index >= kAboveCompute;
    if (!Ok(loss_.Note(api_->CreateStream(above ? 1 : 0, &streams_[index].handle)))) {
      return Refused("a stream");
    }
  }
  if (!Ok(loss_.Note(compute_.CreateEvents()))) return Refused("an event");
  all_events_.reserve(kEvents);
  for (size_t i = 0; i < kEvents; ++i) {
    Event event = nullptr;
    if (!Ok(loss_.Note(api_->CreateEvent(true, &event)))) return Refused("an event");
    all_events_.push_back(event);
  }
  free_events_ = all_events_;
  return absl::OkStatus();
}

absl::Status CudaCopierImpl::MakeMemory() {
  if (!Ok(loss_.Note(api_->AllocateHost(2 * kStagingBuffers * staging_bytes_, &staging_memory_)))) {
    return Refused("memory for staging buffers");
  }
  for (size_t i = 0; i < 2 * kStagingBuffers; ++i) {
    free_staging_[i % 2].push_back(static_cast<std::byte*>(staging_memory_) + i * staging_bytes_);
  }
  if (!Ok(loss_.Note(api_->AllocateHost(kLists * kListItems * sizeof(CopyItem), &list_memory_)))) {
    return Refused("memory for copy lists");
  }
  for (size_t i = 0; i < kLists; ++i) {
    free_lists_.push_back(static_cast<CopyItem*>(list_memory_) + i * kListItems);
  }
  return absl::OkStatus();
}

// On a thread of our own: the caller's may have another device, and capture graphs.
CudaCopierImpl::~CudaCopierImpl() {
  if (loss_.lost()) return;
  std::thread([this] {
    (void)loss_.Note(api_->RelaxCapture());
    (void)loss_.Note(api_->UseDevice());
    const TimeNs deadline = clock_.Now() + kLongestGoodbye;
    std::vector<ChunkEnd> ends;
    for (;;) {
      Collect(&ends);
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (chunks_.empty()) break;
      }
      if (clock_.Now() > deadline) return;  // what the device still uses is never given back
      std::this_thread::sleep_for(std::chrono::microseconds(50));
    }
    GiveBack();
  }).join();
}

void CudaCopierImpl::GiveBack() {
  if (loss_.lost()) return;
  for (Event event : all_events_) (void)api_->DestroyEvent(event);
  compute_.DestroyEvents();
  for (StreamState& stream : streams_) {
    if (stream.handle != nullptr) (void)api_->DestroyStream(stream.handle);
  }
  if (staging_memory_ != nullptr) (void)api_->FreeHost(staging_memory_);
  if (list_memory_ != nullptr) (void)api_->FreeHost(list_memory_);
}

void CudaCopierImpl::EnterThread() {
  if (loss_.lost()) return;
  (void)loss_.Note(api_->RelaxCapture());
  (void)loss_.Note(api_->UseDevice());
}

uint64_t CudaCopierImpl::MaxBytesInFlight(Route route) const {
  std::lock_guard<std::mutex> lock(mutex_);
  return options_.bytes_in_flight[Direction(route)];
}

void CudaCopierImpl::SetOptions(const CopyOptions& options) {
  std::lock_guard<std::mutex> lock(mutex_);
  options_ = Sane(options);
}

void CudaCopierImpl::SetKernelBelow(Route route, uint32_t fragment_bytes) {
  std::lock_guard<std::mutex> lock(mutex_);
  kernel_below_[Direction(route)] = fragment_bytes;
}

CudaCopier::Stats CudaCopierImpl::stats() const {
  std::lock_guard<std::mutex> lock(mutex_);
  Stats stats = stats_;
  stats.lost = loss_.lost();
  return stats;
}

// --- chunks --------------------------------------------------------------------------------------

CudaCopierImpl::Chunk* CudaCopierImpl::NewChunk(const ChunkJob& job) {
  std::unique_ptr<Chunk> chunk;
  if (spare_chunks_.empty()) {
    chunk = std::make_unique<Chunk>();
  } else {
    chunk = std::move(spare_chunks_.back());
    spare_chunks_.pop_back();
  }
  chunk->ticket = job.ticket;
  chunk->route = job.route;
  chunk->lane = job.lane;
  chunk->after = job.after;
  chunk->pieces.clear();
  chunk->next_piece = chunk->next_layer = 0;
  chunk->busy = true;
  chunk->handed = chunk->failed = false;
  chunk->copy_ns = 0;
  return chunks_.emplace(job.ticket, std::move(chunk)).first->second.get();
}

void CudaCopierImpl::KeepPieces(Chunk* chunk, std::span<const ChunkPiece> pieces) {
  chunk->block_ids.clear();
  for (const ChunkPiece& piece : pieces) {
    chunk->block_ids.insert(chunk->block_ids.end(), piece.block_ids.begin(), piece.block_ids.end());
  }
  chunk->pieces.assign(pieces.begin(), pieces.end());
  std::span<const uint32_t> ids = chunk->block_ids;
  for (ChunkPiece& piece : chunk->pieces) {
    piece.block_ids = ids.first(piece.block_ids.size());
    ids = ids.subspan(piece.block_ids.size());
  }
}

void CudaCopierImpl::EndChunk(Chunk* chunk, bool ok) {
  GiveSupplies(chunk);
  if (chunk->staging != nullptr) {
    free_staging_[Direction(chunk->route)].push_back(std::exchange(chunk->staging, nullptr));
  }
  if (!ok) ++stats_.failed_chunks;
  ended_.push_back({.ticket = chunk->ticket, .ok = ok, .copy_ns = chunk->copy_ns});
  auto it = chunks_.find(chunk->ticket);
  spare_chunks_.push_back(std::move(it->second));
  chunks_.erase(it);
}

std::deque<CudaCopierImpl::Chunk*>& CudaCopierImpl::WaitingLike(const Chunk& chunk) {
  return waiting_[chunk.lane == Lane::kLayer ? 0 : 1 + Direction(chunk.route)];
}

void CudaCopierImpl::Start(const ChunkJob& job) {
  Chunk* chunk = nullptr;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    chunk = NewChunk(job);
    if (loss_.lost() || job.after == kNoMark) {
      EndChunk(chunk, false);
      return;
    }
  }
  const ProfileRange range(api_, job);
  // An engine's thread computes on this device, but through a runtime of its own.
  if (job.lane == Lane::kLayer) (void)loss_.Note(api_->UseDevice());
  BeginRound(chunk, job.pieces);
}

// --- the compute stream --------------------------------------------------------------------------

void CudaCopierImpl::SetComputeStream(uint64_t stream) {
  compute_.SetStream(reinterpret_cast<Stream>(static_cast<uintptr_t>(stream)));
}

ComputeMark CudaCopierImpl::Mark() { return compute_.Mark(); }

// A stream's legs end in order: waiting for the last is waiting for all. The events found here may
// be given to a later chunk before the calls below: then the wait is for that one, which was
// started after what is waited for and, like all, behind marks that lie before this wait. Once
// enqueued, a wait stays with the record of its call, whatever becomes of the event.
bool CudaCopierImpl::HoldCompute(std::span<const ChunkTicket> tickets) {
  const Leg* last[kStreams] = {};
  std::vector<Event> events;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    if (loss_.lost()) return true;
    for (const ChunkTicket ticket : tickets) {
      auto it = chunks_.find(ticket);
      if (it == chunks_.end()) continue;  // ended
      const Chunk& chunk = *it->second;
      if (chunk.busy || !chunk.handed) return false;
      for (const Leg& leg : chunk.legs) {
        if (leg.chunk == nullptr) continue;
        if (!leg.has_end) return false;
        const Leg*& at = last[leg.stream];
        if (at == nullptr || at->number < leg.number) at = &leg;
      }
    }
    for (const Leg* leg : last) {
      if (leg != nullptr) events.push_back(leg->end);
    }
  }
  return events.empty() || compute_.Hold(events);
}

}  // namespace flexkv::cuda
