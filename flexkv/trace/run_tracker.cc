#include "flexkv/trace/run_tracker.h"

#include <algorithm>
#include <bit>
#include <cstring>

namespace flexkv::trace {
namespace {

constexpr size_t kFirstRuns = 1024;
constexpr size_t kFirstHeads = 4096;
constexpr size_t kPoolSlack = 1 << 16;

// Length of the common prefix of two chains whose first ids are equal; limit > 0. Equal ids mean
// equal prefixes, so the last one decides, else bisection.
uint32_t CommonPrefix(const uint64_t* a, const uint64_t* b, uint32_t limit) {
  if (a[limit - 1] == b[limit - 1]) return limit;
  uint32_t low = 1, high = limit - 1;  // a[low - 1] is equal, a[high] differs
  while (low < high) {
    const uint32_t middle = (low + high) / 2;
    if (a[middle] == b[middle]) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

size_t HomeOf(uint64_t id, int shift) { return (id * 0x9E3779B97F4A7C15ull) >> shift; }

}  // namespace

uint64_t RunTracker::bytes() const {
  return runs_.capacity() * sizeof(Run) + sums_.capacity() * sizeof(uint32_t) +
         ids_.capacity() * sizeof(uint64_t) + numbers_.capacity() * sizeof(uint32_t) +
         heads_.capacity() * sizeof(Head);
}

// --- heads ---------------------------------------------------------------------------------------

uint32_t RunTracker::FindRun(uint64_t id, uint32_t depth) const {
  if (heads_.empty()) return kNone;
  const size_t mask = heads_.size() - 1;
  for (size_t i = HomeOf(id, heads_shift_); heads_[i].run_plus_one != 0; i = (i + 1) & mask) {
    if (heads_[i].id != id) continue;
    // One that is outdated names a run that has begun deeper since, or is over.
    const Run& run = runs_[heads_[i].run_plus_one - 1];
    return run.first == depth && run.first < run.end ? heads_[i].run_plus_one - 1 : kNone;
  }
  return kNone;
}

void RunTracker::PlaceHead(uint64_t id, uint32_t run) {
  const size_t mask = heads_.size() - 1;
  size_t i = HomeOf(id, heads_shift_);
  while (heads_[i].run_plus_one != 0 && heads_[i].id != id) i = (i + 1) & mask;
  heads_used_ += heads_[i].run_plus_one == 0;
  heads_[i] = {id, run + 1};
}

void RunTracker::AddHead(uint64_t id, uint32_t run) {
  if (2 * (heads_used_ + 1) > heads_.size()) {
    size_t alive = 0;
    for (const Run& one : runs_) alive += one.first < one.end;
    RebuildHeads(std::max(kFirstHeads, std::bit_ceil(4 * (alive + 1))));
  }
  PlaceHead(id, run);
}

void RunTracker::RebuildHeads(size_t cells) {
  heads_.assign(cells, Head{});
  heads_shift_ = 64 - std::countr_zero(cells);
  heads_used_ = 0;
  for (uint32_t i = 0; i < runs_.size(); ++i) {
    const Run& run = runs_[i];
    if (run.first < run.end) PlaceHead(ids_[run.pool + run.first], i);
  }
}

void RunTracker::PrefetchFar(std::span<const uint64_t> ids) const {
  if (!ids.empty() && !heads_.empty())
    __builtin_prefetch(heads_.data() + HomeOf(ids[0], heads_shift_));
}

void RunTracker::PrefetchNear(std::span<const uint64_t> ids) const {
  if (ids.empty()) return;
  const uint32_t run = FindRun(ids[0], 0);
  if (run == kNone) return;
  const uint64_t* chain = ids_.data() + runs_[run].pool;
  __builtin_prefetch(chain + std::min<size_t>(ids.size(), runs_[run].end) - 1);
}

// --- order ---------------------------------------------------------------------------------------

// Blocks whose last use is later than that of this run's.
uint64_t RunTracker::BlocksAfter(uint32_t run) const {
  uint32_t before = 0;  // those up to this run
  for (size_t i = run + 1u; i > 0; i &= i - 1) before += sums_[i];
  return unique_ - before;
}

void RunTracker::TakeBlocks(uint32_t run, uint32_t blocks) {
  for (size_t i = run + 1u; i < sums_.size(); i += i & (0 - i)) sums_[i] -= blocks;
}

// Of a run more: what its place sums up are the places before it, by powers of two.
void RunTracker::AppendSum(uint32_t blocks) {
  const size_t i = sums_.size();
  uint32_t sum = blocks;
  for (size_t step = 1; (i & step) == 0; step *= 2) sum += sums_[i - step];
  sums_.push_back(sum);
}

// Runs that are over go, the others move together in their order.
void RunTracker::CompactRuns() {
  std::erase_if(runs_, [](const Run& run) { return run.first == run.end; });
  room_ = std::max(kFirstRuns, 2 * runs_.size());
  sums_.resize(1);
  for (const Run& run : runs_) AppendSum(run.end - run.first);
  RebuildHeads(std::max(kFirstHeads, std::bit_ceil(4 * (runs_.size() + 1))));
}

void RunTracker::CompactPool() {
  uint64_t at = 0;
  for (Run& run : runs_) {
    const uint64_t from = run.pool + run.first;
    const uint32_t length = run.end - run.first;
    std::memmove(ids_.data() + at, ids_.data() + from, length * sizeof(uint64_t));
    if (with_numbers_)
      std::memmove(numbers_.data() + at, numbers_.data() + from, length * sizeof(uint32_t));
    run.pool = at - run.first;
    at += length;
  }
  ids_.resize(at);
  if (with_numbers_) numbers_.resize(at);
}

// --- access --------------------------------------------------------------------------------------

void RunTracker::TakeFronts(std::span<const uint64_t> ids) {
  uint32_t taken = 0;
  const auto all = static_cast<uint32_t>(ids.size());
  while (taken < all) {
    const uint32_t index = FindRun(ids[taken], taken);
    if (index == kNone) break;
    Run& run = runs_[index];
    const uint64_t* chain = ids_.data() + run.pool;
    const uint32_t length =
        CommonPrefix(ids.data() + taken, chain + taken, std::min(all, run.end) - taken);
    // What was taken before lay in front of it.
    segments_.push_back({.request = run.request,
                         .position = BlocksAfter(index),
                         .first_depth = taken,
                         .blocks = length});
    TakeBlocks(index, length);
    run.first += length;
    if (run.first < run.end) AddHead(chain[run.first], index);
    if (with_numbers_) {
      const auto numbers = numbers_.begin() + static_cast<std::ptrdiff_t>(run.pool + taken);
      std::copy_n(numbers, length,
                  numbers_.begin() + static_cast<std::ptrdiff_t>(last_.pool + taken));
    }
    taken += length;
  }
  known_ = taken;
}

void RunTracker::AddRun(std::span<const uint64_t> ids) {
  ids_.insert(ids_.end(), ids.begin(), ids.end());
  last_.end = static_cast<uint32_t>(ids.size());
  for (uint64_t i = known_; with_numbers_ && i < ids.size(); ++i)
    numbers_[last_.pool + i] = static_cast<uint32_t>(unique_ + (i - known_));
  unique_ += ids.size() - known_;
  runs_.push_back(last_);
  const auto index = static_cast<uint32_t>(runs_.size() - 1);
  AppendSum(last_.end);
  AddHead(ids[0], index);
}

void RunTracker::Access(std::span<const uint64_t> ids, bool insert) {
  segments_.clear();
  known_ = 0;
  if (runs_.size() >= room_) CompactRuns();
  if (ids_.size() > 2 * unique_ + kPoolSlack) CompactPool();
  last_ = {.pool = ids_.size(), .request = requests_++};
  if (ids.empty()) return;
  if (with_numbers_) numbers_.resize(last_.pool + ids.size());
  TakeFronts(ids);
  if (!insert) ids = ids.first(known_);
  if (with_numbers_) numbers_.resize(last_.pool + ids.size());
  if (!ids.empty()) AddRun(ids);
}

}  // namespace flexkv::trace
