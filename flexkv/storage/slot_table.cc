// One 32-bit word per slot: a used slot holds its reference count, a free one (kFreeBit) the number
// of the next free slot of its group. So free lists cost nothing beside the counts.
//
// Open groups with room hang in one of 64 lists by fullness; a 64-bit mask of non-empty lists finds
// the fullest in one instruction. List 0 holds groups without any used slot, so that an empty group
// is broken into only when nothing else has room. With up to 63 slots a group the order by fullness
// is exact, else exact to 1/63 of a group, and the group last allocated from stays first of its
// list, so equal groups do not fill in turns.
#include "flexkv/storage/slot_table.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/fixed_divisor.h"

namespace flexkv {
namespace {

constexpr uint32_t kFreeBit = 0x80000000u;
constexpr uint32_t kEndOfList = 0x7fffffffu;
constexpr uint32_t kNoGroup = 0xffffffffu;
constexpr int kLists = 64;

// Broken invariants of our own end the process: going on would hand out memory twice.
void Require(bool condition, const char* what) {
  if (condition) return;
  std::fprintf(stderr, "SlotTable: %s\n", what);
  std::abort();
}

struct Group {
  std::vector<uint32_t> words;  // empty when the position is vacant
  uint32_t first_free = kEndOfList;
  uint32_t used = 0;
  bool closed = false;
  int list = -1;  // -1: full, closed or vacant
  // While open and within these numbers of used slots the group belongs in `list`.
  uint32_t fewest_used = 1, most_used = 0;
  uint32_t previous = kNoGroup, next = kNoGroup;

  bool present() const { return !words.empty(); }
};

}  // namespace

struct SlotTable::Impl {
  explicit Impl(const Options& o) : options(o), per_group(o.slots_per_group) {}

  const Options options;
  const FixedDivisor per_group;
  std::vector<Group> groups;
  std::vector<uint32_t> vacant;  // positions given back, reused before new ones
  uint32_t head[kLists];
  uint32_t tail[kLists];
  uint64_t non_empty = 0;  // bit i: list i has a group
  uint32_t num_groups = 0;
  uint64_t used = 0;
  uint64_t free_open = 0;

  int ListFor(const Group& group) const {
    if (group.closed || group.used == options.slots_per_group) return -1;
    if (group.used == 0) return 0;
    return 1 + static_cast<int>(uint64_t{group.used - 1} * (kLists - 1) / options.slots_per_group);
  }

  void Unlink(uint32_t position) {
    Group& group = groups[position];
    if (group.list < 0) return;
    (group.previous == kNoGroup ? head[group.list] : groups[group.previous].next) = group.next;
    (group.next == kNoGroup ? tail[group.list] : groups[group.next].previous) = group.previous;
    if (head[group.list] == kNoGroup) non_empty &= ~(uint64_t{1} << group.list);
    group.list = -1;
  }

  void Link(uint32_t position, int list, bool at_front) {
    Group& group = groups[position];
    group.list = list;
    // ListFor, solved for `used`.
    const uint64_t slots = options.slots_per_group;
    const auto first_of = [&](int l) {
      return static_cast<uint32_t>(1 + (static_cast<uint64_t>(l - 1) * slots + kLists - 2) /
                                           (kLists - 1));
    };
    group.fewest_used = list == 0 ? 0 : first_of(list);
    group.most_used = list == 0 ? 0 : std::min(first_of(list + 1), options.slots_per_group) - 1;
    group.previous = at_front ? kNoGroup : tail[list];
    group.next = at_front ? head[list] : kNoGroup;
    (group.previous == kNoGroup ? head[list] : groups[group.previous].next) = position;
    (group.next == kNoGroup ? tail[list] : groups[group.next].previous) = position;
    non_empty |= uint64_t{1} << list;
  }

  // After `used` or `closed` of the group changed. The group that just got fuller goes in front.
  void Relink(uint32_t position, bool at_front) {
    const Group& group = groups[position];
    if (group.list >= 0 && !group.closed && group.used >= group.fewest_used &&
        group.used <= group.most_used) {
      return;
    }
    const int list = ListFor(group);
    if (list == group.list) return;
    Unlink(position);
    if (list >= 0) Link(position, list, at_front);
  }

  uint32_t FreeIn(const Group& group) const { return options.slots_per_group - group.used; }

  // The word of a slot; nullptr when there is no such slot.
  uint32_t* Word(SlotId slot) {
    if (!slot.valid() || slot.tier() != options.tier || options.slots_per_group == 0)
      return nullptr;
    const uint32_t position = per_group.Quotient(slot.index());
    if (position >= groups.size() || !groups[position].present()) return nullptr;
    return &groups[position].words[per_group.Remainder(slot.index())];
  }
};

SlotTable::SlotTable(Options options) {
  if (options.slots_per_group == 0) options.max_groups = 0;
  if (options.max_groups > 0) {
    const uint64_t limit = (uint64_t{SlotId::kMaxIndex} + 1) / options.slots_per_group;
    options.max_groups = static_cast<uint32_t>(std::min<uint64_t>(options.max_groups, limit));
  }
  impl_ = std::make_unique<Impl>(options);
  std::fill(std::begin(impl_->head), std::end(impl_->head), kNoGroup);
  std::fill(std::begin(impl_->tail), std::end(impl_->tail), kNoGroup);
}

SlotTable::~SlotTable() = default;

absl::StatusOr<uint32_t> SlotTable::AddGroup() {
  Impl& table = *impl_;
  if (table.num_groups >= table.options.max_groups) {
    return absl::ResourceExhaustedError(
        absl::StrCat("slot table is at its limit of ", table.options.max_groups, " groups"));
  }
  uint32_t position = static_cast<uint32_t>(table.groups.size());
  if (table.vacant.empty()) {
    table.groups.emplace_back();
  } else {
    position = table.vacant.back();
    table.vacant.pop_back();
  }
  Group& group = table.groups[position];
  group = Group();
  const uint32_t count = table.options.slots_per_group;
  group.words.resize(count);
  // Ascending, so that slots are used in the order in which their pages arrive.
  for (uint32_t i = 0; i + 1 < count; ++i) group.words[i] = kFreeBit | (i + 1);
  group.words[count - 1] = kFreeBit | kEndOfList;
  group.first_free = 0;
  ++table.num_groups;
  table.free_open += count;
  table.Link(position, 0, /*at_front=*/false);
  return position;
}

absl::Status SlotTable::RemoveGroup(uint32_t position) {
  Impl& table = *impl_;
  if (!HasGroup(position)) return absl::FailedPreconditionError("no such group");
  Group& group = table.groups[position];
  if (group.used != 0) return absl::FailedPreconditionError("a slot of the group is used");
  table.Unlink(position);
  if (!group.closed) table.free_open -= table.options.slots_per_group;
  group = Group();
  table.vacant.push_back(position);
  --table.num_groups;
  return absl::OkStatus();
}

void SlotTable::CloseGroup(uint32_t position) {
  if (!HasGroup(position) || impl_->groups[position].closed) return;
  impl_->groups[position].closed = true;
  impl_->free_open -= impl_->FreeIn(impl_->groups[position]);
  impl_->Relink(position, /*at_front=*/false);
}

void SlotTable::ReopenGroup(uint32_t position) {
  if (!HasGroup(position) || !impl_->groups[position].closed) return;
  impl_->groups[position].closed = false;
  impl_->free_open += impl_->FreeIn(impl_->groups[position]);
  impl_->Relink(position, /*at_front=*/false);
}

std::optional<SlotId> SlotTable::Allocate() {
  Impl& table = *impl_;
  if (table.non_empty == 0) return std::nullopt;
  const uint32_t position = table.head[63 - std::countl_zero(table.non_empty)];
  Group& group = table.groups[position];
  const uint32_t number = group.first_free;
  group.first_free = group.words[number] & ~kFreeBit;
  group.words[number] = 1;
  ++group.used;
  ++table.used;
  --table.free_open;
  table.Relink(position, /*at_front=*/true);
  return SlotId::Make(table.options.tier, position * table.options.slots_per_group + number);
}

void SlotTable::Ref(SlotId slot) {
  uint32_t* word = impl_->Word(slot);
  Require(word != nullptr && (*word & kFreeBit) == 0, "Ref of a free slot");
  Require(*word + 1 < kFreeBit, "reference count overflows");
  ++*word;
}

bool SlotTable::Unref(SlotId slot) {
  Impl& table = *impl_;
  uint32_t* word = table.Word(slot);
  Require(word != nullptr && (*word & kFreeBit) == 0, "Unref of a free slot");
  if (--*word > 0) return false;
  const uint32_t position = table.per_group.Quotient(slot.index());
  Group& group = table.groups[position];
  *word = kFreeBit | group.first_free;
  group.first_free = static_cast<uint32_t>(word - group.words.data());
  --group.used;
  --table.used;
  if (!group.closed) ++table.free_open;
  table.Relink(position, /*at_front=*/false);
  return true;
}

uint32_t SlotTable::RefCount(SlotId slot) const {
  const uint32_t* word = impl_->Word(slot);
  return word == nullptr || (*word & kFreeBit) != 0 ? 0 : *word;
}

bool SlotTable::MayChangeHands(SlotId slot) const {
  const uint32_t* word = impl_->Word(slot);
  return word != nullptr && *word == 1 &&
         !impl_->groups[impl_->per_group.Quotient(slot.index())].closed;
}

uint32_t SlotTable::slots_per_group() const { return impl_->options.slots_per_group; }
uint32_t SlotTable::num_groups() const { return impl_->num_groups; }
uint64_t SlotTable::capacity() const {
  return uint64_t{impl_->num_groups} * impl_->options.slots_per_group;
}
uint64_t SlotTable::used() const { return impl_->used; }
uint64_t SlotTable::free_slots() const { return impl_->free_open; }
uint32_t SlotTable::GroupUsed(uint32_t position) const {
  return HasGroup(position) ? impl_->groups[position].used : 0;
}
bool SlotTable::HasGroup(uint32_t position) const {
  return position < impl_->groups.size() && impl_->groups[position].present();
}

namespace {

// Counts and free list of one group agree.
absl::Status CheckGroup(const Group& group, uint32_t position) {
  const auto broken = [position](const char* what) {
    return absl::InternalError(absl::StrCat("group ", position, ": ", what));
  };
  uint32_t free_words = 0;
  for (uint32_t word : group.words) {
    if (word == 0) return broken("a used slot without references");
    free_words += (word & kFreeBit) != 0;
  }
  uint32_t listed = 0;
  for (uint32_t at = group.first_free; at != kEndOfList; at = group.words[at] & ~kFreeBit) {
    if (at >= group.words.size()) return broken("the free list leaves the group");
    if ((group.words[at] & kFreeBit) == 0) return broken("a used slot is in the free list");
    if (++listed > free_words) return broken("the free list has a loop");
  }
  if (listed != free_words) return broken("a free slot is not in the free list");
  if (group.used + free_words != group.words.size()) return broken("used + free != slots");
  return absl::OkStatus();
}

}  // namespace

absl::Status SlotTable::CheckInvariants() const {
  const Impl& table = *impl_;
  uint64_t used = 0, free_open = 0, free_closed = 0;
  uint32_t present = 0, linked = 0;
  for (uint32_t position = 0; position < table.groups.size(); ++position) {
    const Group& group = table.groups[position];
    if (!group.present()) continue;
    ++present;
    if (absl::Status status = CheckGroup(group, position); !status.ok()) return status;
    used += group.used;
    (group.closed ? free_closed : free_open) += table.FreeIn(group);
    if (group.list != table.ListFor(group))
      return absl::InternalError("a group is in a wrong list");
    linked += group.list >= 0;
  }
  if (present != table.num_groups) return absl::InternalError("number of groups is wrong");
  if (present + table.vacant.size() != table.groups.size()) {
    return absl::InternalError("a group position is lost");
  }
  if (used != table.used || free_open != table.free_open ||
      used + free_open + free_closed != capacity()) {
    return absl::InternalError("free + used + free in closed groups != capacity");
  }
  for (int list = 0; list < kLists; ++list) {
    uint32_t previous = kNoGroup;
    for (uint32_t at = table.head[list]; at != kNoGroup; at = table.groups[at].next) {
      if (table.groups[at].list != list || table.groups[at].previous != previous || linked == 0) {
        return absl::InternalError("a list of groups is torn");
      }
      --linked;
      previous = at;
    }
    const bool marked = ((table.non_empty >> list) & 1) != 0;
    if (table.tail[list] != previous || marked != (previous != kNoGroup)) {
      return absl::InternalError("a list's tail or mark is wrong");
    }
  }
  return linked == 0 ? absl::OkStatus() : absl::InternalError("a group is in no list");
}

SlotReservation SlotReservation::UpTo(SlotTable* table, uint32_t count) {
  SlotReservation reservation;
  reservation.table_ = table;
  reservation.slots_.reserve(std::min<uint64_t>(count, table->free_slots()));
  while (reservation.slots_.size() < count) {
    std::optional<SlotId> slot = table->Allocate();
    if (!slot.has_value()) break;
    reservation.slots_.push_back(*slot);
  }
  return reservation;
}

SlotReservation::SlotReservation(SlotReservation&& other) noexcept
    : table_(std::exchange(other.table_, nullptr)), slots_(std::move(other.slots_)) {
  other.slots_.clear();
}

SlotReservation& SlotReservation::operator=(SlotReservation&& other) noexcept {
  if (this != &other) {
    Take(0);
    table_ = std::exchange(other.table_, nullptr);
    slots_ = std::move(other.slots_);
    other.slots_.clear();
  }
  return *this;
}

SlotReservation::~SlotReservation() { Take(0); }

std::vector<SlotId> SlotReservation::Take(uint32_t count) {
  while (slots_.size() > count) {
    table_->Unref(slots_.back());
    slots_.pop_back();
  }
  return std::exchange(slots_, {});
}

}  // namespace flexkv
