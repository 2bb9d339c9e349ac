// Which request uses each block next, from one pass over a trace; kept by runs of blocks, not by
// block: 8 bytes a run (two or three a request) and 32 a request.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "flexkv/trace/run_tracker.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

class NextUses {
 public:
  // The next `blocks` of a request's chain are used again by request `to`.
  struct Edge {
    uint32_t to = 0;
    uint32_t blocks = 0;
  };
  struct Request {
    uint32_t num_blocks = 0;
    uint32_t tokens_per_block = 0;
    RequestKind kind = RequestKind::kGetPut;
  };

  // `lookups_insert`: every block asked for counts, whether somebody inserts it or not. Else a
  // lookup uses what was inserted before.
  explicit NextUses(bool lookups_insert = false) : lookups_insert_(lookups_insert) {}

  void Add(const RequestBatch& batch);
  // After the last Add.
  void Finish();

  size_t size() const { return requests_.size(); }
  const Request& request(size_t i) const { return requests_[i]; }
  // From the root side on, hence by rising `to`. What lies behind the last is never used again.
  std::span<const Edge> EdgesOf(size_t i) const {
    return {edges_.data() + first_edge_[i], first_edge_[i + 1] - first_edge_[i]};
  }
  // By request: whether a later lookup asks for its last full block. False without blocks.
  // REQUIRES: lookups_insert.
  std::vector<bool> LastBlockAskedAgain() const;

  uint64_t requests() const { return lookups_; }
  uint64_t prompt_tokens() const { return prompt_tokens_; }
  uint64_t unique_blocks() const { return runs_.unique_blocks(); }
  // Finish holds the edges twice for a moment.
  uint64_t bytes() const;
  static constexpr uint64_t kMaxRequests = 0xfffffff0u;

 private:
  struct FoundEdge {
    uint32_t from = 0;
    Edge edge;
  };
  const bool lookups_insert_;
  RunTracker runs_;
  std::vector<Request> requests_;
  std::vector<FoundEdge> found_;  // by rising `to`
  std::vector<uint64_t> first_edge_;
  std::vector<Edge> edges_;  // by request
  uint64_t lookups_ = 0, prompt_tokens_ = 0;
};

}  // namespace flexkv::trace
