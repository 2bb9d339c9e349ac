// Exact least recently used: the word is the sequence number of the block's last access.
#include <algorithm>

#include "flexkv/index/eviction_policy.h"

namespace flexkv {
namespace {

class LruPolicy final : public EvictionPolicy {
 public:
  void BeginAccess(const BlockAccess& /*access*/) override { ++sequence_; }
  void OnInsert(const InsertedRun& run) override {
    std::fill(run.words.begin(), run.words.end(), sequence_);
  }
  void OnTouch(std::span<PolicyWord> words, uint32_t /*first_depth*/) override {
    std::fill(words.begin(), words.end(), sequence_);
  }
  uint64_t Score(PolicyWord word, uint32_t /*depth*/) const override { return word; }
  std::string_view name() const override { return "lru"; }

 private:
  uint64_t sequence_ = 0;
};

}  // namespace

std::unique_ptr<EvictionPolicy> MakeLruPolicy() { return std::make_unique<LruPolicy>(); }

}  // namespace flexkv
