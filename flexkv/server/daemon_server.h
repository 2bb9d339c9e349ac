// The whole daemon as one object: `flexkvd` runs one, and so does a test in its own process.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/server/config.h"
#include "flexkv/server/snapshot.h"
#include "flexkv/server/socket_dir.h"

namespace flexkv {

class DaemonServer {
 public:
  // Starts listening; engines can attach when it returns. `config` as FinishConfig leaves it, with
  // a socket directory ("" is refused); SSD devices recover first. `on_stop_wanted` is called on
  // another thread when somebody asks the daemon to stop (gRPC, idle exit); the owner then destroys
  // the server. AlreadyExists: another daemon holds the directory, or one of the SSD tier's.
  // PermissionDenied, NotFound, InvalidArgument: a directory is not usable. ResourceExhausted,
  // Unavailable: no memory, descriptors or address.
  static absl::StatusOr<std::unique_ptr<DaemonServer>> Start(const DaemonConfig& config,
                                                             std::function<void()> on_stop_wanted);
  // Stops in order: no new callers, no new clients, then the control thread, then the SSD devices
  // (they commit what was written, within 2 s). Mappings of clients stay valid.
  ~DaemonServer();

  const SocketPaths& paths() const;
  // What `flexkv status` shows. nullopt: the control thread did not answer in 2 s.
  std::optional<DaemonSnapshot> Snapshot();
  uint64_t boot_id() const;
  int metrics_port() const;       // of the loopback listener, 0 without one
  std::string page_kind() const;  // what pages the arena has, asked of the kernel
  bool small_pages() const;       // they are 4 KiB

 private:
  struct Impl;
  explicit DaemonServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
