// When blocks are used again, learned while they are: for each *cell* (kind of block) and age the
// rate of reuse, and from it what room given to such a block is worth.
//
// A block's *spell* begins with each use and ends with the next. For each cell and age bin the
// model counts reuses and the time that blocks spent there unused, so that reuses / time is the
// hazard rate, without bias from what is still waiting (the occurrence/exposure estimator of
// survival analysis; blocks that stop being watched are censored). Rates are shrunk towards the
// rate of all cells at that age, scaled by how this cell compared at younger ages; counts halve
// every kHalfLifeRequests.
//
// The value of a block of age a is its Gittins index (Gittins 1979; Beckmann et al., LHD, NSDI
// 2018, rank by the same quotient up to the age of eviction):
//
//     value(a) = max over T of  P(used again before T | unused at a) / E[time until then, at most
//     T]
//
// the hits that a slot yields per tick, kept as long as is best. Where hazard falls with age,
// this is the hazard now, and the oldest block of a cell is worth least; where it rises (loops,
// scans) waiting pays, and a block that has waited long already is worth more.
//
// Time is in ticks of eight requests. Spells older than kHorizon ticks count as ended unused.
// Cost: Join, Reuse, Leave and Value O(1); Advance O(cells x bins) a tick; Refit O(cells x bins).
// Memory: 2 MB. Deterministic: sums of doubles in a fixed order. Thread: the control thread only.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace flexkv {

class ReuseModel {
 public:
  static constexpr uint32_t kCells = 60;
  static constexpr uint32_t kHorizon = 8192;
  static constexpr uint32_t kBins = 26;  // bounds 0, 1, 2, 3, 4, 6, 8, 11, 16 .. by the root of two
  static constexpr double kHalfLifeRequests = 8000;

  ReuseModel();

  // What a cell has in common with others: little is known of a cell at first, more of the cells of
  // its group, and of its kind. Both below kCells; 0 and 0 unless told.
  void Describe(uint32_t cell, uint32_t group, uint32_t kind) {
    group_[cell] = static_cast<uint8_t>(group);
    kind_[cell] = static_cast<uint8_t>(kind);
  }

  // The present tick; never falls.
  void Advance(uint64_t tick);
  uint64_t now() const { return now_; }

  // Spells of `blocks` blocks begin now.
  void Join(uint32_t cell, uint32_t blocks);
  // Spells that began at `start` end with a use.
  void Reuse(uint32_t cell, uint64_t start, uint32_t blocks);
  // They are no longer watched: nothing will be said when they end.
  void Leave(uint32_t cell, uint64_t start, uint32_t blocks);

  // Values from what was counted so far; then `requests` requests of decay. `request_blocks`: the
  // mean length of a request, whose blocks share one fate: evidence is weighed in requests.
  void Refit(double request_blocks, double requests);

  // Expected hits per block and tick. `age` in ticks.
  double Value(uint32_t cell, double age) const {
    if (age >= kHorizon) return values_[cell][kBins] * (kHorizon / age);
    const uint32_t bin = bin_of_[static_cast<uint32_t>(age)];
    const double part = (age - bounds_[bin]) * per_width_[bin];
    return values_[cell][bin] * (1 - part) + values_[cell][bin + 1] * part;
  }

  uint64_t bytes() const {
    return sizeof(*this) + bin_of_.capacity() + cohorts_.capacity() * sizeof(cohorts_[0]);
  }
  // For tests.
  double reuses(uint32_t cell, uint32_t bin) const { return reuses_[cell][bin]; }
  double exposure(uint32_t cell, uint32_t bin) const { return exposure_[cell][bin]; }
  double waiting(uint32_t cell, uint32_t bin) const { return waiting_[cell][bin]; }
  uint32_t BinOf(uint64_t age) const { return bin_of_[age]; }

 private:
  using Bins = std::array<double, kBins>;

  uint32_t& Cohort(uint64_t tick, uint32_t cell) {
    return cohorts_[(tick % kHorizon) * kCells + cell];
  }
  uint32_t Remove(uint32_t cell, uint64_t start, uint32_t blocks, uint32_t* bin);
  void Tick();
  Bins PooledRates(double weight) const;
  std::array<double, kCells> ExpectedRatios(const Bins& pooled, double weight) const;
  void SetValues(uint32_t cell, const Bins& rates);

  uint64_t now_ = 0;
  std::array<double, kBins + 1> bounds_{};
  std::array<double, kBins> per_width_{};
  std::vector<uint8_t> bin_of_;    // by age in ticks
  std::vector<uint32_t> cohorts_;  // by tick and cell: blocks last used then, still watched
  std::array<uint8_t, kCells> group_{}, kind_{};
  std::array<bool, kCells> seen_{};      // cells ever joined
  std::array<Bins, kCells> waiting_{};   // blocks by cell and present age
  std::array<Bins, kCells> exposure_{};  // block-ticks spent there, decayed
  std::array<Bins, kCells> reuses_{};    // decayed
  std::array<std::array<double, kBins + 1>, kCells> values_{};
};

}  // namespace flexkv
