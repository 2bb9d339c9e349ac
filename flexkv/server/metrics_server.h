// /metrics in the Prometheus text format, over HTTP on a Unix socket and, when asked, on a loopback
// port.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "flexkv/server/snapshot.h"

namespace flexkv {

// The page. Labels are namespace labels, engine labels and routes: never token ids, hashes or
// salts.
std::string MetricsText(const DaemonSnapshot& snapshot);

class MetricsServer {
 public:
  using Source = std::function<std::optional<DaemonSnapshot>()>;
  // `loopback` is "" or HOST:PORT (port 0: any free one). Unavailable: an address cannot be bound.
  static absl::StatusOr<std::unique_ptr<MetricsServer>> Start(const std::string& socket_path,
                                                              const std::string& loopback,
                                                              Source source);
  virtual ~MetricsServer() = default;
  virtual int port() const = 0;  // of the loopback listener, 0 without one
};

// Fetches /metrics from a Unix socket. Unavailable: nobody answers there.
absl::StatusOr<std::string> FetchMetrics(const std::string& socket_path);

}  // namespace flexkv
