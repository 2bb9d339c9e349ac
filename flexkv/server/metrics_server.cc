#include "flexkv/server/metrics_server.h"

#include <httplib.h>
#include <sys/stat.h>

#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/server/config.h"

namespace flexkv {
namespace {

constexpr int kTimeoutS = 2;
constexpr size_t kMaxRequestBytes = 1 << 16;

// One listening address with its thread.
class Listener {
 public:
  ~Listener() {
    server_.stop();
    if (thread_.joinable()) thread_.join();
  }

  absl::Status Listen(const std::string& host, int port, int family,
                      const MetricsServer::Source& source) {
    server_.new_task_queue = [] { return new httplib::ThreadPool(1); };  // httplib deletes it
    server_.set_address_family(family);
    server_.set_read_timeout(kTimeoutS);
    server_.set_write_timeout(kTimeoutS);
    server_.set_keep_alive_max_count(1);
    server_.set_payload_max_length(kMaxRequestBytes);
    server_.Get("/metrics", [source](const httplib::Request&, httplib::Response& response) {
      const std::optional<DaemonSnapshot> snapshot = source();
      if (!snapshot.has_value()) {
        response.status = 503;
        return;
      }
      response.set_content(MetricsText(*snapshot), "text/plain; version=0.0.4");
    });
    if (port == 0) {
      port_ = server_.bind_to_any_port(host.c_str());
    } else if (server_.bind_to_port(host.c_str(), port)) {
      port_ = port;
    }
    if (port_ <= 0)
      return absl::UnavailableError(absl::StrCat("cannot listen for metrics on ", host));
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    // stop() before the accept loop runs would be lost.
    while (!server_.is_running()) std::this_thread::yield();
    return absl::OkStatus();
  }

  int port() const { return port_; }

 private:
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

class HttpMetricsServer : public MetricsServer {
 public:
  absl::Status Listen(const std::string& socket_path, const std::string& loopback,
                      const Source& source) {
    constexpr int kAnyPort = 80;  // has no meaning on a Unix socket, but httplib wants one
    if (absl::Status status = unix_.Listen(socket_path, kAnyPort, AF_UNIX, source); !status.ok())
      return status;
    if (chmod(socket_path.c_str(), 0600) != 0)
      return absl::ErrnoToStatus(errno, "chmod of the metrics socket");
    if (loopback.empty()) return absl::OkStatus();
    const absl::StatusOr<HostPort> address = ParseLoopback(loopback);
    if (!address.ok()) return address.status();
    tcp_ = std::make_unique<Listener>();
    return tcp_->Listen(address->host, address->port, AF_UNSPEC, source);
  }

  int port() const override { return tcp_ == nullptr ? 0 : tcp_->port(); }

 private:
  Listener unix_;
  std::unique_ptr<Listener> tcp_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<MetricsServer>> MetricsServer::Start(const std::string& socket_path,
                                                                    const std::string& loopback,
                                                                    Source source) {
  auto server = std::make_unique<HttpMetricsServer>();
  if (absl::Status status = server->Listen(socket_path, loopback, source); !status.ok())
    return status;
  return server;
}

absl::StatusOr<std::string> FetchMetrics(const std::string& socket_path) {
  httplib::Client client(socket_path);
  client.set_address_family(AF_UNIX);
  client.set_default_headers({{"Host", "flexkvd"}});
  client.set_connection_timeout(kTimeoutS);
  client.set_read_timeout(kTimeoutS);
  const httplib::Result result = client.Get("/metrics");
  if (!result) return absl::UnavailableError(absl::StrCat("nobody answers on ", socket_path));
  if (result->status != 200)
    return absl::UnavailableError(absl::StrCat("the daemon answered ", result->status));
  return result->body;
}

}  // namespace flexkv
