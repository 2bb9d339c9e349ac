#include "flexkv/index/node_store.h"

#include <algorithm>
#include <bit>

namespace flexkv {
namespace {

uint64_t RunBytes(uint32_t capacity_class) {
  const uint64_t bytes = (4ull << capacity_class) * NodeStore::kBytesPerBlock;
  return (bytes + 63) / 64 * 64;  // whole cache lines
}

}  // namespace

NodeStore::NodeStore(uint64_t max_blocks) {
  // During a split or a merge one node and two runs are held beyond those that hold blocks.
  constexpr uint64_t kSlack = 4;
  nodes_.Reserve(max_blocks + kSlack);
  for (uint32_t c = 0; c < kClasses; ++c) {
    // MaybeShrink keeps more than an eighth of a class's capacity in use.
    const uint64_t fewest_blocks = c == 0 ? 1 : (4ull << c) / 8 + 1;
    slabs_[c].memory.Reserve((max_blocks / fewest_blocks + kSlack) * RunBytes(c));
  }
}

uint32_t NodeStore::ClassFor(uint32_t blocks) {
  return blocks <= 4 ? 0 : static_cast<uint32_t>(std::bit_width(blocks - 1)) - 2;
}

char* NodeStore::AllocateRun(uint32_t capacity_class) {
  Slab& slab = slabs_[capacity_class];
  if (slab.free_list != nullptr) {
    char* run = slab.free_list;
    std::memcpy(&slab.free_list, run, sizeof(slab.free_list));
    return run;
  }
  const uint64_t bytes = RunBytes(capacity_class);
  slab.memory.Ensure((slab.high_water + 1) * bytes);
  return slab.memory.data() + bytes * slab.high_water++;
}

void NodeStore::FreeRun(char* run, uint32_t capacity_class) {
  Slab& slab = slabs_[capacity_class];
  std::memcpy(run, &slab.free_list, sizeof(slab.free_list));
  slab.free_list = run;
}

NodeId NodeStore::Allocate(uint32_t blocks) {
  NodeId id = free_node_;
  if (id != kNoNode) {
    free_node_ = nodes_[id].next_sibling;
  } else {
    id = high_water_++;
    nodes_.Ensure(high_water_);
  }
  Node& node = nodes_[id];
  std::memset(static_cast<void*>(&node), 0, sizeof(node));
  node.parent = node.first_child = node.next_sibling = node.prev_sibling = kNoNode;
  node.capacity_class = static_cast<uint8_t>(ClassFor(blocks));
  node.run = AllocateRun(node.capacity_class);
  node.used = 1;
  ++size_;
  return id;
}

void NodeStore::Free(NodeId id) {
  Node& node = nodes_[id];
  FreeRun(node.run, node.capacity_class);
  node.used = 0;
  node.next_sibling = free_node_;
  free_node_ = id;
  --size_;
}

void NodeStore::Copy(const Node& source, uint32_t from, uint32_t count, Node& target, uint32_t at) {
  std::memcpy(target.hashes() + at, source.hashes() + from, count * sizeof(BlockHash));
  std::memcpy(target.words() + at, source.words() + from, count * sizeof(PolicyWord));
  std::memcpy(target.slots() + at, source.slots() + from, count * sizeof(SlotId));
}

void NodeStore::MoveRun(NodeId id, uint32_t capacity_class) {
  Node& node = nodes_[id];
  const Node before = node;
  node.capacity_class = static_cast<uint8_t>(capacity_class);
  node.run = AllocateRun(capacity_class);
  Copy(before, 0, before.len, node, 0);
  FreeRun(before.run, before.capacity_class);
}

void NodeStore::Grow(NodeId id, uint32_t blocks) {
  if (blocks > nodes_[id].capacity()) MoveRun(id, ClassFor(blocks));
}

void NodeStore::DropFront(NodeId id, uint32_t count) {
  Node& node = nodes_[id];
  const Node before = node;
  node.len = static_cast<uint8_t>(before.len - count);
  node.capacity_class = static_cast<uint8_t>(ClassFor(node.len));
  node.run = AllocateRun(node.capacity_class);
  Copy(before, count, node.len, node, 0);
  FreeRun(before.run, before.capacity_class);
}

uint64_t NodeStore::bytes() const {
  uint64_t bytes = nodes_.bytes();
  for (const Slab& slab : slabs_) bytes += slab.memory.committed();
  return bytes;
}

}  // namespace flexkv
