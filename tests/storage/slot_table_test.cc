#include "flexkv/storage/slot_table.h"

#include <map>
#include <set>
#include <utility>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

SlotTable::Options Small(uint32_t slots_per_group, uint32_t max_groups) {
  return {.slots_per_group = slots_per_group, .max_groups = max_groups, .tier = Tier::kCpu};
}

TEST(SlotTableTest, HandsOutEverySlotOnceAndThenNone) {
  SlotTable table(Small(4, 2));
  EXPECT_FALSE(table.Allocate().has_value());
  ASSERT_EQ(table.AddGroup().value(), 0u);
  ASSERT_EQ(table.AddGroup().value(), 1u);
  EXPECT_EQ(table.AddGroup().status().code(), absl::StatusCode::kResourceExhausted);
  std::set<uint32_t> seen;
  for (int i = 0; i < 8; ++i) {
    const std::optional<SlotId> slot = table.Allocate();
    ASSERT_TRUE(slot.has_value());
    EXPECT_EQ(slot->tier(), Tier::kCpu);
    EXPECT_TRUE(seen.insert(slot->index()).second);
  }
  EXPECT_EQ(*seen.rbegin(), 7u);
  EXPECT_FALSE(table.Allocate().has_value());
  EXPECT_EQ(table.used(), 8u);
  EXPECT_EQ(table.free_slots(), 0u);
  EXPECT_TRUE(table.CheckInvariants().ok());
}

TEST(SlotTableTest, SlotIsFreeOnlyWhenTheLastReferenceGoes) {
  SlotTable table(Small(1, 1));
  ASSERT_TRUE(table.AddGroup().ok());
  const SlotId slot = *table.Allocate();
  table.Ref(slot);
  EXPECT_EQ(table.RefCount(slot), 2u);
  EXPECT_FALSE(table.Unref(slot));
  EXPECT_FALSE(table.Allocate().has_value()) << "a copy still owns the slot";
  EXPECT_TRUE(table.Unref(slot));
  EXPECT_EQ(table.RefCount(slot), 0u);
  EXPECT_EQ(table.Allocate(), slot);
}

TEST(SlotTableTest, PrefersTheFullestGroupAndBreaksIntoAnEmptyOneLast) {
  SlotTable table(Small(4, 3));
  for (int i = 0; i < 3; ++i) ASSERT_TRUE(table.AddGroup().ok());
  std::vector<SlotId> slots;
  for (int i = 0; i < 8; ++i) slots.push_back(*table.Allocate());  // groups 0 and 1 full
  for (int i : {0, 1, 2, 4}) table.Unref(slots[i]);                // group 0: 1 used, group 1: 3
  EXPECT_EQ(table.Allocate()->index() / 4, 1u);
  for (int i = 0; i < 3; ++i) EXPECT_EQ(table.Allocate()->index() / 4, 0u);
  EXPECT_EQ(table.GroupUsed(2), 0u);
  EXPECT_EQ(table.Allocate()->index() / 4, 2u);
}

TEST(SlotTableTest, ClosedGroupHandsOutNothingAndCanBeRemovedOnceEmpty) {
  SlotTable table(Small(2, 2));
  ASSERT_TRUE(table.AddGroup().ok());
  const SlotId slot = *table.Allocate();
  table.CloseGroup(0);
  EXPECT_EQ(table.free_slots(), 0u);
  EXPECT_FALSE(table.Allocate().has_value());
  EXPECT_EQ(table.RemoveGroup(0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(table.Unref(slot));
  EXPECT_FALSE(table.Allocate().has_value());
  EXPECT_TRUE(table.RemoveGroup(0).ok());
  EXPECT_FALSE(table.HasGroup(0));
  EXPECT_EQ(table.RemoveGroup(0).code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(table.AddGroup().value(), 0u) << "positions are reused";
  table.CloseGroup(0);
  table.ReopenGroup(0);
  EXPECT_EQ(table.free_slots(), 2u);
}

TEST(SlotTableTest, UnknownSlotsHaveNoReferences) {
  SlotTable table(Small(2, 1));
  EXPECT_EQ(table.RefCount(kNoSlot), 0u);
  EXPECT_EQ(table.RefCount(SlotId::Make(Tier::kCpu, 77)), 0u);
  EXPECT_EQ(table.RefCount(SlotId::Make(Tier::kSsd, 0)), 0u);
}

TEST(SlotTableTest, NeverLeavesTheRangeOfSlotIds) {
  SlotTable none(Small(0, 5));
  EXPECT_EQ(none.AddGroup().status().code(), absl::StatusCode::kResourceExhausted);
  SlotTable too_large(Small(SlotId::kMaxIndex + 2, 5));
  EXPECT_EQ(too_large.AddGroup().status().code(), absl::StatusCode::kResourceExhausted);
}

TEST(SlotTableDeathTest, MisuseOfReferencesEndsTheProcess) {
  SlotTable table(Small(2, 1));
  ASSERT_TRUE(table.AddGroup().ok());
  const SlotId slot = *table.Allocate();
  table.Unref(slot);
  EXPECT_DEATH(table.Unref(slot), "Unref of a free slot");
  EXPECT_DEATH(table.Ref(slot), "Ref of a free slot");
}

TEST(SlotReservationTest, ReturnsWhatIsNotTaken) {
  SlotTable table(Small(4, 1));
  ASSERT_TRUE(table.AddGroup().ok());
  std::vector<SlotId> taken;
  {
    SlotReservation reservation = SlotReservation::UpTo(&table, 10);
    EXPECT_EQ(reservation.slots().size(), 4u);
    SlotReservation moved = std::move(reservation);
    taken = moved.Take(1);
    EXPECT_EQ(table.used(), 1u);
    EXPECT_TRUE(moved.slots().empty());
    SlotReservation other = SlotReservation::UpTo(&table, 2);
    EXPECT_EQ(table.used(), 3u);
    other = SlotReservation::UpTo(&table, 1);  // the old one returns
    EXPECT_EQ(table.used(), 2u);
  }
  EXPECT_EQ(table.used(), 1u);
  EXPECT_EQ(table.RefCount(taken.at(0)), 1u);
}

// A naive model beside the table over a random history.
class Model {
 public:
  Model(SlotTable* table, uint32_t slots, TestRng* rng)
      : table_(*table), slots_(slots), rng_(*rng) {}

  void Step() {
    switch (rng_.Below(12)) {
      case 0:
        AddGroup();
        break;
      case 1:
        RemoveGroup();
        break;
      case 2:
        Close(rng_.OneIn(2));
        break;
      case 3:
      case 4:
      case 5:
        Ref();
        break;
      case 6:
      case 7:
      case 8:
        Unref();
        break;
      default:
        Allocate();
        break;
    }
    Check();
  }

 private:
  uint32_t Used(uint32_t group) const {
    uint32_t used = 0;
    for (const auto& [index, count] : counts_) used += index / slots_ == group;
    return used;
  }

  void AddGroup() {
    const absl::StatusOr<uint32_t> group = table_.AddGroup();
    if (!group.ok()) return;
    ASSERT_TRUE(closed_.emplace(*group, false).second) << "position handed out twice";
  }

  void RemoveGroup() {
    const uint32_t group = static_cast<uint32_t>(rng_.Below(6));
    const bool expected = closed_.contains(group) && Used(group) == 0;
    ASSERT_EQ(table_.RemoveGroup(group).ok(), expected);
    if (expected) closed_.erase(group);
  }

  void Close(bool close) {
    const uint32_t group = static_cast<uint32_t>(rng_.Below(6));
    close ? table_.CloseGroup(group) : table_.ReopenGroup(group);
    if (closed_.contains(group)) closed_[group] = close;
  }

  void Allocate() {
    uint32_t fullest = 0;
    bool any = false;
    for (const auto& [group, closed] : closed_) {
      const uint32_t used = Used(group);
      if (closed || used == slots_) continue;
      fullest = any ? std::max(fullest, used) : used;
      any = true;
    }
    const std::optional<SlotId> slot = table_.Allocate();
    ASSERT_EQ(slot.has_value(), any);
    if (!any) return;
    const uint32_t group = slot->index() / slots_;
    ASSERT_TRUE(closed_.contains(group) && !closed_[group]);
    if (slots_ < 64) {
      ASSERT_EQ(Used(group), fullest);
    }
    ASSERT_TRUE(counts_.emplace(slot->index(), 1).second) << "slot handed out twice";
  }

  std::map<uint32_t, uint32_t>::iterator Pick() {
    auto it = counts_.begin();
    std::advance(it, rng_.Below(counts_.size()));
    return it;
  }

  void Ref() {
    if (counts_.empty()) return;
    auto it = Pick();
    table_.Ref(SlotId::Make(Tier::kCpu, it->first));
    ++it->second;
  }

  void Unref() {
    if (counts_.empty()) return;
    auto it = Pick();
    ASSERT_EQ(table_.Unref(SlotId::Make(Tier::kCpu, it->first)), it->second == 1);
    if (--it->second == 0) counts_.erase(it);
  }

  void Check() {
    const absl::Status status = table_.CheckInvariants();
    ASSERT_TRUE(status.ok()) << status;
    ASSERT_EQ(table_.used(), counts_.size());
    ASSERT_EQ(table_.num_groups(), closed_.size());
    uint64_t free_slots = 0;
    for (const auto& [group, closed] : closed_) {
      ASSERT_EQ(table_.GroupUsed(group), Used(group));
      if (!closed) free_slots += slots_ - Used(group);
    }
    ASSERT_EQ(table_.free_slots(), free_slots);
    for (const auto& [index, count] : counts_) {
      ASSERT_EQ(table_.RefCount(SlotId::Make(Tier::kCpu, index)), count);
    }
  }

  SlotTable& table_;
  uint32_t slots_;
  TestRng& rng_;
  std::map<uint32_t, uint32_t> counts_;  // slot index -> references
  std::map<uint32_t, bool> closed_;      // present groups
};

TEST(SlotTableTest, AgreesWithANaiveModelOverRandomHistories) {
  TestRng rng(TestSeed());
  for (int history = 0; history < 60; ++history) {
    const uint32_t slots = history % 10 == 9 ? 200 : 1 + static_cast<uint32_t>(rng.Below(8));
    SlotTable table(Small(slots, 5));
    Model model(&table, slots, &rng);
    for (int step = 0; step < 400; ++step) {
      model.Step();
      if (HasFatalFailure()) return;
    }
  }
}

}  // namespace
}  // namespace flexkv
