#include "flexkv/server/peer.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <string>

#include "absl/strings/str_cat.h"

#ifndef SO_PEERPIDFD
#define SO_PEERPIDFD 77  // Linux 6.5
#endif

namespace flexkv {

absl::StatusOr<PeerCredentials> GetPeerCredentials(int socket) {
  ucred credentials{};
  socklen_t length = sizeof(credentials);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &length) != 0) {
    return absl::ErrnoToStatus(errno, "SO_PEERCRED");
  }
  return PeerCredentials{credentials.pid, credentials.uid};
}

absl::StatusOr<UniqueFd> OpenPeerPidfd(int socket, const PeerCredentials& peer) {
  int fd = -1;
  socklen_t length = sizeof(fd);
  if (getsockopt(socket, SOL_SOCKET, SO_PEERPIDFD, &fd, &length) == 0) {
    UniqueFd pidfd(fd);
    fcntl(pidfd.get(), F_SETFD, FD_CLOEXEC);
    return pidfd;
  }
  if (errno == ESRCH) return absl::UnavailableError("the peer process is gone");
  UniqueFd pidfd(static_cast<int>(syscall(SYS_pidfd_open, peer.pid, 0)));
  if (!pidfd.valid()) {
    if (errno == ESRCH) return absl::UnavailableError("the peer process is gone");
    return absl::ErrnoToStatus(errno, "pidfd_open");
  }
  // The process behind the pidfd is the peer unless the pid was reused: then its owner or the
  // socket tells.
  struct stat info {};
  const std::string proc = absl::StrCat("/proc/", peer.pid);
  char byte = 0;
  const ssize_t got = recv(socket, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
  if (got == 0 || stat(proc.c_str(), &info) != 0 || info.st_uid != peer.uid) {
    return absl::UnavailableError("the peer process is gone");
  }
  return pidfd;
}

}  // namespace flexkv
