// The chains of recent requests, so that a put may be written as its range only. Bounded: a ring of
// ids where the newest overwrite the oldest.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <span>
#include <utility>

#include "absl/container/flat_hash_map.h"

namespace flexkv::trace {

class ChainTable {
 public:
  static constexpr uint64_t kIds = 4 << 20;  // 32 MiB
  static constexpr size_t kMaxRequests = 1 << 18;

  void Clear() {
    places_.clear();
    head_ = 0;
  }

  void Remember(uint64_t engine, uint64_t request, std::span<const uint64_t> chain) {
    if (chain.empty() || chain.size() > kIds / 4) return;
    if (ids_ == nullptr) ids_.reset(new uint64_t[kIds]);
    if (places_.size() >= kMaxRequests) Sweep();
    const uint64_t to_end = kIds - head_ % kIds;
    if (to_end < chain.size()) head_ += to_end;  // in one piece
    std::copy(chain.begin(), chain.end(), ids_.get() + head_ % kIds);
    places_[{engine, request}] = {head_, chain.size()};
    head_ += chain.size();
  }

  // Empty: not known (any more). Until the next Remember.
  std::span<const uint64_t> Find(uint64_t engine, uint64_t request) const {
    const auto found = places_.find({engine, request});
    if (found == places_.end() || !Holds(found->second)) return {};
    return {ids_.get() + found->second.start % kIds, found->second.count};
  }

 private:
  struct Place {
    uint64_t start = 0, count = 0;
  };

  bool Holds(const Place& place) const { return place.start + kIds >= head_; }
  void Sweep() {
    absl::erase_if(places_, [this](const auto& entry) { return !Holds(entry.second); });
    if (places_.size() >= kMaxRequests / 2) places_.clear();
  }

  std::unique_ptr<uint64_t[]> ids_;
  uint64_t head_ = 0;  // ids ever remembered
  absl::flat_hash_map<std::pair<uint64_t, uint64_t>, Place> places_;
};

}  // namespace flexkv::trace
