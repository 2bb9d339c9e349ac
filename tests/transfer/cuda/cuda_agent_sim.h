// An engine, a daemon and a GPU around a real CUDA agent, all by seed: the engine's kernels write
// and read blocks on its compute stream, fence them before others overwrite them, preempt, capture
// graphs, put the GPU to sleep; the daemon's halves come late, early, in parts, refused, of an old
// boot or never; segments come and go; calls of the device fail, in the end perhaps all.
//
// Checked by the content oracle: what a store reports stored is in its slot; what a load reports
// loaded is in its blocks, at once and for every kernel after it; a layer that WaitForLayer let
// pass is there when the kernel behind it runs; no kernel ever finds a block other than its owner
// left it. Every half is answered once, the GPU's rules are kept (FakeCuda), nothing is left over.
#pragma once

#include <atomic>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "flexkv/transfer/cuda/cuda_agent.h"
#include "tests/support/content_oracle.h"
#include "tests/support/fake_cuda.h"
#include "tests/support/test_seed.h"
#include "tests/transfer/engine_memory.h"

namespace flexkv {

class CudaAgentSim {
 public:
  struct Options {
    uint64_t seed = 1;
    int steps = 60;
    bool threaded = false;  // the GPU and the link have threads of their own
    bool faults = false;    // calls refuse now and then
    bool lose = false;      // the device is lost on the way
    bool staging = false;   // nothing can be locked in memory
    bool layerwise = true;
    int captures = 0;  // graphs captured on the way
  };
  explicit CudaAgentSim(const Options& options);
  ~CudaAgentSim();

  void Run();  // all steps, and the end
  FakeCuda& fake() { return fake_; }

  std::vector<std::string> complaints();
  std::string Summary();
  uint64_t stored_ok = 0, loaded_ok = 0, layers_ok = 0, layer_loads_ok = 0, failed = 0,
           captured = 0;

 private:
  struct Segment {
    SegmentId id = 0;
    std::span<std::byte> memory;
    bool retired = false;
  };
  struct Op {
    Route route = Route::kDeviceToCpu;
    std::vector<uint32_t> blocks, slots;
    std::vector<BlockHash> hashes;
    std::map<uint32_t, int> owed;  // answers to the daemon's halves, by part
    bool slots_held = true;
    bool engine_waits = false;
    bool layerwise = false;
    bool over = false;                                    // of an agent that is gone
    std::shared_ptr<std::atomic<uint32_t>> wrong_layers;  // what kernels found
    uint32_t layers_checked = 0;
  };
  class Mapper;
  class Waiting;

  void Complain(const std::string& sentence);
  uint32_t IdOf(size_t group, uint32_t block) const;
  std::vector<uint32_t> IdsOf(const std::vector<uint32_t>& blocks) const;
  BlockHash HashOf(const BlockHash& hash, size_t group) const { return ChildHash(hash, group); }
  void FillBlock(uint32_t block, const BlockHash& hash);
  bool BlockHolds(uint32_t block, const BlockHash& hash) const;
  bool ViewHolds(uint32_t view, uint32_t block, const BlockHash& hash) const;
  bool SlotHolds(uint32_t slot, const BlockHash& hash);
  std::span<std::byte> SlotMemory(uint32_t slot);
  ArenaPlace PlaceOf(uint32_t slot, uint32_t index);

  CopyOptions RandomCopyOptions();
  void MakeTensors();
  std::string CurveFile();
  absl::StatusOr<std::unique_ptr<DeviceAgent>> NewAgent();
  void MakeAgent();
  void EndAgent();
  void MapSegment(size_t place);
  void RetireSegment();

  // The engine.
  void EngineStep();
  void Bind();
  void SwitchStream();
  std::vector<uint32_t> PickBlocks(uint64_t most, bool with_content);
  void Overwrite(const std::vector<uint32_t>& blocks);
  void Own(uint32_t block);
  void ReadKernel(uint32_t block);
  void StartStore();
  void StartLoad(bool layerwise);
  void LayerKernels();
  void Revoke(OpKey key);
  void RevokeOne();
  void BeginCapture();
  void EndCapture();
  void Sleep();
  void LoseOrFail();
  void CheckAll();

  // The daemon.
  void PostHalves(OpKey key, Op* op);
  void Post(DaemonHalf half, Op* op);
  void Deliver(uint64_t most);
  void TakeDaemonResults();
  void Collect();
  void OnEngineResult(const AgentResult& result);
  void OnDaemonResult(const AgentResult& result);
  void FreeSlots(Op* op);
  void LinkThread();
  void Breathe();                  // the GPU and the link go on a little
  static bool Owed(const Op& op);  // an answer to the daemon
  uint32_t Outstanding() const;
  void Finish();

  const Options options_;
  TestRng rng_;
  FakeCuda fake_;
  uint32_t num_blocks_ = 16;
  std::vector<std::unique_ptr<EngineMemory>> groups_;
  std::vector<LayerView> views_;
  std::vector<std::pair<size_t, uint64_t>> view_places_;  // group, offset in its part of the shard
  KvLayout layout_;
  std::unique_ptr<Mapper> mapper_;
  std::vector<Segment> segments_;
  SegmentId next_segment_ = 1;
  DeviceAgent::Options agent_options_;
  std::unique_ptr<DeviceAgent> agent_;

  cuda::Stream compute_ = nullptr;
  bool capturing_ = false;
  int captures_left_ = 0;
  bool lost_ = false;
  std::vector<uint32_t> overwrite_later_;  // fenced while a graph was captured
  std::vector<std::optional<BlockHash>>
      block_hash_;  // in the compute stream's order; none: anything
  std::vector<bool> loading_;
  std::vector<bool> touched_;  // in the present step, by its layer-wise loads
  std::vector<std::optional<BlockHash>> slot_hash_;
  std::vector<bool> slot_busy_;
  std::vector<int> slot_readers_;
  std::map<OpKey, Op> ops_;
  std::vector<OpKey> layerwise_;  // of this step
  OpKey next_key_ = 1;
  uint64_t next_hash_ = 1, boot_ = 1;

  std::mutex link_mutex_;  // the daemon's halves on their way, and its answers
  std::deque<DaemonHalf> halves_;
  std::vector<AgentResult> answers_;
  std::mutex complaint_mutex_;
  std::vector<std::string> complaints_;
  std::atomic<int64_t> waiting_since_{0};
  std::atomic<bool> stop_{false};
  std::mutex agent_mutex_;  // the link's use of agent_
  std::thread helper_, link_;
};

}  // namespace flexkv
