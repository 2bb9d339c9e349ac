#include "tests/client/scripted_daemon.h"

#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cstring>
#include <thread>

namespace flexkv::testing {

ScriptedClient::ScriptedClient(UniqueFd socket, SharedMapping region, shm::Hello hello,
                               std::string text)
    : socket_(std::move(socket)),
      region_(std::move(region)),
      hello_(hello),
      text_(std::move(text)),
      view_(region_.data()),
      requests_(&view_.header->requests, view_.request_slots, view_.request_payload),
      completions_(&view_.header->completions, view_.completion_slots, view_.completion_payload) {}

shm::Message ScriptedClient::Next(std::vector<std::byte>* payload) {
  std::vector<std::byte> scratch;
  shm::Message message;
  for (int i = 0; i < 1000; ++i) {
    if (requests_.Pop(&message, payload != nullptr ? payload : &scratch) ==
        shm::PopResult::kMessage) {
      return message;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return shm::Message{};
}

shm::Message ScriptedClient::Next(shm::MessageType type, std::vector<std::byte>* payload) {
  while (true) {
    shm::Message message = Next(payload);
    if (message.type == static_cast<uint32_t>(type) || message.type == 0) return message;
  }
}

void ScriptedClient::Reply(const shm::Message& message, std::span<const std::byte> payload) {
  if (!completions_.Push(message, payload)) abort();
  shm::RingBell(&view_.header->client_bell);
}

void ScriptedClient::SendSegment(SegmentId segment, int fd, uint64_t bytes) {
  shm::SegmentPacket packet{static_cast<uint32_t>(shm::PacketType::kSegment), segment, bytes};
  if (!shm::SendPacket(socket_.get(), shm::AsBytes(packet), {&fd, 1}).ok()) abort();
}

void ScriptedClient::EngineReady(bool ready) {
  shm::Message message = shm::MakeMessage(shm::MessageType::kEngineReady);
  message.first = ready ? 1 : 0;
  Reply(message);
}

bool ScriptedClient::SaidGoodbye() {
  absl::StatusOr<shm::Packet> packet = shm::ReceivePacket(socket_.get(), 64, 1000);
  uint32_t type = 0;
  return packet.ok() && shm::ReadStruct(std::span<const std::byte>(packet->bytes), &type) &&
         type == static_cast<uint32_t>(shm::PacketType::kGoodbye);
}

ScriptedDaemon::ScriptedDaemon(uint64_t boot_id) : boot_id_(boot_id) {
  char folder[] = "/tmp/flexkv-test-XXXXXX";
  if (mkdtemp(folder) == nullptr) abort();
  path_ = std::string(folder) + "/daemon.sock";
  doorbell_ = *MakeSealedMemfd("doorbell", 4096);
  Listen();
}

ScriptedDaemon::~ScriptedDaemon() {
  unlink(path_.c_str());
  rmdir(path_.substr(0, path_.rfind('/')).c_str());
}

void ScriptedDaemon::Listen() { listener_ = *shm::ListenPacketSocket(path_, 8); }

void ScriptedDaemon::Restart(uint64_t boot_id) {
  listener_.Reset();
  unlink(path_.c_str());
  boot_id_ = boot_id;
  Listen();
}

std::unique_ptr<ScriptedClient> ScriptedDaemon::Accept() {
  pollfd waiter{listener_.get(), POLLIN, 0};
  if (poll(&waiter, 1, 2000) <= 0) return nullptr;
  UniqueFd socket(accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK));
  absl::StatusOr<shm::Packet> packet =
      shm::ReceivePacket(socket.get(), sizeof(shm::Hello) + shm::kMaxHelloText, 2000);
  shm::Hello hello;
  if (!packet.ok() || !shm::ReadStruct(std::span<const std::byte>(packet->bytes), &hello)) {
    return nullptr;
  }
  std::string text(reinterpret_cast<const char*>(packet->bytes.data()) + sizeof(hello),
                   packet->bytes.size() - sizeof(hello));
  UniqueFd region = *MakeSealedMemfd("region", shm::kRegionBytes);
  SharedMapping mapping = *SharedMapping::Map(region.get(), shm::kRegionBytes);
  shm::Welcome welcome{static_cast<uint32_t>(shm::PacketType::kWelcome), shm::kProtocolVersion,
                       boot_id_, 1, shm::kRegionBytes};
  const int fds[] = {region.get(), doorbell_.get()};
  if (!shm::SendPacket(socket.get(), shm::AsBytes(welcome), fds).ok()) return nullptr;
  return std::make_unique<ScriptedClient>(std::move(socket), std::move(mapping), hello,
                                          std::move(text));
}

}  // namespace flexkv::testing
