// Replays requests against a live daemon over the protocol that engines speak: a scheduler's
// session and a worker's with host memory in place of a device, blocks of a few KiB. One request
// after another, each to its end: lookup, load of what was found, store of what was missed. So what
// the daemon answers can be laid beside what a simulation of the same requests says.
//
// Times of the requests do not count: the daemon's clock sees them come as fast as they are
// answered, which matters to policies that look at it.
//
// Blocks carry no content: what is copied is whatever the buffer holds.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::cli {

struct LiveReplayOptions {
  std::string socket_path;              // daemon.sock
  std::string label = "replay";         // of the namespace, as status shows it
  uint64_t run = 1;                     // another number, another namespace: nothing is found
  uint32_t tokens_per_block = 0;        // of all requests
  uint32_t block_bytes = 4096;          // what a block costs in the daemon
  uint32_t max_request_blocks = 16384;  // longer requests are cut; the buffer holds so many
  uint32_t timeout_ms = 10000;          // of each wait
  // After each request, before the next: for example until the SSD tier has written everything.
  std::function<void()> between;
  std::function<void(uint64_t requests)> progress;
};

struct LiveReplayResult {
  uint64_t requests = 0;       // lookups
  uint64_t prompt_tokens = 0;  // of them, partial blocks included
  uint64_t hit_tokens = 0;     // full blocks found in the daemon
  uint64_t loaded_tokens = 0;  // of them, that arrived
  uint64_t failed_loads = 0;
  uint64_t stored_blocks = 0;  // offered
  uint64_t cut_requests = 0;   // longer than max_request_blocks
  double seconds = 0;
  double hit_rate() const {
    return prompt_tokens == 0
               ? 0
               : static_cast<double>(hit_tokens) / static_cast<double>(prompt_tokens);
  }
};

class LiveReplay {
 public:
  // InvalidArgument: bad options. Unavailable: no daemon took the engine in time.
  static absl::StatusOr<std::unique_ptr<LiveReplay>> Open(const LiveReplayOptions& options);
  ~LiveReplay();

  // May be called for one batch after another. A put follows the lookup of the same blocks, where
  // there was one lately, as one request. InvalidArgument: a request of another block size.
  // DeadlineExceeded: the daemon did not answer.
  absl::Status Run(const trace::RequestBatch& batch);
  // Ends the requests that wait for their puts.
  void Finish();
  const LiveReplayResult& result() const { return result_; }

 private:
  struct Impl;
  LiveReplay();
  absl::Status RunOne(const trace::TraceRequest& request, std::span<const uint64_t> blocks);
  absl::Status Get(const std::string& id, uint32_t prompt_tokens);
  absl::Status Put(const std::string& id, uint32_t tokens);
  std::unique_ptr<Impl> impl_;
  LiveReplayResult result_;
};

}  // namespace flexkv::cli
