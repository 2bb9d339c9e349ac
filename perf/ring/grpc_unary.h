// One gRPC unary call with a 16-byte body over a Unix socket to a process of its own: what the
// rings replace.
#pragma once

#include <sys/types.h>

#include <memory>
#include <string>

namespace flexkv::bench {

class GrpcUnary {
 public:
  GrpcUnary();  // forks the echo server; aborts when it does not come up
  ~GrpcUnary();
  void Call();

 private:
  struct Client;
  std::string path_;
  pid_t pid_ = 0;
  std::unique_ptr<Client> client_;
};

// Runs the echo server; used by the forked process through exec of this program with --grpc-echo.
int RunGrpcEcho(const std::string& path);

}  // namespace flexkv::bench
