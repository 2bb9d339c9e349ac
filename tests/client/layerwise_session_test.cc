// Layer-wise loads on both sides of the client: what the scheduler's half offers and holds back,
// and what the worker's half reports, against a scripted daemon.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <map>
#include <numeric>
#include <thread>

#include "flexkv/client/daemon_link.h"
#include "flexkv/client/scheduler_session.h"
#include "flexkv/client/step_plan.h"
#include "flexkv/client/worker_session.h"
#include "tests/client/scripted_daemon.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

using ::flexkv::testing::ScriptedClient;
using ::flexkv::testing::ScriptedDaemon;
using shm::MessageType;

constexpr uint32_t kTokens = 16;

std::vector<uint32_t> Ids(uint32_t first, uint32_t count) {
  std::vector<uint32_t> ids(count);
  std::iota(ids.begin(), ids.end(), first);
  return ids;
}

// --- scheduler ----------------------------------------------------------------------------------

class Chains : public HashSource {
 public:
  void Set(const std::string& id, uint32_t count) {
    for (uint32_t i = 0; i < count; ++i) chains_[id].push_back(HashFromNumber(i + 1));
  }
  void AppendHashes(std::string_view id, uint32_t from, std::vector<BlockHash>* hashes) override {
    const std::vector<BlockHash>& chain = chains_[std::string(id)];
    if (from < chain.size()) hashes->insert(hashes->end(), chain.begin() + from, chain.end());
  }

 private:
  std::map<std::string, std::vector<BlockHash>> chains_;
};

class LayerwiseSchedulerTest : public ::testing::Test {
 protected:
  void Open(uint32_t world_size = 1) {
    SchedulerOptions options;
    options.socket_path = daemon_.path();
    options.tokens_per_block = kTokens;
    options.world_size = world_size;
    options.min_load_tokens = 0;
    options.layerwise_loads = true;
    session_ = *SchedulerSession::Open(options, &chains_);
    client_ = daemon_.Accept();
    ASSERT_NE(client_, nullptr);
    client_->EngineReady(true);
    ASSERT_TRUE(session_->WaitReady(2000));
  }
  // A request whose first `matched` blocks are held, the first `warm` of them in memory.
  int64_t Ask(const std::string& id, uint32_t num_tokens, uint32_t matched, uint32_t warm) {
    chains_.Set(id, num_tokens / kTokens);
    session_->NewRequest(id, num_tokens);
    const shm::Message lookup = client_->Next(MessageType::kLookup);
    shm::Message reply = shm::MakeMessage(MessageType::kLookupReply);
    reply.sequence = lookup.sequence;
    reply.request = lookup.request;
    reply.first = matched;
    reply.count = warm;
    reply.lease = 7;
    client_->Reply(reply);
    for (int i = 0; i < 1000; ++i) {
      const int64_t tokens = session_->MatchedTokens(id, 0, num_tokens);
      if (tokens != SchedulerSession::kAskAgain) return tokens;
    }
    return SchedulerSession::kAskAgain;
  }
  ParsedPlan Step(const std::string& id, std::span<const uint32_t> blocks, uint32_t computed,
                  uint32_t scheduled) {
    session_->BeginStep(scheduled);
    session_->ScheduledNew(id, blocks, computed, scheduled);
    ParsedPlan plan;
    const std::span<const std::byte> bytes = session_->EndStep();
    EXPECT_TRUE(bytes.empty() || ParsePlan(bytes, &plan).ok());
    return plan;
  }
  // The key of the request's layerwise load, launched in a step that also computes the rest.
  OpKey Launch(const std::string& id, std::span<const uint32_t> blocks, uint32_t external,
               uint32_t num_tokens) {
    session_->BlocksAllocated(id, blocks, external);
    const ParsedPlan plan = Step(id, blocks, external, num_tokens - external);
    EXPECT_EQ(plan.ops.size(), 1u) << "a load, and no store";
    return plan.ops.empty() ? 0 : plan.ops[0].op.key;
  }

  ScriptedDaemon daemon_;
  Chains chains_;
  std::unique_ptr<SchedulerSession> session_;
  std::unique_ptr<ScriptedClient> client_;
};

TEST_F(LayerwiseSchedulerTest, AHitInMemoryIsOfferedAndItsPlanSaysSo) {
  Open();
  EXPECT_EQ(Ask("a", 70, 4, 4), 64);
  EXPECT_TRUE(session_->OfferIsLayerwise("a"));
  session_->BlocksAllocated("a", Ids(10, 5), 64);
  const ParsedPlan plan = Step("a", Ids(10, 5), 64, 6);
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].op.layerwise, 1u);
  EXPECT_EQ(plan.ops[0].op.dead, 0u);
  EXPECT_EQ(plan.ops[0].block_ids, Ids(10, 4));
  EXPECT_EQ(client_->Next(MessageType::kLoad).op, plan.ops[0].op.key);
}

TEST_F(LayerwiseSchedulerTest, AHitThatIsPartlyOnAnSsdIsAsynchronous) {
  Open();
  EXPECT_EQ(Ask("a", 70, 4, 3), 64);
  EXPECT_FALSE(session_->OfferIsLayerwise("a"));
}

TEST_F(LayerwiseSchedulerTest, OneTokenIsLeftToCompute) {
  Open();
  EXPECT_EQ(Ask("a", 64, 4, 4), 48);
  EXPECT_TRUE(session_->OfferIsLayerwise("a"));
  EXPECT_EQ(Ask("b", 16, 1, 1), 16) << "nothing would be left: as any other load";
  EXPECT_FALSE(session_->OfferIsLayerwise("b"));
}

TEST_F(LayerwiseSchedulerTest, NothingComputedWithItIsStoredBeforeItIsKnownToHaveArrived) {
  Open();
  ASSERT_EQ(Ask("a", 100, 4, 4), 64);
  const OpKey key = Launch("a", Ids(10, 7), 64, 100);
  EXPECT_TRUE(session_->LoadOutstanding("a"));
  EXPECT_EQ(session_->stats().puts, 0u);
  // Another request found the same blocks in the engine's own cache.
  chains_.Set("b", 6);
  session_->NewRequest("b", 100);
  std::vector<uint32_t> shared = Ids(10, 4);
  shared.insert(shared.end(), {30, 31, 32});
  EXPECT_TRUE(Step("b", shared, 64, 36).ops.empty());
  // A third one has nothing to do with it.
  chains_.Set("c", 2);
  session_->NewRequest("c", 40);
  EXPECT_EQ(Step("c", Ids(40, 3), 0, 40).ops.size(), 1u);

  std::string id;
  EXPECT_TRUE(session_->LayerLoadEnded(key, false, &id).empty());
  EXPECT_EQ(id, "a");
  EXPECT_FALSE(session_->LoadOutstanding("a"));
  session_->BeginStep(2);
  session_->ScheduledCached("a", {}, false, 100, 1);
  session_->ScheduledCached("b", {}, false, 100, 1);
  ParsedPlan plan;
  ASSERT_TRUE(ParsePlan(session_->EndStep(), &plan).ok());
  EXPECT_EQ(plan.ops.size(), 2u) << "now both store what they have computed";
  EXPECT_EQ(session_->stats().layer_loads, 1u);
  EXPECT_EQ(session_->stats().loaded_tokens, 64u);
}

TEST_F(LayerwiseSchedulerTest, AFailureOnOneRankCountsWhenAllHaveTold) {
  Open(/*world_size=*/2);
  ASSERT_EQ(Ask("a", 100, 4, 4), 64);
  const OpKey key = Launch("a", Ids(10, 7), 64, 100);
  std::string id;
  EXPECT_TRUE(session_->LayerLoadEnded(key, true, &id).empty());
  EXPECT_TRUE(id.empty());
  const std::vector<uint32_t> tainted = session_->LayerLoadEnded(key, false, &id);
  EXPECT_EQ(id, "a");
  for (uint32_t block : Ids(10, 7)) {
    EXPECT_NE(std::find(tainted.begin(), tainted.end(), block), tainted.end()) << block;
  }
  EXPECT_EQ(session_->stats().layer_loads_failed, 1u);
  EXPECT_EQ(session_->stats().failed_tokens, 64u);
  EXPECT_EQ(session_->MatchedTokens("a", 0, 100), 0) << "not offered to this request again";
  EXPECT_TRUE(session_->LayerLoadEnded(key, false, &id).empty()) << "told once too often";
}

TEST_F(LayerwiseSchedulerTest, ADaemonThatIsGoneLeavesADeadOp) {
  Open();
  ASSERT_EQ(Ask("a", 70, 4, 4), 64);
  client_.reset();
  while (session_->WaitReady(0)) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  session_->BlocksAllocated("a", Ids(10, 5), 64);
  const ParsedPlan plan = Step("a", Ids(10, 5), 64, 6);
  ASSERT_EQ(plan.ops.size(), 1u);
  EXPECT_EQ(plan.ops[0].op.layerwise, 1u);
  EXPECT_EQ(plan.ops[0].op.dead, 1u);
}

// --- worker -------------------------------------------------------------------------------------

constexpr uint32_t kBlocks = 32;
constexpr uint32_t kLayerBytes = 4096;
constexpr uint32_t kLayers = 3;
constexpr SegmentId kSegment = 5;

class LayerwiseWorkerTest : public ::testing::Test {
 protected:
  LayerwiseWorkerTest() : tensors_(size_t{kLayers} * kBlocks * kLayerBytes) {}

  absl::Status Open(int device = -1) {
    std::vector<TensorView> tensors;
    for (uint32_t layer = 0; layer < kLayers; ++layer) {
      TensorView& view = tensors.emplace_back();
      view.layer = "layer";
      view.data = reinterpret_cast<uintptr_t>(Layer(layer, 0).data());
      view.element_bytes = 1;
      view.shape = {kBlocks, kLayerBytes};
      view.strides = {kLayerBytes, 1};
    }
    tensors.push_back(tensors[1]);  // a layer that shares the KV of another
    KvLayout layout;
    std::vector<uint32_t> views;
    layout.groups.push_back(*MakeKvGroup(tensors, kTokens, &views));
    EXPECT_EQ(views, (std::vector<uint32_t>{0, 1, 2, 1}));
    layout.descriptor = "three layers";
    WorkerOptions options;
    options.socket_path = daemon_.path();
    options.device = device;
    options.layerwise_wait_ms = 20;
    absl::StatusOr<std::unique_ptr<WorkerSession>> session =
        WorkerSession::Open(options, std::move(layout));
    if (!session.ok()) return session.status();
    session_ = *std::move(session);
    return absl::OkStatus();
  }
  void Attach() {
    client_ = daemon_.Accept();
    ASSERT_NE(client_, nullptr);
    arena_fd_ = *MakeSealedMemfd("arena", 2 << 20);
    arena_ = *SharedMapping::Map(arena_fd_.get(), 2 << 20);
    client_->SendSegment(kSegment, arena_fd_.get(), 2 << 20);
    while (!session_->stats().attached) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  std::span<std::byte> Layer(uint32_t layer, uint32_t block) {
    return std::span(tensors_).subspan((size_t{layer} * kBlocks + block) * kLayerBytes,
                                       kLayerBytes);
  }
  std::span<std::byte> Slot(uint32_t slot, uint32_t layer) {
    return arena_.span().subspan((size_t{slot} * kLayers + layer) * kLayerBytes, kLayerBytes);
  }
  static BlockHash Content(uint32_t block, uint32_t layer) {
    return HashFromNumber(100 * block + layer);
  }
  void FillSlots(uint32_t count) {
    for (uint32_t slot = 0; slot < count; ++slot) {
      for (uint32_t layer = 0; layer < kLayers; ++layer) {
        FillContent(Content(slot, layer), 0, Slot(slot, layer));
      }
    }
  }
  void Bind(OpKey key, std::vector<uint32_t> ids, bool dead = false) {
    PlanBuilder builder;
    builder.Start(++plan_);
    builder.AddOp(key, Route::kCpuToDevice, ids, "request", dead, /*layerwise=*/true);
    session_->Bind(builder.Finish());
  }
  void SendOp(OpKey key, uint32_t count) {
    std::vector<shm::OpBlock> blocks;
    for (uint32_t i = 0; i < count; ++i) {
      blocks.push_back({kSegment, i, uint64_t{i} * kLayers * kLayerBytes});
    }
    shm::Message message = shm::MakeMessage(MessageType::kOp);
    message.op = key;
    message.route = static_cast<uint32_t>(Route::kCpuToDevice);
    message.count = count;
    client_->Reply(message, std::as_bytes(std::span(blocks)));
  }
  WorkerSession::Report Poll() {
    WorkerSession::Report report;
    for (int i = 0; i < 2000 && report.layer_loads.empty(); ++i) {
      session_->Poll(&report);
      EXPECT_TRUE(report.loads.empty()) << "no asynchronous load";
      EXPECT_TRUE(report.failed_block_ids.empty());
      if (report.layer_loads.empty()) std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    return report;
  }

  ScriptedDaemon daemon_;
  std::vector<std::byte> tensors_;
  UniqueFd arena_fd_;
  SharedMapping arena_;
  std::unique_ptr<WorkerSession> session_;
  std::unique_ptr<ScriptedClient> client_;
  uint64_t plan_ = 0;
};

TEST_F(LayerwiseWorkerTest, LayersAreThereWhenTheyAreAskedFor) {
  ASSERT_TRUE(Open().ok());
  Attach();
  FillSlots(4);
  Bind(1, {20, 9, 21, 3});
  SendOp(1, 4);
  session_->StartLayerLoads();
  const uint32_t ids[] = {20, 9, 21, 3};
  for (uint32_t layer = 0; layer < kLayers; ++layer) {
    session_->WaitForLayer(layer);
    for (uint32_t i = 0; i < 4; ++i) {
      EXPECT_TRUE(ContentMatches(Content(i, layer), 0, Layer(layer, ids[i]))) << layer;
    }
  }
  session_->StepDone();
  const WorkerSession::Report report = Poll();
  ASSERT_EQ(report.layer_loads.size(), 1u);
  EXPECT_EQ(report.layer_loads[0].key, 1u);
  EXPECT_FALSE(report.layer_loads[0].failed);
  EXPECT_TRUE(report.layer_failed_block_ids.empty());
  EXPECT_EQ(client_->Next(MessageType::kOpDone).op, 1u);
  EXPECT_EQ(session_->stats().layer_loads, 1u);
}

TEST_F(LayerwiseWorkerTest, ADaemonThatDoesNotAnswerCostsABoundedWait) {
  ASSERT_TRUE(Open().ok());
  Attach();
  FillSlots(2);
  Bind(1, {4, 5});
  const auto start = std::chrono::steady_clock::now();
  session_->StartLayerLoads();
  const auto waited = std::chrono::steady_clock::now() - start;
  EXPECT_GE(waited, std::chrono::milliseconds(15));
  EXPECT_LT(waited, std::chrono::milliseconds(1000));
  for (uint32_t layer = 0; layer < kLayers; ++layer) session_->WaitForLayer(layer);
  session_->StepDone();
  const WorkerSession::Report report = Poll();
  ASSERT_EQ(report.layer_loads.size(), 1u);
  EXPECT_TRUE(report.layer_loads[0].failed);
  EXPECT_EQ(report.layer_failed_block_ids, (std::vector<uint32_t>{4, 5}));
  SendOp(1, 2);  // too late: the engine has given the blocks to others
  EXPECT_EQ(client_->Next(MessageType::kOpDone).status,
            static_cast<uint32_t>(shm::WireStatus::kFailed));
  EXPECT_FALSE(ContentMatches(Content(0, 0), 0, Layer(0, 4)));
  EXPECT_EQ(session_->stats().layer_loads_failed, 1u);
}

TEST_F(LayerwiseWorkerTest, WithoutADaemonItFailsAtOnce) {
  ASSERT_TRUE(Open().ok());
  Bind(1, {4});
  session_->StartLayerLoads();
  session_->StepDone();
  const WorkerSession::Report report = Poll();
  ASSERT_EQ(report.layer_loads.size(), 1u);
  EXPECT_TRUE(report.layer_loads[0].failed);
  EXPECT_EQ(report.layer_failed_block_ids, (std::vector<uint32_t>{4}));
}

TEST_F(LayerwiseWorkerTest, TheDaemonHearsOfTheDevice) {
  ASSERT_TRUE(Open().ok());
  Attach();
  std::vector<std::byte> payload;
  const shm::Message report = client_->Next(MessageType::kDeviceReport, &payload);
  ASSERT_EQ(report.type, static_cast<uint32_t>(MessageType::kDeviceReport));
  shm::DeviceReportBody body;
  ASSERT_EQ(payload.size(), sizeof(body));
  std::memcpy(static_cast<void*>(&body), payload.data(), sizeof(body));
  EXPECT_STREQ(body.device, "cpu");
}

TEST_F(LayerwiseWorkerTest, WithoutAGpuTheReasonIsOneSentence) {
  const absl::Status status = Open(/*device=*/0);
  if (status.ok()) GTEST_SKIP() << "this machine has a GPU";
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_NE(std::string(status.message()).find("GPU"), std::string::npos) << status;
  EXPECT_EQ(status.message().find('\n'), std::string::npos);
}

// --- segments -----------------------------------------------------------------------------------

TEST(SegmentTableTest, TheDeviceKnowsASegmentAsLongAsItIsMapped) {
  SegmentTable table;
  std::map<SegmentId, std::span<std::byte>> known;
  table.Notify(
      [&](SegmentId segment, std::span<std::byte> memory) {
        EXPECT_TRUE(table.Find(segment, 0).empty()) << "known before anybody uses it";
        EXPECT_TRUE(known.emplace(segment, memory).second);
      },
      [&](SegmentId segment) {
        ASSERT_TRUE(known.contains(segment));
        known.at(segment)[0] = std::byte{1};  // still mapped
        known.erase(segment);
      });
  const UniqueFd memory = *MakeSealedMemfd("segment", 1 << 16);
  for (SegmentId segment : {1, 2, 2, 3}) {
    table.Add(segment, *SharedMapping::Map(memory.get(), 1 << 16));
  }
  EXPECT_EQ(known.size(), 3u);
  EXPECT_EQ(table.Find(2, 0).data(), known.at(2).data());
  table.Retire(2);
  EXPECT_EQ(known.size(), 3u) << "ops may still use it";
  table.Sweep();
  EXPECT_EQ(known.size(), 2u);
  table.Retire(3);
  table.Clear();
  EXPECT_TRUE(known.empty());
}

}  // namespace
}  // namespace flexkv
