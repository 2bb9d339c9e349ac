// Memory of the tree's nodes: 64-byte headers, and runs of blocks in slabs by capacity class.
//
// A run keeps its blocks as a structure of arrays in one piece: hashes (32 bytes a block), policy
// words (8), slots (4). Matching reads two hashes, and streams over slots and words. Capacities are
// 4, 8, 16, 32 and 64 blocks; a run shrinks into a smaller class only when it fills at most an
// eighth of its own, so that evicting block by block copies little, and yet every class's worst
// case is bounded by the number of slots.
#pragma once

#include <array>
#include <cstdint>
#include <cstring>

#include "flexkv/base/ids.h"
#include "flexkv/index/eviction_policy.h"
#include "flexkv/index/head_table.h"
#include "flexkv/index/reserved_memory.h"

namespace flexkv {

// Inline and without branches: the library's comparison of arrays is a call.
inline bool SameHash(const BlockHash& a, const BlockHash& b) {
  return ((a.words[0] ^ b.words[0]) | (a.words[1] ^ b.words[1]) | (a.words[2] ^ b.words[2]) |
          (a.words[3] ^ b.words[3])) == 0;
}

struct alignas(64) Node {
  NodeId parent;
  NodeId first_child;
  NodeId next_sibling;
  NodeId prev_sibling;
  NamespaceId ns;
  uint32_t depth;     // of the first block, in blocks from the root
  uint32_t head_key;  // HeadTable::Key of the first block
  uint32_t pins;      // sum over the blocks
  uint64_t arrived;   // bit i: block i is arrived but not ready
  char* run;
  uint8_t len;             // blocks in the run; at least 1
  uint8_t ready;           // the first `ready` blocks are ready
  uint8_t capacity_class;  // the run has room for 4 << capacity_class blocks
  uint8_t used;            // 0: on the free list (next_sibling links it)

  uint32_t capacity() const { return 4u << capacity_class; }
  BlockHash* hashes() const { return reinterpret_cast<BlockHash*>(run); }
  PolicyWord* words() const { return reinterpret_cast<PolicyWord*>(run + 32 * capacity()); }
  SlotId* slots() const { return reinterpret_cast<SlotId*>(run + 40 * capacity()); }
  bool all_ready() const { return ready == len; }
  uint32_t end() const { return depth + len; }
};
static_assert(sizeof(Node) == 64);

class NodeStore {
 public:
  static constexpr uint32_t kClasses = 5;
  static constexpr uint32_t kBytesPerBlock =
      sizeof(BlockHash) + sizeof(PolicyWord) + sizeof(SlotId);

  // Never more nodes than blocks, and never more blocks than `max_blocks`.
  explicit NodeStore(uint64_t max_blocks);

  Node& operator[](NodeId id) { return nodes_[id]; }
  const Node& operator[](NodeId id) const { return nodes_[id]; }
  void Prefetch(NodeId id) const { __builtin_prefetch(&nodes_[id]); }

  // A node without links whose empty run has room for `blocks` blocks.
  NodeId Allocate(uint32_t blocks);
  void Free(NodeId id);
  // Makes room for `blocks` blocks, keeping those it holds.
  void Grow(NodeId id, uint32_t blocks);
  // Gives memory back when the run has become small for its class.
  void MaybeShrink(NodeId id) {
    const Node& node = nodes_[id];
    if (node.capacity_class != 0 && node.len * 8u <= node.capacity())
      MoveRun(id, ClassFor(node.len));
  }
  // Drops the first `count` blocks of the run; the rest moves into the smallest class that holds
  // it.
  void DropFront(NodeId id, uint32_t count);
  // Copies blocks [from, from + count) of one run to `at` of another; lengths stay as they are.
  void Copy(const Node& source, uint32_t from, uint32_t count, Node& target, uint32_t at);

  uint64_t size() const { return size_; }
  NodeId high_water() const { return high_water_; }
  uint64_t bytes() const;

 private:
  struct Slab {
    ReservedMemory memory;
    uint64_t high_water = 0;    // runs ever handed out
    char* free_list = nullptr;  // linked through the first bytes of each
  };

  static uint32_t ClassFor(uint32_t blocks);
  char* AllocateRun(uint32_t capacity_class);
  void FreeRun(char* run, uint32_t capacity_class);
  void MoveRun(NodeId id, uint32_t capacity_class);

  ReservedArray<Node> nodes_;
  NodeId free_node_ = kNoNode;
  NodeId high_water_ = 0;
  uint64_t size_ = 0;
  std::array<Slab, kClasses> slabs_;
};

}  // namespace flexkv
