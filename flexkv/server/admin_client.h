// The other end of the admin socket, for the command line and tests.
#pragma once

#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "proto/admin.pb.h"

namespace flexkv {

class AdminClient {
 public:
  // Unavailable: no daemon listens there (known at once, without waiting for gRPC).
  static absl::StatusOr<std::unique_ptr<AdminClient>> Connect(const std::string& admin_socket);
  virtual ~AdminClient() = default;
  // Codes of the daemon, or Unavailable and DeadlineExceeded after `timeout_ms`.
  virtual absl::StatusOr<admin::v1::StatusReply> Status(int timeout_ms) = 0;
  virtual absl::StatusOr<uint32_t> Clear(const std::string& label, int timeout_ms) = 0;
  virtual absl::Status Stop(int timeout_ms) = 0;
};

}  // namespace flexkv
