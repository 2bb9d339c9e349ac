#include "tests/server/raw_client.h"

#include <dirent.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>

#include "absl/strings/str_cat.h"
#include "tests/support/content_oracle.h"

extern char** environ;

namespace flexkv {
namespace {

using SteadyTime = std::chrono::steady_clock;
SteadyTime::time_point Deadline(int timeout_ms) {
  return SteadyTime::now() + std::chrono::milliseconds(timeout_ms);
}

}  // namespace

shm::Hello SchedulerHello(uint64_t engine, uint32_t world_size) {
  shm::Hello hello;
  hello.type = static_cast<uint32_t>(shm::PacketType::kHello);
  hello.version = shm::kProtocolVersion;
  hello.role = static_cast<uint32_t>(shm::Role::kScheduler);
  hello.world_size = world_size;
  hello.tokens_per_block = 16;
  hello.engine_id[0] = engine;
  hello.engine_id[1] = 7;
  hello.pid = static_cast<uint64_t>(getpid());
  return hello;
}

shm::Hello WorkerHello(uint64_t engine, uint32_t rank, uint32_t world_size, uint64_t shard_bytes) {
  shm::Hello hello = SchedulerHello(engine, world_size);
  hello.role = static_cast<uint32_t>(shm::Role::kWorker);
  hello.rank = rank;
  hello.shard_bytes = shard_bytes;
  return hello;
}

std::string SchedulerText(const std::string& label, const std::string& fingerprint) {
  return label + std::string(1, '\0') + fingerprint;
}

std::vector<std::byte> HelloPacket(shm::Hello hello, const std::string& text) {
  hello.text_bytes = static_cast<uint32_t>(text.size());
  std::vector<std::byte> packet(sizeof(hello) + text.size());
  std::memcpy(packet.data(), &hello, sizeof(hello));
  std::memcpy(packet.data() + sizeof(hello), text.data(), text.size());
  return packet;
}

absl::StatusOr<std::unique_ptr<RawClient>> RawClient::Attach(const std::string& socket_path,
                                                             const shm::Hello& hello,
                                                             const std::string& text,
                                                             bool say_ready) {
  absl::StatusOr<UniqueFd> socket = shm::ConnectPacketSocket(socket_path);
  if (!socket.ok()) return socket.status();
  if (absl::Status sent = shm::SendPacket(socket->get(), HelloPacket(hello, text)); !sent.ok())
    return sent;
  absl::StatusOr<shm::Packet> reply = shm::ReceivePacket(socket->get(), 4096, 5000);
  if (!reply.ok()) return reply.status();
  uint32_t type = 0;
  if (!shm::ReadStruct(reply->bytes, &type)) return absl::DataLossError("short reply");
  if (type == static_cast<uint32_t>(shm::PacketType::kReject)) {
    return absl::FailedPreconditionError(
        std::string(reinterpret_cast<const char*>(reply->bytes.data()) + sizeof(type),
                    reply->bytes.size() - sizeof(type)));
  }
  std::unique_ptr<RawClient> client(new RawClient);
  if (!shm::ReadStruct(reply->bytes, &client->welcome_) || reply->fds.size() != 2) {
    return absl::DataLossError("not a welcome");
  }
  absl::StatusOr<SharedMapping> region = SharedMapping::Map(reply->fds[0].get(), shm::kRegionBytes);
  absl::StatusOr<SharedMapping> doorbell = SharedMapping::Map(reply->fds[1].get(), 4096);
  if (!region.ok() || !doorbell.ok()) return absl::DataLossError("regions cannot be mapped");
  client->socket_ = std::move(*socket);
  client->region_ = std::move(*region);
  client->doorbell_ = std::move(*doorbell);
  const shm::RegionView view(client->region_.data());
  client->producer_ =
      shm::RingProducer(&view.header->requests, view.request_slots, view.request_payload);
  client->consumer_ =
      shm::RingConsumer(&view.header->completions, view.completion_slots, view.completion_payload);
  if (say_ready && hello.role == static_cast<uint32_t>(shm::Role::kWorker)) {
    shm::Message ready = shm::MakeMessage(shm::MessageType::kWorkerReady);
    client->Push(ready);
  }
  return client;
}

bool RawClient::Push(shm::Message message, std::span<const std::byte> payload) {
  if (!producer_.Push(message, payload)) return false;
  RingDaemon();
  return true;
}

std::optional<RawMessage> RawClient::Next() {
  RawMessage result;
  if (consumer_.Pop(&result.message, &result.payload) != shm::PopResult::kMessage)
    return std::nullopt;
  return result;
}

std::optional<RawMessage> RawClient::WaitFor(shm::MessageType type, int timeout_ms) {
  const auto deadline = Deadline(timeout_ms);
  do {
    while (std::optional<RawMessage> got = Next()) {
      if (got->message.type == static_cast<uint32_t>(type)) return got;
    }
    shm::SleepOnBell(&view().header->client_bell, 5 * kNsPerMs,
                     [this] { return !consumer_.Empty(); });
  } while (SteadyTime::now() < deadline);
  return std::nullopt;
}

void RawClient::ReportDone(const shm::Message& op, OpKey key, std::span<const uint32_t> failed) {
  std::this_thread::sleep_for(std::chrono::nanoseconds(copy_ns_));
  shm::Message done = shm::MakeMessage(shm::MessageType::kOpDone);
  done.op = key;
  done.first = op.first;
  done.route = op.route;
  done.count = static_cast<uint32_t>(failed.size());
  done.lease = copy_ns_;
  done.status =
      static_cast<uint32_t>(failed.empty() ? shm::WireStatus::kOk : shm::WireStatus::kPartial);
  Push(done, std::as_bytes(failed));
}

std::span<std::byte> RawClient::Segment(SegmentId segment, int timeout_ms) {
  const auto deadline = Deadline(timeout_ms);
  while (!segments_.contains(segment) && SteadyTime::now() < deadline) {
    absl::StatusOr<shm::Packet> packet = shm::ReceivePacket(socket_.get(), 256, 50);
    shm::SegmentPacket head;
    if (!packet.ok() || !shm::ReadStruct(packet->bytes, &head)) continue;
    if (head.type != static_cast<uint32_t>(shm::PacketType::kSegment) || packet->fds.size() != 1)
      continue;
    absl::StatusOr<SharedMapping> mapping = SharedMapping::Map(packet->fds[0].get(), head.bytes);
    if (mapping.ok()) segments_.insert_or_assign(head.segment, std::move(*mapping));
  }
  auto it = segments_.find(segment);
  return it == segments_.end() ? std::span<std::byte>() : it->second.span();
}

bool RawClient::SayGoodbye() {
  const auto type = static_cast<uint32_t>(shm::PacketType::kGoodbye);
  return shm::SendPacket(socket_.get(), shm::AsBytes(type)).ok();
}

bool RawClient::WaitCut(int timeout_ms) {
  const auto deadline = Deadline(timeout_ms);
  while (SteadyTime::now() < deadline) {
    const absl::StatusOr<shm::Packet> packet = shm::ReceivePacket(socket_.get(), 256, 50);
    if (absl::IsAborted(packet.status())) return true;
  }
  return false;
}

shm::Message LookupMessage(RequestKey request, uint32_t first, size_t count) {
  shm::Message message = shm::MakeMessage(shm::MessageType::kLookup);
  message.request = request;
  message.first = first;
  message.count = static_cast<uint32_t>(count);
  return message;
}

shm::Message PutMessage(RequestKey request, OpKey op, uint32_t first, uint32_t count,
                        uint32_t suffix_first) {
  shm::Message message = shm::MakeMessage(shm::MessageType::kPut);
  message.request = request;
  message.op = op;
  message.first = first;
  message.count = count;
  message.lease = suffix_first;
  return message;
}

shm::Message LoadMessage(RequestKey request, OpKey op, LeaseId lease, uint32_t first,
                         uint32_t count) {
  shm::Message message = shm::MakeMessage(shm::MessageType::kLoad);
  message.request = request;
  message.op = op;
  message.lease = lease;
  message.first = first;
  message.count = count;
  return message;
}

std::span<const std::byte> HashBytes(std::span<const BlockHash> hashes) {
  return std::as_bytes(hashes);
}

std::vector<BlockHash> Chain(uint64_t seed, size_t count) {
  std::vector<BlockHash> chain;
  for (size_t i = 0; i < count; ++i) {
    chain.push_back(i == 0 ? HashFromNumber(seed) : ChildHash(chain.back(), seed + i));
  }
  return chain;
}

std::vector<shm::OpBlock> OpBlocks(std::span<const std::byte> payload) {
  std::vector<shm::OpBlock> blocks(payload.size() / sizeof(shm::OpBlock));
  if (!blocks.empty())
    std::memcpy(static_cast<void*>(blocks.data()), payload.data(),
                blocks.size() * sizeof(shm::OpBlock));
  return blocks;
}

TempDir::TempDir() {
  char name[] = "/tmp/flexkv-test-XXXXXX";
  path_ = mkdtemp(name);
}

TempDir::~TempDir() {
  std::error_code ignored;
  std::filesystem::remove_all(path_, ignored);
}

ChildProcess::ChildProcess(const std::vector<std::string>& arguments) {
  int in[2], out[2];
  if (pipe2(in, O_CLOEXEC) != 0 || pipe2(out, O_CLOEXEC) != 0) return;
  UniqueFd child_in(in[0]), child_out(out[1]);
  input_ = UniqueFd(in[1]);
  output_ = UniqueFd(out[0]);
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, child_in.get(), 0);
  posix_spawn_file_actions_adddup2(&actions, child_out.get(), 1);
  std::vector<char*> argv;
  for (const std::string& argument : arguments) argv.push_back(const_cast<char*>(argument.c_str()));
  argv.push_back(nullptr);
  if (posix_spawn(&pid_, argv[0], &actions, nullptr, argv.data(), environ) != 0) pid_ = -1;
  posix_spawn_file_actions_destroy(&actions);
}

ChildProcess::~ChildProcess() {
  if (pid_ <= 0 || waited_) return;
  Kill(SIGKILL);
  Wait();
}

std::string ChildProcess::ReadLine(int timeout_ms) {
  const auto deadline = Deadline(timeout_ms);
  while (true) {
    const size_t end = buffer_.find('\n');
    if (end != std::string::npos) {
      std::string line = buffer_.substr(0, end);
      buffer_.erase(0, end + 1);
      return line;
    }
    const auto left =
        std::chrono::duration_cast<std::chrono::milliseconds>(deadline - SteadyTime::now()).count();
    pollfd waiter{output_.get(), POLLIN, 0};
    if (left <= 0 || poll(&waiter, 1, static_cast<int>(left)) <= 0) return "";
    char text[256];
    const ssize_t got = read(output_.get(), text, sizeof(text));
    if (got <= 0) return "";
    buffer_.append(text, static_cast<size_t>(got));
  }
}

void ChildProcess::Kill(int signal) { kill(pid_, signal); }

int ChildProcess::Wait() {
  if (!waited_) waitpid(pid_, &status_, 0);
  waited_ = true;
  return WIFSIGNALED(status_) ? -WTERMSIG(status_) : WEXITSTATUS(status_);
}

int CountDescriptors() {
  int count = 0;
  DIR* dir = opendir("/proc/self/fd");
  while (readdir(dir) != nullptr) ++count;
  closedir(dir);
  return count;
}

bool Eventually(const std::function<bool()>& condition, int timeout_ms) {
  const auto deadline = Deadline(timeout_ms);
  while (!condition()) {
    if (SteadyTime::now() >= deadline) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
  return true;
}

}  // namespace flexkv
