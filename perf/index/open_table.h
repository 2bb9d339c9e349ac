// The limit the index is measured against: a flat open-addressing table of blocks, 40-byte cells
// (128-bit key, 24-byte value), linear probing, at most 70 % full, chains looked up with the cells
// prefetched 16 blocks ahead. It knows no prefixes, no readiness and no eviction order.
#pragma once

#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <span>

namespace flexkv::bench {

struct Key128 {
  uint64_t low = 0;
  uint64_t high = 0;  // 0 marks an empty cell
  friend bool operator==(const Key128&, const Key128&) = default;
};

class OpenTable {
 public:
  struct Value {
    uint32_t slot = 0, prev = 0, next = 0, parent = 0, refs = 0, tier = 0;
  };

  explicit OpenTable(size_t entries) {
    size_t cells = 1;
    while (cells * 7 < entries * 10) cells *= 2;
    mask_ = cells - 1;
    constexpr size_t kHugePage = 2u << 20;
    bytes_ = (cells * sizeof(Cell) + kHugePage - 1) / kHugePage * kHugePage + kHugePage;
    mapping_ = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (mapping_ == MAP_FAILED) {
      std::perror("mmap");
      std::exit(1);
    }
    madvise(mapping_, bytes_, MADV_HUGEPAGE);  // what the index asks for as well
    const uintptr_t base =
        (reinterpret_cast<uintptr_t>(mapping_) + kHugePage - 1) / kHugePage * kHugePage;
    cells_ = reinterpret_cast<Cell*>(base);
  }
  ~OpenTable() { munmap(mapping_, bytes_); }
  OpenTable(const OpenTable&) = delete;
  OpenTable& operator=(const OpenTable&) = delete;

  void Insert(const Key128& key, uint32_t slot) {
    size_t i = key.low & mask_;
    while (cells_[i].key.high != 0) i = (i + 1) & mask_;
    cells_[i].key = key;
    cells_[i].value = Value{.slot = slot};
  }
  const Value* Find(const Key128& key) const {
    for (size_t i = key.low & mask_; cells_[i].key.high != 0; i = (i + 1) & mask_) {
      if (cells_[i].key == key) return &cells_[i].value;
    }
    return nullptr;
  }
  // With the gap closed behind it, so that no tombstones pile up.
  bool Erase(const Key128& key) {
    size_t hole = key.low & mask_;
    for (; !(cells_[hole].key == key); hole = (hole + 1) & mask_) {
      if (cells_[hole].key.high == 0) return false;
    }
    for (size_t i = (hole + 1) & mask_; cells_[i].key.high != 0; i = (i + 1) & mask_) {
      const size_t home = cells_[i].key.low & mask_;
      if (((i - home) & mask_) >= ((i - hole) & mask_)) {
        cells_[hole] = cells_[i];
        hole = i;
      }
    }
    cells_[hole] = Cell{};
    return true;
  }
  size_t Match(std::span<const Key128> chain, uint32_t* slots) const {
    constexpr size_t kAhead = 16;
    for (size_t i = 0; i < kAhead && i < chain.size(); ++i) Prefetch(chain[i]);
    for (size_t i = 0; i < chain.size(); ++i) {
      if (i + kAhead < chain.size()) Prefetch(chain[i + kAhead]);
      const Value* value = Find(chain[i]);
      if (value == nullptr) return i;
      slots[i] = value->slot;
    }
    return chain.size();
  }

 private:
  struct Cell {
    Key128 key;
    Value value;
  };
  static_assert(sizeof(Cell) == 40);

  void Prefetch(const Key128& key) const { __builtin_prefetch(&cells_[key.low & mask_]); }

  void* mapping_ = nullptr;
  size_t bytes_ = 0;
  Cell* cells_ = nullptr;
  size_t mask_ = 0;
};

}  // namespace flexkv::bench
