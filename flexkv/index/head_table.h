// (namespace, hash of a node's first block) -> node.
//
// Open addressing with linear probing over 8-byte cells: 32 bits of a mix over namespace and hash,
// and the node. A cell only proposes a node: the caller compares the full hash and the namespace
// against the node itself, so equal mixes (and even equal heads under different parents, which
// honest chains never have) live side by side.
//
// Growth is incremental: a table twice as large is mapped (untouched zero pages), every later
// insert carries a few cells over, and lookups try both tables meanwhile; the old table's pages are
// given back piece by piece. No call ever moves the whole table.
#pragma once

#include <cstddef>
#include <cstdint>

#include "flexkv/base/ids.h"

namespace flexkv {

using NodeId = uint32_t;
inline constexpr NodeId kNoNode = 0xffffffffu;

class HeadTable {
 public:
  HeadTable();
  ~HeadTable();
  HeadTable(const HeadTable&) = delete;
  HeadTable& operator=(const HeadTable&) = delete;

  static uint32_t Key(NamespaceId ns, const BlockHash& hash) {
    uint64_t x = hash.words[0] ^ ((ns + 1ull) * 0x9E3779B97F4A7C15ull);
    x = (x ^ (x >> 32)) * 0xBF58476D1CE4E5B9ull;
    x ^= hash.words[1] + ((hash.words[2] << 21) | (hash.words[2] >> 43)) +
         ((hash.words[3] << 42) | (hash.words[3] >> 22));
    x = (x ^ (x >> 29)) * 0x94D049BB133111EBull;
    return static_cast<uint32_t>(x >> 32);
  }

  void Prefetch(uint32_t key) const { __builtin_prefetch(&current_.cells[key & current_.mask]); }

  // The first node under `key` for which accept(node) holds; kNoNode when there is none.
  template <typename Accept>
  NodeId Find(uint32_t key, Accept accept) const {
    const NodeId found = FindIn(current_, key, accept);
    if (found != kNoNode || old_.cells == nullptr) [[likely]]
      return found;
    return FindIn(old_, key, accept);
  }
  // The first node under `key`, unverified: good enough to prefetch.
  NodeId Guess(uint32_t key) const {
    return Find(key, [](NodeId) { return true; });
  }

  void Insert(uint32_t key, NodeId node);
  // REQUIRES for both: the pair (key, node) is in the table.
  void Replace(uint32_t key, NodeId node, NodeId replacement);
  void Erase(uint32_t key, NodeId node);

  size_t size() const { return size_; }
  size_t bytes() const { return current_.bytes() + old_.bytes() + retired_bytes_; }

 private:
  // node_plus_one 0: empty. kMoved in the old table: was carried over or erased, probe on.
  struct Cell {
    uint32_t key;
    uint32_t node_plus_one;
  };
  static constexpr uint32_t kMoved = 0xffffffffu;

  struct Table {
    Cell* cells = nullptr;
    size_t mask = 0;
    size_t bytes() const { return cells == nullptr ? 0 : (mask + 1) * sizeof(Cell); }
  };

  template <typename Accept>
  static NodeId FindIn(const Table& table, uint32_t key, Accept accept) {
    for (size_t i = key & table.mask;; i = (i + 1) & table.mask) {
      const Cell cell = table.cells[i];
      if (cell.node_plus_one == 0) return kNoNode;
      if (cell.key == key && cell.node_plus_one != kMoved && accept(cell.node_plus_one - 1)) {
        return cell.node_plus_one - 1;
      }
    }
  }
  static Cell* FindCell(const Table& table, uint32_t key, NodeId node);
  static void Place(const Table& table, Cell cell);
  static Table Map(size_t num_cells);
  static void CloseGap(const Table& table, size_t hole);
  void StartGrowing();
  void CarryOver();
  void ReleaseRetired();

  Table current_;
  Table old_;           // cells == nullptr unless growing
  size_t carried_ = 0;  // cells of old_ before this one were carried over
  size_t size_ = 0;
  char* retired_ = nullptr;  // what is left of a table that was carried over completely
  size_t retired_bytes_ = 0;
};

}  // namespace flexkv
