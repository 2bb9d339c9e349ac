// The gRPC side of the daemon: Status, Clear, Stop over a Unix socket. Its threads decode and post;
// the control thread answers.
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/server/control_loop.h"

namespace flexkv {

struct AdminCallbacks {
  // nullopt: the control thread did not answer in time.
  std::function<std::optional<DaemonSnapshot>()> snapshot;
  std::function<std::optional<uint32_t>(const std::string& label)> clear;
  std::function<void()> stop;
};

class AdminServer {
 public:
  // Listens on `path` (mode 0600). Unavailable: gRPC could not bind it.
  static absl::StatusOr<std::unique_ptr<AdminServer>> Start(const std::string& path,
                                                            AdminCallbacks callbacks);
  virtual ~AdminServer() = default;  // refuses new calls, waits a moment for those under way
};

}  // namespace flexkv
