// Which request used each block last, for every block seen, without looking at single blocks.
//
// Requests use prefixes, so the blocks whose last user is one request are a *run*: neighbours on
// its chain, from some depth to its end. A new request takes the front of a few runs, one behind
// the other, and leaves one run of its own. So an access costs a hash lookup and a step in an order
// statistic per run taken (two or three), whatever the number of blocks.
//
// The runs in the order of their requests, latest first, each from the root side on, are the LRU
// stack: an LRU cache of c blocks that gives up leaves first holds the first c of it.
//
// Memory: 8 to 16 bytes a block seen (and half as many again with numbers), 40 a run. Ids must be
// chained (equal id = equal prefix); others get some answer, and no access outside memory.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace flexkv::trace {

class RunTracker {
 public:
  // The front of a run, taken by the present request.
  struct Segment {
    uint64_t request = 0;   // who used it last: 0 is the first call of Access
    uint64_t position = 0;  // of its first block in the LRU stack before this request
    uint32_t first_depth = 0;
    uint32_t blocks = 0;
  };

  // `numbers`: every block gets a number, dense, in the order of first appearance.
  explicit RunTracker(bool numbers = false) : with_numbers_(numbers) {}

  // The next request uses `ids`, root first. `insert` false: only those seen before.
  void Access(std::span<const uint64_t> ids, bool insert);

  // The request after the next, and the next one: fetches what their accesses look at first.
  void PrefetchFar(std::span<const uint64_t> ids) const;
  void PrefetchNear(std::span<const uint64_t> ids) const;

  // Of the last access: what was seen before, root side first, without gaps; and its length.
  std::span<const Segment> segments() const { return segments_; }
  uint32_t known_blocks() const { return known_; }
  // Of the last access, with numbers: of all blocks used.
  std::span<const uint32_t> numbers() const { return {numbers_.data() + last_.pool, last_.end}; }

  uint64_t requests() const { return requests_; }
  uint64_t unique_blocks() const { return unique_; }
  uint64_t bytes() const;
  // Block numbers and sums have 32 bits.
  static constexpr uint64_t kMaxBlocks = 0xfffffff0u;

 private:
  struct Run {
    uint64_t pool = 0;  // id of depth d: ids_[pool + d] (modulo 2^64)
    uint32_t first = 0, end = 0;
    uint64_t request = 0;
  };
  struct Head {
    uint64_t id = 0;
    uint32_t run_plus_one = 0;
  };
  static constexpr uint32_t kNone = UINT32_MAX;

  uint32_t FindRun(uint64_t id, uint32_t depth) const;
  void AddHead(uint64_t id, uint32_t run);
  void PlaceHead(uint64_t id, uint32_t run);
  void RebuildHeads(size_t cells);
  uint64_t BlocksAfter(uint32_t run) const;
  void TakeBlocks(uint32_t run, uint32_t blocks);
  void AppendSum(uint32_t blocks);
  void TakeFronts(std::span<const uint64_t> ids);
  void AddRun(std::span<const uint64_t> ids);
  void CompactRuns();
  void CompactPool();

  const bool with_numbers_;
  uint64_t requests_ = 0;
  uint64_t unique_ = 0;
  uint32_t known_ = 0;
  Run last_;
  std::vector<Segment> segments_;
  std::vector<Run> runs_;  // by time; those with first == end are over
  // Fenwick tree over the lengths of `runs_`, as long as they are and one more; it grows at its
  // end.
  std::vector<uint32_t> sums_{0};
  std::vector<uint64_t> ids_;  // chains of the runs; what lies before `first` is garbage
  std::vector<uint32_t> numbers_;
  std::vector<Head> heads_;  // first id of each run; open addressing, outdated ones stay a while
  size_t heads_used_ = 0;
  int heads_shift_ = 64;
  size_t room_ = 0;  // of runs, until they are moved together
};

}  // namespace flexkv::trace
