// The executor that lives in the engine's worker process: copies between the engine's KV tensors
// and the mapped arena on a native thread of its own. An op runs only when its two halves have met:
//
//   engine half  what the engine's own step metadata says: key, direction, GPU block ids
//   daemon half  what the daemon planned: key, direction, arena places
//
// Rules (design: "two halves meet"):
// - Stores become runnable only after the step that fills their blocks: SubmitEngineHalf tags
// stores
//   with the current step; StepDone() releases them. Loads are runnable when submitted.
// - Revoke(key): after it returns, no copy of that op touches engine memory, now or later (a daemon
//   half that arrives later is answered as failed). It waits for a running chunk only (bounded by
//   one chunk's copy). A result of the op that nobody took yet is taken back: after Revoke the
//   caller alone reports the load.
// - FenceBlocks(ids): stores that read any of these blocks lose those not yet copied blocks; the
//   running chunk is waited for. Loads are not affected.
// - A daemon half with another boot id than the agent's current one is refused. A change of the
// boot
//   id ends every op of the old one: loads are reported failed, stores dropped, a running op ends
//   behind its chunk (Busy until then). While detached (boot id 0) engine halves end at once: loads
//   as failed, stores silently.
// - Places are checked against the mapped segment and the engine half before the first byte moves;
//   one that is wrong, or a block named twice, fails the whole op (of several parts: that part).
// - A daemon half without engine half waits until `orphan_timeout`, with all its parts, then is
//   answered as failed (an engine half is always submitted first or soon after). A store's engine
//   half without daemon half is dropped after the same time; a load's waits until it is revoked.
//   Both tables are bounded.
// - A load's daemon half may come in parts 0, 1, 2, ... (TransferOp::part). Each is copied as it
//   comes and answered by itself. The engine hears once, when the part without `more` is done;
//   blocks that no part brought count as failed. A part that is not the next one, that follows the
//   last or is of another route is answered as failed and closes the op, as does a refusal: parts
//   already here are still copied, none behind them is taken. A wrong place fails its part; of two
//   parts that name one block the second is not copied, and that block counts as failed. An open op
//   whose next part does not come waits until it is revoked.
// - Loads run before stores, but a store gets one chunk for every eight of loads. Work is done in
//   chunks of at most `chunk_bytes`, or of one layer of one block where that alone is more.
// - All methods may be called from any thread but those marked "engine thread"; with a compute
//   stream SubmitEngineHalf, StepDone, Revoke and FenceBlocks are the engine thread's too. None
//   waits for a copy but Revoke and FenceBlocks (and, on CPU, WaitForLayer), as said above.
// - With a compute stream nothing waits on the processor: Revoke and FenceBlocks wait until a chunk
//   that is being handed to the device has been, and then make the compute stream wait for it. "No
//   copy touches engine memory" means: from the compute stream's point of view. Copies wait for the
//   compute stream as it was when their engine half was submitted (loads) or at StepDone (stores).
//   Chunks of several ops are under way at a time; the daemon hears of an op when the last of its
//   own has ended, also when it was revoked.
// - A layer-wise load comes in one part that brings every block. It is the engine's from
//   StartLayerLoads on: a change of the boot id ends it before that call and not after it.
//   One that failed has failed with all its blocks.
//
// The agents for host memory and for GPUs are one class (agent_core.h) over two chunk copiers.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/kv_layout.h"
#include "flexkv/transfer/transfer_op.h"

namespace flexkv {

// Maps arena segments. Called on the agent's thread and, in StartLayerLoads, on the engine's; both
// at the same time.
class SegmentMapper {
 public:
  virtual ~SegmentMapper() = default;
  // Address range of the segment in this process, empty when unknown; one that is on its way is
  // waited for, at most `wait_ns`. The mapping stays until the agent holds no op that uses it (the
  // owner of the mapper decides when to unmap retired segments).
  virtual std::span<std::byte> Map(SegmentId segment, TimeNs wait_ns) = 0;
};

struct EngineHalf {
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  // GPU block ids, in the order ArenaPlace::engine_index counts. With several KV groups the ids of
  // group 0, then as many of group 1, and so on.
  std::vector<uint32_t> block_ids;
  // Loads: the engine computes in this very step and asks for layers one by one (StartLayerLoads,
  // WaitForLayer) instead of waiting for the end.
  bool layerwise = false;
};

struct DaemonHalf {
  uint64_t boot_id = 0;
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  bool refused = false;  // the daemon will not do it: ends as failed at once
  uint32_t part = 0;     // as in TransferOp; of a refusal: the part that will not come
  bool more = false;     // parts follow
  std::vector<ArenaPlace> blocks;
};

// How an op ended, for both sides. For the daemon, a part of it, and `failed` are positions in
// DaemonHalf::blocks; for the engine `failed_engine_blocks` are GPU block ids whose content is not
// what was promised (loads only).
struct AgentResult {
  OpKey key = 0;
  Route route = Route::kDeviceToCpu;
  uint32_t part = 0;  // the daemon's
  OpStatus status = OpStatus::kOk;
  std::vector<uint32_t> failed;
  std::vector<uint32_t> failed_engine_blocks;
  uint64_t bytes = 0;
  TimeNs copy_ns = 0;  // time spent copying
};

struct AgentStats {
  uint64_t loads = 0, stores = 0, load_bytes = 0, store_bytes = 0;
  uint64_t load_copy_ns = 0, store_copy_ns = 0;
  uint64_t revoked = 0, fenced_blocks = 0, orphans = 0, refused = 0, failed = 0;
  // Loads layer by layer: ended well; failed after the engine was told that it may compute.
  uint64_t layer_loads = 0, layer_loads_failed = 0;
};

// How copies between GPU and arena are made. Taken from the daemon's configuration when the worker
// attaches; agents of engines on CPU ignore it.
struct CopyOptions {
  enum class Engine : uint8_t { kAuto = 0, kCopyEngine = 1, kKernel = 2 };
  // By direction (index: Route). kAuto: by fragment size, as measured on this GPU.
  Engine engine[2] = {Engine::kAuto, Engine::kAuto};
  uint32_t kernel_sms[2] = {8, 8};  // SMs a copy kernel may occupy, 1 to 132
  uint64_t bytes_in_flight[2] = {32ull << 20, 32ull << 20};  // by direction, 1 MiB to 4 GiB
  uint32_t batch_copies = 256;  // copies in one call of the driver, whose lock it holds; 1 to 65536
  bool above_compute = false;   // copy kernels may displace the engine's own
  uint32_t layers_ahead = 3;    // of layerwise loads; 1 to 1024
};

// What an agent says of its device, for `flexkv status`.
struct DeviceReport {
  struct Point {  // GB/s at one fragment size; 0: not measured
    uint32_t fragment_bytes = 0;
    float copy_engine[2] = {}, kernel[2] = {};  // by direction (index: Route)
  };
  std::string device;             // "NVIDIA H200", or "cpu"
  std::vector<Point> curve;       // ascending sizes; empty when not measured yet or not needed
  uint32_t kernel_below[2] = {};  // fragments smaller than this go by kernel
  uint64_t pinned_bytes = 0;      // of the arena, registered with the device
  uint64_t arena_bytes = 0;       // mapped
  uint64_t staged_bytes = 0;      // copied by way of a staging buffer, since not registered
  bool pinning_refused = false;   // by the system; `problem` says what to do
  std::string problem;            // one sentence; empty when all is well
};

class DeviceAgent {
 public:
  struct Options {
    uint64_t chunk_bytes = 4ull << 20;
    uint32_t max_ops = 8192;  // engine halves and daemon halves (parts) each
    TimeNs orphan_timeout_ns = 10 * kNsPerSecond;
    CopyOptions copy;
  };
  virtual ~DeviceAgent() = default;

  // 0 = detached; daemon halves of the old id end as failed.
  virtual void SetBootId(uint64_t boot_id) = 0;
  // ResourceExhausted; InvalidArgument: ids out of range.
  virtual absl::Status SubmitEngineHalf(EngineHalf half) = 0;
  virtual void SubmitDaemonHalf(DaemonHalf half) = 0;  // never fails: a refusal is a failed result
  virtual void StepDone() = 0;
  // Engine thread, at the start of every step, before its halves and fences; see
  // ChunkCopier::SetComputeStream. Loads submitted in one step wait for the compute stream as it
  // was at the first of them, or at the last Revoke or FenceBlocks that had to hold it.
  virtual void SetComputeStream(uint64_t stream) = 0;
  // Engine thread, in the step whose engine halves are layerwise: waits until their daemon halves
  // are here (at most `wait_ns`), then starts the first CopyOptions::layers_ahead layers. A load
  // whose half did not come, or whose places are wrong, has failed: TakeEngineResults says so.
  virtual void StartLayerLoads(TimeNs wait_ns) = 0;
  // Engine thread: what the engine enqueues from here on finds layer view `layer` (of KvLayout's
  // views in packed order) of all loads started by StartLayerLoads, or of none that failed. Starts
  // further layers. Cheap when no load is under way. StepDone does the same for all layers.
  virtual void WaitForLayer(uint32_t layer) = 0;
  virtual void Revoke(OpKey key) = 0;
  virtual void FenceBlocks(std::span<const uint32_t> block_ids) = 0;
  // Ends of ops that the daemon must hear of, and ends of loads that the engine must hear of. Every
  // daemon half shows up exactly once in the first; every load engine half that was not revoked
  // exactly once in the second.
  virtual void TakeDaemonResults(std::vector<AgentResult>* results) = 0;
  virtual void TakeEngineResults(std::vector<AgentResult>* results) = 0;
  // True while a daemon half is waiting or running (its segments must stay mapped).
  virtual bool Busy() const = 0;
  // A segment has been mapped here, before the first op that uses it; and is about to be unmapped,
  // after the last. A GPU's agent registers it in the background; SegmentGone returns when the
  // device knows it no more.
  virtual void SegmentMapped(SegmentId segment, std::span<std::byte> memory) = 0;
  virtual void SegmentGone(SegmentId segment) = 0;
  virtual void SetCopyOptions(const CopyOptions& options) = 0;  // for chunks started from now on
  virtual DeviceReport Report() const = 0;
  virtual AgentStats stats() const = 0;
};

// The agent for KV tensors in host memory. `on_result` is called on the agent's thread after new
// daemon results are available (to ring a bell; must not block). The mapper outlives the agent.
absl::StatusOr<std::unique_ptr<DeviceAgent>> MakeHostAgent(DeviceAgent::Options options,
                                                           KvLayout layout, SegmentMapper* mapper,
                                                           std::function<void()> on_result);

}  // namespace flexkv
