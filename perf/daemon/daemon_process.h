// A real flexkvd in a process of its own.
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <memory>
#include <string>

#include "flexkv/base/unique_fd.h"
#include "proto/admin.pb.h"

namespace flexkv::bench {

// The daemon that was built beside this program, unless `given` names one.
std::string FindDaemon(const std::string& given);

class DaemonProcess {
 public:
  // `folder` is the socket directory; `config` the configuration as JSON text, written to a file
  // there. Exits the program with the daemon's words when it does not start.
  static std::unique_ptr<DaemonProcess> Exec(const std::string& flexkvd, const std::string& folder,
                                             const std::string& config);
  ~DaemonProcess();  // kills

  uint64_t exec_ns() const { return exec_ns_; }  // just before it was started
  // When it said that it is ready; waits for that.
  uint64_t WaitReady();
  std::string socket() const { return folder_ + "/daemon.sock"; }
  admin::v1::StatusReply Status() const;
  void Kill();  // kill -9, and waits for its end

 private:
  DaemonProcess() = default;

  std::string folder_;
  pid_t pid_ = 0;
  UniqueFd output_;
  uint64_t exec_ns_ = 0;
};

}  // namespace flexkv::bench
