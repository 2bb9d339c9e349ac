// The directory in which a daemon is found: its sockets and the lock that says it is alive.
#pragma once

#include <sys/types.h>

#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/unique_fd.h"

namespace flexkv {

// Where each socket lies in a socket directory.
struct SocketPaths {
  explicit SocketPaths(const std::string& socket_dir);
  std::string dir;
  std::string handshake;  // daemon.sock: engines attach here
  std::string admin;      // admin.sock: gRPC
  std::string metrics;    // metrics.sock: HTTP
  std::string lock;       // daemon.lock: flock held by the daemon, its pid inside
};

// $FLEXKV_SOCKET_DIR, else $XDG_RUNTIME_DIR/flexkv, else /tmp/flexkv-<uid>. Reads the environment:
// for programs' main.
std::string DefaultSocketDir();

// A directory held by this daemon alone. Sockets are removed when it dies; the lock file stays
// (removing it would let two daemons hold two files of one name).
class SocketDir {
 public:
  // Creates the directory (0700; 0711 when other users may attach) if need be, takes the lock and
  // removes stale sockets. PermissionDenied: the directory is a symlink, another user's, or open to
  // others. AlreadyExists: a daemon holds it. InvalidArgument: the path is too long. NotFound: the
  // parent does not exist.
  static absl::StatusOr<SocketDir> Open(const std::string& path, bool others_may_attach);
  SocketDir(SocketDir&&) noexcept = default;
  SocketDir& operator=(SocketDir&&) = delete;
  ~SocketDir();

  const SocketPaths& paths() const { return paths_; }

 private:
  SocketDir(SocketPaths paths, UniqueFd lock) : paths_(std::move(paths)), lock_(std::move(lock)) {}

  SocketPaths paths_;
  UniqueFd lock_;
};

}  // namespace flexkv
