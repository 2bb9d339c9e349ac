#include "flexkv/server/client_connection.h"

#include <sys/socket.h>

#include <algorithm>
#include <utility>

#include "proto/packet_socket.h"

namespace flexkv {

ClientConnection::ClientConnection(NewClient client)
    : hello_(std::move(client.hello)),
      link_(std::move(client.link)),
      region_fd_(std::move(client.region_fd)),
      region_(std::move(client.region)),
      view_(region_.data()),
      requests_(&view_.header->requests, view_.request_slots, view_.request_payload),
      completions_(&view_.header->completions, view_.completion_slots, view_.completion_payload) {}

absl::Status ClientConnection::SendWelcome(uint64_t boot_id, int doorbell_fd,
                                           const shm::DeviceOptionsBody& device) {
  shm::Welcome welcome;
  welcome.type = static_cast<uint32_t>(shm::PacketType::kWelcome);
  welcome.version = shm::kProtocolVersion;
  welcome.boot_id = boot_id;
  welcome.client_id = id();
  welcome.region_bytes = shm::kRegionBytes;
  welcome.device = device;
  const int fds[2] = {region_fd_.get(), doorbell_fd};
  absl::Status status = SendPacket(shm::AsBytes(welcome), fds);
  region_fd_.Reset();
  return status;
}

absl::Status ClientConnection::SendPacket(std::span<const std::byte> bytes,
                                          std::span<const int> fds) {
  return shm::SendPacket(link_->socket.get(), bytes, fds);
}

void ClientConnection::CloseSending() { shutdown(link_->socket.get(), SHUT_WR); }

bool ClientConnection::Push(const shm::Message& message, std::span<const std::byte> payload,
                            TimeNs now) {
  if (!completions_.Push(message, payload)) {
    ring_stall_.Note(now);
    return false;
  }
  ring_stall_.Clear();
  shm::RingBell(&view_.header->client_bell);
  return true;
}

void ClientConnection::Send(const shm::Message& message, TimeNs now) {
  if (!outbox_.empty() || !Push(message, {}, now)) outbox_.push_back(message);
}

bool ClientConnection::TrySend(const shm::Message& message, std::span<const std::byte> payload,
                               TimeNs now) {
  return outbox_.empty() && Push(message, payload, now);
}

bool ClientConnection::Flush(TimeNs now) {
  while (!outbox_.empty()) {
    if (!Push(outbox_.front(), {}, now)) return false;
    outbox_.pop_front();
  }
  return true;
}

}  // namespace flexkv
