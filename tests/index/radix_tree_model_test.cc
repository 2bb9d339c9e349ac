// Random histories, tree against model, invariants after every step. FLEXKV_TEST_SEED replays one
// seed.
#include <cstdlib>
#include <random>

#include "tests/index/tree_model.h"

namespace flexkv::testing {
namespace {

struct Shape {
  const char* name;
  HashKind hashes;
  uint32_t slots;
  uint32_t longest;  // blocks of a chain
  uint32_t steps;
};

class History {
 public:
  History(const Shape& shape, uint64_t seed, const std::string& policy = "lru",
          EvictionObjective objective = EvictionObjective::kTokens)
      : shape_(shape), random_(seed), pair_(shape.slots, policy, objective) {
    for (NamespaceId ns = 0; ns < 2; ++ns) pair_.AddNamespace(ns);
  }

  void Step() {
    const uint32_t dice = Below(100);
    if (dice < 28) {
      Insert();
    } else if (dice < 52) {
      CommitSome();
    } else if (dice < 68) {
      Match();
    } else if (dice < 82) {
      const Tier tier = Below(2) == 0 ? Tier::kCpu : Tier::kSsd;
      for (uint32_t n = 1 + Below(4); n > 0; --n) pair_.Evict(tier);
    } else if (dice < 88) {
      PinSome();
    } else if (dice < 95) {
      UnpinSome();
    } else if (dice < 97) {
      for (uint32_t n = 1 + Below(8); n > 0; --n) pair_.Rename(AnySlot());
    } else if (dice < 99) {
      EraseSome();
    } else if (Below(8) == 0) {
      Drop();
    } else {
      pair_.NoteCapacity(Below(shape_.slots + 1), shape_.slots);
    }
    pair_.Check();
  }

 private:
  uint32_t Below(uint32_t bound) { return static_cast<uint32_t>(random_() % bound); }
  NamespaceId AnyNamespace() { return first_ns_ + Below(2); }

  // A chain that shares a prefix of some length with an earlier one.
  std::vector<BlockHash> AnyChain() {
    std::vector<uint32_t> tokens;
    if (!pool_.empty()) {
      tokens = pool_[Below(static_cast<uint32_t>(pool_.size()))];
      if (Below(3) == 0) tokens.resize(Below(static_cast<uint32_t>(tokens.size()) + 1));
    }
    for (uint32_t n = Below(3) == 0 ? Below(shape_.longest) : Below(3); n > 0; --n)
      tokens.push_back(Below(2));
    if (tokens.empty()) tokens.push_back(Below(2));
    if (tokens.size() > shape_.longest) tokens.resize(shape_.longest);
    if (pool_.size() < 12) {
      pool_.push_back(tokens);
    } else {
      pool_[Below(12)] = tokens;
    }
    return ChainOf(tokens, shape_.hashes);
  }
  SlotId AnySlot() {
    return SlotId::Make(Below(2) == 0 ? Tier::kCpu : Tier::kSsd, Below(shape_.slots));
  }

  // Mostly soon after the one before; one in four was here before.
  BlockAccess NextAccess(const std::vector<BlockHash>& chain) {
    now_ += Below(Below(4) == 0 ? UINT32_MAX : 1u << 20);
    return {.now = now_,
            .hint = {.continue_p = Below(2) == 0 ? -1.0f : 0.9f},
            .chain_blocks = Below(4) == 0 ? 0 : static_cast<uint32_t>(chain.size()),
            .touched_before = Below(4) == 0 ? Below(shape_.longest) : 0,
            .tokens_per_block = 16u << Below(6)};
  }

  void Insert() {
    const std::vector<BlockHash> chain = AnyChain();
    const uint32_t count = Below(2) == 0 ? 1 + Below(4) : shape_.longest;
    pair_.Insert(AnyNamespace(), chain, count, NextAccess(chain));
  }
  // Out of order, in bursts; now and then everything, so that readiness does not stall.
  void CommitSome() {
    if (Below(8) == 0) {
      std::vector<uint32_t> all;
      for (const auto& [slot, key] : pair_.model().by_slot) {
        if (!pair_.model().blocks.at(key).arrived) all.push_back(slot);
      }
      std::shuffle(all.begin(), all.end(), random_);
      for (uint32_t slot : all) pair_.Commit(SlotId{slot});
      return;
    }
    for (uint32_t n = 1 + Below(8); n > 0; --n) pair_.Commit(AnySlot());
  }
  void Match() {
    const NamespaceId ns = AnyNamespace();
    const std::vector<BlockHash> chain = AnyChain();
    pair_.Match(ns, chain, NextAccess(chain));
  }
  void PinSome() {
    const NamespaceId ns = AnyNamespace();
    const std::vector<BlockHash> chain = AnyChain();
    const PrefixMatch match = pair_.Match(ns, chain, NextAccess(chain));
    if (match.num_blocks == 0) return;
    const SlotId slot = pair_.tree().Ancestor(match.last, Below(match.num_blocks));
    pair_.Pin(slot);
    leases_.emplace_back(ns, slot);
  }
  void UnpinSome() {
    if (leases_.empty()) return;
    const uint32_t i = Below(static_cast<uint32_t>(leases_.size()));
    pair_.Unpin(leases_[i].first,
                leases_[i].second);  // its namespace may be gone: then nothing happens
    leases_.erase(leases_.begin() + i);
  }
  void EraseSome() { pair_.Erase(AnySlot()); }
  void Drop() {
    pair_.DropNamespace(first_ns_);
    pair_.AddNamespace(first_ns_ + 2);
    ++first_ns_;
  }

  Shape shape_;
  std::mt19937_64 random_;
  Pair pair_;
  TimeNs now_ = kNsPerSecond;
  NamespaceId first_ns_ = 0;
  std::vector<std::vector<uint32_t>> pool_;
  std::vector<std::pair<NamespaceId, SlotId>> leases_;
};

class RadixTreeModel : public ::testing::TestWithParam<Shape> {};

// `make(seed)` begins a history.
template <typename Make>
void RunHistories(uint64_t seeds, uint32_t steps, Make make) {
  const char* given = std::getenv("FLEXKV_TEST_SEED");
  const uint64_t first_seed =
      given != nullptr ? std::strtoull(given, nullptr, 10) : std::random_device{}();
  if (given != nullptr) seeds = 1;
  for (uint64_t seed = first_seed; seed < first_seed + seeds; ++seed) {
    SCOPED_TRACE(::testing::Message() << "FLEXKV_TEST_SEED=" << seed);
    std::unique_ptr<History> history = make(seed);
    for (uint32_t step = 0; step < steps; ++step) {
      history->Step();
      if (::testing::Test::HasFailure()) FAIL() << "step " << step;
    }
  }
}

TEST_P(RadixTreeModel, AgreesWithTheModel) {
  RunHistories(8, GetParam().steps,
               [](uint64_t seed) { return std::make_unique<History>(GetParam(), seed); });
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, RadixTreeModel,
    ::testing::Values(
        Shape{"Short", HashKind::kUniform, 24, 8, 8000},        // many splits, merges and evictions
        Shape{"Long", HashKind::kUniform, 600, 300, 1500},      // several anchors
        Shape{"SameTag", HashKind::kSameTag, 100, 150, 3000},   // equal first words
        Shape{"SameKey", HashKind::kSameKey, 100, 150, 3000}),  // equal cells in the head table
    [](const auto& shape) { return std::string(shape.param.name); });

// Every policy that the daemon offers has its plain twin in model_policies.h.
class PolicyModel
    : public ::testing::TestWithParam<std::tuple<std::string_view, EvictionObjective>> {};

TEST_P(PolicyModel, AgreesWithTheModel) {
  const std::string name(std::get<0>(GetParam()));
  const EvictionObjective objective = std::get<1>(GetParam());
  ASSERT_NE(NewModelPolicy(name, objective), nullptr) << "no model for " << name;
  const Shape shapes[] = {{"Short", HashKind::kUniform, 40, 12, 2500},
                          {"Long", HashKind::kUniform, 400, 200, 800},
                          {"SameTag", HashKind::kSameTag, 100, 100, 1200}};
  for (const Shape& shape : shapes) {
    SCOPED_TRACE(shape.name);
    const uint64_t seeds = objective == EvictionObjective::kTokens ? 2 : 1;
    RunHistories(seeds, shape.steps, [&](uint64_t seed) {
      return std::make_unique<History>(shape, seed, name, objective);
    });
  }
}

INSTANTIATE_TEST_SUITE_P(
    Names, PolicyModel,
    ::testing::Combine(::testing::ValuesIn(PolicyNames().begin(), PolicyNames().end()),
                       ::testing::Values(EvictionObjective::kTokens, EvictionObjective::kCompute)),
    [](const auto& param) {
      const bool compute = std::get<1>(param.param) == EvictionObjective::kCompute;
      return std::string(std::get<0>(param.param)) + (compute ? "_compute" : "_tokens");
    });

}  // namespace
}  // namespace flexkv::testing
