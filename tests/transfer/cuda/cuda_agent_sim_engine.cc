// The engine of CudaAgentSim: steps, kernels, fences, captures, sleep.
#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <set>

#include "tests/transfer/cuda/cuda_agent_sim_parts.h"

namespace flexkv {
namespace {

const BlockHash kHalfWritten = HashFromNumber(0xBAD);

}  // namespace

bool FragmentsHold(const LayerView& view, uint32_t block, const BlockHash& hash, uint64_t offset) {
  const auto* base = reinterpret_cast<const std::byte*>(view.base) +
                     static_cast<int64_t>(block) * view.block_stride_bytes;
  uint64_t fragments = 1;
  for (const StridedLoop& loop : view.outer) fragments *= loop.count;
  for (uint64_t number = 0; number < fragments; ++number) {
    const std::byte* at = base;
    uint64_t rest = number;
    for (auto loop = view.outer.rbegin(); loop != view.outer.rend(); ++loop) {
      at += static_cast<int64_t>(rest % loop->count) * loop->stride_bytes;
      rest /= loop->count;
    }
    if (!ContentMatches(hash, 0, {at, view.fragment_bytes}, offset)) return false;
    offset += view.fragment_bytes;
  }
  return true;
}

// Blocks that no load is writing; with content: that somebody owns.
std::vector<uint32_t> CudaAgentSim::PickBlocks(uint64_t most, bool with_content) {
  std::set<uint32_t> blocks;
  for (uint64_t i = 1 + rng_.Below(most); i > 0; --i) {
    const uint32_t block = static_cast<uint32_t>(rng_.Below(num_blocks_));
    const bool waits = std::ranges::find(overwrite_later_, block) != overwrite_later_.end();
    if (loading_[block] || waits || (with_content && !block_hash_[block].has_value())) continue;
    blocks.insert(block);
  }
  return {blocks.begin(), blocks.end()};
}

// The block has a new owner, whose kernel writes it. REQUIRES: fenced.
void CudaAgentSim::Own(uint32_t block) {
  if (capturing_) {
    block_hash_[block].reset();
    overwrite_later_.push_back(block);
    return;
  }
  const BlockHash hash = HashFromNumber(next_hash_++);
  block_hash_[block] = hash;
  fake_.Launch(
      compute_, [this, block] { FillBlock(block, kHalfWritten); },
      [this, block, hash] { FillBlock(block, hash); });
}

void CudaAgentSim::Overwrite(const std::vector<uint32_t>& blocks) {
  if (blocks.empty()) return;
  {
    Waiting waiting(&waiting_since_);
    agent_->FenceBlocks(IdsOf(blocks));
  }
  for (uint32_t block : blocks) Own(block);
}

void CudaAgentSim::ReadKernel(uint32_t block) {
  if (!block_hash_[block].has_value() || capturing_) return;
  const BlockHash hash = *block_hash_[block];
  const auto look = [this, block, hash] {
    if (!BlockHolds(block, hash)) {
      Complain("a kernel found other bytes in block " + std::to_string(block));
    }
  };
  fake_.Launch(compute_, look, look);
}

void CudaAgentSim::StartStore() {
  Op op{.route = Route::kDeviceToCpu};
  for (uint32_t block : PickBlocks(5, true)) {
    const uint32_t slot = static_cast<uint32_t>(rng_.Below(slot_hash_.size()));
    const bool retired = segments_[slot / (slot_hash_.size() / segments_.size())].retired;
    if (slot_busy_[slot] || slot_readers_[slot] > 0 || retired) continue;
    slot_busy_[slot] = true;
    slot_hash_[slot].reset();
    op.blocks.push_back(block);
    op.slots.push_back(slot);
    op.hashes.push_back(*block_hash_[block]);
  }
  if (op.blocks.empty()) return;
  const OpKey key = next_key_++;
  Op& kept = ops_.emplace(key, std::move(op)).first->second;
  if (rng_.OneIn(2)) PostHalves(key, &kept);
  const absl::Status status =
      agent_->SubmitEngineHalf({.key = key, .route = kept.route, .block_ids = IdsOf(kept.blocks)});
  if (!status.ok()) Complain(std::string(status.message()));
  if (kept.owed.empty() && kept.slots_held) PostHalves(key, &kept);
}

void CudaAgentSim::StartLoad(bool layerwise) {
  Op op{.route = Route::kCpuToDevice, .engine_waits = true, .layerwise = layerwise};
  for (uint32_t block : PickBlocks(5, false)) {
    const uint32_t slot = static_cast<uint32_t>(rng_.Below(slot_hash_.size()));
    const bool retired = segments_[slot / (slot_hash_.size() / segments_.size())].retired;
    if (slot_busy_[slot] || !slot_hash_[slot].has_value() || retired) continue;
    ++slot_readers_[slot];
    loading_[block] = true;
    block_hash_[block].reset();
    op.blocks.push_back(block);
    op.slots.push_back(slot);
    op.hashes.push_back(*slot_hash_[slot]);
  }
  if (op.blocks.empty()) return;
  {
    Waiting waiting(&waiting_since_);
    agent_->FenceBlocks(IdsOf(op.blocks));  // they have a new owner
  }
  const OpKey key = next_key_++;
  op.wrong_layers = std::make_shared<std::atomic<uint32_t>>(0);
  Op& kept = ops_.emplace(key, std::move(op)).first->second;
  const bool daemon_first = rng_.OneIn(2);
  if (daemon_first) PostHalves(key, &kept);
  const absl::Status status = agent_->SubmitEngineHalf(
      {.key = key, .route = kept.route, .block_ids = IdsOf(kept.blocks), .layerwise = layerwise});
  if (!status.ok()) Complain(std::string(status.message()));
  if (!daemon_first) PostHalves(key, &kept);
  if (layerwise) layerwise_.push_back(key);
}

// The forward pass of a step that loads layer by layer: a kernel per layer reads what was loaded.
void CudaAgentSim::LayerKernels() {
  if (layerwise_.empty()) return;
  if (!options_.threaded) Deliver(rng_.OneIn(8) ? 1 : 100);
  {
    Waiting waiting(&waiting_since_);
    agent_->StartLayerLoads((options_.threaded ? 3 : 1) * kNsPerMs);
  }
  for (uint32_t view = 0; view < views_.size(); ++view) {
    if (rng_.OneIn(3)) Breathe();
    {
      Waiting waiting(&waiting_since_);
      agent_->WaitForLayer(view);
    }
    for (OpKey key : layerwise_) {
      Op& op = ops_.at(key);
      if (!op.engine_waits) continue;
      ++op.layers_checked;
      for (size_t i = 0; i < op.blocks.size(); ++i) {
        const auto look = [this, view, wrong = op.wrong_layers, block = op.blocks[i],
                           hash = op.hashes[i]] {
          if (!ViewHolds(view, block, hash)) ++*wrong;
        };
        fake_.Launch(compute_, look, look);
      }
    }
    if (rng_.OneIn(200)) agent_->SetBootId(++boot_);
  }
  layerwise_.clear();
}

void CudaAgentSim::Revoke(OpKey key) {
  Op& op = ops_.at(key);
  {
    Waiting waiting(&waiting_since_);
    agent_->Revoke(key);
  }
  if (op.route != Route::kCpuToDevice || !op.engine_waits) return;
  op.engine_waits = false;
  for (uint32_t block : op.blocks) {
    loading_[block] = false;
    Own(block);
  }
}

void CudaAgentSim::RevokeOne() {
  std::vector<OpKey> keys;
  for (const auto& [key, op] : ops_) {
    if (!op.over && (op.engine_waits || Owed(op))) keys.push_back(key);
  }
  if (!keys.empty()) Revoke(keys[rng_.Below(keys.size())]);
}

void CudaAgentSim::OnEngineResult(const AgentResult& result) {
  Op& op = ops_.at(result.key);
  const std::string name = "op " + std::to_string(result.key);
  if (!op.engine_waits) Complain(name + ": reported twice, or after it was revoked");
  op.engine_waits = false;
  const std::set<uint32_t> missing(result.failed_engine_blocks.begin(),
                                   result.failed_engine_blocks.end());
  if ((result.status == OpStatus::kOk) != missing.empty()) Complain(name + ": status is not so");
  bool all = true;
  for (size_t i = 0; i < op.blocks.size(); ++i) {
    const uint32_t block = op.blocks[i];
    loading_[block] = false;
    if (missing.contains(block)) {
      all = false;
      ++failed;
      Own(block);
      continue;
    }
    ++loaded_ok;
    if (lost_) continue;
    block_hash_[block] = op.hashes[i];
    if (!BlockHolds(block, op.hashes[i])) {
      Complain(name + ": block " + std::to_string(block) + " was not loaded");
    }
    ReadKernel(block);
  }
  if (!op.layerwise || !all || lost_) return;
  ++layer_loads_ok;
  layers_ok += op.layers_checked;
  // Its kernels may run later: this one runs behind them.
  fake_.Launch(compute_, [this, name, wrong = op.wrong_layers] {
    if (wrong->load() > 0) Complain(name + ": a kernel ran before its layer was there");
  });
}

// The new stream goes on where the old one is, as engines see to.
void CudaAgentSim::SwitchStream() {
  const cuda::Stream next = fake_.EngineStream();
  auto reached = std::make_shared<std::atomic<bool>>(false);
  fake_.Launch(compute_, [reached] { reached->store(true); });
  fake_.Launch(
      next, [] {}, {}, reached);
  compute_ = next;
}

void CudaAgentSim::BeginCapture() {
  --captures_left_;
  capturing_ = true;
  ++captured;
  fake_.BeginCapture(compute_, static_cast<FakeCuda::CaptureMode>(rng_.Below(3)));
}

void CudaAgentSim::EndCapture() {
  capturing_ = false;
  if (!fake_.EndCapture(compute_)) Complain("a captured graph is of no use");
  for (uint32_t block : std::exchange(overwrite_later_, {})) Own(block);
}

// Level 2 of an engine's sleep mode: tensors go, others come, the worker registers again.
void CudaAgentSim::Sleep() {
  EndAgent();
  {
    std::lock_guard<std::mutex> lock(link_mutex_);
    halves_.clear();
    answers_.clear();
  }
  for (auto& [key, op] : ops_) {
    FreeSlots(&op);
    op.over = true;
    op.engine_waits = false;
  }
  {
    Waiting waiting(&waiting_since_);
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!fake_.Idle() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  }
  fake_.Sleep();
  for (Segment& segment : segments_) munmap(segment.memory.data(), segment.memory.size());
  for (auto& hash : slot_hash_) hash.reset();
  MakeTensors();
  ++boot_;
  MakeAgent();
}

void CudaAgentSim::LoseOrFail() {
  if (options_.lose && !lost_ && rng_.OneIn(30)) {
    lost_ = true;
    if (rng_.OneIn(4)) {
      fake_.Unload();
    } else {
      fake_.LoseContext();
    }
    for (auto& hash : block_hash_) hash.reset();
  }
  if (!options_.faults || !rng_.OneIn(3)) return;
  static const char* const kCalls[] = {"CopyBatch",    "CopyKernel",  "RecordEvent",
                                       "WaitEvent",    "QueryEvent",  "RegisterHost",
                                       "AllocateHost", "IsCapturing", "ElapsedNs"};
  static const cuda::Error kErrors[] = {cuda::Error::kOther, cuda::Error::kInvalid,
                                        cuda::Error::kNoMemory, cuda::Error::kNotPermitted,
                                        cuda::Error::kNotSupported};
  fake_.FailCall(kCalls[rng_.Below(9)], 1 + rng_.Below(10), kErrors[rng_.Below(5)]);
}

// What a step's metadata brings: blocks with new owners, preempted requests, loads, stores.
void CudaAgentSim::Bind() {
  if (!capturing_ && rng_.OneIn(25)) SwitchStream();
  agent_->SetComputeStream(reinterpret_cast<uint64_t>(compute_));
  if (rng_.OneIn(5)) RevokeOne();
  if (rng_.OneIn(2)) Overwrite(PickBlocks(6, false));
  for (uint64_t i = rng_.Below(3); i > 0 && !capturing_; --i) {
    StartLoad(options_.layerwise && rng_.OneIn(3));
  }
  for (uint64_t i = rng_.Below(4); i > 0; --i) StartStore();
}

void CudaAgentSim::EngineStep() {
  if (!capturing_ && captures_left_ > 0 && rng_.OneIn(4)) BeginCapture();
  Bind();
  Breathe();
  LayerKernels();
  for (uint64_t i = rng_.Below(4); i > 0; --i) {
    ReadKernel(static_cast<uint32_t>(rng_.Below(num_blocks_)));
  }
  if (!rng_.OneIn(6)) {
    Waiting waiting(&waiting_since_);
    agent_->StepDone();
  }
  Breathe();
  Collect();
  if (rng_.OneIn(10)) RetireSegment();
  if (rng_.OneIn(100)) agent_->SetBootId(++boot_);
  if (rng_.OneIn(12)) agent_->SetCopyOptions(RandomCopyOptions());
  LoseOrFail();
  if (capturing_ && rng_.OneIn(2)) EndCapture();
  if (!capturing_ && !lost_ && rng_.OneIn(150)) Sleep();
}

void CudaAgentSim::CheckAll() {
  for (uint32_t block = 0; block < num_blocks_; ++block) ReadKernel(block);
}

}  // namespace flexkv
