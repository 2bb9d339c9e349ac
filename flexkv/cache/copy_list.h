// Copies in memory of blocks that are on an SSD too, in the order of their last use: the one that
// gives way next is first. 20 bytes a CPU slot. Pure state; the control thread only.
#pragma once

#include <cstdint>
#include <vector>

#include "flexkv/base/ids.h"

namespace flexkv {

class CopyList {
 public:
  static constexpr uint32_t kNone = UINT32_MAX;

  uint64_t size() const { return size_; }
  uint32_t first() const { return first_; }  // CPU slot index; kNone: empty
  uint32_t after(uint32_t cpu) const { return entries_[cpu].next; }
  bool Contains(uint32_t cpu) const {
    return cpu < entries_.size() && entries_[cpu].handle != kNone;
  }
  SlotId HandleOf(uint32_t cpu) const { return SlotId{entries_[cpu].handle}; }
  uint64_t ScoreOf(uint32_t cpu) const { return entries_[cpu].score; }  // when it was put last

  // Puts the copy in CPU slot `cpu` of the block `handle` last. REQUIRES: not contained.
  void Add(uint32_t cpu, SlotId handle, uint64_t score) {
    if (entries_.size() <= cpu) entries_.resize(cpu + 1);
    entries_[cpu] = Entry{score, handle.value, last_, kNone};
    (last_ == kNone ? first_ : entries_[last_].next) = cpu;
    last_ = cpu;
    ++size_;
  }
  // REQUIRES: contained.
  void Remove(uint32_t cpu) {
    Entry& entry = entries_[cpu];
    (entry.previous == kNone ? first_ : entries_[entry.previous].next) = entry.next;
    (entry.next == kNone ? last_ : entries_[entry.next].previous) = entry.previous;
    entry = Entry{};
    --size_;
  }
  void MoveToEnd(uint32_t cpu, uint64_t score) {
    const SlotId handle = HandleOf(cpu);
    Remove(cpu);
    Add(cpu, handle, score);
  }

 private:
  struct Entry {
    uint64_t score = 0;
    uint32_t handle = kNone;
    uint32_t previous = kNone, next = kNone;
  };
  std::vector<Entry> entries_;
  uint32_t first_ = kNone, last_ = kNone;
  uint64_t size_ = 0;
};

}  // namespace flexkv
