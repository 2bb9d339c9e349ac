// What the scheduler's half remembers of each request and of each load under way. Plain data;
// SchedulerSession works on it.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/string_view.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/request_hint.h"

namespace flexkv {

enum class LookupState : uint8_t {
  kNone,      // nothing asked, or the answer was used
  kPosted,    // asked, no answer yet
  kAnswered,  // matched_blocks and lease are valid
};

struct SchedulerRequest {
  std::string id;
  RequestKey key = 0;
  uint32_t num_prompt_tokens = 0;
  RequestHint hint;

  std::vector<BlockHash> hashes;  // known so far
  uint32_t hashes_sent = 0;       // of them, known to the present daemon

  LookupState lookup = LookupState::kNone;
  uint32_t lookup_sequence = 0;  // of the latest lookup; older replies are stale
  TimeNs lookup_posted_at = 0;
  TimeNs answered_at = 0;
  uint32_t matched_blocks = 0;
  uint32_t warm_blocks = 0;  // of them, the first so many were in the daemon's memory
  bool cold_left = false;    // its cold part was not worth a load
  LeaseId lease = 0;

  bool nothing_external = false;       // a load failed or a lookup timed out: never offer again
  bool recorded = false;               // counted in the hit rate
  uint32_t local_computed_tokens = 0;  // at the latest MatchedTokens
  uint32_t offered_tokens = 0;
  bool offered_layerwise = false;  // the latest offer: to be computed with in the same step
  TimeNs blocked_since = 0;        // waiting for another request's load of the same prefix

  std::vector<uint32_t> block_ids;  // GPU block ids from the first token on
  uint32_t stored_blocks =
      0;           // blocks [0, stored_blocks) are held by the daemon or were offered to it
  OpKey load = 0;  // under way, 0 when none
};

struct SchedulerLoad {
  // Are these blocks of the request under way?
  bool Covers(uint32_t block) const { return block >= first && block - first < count; }

  OpKey key = 0;
  std::shared_ptr<const SchedulerRequest> request;  // its hashes outlive its place in the table
  uint32_t first = 0;                               // first block loaded
  uint32_t count = 0;
  std::vector<uint32_t> block_ids;
  bool lost = false;   // its daemon is gone: others need not wait for it
  bool ended = false;  // arrived, but the engine has not looked at the request since
  // Computed with while it arrives: the engine has the blocks in its prefix cache already.
  bool layerwise = false;
  bool failed = false;      // layerwise: on a rank that has told
  uint32_t ranks_left = 0;  // layerwise: have not told yet
};

// Requests by id. Pointers stay valid until Erase, shared ones longer.
class RequestTable {
 public:
  SchedulerRequest* Add(absl::string_view id) {
    std::shared_ptr<SchedulerRequest>& slot = requests_[id];
    slot = std::make_shared<SchedulerRequest>();
    slot->id = std::string(id);
    slot->key = next_key_++;
    by_key_[slot->key] = slot.get();
    return slot.get();
  }
  SchedulerRequest* Find(absl::string_view id) const {
    auto it = requests_.find(id);
    return it == requests_.end() ? nullptr : it->second.get();
  }
  SchedulerRequest* FindByKey(RequestKey key) const {
    auto it = by_key_.find(key);
    return it == by_key_.end() ? nullptr : it->second;
  }
  // REQUIRES: request is in the table.
  std::shared_ptr<const SchedulerRequest> Share(const SchedulerRequest* request) const {
    return requests_.at(request->id);
  }
  void Erase(absl::string_view id) {
    auto it = requests_.find(id);
    if (it == requests_.end()) return;
    by_key_.erase(it->second->key);
    requests_.erase(it);
  }
  template <typename Function>
  void ForEach(Function function) {
    for (auto& [id, request] : requests_) function(request.get());
  }

 private:
  absl::flat_hash_map<std::string, std::shared_ptr<SchedulerRequest>> requests_;
  absl::flat_hash_map<RequestKey, SchedulerRequest*> by_key_;
  RequestKey next_key_ = 1;
};

}  // namespace flexkv
