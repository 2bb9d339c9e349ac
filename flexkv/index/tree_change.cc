// Insert, commit, erase; splits and merges of runs.
#include <algorithm>
#include <bit>

#include "absl/strings/str_cat.h"
#include "flexkv/index/tree_impl.h"

namespace flexkv {

namespace {

constexpr uint32_t kSegment = RadixTree::kAnchorBlocks;

// Lowest `count` bits, count in [0, 64].
uint64_t LowBits(uint32_t count) { return count >= 64 ? ~0ull : (1ull << count) - 1; }

}  // namespace

// --- links ---------------------------------------------------------------------------------------

NodeId& RadixTree::Impl::FirstChildOf(NodeId parent, NamespaceId ns) {
  if (parent != kNoNode) return nodes[parent].first_child;
  return roots.find(ns)->second;
}

void RadixTree::Impl::Link(NodeId id, NodeId parent) {
  Node& node = nodes[id];
  NodeId& first = FirstChildOf(parent, node.ns);
  node.parent = parent;
  node.prev_sibling = kNoNode;
  node.next_sibling = first;
  if (first != kNoNode) nodes[first].prev_sibling = id;
  first = id;
}

void RadixTree::Impl::Unlink(NodeId id) {
  const Node& node = nodes[id];
  if (node.prev_sibling != kNoNode) {
    nodes[node.prev_sibling].next_sibling = node.next_sibling;
  } else {
    FirstChildOf(node.parent, node.ns) = node.next_sibling;
  }
  if (node.next_sibling != kNoNode) nodes[node.next_sibling].prev_sibling = node.prev_sibling;
}

void RadixTree::Impl::TakePlace(NodeId id, NodeId old) {
  Node& node = nodes[id];
  const Node& before = nodes[old];
  node.parent = before.parent;
  node.prev_sibling = before.prev_sibling;
  node.next_sibling = before.next_sibling;
  if (node.prev_sibling != kNoNode) {
    nodes[node.prev_sibling].next_sibling = id;
  } else {
    FirstChildOf(node.parent, node.ns) = id;
  }
  if (node.next_sibling != kNoNode) nodes[node.next_sibling].prev_sibling = id;
}

// --- insert --------------------------------------------------------------------------------------

absl::Status RadixTree::Impl::CheckInsert(NamespaceId ns, std::span<const BlockHash> chain,
                                          uint32_t first, std::span<const SlotId> new_slots) const {
  if (!roots.contains(ns))
    return absl::NotFoundError(absl::StrCat("namespace ", ns, " is not open"));
  if (first > chain.size() || new_slots.size() > chain.size() - first) {
    return absl::InvalidArgumentError("more slots than the chain has blocks");
  }
  for (SlotId slot : new_slots) {
    if (!slots.InRange(slot))
      return absl::InvalidArgumentError(absl::StrCat("slot ", slot.value, " out of range"));
    if (slots.Holds(slot))
      return absl::InvalidArgumentError(absl::StrCat("slot ", slot.value, " in use"));
  }
  return absl::OkStatus();
}

absl::Status RadixTree::Impl::FindParent(NamespaceId ns, std::span<const BlockHash> chain,
                                         uint32_t first, WalkEnd* parent) const {
  *parent = WalkEnd{};
  if (first > 0) {
    // The chain's block before `first` being present, all before it are.
    *parent = WalkSegment(ns, chain.first(first), (first - 1) / kSegment * kSegment);
    if (parent->blocks != first)
      return absl::FailedPreconditionError("the parent block is not present");
  }
  if (first >= chain.size()) return absl::OkStatus();
  bool present = false;
  if (parent->node != kNoNode && parent->last_len < nodes[parent->node].len) {
    present = SameHash(nodes[parent->node].hashes()[parent->last_len], chain[first]);
  } else {
    const uint32_t key = HeadTable::Key(ns, chain[first]);
    present = FindChild(key, ns, chain[first], parent->node) != kNoNode;
  }
  return present ? absl::FailedPreconditionError("the first block is already present")
                 : absl::OkStatus();
}

absl::Status RadixTree::Impl::InsertPending(NamespaceId ns, std::span<const BlockHash> chain,
                                            uint32_t first, std::span<const SlotId> new_slots,
                                            const BlockAccess& access) {
  if (absl::Status status = CheckInsert(ns, chain, first, new_slots); !status.ok()) return status;
  WalkEnd parent;
  if (absl::Status status = FindParent(ns, chain, first, &parent); !status.ok()) return status;
  if (new_slots.empty()) return absl::OkStatus();

  policy->BeginAccess(access);
  NodeId tail = parent.node;
  if (tail != kNoNode && parent.last_len < nodes[tail].len)
    tail = SplitFront(tail, parent.last_len);
  // A chain that grows block by block fills its tail leaf up to the anchor instead of adding nodes.
  bool extend = tail != kNoNode && first % kSegment != 0 && nodes[tail].first_child == kNoNode;
  for (size_t done = 0; done < new_slots.size();) {
    const uint32_t depth = first + static_cast<uint32_t>(done);
    const size_t count = std::min<size_t>(kSegment - depth % kSegment, new_slots.size() - done);
    if (!extend) tail = AddNode(ns, tail, depth, static_cast<uint32_t>(count), chain[depth]);
    AppendBlocks(tail, chain.subspan(depth, count), new_slots.subspan(done, count));
    extend = false;
    done += count;
  }
  return absl::OkStatus();
}

NodeId RadixTree::Impl::AddNode(NamespaceId ns, NodeId parent, uint32_t depth, uint32_t blocks,
                                const BlockHash& head) {
  const NodeId id = nodes.Allocate(blocks);
  Node& node = nodes[id];
  node.ns = ns;
  node.depth = depth;
  node.head_key = HeadTable::Key(ns, head);
  heads.Insert(node.head_key, id);
  Link(id, parent);
  if (parent != kNoNode) UpdateEvictable(parent);
  return id;
}

const PolicyWord* RadixTree::Impl::WordBefore(const Node& node, uint32_t offset) const {
  if (offset > 0) return node.words() + (offset - 1);
  if (node.parent == kNoNode) return nullptr;
  const Node& parent = nodes[node.parent];
  return parent.words() + (parent.len - 1);
}

void RadixTree::Impl::AppendBlocks(NodeId id, std::span<const BlockHash> hashes,
                                   std::span<const SlotId> new_slots) {
  nodes.Grow(id, nodes[id].len + static_cast<uint32_t>(hashes.size()));
  Node& node = nodes[id];
  const uint32_t at = node.len;
  std::memcpy(node.hashes() + at, hashes.data(), hashes.size_bytes());
  std::memcpy(node.slots() + at, new_slots.data(), new_slots.size_bytes());
  policy->OnInsert({.words = {node.words() + at, hashes.size()},
                    .hashes = hashes,
                    .first_depth = node.depth + at,
                    .parent = WordBefore(node, at)});
  uint32_t lane = (node.depth + at) % kSegment;
  for (SlotId slot : new_slots) {
    slots.Ensure(slot);
    slots.Add(slot, id, lane++);
  }
  node.len = static_cast<uint8_t>(at + hashes.size());
  num_blocks += hashes.size();
  UpdateEvictable(id);
}

// --- pending -> arrived -> ready -----------------------------------------------------------------

bool RadixTree::Impl::Commit(SlotId slot) {
  const Place place = slots.Find(slot);
  if (place.node == kNoNode) return false;
  Node& node = nodes[place.node];
  const uint32_t offset = OffsetOf(node, place);
  if (offset < node.ready) return true;
  node.arrived |= 1ull << offset;
  if (offset != node.ready) return true;
  if (AdvanceReady(place.node) && node.all_ready()) CascadeReady(place.node);
  return true;
}

// Arrived blocks behind ready ones become ready. True when any did.
bool RadixTree::Impl::AdvanceReady(NodeId id) {
  Node& node = nodes[id];
  if (node.all_ready()) return false;
  if (node.ready == 0 && node.parent != kNoNode && !nodes[node.parent].all_ready()) return false;
  const uint32_t count = static_cast<uint32_t>(std::countr_one(node.arrived >> node.ready));
  if (count == 0) return false;
  node.ready = static_cast<uint8_t>(node.ready + count);
  node.arrived &= ~LowBits(node.ready);
  num_ready += count;
  if (node.all_ready()) UpdateEvictable(id);
  return true;
}

// The node has just become ready to its end: so may what arrived behind it.
void RadixTree::Impl::CascadeReady(NodeId id) {
  stack.clear();
  stack.push_back(id);
  while (!stack.empty()) {
    const NodeId parent = stack.back();
    stack.pop_back();
    for (NodeId child = nodes[parent].first_child; child != kNoNode;
         child = nodes[child].next_sibling) {
      if (AdvanceReady(child) && nodes[child].all_ready()) stack.push_back(child);
    }
  }
}

// --- erase ---------------------------------------------------------------------------------------

void RadixTree::Impl::Erase(SlotId slot, std::vector<SlotId>* freed) {
  const Place place = slots.Find(slot);
  if (place.node == kNoNode) return;
  const uint64_t pins_before = num_pins;
  const uint32_t offset = OffsetOf(nodes[place.node], place);
  EraseDescendants(place.node, freed);
  Truncate(place.node, offset, freed);
  Require(num_pins == pins_before, "no block of an erased subtree is pinned");
}

void RadixTree::Impl::DropNamespace(NamespaceId ns, std::vector<SlotId>* freed) {
  auto root = roots.find(ns);
  if (root == roots.end()) return;
  while (root->second != kNoNode) {
    const NodeId id = root->second;
    EraseDescendants(id, freed);
    Truncate(id, 0, freed);
  }
  roots.erase(root);
}

void RadixTree::Impl::EraseDescendants(NodeId id, std::vector<SlotId>* freed) {
  // Down to a leaf, drop it, up again: no stack, each node is reached once on the way down.
  NodeId at = id;
  for (;;) {
    while (nodes[at].first_child != kNoNode) at = nodes[at].first_child;
    if (at == id) return;
    const NodeId parent = nodes[at].parent;
    Node& node = nodes[at];
    nodes[parent].first_child = node.next_sibling;  // `at` is always its parent's first child
    if (node.next_sibling != kNoNode) nodes[node.next_sibling].prev_sibling = kNoNode;
    for (uint32_t i = 0; i < node.len; ++i) {
      num_pins -= slots.Remove(node.slots()[i]);
      freed->push_back(node.slots()[i]);
    }
    policy->OnDrop({node.words(), node.len}, node.depth);
    num_blocks -= node.len;
    num_ready -= node.ready;
    RemoveEvictable(at);
    heads.Erase(node.head_key, at);
    nodes.Free(at);
    at = parent;
  }
}

void RadixTree::Impl::Truncate(NodeId id, uint32_t keep, std::vector<SlotId>* freed) {
  Node& node = nodes[id];
  for (uint32_t i = keep; i < node.len; ++i) {
    const SlotId slot = node.slots()[i];
    const uint32_t pins = slots.Remove(slot);
    node.pins -= pins;
    num_pins -= pins;
    freed->push_back(slot);
  }
  if (keep < node.len) policy->OnDrop({node.words() + keep, node.len - keep}, node.depth + keep);
  num_blocks -= node.len - keep;
  if (node.ready > keep) {
    num_ready -= node.ready - keep;
    node.ready = static_cast<uint8_t>(keep);
  }
  node.len = static_cast<uint8_t>(keep);
  node.arrived &= LowBits(keep);
  if (keep == 0) {
    RemoveNode(id);
    return;
  }
  nodes.MaybeShrink(id);
  UpdateEvictable(id);
}

void RadixTree::Impl::RemoveNode(NodeId id) {
  const NodeId parent = nodes[id].parent;
  RemoveEvictable(id);
  heads.Erase(nodes[id].head_key, id);
  Unlink(id);
  nodes.Free(id);
  if (parent == kNoNode) return;
  UpdateEvictable(parent);
  MaybeMerge(parent);
}

// --- split and merge -----------------------------------------------------------------------------

NodeId RadixTree::Impl::SplitFront(NodeId id, uint32_t count) {
  const NodeId front_id = nodes.Allocate(count);
  Node& front = nodes[front_id];
  Node& back = nodes[id];
  front.ns = back.ns;
  front.depth = back.depth;
  front.head_key = back.head_key;
  front.len = static_cast<uint8_t>(count);
  front.ready = std::min(back.ready, front.len);
  front.arrived = back.arrived & LowBits(count);
  nodes.Copy(back, 0, count, front, 0);
  TakePlace(front_id, id);
  heads.Replace(front.head_key, id, front_id);
  for (uint32_t i = 0; i < count; ++i) {
    const SlotId slot = front.slots()[i];
    slots.Move(slot, front_id);
    if (back.pins != 0) front.pins += slots.Pins(slot);
  }

  back.pins -= front.pins;
  back.depth += count;
  back.ready = static_cast<uint8_t>(back.ready - front.ready);
  back.arrived = count >= 64 ? 0 : back.arrived >> count;
  nodes.DropFront(id, count);
  back.head_key = HeadTable::Key(back.ns, back.hashes()[0]);
  heads.Insert(back.head_key, id);
  back.parent = front_id;
  back.prev_sibling = back.next_sibling = kNoNode;
  front.first_child = id;
  return front_id;  // has a child, so it is not in the eviction order; the back's tail is what it
                    // was
}

void RadixTree::Impl::MaybeMerge(NodeId id) {
  Node& front = nodes[id];
  const NodeId child = front.first_child;
  if (child == kNoNode || nodes[child].next_sibling != kNoNode) return;
  Node& back = nodes[child];
  if (back.depth % kSegment == 0) return;

  // The child keeps its number, so that its own children and its place in the eviction order stay
  // valid.
  heads.Erase(back.head_key, child);
  heads.Replace(front.head_key, id, child);
  for (uint32_t i = 0; i < front.len; ++i) slots.Move(front.slots()[i], child);
  // The front's run takes in the back's blocks, then changes owner.
  nodes.Grow(id, front.len + back.len);
  nodes.Copy(back, 0, back.len, front, front.len);
  std::swap(front.run, back.run);
  std::swap(front.capacity_class, back.capacity_class);
  back.arrived = front.arrived | (back.arrived << front.len);
  back.ready = static_cast<uint8_t>(
      front.ready + back.ready);  // not 0 only behind a front that is ready to its end
  back.len = static_cast<uint8_t>(front.len + back.len);
  back.depth = front.depth;
  back.head_key = front.head_key;
  back.pins += front.pins;
  TakePlace(child, id);
  nodes.Free(id);
}

}  // namespace flexkv
