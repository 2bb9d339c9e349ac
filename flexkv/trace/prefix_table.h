// Every block that an infinite cache would hold, as a tree: how often each was found, when last,
// and what follows it. Answers what a lookup could have found, how long blocks wait for their next
// use, what is never read, and which prefixes are shared.
//
// Memory is bounded: at most about 72 bytes a block are held. When the bound is reached the table
// keeps one block in two, by a hash of its id, then one in four, and so on; counts are scaled up
// then (they become estimates without bias) and a block's parent is its nearest ancestor kept.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "flexkv/base/clock.h"
#include "flexkv/trace/log_histogram.h"

namespace flexkv::trace {

class PrefixTable {
 public:
  static constexpr uint64_t kBytesPerBlock = 72;
  static constexpr uint32_t kNone = UINT32_MAX;

  explicit PrefixTable(uint64_t max_bytes);

  // How many of the chained `ids` are held (all of them if the request may be found whole). The
  // times since their last uses go into `gaps`.
  uint64_t Lookup(std::span<const uint64_t> ids, TimeNs now, LogHistogram* gaps);
  void Insert(std::span<const uint64_t> ids, TimeNs now);

  // Blocks of the tree below a segment's parent that lie on one path and are found about equally
  // often (each at least 3/4 as often as the first).
  struct Segment {
    uint64_t id = 0;            // of its last block
    uint32_t parent = kNone;    // index of the segment above
    uint32_t depth_blocks = 0;  // of its last block, from the root
    uint32_t blocks = 0;        // of its own
    uint64_t uses = 0;          // how often its first block was found again
    uint64_t saved_blocks = 0;  // found in it over the whole trace
    uint32_t children = 0;      // segments that hang off it
  };
  // Those with blocks that were found at least once; parents before children.
  std::vector<Segment> SharedSegments() const;

  uint64_t blocks() const { return nodes_.size() << shift_; }
  uint64_t never_read() const;
  uint64_t roots() const;
  LogHistogram FanOut() const;                      // children of every block that has some
  uint32_t sample_shift() const { return shift_; }  // 0: every block is in the table

 private:
  struct Node {
    uint64_t id = 0;
    TimeNs last = 0;
    uint32_t parent = kNone;
    uint32_t depth = 0;  // from 1
    uint32_t hits = 0;
    uint32_t children = 0;
  };
  bool Kept(uint64_t id) const;
  void HalveSample();

  const uint64_t max_nodes_;
  uint32_t shift_ = 0;
  std::vector<Node> nodes_;  // parents before children
  absl::flat_hash_map<uint64_t, uint32_t> index_;
};

}  // namespace flexkv::trace
