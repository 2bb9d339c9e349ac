// Which memory is registered with a ring, and where in its table of buffers. Pieces of at most 1
// GiB, the kernel's bound. Thread: that of the ring.
#pragma once

#include <liburing.h>

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <vector>

namespace flexkv {

class RingMemory {
 public:
  // False: this kernel has no sparse table of buffers; then nothing is ever registered.
  bool Init(io_uring* ring);
  // All of it or nothing; pins its pages. False: the memlock limit, no room in the table, or it
  // overlaps what is there.
  bool Register(std::span<std::byte> memory);
  void Unregister(const std::byte* memory);  // by the address given to Register

  // Index in the table, -1 when not wholly within one registered piece.
  int Find(const void* memory, size_t bytes) const;

 private:
  struct Piece {
    size_t bytes = 0;
    uint32_t index = 0;
    const std::byte* owner = nullptr;  // start of the memory that it is a piece of
  };
  bool Update(uint32_t index, void* memory, size_t bytes);

  io_uring* ring_ = nullptr;
  std::vector<uint32_t> free_;
  std::map<uintptr_t, Piece> pieces_;  // by address
  mutable uintptr_t last_start_ = 0;   // of the piece that was found last
  mutable Piece last_;
};

}  // namespace flexkv
