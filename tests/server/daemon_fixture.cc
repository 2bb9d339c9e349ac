#include "tests/server/daemon_fixture.h"

#include <sys/wait.h>

#include <cstdio>

#include "flexkv/server/status_proto.h"
#include "tests/support/content_oracle.h"

namespace flexkv {

CommandResult Execute(const std::string& command) {
  CommandResult result;
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  char text[4096];
  size_t got = 0;
  while ((got = fread(text, 1, sizeof(text), pipe)) > 0) result.output.append(text, got);
  const int status = pclose(pipe);
  result.code = WIFEXITED(status) ? WEXITSTATUS(status) : -1;
  return result;
}

void DaemonTest::StartDaemon() {
  DaemonConfig config;
  config.cpu_cache_bytes = 32ull << 20;
  config.segment_bytes = 8ull << 20;
  config.use_hugetlb = false;
  config.lock_memory = false;
  config.socket_dir = dir_.path() + "/flexkv";
  config.spin_us = 0;
  config.log_level = "warning";
  Adjust(&config);
  FinishConfig(SystemConfigContext(), &config);
  absl::StatusOr<std::unique_ptr<DaemonServer>> server =
      DaemonServer::Start(config, [this] { ++stops_wanted_; });
  ASSERT_TRUE(server.ok()) << server.status();
  server_ = std::move(*server);
}

admin::v1::StatusReply DaemonTest::Status() {
  admin::v1::StatusReply reply;
  if (const std::optional<DaemonSnapshot> snapshot = server_->Snapshot())
    ToProto(*snapshot, &reply);
  return reply;
}

RawEngine::RawEngine(const std::string& socket, uint64_t id, const std::string& fingerprint) {
  auto scheduler =
      RawClient::Attach(socket, SchedulerHello(id), SchedulerText("model", fingerprint));
  auto worker = RawClient::Attach(socket, WorkerHello(id, 0, 1, kTestShardBytes), "layout");
  EXPECT_TRUE(scheduler.ok() && worker.ok()) << scheduler.status() << worker.status();
  if (!scheduler.ok() || !worker.ok()) return;
  scheduler_ = std::move(*scheduler);
  worker_ = std::move(*worker);
  const std::optional<RawMessage> ready = scheduler_->WaitFor(shm::MessageType::kEngineReady);
  EXPECT_TRUE(ready.has_value() && ready->message.first == 1);
}

std::span<std::byte> RawEngine::Place(const shm::OpBlock& block) {
  const std::span<std::byte> segment = worker_->Segment(block.segment);
  EXPECT_LE(block.offset_bytes + kTestShardBytes, segment.size());
  if (block.offset_bytes + kTestShardBytes > segment.size()) return {};
  return segment.subspan(block.offset_bytes, kTestShardBytes);
}

uint32_t RawEngine::Store(RequestKey request, const std::vector<BlockHash>& chain) {
  const OpKey key = NextOp();
  const auto count = static_cast<uint32_t>(chain.size());
  EXPECT_TRUE(scheduler_->Push(PutMessage(request, key, 0, count, 0), HashBytes(chain)));
  const std::optional<RawMessage> reply = scheduler_->WaitFor(shm::MessageType::kPutReply);
  EXPECT_TRUE(reply.has_value());
  if (!reply.has_value() || reply->message.count == 0) return 0;
  const std::optional<RawMessage> op = worker_->WaitFor(shm::MessageType::kOp);
  EXPECT_TRUE(op.has_value());
  if (!op.has_value()) return 0;
  EXPECT_EQ(op->message.op, key);
  for (const shm::OpBlock& block : OpBlocks(op->payload)) {
    FillContent(chain[block.engine_index], 0, Place(block));
  }
  worker_->ReportDone(op->message, key);
  const std::optional<RawMessage> ended = scheduler_->WaitFor(shm::MessageType::kOpEnded);
  EXPECT_TRUE(ended.has_value());
  return ended.has_value() ? ended->message.first : 0;
}

RawEngine::Hit RawEngine::Lookup(RequestKey request, const std::vector<BlockHash>& chain) {
  EXPECT_TRUE(scheduler_->Push(LookupMessage(request, 0, chain.size()), HashBytes(chain)));
  const std::optional<RawMessage> reply = scheduler_->WaitFor(shm::MessageType::kLookupReply);
  EXPECT_TRUE(reply.has_value());
  if (!reply.has_value()) return {};
  EXPECT_EQ(reply->message.request, request);
  return {reply->message.first, reply->message.lease, reply->message.status};
}

int RawEngine::LoadAndCheck(RequestKey request, const std::vector<BlockHash>& chain,
                            const Hit& hit) {
  const OpKey key = NextOp();
  EXPECT_TRUE(scheduler_->Push(LoadMessage(request, key, hit.lease, 0, hit.matched)));
  const std::optional<RawMessage> op = worker_->WaitFor(shm::MessageType::kOp);
  if (!op.has_value()) return -1;
  int right = 0;
  for (const shm::OpBlock& block : OpBlocks(op->payload)) {
    if (ContentMatches(chain[block.engine_index], 0, Place(block))) ++right;
  }
  worker_->ReportDone(op->message, key);
  const std::optional<RawMessage> ended = scheduler_->WaitFor(shm::MessageType::kOpEnded);
  EXPECT_TRUE(ended.has_value() && ended->message.op == key);
  return right;
}

void RawEngine::ExpectWorks(uint64_t seed) {
  const std::vector<BlockHash> chain = Chain(seed, 20);
  EXPECT_EQ(Store(seed, chain), 20u);
  const Hit hit = Lookup(seed + 1, chain);
  EXPECT_EQ(hit.matched, 20u);
  EXPECT_EQ(LoadAndCheck(seed + 1, chain, hit), 20);
  shm::Message end = shm::MakeMessage(shm::MessageType::kEndRequest);
  for (end.request = seed; end.request <= seed + 1; ++end.request)
    EXPECT_TRUE(scheduler_->Push(end));
}

}  // namespace flexkv
