// Small random traces for tests of simulation: chained ids, shared prefixes, repeated prompts.
#pragma once

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

#include "flexkv/trace/trace_request.h"
#include "tests/support/test_seed.h"

namespace flexkv::trace {

// Makes ids chained: a number for each pair of a parent id and a token-like label.
class ChainMaker {
 public:
  uint64_t Child(uint64_t parent, uint64_t label) {
    const auto [it, is_new] = ids_.try_emplace({parent, label}, ids_.size() + 1);
    (void)is_new;
    return it->second;
  }
  std::vector<uint64_t> Chain(const std::vector<uint64_t>& labels) {
    std::vector<uint64_t> chain;
    uint64_t parent = 0;
    for (uint64_t label : labels) chain.push_back(parent = Child(parent, label));
    return chain;
  }
  uint64_t size() const { return ids_.size(); }

 private:
  std::map<std::pair<uint64_t, uint64_t>, uint64_t> ids_;
};

inline void AddRequest(const std::vector<uint64_t>& chain, RequestBatch* batch,
                       RequestKind kind = RequestKind::kGetPut, uint32_t tokens_per_block = 1) {
  TraceRequest request;
  request.time_ns = batch->requests.size() * kNsPerMs;
  request.kind = kind;
  request.tokens_per_block = tokens_per_block;
  request.first_block = batch->blocks.size();
  request.num_blocks = static_cast<uint32_t>(chain.size());
  const bool asks = kind != RequestKind::kPut;
  request.prompt_tokens = asks ? request.num_blocks * tokens_per_block : 0;
  batch->blocks.insert(batch->blocks.end(), chain.begin(), chain.end());
  batch->requests.push_back(request);
}

struct RandomTraceOptions {
  uint64_t requests = 60;
  uint64_t longest = 12;  // blocks
  uint64_t labels = 4;    // the fewer, the more is shared
  bool all_kinds = false;
};

// Prompts go on from a prefix of an earlier one more often than not.
inline RequestBatch RandomTrace(const RandomTraceOptions& options, TestRng* rng) {
  RequestBatch batch;
  ChainMaker ids;
  std::vector<std::vector<uint64_t>> prompts = {{}};
  for (uint64_t i = 0; i < options.requests; ++i) {
    std::vector<uint64_t> labels =
        rng->OneIn(4) ? std::vector<uint64_t>{} : prompts[rng->Below(prompts.size())];
    if (!rng->OneIn(3)) labels.resize(rng->Below(labels.size() + 1));
    const uint64_t length = rng->Below(options.longest + 1);
    while (labels.size() < length) labels.push_back(rng->Below(options.labels));
    RequestKind kind = RequestKind::kGetPut;
    if (options.all_kinds) kind = static_cast<RequestKind>(rng->Below(3));
    AddRequest(ids.Chain(labels), &batch, kind);
    prompts.push_back(std::move(labels));
    if (prompts.size() > 20) prompts.erase(prompts.begin() + 1);
  }
  return batch;
}

}  // namespace flexkv::trace
