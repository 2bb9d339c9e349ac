// Who is at the other end of a Unix socket, and how its death is told.
#pragma once

#include <sys/types.h>

#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv {

struct PeerCredentials {
  pid_t pid = 0;
  uid_t uid = 0;
};
absl::StatusOr<PeerCredentials> GetPeerCredentials(int socket);

// A descriptor that becomes readable when the peer process exits. From the socket itself where the
// kernel can; else by pid, checked once more against the socket's credentials so that a reused pid
// is not taken for the peer. Unavailable: the peer is gone already.
absl::StatusOr<UniqueFd> OpenPeerPidfd(int socket, const PeerCredentials& peer);

}  // namespace flexkv
