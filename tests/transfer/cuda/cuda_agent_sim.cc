// The world around the agent: tensors, arena, daemon, and the books. The engine's part is in
// cuda_agent_sim_engine.cc.
#include "tests/transfer/cuda/cuda_agent_sim.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdlib>

#include "flexkv/transfer/cuda/copy_route.h"
#include "gtest/gtest.h"
#include "tests/transfer/cuda/cuda_agent_sim_parts.h"

namespace flexkv {
namespace {

constexpr size_t kSegments = 3;
constexpr uint32_t kSlotsPerSegment = 12;

FakeCuda::Options FakeOptions(const CudaAgentSim::Options& options) {
  TestRng rng(options.seed ^ 0x5EED);
  FakeCuda::Options made{.seed = rng.Next()};
  made.kernels_read_host = !rng.OneIn(8);
  if (rng.OneIn(4)) made.slow_calls_one_in = 8;
  if (options.staging) {
    made.lockable_bytes = 0;
  } else if (rng.OneIn(4)) {
    made.lockable_bytes = rng.Below(1 << 20);
  }
  return made;
}

}  // namespace

CudaAgentSim::CudaAgentSim(const Options& options)
    : options_(options),
      rng_(options.seed),
      fake_(FakeOptions(options)),
      mapper_(std::make_unique<Mapper>()),
      captures_left_(options.captures) {
  compute_ = options.captures == 0 && rng_.OneIn(4) ? fake_.LegacyStream() : fake_.EngineStream();
  fake_.UseDevice();  // as an engine's thread has
  MakeTensors();
  segments_.resize(kSegments);
  slot_hash_.resize(kSegments * kSlotsPerSegment);
  slot_busy_.resize(slot_hash_.size());
  slot_readers_.resize(slot_hash_.size());
  const uint64_t chunk_bytes[] = {1, 2000, 20000, 1 << 20};
  agent_options_.chunk_bytes = chunk_bytes[rng_.Below(4)];
  agent_options_.orphan_timeout_ns = 30 * kNsPerMs;
  helper_ = std::thread([this] { Waiting::Help(&fake_, &waiting_since_, &stop_); });
  if (options_.threaded) fake_.StartThread();
  MakeAgent();
  if (options_.threaded) link_ = std::thread([this] { LinkThread(); });
}

CudaAgentSim::~CudaAgentSim() {
  EndAgent();
  stop_ = true;
  if (link_.joinable()) link_.join();
  helper_.join();
  fake_.StopThread();
  for (const Segment& segment : segments_) munmap(segment.memory.data(), segment.memory.size());
}

CopyOptions CudaAgentSim::RandomCopyOptions() {
  CopyOptions copy;
  for (int route = 0; route < 2; ++route) {
    copy.engine[route] = static_cast<CopyOptions::Engine>(rng_.Below(3));
    copy.kernel_sms[route] = 1 + static_cast<uint32_t>(rng_.Below(16));
    const uint64_t in_flight[] = {1, 3000, 1 << 20, 32 << 20};
    copy.bytes_in_flight[route] = in_flight[rng_.Below(4)];
  }
  const uint32_t batch[] = {1, 3, 16, 256};
  copy.batch_copies = batch[rng_.Below(4)];
  copy.layers_ahead = 1 + static_cast<uint32_t>(rng_.Below(4));
  copy.above_compute = rng_.OneIn(4);
  return copy;
}

void CudaAgentSim::Complain(const std::string& sentence) {
  std::lock_guard<std::mutex> lock(complaint_mutex_);
  if (complaints_.size() < 20) complaints_.push_back(sentence);
}

std::vector<std::string> CudaAgentSim::complaints() {
  std::lock_guard<std::mutex> lock(complaint_mutex_);
  std::vector<std::string> all = complaints_;
  for (const std::string& violation : fake_.violations()) all.push_back("violation: " + violation);
  return all;
}

std::string CudaAgentSim::Summary() {
  std::string text;
  for (const std::string& complaint : complaints()) text += complaint + "\n";
  return text;
}

// --- memory --------------------------------------------------------------------------------------

void CudaAgentSim::MakeTensors() {
  const std::vector<Shape> shapes = AllShapes();
  groups_.clear();
  views_.clear();
  view_places_.clear();
  layout_ = {};
  const size_t num_groups = 1 + rng_.Below(2);
  for (size_t group = 0; group < num_groups; ++group) {
    const uint32_t blocks = num_blocks_ + static_cast<uint32_t>(group * 5);
    groups_.push_back(std::make_unique<EngineMemory>(shapes[rng_.Below(shapes.size())], blocks));
    layout_.groups.push_back(groups_.back()->layout().groups[0]);
    uint64_t offset = 0;
    for (const LayerView& view : layout_.groups.back().layers) {
      views_.push_back(view);
      view_places_.emplace_back(group, offset);
      offset += view.block_bytes();
    }
    for (std::vector<std::byte>& memory : groups_.back()->allocations()) fake_.AdoptDevice(memory);
  }
  layout_.descriptor = "simulated";
  block_hash_.assign(num_blocks_, std::nullopt);
  loading_.assign(num_blocks_, false);
  touched_.assign(num_blocks_, false);
}

uint32_t CudaAgentSim::IdOf(size_t group, uint32_t block) const {
  return group == 0 ? block : groups_[group]->num_blocks() - 1 - block;
}

// As in EngineHalf::block_ids.
std::vector<uint32_t> CudaAgentSim::IdsOf(const std::vector<uint32_t>& blocks) const {
  std::vector<uint32_t> ids;
  for (size_t group = 0; group < groups_.size(); ++group) {
    for (uint32_t block : blocks) ids.push_back(IdOf(group, block));
  }
  return ids;
}

void CudaAgentSim::FillBlock(uint32_t block, const BlockHash& hash) {
  for (size_t group = 0; group < groups_.size(); ++group) {
    groups_[group]->Fill(IdOf(group, block), HashOf(hash, group));
  }
}

bool CudaAgentSim::BlockHolds(uint32_t block, const BlockHash& hash) const {
  for (size_t group = 0; group < groups_.size(); ++group) {
    if (!groups_[group]->Holds(IdOf(group, block), HashOf(hash, group))) return false;
  }
  return true;
}

bool CudaAgentSim::ViewHolds(uint32_t view, uint32_t block, const BlockHash& hash) const {
  const auto [group, offset] = view_places_[view];
  return FragmentsHold(views_[view], IdOf(group, block), HashOf(hash, group), offset);
}

std::span<std::byte> CudaAgentSim::SlotMemory(uint32_t slot) {
  const uint64_t bytes = layout_.shard_bytes();
  return segments_[slot / kSlotsPerSegment].memory.subspan(slot % kSlotsPerSegment * bytes, bytes);
}

bool CudaAgentSim::SlotHolds(uint32_t slot, const BlockHash& hash) {
  uint64_t offset = 0;
  for (size_t group = 0; group < groups_.size(); ++group) {
    const uint64_t bytes = layout_.groups[group].block_bytes();
    if (!ContentMatches(HashOf(hash, group), 0, SlotMemory(slot).subspan(offset, bytes))) {
      return false;
    }
    offset += bytes;
  }
  return true;
}

ArenaPlace CudaAgentSim::PlaceOf(uint32_t slot, uint32_t index) {
  return {.segment = segments_[slot / kSlotsPerSegment].id,
          .engine_index = index,
          .offset_bytes = slot % kSlotsPerSegment * layout_.shard_bytes()};
}

void CudaAgentSim::MapSegment(size_t place) {
  Segment& segment = segments_[place];
  const size_t bytes = kSlotsPerSegment * layout_.shard_bytes();
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  segment = {.id = next_segment_++, .memory = {static_cast<std::byte*>(memory), bytes}};
  mapper_->Set(segment.id, segment.memory);
  agent_->SegmentMapped(segment.id, segment.memory);
}

// The daemon gives a segment back: no new op uses it, and when the last has ended it is unmapped.
void CudaAgentSim::RetireSegment() {
  for (size_t place = 0; place < segments_.size(); ++place) {
    Segment& segment = segments_[place];
    if (!segment.retired) continue;
    const uint32_t first = static_cast<uint32_t>(place) * kSlotsPerSegment;
    for (uint32_t slot = first; slot < first + kSlotsPerSegment; ++slot) {
      if (slot_busy_[slot] || slot_readers_[slot] > 0) return;
    }
    {
      Waiting waiting(&waiting_since_);
      agent_->SegmentGone(segment.id);
    }
    mapper_->Set(segment.id, {});
    munmap(segment.memory.data(), segment.memory.size());
    for (uint32_t slot = first; slot < first + kSlotsPerSegment; ++slot) slot_hash_[slot].reset();
    MapSegment(place);
    return;
  }
  if (rng_.OneIn(3)) segments_[rng_.Below(segments_.size())].retired = true;
}

// What was measured on this GPU: the kernel wins below 1 KiB, so that many chunks go both ways.
std::string CudaAgentSim::CurveFile() {
  const std::string path =
      testing::TempDir() + "flexkv_sim_curve_" + std::to_string(getpid()) + ".json";
  cuda::CopyCurve curve{.kernel_sms = {8, 8}};
  for (uint32_t bytes : {64u, 512u, 1024u, 65536u}) {
    const float kernel = bytes < 1024 ? 20 : 5;
    curve.points.push_back(
        {.fragment_bytes = bytes, .copy_engine = {10, 10}, .kernel = {kernel, kernel}});
  }
  cuda::DeviceInfo info = {};
  fake_.GetDeviceInfo(&info);
  const absl::Status status = cuda::WriteCurve(path, info, curve);
  if (!status.ok()) Complain(std::string(status.message()));
  return path;
}

absl::StatusOr<std::unique_ptr<DeviceAgent>> CudaAgentSim::NewAgent() {
  if (rng_.OneIn(2)) {
    return MakeCudaAgent(agent_options_, layout_, mapper_.get(), fake_.Connect(), CurveFile(),
                         [] {});
  }
  const uint64_t pieces[] = {512, 4096, 20000, 1 << 20}, staging[] = {1, 3000, 1 << 20};
  auto device = std::make_unique<SmallPieces>(layout_, fake_.Connect(), pieces[rng_.Below(4)]);
  const absl::Status status = device->Make(agent_options_.copy, staging[rng_.Below(3)]);
  if (!status.ok()) return status;
  return internal::MakeAgent(agent_options_, layout_, mapper_.get(), std::move(device), [] {});
}

void CudaAgentSim::MakeAgent() {
  auto made = NewAgent();
  if (!made.ok()) {
    Complain("no agent: " + std::string(made.status().message()));
    std::abort();
  }
  std::lock_guard<std::mutex> lock(agent_mutex_);
  agent_ = *std::move(made);
  agent_->SetCopyOptions(RandomCopyOptions());
  agent_->SetBootId(boot_);
  agent_->SetComputeStream(reinterpret_cast<uint64_t>(compute_));
  for (size_t place = 0; place < segments_.size(); ++place) MapSegment(place);
}

// Its session is over: what it had not answered nobody hears of.
void CudaAgentSim::EndAgent() {
  {
    std::lock_guard<std::mutex> lock(agent_mutex_);
    Waiting waiting(&waiting_since_);
    fake_.ClearFailures();
    agent_ = nullptr;
  }
  if (!lost_ && fake_.open_handles() != 0) Complain("the agent left handles or memory");
}

// --- the daemon ----------------------------------------------------------------------------------

void CudaAgentSim::Post(DaemonHalf half, Op* op) {
  ++op->owed[half.part];
  std::lock_guard<std::mutex> lock(link_mutex_);
  halves_.push_back(std::move(half));
}

void CudaAgentSim::PostHalves(OpKey key, Op* op) {
  DaemonHalf half{.boot_id = boot_, .key = key, .route = op->route};
  for (uint32_t i = 0; i < op->slots.size(); ++i) half.blocks.push_back(PlaceOf(op->slots[i], i));
  if (rng_.OneIn(15)) {  // never comes
    FreeSlots(op);
    return;
  }
  half.refused = rng_.OneIn(25);
  if (rng_.OneIn(40)) half.boot_id += 1000;
  const size_t count = half.blocks.size();
  if (op->route == Route::kCpuToDevice && !op->layerwise && count > 1 && rng_.OneIn(3)) {
    const size_t cut = 1 + rng_.Below(count - 1);
    DaemonHalf first = half;
    first.blocks.resize(cut);
    first.more = true;
    half.blocks.erase(half.blocks.begin(), half.blocks.begin() + static_cast<ptrdiff_t>(cut));
    half.part = 1;
    half.refused = first.refused;
    Post(std::move(first), op);
  }
  Post(std::move(half), op);
}

void CudaAgentSim::Deliver(uint64_t most) {
  for (; most > 0; --most) {
    DaemonHalf half;
    {
      std::lock_guard<std::mutex> lock(link_mutex_);
      if (halves_.empty()) return;
      half = std::move(halves_.front());
      halves_.pop_front();
    }
    agent_->SubmitDaemonHalf(std::move(half));
  }
}

void CudaAgentSim::TakeDaemonResults() {
  std::vector<AgentResult> taken;
  agent_->TakeDaemonResults(&taken);
  std::lock_guard<std::mutex> lock(link_mutex_);
  for (AgentResult& result : taken) answers_.push_back(std::move(result));
}

void CudaAgentSim::LinkThread() {
  TestRng rng(options_.seed + 77);
  while (!stop_) {
    {
      std::lock_guard<std::mutex> lock(agent_mutex_);
      if (agent_ != nullptr) {
        Deliver(rng.Below(3));
        TakeDaemonResults();
        if (rng.OneIn(50)) (void)agent_->Report();
      }
    }
    std::this_thread::sleep_for(std::chrono::microseconds(rng.Below(150)));
  }
}

void CudaAgentSim::FreeSlots(Op* op) {
  if (!std::exchange(op->slots_held, false)) return;
  for (uint32_t slot : op->slots) {
    if (op->route == Route::kDeviceToCpu) {
      slot_busy_[slot] = false;
    } else {
      --slot_readers_[slot];
    }
  }
}

void CudaAgentSim::OnDaemonResult(const AgentResult& result) {
  auto it = ops_.find(result.key);
  if (it == ops_.end() || it->second.over) return;
  Op& op = it->second;
  const std::string name = "op " + std::to_string(result.key);
  if (--op.owed[result.part] < 0) Complain(name + ": a daemon half was answered twice");
  if (op.route == Route::kDeviceToCpu) {
    std::vector<bool> missing(op.slots.size(), result.status == OpStatus::kFailed);
    for (uint32_t position : result.failed) missing[position] = true;
    for (size_t i = 0; i < op.slots.size(); ++i) {
      if (missing[i]) {
        ++failed;
        continue;
      }
      ++stored_ok;
      if (!SlotHolds(op.slots[i], op.hashes[i])) Complain(name + ": stored other bytes");
      slot_hash_[op.slots[i]] = op.hashes[i];
    }
  }
  if (!Owed(op)) FreeSlots(&op);
}

// Engine results first: what a load brought is compared while its slots still count as read.
void CudaAgentSim::Collect() {
  std::vector<AgentResult> engine, daemon;
  agent_->TakeEngineResults(&engine);
  for (const AgentResult& result : engine) OnEngineResult(result);
  if (!options_.threaded) TakeDaemonResults();
  {
    std::lock_guard<std::mutex> lock(link_mutex_);
    daemon.swap(answers_);
  }
  for (const AgentResult& result : daemon) OnDaemonResult(result);
}

void CudaAgentSim::Breathe() {
  if (options_.threaded) {
    std::this_thread::sleep_for(std::chrono::microseconds(rng_.Below(100)));
    return;
  }
  if (rng_.OneIn(3)) Deliver(1 + rng_.Below(4));
  if (rng_.OneIn(4)) std::this_thread::sleep_for(std::chrono::microseconds(rng_.Below(60)));
  const uint64_t steps[] = {0, 1, 5, 40, 200};
  for (uint64_t i = steps[rng_.Below(5)]; i > 0 && fake_.Step(); --i) {
  }
}

bool CudaAgentSim::Owed(const Op& op) {
  return std::ranges::any_of(op.owed, [](const auto& owed) { return owed.second > 0; });
}

uint32_t CudaAgentSim::Outstanding() const {
  uint32_t count = 0;
  for (const auto& [key, op] : ops_) {
    if (op.over) continue;
    count += op.engine_waits;
    count += Owed(op);
  }
  return count;
}

void CudaAgentSim::Finish() {
  if (capturing_) EndCapture();
  {
    Waiting waiting(&waiting_since_);
    agent_->StepDone();
  }
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
  for (int round = 0; Outstanding() > 0; ++round) {
    if (std::chrono::steady_clock::now() > deadline) {
      for (const auto& [key, op] : ops_) {
        if (op.over || (!op.engine_waits && !Owed(op))) continue;
        Complain("op " + std::to_string(key) + " did not end for the " +
                 (op.engine_waits ? "engine" : "daemon") + (op.layerwise ? ", by layers" : ""));
      }
      break;
    }
    Deliver(options_.threaded ? 0 : 100);
    for (int i = 0; i < 300 && !options_.threaded && fake_.Step(); ++i) {
    }
    for (auto& [key, op] : ops_) {
      // Nothing comes for it any more: no half, or one that was not taken for its boot id.
      if (op.engine_waits && (op.owed.empty() || (round > 50 && !Owed(op)))) Revoke(key);
    }
    Collect();
    if (round > 5) std::this_thread::sleep_for(std::chrono::microseconds(200));
  }
  if (agent_->Busy() && Outstanding() == 0) Complain("busy with nothing");
  CheckAll();
  for (auto& [key, op] : ops_) {
    if (op.over) continue;
    for (const auto& [part, owed] : op.owed) {
      if (owed != 0) Complain("op " + std::to_string(key) + ": answers missing or too many");
    }
  }
}

void CudaAgentSim::Run() {
  for (int step = 0; step < options_.steps; ++step) EngineStep();
  Finish();
  EndAgent();
  if (options_.threaded && !lost_) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
    while (!fake_.Idle() && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  } else if (!lost_) {
    fake_.RunUntilIdle();
  }
  if (!lost_ && !fake_.Idle()) Complain("work that never ends");
  for (const auto& memory : groups_) {
    if (!lost_ && !memory->PaddingIntact()) Complain("bytes between blocks were written");
  }
}

}  // namespace flexkv
