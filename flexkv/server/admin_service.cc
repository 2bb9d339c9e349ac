#include "flexkv/server/admin_service.h"

#include <grpcpp/grpcpp.h>
#include <grpcpp/resource_quota.h>
#include <sys/stat.h>

#include <chrono>
#include <optional>

#include "absl/strings/str_cat.h"
#include "flexkv/server/status_proto.h"
#include "proto/admin.grpc.pb.h"

namespace flexkv {
namespace {

constexpr std::chrono::milliseconds kShutdownGrace(200);
constexpr size_t kMaxLabelBytes = 4096;
constexpr int kMaxThreads = 4;  // gRPC's own pollers and two calls at a time

class Service : public admin::v1::Admin::Service {
 public:
  explicit Service(AdminCallbacks callbacks) : callbacks_(std::move(callbacks)) {}

  grpc::Status Status(grpc::ServerContext* /*context*/, const admin::v1::StatusRequest* /*request*/,
                      admin::v1::StatusReply* reply) override {
    const std::optional<DaemonSnapshot> snapshot = callbacks_.snapshot();
    if (!snapshot.has_value()) return Busy();
    ToProto(*snapshot, reply);
    return grpc::Status::OK;
  }

  grpc::Status Clear(grpc::ServerContext* /*context*/, const admin::v1::ClearRequest* request,
                     admin::v1::ClearReply* reply) override {
    if (request->namespace_label().size() > kMaxLabelBytes) {
      return {grpc::StatusCode::INVALID_ARGUMENT, "the namespace label is too long"};
    }
    const ClearAnswer answer = callbacks_.clear(request->namespace_label());
    switch (answer.state) {
      case ClearAnswer::State::kBusy:
        return Busy();
      case ClearAnswer::State::kNotNoted:
        return {grpc::StatusCode::INTERNAL,
                "nothing of before is served any more, but an SSD device could not note it: after "
                "a restart its old blocks may come back (see flexkv status for its errors)"};
      case ClearAnswer::State::kPending:
        return {grpc::StatusCode::DEADLINE_EXCEEDED,
                "nothing of before is served any more, but an SSD device has not noted it yet: if "
                "the daemon is killed now, its old blocks may come back"};
      case ClearAnswer::State::kDone:
        break;
    }
    reply->set_namespaces(answer.namespaces);
    if (answer.namespaces == 0 && !request->namespace_label().empty()) {
      return {grpc::StatusCode::NOT_FOUND, "no namespace has that label"};
    }
    return grpc::Status::OK;
  }

  grpc::Status Stop(grpc::ServerContext* /*context*/, const admin::v1::StopRequest* /*request*/,
                    admin::v1::StopReply* /*reply*/) override {
    callbacks_.stop();
    return grpc::Status::OK;
  }

 private:
  static grpc::Status Busy() {
    return {grpc::StatusCode::UNAVAILABLE, "the daemon is busy or stopping"};
  }

  AdminCallbacks callbacks_;
};

class GrpcAdminServer : public AdminServer {
 public:
  explicit GrpcAdminServer(AdminCallbacks callbacks) : service_(std::move(callbacks)) {}
  ~GrpcAdminServer() override {
    if (server_ == nullptr) return;
    server_->Shutdown(std::chrono::system_clock::now() + kShutdownGrace);
    server_->Wait();
  }

  absl::Status Listen(const std::string& path) {
    grpc::ResourceQuota quota("flexkv-admin");
    quota.SetMaxThreads(kMaxThreads);
    grpc::ServerBuilder builder;
    builder.SetResourceQuota(quota);
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    builder.SetMaxReceiveMessageSize(1 << 16);
    int port = 0;
    // The socket's mode is its protection: only the daemon's user gets through the directory.
    builder.AddListeningPort(absl::StrCat("unix:", path), grpc::InsecureServerCredentials(), &port);
    builder.RegisterService(&service_);
    server_ = builder.BuildAndStart();
    if (server_ == nullptr)
      return absl::UnavailableError(absl::StrCat("gRPC cannot listen on ", path));
    if (chmod(path.c_str(), 0600) != 0)
      return absl::ErrnoToStatus(errno, absl::StrCat("chmod of ", path));
    return absl::OkStatus();
  }

 private:
  Service service_;
  std::unique_ptr<grpc::Server> server_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<AdminServer>> AdminServer::Start(const std::string& path,
                                                                AdminCallbacks callbacks) {
  auto server = std::make_unique<GrpcAdminServer>(std::move(callbacks));
  if (absl::Status status = server->Listen(path); !status.ok()) return status;
  return server;
}

}  // namespace flexkv
