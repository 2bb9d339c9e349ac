#include "flexkv/index/reserved_memory.h"

#include <sys/mman.h>

#include <algorithm>

#include "flexkv/base/units.h"
#include "flexkv/index/require.h"

namespace flexkv {
namespace {

constexpr size_t kFirstStep = 64u << 10;
constexpr size_t kHugePage = 2u << 20;

}  // namespace

ReservedMemory::~ReservedMemory() {
  if (mapping_ != nullptr) munmap(mapping_, mapping_bytes_);
}

void ReservedMemory::Reserve(size_t bytes) {
  Require(mapping_ == nullptr, "memory is reserved once");
  reserved_ = RoundUp(std::max<size_t>(bytes, 1), kFirstStep);
  mapping_bytes_ = RoundUp(reserved_, kHugePage) + kHugePage;
  void* mapping =
      mmap(nullptr, mapping_bytes_, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  Require(mapping != MAP_FAILED, "address space for the index");
  mapping_ = static_cast<char*>(mapping);
  const size_t misalignment = reinterpret_cast<uintptr_t>(mapping_) % kHugePage;
  data_ = mapping_ + (misalignment == 0 ? 0 : kHugePage - misalignment);
  // Advice only: without it, or where huge pages are off, everything works on small pages.
  madvise(data_, RoundUp(reserved_, kHugePage), MADV_HUGEPAGE);
}

void ReservedMemory::Grow(size_t bytes) {
  Require(bytes <= reserved_, "the index grows within its reservation");
  size_t target =
      std::max(bytes, std::max(kFirstStep, std::min(2 * committed_, committed_ + kHugePage)));
  target = RoundUp(target, target >= kHugePage ? kHugePage : kFirstStep);
  target = std::min(target, reserved_);
  const int failed = mprotect(data_ + committed_, target - committed_, PROT_READ | PROT_WRITE);
  Require(failed == 0, "memory for the index");
  committed_ = target;
}

}  // namespace flexkv
