// The generic (byte buffer) API: no message type to decode, so the limit is gRPC's own cost and
// nothing else.
#include "perf/ring/grpc_unary.h"

#include <grpcpp/generic/async_generic_service.h>
#include <grpcpp/generic/generic_stub.h>
#include <grpcpp/grpcpp.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <thread>

namespace flexkv::bench {
namespace {

class EchoReactor : public grpc::ServerGenericBidiReactor {
 public:
  EchoReactor() { StartRead(&request_); }
  void OnReadDone(bool ok) override {
    if (!ok) {
      Finish(grpc::Status(grpc::StatusCode::CANCELLED, ""));
      return;
    }
    StartWriteAndFinish(&request_, grpc::WriteOptions(), grpc::Status::OK);
  }
  void OnDone() override {
    delete this;
  }  // gRPC owns the moment: nothing of the call is used after it

 private:
  grpc::ByteBuffer request_;
};

class EchoService : public grpc::CallbackGenericService {
  grpc::ServerGenericBidiReactor* CreateReactor(grpc::GenericCallbackServerContext*) override {
    return new EchoReactor;
  }
};

}  // namespace

int RunGrpcEcho(const std::string& path) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  EchoService service;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("unix:" + path, grpc::InsecureServerCredentials());
  builder.RegisterCallbackGenericService(&service);
  std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr) return 1;
  server->Wait();
  return 0;
}

struct GrpcUnary::Client {
  explicit Client(std::shared_ptr<grpc::Channel> channel) : stub(std::move(channel)) {}
  grpc::GenericStub stub;
  grpc::CompletionQueue queue;
};

GrpcUnary::GrpcUnary() : path_("/tmp/flexkv-bench-grpc-" + std::to_string(getpid())) {
  pid_ = fork();
  if (pid_ == 0) {  // exec: gRPC must not be used across a fork
    execl("/proc/self/exe", "flexkv_ring_bench", "--grpc-echo", path_.c_str(), nullptr);
    _exit(127);
  }
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 50);
  std::shared_ptr<grpc::Channel> channel =
      grpc::CreateCustomChannel("unix:" + path_, grpc::InsecureChannelCredentials(), arguments);
  if (!channel->WaitForConnected(std::chrono::system_clock::now() + std::chrono::seconds(5))) {
    fprintf(stderr, "flexkv_ring_bench: the gRPC echo server did not come up\n");
    abort();
  }
  client_ = std::make_unique<Client>(std::move(channel));
}

GrpcUnary::~GrpcUnary() {
  client_.reset();
  kill(pid_, SIGKILL);
  waitpid(pid_, nullptr, 0);
  unlink(path_.c_str());
}

void GrpcUnary::Call() {
  static const std::string kBody(16, 'x');
  grpc::Slice slice(kBody);
  grpc::ByteBuffer request(&slice, 1), reply;
  grpc::ClientContext context;
  grpc::Status status;
  auto call = client_->stub.PrepareUnaryCall(&context, "/bench/Echo", request, &client_->queue);
  call->StartCall();
  call->Finish(&reply, &status, nullptr);
  void* tag = nullptr;
  bool ok = false;
  if (!client_->queue.Next(&tag, &ok) || !ok || !status.ok()) {
    fprintf(stderr, "flexkv_ring_bench: the gRPC call failed\n");
    abort();
  }
}

}  // namespace flexkv::bench
