#include "proto/packet_socket.h"

#include <errno.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"

namespace flexkv::shm {
namespace {

absl::StatusOr<sockaddr_un> Address(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.empty() || path.size() >= sizeof(address.sun_path)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the socket path must have 1 to ", sizeof(address.sun_path) - 1, " bytes: '", path, "'"));
  }
  std::memcpy(address.sun_path, path.data(), path.size());
  return address;
}

absl::StatusOr<UniqueFd> NewSocket() {
  UniqueFd fd(socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
  if (!fd.valid()) return absl::ErrnoToStatus(errno, "socket");
  return fd;
}

}  // namespace

absl::StatusOr<UniqueFd> ConnectPacketSocket(const std::string& path) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  absl::StatusOr<UniqueFd> fd = NewSocket();
  if (!fd.ok()) return fd.status();
  if (connect(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0) {
    return absl::UnavailableError(
        absl::StrCat("no daemon listens on ", path, ": ", std::strerror(errno)));
  }
  return fd;
}

absl::StatusOr<UniqueFd> ListenPacketSocket(const std::string& path, int backlog) {
  absl::StatusOr<sockaddr_un> address = Address(path);
  if (!address.ok()) return address.status();
  absl::StatusOr<UniqueFd> fd = NewSocket();
  if (!fd.ok()) return fd.status();
  // The mode is set before anybody can connect: fchmod on the socket decides the mode of the bound
  // path.
  if (fchmod(fd->get(), 0600) != 0) return absl::ErrnoToStatus(errno, "fchmod of a socket");
  if (bind(fd->get(), reinterpret_cast<const sockaddr*>(&*address), sizeof(*address)) != 0) {
    return absl::ErrnoToStatus(errno, absl::StrCat("bind to ", path));
  }
  if (listen(fd->get(), backlog) != 0) return absl::ErrnoToStatus(errno, "listen");
  return fd;
}

absl::Status SendPacket(int socket, std::span<const std::byte> bytes, std::span<const int> fds) {
  if (fds.size() > kMaxPacketFds) return absl::InvalidArgumentError("too many descriptors");
  iovec part{const_cast<std::byte*>(bytes.data()), bytes.size()};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)] = {};
  if (!fds.empty()) {
    message.msg_control = control;
    message.msg_controllen = CMSG_SPACE(sizeof(int) * fds.size());
    cmsghdr* header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int) * fds.size());
    std::memcpy(CMSG_DATA(header), fds.data(), sizeof(int) * fds.size());
  }
  while (sendmsg(socket, &message, MSG_NOSIGNAL) < 0) {
    if (errno == EINTR) continue;
    if (errno == EAGAIN || errno == EWOULDBLOCK)
      return absl::UnavailableError("the socket is full");
    if (errno == EPIPE || errno == ECONNRESET) return absl::AbortedError("the peer is gone");
    return absl::ErrnoToStatus(errno, "sendmsg");
  }
  return absl::OkStatus();
}

absl::StatusOr<Packet> ReceivePacket(int socket, size_t max_bytes, int timeout_ms) {
  if (timeout_ms > 0) {
    pollfd waiter{socket, POLLIN, 0};
    if (poll(&waiter, 1, timeout_ms) <= 0) return absl::UnavailableError("no packet in time");
  }
  Packet packet;
  packet.bytes.resize(max_bytes);
  iovec part{packet.bytes.data(), packet.bytes.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int) * kMaxPacketFds)] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof(control);
  // A peer that closes with packets of ours unread leaves ECONNRESET in front of the last packets
  // it sent: read past it.
  ssize_t got = 0;
  bool was_reset = false;
  while ((got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT)) < 0) {
    if (errno == EINTR) continue;
    if (errno != ECONNRESET || std::exchange(was_reset, true)) break;
  }
  if (got < 0) {
    if (errno == EAGAIN || errno == EWOULDBLOCK) return absl::UnavailableError("no packet");
    if (errno == ECONNRESET) return absl::AbortedError("the peer is gone");
    return absl::ErrnoToStatus(errno, "recvmsg");
  }
  for (cmsghdr* header = CMSG_FIRSTHDR(&message); header != nullptr;
       header = CMSG_NXTHDR(&message, header)) {
    if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS) continue;
    const size_t count = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < count; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(header) + i * sizeof(int), sizeof(int));
      packet.fds.emplace_back(fd);
    }
  }
  if (got == 0 && packet.fds.empty()) return absl::AbortedError("the peer closed the connection");
  if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0) {
    return absl::DataLossError("a handshake packet is too long or carries too many descriptors");
  }
  packet.bytes.resize(static_cast<size_t>(got));
  return packet;
}

}  // namespace flexkv::shm
