#include "flexkv/trace/prefix_table.h"

#include <algorithm>

namespace flexkv::trace {
namespace {

uint64_t Mix(uint64_t x) {
  x ^= x >> 31;
  x *= 0x9e3779b97f4a7c15ull;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9ull;
  return x ^ (x >> 32);
}

}  // namespace

PrefixTable::PrefixTable(uint64_t max_bytes)
    : max_nodes_(std::clamp<uint64_t>(max_bytes / kBytesPerBlock, 1024, kNone - 1)) {}

bool PrefixTable::Kept(uint64_t id) const {
  return shift_ == 0 || (Mix(id) & ((1ull << shift_) - 1)) == 0;
}

uint64_t PrefixTable::Lookup(std::span<const uint64_t> ids, TimeNs now, LogHistogram* gaps) {
  uint64_t found = 0;
  for (const uint64_t id : ids) {
    if (!Kept(id)) continue;
    const auto it = index_.find(id);
    if (it == index_.end()) break;  // nothing behind it is held either
    Node& node = nodes_[it->second];
    if (node.hits != UINT32_MAX) ++node.hits;
    gaps->Add(now > node.last ? now - node.last : 0, 1ull << shift_);
    node.last = now;
    ++found;
  }
  return std::min<uint64_t>(found << shift_, ids.size());
}

void PrefixTable::Insert(std::span<const uint64_t> ids, TimeNs now) {
  uint32_t parent = kNone;
  uint32_t depth = 0;
  for (const uint64_t id : ids) {
    ++depth;
    if (!Kept(id)) continue;
    if (nodes_.size() >= max_nodes_) {
      HalveSample();
      return Insert(ids, now);  // parents have moved; what is in already stays as it is
    }
    const auto [it, is_new] = index_.try_emplace(id, static_cast<uint32_t>(nodes_.size()));
    if (is_new) {
      nodes_.push_back({id, now, parent, depth, 0, 0});
      if (parent != kNone) ++nodes_[parent].children;
    } else {
      nodes_[it->second].last = now;
    }
    parent = it->second;
  }
}

void PrefixTable::HalveSample() {
  ++shift_;
  std::vector<uint32_t> moved(nodes_.size());
  uint32_t kept = 0;
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    Node node = nodes_[i];
    const uint32_t parent = node.parent == kNone ? kNone : moved[node.parent];
    if (!Kept(node.id)) {
      moved[i] = parent;
      continue;
    }
    node.parent = parent;
    node.children = 0;
    if (parent != kNone) ++nodes_[parent].children;
    moved[i] = kept;
    nodes_[kept++] = node;
  }
  nodes_.resize(kept);
  index_.clear();
  for (uint32_t i = 0; i < kept; ++i) index_.emplace(nodes_[i].id, i);
}

uint64_t PrefixTable::never_read() const {
  const auto unread =
      std::count_if(nodes_.begin(), nodes_.end(), [](const Node& node) { return node.hits == 0; });
  return static_cast<uint64_t>(unread) << shift_;
}

uint64_t PrefixTable::roots() const {
  return static_cast<uint64_t>(std::count_if(
      nodes_.begin(), nodes_.end(), [](const Node& node) { return node.parent == kNone; }));
}

LogHistogram PrefixTable::FanOut() const {
  LogHistogram fan_out;
  for (const Node& node : nodes_) {
    if (node.children != 0) fan_out.Add(node.children);
  }
  return fan_out;
}

std::vector<PrefixTable::Segment> PrefixTable::SharedSegments() const {
  std::vector<uint32_t> heavy(nodes_.size(), kNone);  // the child that is found most often
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    const uint32_t parent = nodes_[i].parent;
    if (parent == kNone || nodes_[i].hits == 0) continue;
    if (heavy[parent] == kNone || nodes_[i].hits > nodes_[heavy[parent]].hits) heavy[parent] = i;
  }
  std::vector<uint32_t> segment_of(nodes_.size(), kNone);
  std::vector<Segment> segments;
  for (uint32_t i = 0; i < nodes_.size(); ++i) {
    const Node& node = nodes_[i];
    if (node.hits == 0) continue;
    const uint32_t above = node.parent == kNone ? kNone : segment_of[node.parent];
    const bool goes_on = above != kNone && heavy[node.parent] == i &&
                         uint64_t{node.hits} * 4 >= segments[above].uses * 3;
    if (!goes_on) {
      segment_of[i] = static_cast<uint32_t>(segments.size());
      // `blocks` holds where it hangs, until its end is known.
      const uint32_t hangs = node.parent == kNone ? 0 : nodes_[node.parent].depth;
      segments.push_back({.parent = above, .blocks = hangs, .uses = node.hits});
      if (above != kNone) ++segments[above].children;
    } else {
      segment_of[i] = above;
    }
    Segment& segment = segments[segment_of[i]];
    segment.id = node.id;
    segment.depth_blocks = node.depth;
    segment.saved_blocks += uint64_t{node.hits} << shift_;
  }
  for (Segment& segment : segments) segment.blocks = segment.depth_blocks - segment.blocks;
  return segments;
}

}  // namespace flexkv::trace
