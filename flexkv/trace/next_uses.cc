#include "flexkv/trace/next_uses.h"

#include <algorithm>

namespace flexkv::trace {

void NextUses::Add(const RequestBatch& batch) {
  for (const TraceRequest& request : batch.requests) {
    const auto number = static_cast<uint32_t>(requests_.size());
    requests_.push_back({request.num_blocks, request.tokens_per_block, request.kind});
    if (request.kind != RequestKind::kPut) {
      ++lookups_;
      prompt_tokens_ += request.prompt_tokens;
    }
    runs_.Access(batch.BlocksOf(request), lookups_insert_ || request.kind != RequestKind::kGet);
    for (const RunTracker::Segment& segment : runs_.segments())
      found_.push_back({static_cast<uint32_t>(segment.request), {number, segment.blocks}});
  }
}

void NextUses::Finish() {
  first_edge_.assign(requests_.size() + 1, 0);
  for (const FoundEdge& found : found_) ++first_edge_[found.from + 1];
  for (size_t i = 0; i < requests_.size(); ++i) first_edge_[i + 1] += first_edge_[i];
  edges_.resize(found_.size());
  std::vector<uint64_t> at = first_edge_;
  for (const FoundEdge& found : found_) edges_[at[found.from]++] = found.edge;
  found_ = {};
}

// Backwards: how many leading blocks of each request a later lookup asks for. An insert in between
// uses blocks without asking for them, and passes on what is asked of them after it.
std::vector<bool> NextUses::LastBlockAskedAgain() const {
  std::vector<uint32_t> asked(requests_.size(), 0);
  std::vector<bool> again(requests_.size(), false);
  for (size_t i = requests_.size(); i-- > 0;) {
    uint32_t end = 0;
    for (const Edge& edge : EdgesOf(i)) {
      end += edge.blocks;
      const bool lookup = requests_[edge.to].kind != RequestKind::kPut;
      asked[i] = std::max(asked[i], lookup ? end : std::min(end, asked[edge.to]));
    }
    again[i] = requests_[i].num_blocks > 0 && asked[i] == requests_[i].num_blocks;
  }
  return again;
}

uint64_t NextUses::bytes() const {
  const uint64_t edges = std::max(found_.capacity() * (sizeof(FoundEdge) + sizeof(Edge)),
                                  edges_.capacity() * sizeof(Edge));
  return runs_.bytes() + edges +
         requests_.capacity() * (sizeof(Request) + 2 * sizeof(uint64_t) + sizeof(uint32_t));
}

}  // namespace flexkv::trace
