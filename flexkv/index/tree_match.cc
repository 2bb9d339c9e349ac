// Lookups.
//
// Every anchor depth on a path starts a node, so the segments of a chain can be looked up before it
// is known whether their parents match. Match resolves up to kLanes segments in lockstep: all head
// cells are prefetched, then all node headers, then all runs, so that the memory latencies of the
// segments overlap (AMAC style). A second pass goes over the nodes in order, verifies that each is
// the child of the one before, copies slots and touches policy words; it stops at the first that is
// not.
//
// Inside a run, the chain guarantees that an equal last hash means an equal run; a partial run is
// bisected. A chain that breaks this guarantee (no honest client makes one) gets some answer made
// of real nodes linked parent to child, and never an out-of-range access.
#include <algorithm>
#include <array>

#include "flexkv/index/tree_impl.h"

namespace flexkv {

namespace {

constexpr uint32_t kLanes = 8;  // segments that Match looks up at once
constexpr uint32_t kProbes =
    12;  // anchors that a round of the bisection looks up at once: 128 in two rounds
constexpr uint32_t kSegment = RadixTree::kAnchorBlocks;
constexpr uint32_t kGrid = 8;  // see CommonPrefix

// Length of the common prefix of a run and a chain, both at least `limit` > 0 long, whose first
// blocks are equal. A run that differs is searched on a grid of eight blocks first, whose lines are
// fetched together, then inside one cell of it: two memory latencies instead of six.
uint32_t CommonPrefix(const BlockHash* run, const BlockHash* chain, uint32_t limit) {
  if (SameHash(run[limit - 1], chain[limit - 1])) return limit;
  for (uint32_t i = kGrid - 1; i < limit - 1; i += kGrid) __builtin_prefetch(run + i);
  uint32_t low = 1;           // run[low - 1] is equal
  uint32_t high = limit - 1;  // run[high] differs
  for (uint32_t i = kGrid - 1; i < high; i += kGrid) {
    if (SameHash(run[i], chain[i])) {
      low = i + 1;
    } else {
      high = i;
    }
  }
  for (uint32_t i = low; i < high; i += 2) __builtin_prefetch(run + i);
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (SameHash(run[middle], chain[middle])) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void PrefetchRun(const Node& node, uint32_t blocks) {
  __builtin_prefetch(node.hashes());
  __builtin_prefetch(node.hashes() + (blocks - 1));
}

// What CommonPrefix reads first when the run's end may differ.
void PrefetchGrid(const Node& node) {
  PrefetchRun(node, node.len);
  for (uint32_t i = kGrid - 1; i < node.len; i += kGrid) __builtin_prefetch(node.hashes() + i);
}

void PrefetchPayload(const Node& node, uint32_t blocks) {
  const char* slots = reinterpret_cast<const char*>(node.slots());
  for (uint32_t i = 0; i < blocks * sizeof(SlotId); i += 64) __builtin_prefetch(slots + i);
  const char* words = reinterpret_cast<const char*>(node.words());
  for (uint32_t i = 0; i < blocks * sizeof(PolicyWord); i += 64) __builtin_prefetch(words + i, 1);
}

}  // namespace

struct RadixTree::Impl::Lane {
  void Start(uint32_t at, size_t chain_blocks) {
    pos = at;
    end = static_cast<uint32_t>(std::min<size_t>(at + kSegment, chain_blocks));
    hops = 0;
    active = true;
  }
  void Key(const Impl& tree, NamespaceId ns, std::span<const BlockHash> chain) {
    key = HeadTable::Key(ns, chain[pos]);
    tree.heads.Prefetch(key);
  }
  void PrefetchNode(const Impl& tree) {
    guess = tree.heads.Guess(key);
    if (guess == kNoNode) {
      active = false;
    } else {
      tree.nodes.Prefetch(guess);
    }
  }
  template <bool kPayload>
  void Prefetch(const Impl& tree) const {
    const Node& node = tree.nodes[guess];
    const uint32_t blocks = std::min<uint32_t>(node.len, end - pos);
    if (blocks == 0) return;
    PrefetchRun(node, blocks);
    if constexpr (kPayload) PrefetchPayload(node, blocks);
  }
  // Follows the chain through one more node.
  template <bool kReadyOnly>
  void Step(const Impl& tree, NamespaceId ns, std::span<const BlockHash> chain) {
    active = false;
    const NodeId id = hops == 0 ? tree.FindHead(key, ns, chain[pos], pos)
                                : tree.FindChild(key, ns, chain[pos], path[hops - 1]);
    if (id == kNoNode) return;
    const Node& node = tree.nodes[id];
    const uint32_t limit = std::min<uint32_t>(kReadyOnly ? node.ready : node.len, end - pos);
    if (limit == 0) return;
    last_len = CommonPrefix(node.hashes(), &chain[pos], limit);
    path[hops++] = id;
    pos += last_len;
    active = last_len == node.len && pos < end;
  }

  uint32_t pos;       // next block to look up
  uint32_t end;       // of the segment or the chain
  uint32_t key;       // of chain[pos]
  NodeId guess;       // what the head table proposes for it
  uint32_t hops;      // nodes found; all but the last match completely
  uint32_t last_len;  // blocks of the last one that match
  bool active;
  std::array<NodeId, kSegment> path;
};

NodeId RadixTree::Impl::FindHead(uint32_t key, NamespaceId ns, const BlockHash& hash,
                                 uint32_t depth) const {
  return heads.Find(key, [&](NodeId id) {
    const Node& node = nodes[id];
    return node.ns == ns && node.depth == depth && SameHash(node.hashes()[0], hash);
  });
}

NodeId RadixTree::Impl::FindChild(uint32_t key, NamespaceId ns, const BlockHash& hash,
                                  NodeId parent) const {
  return heads.Find(key, [&](NodeId id) {
    const Node& node = nodes[id];
    return node.parent == parent && node.ns == ns && SameHash(node.hashes()[0], hash);
  });
}

// Looks up the segments of `lanes` in lockstep until each has ended.
void RadixTree::Impl::ResolveLanes(NamespaceId ns, std::span<const BlockHash> chain,
                                   std::span<Lane> lanes) const {
  for (bool running = true; running;) {
    for (Lane& lane : lanes) {
      if (lane.active) lane.Key(*this, ns, chain);
    }
    for (Lane& lane : lanes) {
      if (lane.active) lane.PrefetchNode(*this);
    }
    for (Lane& lane : lanes) {
      if (lane.active) lane.Prefetch<true>(*this);
    }
    running = false;
    for (Lane& lane : lanes) {
      if (lane.active) lane.Step<true>(*this, ns, chain);
      running |= lane.active;
    }
  }
}

// Appends the lane's nodes to the match: touches them and copies their slots. False at the first
// that is not the child of the one before.
bool RadixTree::Impl::TakeLane(const Lane& lane, NodeId* previous, uint32_t touched_before,
                               PrefixMatch* match, std::span<SlotId> out) {
  for (uint32_t hop = 0; hop < lane.hops; ++hop) {
    const NodeId id = lane.path[hop];
    const Node& node = nodes[id];
    if (node.parent != *previous) return false;
    const uint32_t blocks = hop + 1 == lane.hops ? lane.last_len : node.len;
    const uint32_t known = touched_before <= node.depth ? 0 : touched_before - node.depth;
    if (known < blocks) policy->OnTouch({node.words() + known, blocks - known}, node.depth + known);
    if (match->num_blocks < out.size()) {
      const size_t room = std::min<size_t>(blocks, out.size() - match->num_blocks);
      std::memcpy(&out[match->num_blocks], node.slots(), room * sizeof(SlotId));
    }
    match->num_blocks += blocks;
    match->last = node.slots()[blocks - 1];
    if (blocks == node.len && node.first_child == kNoNode)
      UpdateEvictable(id);  // its tail's score rose
    *previous = id;
  }
  return true;
}

PrefixMatch RadixTree::Impl::Match(NamespaceId ns, std::span<const BlockHash> chain,
                                   std::span<SlotId> out, const BlockAccess& access) {
  policy->BeginAccess(access);
  PrefixMatch match;
  // Traffic without reuse pays for one probe.
  if (chain.empty() || heads.Guess(HeadTable::Key(ns, chain[0])) == kNoNode) return match;
  NodeId previous = kNoNode;
  std::array<Lane, kLanes> lanes;
  for (uint32_t start = 0; start < chain.size();) {
    uint32_t count = 0;
    for (; count < kLanes && start + count * kSegment < chain.size(); ++count) {
      lanes[count].Start(start + count * kSegment, chain.size());
    }
    ResolveLanes(ns, chain, {lanes.data(), count});
    for (uint32_t i = 0; i < count; ++i) {
      if (!TakeLane(lanes[i], &previous, access.touched_before, &match, out)) return match;
      if (match.num_blocks != start + (i + 1) * kSegment)
        return match;  // ended inside this segment
    }
    start += count * kSegment;
  }
  return match;
}

RadixTree::Impl::WalkEnd RadixTree::Impl::WalkSegment(NamespaceId ns,
                                                      std::span<const BlockHash> chain,
                                                      uint32_t start) const {
  Lane lane;
  lane.Start(start, chain.size());
  while (lane.active) {
    lane.Key(*this, ns, chain);
    lane.Step<false>(*this, ns, chain);
  }
  if (lane.hops == 0) return {start, kNoNode, 0};
  return {lane.pos, lane.path[lane.hops - 1], lane.last_len};
}

// How many anchors of the chain hit. Each round probes several between the last known hit and the
// first known miss, their memory latencies overlapped like those of Match's lanes. Unless kExact, a
// cell of the head table under the chain's 32-bit key counts as a hit, its node unread. So a miss
// is always real; a false hit (an equal key, or a node that is not ready) shows when the caller
// walks on from the last one.
template <bool kReadyOnly, bool kExact>
uint32_t RadixTree::Impl::CountAnchors(NamespaceId ns, std::span<const BlockHash> chain) const {
  std::array<uint32_t, kProbes> anchors;
  std::array<uint32_t, kProbes> keys;
  const auto hits = [&](uint32_t key, uint32_t depth) {
    if constexpr (!kExact) return heads.Guess(key) != kNoNode;
    const NodeId id = FindHead(key, ns, chain[depth], depth);
    return id != kNoNode && (!kReadyOnly || nodes[id].ready > 0);
  };
  uint32_t low = 0;  // the first `low` anchors hit; those from `high` on miss
  uint32_t high = static_cast<uint32_t>((chain.size() + kSegment - 1) / kSegment);
  while (low < high) {
    const uint32_t width = high - low;
    const uint32_t count = std::min(width, kProbes);
    for (uint32_t i = 0; i < count; ++i) {
      anchors[i] = low + static_cast<uint32_t>(static_cast<uint64_t>(width) * i / count);
      __builtin_prefetch(&chain[anchors[i] * kSegment]);
    }
    for (uint32_t i = 0; i < count; ++i) {
      keys[i] = HeadTable::Key(ns, chain[anchors[i] * kSegment]);
      heads.Prefetch(keys[i]);
    }
    for (uint32_t i = 0; i < count; ++i) {
      if (!hits(keys[i], anchors[i] * kSegment)) {
        high = anchors[i];
        break;
      }
      low = anchors[i] + 1;
    }
  }
  return low;
}

template <bool kReadyOnly>
RadixTree::Impl::WalkEnd RadixTree::Impl::FindPrefix(NamespaceId ns,
                                                     std::span<const BlockHash> chain) const {
  uint32_t anchors = CountAnchors<kReadyOnly, false>(ns, chain);
  for (bool exact : {false, true}) {
    if (exact) anchors = CountAnchors<kReadyOnly, true>(ns, chain);
    if (anchors == 0) return {};
    Lane lane;
    lane.Start((anchors - 1) * kSegment, chain.size());
    lane.Key(*this, ns, chain);
    const NodeId guess = heads.Guess(lane.key);
    if (guess != kNoNode) PrefetchGrid(nodes[guess]);
    lane.Step<kReadyOnly>(*this, ns, chain);
    while (lane.active) {
      lane.Key(*this, ns, chain);
      lane.Step<kReadyOnly>(*this, ns, chain);
    }
    if (lane.hops > 0) return {lane.pos, lane.path[lane.hops - 1], lane.last_len};
  }
  return {};
}

template RadixTree::Impl::WalkEnd RadixTree::Impl::FindPrefix<true>(
    NamespaceId, std::span<const BlockHash>) const;
template RadixTree::Impl::WalkEnd RadixTree::Impl::FindPrefix<false>(
    NamespaceId, std::span<const BlockHash>) const;

}  // namespace flexkv
