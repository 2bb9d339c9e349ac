// Walks everything and compares it with what the header promises. For tests.
#include "absl/strings/str_cat.h"
#include "flexkv/index/tree_impl.h"

namespace flexkv {

namespace {

absl::Status Broken(NodeId id, const char* what) {
  return absl::InternalError(absl::StrCat("node ", id, ": ", what));
}

}  // namespace

absl::Status RadixTree::Impl::CheckBlocks(NodeId id, RadixTreeStats* sums) const {
  const Node& node = nodes[id];
  uint32_t pins = 0;
  for (uint32_t i = 0; i < node.len; ++i) {
    const SlotId slot = node.slots()[i];
    const Place place = slots.Find(slot);
    if (place.node != id || OffsetOf(node, place) != i)
      return Broken(id, "the slot map points elsewhere");
    if (slots.Pins(slot) != 0 && i >= node.ready)
      return Broken(id, "a block that is not ready is pinned");
    pins += slots.Pins(slot);
  }
  if (pins != node.pins) return Broken(id, "pins do not add up");
  sums->blocks += node.len;
  sums->ready += node.ready;
  sums->pinned += pins;
  return absl::OkStatus();
}

absl::Status RadixTree::Impl::CheckNode(NodeId id, RadixTreeStats* sums) const {
  const Node& node = nodes[id];
  const Node* parent = node.parent == kNoNode ? nullptr : &nodes[node.parent];
  ++sums->nodes;
  if (!node.used) return Broken(id, "linked but free");
  if (node.len == 0 || node.len > node.capacity()) return Broken(id, "length out of range");
  if (node.len > kAnchorBlocks - node.depth % kAnchorBlocks) return Broken(id, "crosses an anchor");
  if (node.capacity_class != 0 && node.len * 8u <= node.capacity())
    return Broken(id, "run too large for its blocks");
  if (node.depth != (parent == nullptr ? 0 : parent->end()))
    return Broken(id, "depth does not follow its parent");
  if (parent != nullptr && parent->ns != node.ns)
    return Broken(id, "namespace differs from its parent's");
  if (node.ready > node.len) return Broken(id, "more ready than blocks");
  if (node.ready > 0 && parent != nullptr && !parent->all_ready())
    return Broken(id, "ready behind what is not");
  if (node.len < 64 && node.arrived >> node.len != 0) return Broken(id, "arrived beyond its end");
  if (node.ready > 0 && node.arrived << (64 - node.ready) != 0)
    return Broken(id, "ready and arrived at once");
  const bool parent_ready = parent == nullptr || parent->all_ready();
  if (parent_ready && !node.all_ready() && ((node.arrived >> node.ready) & 1) != 0) {
    return Broken(id, "arrived behind what is ready, but not ready");
  }
  if (node.head_key != HeadTable::Key(node.ns, node.hashes()[0]))
    return Broken(id, "stale head key");
  if (heads.Find(node.head_key, [id](NodeId found) { return found == id; }) != id) {
    return Broken(id, "not in the head table");
  }
  const bool evictable_leaf = Evictable(node);
  const Tier tail = node.slots()[node.len - 1].tier();
  if (evictable_leaf != evictable.Contains(id))
    return Broken(id, "wrongly in or out of the eviction order");
  if (evictable_leaf) {
    const PolicyWord word = node.words()[node.len - 1];
    const uint32_t depth = node.end() - 1;
    const uint32_t queue = policy->QueueOf(word, depth);
    if (queue >= evictable.num_queues()) return Broken(id, "its queue is out of range");
    if (!evictable.StandsIn(id, tail, queue, policy->Score(word, depth)))
      return Broken(id, "in a wrong queue, or its stored score is above the real one");
  }
  for (NodeId child = node.first_child, prev = kNoNode; child != kNoNode;
       child = nodes[child].next_sibling) {
    if (nodes[child].parent != id || nodes[child].prev_sibling != prev)
      return Broken(child, "links disagree");
    prev = child;
  }
  return CheckBlocks(id, sums);
}

absl::Status RadixTree::Impl::CheckInvariants() const {
  RadixTreeStats sums;
  for (const auto& [ns, first] : roots) {
    for (NodeId root = first, prev = kNoNode; root != kNoNode; root = nodes[root].next_sibling) {
      const Node& node = nodes[root];
      if (node.parent != kNoNode || node.ns != ns || node.prev_sibling != prev)
        return Broken(root, "bad root links");
      prev = root;
      for (NodeId id = root; id != kNoNode; id = NextInSubtree(root, id)) {
        if (absl::Status status = CheckNode(id, &sums); !status.ok()) return status;
      }
    }
  }
  if (sums.nodes != nodes.size() || sums.nodes != heads.size())
    return absl::InternalError("nodes are lost");
  if (sums.blocks != num_blocks || sums.blocks != slots.CountHeld())
    return absl::InternalError("blocks are lost");
  if (sums.ready != num_ready) return absl::InternalError("the count of ready blocks is off");
  if (sums.pinned != num_pins) return absl::InternalError("the count of pins is off");
  if (!evictable.Holds()) return absl::InternalError("an eviction heap is out of order");
  return absl::OkStatus();
}

uint64_t RadixTree::Impl::Bytes() const {
  return nodes.bytes() + heads.bytes() + slots.bytes() + evictable.bytes() + policy->bytes() +
         roots.capacity() * (sizeof(*roots.begin()) + 1) + stack.capacity() * sizeof(NodeId);
}

}  // namespace flexkv
