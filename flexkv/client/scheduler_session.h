// The scheduler's half of the connector: everything the engine's scheduler process does for the
// cache, without Python. One object per engine. It translates scheduler events into ring messages
// and step plans; it holds no index and no policy beyond "is this load worth a step".
//
// Thread: all methods on the engine's scheduler thread. They never block longer than Options says,
// never throw, and with no daemon they answer "nothing cached" at once. A private thread attaches,
// and re-attaches after a daemon restart.
//
// A step, in the order vLLM calls:
//   NewRequest            posts the lookup
//   MatchedTokens         reads its answer (memoised; asked again every step while the request
//   waits) BlocksAllocated       launches the load, trims the lease BeginStep, ScheduledNew /
//   ScheduledCached for each request, EndStep -> the step plan for the workers LoadEnded when the
//   workers report RequestFinished
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/ids.h"
#include "flexkv/base/request_hint.h"

namespace flexkv {

struct SchedulerOptions {
  std::string socket_path;     // the daemon's handshake socket
  uint64_t engine_id[2] = {};  // the same for the scheduler and all ranks; random per engine start
  uint32_t world_size = 1;
  uint32_t tokens_per_block = 0;  // the engine's block size
  std::string label;              // shown by status; no secrets
  std::string fingerprint;        // everything that decides what bytes mean and hashes do not say
  uint32_t lookup_wait_us =
      100;  // longest one MatchedTokens call waits before it answers "ask again"
  uint32_t lookup_timeout_ms =
      20;  // a lookup older than this counts as "nothing cached", and opens the breaker
  uint32_t load_timeout_ms =
      10000;  // longest a request waits for another request's load of the same prefix
  int32_t min_load_tokens =
      -1;  // shorter external hits are not taken; -1: from measured step time and rates
  // The engine forwards no step metadata: plans go over the plan board (plan_board.h), stores only
  // when a request ends.
  bool reduced = false;
  // The engine gives blocks of running requests back (sliding window): what is stored is then taken
  // from the block table of the moment (HashSource::CurrentBlocks), never from what was allocated
  // once.
  bool block_tables_change = false;
  uint32_t answer_lifetime_ms =
      10000;  // a memoised answer older than this is asked for again (its lease may be over)
  // Hits that lie in the daemon's memory as a whole are offered as layerwise loads: the engine
  // computes with them in the very step that loads them (see OfferIsLayerwise). Not in the reduced
  // mode.
  bool layerwise_loads = false;
};

// GPU block id of the engine's null block: stands where a block is outside a sliding window. Holds
// no request's bytes.
inline constexpr uint32_t kNullBlock = 0;

// What the session asks the engine about a request, when it needs it.
class HashSource {
 public:
  virtual ~HashSource() = default;
  // Only with SchedulerOptions::block_tables_change: replaces `block_ids` by the request's block
  // table as it is now. False: unknown request, nothing may be stored.
  virtual bool CurrentBlocks(std::string_view /*request_id*/,
                             std::vector<uint32_t>* /*block_ids*/) {
    return false;
  }
  // Appends the request's block hashes from position `from` on.
  virtual void AppendHashes(std::string_view request_id, uint32_t from,
                            std::vector<BlockHash>* hashes) = 0;
};

struct SchedulerStats {
  uint64_t lookups = 0, lookup_timeouts = 0, breaker_opens = 0, loads = 0, load_failures = 0,
           puts = 0, put_blocks = 0, fenced_blocks = 0, short_hits_skipped = 0, stampede_waits = 0,
           ring_full = 0, reattaches = 0;
  uint64_t layer_loads = 0, layer_loads_failed = 0;  // ended on all ranks
  uint64_t prompt_tokens = 0, engine_matched_tokens = 0, offered_tokens = 0, taken_tokens = 0,
           loaded_tokens = 0, failed_tokens = 0;
  double prefill_tokens_per_s = 0, step_ms = 0, load_tokens_per_s = 0;
  uint64_t min_load_tokens = 0;
  uint64_t stores_under_way = 0;  // offered, and the daemon has not said that they are over
  bool ready = false;             // attached, with all ranks
  bool breaker_open = false;
};

class SchedulerSession {
 public:
  using Options = SchedulerOptions;
  // `hashes` outlives the session. InvalidArgument: bad options. Does not wait for a daemon.
  static absl::StatusOr<std::unique_ptr<SchedulerSession>> Open(const Options& options,
                                                                HashSource* hashes);
  ~SchedulerSession();

  // --- requests ---------------------------------------------------------------------------------
  // `hint` goes to the daemon with the request's lookups; one that is not valid() is left out.
  void NewRequest(std::string_view id, uint32_t num_prompt_tokens, const RequestHint& hint = {});
  // Tokens that can be loaded beyond `num_computed_tokens` (block-aligned). kAskAgain: not known
  // yet.
  static constexpr int64_t kAskAgain = -1;
  int64_t MatchedTokens(std::string_view id, uint32_t num_computed_tokens, uint32_t num_tokens);
  // Of the latest answer of MatchedTokens: whether the engine may compute with these blocks in the
  // step that allocates them. Every block of the hit is in the daemon's memory, complete on every
  // rank and leased; at least one token is left to compute. Such a load is no asynchronous one:
  // LoadEnded knows nothing of it, its workers tell through LayerLoadEnded.
  bool OfferIsLayerwise(std::string_view id) const;
  // The engine gave the request `block_ids` (all of them, from its first token on) and takes
  // `num_external_tokens`.
  void BlocksAllocated(std::string_view id, std::span<const uint32_t> block_ids,
                       uint32_t num_external_tokens);
  void RequestFinished(std::string_view id);
  // Reduced mode, instead of RequestFinished: stores the request's full blocks, `block_ids` being
  // its block table. True: the engine must hold the blocks until every rank's worker has reported
  // the store (WorkerSession::Report::stores).
  bool FinishWithStore(std::string_view id, std::span<const uint32_t> block_ids,
                       uint32_t num_computed_tokens);
  // A load that was promised ended on all ranks; `failed` when any block of it did not arrive.
  void LoadEnded(std::string_view id, bool failed);
  // A rank's worker tells that a layerwise load is over there (WorkerSession::Report). When it was
  // the last rank, `request_id` says whose load it was; when the load has failed on any, the GPU
  // blocks whose content is not to be trusted are returned (what was loaded, and what the request
  // has behind it). Until then no block of a request that shares blocks with the load is stored: it
  // may have been computed from bytes that did not arrive.
  std::vector<uint32_t> LayerLoadEnded(OpKey key, bool failed, std::string* request_id = nullptr);
  // True while a load of this request is under way.
  bool LoadOutstanding(std::string_view id) const;
  // GPU block ids of the request's load under way (empty when none): to tell which failed blocks
  // are its own.
  std::span<const uint32_t> LoadBlocks(std::string_view id) const;

  // --- steps ------------------------------------------------------------------------------------
  void BeginStep(uint32_t total_scheduled_tokens);
  // First time scheduled: all its block ids.
  void ScheduledNew(std::string_view id, std::span<const uint32_t> block_ids,
                    uint32_t num_computed_tokens, uint32_t num_scheduled_tokens);
  // Scheduled before: only the new block ids, or all of them when `resumed`.
  void ScheduledCached(std::string_view id, std::span<const uint32_t> new_block_ids, bool resumed,
                       uint32_t num_computed_tokens, uint32_t num_scheduled_tokens);
  // The plan of this step for every worker (see step_plan.h); empty when there is nothing to do.
  // Valid until the next BeginStep.
  std::span<const std::byte> EndStep();

  // Starts a new epoch of the namespace for all its engines; true once visible, false without a
  // daemon or after timeout_ms.
  bool ResetCache(uint32_t timeout_ms);

  // Waits until attached with all ranks, for start-up and tests. False after timeout_ms.
  bool WaitReady(uint32_t timeout_ms);
  SchedulerStats stats() const;

 private:
  struct Impl;
  explicit SchedulerSession(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace flexkv
