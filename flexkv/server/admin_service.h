// The gRPC side of the daemon: Status, Clear, Stop over a Unix socket. Its threads decode and post;
// the control thread answers.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/server/control_loop.h"

namespace flexkv {

// What came of a clear within the time that a caller waits.
struct ClearAnswer {
  enum class State : uint8_t {
    kDone,      // nothing of before is matched again, not after a restart either
    kNotNoted,  // not matched again, but an SSD device would not note it
    kPending,   // not matched again, but an SSD device has not noted it yet
    kBusy,      // the control thread did not come to it
  };
  State state = State::kBusy;
  uint32_t namespaces = 0;
};

struct AdminCallbacks {
  // nullopt: the control thread did not answer in time.
  std::function<std::optional<DaemonSnapshot>()> snapshot;
  std::function<ClearAnswer(const std::string& label)> clear;
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
