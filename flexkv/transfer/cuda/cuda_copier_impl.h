// The inside of the CUDA copier; nobody but its own files includes this. In three files: what is
// made once and given back, and chunks that start (cuda_copier.cc), rounds of chunks on the device
// (copy_round.cc), ends (copy_ends.cc).
//
// A chunk runs in rounds, nearly always one: as many pieces as fit the staging buffer, or all when
// none needs it. A round has one leg on a copy engine's stream, one on a kernel's, or both. A
// stream ends its legs in order, so only the first of each is asked for.
//
// Locks: a lane's mutex is held by the thread that puts a round on that lane's streams, through the
// driver's calls, so that the order of a stream's legs is that of its work; the lanes do not meet
// there. `mutex_` guards what both lanes share and is never held during a call of the device.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "absl/status/status.h"
#include "flexkv/base/clock.h"
#include "flexkv/transfer/cuda/compute_order.h"
#include "flexkv/transfer/cuda/copy_plan.h"
#include "flexkv/transfer/cuda/cuda_copier.h"
#include "flexkv/transfer/cuda/device_loss.h"

namespace flexkv::cuda {

class CudaCopierImpl final : public CudaCopier {
 public:
  CudaCopierImpl(const CopyOptions& options, const internal::ShardMap* map, Api* api,
                 PinnedSegments* pinned, uint64_t staging_bytes);
  ~CudaCopierImpl() override;
  absl::Status Make();

  void EnterThread() override;
  uint64_t MaxBytesInFlight(Route route) const override;
  void Start(const ChunkJob& job) override;
  void Collect(std::vector<ChunkEnd>* ends) override;
  TimeNs CollectAfter() const override;
  void SetComputeStream(uint64_t stream) override;
  ComputeMark Mark() override;
  bool HoldCompute(std::span<const ChunkTicket> tickets) override;
  void SetOptions(const CopyOptions& options) override;
  void SetKernelBelow(Route route, uint32_t fragment_bytes) override;
  Stats stats() const override;

 private:
  // Copy engine and kernel beside each other; the kernels' again, above the engine's own.
  enum StreamIndex : uint8_t { kDown, kUp, kLayers, kKernels = 3, kAboveCompute = 6, kStreams = 9 };
  static constexpr size_t kEvents = 1024;
  static constexpr size_t kListItems = 4096;  // of one launch
  static constexpr size_t kLists = 64;
  static constexpr size_t kMaxListsOfRound = kLists / 4;  // more: by copy engine
  static constexpr size_t kStagingBuffers = 2;            // a direction

  struct Chunk;
  struct Leg {
    Chunk* chunk = nullptr;  // set: something may be under way
    uint8_t stream = 0;
    Event start = nullptr, end = nullptr;
    bool has_end = false;  // `end` is recorded; else the stream has to be waited for
    uint64_t number = 0;   // ascending on its stream
    uint64_t bytes = 0;
    uint32_t errors = 0;  // in a row, asking for its end
  };
  struct Staged {
    std::byte* arena;
    std::byte* buffer;
    uint64_t bytes;
  };
  struct Chunk {
    ChunkTicket ticket = 0;
    Route route = Route::kDeviceToCpu;
    Lane lane = Lane::kBackground;
    ComputeMark after = 0;
    // Copies of the job's, when the chunk outlives Start's call without having begun in full.
    std::vector<ChunkPiece> pieces;
    std::vector<uint32_t> block_ids;

    size_t next_piece = 0;  // of the next round
    uint32_t next_layer = 0;
    bool busy = false;    // some thread is putting a round on the device
    bool handed = false;  // the last round has been
    bool failed = false;
    std::byte* staging = nullptr;
    std::vector<Staged> staged;    // of this round
    std::vector<CopyItem*> lists;  // of this round
    Leg legs[2];
    uint32_t legs_open = 0;
    TimeNs round_ns = 0, copy_ns = 0;
  };
  struct StreamState {
    Stream handle = nullptr;
    ComputeMark waited = 0;      // the lane's
    std::deque<Leg*> under_way;  // `mutex_`, like all that follows
    uint64_t last_number = 0;
    TimeNs due = 0;      // when the first leg should end
    TimeNs look_at = 0;  // when to ask for it
  };
  // What the thread that puts rounds on the device works with.
  struct LaneState {
    explicit LaneState(const internal::ShardMap& map) : planner(map) {}
    std::mutex mutex;
    CopyPlanner planner;
    std::vector<const std::byte*> cuts;
    uint64_t batches = 0;  // of this round
  };
  // CopyOptions, as one round uses them.
  struct Settings {
    uint32_t batch_copies = 1;
    int sms = 1;
    bool above_compute = false;
    uint64_t kernel_below = 0;
  };
  // cuda_copier.cc
  absl::Status MakeStreams();
  absl::Status MakeMemory();
  void GiveBack();
  absl::Status Refused(const char* what);
  static size_t Direction(Route route) { return route == Route::kCpuToDevice ? 1 : 0; }
  LaneState& LaneOf(Lane lane) { return lane == Lane::kLayer ? layer_lane_ : background_lane_; }
  Chunk* NewChunk(const ChunkJob& job);  // REQUIRES: mutex_
  static void KeepPieces(Chunk* chunk, std::span<const ChunkPiece> pieces);
  void EndChunk(Chunk* chunk, bool ok);  // REQUIRES: mutex_
  std::deque<Chunk*>& WaitingLike(const Chunk& chunk);

  // copy_round.cc
  bool BeginRound(Chunk* chunk, std::span<const ChunkPiece> pieces);
  Settings SettingsOf(const Chunk& chunk) const;
  bool Plan(Chunk* chunk, std::span<const ChunkPiece> pieces, LaneState* lane);
  bool IsHeld(const std::byte* memory, uint64_t bytes, LaneState* lane) const;
  uint32_t Stage(Chunk* chunk, const ChunkPiece& piece, uint32_t from, uint64_t* used,
                 LaneState* lane);
  bool TakeStaging(Chunk* chunk);
  bool TakeSupplies(Chunk* chunk, LaneState* lane);
  void GiveSupplies(Chunk* chunk);  // REQUIRES: mutex_
  void CopyStaged(Chunk* chunk);
  void Launch(Chunk* chunk, LaneState* lane, const Settings& settings);
  Error BeginLeg(Leg* leg, Chunk* chunk, uint8_t stream, uint64_t bytes);
  void EndLeg(Leg* leg, Error error);
  Error EnqueueBatches(LaneState* lane, uint32_t batch_copies, Stream stream);
  Error EnqueueKernels(const KernelCopies& copies, const Chunk& chunk, int sms, Stream stream);
  bool Publish(Chunk* chunk, std::span<const ChunkPiece> pieces, const LaneState& lane);

  // copy_ends.cc
  bool LegEnded(Leg* leg);
  void CollectStream(StreamState* stream);
  void EndRound(Chunk* chunk);
  void BeginWaiting();
  void FailAll();
  TimeNs ExpectedNs(const Leg& leg) const;  // REQUIRES: mutex_
  void LookAtFirst(StreamState* stream);    // REQUIRES: mutex_

  const internal::ShardMap* const map_;
  Api* const api_;
  PinnedSegments* const pinned_;
  const SteadyClock clock_;
  uint64_t staging_bytes_;
  DeviceInfo info_{};
  DeviceLoss loss_;
  ComputeOrder compute_;
  LaneState background_lane_, layer_lane_;
  std::atomic<bool> kernels_work_{true};
  void* staging_memory_ = nullptr;
  void* list_memory_ = nullptr;
  std::vector<Event> all_events_;

  mutable std::mutex mutex_;
  CopyOptions options_;
  uint32_t kernel_below_[2];
  StreamState streams_[kStreams];
  std::unordered_map<ChunkTicket, std::unique_ptr<Chunk>> chunks_;
  std::vector<std::unique_ptr<Chunk>> spare_chunks_;
  std::deque<Chunk*> waiting_[3];  // for supplies: layers, down, up
  std::vector<Event> free_events_;
  std::vector<CopyItem*> free_lists_;
  std::vector<std::byte*> free_staging_[2];  // by direction
  std::vector<ChunkEnd> ended_;
  double bytes_per_ns_[2] = {20, 20};  // by direction, as measured
  Stats stats_;
};

}  // namespace flexkv::cuda
