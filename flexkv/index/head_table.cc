#include "flexkv/index/head_table.h"

#include <sys/mman.h>

#include <algorithm>

#include "flexkv/index/require.h"

namespace flexkv {
namespace {

constexpr size_t kFirstCells = 1024;
// The table grows at 5/8 full, so its successor takes in 5/8 * cells new entries before it must
// grow itself: carrying over two cells an insert would do, eight end it early.
constexpr size_t kCarriedPerInsert = 8;
constexpr size_t kReleasedPerInsert = 256u << 10;

}  // namespace

HeadTable::HeadTable() : current_(Map(kFirstCells)) {}

HeadTable::~HeadTable() {
  munmap(current_.cells, current_.bytes());
  if (old_.cells != nullptr) munmap(old_.cells, old_.bytes());
  if (retired_ != nullptr) munmap(retired_, retired_bytes_);
}

HeadTable::Table HeadTable::Map(size_t num_cells) {
  const size_t bytes = num_cells * sizeof(Cell);
  void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  Require(memory != MAP_FAILED, "memory for the head table");
  madvise(memory, bytes, MADV_HUGEPAGE);  // advice only
  return {static_cast<Cell*>(memory), num_cells - 1};
}

HeadTable::Cell* HeadTable::FindCell(const Table& table, uint32_t key, NodeId node) {
  if (table.cells == nullptr) return nullptr;
  for (size_t i = key & table.mask; table.cells[i].node_plus_one != 0; i = (i + 1) & table.mask) {
    Cell& cell = table.cells[i];
    if (cell.key == key && cell.node_plus_one == node + 1) return &cell;
  }
  return nullptr;
}

void HeadTable::Place(const Table& table, Cell cell) {
  size_t i = cell.key & table.mask;
  while (table.cells[i].node_plus_one != 0) i = (i + 1) & table.mask;
  table.cells[i] = cell;
}

void HeadTable::Insert(uint32_t key, NodeId node) {
  if (old_.cells != nullptr) {
    CarryOver();
  } else if ((size_ + 1) * 8 > (current_.mask + 1) * 5) {
    StartGrowing();
  }
  if (retired_ != nullptr) ReleaseRetired();
  Place(current_, {key, node + 1});
  ++size_;
}

void HeadTable::Replace(uint32_t key, NodeId node, NodeId replacement) {
  Cell* cell = FindCell(current_, key, node);
  if (cell == nullptr) cell = FindCell(old_, key, node);
  Require(cell != nullptr, "a replaced head is in the table");
  cell->node_plus_one = replacement + 1;
}

void HeadTable::Erase(uint32_t key, NodeId node) {
  Cell* cell = FindCell(current_, key, node);
  if (cell != nullptr) {
    CloseGap(current_, static_cast<size_t>(cell - current_.cells));
  } else {
    cell = FindCell(old_, key, node);
    Require(cell != nullptr, "an erased head is in the table");
    cell->node_plus_one = kMoved;
  }
  --size_;
}

// Moves later cells of the cluster back over the hole, so that no tombstones pile up.
void HeadTable::CloseGap(const Table& table, size_t hole) {
  for (size_t i = (hole + 1) & table.mask; table.cells[i].node_plus_one != 0;
       i = (i + 1) & table.mask) {
    const size_t home = table.cells[i].key & table.mask;
    if (((i - home) & table.mask) >= ((i - hole) & table.mask)) {
      table.cells[hole] = table.cells[i];
      hole = i;
    }
  }
  table.cells[hole] = {0, 0};
}

void HeadTable::StartGrowing() {
  while (retired_ != nullptr)
    ReleaseRetired();  // at most a little is left: inserts since drained it
  old_ = current_;
  current_ = Map(2 * (old_.mask + 1));
  carried_ = 0;
  CarryOver();
}

void HeadTable::CarryOver() {
  const size_t end = std::min(carried_ + kCarriedPerInsert, old_.mask + 1);
  for (; carried_ < end; ++carried_) {
    Cell& cell = old_.cells[carried_];
    if (cell.node_plus_one == 0 || cell.node_plus_one == kMoved) continue;
    Place(current_, cell);
    cell.node_plus_one = kMoved;
  }
  if (carried_ <= old_.mask) return;
  retired_ = reinterpret_cast<char*>(old_.cells);
  retired_bytes_ = old_.bytes();
  old_ = Table{};
}

void HeadTable::ReleaseRetired() {
  const size_t piece = std::min(kReleasedPerInsert, retired_bytes_);
  retired_bytes_ -= piece;
  munmap(retired_ + retired_bytes_, piece);
  if (retired_bytes_ == 0) retired_ = nullptr;
}

}  // namespace flexkv
