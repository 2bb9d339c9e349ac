// Puts what the devices held into the tree: blocks find their parents by identity, so whole chains
// come back and nothing else does. Blocks of an earlier epoch, without a parent, or stored twice
// are freed.
//
// The namespaces they belong to have no name yet: an engine whose namespace has the same digest
// takes one over when it attaches.
#include <algorithm>
#include <utility>

#include "absl/container/flat_hash_set.h"
#include "absl/hash/hash.h"
#include "flexkv/cache/manager_state.h"
#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv {
namespace {

struct Found {
  SlotId slot;
  uint32_t depth = 0;
  BlockHash hash, parent;
};

constexpr uint32_t kNobody = UINT32_MAX;

// Chains of one namespace, by links between the blocks found.
struct Forest {
  std::vector<Found> blocks;  // those without a parent, or twice there, have no links
  std::vector<uint32_t> first_child, next_sibling;
  std::vector<uint32_t> roots;
  std::vector<SlotId> unusable;

  explicit Forest(std::vector<Found> found);
};

struct Position {
  BlockHash hash;
  uint32_t depth = 0;
};

// Blocks by their position, as a set of their numbers: a million of them need 10 MB, not 100.
struct PositionHash {
  using is_transparent = void;
  const std::vector<Found>* blocks;
  size_t operator()(const Position& position) const {
    return absl::HashOf(position.hash.words[0], position.hash.words[1], position.depth);
  }
  size_t operator()(uint32_t index) const {
    return (*this)(Position{(*blocks)[index].hash, (*blocks)[index].depth});
  }
};
struct PositionEq {
  using is_transparent = void;
  const std::vector<Found>* blocks;
  bool operator()(uint32_t a, uint32_t b) const { return a == b || (*this)(a, At(b)); }
  bool operator()(uint32_t a, const Position& b) const {
    return (*blocks)[a].hash == b.hash && (*blocks)[a].depth == b.depth;
  }
  Position At(uint32_t index) const { return {(*blocks)[index].hash, (*blocks)[index].depth}; }
};

// Numbers of the blocks, parents before children. A block deeper than there are blocks has none.
std::vector<uint32_t> ByDepth(const std::vector<Found>& found) {
  const auto count = static_cast<uint32_t>(found.size());
  std::vector<uint32_t> next(size_t{count} + 2);
  const auto depth = [&](const Found& block) { return std::min(block.depth, count); };
  for (const Found& block : found) ++next[depth(block) + 1];
  for (size_t i = 1; i < next.size(); ++i) next[i] += next[i - 1];
  std::vector<uint32_t> order(count);
  for (uint32_t i = 0; i < count; ++i) order[next[depth(found[i])]++] = i;
  return order;
}

Forest::Forest(std::vector<Found> found)
    : blocks(std::move(found)),
      first_child(blocks.size(), kNobody),
      next_sibling(blocks.size(), kNobody) {
  absl::flat_hash_set<uint32_t, PositionHash, PositionEq> at(blocks.size(), PositionHash{&blocks},
                                                             PositionEq{&blocks});
  for (const uint32_t index : ByDepth(blocks)) {
    const Found& block = blocks[index];
    uint32_t parent = kNobody;
    if (block.depth > 0) {
      auto it = at.find(Position{block.parent, block.depth - 1});
      if (it != at.end()) parent = *it;
    }
    const bool orphan = block.depth > 0 && parent == kNobody;
    if (orphan || !at.insert(index).second) {
      unusable.push_back(block.slot);
    } else if (parent == kNobody) {
      roots.push_back(index);
    } else {
      next_sibling[index] = std::exchange(first_child[parent], index);
    }
  }
}

// Runs of blocks without a branch go into the tree in one piece each.
uint64_t Insert(const Forest& forest, NamespaceId ns, SizeClass* store,
                std::vector<SlotId>* refused) {
  uint64_t inserted = 0;
  std::vector<BlockHash> chain;
  std::vector<SlotId> run;
  std::vector<uint32_t> open = forest.roots;
  while (!open.empty()) {
    uint32_t at = open.back();
    open.pop_back();
    const uint32_t first = forest.blocks[at].depth;
    chain.resize(first);
    run.clear();
    for (;;) {
      chain.push_back(forest.blocks[at].hash);
      run.push_back(forest.blocks[at].slot);
      const uint32_t child = forest.first_child[at];
      if (child == kNobody || forest.next_sibling[child] != kNobody) break;
      at = child;
    }
    if (!store->Insert(ns, chain, first, run).ok()) {
      refused->insert(refused->end(), run.begin(), run.end());
      for (uint32_t next = forest.first_child[at]; next != kNobody;
           next = forest.next_sibling[next]) {
        open.push_back(next);  // refused in turn: their parent is not there
      }
      continue;
    }
    for (SlotId slot : run) store->tree().Commit(slot);
    inserted += run.size();
    for (uint32_t next = forest.first_child[at]; next != kNobody; next = forest.next_sibling[next])
      open.push_back(next);
  }
  return inserted;
}

}  // namespace

void CacheManager::Impl::AdoptSegment(uint32_t device, const SsdSegmentInfo& segment) {
  const auto drop = [&] { DropUnplaced(device, segment.id, ssd::SegmentFileBytes(segment.shape)); };
  if (segment.state == SegmentState::kUnreadable) return drop();
  absl::StatusOr<ClassState*> size_class =
      ClassFor({segment.shape.shard_bytes.begin(), segment.shape.shard_bytes.end()});
  SsdSlots* slots = size_class.ok() ? (*size_class)->store->ssd() : nullptr;
  if (slots == nullptr) return drop();
  const std::optional<uint32_t> group = slots->AddGroup(device, segment.id, segment.shape.slots);
  if (!group.has_value()) return drop();
  (*size_class)->ssd.bytes += ssd::SegmentFileBytes(segment.shape);
  for (uint32_t slot : segment.unusable) {
    if (slot >= segment.shape.slots) continue;
    slots->Occupy(slots->SlotAt(*group, slot));
    slots->Lose(slots->SlotAt(*group, slot));
  }
  if (segment.state == SegmentState::kRetired) slots->CloseGroup(*group);
}

void CacheManager::Impl::AdoptRecovered() {
  // A budget that is counted in blocks of the first engine's layout is known when that one comes.
  if (ssd.recoveries.empty() || budget_bytes == 0) return;
  for (uint32_t device = 0; device < ssd.recoveries.size(); ++device) {
    for (const SsdSegmentInfo& segment : ssd.recoveries[device].segments)
      AdoptSegment(device, segment);
  }
  AdoptBlocks();
  ssd.recoveries.clear();
}

void CacheManager::Impl::AdoptBlocks() {
  // Which class and group a segment went to.
  absl::flat_hash_map<uint64_t, std::pair<ClassState*, uint32_t>> groups;
  const auto key = [](uint64_t device, uint32_t segment) { return device << 32 | segment; };
  for (const auto& c : classes) {
    const SsdSlots* slots = c->store->ssd();
    for (uint32_t at = 0; slots != nullptr && at < slots->group_end(); ++at) {
      if (slots->HasGroup(at))
        groups.emplace(key(slots->DeviceOf(at), slots->SegmentOf(at)), std::pair(c.get(), at));
    }
  }
  std::vector<std::pair<ClassState*, NamespaceDigest>> order;  // the same run every time
  absl::flat_hash_map<std::pair<ClassState*, NamespaceDigest>, std::vector<Found>> by_namespace;
  // Neighbours are mostly of one segment and one namespace: what was found for the last one serves.
  auto place = groups.end();
  uint64_t place_key = UINT64_MAX;
  ClassState* last_class = nullptr;
  NamespaceDigest last_ns{};
  uint32_t present = 0;  // epoch
  std::vector<Found>* found = nullptr;
  for (uint32_t device = 0; device < ssd.recoveries.size(); ++device) {
    for (const RecoveredBlock& block : ssd.recoveries[device].blocks) {
      if (const uint64_t wanted = key(device, block.place.segment); wanted != place_key) {
        place_key = wanted;
        place = groups.find(wanted);
      }
      if (place == groups.end()) continue;
      auto [size_class, group] = place->second;
      const SlotId slot = size_class->store->ssd()->SlotAt(group, block.place.slot);
      if (size_class->store->ssd()->IsUsed(slot)) continue;
      size_class->store->ssd()->Occupy(slot);
      if (size_class != last_class || block.identity.ns != last_ns) {
        last_class = size_class;
        last_ns = block.identity.ns;
        auto epoch = ssd.epochs.find(last_ns);
        present = epoch == ssd.epochs.end() ? 1 : epoch->second;
        found = &by_namespace[{last_class, last_ns}];
      }
      if (block.identity.epoch != present) {
        size_class->ssd.to_free.push_back(slot);
        continue;
      }
      if (found->empty()) order.emplace_back(last_class, last_ns);
      found->push_back({slot, block.identity.depth, block.identity.hash, block.identity.parent});
    }
  }
  for (const auto& [size_class, digest] : order) {
    Forest forest(std::move(by_namespace[{size_class, digest}]));
    auto made = std::make_unique<Namespace>();
    made->label = "(found on disk)";
    made->size_class = size_class;
    made->digest = digest;
    made->nameless = true;
    if (auto epoch = ssd.epochs.find(digest); epoch != ssd.epochs.end())
      made->ssd_epoch = epoch->second;
    SetEpoch(made.get(), next_namespace++);
    ssd.recovered_blocks += Insert(forest, made->id, size_class->store.get(), &forest.unusable);
    ssd.orphaned_blocks += forest.unusable.size();
    size_class->ssd.to_free.insert(size_class->ssd.to_free.end(), forest.unusable.begin(),
                                   forest.unusable.end());
    namespaces.push_back(std::move(made));
  }
}

}  // namespace flexkv
