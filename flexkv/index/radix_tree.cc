// The public face: see tree_impl.h for how it works and where the parts lie.
#include "flexkv/index/radix_tree.h"

#include <algorithm>
#include <utility>

#include "flexkv/index/tree_impl.h"

namespace flexkv {

namespace {

// Slots of the three tiers name different blocks; the reservations below are address space only.
uint64_t MaxBlocks(uint32_t max_slots) { return 3ull * max_slots; }

uint32_t NumQueues(const EvictionPolicy* policy) {
  Require(policy != nullptr, "an eviction policy is given");
  return policy->num_queues();
}

}  // namespace

RadixTree::Impl::Impl(Options options)
    : policy(std::move(options.policy)),
      nodes(MaxBlocks(options.max_slots)),
      slots(options.max_slots),
      evictable(MaxBlocks(options.max_slots) + 4, NumQueues(policy.get())) {
  Require(options.max_slots <= SlotId::kMaxIndex + 1, "slot indexes fit their 30 bits");
}

RadixTree::RadixTree(Options options) : impl_(std::make_unique<Impl>(std::move(options))) {}
RadixTree::~RadixTree() = default;

void RadixTree::AddNamespace(NamespaceId ns) { impl_->roots.try_emplace(ns, kNoNode); }

void RadixTree::DropNamespace(NamespaceId ns, std::vector<SlotId>* freed) {
  impl_->DropNamespace(ns, freed);
}

PrefixMatch RadixTree::Match(NamespaceId ns, std::span<const BlockHash> chain,
                             std::span<SlotId> slots, const BlockAccess& access) {
  return impl_->Match(ns, chain, slots, access);
}

uint32_t RadixTree::HitLength(NamespaceId ns, std::span<const BlockHash> chain) const {
  return impl_->FindPrefix<true>(ns, chain).blocks;
}

PrefixMatch RadixTree::Find(NamespaceId ns, std::span<const BlockHash> chain) const {
  const Impl::WalkEnd end = impl_->FindPrefix<true>(ns, chain);
  if (end.blocks == 0) return {};
  return {end.blocks, impl_->nodes[end.node].slots()[end.last_len - 1]};
}

uint32_t RadixTree::PresentLength(NamespaceId ns, std::span<const BlockHash> chain) const {
  return impl_->FindPrefix<false>(ns, chain).blocks;
}

absl::Status RadixTree::InsertPending(NamespaceId ns, std::span<const BlockHash> chain,
                                      uint32_t first, std::span<const SlotId> slots,
                                      const BlockAccess& access) {
  return impl_->InsertPending(ns, chain, first, slots, access);
}

bool RadixTree::Commit(SlotId slot) { return impl_->Commit(slot); }

void RadixTree::Erase(SlotId slot, std::vector<SlotId>* freed) { impl_->Erase(slot, freed); }

SlotId RadixTree::EvictOne(Tier tier) { return impl_->EvictOne(tier); }

void RadixTree::Rename(SlotId from, SlotId to) { impl_->Rename(from, to); }

bool RadixTree::SubtreeInUse(SlotId slot) const { return impl_->SubtreeInUse(slot); }

NamespaceId RadixTree::Pin(SlotId slot) { return impl_->Pin(slot); }

void RadixTree::Unpin(NamespaceId ns, SlotId slot) { impl_->Unpin(ns, slot); }

SlotId RadixTree::Ancestor(SlotId slot, uint32_t steps) const {
  const Place place = impl_->Held(slot);
  NodeId id = place.node;
  uint32_t offset = Impl::OffsetOf(impl_->nodes[id], place);
  while (steps > offset) {
    steps -= offset + 1;
    id = impl_->nodes[id].parent;
    if (id == kNoNode) return kNoSlot;
    offset = impl_->nodes[id].len - 1u;
  }
  return impl_->nodes[id].slots()[offset - steps];
}

void RadixTree::NoteCapacity(uint64_t blocks_used, uint64_t blocks_total) {
  impl_->policy->OnCapacity(blocks_used, blocks_total);
}

uint32_t RadixTree::Pins(SlotId slot) const { return impl_->slots.Pins(slot); }

bool RadixTree::Contains(SlotId slot) const { return impl_->slots.Holds(slot); }

BlockHash RadixTree::HashOf(SlotId slot) const {
  const Place place = impl_->Held(slot);
  const Node& node = impl_->nodes[place.node];
  return node.hashes()[Impl::OffsetOf(node, place)];
}

bool RadixTree::IsReady(SlotId slot) const {
  const Place place = impl_->slots.Find(slot);
  if (place.node == kNoNode) return false;
  const Node& node = impl_->nodes[place.node];
  return Impl::OffsetOf(node, place) < node.ready;
}

uint32_t RadixTree::DepthOf(SlotId slot) const {
  const Place place = impl_->Held(slot);
  const Node& node = impl_->nodes[place.node];
  return node.depth + Impl::OffsetOf(node, place);
}

uint64_t RadixTree::ScoreOf(SlotId slot) const {
  const Place place = impl_->Held(slot);
  const Node& node = impl_->nodes[place.node];
  const uint32_t offset = Impl::OffsetOf(node, place);
  return impl_->policy->Score(node.words()[offset], node.depth + offset);
}

std::optional<uint64_t> RadixTree::LowestScore(Tier tier) const { return impl_->LowestScore(tier); }

void RadixTree::PathSlots(SlotId last, uint32_t count, std::vector<SlotId>* slots) const {
  slots->resize(count);
  if (count == 0) return;
  const Place place = impl_->Held(last);
  NodeId id = place.node;
  uint32_t blocks =
      Impl::OffsetOf(impl_->nodes[id], place) + 1;  // of the node that lie on the path
  for (uint32_t end = count;;) {
    const Node& node = impl_->nodes[id];
    const uint32_t taken = std::min(blocks, end);
    end -= taken;
    std::memcpy(slots->data() + end, node.slots() + (blocks - taken), taken * sizeof(SlotId));
    if (end == 0) return;
    id = node.parent;
    Require(id != kNoNode, "the path is as long as asked for");
    blocks = impl_->nodes[id].len;
  }
}

RadixTreeStats RadixTree::stats() const {
  return {.blocks = impl_->num_blocks,
          .ready = impl_->num_ready,
          .nodes = impl_->nodes.size(),
          .pinned = impl_->num_pins,
          .evictable_leaves = impl_->evictable.size(),
          .bytes = impl_->Bytes()};
}

absl::Status RadixTree::CheckInvariants() const { return impl_->CheckInvariants(); }

}  // namespace flexkv
