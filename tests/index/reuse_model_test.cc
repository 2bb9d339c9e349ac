#include "flexkv/index/reuse_model.h"

#include <cmath>
#include <cstdlib>
#include <deque>
#include <random>
#include <vector>

#include "flexkv/index/lru_shadow.h"
#include "gtest/gtest.h"

namespace flexkv {
namespace {

constexpr uint32_t kCells = 5;

struct Waiting {
  uint32_t cell;
  uint64_t start;
  uint32_t blocks;
};

// Counts tick by tick what the model keeps by cohorts.
struct Naive {
  std::vector<Waiting> waiting;
  std::vector<std::vector<double>> reuses, exposure;
  uint64_t now = 0;

  Naive() : reuses(kCells, std::vector<double>(ReuseModel::kBins)), exposure(reuses) {}
  void Advance(const ReuseModel& model, uint64_t tick) {
    for (; now < tick; ++now) {
      std::erase_if(waiting,
                    [&](const Waiting& w) { return now - w.start >= ReuseModel::kHorizon; });
      for (const Waiting& w : waiting) exposure[w.cell][model.BinOf(now - w.start)] += w.blocks;
    }
    std::erase_if(waiting, [&](const Waiting& w) { return now - w.start >= ReuseModel::kHorizon; });
  }
};

uint64_t Seed() {
  const char* seed = std::getenv("FLEXKV_TEST_SEED");
  return seed == nullptr ? 1 : std::strtoull(seed, nullptr, 10);
}

TEST(ReuseModelTest, CountsWhatANaiveModelCounts) {
  const uint64_t seed = Seed();
  SCOPED_TRACE(::testing::Message() << "FLEXKV_TEST_SEED=" << seed);
  std::mt19937_64 random(seed);
  ReuseModel model;
  Naive naive;
  for (int step = 0; step < 6000; ++step) {
    const uint64_t kind = random() % 10;
    if (kind < 2) {
      // Mostly a tick or two, sometimes minutes, once in a while beyond what is watched.
      const uint64_t far = random() % 200 == 0 ? 5000 : random() % 20 == 0 ? 100 : 2;
      const uint64_t tick = naive.now + random() % (far + 1);
      model.Advance(tick);
      naive.Advance(model, tick);
    } else if (kind < 6 || naive.waiting.empty()) {
      const Waiting w{static_cast<uint32_t>(random() % kCells), naive.now,
                      1 + static_cast<uint32_t>(random() % 40)};
      model.Join(w.cell, w.blocks);
      naive.waiting.push_back(w);
    } else {
      const size_t at = random() % naive.waiting.size();
      Waiting& w = naive.waiting[at];
      const uint32_t blocks = 1 + static_cast<uint32_t>(random() % w.blocks);
      if (kind < 9) {
        model.Reuse(w.cell, w.start, blocks);
        naive.reuses[w.cell][model.BinOf(naive.now - w.start)] += blocks;
      } else {
        model.Leave(w.cell, w.start, blocks);
      }
      w.blocks -= blocks;
      if (w.blocks == 0) naive.waiting.erase(naive.waiting.begin() + static_cast<ptrdiff_t>(at));
    }
  }
  for (uint32_t cell = 0; cell < kCells; ++cell) {
    for (uint32_t bin = 0; bin < ReuseModel::kBins; ++bin) {
      double waiting = 0;
      for (const Waiting& w : naive.waiting) {
        if (w.cell == cell && model.BinOf(naive.now - w.start) == bin) waiting += w.blocks;
      }
      ASSERT_EQ(model.waiting(cell, bin), waiting) << cell << " " << bin;
      ASSERT_EQ(model.exposure(cell, bin), naive.exposure[cell][bin]) << cell << " " << bin;
      ASSERT_EQ(model.reuses(cell, bin), naive.reuses[cell][bin]) << cell << " " << bin;
    }
  }
}

TEST(ReuseModelTest, KnowingNothingItIsLru) {
  ReuseModel model;
  for (uint32_t cell = 0; cell < ReuseModel::kCells; ++cell) {
    double before = 1;
    for (double age = 0; age < 10000; age += 0.5 + age / 50) {
      EXPECT_LT(model.Value(cell, age), before) << age;
      EXPECT_EQ(model.Value(cell, age), model.Value(0, age));
      before = model.Value(cell, age);
    }
  }
}

// One block a moment, so moments are as fine as blocks: the shadow is an exact LRU.
TEST(LruShadowTest, HoldsWhatLruHolds) {
  std::mt19937_64 random(Seed());
  LruShadow shadow;
  shadow.SetCapacity(50);
  std::deque<uint64_t> order;  // blocks of an LRU cache, the oldest first
  std::vector<uint64_t> used(120);
  for (uint64_t moment = 1; moment < 20000; ++moment) {
    shadow.Advance(moment);
    const uint64_t block = random() % (moment % 4000 < 2000 ? 60 : 120);
    const bool held = std::erase(order, block) > 0;
    if (used[block] != 0) {
      ASSERT_EQ(shadow.Holds(used[block]), held) << moment;
      shadow.Forget(used[block], 1);
    }
    shadow.Use(1);
    used[block] = moment;
    order.push_back(block);
    if (order.size() > 50) order.pop_front();
  }
  shadow.Advance(20000 + LruShadow::kHorizon);
  EXPECT_FALSE(shadow.Holds(19999));
}

// Blocks of rate r are worth r, whatever their age; unequal rates are told apart.
TEST(ReuseModelTest, LearnsConstantRates) {
  std::mt19937_64 random(Seed());
  ReuseModel model;
  const double rates[] = {0.1, 0.01};
  struct Due {
    uint32_t cell;
    uint64_t start;
  };
  std::vector<std::vector<Due>> due(20001);
  for (uint64_t tick = 0; tick < 20000; ++tick) {
    model.Advance(tick);
    for (const Due& d : due[tick]) model.Reuse(d.cell, d.start, 1);
    for (uint32_t cell = 0; cell < 2; ++cell) {
      model.Join(cell, 1);
      std::geometric_distribution<uint64_t> wait(rates[cell]);
      const uint64_t at = tick + 1 + wait(random);
      if (at < due.size()) due[at].push_back({cell, tick});
    }
  }
  model.Refit(1, 0);
  for (double age : {0.0, 3.0, 20.0}) {
    EXPECT_NEAR(model.Value(0, age), 0.1, 0.02) << age;
    EXPECT_NEAR(model.Value(1, age), 0.01, 0.003) << age;
  }
}

// A loop of 100 ticks: waiting pays, so the value rises up to the loop's length.
TEST(ReuseModelTest, RisingHazardMakesTheOldWorthMore) {
  ReuseModel model;
  for (uint64_t tick = 0; tick < 5000; ++tick) {
    model.Advance(tick);
    if (tick >= 100) model.Reuse(0, tick - 100, 1);
    model.Join(0, 1);
  }
  model.Refit(1, 0);
  EXPECT_LT(model.Value(0, 1), 0.015);
  EXPECT_GT(model.Value(0, 1), 0.005);
  EXPECT_GT(model.Value(0, 60), 1.5 * model.Value(0, 1));
}

TEST(ReuseModelTest, EvidenceIsWeighedInRequests) {
  ReuseModel few, many;
  for (ReuseModel* model : {&few, &many}) {
    for (uint64_t tick = 0; tick < 200; ++tick) {
      model->Advance(tick);
      if (tick >= 5) model->Reuse(0, tick - 5, 10);
      model->Join(0, 10);
      model->Join(1, 10);
    }
  }
  few.Refit(1000, 0);  // two requests in all
  many.Refit(10, 0);   // four hundred
  EXPECT_GT(many.Value(0, 4) / many.Value(1, 4), 3 * few.Value(0, 4) / few.Value(1, 4));
}

}  // namespace
}  // namespace flexkv
