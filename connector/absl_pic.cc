// Three of abseil's archive members in Debian 12 (cordz_functions, raw_hash_set, sysinfo) are
// compiled for executables only: their thread-local variables are addressed in a way that no shared
// object may use. The module links abseil statically (it must not pull shared libraries of its own
// into the engine), so those are defined here, from abseil's own declarations. A member whose
// symbols are all defined already is never taken from its archive.
#include <unistd.h>

#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <thread>

#include "absl/base/internal/sysinfo.h"
#include "absl/base/options.h"
#include "absl/container/internal/raw_hash_set.h"
#include "absl/strings/internal/cordz_functions.h"

#if ABSL_LTS_RELEASE_VERSION != 20220623
#error \
    "absl_pic.cc repeats internals of abseil 20220623; check it against this version (it may no longer be needed)"
#endif

namespace absl {
ABSL_NAMESPACE_BEGIN

namespace base_internal {

int NumCPUs() { return static_cast<int>(std::thread::hardware_concurrency()); }
double NominalCPUFrequency() {
  return 1.0;
}  // only scales the cycle clock, which nothing here reads
pid_t GetTID() { return gettid(); }
pid_t GetCachedTID() {
  thread_local const pid_t thread_id = gettid();
  return thread_id;
}

}  // namespace base_internal

// Sampling of cords for statistics: off, as in abseil's default.
namespace cord_internal {

ABSL_CONST_INIT thread_local int64_t cordz_next_sample = INT64_MAX;

int32_t get_cordz_mean_interval() { return 0; }
void set_cordz_mean_interval(int32_t) {}
bool cordz_should_profile_slow() {
  cordz_next_sample = INT64_MAX;
  return false;
}
void cordz_set_next_sample_for_testing(int64_t next_sample) { cordz_next_sample = next_sample; }

}  // namespace cord_internal

namespace container_internal {

alignas(16) ABSL_CONST_INIT const ctrl_t kEmptyGroup[16] = {
    ctrl_t::kSentinel, ctrl_t::kEmpty, ctrl_t::kEmpty, ctrl_t::kEmpty,
    ctrl_t::kEmpty,    ctrl_t::kEmpty, ctrl_t::kEmpty, ctrl_t::kEmpty,
    ctrl_t::kEmpty,    ctrl_t::kEmpty, ctrl_t::kEmpty, ctrl_t::kEmpty,
    ctrl_t::kEmpty,    ctrl_t::kEmpty, ctrl_t::kEmpty, ctrl_t::kEmpty};

template FindInfo find_first_non_full(const ctrl_t*, size_t, size_t);

// Any answer is right: it only keeps iteration order from being relied upon.
bool ShouldInsertBackwards(size_t hash, const ctrl_t* ctrl) {
  return (H1(hash, ctrl) ^ reinterpret_cast<uintptr_t>(ctrl) >> 12) % 13 > 6;
}

void ConvertDeletedToEmptyAndFullToDeleted(ctrl_t* ctrl, size_t capacity) {
  for (ctrl_t* group = ctrl; group < ctrl + capacity; group += Group::kWidth) {
    Group{group}.ConvertSpecialToEmptyAndFullToDeleted(group);
  }
  std::memcpy(ctrl + capacity + 1, ctrl, NumClonedBytes());  // the cloned bytes behind the sentinel
  ctrl[capacity] = ctrl_t::kSentinel;
}

void HashTableSizeOverflow() { throw std::length_error("hash table is too large"); }

}  // namespace container_internal
ABSL_NAMESPACE_END
}  // namespace absl
