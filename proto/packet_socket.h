// The handshake socket: SOCK_SEQPACKET over a Unix path, packets of plain structs, descriptors by
// SCM_RIGHTS.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv::shm {

// Connects; non-blocking afterwards. Unavailable: nobody listens there. InvalidArgument: the path
// is too long.
absl::StatusOr<UniqueFd> ConnectPacketSocket(const std::string& path);
// Binds (mode 0600) and listens; the path must not exist. Non-blocking.
absl::StatusOr<UniqueFd> ListenPacketSocket(const std::string& path, int backlog);

// One packet with up to kMaxPacketFds descriptors. Unavailable: would block. Aborted: the peer is
// gone.
inline constexpr int kMaxPacketFds = 4;
absl::Status SendPacket(int socket, std::span<const std::byte> bytes,
                        std::span<const int> fds = {});

struct Packet {
  std::vector<std::byte> bytes;
  std::vector<UniqueFd> fds;
};
// Waits at most timeout_ms (0 = does not wait) for one packet of at most max_bytes. Unavailable:
// none came. Aborted: the peer closed. DataLoss: truncated packet or too many descriptors (they are
// closed).
absl::StatusOr<Packet> ReceivePacket(int socket, size_t max_bytes, int timeout_ms);

template <typename T>
std::span<const std::byte> AsBytes(const T& value) {
  return std::as_bytes(std::span<const T, 1>(&value, 1));
}

// The struct at the start of a packet; false when the packet is too short.
template <typename T>
bool ReadStruct(std::span<const std::byte> bytes, T* value) {
  if (bytes.size() < sizeof(T)) return false;
  std::memcpy(static_cast<void*>(value), bytes.data(), sizeof(T));
  return true;
}

}  // namespace flexkv::shm
