// A seeded engine and daemon beside a real agent. The engine breaks no rule but does everything a
// rule allows at the worst moment: fenced blocks are overwritten as soon as FenceBlocks returns,
// blocks of revoked loads as soon as Revoke returns. The daemon's halves come late, early, twice,
// from an old boot, refused or never; those of loads in parts, with parts missing, repeated, out of
// order, naming a block twice, or the last one empty.
//
// The same over a device that copies later, beside a compute stream that runs later, too: what the
// engine does to its memory then happens on that stream. Loads layer by layer are computed with in
// the middle of their copies.
//
// Checked: a store's slot holds what its block held when it was submitted, or is reported failed; a
// load's block holds its slot, or is reported; no block ever changes under its owner; every daemon
// half (each part, by its number) is answered once, every load half once unless revoked.
#include <atomic>
#include <deque>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <thread>

#include "flexkv/base/fault.h"
#include "gtest/gtest.h"
#include "tests/support/test_seed.h"
#include "tests/transfer/agent_harness.h"
#include "tests/transfer/stream_copier.h"

namespace flexkv {
namespace {

constexpr uint32_t kBlocks = 24;
constexpr uint32_t kSlots = 60;

// Submits daemon halves from a thread of its own, some later than others.
class DaemonThread {
 public:
  DaemonThread(DeviceAgent* agent, uint64_t seed)
      : agent_(*agent), rng_(seed), thread_([this] { Run(); }) {}
  ~DaemonThread() {
    stop_ = true;
    thread_.join();
  }
  void Post(DaemonHalf half) {
    std::lock_guard<std::mutex> lock(mutex_);
    queue_.push_back(std::move(half));
  }

 private:
  void Run() {
    for (;;) {
      std::optional<DaemonHalf> half;
      {
        std::lock_guard<std::mutex> lock(mutex_);
        if (!queue_.empty()) {
          half = std::move(queue_.front());
          queue_.pop_front();
        } else if (stop_) {
          return;
        }
      }
      if (rng_.OneIn(3)) std::this_thread::sleep_for(std::chrono::microseconds(rng_.Below(300)));
      if (half.has_value()) {
        agent_.SubmitDaemonHalf(*std::move(half));
      } else {
        std::this_thread::sleep_for(std::chrono::microseconds(50));
      }
    }
  }

  DeviceAgent& agent_;
  TestRng rng_;
  std::mutex mutex_;
  std::deque<DaemonHalf> queue_;
  std::atomic<bool> stop_{false};
  std::thread thread_;
};

struct StressOp {
  Route route = Route::kDeviceToCpu;
  std::vector<uint32_t> blocks, slots;
  std::vector<BlockHash> hashes;  // what each slot shall hold (store) or holds (load)
  uint32_t daemon_halves = 0;     // posted
  uint32_t answers = 0;
  std::map<uint32_t, int> owed;  // answers, by part
  bool engine_waits = false;     // a load that still owes its result
  bool in_parts = false;
  bool may_stay_open = false;  // the last part was not posted
  bool layerwise = false;
  std::shared_ptr<std::vector<bool>> seen;  // by position: what the step computed with was right
  // In parts: what slots were named for each block; more than one when the daemon contradicts
  // itself.
  std::vector<std::vector<BlockHash>> promised;
  std::map<uint32_t, std::set<uint32_t>> names;  // by part, if posted once: positions in blocks
  std::set<uint32_t> copied;                     // positions, by parts that ended well
};

class Stress {
 public:
  Stress(const Shape& shape, DeviceAgent::Options options, uint64_t seed, bool with_stream)
      : rng_(seed),
        harness_(shape, options, kBlocks, kSlots / 2,
                 with_stream ? DeviceFactory([this, seed](const KvLayout& layout) {
                   auto device = std::make_unique<StreamDevice>(layout, seed + 2);
                   stream_ = &device->stream;
                   return device;
                 })
                             : DeviceFactory()),
        daemon_(std::make_unique<DaemonThread>(harness_.agent.get(), seed + 1)),
        block_hash_(kBlocks),
        loading_(kBlocks, false),
        slot_hash_(kSlots),
        slot_busy_(kSlots, false) {
    for (uint32_t block = 0; block < kBlocks; ++block) block_hash_[block] = HashFromNumber(block);
  }

  void Step() {
    switch (rng_.Below(15)) {
      case 0:
      case 1:
      case 2:
      case 3:
        StartStore();
        break;
      case 4:
      case 5:
      case 6:
        StartLoad();
        break;
      case 7:
      case 8:
        harness_.agent->StepDone();
        break;
      case 9:
      case 10:
        FenceAndOverwrite();
        break;
      case 11:
        RevokeOne();
        break;
      case 12:
        if (rng_.OneIn(20)) NewBoot();
        break;
      case 13:
        LayerStep();
        break;
      default:
        std::this_thread::sleep_for(std::chrono::microseconds(rng_.Below(400)));
        break;
    }
    Collect();
  }

  // Lets everything end and checks the books.
  void Finish() {
    harness_.agent->StepDone();
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    while (Outstanding() > 0 && std::chrono::steady_clock::now() < deadline) {
      for (auto& [key, op] : ops_) {
        if (op.engine_waits && (op.daemon_halves == 0 || op.may_stay_open)) Revoke(key);
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      Collect();
    }
    daemon_.reset();
    Collect();
    EXPECT_FALSE(harness_.agent->Busy());
    for (const auto& [key, op] : ops_) {
      EXPECT_EQ(op.answers, op.daemon_halves) << "op " << key;
      for (const auto& [part, owed] : op.owed)
        EXPECT_EQ(owed, 0) << "op " << key << " part " << part;
      EXPECT_FALSE(op.engine_waits) << "op " << key;
    }
    CheckBlocks();
    EXPECT_TRUE(harness_.memory.PaddingIntact());
  }

  uint64_t stored_ok = 0, loaded_ok = 0, loaded_in_parts_ok = 0, loaded_in_layers_ok = 0,
           failed = 0;

 private:
  // What the engine does to its memory.
  void Compute(std::function<void()> work) {
    if (stream_ == nullptr) {
      work();
      return;
    }
    stream_->Enqueue(std::move(work));
    computed_ = true;
  }

  uint32_t Outstanding() const {
    uint32_t count = 0;
    for (const auto& [key, op] : ops_) count += op.engine_waits + (op.answers < op.daemon_halves);
    return count;
  }

  std::vector<uint32_t> PickBlocks(uint32_t most) {
    std::set<uint32_t> blocks;
    for (uint64_t i = 1 + rng_.Below(most); i > 0; --i) {
      const uint32_t block = static_cast<uint32_t>(rng_.Below(kBlocks));
      if (!loading_[block]) blocks.insert(block);
    }
    return {blocks.begin(), blocks.end()};
  }

  void Post(OpKey key, StressOp* op) {
    DaemonHalf half{.boot_id = boot_, .key = key, .route = op->route};
    for (uint32_t i = 0; i < op->slots.size(); ++i)
      half.blocks.push_back(harness_.PlaceOf(op->slots[i], i));
    if (rng_.OneIn(12)) return;  // never comes
    if (op->route == Route::kCpuToDevice && !op->layerwise && rng_.OneIn(2)) {
      PostParts(half, op);
      return;
    }
    half.refused = rng_.OneIn(25);
    PostHalf(std::move(half), op);
  }

  void PostHalf(DaemonHalf half, StressOp* op) {
    ++op->daemon_halves;
    if (++op->owed[half.part] > 1) op->names[half.part].clear();
    daemon_->Post(std::move(half));
  }

  // The blocks of `whole` in random order, cut at random, and now and then something wrong.
  void PostParts(const DaemonHalf& whole, StressOp* op) {
    op->in_parts = true;
    op->promised.resize(op->slots.size());
    std::vector<ArenaPlace> places = whole.blocks;
    for (size_t i = places.size(); i > 1; --i) std::swap(places[i - 1], places[rng_.Below(i)]);
    const bool empty_last = rng_.OneIn(3);
    size_t next = 0;
    uint32_t part = 0;
    do {
      DaemonHalf half{.boot_id = whole.boot_id, .key = whole.key, .route = whole.route};
      half.part = part++;
      const size_t end = next + 1 + rng_.Below(places.size() - next);
      half.blocks.assign(places.begin() + static_cast<ptrdiff_t>(next),
                         places.begin() + static_cast<ptrdiff_t>(end));
      next = end;
      half.more = empty_last || next < places.size();
      // A slot of the op for another block, that has come, or will come, or is none of the op's.
      uint32_t first_slot_index = half.blocks[0].engine_index;
      if (rng_.OneIn(10)) half.blocks[0].engine_index = static_cast<uint32_t>(rng_.Below(6));
      if (rng_.OneIn(20)) half.part = static_cast<uint32_t>(rng_.Below(4));
      if (rng_.OneIn(40)) half.blocks[0].segment = 99;
      half.refused = rng_.OneIn(40);
      op->may_stay_open = rng_.OneIn(30);
      if (op->may_stay_open) return;  // the rest never comes
      Promise(half, first_slot_index, op);
      if (rng_.OneIn(30)) PostHalf(half, op);
      PostHalf(std::move(half), op);
    } while (next < places.size());
    if (!empty_last) return;
    PostHalf({.boot_id = whole.boot_id, .key = whole.key, .route = whole.route, .part = part}, op);
  }

  // The first of its blocks has the slot of position `first_slot`, the others their own.
  void Promise(const DaemonHalf& half, uint32_t first_slot, StressOp* op) {
    for (size_t i = 0; i < half.blocks.size(); ++i) {
      const uint32_t index = half.blocks[i].engine_index;
      if (index >= op->slots.size()) continue;
      op->promised[index].push_back(op->hashes[i == 0 ? first_slot : index]);
      op->names[half.part].insert(index);
    }
  }

  void Submit(OpKey key, StressOp* op) {
    const bool daemon_first = rng_.OneIn(2);
    if (daemon_first) Post(key, op);
    if (daemon_first && rng_.OneIn(3)) std::this_thread::sleep_for(std::chrono::microseconds(100));
    if (op->layerwise) {
      ASSERT_TRUE(harness_.LayerLoad(key, op->blocks).ok());
    } else if (op->route == Route::kCpuToDevice || !rng_.OneIn(12)) {
      ASSERT_TRUE(harness_.Engine(key, op->route, op->blocks).ok());
    }
    if (!daemon_first) Post(key, op);
    if (op->daemon_halves > 0) return;  // else released with the last answer
    for (uint32_t slot : op->slots) Unuse(*op, slot);
  }

  void Unuse(const StressOp& op, uint32_t slot) {
    if (op.route == Route::kDeviceToCpu)
      slot_busy_[slot] = false;
    else
      --readers_[slot];
  }

  void StartStore() {
    StressOp op{.route = Route::kDeviceToCpu};
    for (uint32_t block : PickBlocks(6)) {
      const uint32_t slot = static_cast<uint32_t>(rng_.Below(kSlots));
      if (slot_busy_[slot] || readers_[slot] > 0) continue;
      slot_busy_[slot] = true;
      slot_hash_[slot].reset();
      op.blocks.push_back(block);
      op.slots.push_back(slot);
      op.hashes.push_back(block_hash_[block]);
    }
    if (op.blocks.empty()) return;
    const OpKey key = next_key_++;
    Submit(key, &ops_.emplace(key, std::move(op)).first->second);
  }

  OpKey StartLoad(bool layerwise = false) {
    StressOp op{.route = Route::kCpuToDevice, .engine_waits = true, .layerwise = layerwise};
    for (uint32_t block : PickBlocks(6)) {
      const uint32_t slot = static_cast<uint32_t>(rng_.Below(kSlots));
      if (slot_busy_[slot] || !slot_hash_[slot].has_value()) continue;
      ++readers_[slot];
      loading_[block] = true;
      op.blocks.push_back(block);
      op.slots.push_back(slot);
      op.hashes.push_back(*slot_hash_[slot]);
    }
    if (op.blocks.empty()) return 0;
    // Loads share a mark with those submitted before unless the engine has begun a new step.
    if (computed_) harness_.agent->SetComputeStream(1);
    computed_ = false;
    harness_.agent->FenceBlocks(op.blocks);  // they have a new owner
    const OpKey key = next_key_++;
    Submit(key, &ops_.emplace(key, std::move(op)).first->second);
    return key;
  }

  // A step that computes with the loads it starts, layer after layer.
  void LayerStep() {
    std::vector<OpKey> keys;
    for (uint64_t i = 1 + rng_.Below(3); i > 0; --i) {
      if (const OpKey key = StartLoad(true); key != 0) keys.push_back(key);
    }
    harness_.agent->StartLayerLoads(rng_.Below(1000) * kNsPerUs);
    const uint32_t views = static_cast<uint32_t>(harness_.memory.layout().groups[0].layers.size());
    for (uint32_t layer = 0; layer < views; ++layer) {
      if (!keys.empty() && rng_.OneIn(20)) Revoke(keys[rng_.Below(keys.size())]);
      if (rng_.OneIn(100)) NewBoot();
      if (!rng_.OneIn(4)) harness_.agent->WaitForLayer(layer);
    }
    harness_.agent->WaitForLayer(views - 1);
    for (const OpKey key : keys) Look(key);
    harness_.agent->StepDone();
  }

  // All layers of a load as the step sees them.
  void Look(OpKey key) {
    StressOp& op = ops_.at(key);
    op.seen = std::make_shared<std::vector<bool>>(op.blocks.size());
    Compute([this, seen = op.seen, blocks = op.blocks, hashes = op.hashes] {
      for (size_t i = 0; i < blocks.size(); ++i) {
        (*seen)[i] = harness_.memory.Holds(blocks[i], hashes[i]);
      }
    });
  }

  void Own(uint32_t block) {
    block_hash_[block] = HashFromNumber(1000 + next_hash_++);
    Compute([this, block, hash = block_hash_[block]] { harness_.memory.Fill(block, hash); });
  }

  void FenceAndOverwrite() {
    const std::vector<uint32_t> blocks = PickBlocks(8);
    harness_.agent->FenceBlocks(blocks);
    for (uint32_t block : blocks) Own(block);
  }

  void Revoke(OpKey key) {
    StressOp& op = ops_.at(key);
    harness_.agent->Revoke(key);
    if (op.route != Route::kCpuToDevice || !op.engine_waits) return;
    op.engine_waits = false;
    revoked_.insert(key);
    for (uint32_t block : op.blocks) {
      loading_[block] = false;
      Own(block);
    }
  }

  void RevokeOne() {
    std::vector<OpKey> keys;
    for (const auto& [key, op] : ops_) {
      if (op.engine_waits || op.answers < op.daemon_halves) keys.push_back(key);
    }
    // A load whose result was taken is over for the engine; revoking it is harmless.
    if (!keys.empty()) Revoke(keys[rng_.Below(keys.size())]);
  }

  void NewBoot() { harness_.agent->SetBootId(++boot_); }

  void Collect() {
    harness_.Collect();
    // Engine results first: the content of a load is checked while its slot still counts as read.
    for (const auto& [key, result] : harness_.engine_results) OnEngineResult(key, result);
    for (const auto& [key, result] : harness_.daemon_results) OnDaemonResult(key, result);
    harness_.engine_results.clear();
    harness_.daemon_results.clear();
    if (rng_.OneIn(50)) CheckBlocks();
  }

  void OnEngineResult(OpKey key, const AgentResult& result) {
    StressOp& op = ops_.at(key);
    ASSERT_FALSE(revoked_.contains(key)) << "reported after it was revoked";
    ASSERT_TRUE(op.engine_waits) << "reported twice";
    op.engine_waits = false;
    const std::set<uint32_t> missing(result.failed_engine_blocks.begin(),
                                     result.failed_engine_blocks.end());
    ASSERT_EQ(result.status == OpStatus::kOk, missing.empty());
    if (op.layerwise) CheckSeen(key, op, missing);
    for (size_t i = 0; i < op.blocks.size(); ++i) {
      const uint32_t block = op.blocks[i];
      loading_[block] = false;
      if (missing.contains(block)) {
        ++failed;
        Own(block);
        continue;
      }
      ++(op.in_parts ? loaded_in_parts_ok : op.layerwise ? loaded_in_layers_ok : loaded_ok);
      block_hash_[block] = op.hashes[i];
      if (op.in_parts) block_hash_[block] = HeldPromise(op, i);
      ASSERT_TRUE(harness_.memory.Holds(block, block_hash_[block]))
          << "op " << key << " block " << block;
    }
  }

  // A load by layers has failed as a whole, or its step has seen all of it.
  void CheckSeen(OpKey key, const StressOp& op, const std::set<uint32_t>& missing) {
    ASSERT_TRUE(missing.empty() || missing.size() == op.blocks.size()) << "op " << key;
    if (!missing.empty()) return;
    ASSERT_NE(op.seen, nullptr) << "told before the step that computes with it was over";
    if (stream_ != nullptr) stream_->Synchronize();
    for (size_t i = 0; i < op.blocks.size(); ++i) {
      ASSERT_TRUE((*op.seen)[i]) << "op " << key << " block " << op.blocks[i];
    }
  }

  BlockHash HeldPromise(const StressOp& op, size_t index) {
    for (const BlockHash& hash : op.promised[index]) {
      if (harness_.memory.Holds(op.blocks[index], hash)) return hash;
    }
    return op.hashes[index];
  }

  // No two parts that name one block were both copied.
  void OnPart(OpKey key, const AgentResult& result) {
    StressOp& op = ops_.at(key);
    if (result.status != OpStatus::kOk) return;
    for (uint32_t index : op.names[result.part]) {
      ASSERT_TRUE(op.copied.insert(index).second) << "op " << key << " index " << index;
    }
  }

  void OnDaemonResult(OpKey key, const AgentResult& result) {
    StressOp& op = ops_.at(key);
    ++op.answers;
    ASSERT_GE(--op.owed[result.part], 0) << "op " << key << " part " << result.part;
    if (op.in_parts) {
      OnPart(key, result);
      if (op.answers < op.daemon_halves) return;  // a slot may be of several parts
      for (uint32_t slot : op.slots) Unuse(op, slot);
      return;
    }
    const std::set<uint32_t> missing(result.failed.begin(), result.failed.end());
    for (uint32_t i = 0; i < op.slots.size(); ++i) {
      Unuse(op, op.slots[i]);
      if (op.route == Route::kCpuToDevice || missing.contains(i)) continue;
      ++stored_ok;
      slot_hash_[op.slots[i]] = op.hashes[i];
      ASSERT_TRUE(harness_.SlotHolds(op.slots[i], op.hashes[i]))
          << "op " << key << " slot " << op.slots[i];
    }
  }

  void CheckBlocks() {
    if (stream_ != nullptr) stream_->Synchronize();
    for (uint32_t block = 0; block < kBlocks; ++block) {
      if (loading_[block]) continue;
      ASSERT_TRUE(harness_.memory.Holds(block, block_hash_[block]))
          << "block " << block << " changed under its owner";
    }
  }

  TestRng rng_;
  StreamCopier* stream_ = nullptr;  // the agent's
  bool computed_ = false;
  AgentHarness harness_;
  std::unique_ptr<DaemonThread> daemon_;
  uint64_t boot_ = kBoot;
  OpKey next_key_ = 1;
  uint64_t next_hash_ = 0;
  std::map<OpKey, StressOp> ops_;
  std::set<OpKey> revoked_;
  std::vector<BlockHash> block_hash_;
  std::vector<bool> loading_;
  std::vector<std::optional<BlockHash>> slot_hash_;
  std::vector<bool> slot_busy_;  // a store writes it
  std::map<uint32_t, int> readers_;
};

class AgentStressTest : public testing::Test {
 protected:
  void TearDown() override { ASSERT_TRUE(ArmFaults("").ok()); }
  void RunRounds(int rounds, int steps, int pause_us, const char* faults,
                 bool with_stream = false) {
    TestRng rng(TestSeed());
    ASSERT_TRUE(ArmFaults(faults).ok());
    uint64_t stored = 0, loaded = 0, in_parts = 0, in_layers = 0, failed = 0;
    const std::vector<Shape> shapes = AllShapes();
    for (int round = 0; round < rounds && !HasFailure(); ++round) {
      const uint64_t chunk_bytes[] = {1, 3000, 1 << 20};
      Stress stress(shapes[rng.Below(shapes.size())],
                    {.chunk_bytes = chunk_bytes[rng.Below(3)], .orphan_timeout_ns = 30 * kNsPerMs},
                    rng.Next(), with_stream);
      for (int step = 0; step < steps && !HasFailure(); ++step) {
        stress.Step();
        std::this_thread::sleep_for(
            std::chrono::microseconds(rng.Below(static_cast<uint64_t>(2 * pause_us))));
      }
      stress.Finish();
      stored += stress.stored_ok;
      loaded += stress.loaded_ok;
      in_parts += stress.loaded_in_parts_ok;
      in_layers += stress.loaded_in_layers_ok;
      failed += stress.failed;
    }
    std::printf(
        "stored %lu, loaded %lu and %lu in parts and %lu by layers, failed loads of %lu blocks\n",
        stored, loaded, in_parts, in_layers, failed);
    EXPECT_GT(stored, 0u);
    EXPECT_GT(loaded, 0u);
    EXPECT_GT(in_parts, 0u);
    EXPECT_GT(in_layers, 0u);
  }
};

TEST_F(AgentStressTest, KeepsEveryPromiseUnderRandomHistories) {
  RunRounds(12, 600, 100, "agent.fail_op:40");
}

TEST_F(AgentStressTest, KeepsEveryPromiseBesideAComputeStream) {
  RunRounds(12, 600, 100, "agent.fail_op:40", true);
}

// Copies that take 20 ms: fences and revokes mostly meet a running chunk.
TEST_F(AgentStressTest, KeepsEveryPromiseWhileCopiesAreSlow) {
  RunRounds(4, 500, 2000, "agent.slow_chunk:4");
}

}  // namespace
}  // namespace flexkv
