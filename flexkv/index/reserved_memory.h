// Arrays that grow in place and never move.
//
// Address space for the largest size is reserved at once without access rights (which costs nothing
// and counts against no limit); pages are opened as the array grows, 64 KiB at first, doubling to
// steps of 2 MiB, with huge pages where the system gives them. So no call of the index ever
// copies a large table, and memory in use follows the blocks that are really held.
#pragma once

#include <cstddef>
#include <cstdint>
#include <type_traits>

namespace flexkv {

class ReservedMemory {
 public:
  // Reserves nothing yet: see Reserve.
  ReservedMemory() = default;
  ~ReservedMemory();
  ReservedMemory(const ReservedMemory&) = delete;
  ReservedMemory& operator=(const ReservedMemory&) = delete;

  // Once. Aborts when the system has no address space left.
  void Reserve(size_t bytes);
  // Makes [0, bytes) accessible; what is new reads as zero.
  void Ensure(size_t bytes) {
    if (bytes > committed_) [[unlikely]]
      Grow(bytes);
  }

  char* data() const { return data_; }
  size_t committed() const { return committed_; }
  bool reserved() const { return data_ != nullptr; }

 private:
  void Grow(size_t bytes);

  char* data_ = nullptr;  // 2 MiB aligned
  char* mapping_ = nullptr;
  size_t mapping_bytes_ = 0;
  size_t reserved_ = 0;
  size_t committed_ = 0;
};

template <typename T>
class ReservedArray {
  static_assert(std::is_trivially_copyable_v<T>);

 public:
  void Reserve(size_t max_elements) { memory_.Reserve(max_elements * sizeof(T)); }
  // Elements [0, count) may be used afterwards; new ones are all zero bytes.
  void Ensure(size_t count) { memory_.Ensure(count * sizeof(T)); }

  T* data() const { return reinterpret_cast<T*>(memory_.data()); }
  T& operator[](size_t i) const { return data()[i]; }
  size_t usable() const { return memory_.committed() / sizeof(T); }
  bool reserved() const { return memory_.reserved(); }
  size_t bytes() const { return memory_.committed(); }

 private:
  ReservedMemory memory_;
};

}  // namespace flexkv
