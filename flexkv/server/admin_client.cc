#include "flexkv/server/admin_client.h"

#include <grpcpp/grpcpp.h>
#include <sys/socket.h>
#include <sys/un.h>

#include <chrono>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "proto/admin.grpc.pb.h"

namespace flexkv {
namespace {

constexpr int kGreetingMs = 10'000;  // what ends a call is its own deadline

absl::Status ToAbsl(const grpc::Status& status) {
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()), status.error_message());
}

void SetDeadline(int timeout_ms, grpc::ClientContext* context) {
  context->set_deadline(std::chrono::system_clock::now() + std::chrono::milliseconds(timeout_ms));
}

class GrpcAdminClient : public AdminClient {
 public:
  explicit GrpcAdminClient(const std::shared_ptr<grpc::Channel>& channel)
      : stub_(admin::v1::Admin::NewStub(channel)) {}

  absl::StatusOr<admin::v1::StatusReply> Status(int timeout_ms) override {
    grpc::ClientContext context;
    SetDeadline(timeout_ms, &context);
    admin::v1::StatusReply reply;
    const grpc::Status status = stub_->Status(&context, admin::v1::StatusRequest(), &reply);
    if (!status.ok()) return ToAbsl(status);
    return reply;
  }

  absl::StatusOr<uint32_t> Clear(const std::string& label, int timeout_ms) override {
    grpc::ClientContext context;
    SetDeadline(timeout_ms, &context);
    admin::v1::ClearRequest request;
    request.set_namespace_label(label);
    admin::v1::ClearReply reply;
    const grpc::Status status = stub_->Clear(&context, request, &reply);
    if (!status.ok()) return ToAbsl(status);
    return reply.namespaces();
  }

  absl::Status Stop(int timeout_ms) override {
    grpc::ClientContext context;
    SetDeadline(timeout_ms, &context);
    admin::v1::StopReply reply;
    const grpc::Status status = stub_->Stop(&context, admin::v1::StopRequest(), &reply);
    return status.ok() ? absl::OkStatus() : ToAbsl(status);
  }

 private:
  std::unique_ptr<admin::v1::Admin::Stub> stub_;
};

// gRPC would retry for its whole deadline: a plain connect tells at once whether anybody listens.
absl::Status Probe(const std::string& path) {
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  if (path.size() >= sizeof(address.sun_path))
    return absl::InvalidArgumentError("the socket path is too long");
  std::memcpy(address.sun_path, path.data(), path.size());
  UniqueFd socket_fd(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0));
  if (!socket_fd.valid()) return absl::ErrnoToStatus(errno, "socket");
  if (connect(socket_fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
    return absl::UnavailableError(
        absl::StrCat("no flexkvd runs on ", path, " (", std::strerror(errno), ")"));
  }
  return absl::OkStatus();
}

}  // namespace

absl::StatusOr<std::unique_ptr<AdminClient>> AdminClient::Connect(const std::string& admin_socket) {
  if (absl::Status status = Probe(admin_socket); !status.ok()) return status;
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);  // its default costs a second
  // Also how long the daemon's greeting may take: a machine may be busy.
  arguments.SetInt(GRPC_ARG_MIN_RECONNECT_BACKOFF_MS, kGreetingMs);
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  return std::make_unique<GrpcAdminClient>(grpc::CreateCustomChannel(
      absl::StrCat("unix:", admin_socket), grpc::InsecureChannelCredentials(), arguments));
}

}  // namespace flexkv
