// Blocks are kept by the tick of their last use (cohorts). With each tick one cohort crosses each
// bin's bound, so moving all blocks on to their next age costs bins x cells, however many there
// are.
#include "flexkv/index/reuse_model.h"

#include <algorithm>
#include <cmath>

namespace flexkv {
namespace {

// Nothing known, reuse is taken to fall with age as it does nearly everywhere: which is LRU.
constexpr double kPriorRate = 0.3;  // a tick, at age 0; falls as 1 / (1 + age)
// An estimate counts half once this many requests' blocks were expected to be used again.
constexpr double kPriorRequests = 16;

}  // namespace

ReuseModel::ReuseModel() : bin_of_(kHorizon), cohorts_(uint64_t{kHorizon} * kCells) {
  double bound = 1;
  for (uint32_t bin = 1; bin <= kBins; ++bin) {
    bounds_[bin] = std::max(bounds_[bin - 1] + 1, std::round(bound));
    bound *= std::sqrt(2.0);
  }
  // What is older than the last bound stays in the last bin.
  uint32_t bin = 0;
  for (uint32_t age = 0; age < kHorizon; ++age) {
    while (bin + 1 < kBins && age >= bounds_[bin + 1]) ++bin;
    bin_of_[age] = static_cast<uint8_t>(bin);
  }
  bounds_[kBins] = kHorizon;
  for (uint32_t i = 0; i < kBins; ++i) per_width_[i] = 1 / (bounds_[i + 1] - bounds_[i]);
  Refit(1, 0);
}

void ReuseModel::Advance(uint64_t tick) {
  if (tick <= now_) return;
  if (tick - now_ >= kHorizon) {  // long silence: what waited has ended
    std::fill(cohorts_.begin(), cohorts_.end(), 0);
    for (Bins& bins : waiting_) bins.fill(0);
    now_ = tick;
    return;
  }
  while (now_ < tick) Tick();
}

void ReuseModel::Tick() {
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    if (!seen_[cell]) continue;
    for (uint32_t bin = 0; bin < kBins; ++bin) exposure_[cell][bin] += waiting_[cell][bin];
  }
  ++now_;
  for (uint32_t bin = 1; bin < kBins; ++bin) {
    const auto bound = static_cast<uint64_t>(bounds_[bin]);
    if (bound > now_) break;
    for (uint32_t cell = 0; cell < kCells; ++cell) {
      const uint32_t blocks = Cohort(now_ - bound, cell);
      waiting_[cell][bin - 1] -= blocks;
      waiting_[cell][bin] += blocks;
    }
  }
  if (now_ < kHorizon) return;
  for (uint32_t cell = 0; cell < kCells; ++cell) {  // the present tick takes the oldest's place
    uint32_t& blocks = Cohort(now_, cell);
    waiting_[cell][kBins - 1] -= blocks;
    blocks = 0;
  }
}

void ReuseModel::Join(uint32_t cell, uint32_t blocks) {
  seen_[cell] = true;
  Cohort(now_, cell) += blocks;
  waiting_[cell][0] += blocks;
}

uint32_t ReuseModel::Remove(uint32_t cell, uint64_t start, uint32_t blocks, uint32_t* bin) {
  if (start > now_ || now_ - start >= kHorizon) return 0;
  *bin = bin_of_[now_ - start];
  uint32_t& cohort = Cohort(start, cell);
  blocks = std::min(blocks, cohort);
  cohort -= blocks;
  waiting_[cell][*bin] -= blocks;
  return blocks;
}

void ReuseModel::Reuse(uint32_t cell, uint64_t start, uint32_t blocks) {
  uint32_t bin = 0;
  const uint32_t removed = Remove(cell, start, blocks, &bin);
  reuses_[cell][bin] += removed;
}

void ReuseModel::Leave(uint32_t cell, uint64_t start, uint32_t blocks) {
  uint32_t bin = 0;
  Remove(cell, start, blocks, &bin);
}

// Rates of all cells together, each bin shrunk towards the one before, falling as 1 / age.
ReuseModel::Bins ReuseModel::PooledRates(double weight) const {
  Bins rates;
  double before = kPriorRate;
  for (uint32_t bin = 0; bin < kBins; ++bin) {
    double reuses = 0, exposure = 0;
    for (uint32_t cell = 0; cell < kCells; ++cell) {
      reuses += reuses_[cell][bin];
      exposure += exposure_[cell][bin];
    }
    if (bin > 0) before *= (1 + bounds_[bin]) / (1 + bounds_[bin + 1]);
    rates[bin] = (reuses + weight) / (exposure + weight / before);
    before = rates[bin];
  }
  return rates;
}

// How each cell compares with all, ages taken together: its group's ratio times its kind's, as far
// as its own reuses do not say otherwise.
std::array<double, ReuseModel::kCells> ReuseModel::ExpectedRatios(const Bins& pooled,
                                                                  double weight) const {
  std::array<double, kCells> reuses{}, expected{}, ratios{};
  struct Sum {
    double reuses = 0, expected = 0;
  };
  std::array<Sum, kCells> groups, kinds;
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    for (uint32_t bin = 0; bin < kBins; ++bin) {
      reuses[cell] += reuses_[cell][bin];
      expected[cell] += exposure_[cell][bin] * pooled[bin];
    }
    groups[group_[cell]].reuses += reuses[cell];
    groups[group_[cell]].expected += expected[cell];
  }
  const auto ratio = [weight](const Sum& sum) {
    return (sum.reuses + weight) / (sum.expected + weight);
  };
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    kinds[kind_[cell]].reuses += reuses[cell];
    kinds[kind_[cell]].expected += expected[cell] * ratio(groups[group_[cell]]);
  }
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    const double prior = ratio(groups[group_[cell]]) * ratio(kinds[kind_[cell]]);
    ratios[cell] = (reuses[cell] + weight) / (expected[cell] + weight / prior);
  }
  return ratios;
}

void ReuseModel::Refit(double request_blocks, double requests) {
  const double weight = kPriorRequests * std::max(1.0, request_blocks);
  const double decay = std::exp2(-requests / kHalfLifeRequests);
  const Bins pooled = PooledRates(weight);
  const std::array<double, kCells> ratios = ExpectedRatios(pooled, weight);
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    double ratio = ratios[cell];
    Bins rates;
    for (uint32_t bin = 0; bin < kBins; ++bin) {  // age by age, from the age before
      ratio = (reuses_[cell][bin] + weight) / (exposure_[cell][bin] * pooled[bin] + weight / ratio);
      rates[bin] = ratio * pooled[bin];
      reuses_[cell][bin] *= decay;
      exposure_[cell][bin] *= decay;
    }
    SetValues(cell, rates);
  }
}

// For every bin's start the best quotient over all ends: slopes of the least concave majorant of
// (expected time, expected hits), found from the right by merging a bin with what follows it as
// long as that is steeper.
void ReuseModel::SetValues(uint32_t cell, const Bins& rates) {
  std::array<double, kBins> hits, time;
  double unused = 1;
  for (uint32_t bin = 0; bin < kBins; ++bin) {
    const double width = bounds_[bin + 1] - bounds_[bin];
    time[bin] = unused * width / (1 + rates[bin] * width);
    hits[bin] = time[bin] * rates[bin];
    unused -= hits[bin];
  }
  std::array<uint32_t, kBins + 1> next;  // where the merged piece that starts here ends
  for (uint32_t bin = kBins; bin-- > 0;) {
    uint32_t end = bin + 1;
    while (end < kBins && hits[bin] * time[end] < hits[end] * time[bin]) {
      hits[bin] += hits[end];
      time[bin] += time[end];
      end = next[end];
    }
    next[bin] = end;
    values_[cell][bin] = hits[bin] / time[bin];
  }
  // Further on as it must fall at least.
  values_[cell][kBins] = values_[cell][kBins - 1] * bounds_[kBins - 1] / bounds_[kBins];
}

}  // namespace flexkv
