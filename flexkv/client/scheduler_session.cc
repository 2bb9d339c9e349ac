// One thread (the engine's scheduler) uses everything here but the link. What belongs to one daemon
// life (leases, chains sent, posted lookups) is forgotten when the channel changes; what belongs to
// the engine (blocks, loads promised) stays.
#include "flexkv/client/scheduler_session.h"

#include <emmintrin.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "flexkv/client/daemon_link.h"
#include "flexkv/client/load_economics.h"
#include "flexkv/client/plan_board.h"
#include "flexkv/client/request_table.h"
#include "flexkv/client/step_plan.h"
#include "proto/lookup_fields.h"

namespace flexkv {
namespace {

constexpr TimeNs kSpinNs = 20 * kNsPerUs;
constexpr TimeNs kReportEveryNs = kNsPerSecond;
// Per message; a longer run goes in several steps' messages.
constexpr uint32_t kMaxPutBlocks = 4096;
// Messages that may wait for the next bell; more would fill the ring of a daemon that sleeps.
constexpr uint32_t kMaxUnrung = shm::kRingSlots / 4;

absl::string_view View(std::string_view text) { return {text.data(), text.size()}; }

// GPU blocks that unfinished ops use, and the ops that do.
class BlockUsers {
 public:
  void Add(OpKey key, std::span<const uint32_t> block_ids) {
    std::vector<uint32_t>& blocks = by_op_[key];
    blocks.assign(block_ids.begin(), block_ids.end());
    for (uint32_t block : blocks) {
      if (block >= users_.size()) users_.resize(block + 1);
      ++users_[block];
    }
  }
  void Ended(OpKey key) {
    auto it = by_op_.find(key);
    if (it == by_op_.end()) return;
    for (uint32_t block : it->second) --users_[block];
    by_op_.erase(it);
  }
  bool Uses(uint32_t block) const { return block < users_.size() && users_[block] > 0; }
  bool empty() const { return by_op_.empty(); }
  size_t size() const { return by_op_.size(); }

 private:
  std::vector<uint32_t> users_;
  absl::flat_hash_map<OpKey, std::vector<uint32_t>> by_op_;
};

}  // namespace

using Loads = absl::flat_hash_map<OpKey, SchedulerLoad>;

struct SchedulerSession::Impl {
  Options options;
  HashSource* hash_source = nullptr;
  SteadyClock clock;
  std::unique_ptr<DaemonLink> link;
  std::shared_ptr<Channel> channel;
  uint64_t generation = 0;

  bool ready = false;         // daemon says: all ranks attached
  bool breaker_open = false;  // a lookup timed out and nothing was heard since
  uint32_t unrung = 0;        // messages pushed that the daemon was not woken for
  RequestTable requests;
  // Ended, and the daemon not told yet: it keeps their chains until it is.
  std::vector<RequestKey> ended_requests;
  Loads loads;
  BlockUsers sources;       // of stores: who overwrites these, fences
  BlockUsers layer_blocks;  // of layerwise loads that are not known to have arrived
  OpKey next_op = 1;
  uint32_t next_sequence = 1;
  uint64_t reset_number = 0, reset_answered = 0;
  bool reset_ok = false;

  PlanBuilder plan;
  uint64_t plan_number = 0;
  bool step_open = false;
  struct NewOp {
    OpKey key;
    Route route;
    bool dead;
    std::vector<uint32_t> block_ids;
    std::string request_id;
    bool layerwise = false;
  };
  std::vector<NewOp> step_ops;             // loads since the last plan, stores of this step
  std::vector<uint32_t> new_owner_blocks;  // blocks that got an owner since the last plan
  TimeNs step_began = 0;
  uint32_t step_tokens = 0, step_requests = 0;
  TimeNs reported_at = 0;

  // Reduced mode.
  std::unique_ptr<PlanBoard> board;
  std::deque<std::vector<std::byte>> unpublished;  // plans the board had no room for, oldest first

  LoadEconomics economics;
  SchedulerStats stats;
  std::vector<std::byte> payload;  // scratch

  bool Usable();
  void OnEngineChanged();
  bool Push(const shm::Message& message, std::span<const std::byte> bytes = {});
  void RingIfDue();
  void SendEnds();
  void Drain();
  void HandleCompletion(const shm::Message& message);
  void HandleLookupReply(const shm::Message& message);
  void SyncHashes(SchedulerRequest* request, uint32_t wanted);
  void PostLookup(SchedulerRequest* request);
  void AwaitAnswer(SchedulerRequest* request);
  bool BlockedByOtherLoad(SchedulerRequest* request, uint32_t first_block);
  uint32_t WorthLoading(SchedulerRequest* request, uint32_t hit, uint32_t computed);
  uint32_t LayerwiseTokens(const SchedulerRequest& request, uint32_t external, uint32_t computed,
                           uint32_t num_tokens) const;
  bool UsesLayerBlocks(const SchedulerRequest& request) const;
  uint32_t MinLoadTokens() const;
  void ReleaseLease(SchedulerRequest* request);
  void StartLoad(SchedulerRequest* request, uint32_t num_external_tokens);
  void SettleLoad(std::string_view id);
  // Asynchronous, of the request, under way or (ended) waiting to be settled; loads.end() when
  // there is none.
  Loads::iterator FindLoad(std::string_view id, bool ended);
  SchedulerRequest* RecordEnd(const SchedulerLoad& load, bool failed);
  void RecordGet(SchedulerRequest* request, uint32_t taken_tokens);
  // The op's key, 0 when nothing was offered.
  OpKey Store(SchedulerRequest* request, uint32_t num_computed_after);
  std::span<const std::byte> Deliver(std::span<const std::byte> plan);
  void OwnBlocks(std::span<const uint32_t> block_ids, uint32_t from);
  void ReportStats(TimeNs now);
};

// --- the daemon ---------------------------------------------------------------------------------

// True when there is a daemon to talk to; notices a new one.
bool SchedulerSession::Impl::Usable() {
  const uint64_t before = generation;
  link->Current(&channel, &generation);
  if (generation != before) {
    ready = false;
    OnEngineChanged();
  }
  return channel != nullptr && channel->alive();
}

// The daemon knows this engine under a new handle (or not at all): chains, leases and ops of the
// old one are gone.
void SchedulerSession::Impl::OnEngineChanged() {
  breaker_open = false;
  ended_requests.clear();
  sources = BlockUsers();  // the workers' agents drop ops of the old daemon by themselves
  requests.ForEach([](SchedulerRequest* request) {
    request->hashes_sent = 0;
    request->lookup = LookupState::kNone;
    request->lease = 0;
    request->matched_blocks = 0;
    request->stored_blocks =
        0;  // it may hold nothing of the running requests: offer their blocks again
  });
  for (auto& [key, load] : loads) load.lost = true;
  reset_answered = reset_number;
  reset_ok = false;
}

bool SchedulerSession::Impl::Push(const shm::Message& message, std::span<const std::byte> bytes) {
  if (channel != nullptr && channel->Post(message, bytes)) {
    if (++unrung >= kMaxUnrung) RingIfDue();
    return true;
  }
  ++stats.ring_full;
  return false;
}

// What a full ring had no room for goes with a later call.
void SchedulerSession::Impl::SendEnds() {
  while (!ended_requests.empty()) {
    shm::Message message = shm::MakeMessage(shm::MessageType::kEndRequest);
    message.request = ended_requests.back();
    if (!Push(message)) return;
    ended_requests.pop_back();
  }
}

// Wakes the daemon for all that was pushed since the last time: once for new questions, once at the
// end of a step. Ends of requests and records may wait for the next of these, or the daemon's tick.
void SchedulerSession::Impl::RingIfDue() {
  if (std::exchange(unrung, 0) == 0 || channel == nullptr) return;
  channel->Ring();
}

void SchedulerSession::Impl::Drain() {
  if (!Usable()) return;
  shm::Message message;
  while (true) {
    const shm::PopResult result = channel->Pop(&message, &payload);
    if (result == shm::PopResult::kEmpty) return;
    if (result == shm::PopResult::kViolation) {
      channel->MarkDead();
      return;
    }
    breaker_open = false;
    HandleCompletion(message);
  }
}

void SchedulerSession::Impl::HandleCompletion(const shm::Message& message) {
  switch (static_cast<shm::MessageType>(message.type)) {
    case shm::MessageType::kLookupReply:
      HandleLookupReply(message);
      break;
    case shm::MessageType::kOpEnded:
      if (message.route == static_cast<uint32_t>(Route::kDeviceToCpu)) {
        sources.Ended(message.op);
      } else if (message.status == static_cast<uint32_t>(shm::WireStatus::kOk)) {
        // The copy's own time: the engine hears of a load's end a step later, whatever it took.
        economics.RecordLoad(message.first * options.tokens_per_block,
                             static_cast<uint32_t>(message.request) * options.tokens_per_block,
                             message.lease);
      }
      break;
    case shm::MessageType::kPutReply:
      if (message.count == 0) sources.Ended(message.op);
      break;
    case shm::MessageType::kResetReply:
      reset_answered = message.request;
      reset_ok = message.status == static_cast<uint32_t>(shm::WireStatus::kOk);
      break;
    case shm::MessageType::kEngineReady:
      ready = message.first != 0;
      OnEngineChanged();
      break;
    default:
      break;  // a newer daemon's message
  }
}

void SchedulerSession::Impl::HandleLookupReply(const shm::Message& message) {
  SchedulerRequest* request = requests.FindByKey(message.request);
  if (request == nullptr || request->lookup != LookupState::kPosted ||
      request->lookup_sequence != message.sequence) {
    return;  // ended or asked again meanwhile; the daemon ends such leases with the request
  }
  request->lookup = LookupState::kAnswered;
  request->answered_at = clock.Now();
  const bool ok = message.status == static_cast<uint32_t>(shm::WireStatus::kOk);
  request->matched_blocks =
      ok ? std::min<uint32_t>(message.first, static_cast<uint32_t>(request->hashes.size())) : 0;
  request->warm_blocks = std::min(message.count, request->matched_blocks);
  request->cold_left = false;
  request->lease = ok ? message.lease : 0;
  if (!ok) request->hashes_sent = 0;
  // Running requests store only what is not known to be there.
  request->stored_blocks = std::max(request->stored_blocks, request->matched_blocks);
}

// --- lookups ------------------------------------------------------------------------------------

void SchedulerSession::Impl::SyncHashes(SchedulerRequest* request, uint32_t wanted) {
  const auto known = static_cast<uint32_t>(request->hashes.size());
  if (wanted > known) hash_source->AppendHashes(request->id, known, &request->hashes);
}

void SchedulerSession::Impl::PostLookup(SchedulerRequest* request) {
  SyncHashes(request, UINT32_MAX);
  const auto total = static_cast<uint32_t>(request->hashes.size());
  if (total == 0 || total - request->hashes_sent > shm::kMaxHashesPerMessage) return;
  shm::Message message = shm::MakeMessage(shm::MessageType::kLookup);
  message.sequence = next_sequence++;
  message.request = request->key;
  message.first = request->hashes_sent;
  message.count = total - request->hashes_sent;
  shm::PackLookup({.prompt_tokens = request->num_prompt_tokens, .hint = request->hint}, &message);
  if (!Push(message, std::as_bytes(std::span(request->hashes).subspan(request->hashes_sent)))) {
    return;
  }
  request->hashes_sent = total;
  request->lookup = LookupState::kPosted;
  request->lookup_sequence = message.sequence;
  request->lookup_posted_at = clock.Now();
  ++stats.lookups;
}

// Waits a bounded moment for a posted lookup: spins first, then sleeps on the bell.
void SchedulerSession::Impl::AwaitAnswer(SchedulerRequest* request) {
  RingIfDue();
  const TimeNs start = clock.Now();
  const TimeNs wait = options.lookup_wait_us * kNsPerUs;
  while (request->lookup == LookupState::kPosted) {
    if (channel->HasCompletion()) {
      Drain();
      if (channel == nullptr) return;
      continue;
    }
    const TimeNs waited = clock.Now() - start;
    if (waited >= wait || !channel->alive()) return;
    if (waited < kSpinNs) {
      _mm_pause();
    } else {
      channel->Sleep(wait - waited);
    }
  }
}

bool SchedulerSession::Impl::BlockedByOtherLoad(SchedulerRequest* request, uint32_t first_block) {
  for (const auto& [key, load] : loads) {
    if (load.lost || load.layerwise || !load.Covers(first_block) ||
        first_block >= request->hashes.size()) {
      continue;
    }
    if (!(load.request->hashes[first_block] == request->hashes[first_block])) continue;
    const TimeNs now = clock.Now();
    if (request->blocked_since == 0) {
      request->blocked_since = now;
      ++stats.stampede_waits;
    }
    return now - request->blocked_since < options.load_timeout_ms * kNsPerMs;
  }
  request->blocked_since = 0;
  return false;
}

// How many of `hit` tokens behind the first `computed` ones to load.
uint32_t SchedulerSession::Impl::WorthLoading(SchedulerRequest* request, uint32_t hit,
                                              uint32_t computed) {
  if (options.min_load_tokens >= 0) {
    return hit >= static_cast<uint32_t>(options.min_load_tokens) ? hit : 0;
  }
  const uint64_t warm_end = uint64_t{request->warm_blocks} * options.tokens_per_block;
  const auto warm =
      static_cast<uint32_t>(std::min<uint64_t>(hit, warm_end > computed ? warm_end - computed : 0));
  const uint32_t worth = economics.WorthLoading(hit, warm, options.tokens_per_block);
  if (worth < hit && warm < hit && !std::exchange(request->cold_left, true))
    economics.NoteColdLeft();
  return worth;
}

uint32_t SchedulerSession::Impl::MinLoadTokens() const {
  if (options.min_load_tokens >= 0) return static_cast<uint32_t>(options.min_load_tokens);
  return economics.MinLoadTokens(options.tokens_per_block);
}

void SchedulerSession::NewRequest(std::string_view id, uint32_t num_prompt_tokens,
                                  const RequestHint& hint) {
  Impl& impl = *impl_;
  SchedulerRequest* request = impl.requests.Find(View(id));
  if (request != nullptr) RequestFinished(id);  // an id used again: the old one is over
  request = impl.requests.Add(View(id));
  request->num_prompt_tokens = num_prompt_tokens;
  request->hint = hint;
  if (!impl.Usable()) return;
  impl.Drain();
  if (impl.ready && !impl.breaker_open) impl.PostLookup(request);
  impl.RingIfDue();  // the answer shall be there when the request is considered for scheduling
}

int64_t SchedulerSession::MatchedTokens(std::string_view id, uint32_t num_computed_tokens,
                                        uint32_t num_tokens) {
  Impl& impl = *impl_;
  SchedulerRequest* request = impl.requests.Find(View(id));
  if (request == nullptr || request->nothing_external || request->load != 0) return 0;
  if (!impl.Usable()) return 0;
  impl.Drain();
  request->local_computed_tokens = num_computed_tokens;
  request->offered_layerwise = false;
  if (!impl.ready) return 0;
  if (request->lookup == LookupState::kAnswered &&
      impl.clock.Now() - request->answered_at > impl.options.answer_lifetime_ms * kNsPerMs) {
    request->lookup = LookupState::kNone;  // its lease may be over
  }
  if (impl.breaker_open) return 0;
  if (request->lookup == LookupState::kNone) impl.PostLookup(request);
  if (request->lookup == LookupState::kPosted) impl.AwaitAnswer(request);
  if (request->lookup == LookupState::kPosted) {
    const TimeNs age = impl.clock.Now() - request->lookup_posted_at;
    if (age < impl.options.lookup_timeout_ms * kNsPerMs) return kAskAgain;
    request->nothing_external = true;
    ++impl.stats.lookup_timeouts;
    ++impl.stats.breaker_opens;
    impl.breaker_open = true;
    return 0;
  }
  if (request->lookup != LookupState::kAnswered) return 0;

  const uint64_t block = impl.options.tokens_per_block;
  const uint64_t matched =
      std::min<uint64_t>(request->matched_blocks * block, num_tokens / block * block);
  if (num_computed_tokens % block != 0 || matched <= num_computed_tokens) return 0;
  const uint32_t external =
      impl.WorthLoading(request, static_cast<uint32_t>(matched - num_computed_tokens),
                        static_cast<uint32_t>(num_computed_tokens));
  if (external == 0) {
    ++impl.stats.short_hits_skipped;
    return 0;
  }
  const auto first_block = static_cast<uint32_t>(num_computed_tokens / block);
  if (impl.BlockedByOtherLoad(request, first_block)) return kAskAgain;
  const uint32_t layerwise =
      impl.LayerwiseTokens(*request, external, num_computed_tokens, num_tokens);
  request->offered_layerwise = layerwise > 0;
  request->offered_tokens = layerwise > 0 ? layerwise : external;
  return request->offered_tokens;
}

bool SchedulerSession::OfferIsLayerwise(std::string_view id) const {
  if (!impl_->options.layerwise_loads) return false;
  const SchedulerRequest* request = impl_->requests.Find(View(id));
  return request != nullptr && request->offered_layerwise;
}

// How many of `external` tokens behind the first `computed` ones to load layer by layer; 0: load
// them asynchronously.
uint32_t SchedulerSession::Impl::LayerwiseTokens(const SchedulerRequest& request, uint32_t external,
                                                 uint32_t computed, uint32_t num_tokens) const {
  if (!options.layerwise_loads || options.reduced) return 0;
  if (request.warm_blocks < request.matched_blocks || request.lease == 0) return 0;
  const uint32_t block = options.tokens_per_block;
  const uint32_t most = num_tokens > 0 ? (num_tokens - 1) / block * block : 0;
  return most > computed ? std::min(external, most - computed) : 0;
}

// --- loads --------------------------------------------------------------------------------------

void SchedulerSession::Impl::ReleaseLease(SchedulerRequest* request) {
  if (request->lease == 0) return;
  shm::Message message = shm::MakeMessage(shm::MessageType::kReleaseLease);
  message.request = request->key;
  message.lease = request->lease;
  Push(message);  // when the ring is full the lease ends with the request or by its deadline
  request->lease = 0;
  request->lookup = LookupState::kNone;
}

void SchedulerSession::Impl::RecordGet(SchedulerRequest* request, uint32_t taken_tokens) {
  if (request->recorded) return;
  request->recorded = true;
  stats.prompt_tokens += request->num_prompt_tokens;
  stats.engine_matched_tokens += request->local_computed_tokens;
  stats.offered_tokens += request->offered_tokens;
  stats.taken_tokens += taken_tokens;
  shm::Message message = shm::MakeMessage(shm::MessageType::kRecordGet);
  message.request = request->key;
  shm::GetRecordBody body;
  body.prompt = request->num_prompt_tokens;
  body.engine_matched = request->local_computed_tokens;
  body.offered = request->offered_tokens;
  body.taken = taken_tokens;
  Push(message, shm::AsBytes(body));
}

// From here on the load is promised to the engine: whatever fails now must end as a failed load.
void SchedulerSession::Impl::StartLoad(SchedulerRequest* request, uint32_t num_external_tokens) {
  const uint32_t block = options.tokens_per_block;
  SchedulerLoad load;
  load.key = next_op++;
  load.request = requests.Share(request);
  load.first = request->local_computed_tokens / block;
  uint32_t count = num_external_tokens / block;
  // Blocks outside a sliding window are the null block: nobody reads them, so they are not loaded.
  while (count > 0 && load.first < request->block_ids.size() &&
         request->block_ids[load.first] == kNullBlock) {
    ++load.first;
    --count;
  }
  const size_t end = std::min(size_t{load.first} + count, request->block_ids.size());
  load.block_ids.assign(
      request->block_ids.begin() + static_cast<ptrdiff_t>(std::min<size_t>(load.first, end)),
      request->block_ids.begin() + static_cast<ptrdiff_t>(end));
  load.count = static_cast<uint32_t>(load.block_ids.size());
  load.layerwise = std::exchange(request->offered_layerwise, false);
  if (load.layerwise && count == 0) return ReleaseLease(request);  // all outside the window

  shm::Message message = shm::MakeMessage(shm::MessageType::kLoad);
  message.request = request->key;
  message.op = load.key;
  message.lease = request->lease;
  message.first = load.first;
  message.count = count;
  const bool complete =
      count > 0 && load.count == count && size_t{load.first} + count <= request->hashes.size();
  const bool sent = complete && request->lease != 0 && Usable() && ready && Push(message);
  if (load.layerwise) {
    RingIfDue();  // the step waits for the daemon's half
    load.ranks_left = options.world_size;
    layer_blocks.Add(load.key, load.block_ids);
  }
  step_ops.push_back(
      {load.key, Route::kCpuToDevice, !sent, load.block_ids, request->id, load.layerwise});
  OwnBlocks(load.block_ids, 0);
  request->lease = 0;  // the daemon's op holds it now
  request->lookup = LookupState::kNone;
  request->load = load.key;
  load.lost = !sent;
  ++stats.loads;
  loads.emplace(load.key, std::move(load));
}

// The engine has seen the loaded blocks into its own prefix cache: others find them there.
void SchedulerSession::Impl::SettleLoad(std::string_view id) {
  const auto load = FindLoad(id, /*ended=*/true);
  if (load != loads.end()) loads.erase(load);
}

Loads::iterator SchedulerSession::Impl::FindLoad(std::string_view id, bool ended) {
  return std::find_if(loads.begin(), loads.end(), [&](const auto& entry) {
    return entry.second.ended == ended && !entry.second.layerwise && entry.second.request->id == id;
  });
}

void SchedulerSession::BlocksAllocated(std::string_view id, std::span<const uint32_t> block_ids,
                                       uint32_t num_external_tokens) {
  Impl& impl = *impl_;
  SchedulerRequest* request = impl.requests.Find(View(id));
  if (request == nullptr) return;
  request->block_ids.assign(block_ids.begin(), block_ids.end());
  impl.RecordGet(request, num_external_tokens);
  if (num_external_tokens > 0) {
    impl.StartLoad(request, num_external_tokens);
  } else if (request->load == 0) {
    impl.ReleaseLease(request);
    impl.SettleLoad(id);
  }
}

void SchedulerSession::LoadEnded(std::string_view id, bool failed) {
  Impl& impl = *impl_;
  const auto load = impl.FindLoad(id, /*ended=*/false);
  if (load == impl.loads.end()) return;
  SchedulerRequest* request = impl.RecordEnd(load->second, failed);
  // The engine enters loaded blocks into its own prefix cache only when it next looks at this
  // request; until then others with the same prefix go on waiting (SettleLoad).
  if (failed || request == nullptr) {
    impl.loads.erase(load);
  } else {
    load->second.ended = true;
  }
}

// Counts a load that is over on all ranks; its request, when it still waits for this load.
SchedulerRequest* SchedulerSession::Impl::RecordEnd(const SchedulerLoad& load, bool failed) {
  const uint32_t tokens = load.count * options.tokens_per_block;
  shm::GetRecordBody body;
  if (failed) {
    ++stats.load_failures;
    stats.failed_tokens += tokens;
    body.failed = tokens;
  } else {
    stats.loaded_tokens += tokens;
    body.loaded = tokens;
  }
  shm::Message message = shm::MakeMessage(shm::MessageType::kRecordGet);
  message.request = load.request->key;
  if (Usable()) Push(message, shm::AsBytes(body));
  SchedulerRequest* request = requests.Find(View(load.request->id));
  if (request != nullptr && request->load == load.key) {
    request->load = 0;
    // Otherwise the engine would offer the same blocks for the same request for ever.
    if (failed) request->nothing_external = true;
  }
  return request;
}

std::vector<uint32_t> SchedulerSession::LayerLoadEnded(OpKey key, bool failed,
                                                       std::string* request_id) {
  Impl& impl = *impl_;
  const auto found = impl.loads.find(key);
  if (found == impl.loads.end() || !found->second.layerwise) return {};
  SchedulerLoad& load = found->second;
  load.failed |= failed;
  if (--load.ranks_left > 0) return {};
  ++(load.failed ? impl.stats.layer_loads_failed : impl.stats.layer_loads);
  impl.RecordEnd(load, load.failed);
  impl.layer_blocks.Ended(key);
  std::vector<uint32_t> tainted;
  if (load.failed) {
    const std::vector<uint32_t>& table = load.request->block_ids;
    const size_t first = std::min(size_t{load.first}, table.size());
    tainted.assign(table.begin() + static_cast<ptrdiff_t>(first), table.end());
    tainted.insert(tainted.end(), load.block_ids.begin(), load.block_ids.end());
  }
  if (request_id != nullptr) *request_id = load.request->id;
  impl.loads.erase(found);
  return tainted;
}

void SchedulerSession::RequestFinished(std::string_view id) {
  Impl& impl = *impl_;
  SchedulerRequest* request = impl.requests.Find(View(id));
  if (request == nullptr) return;
  if (impl.Usable() && request->hashes_sent > 0) impl.ended_requests.push_back(request->key);
  impl.SendEnds();
  impl.SettleLoad(id);
  impl.requests.Erase(View(id));
}

bool SchedulerSession::LoadOutstanding(std::string_view id) const {
  const SchedulerRequest* request = impl_->requests.Find(View(id));
  return request != nullptr && request->load != 0;
}

std::span<const uint32_t> SchedulerSession::LoadBlocks(std::string_view id) const {
  for (const auto& [key, load] : impl_->loads) {
    if (!load.ended && load.request->id == id) return load.block_ids;
  }
  return {};
}

// --- steps --------------------------------------------------------------------------------------

void SchedulerSession::Impl::OwnBlocks(std::span<const uint32_t> block_ids, uint32_t from) {
  if (sources.empty() || from >= block_ids.size()) return;
  for (uint32_t block : block_ids.subspan(from)) {
    if (sources.Uses(block)) new_owner_blocks.push_back(block);
  }
}

// Whether the request reads blocks of a layerwise load that is not known to have arrived: what it
// computes is then not known to be right either.
bool SchedulerSession::Impl::UsesLayerBlocks(const SchedulerRequest& request) const {
  return !layer_blocks.empty() &&
         std::any_of(request.block_ids.begin(), request.block_ids.end(),
                     [this](uint32_t block) { return layer_blocks.Uses(block); });
}

// Offers the blocks that are full after this step. Drafts and placeholders have no hash yet, so the
// hashes the engine knows bound what is offered.
OpKey SchedulerSession::Impl::Store(SchedulerRequest* request, uint32_t num_computed_after) {
  uint32_t full = num_computed_after / options.tokens_per_block;
  if (full <= request->stored_blocks || request->load != 0 || !ready || breaker_open) return 0;
  SyncHashes(request, full);
  full = std::min({full, static_cast<uint32_t>(request->hashes.size()),
                   request->stored_blocks + kMaxPutBlocks});
  if (options.block_tables_change &&
      !hash_source->CurrentBlocks(request->id, &request->block_ids)) {
    return 0;
  }
  full = std::min(full, static_cast<uint32_t>(request->block_ids.size()));
  for (uint32_t i = request->stored_blocks; i < full; ++i) {
    if (request->block_ids[i] == kNullBlock) full = i;  // ends the loop: a hole ends the prefix
  }
  if (full <= request->stored_blocks || UsesLayerBlocks(*request)) return 0;
  shm::Message message = shm::MakeMessage(shm::MessageType::kPut);
  message.request = request->key;
  message.op = next_op;
  message.first = request->stored_blocks;
  message.count = full - request->stored_blocks;
  message.lease = request->hashes_sent;  // where the suffix starts
  const uint32_t suffix = full > request->hashes_sent ? full - request->hashes_sent : 0;
  if (suffix > shm::kMaxHashesPerMessage) return 0;
  const auto hashes = std::span(request->hashes).subspan(request->hashes_sent, suffix);
  if (!Push(message, std::as_bytes(hashes))) return 0;
  const auto blocks =
      std::span<const uint32_t>(request->block_ids).subspan(request->stored_blocks, message.count);
  step_ops.push_back({next_op, Route::kDeviceToCpu, false, {blocks.begin(), blocks.end()}, {}});
  request->hashes_sent += suffix;
  request->stored_blocks = full;
  ++stats.puts;
  stats.put_blocks += message.count;
  return next_op++;
}

// To the workers: through the engine's metadata, or over the board. A plan is never lost: promises
// hang on it.
std::span<const std::byte> SchedulerSession::Impl::Deliver(std::span<const std::byte> bytes) {
  if (board == nullptr) return bytes;
  if (!bytes.empty()) unpublished.emplace_back(bytes.begin(), bytes.end());
  while (!unpublished.empty() && board->Publish(unpublished.front())) unpublished.pop_front();
  return {};
}

bool SchedulerSession::FinishWithStore(std::string_view id, std::span<const uint32_t> block_ids,
                                       uint32_t num_computed_tokens) {
  Impl& impl = *impl_;
  SchedulerRequest* request = impl.requests.Find(View(id));
  OpKey key = 0;
  if (request != nullptr && impl.board != nullptr && impl.Usable()) {
    impl.Drain();
    request->block_ids.assign(block_ids.begin(), block_ids.end());
    key = impl.Store(request, num_computed_tokens);
    if (key != 0) impl.step_ops.back().request_id = request->id;  // the workers report it
  }
  RequestFinished(id);
  impl.RingIfDue();  // there may be no step for a while, and the engine holds the blocks
  return key != 0;
}

void SchedulerSession::BeginStep(uint32_t total_scheduled_tokens) {
  Impl& impl = *impl_;
  const TimeNs now = impl.clock.Now();
  if (impl.step_tokens > 0) {
    impl.economics.RecordStep(impl.step_tokens, impl.step_requests, now - impl.step_began);
  }
  impl.step_began = now;
  impl.step_tokens = total_scheduled_tokens;
  impl.step_requests = 0;
  impl.step_open = impl.Usable();
  if (!impl.step_open) return;
  impl.Drain();
  impl.SendEnds();
}

void SchedulerSession::ScheduledNew(std::string_view id, std::span<const uint32_t> block_ids,
                                    uint32_t num_computed_tokens, uint32_t num_scheduled_tokens) {
  ScheduledCached(id, block_ids, /*resumed=*/true, num_computed_tokens, num_scheduled_tokens);
}

void SchedulerSession::ScheduledCached(std::string_view id, std::span<const uint32_t> new_block_ids,
                                       bool resumed, uint32_t num_computed_tokens,
                                       uint32_t num_scheduled_tokens) {
  Impl& impl = *impl_;
  ++impl.step_requests;
  SchedulerRequest* request = impl.requests.Find(View(id));
  if (request == nullptr) {  // not ours to store, but its blocks may be sources of stores under way
    impl.OwnBlocks(new_block_ids,
                   resumed ? num_computed_tokens / impl.options.tokens_per_block : 0);
    return;
  }
  if (resumed) {
    request->block_ids.assign(new_block_ids.begin(), new_block_ids.end());
    impl.OwnBlocks(new_block_ids, num_computed_tokens / impl.options.tokens_per_block);
  } else if (!new_block_ids.empty()) {
    request->block_ids.insert(request->block_ids.end(), new_block_ids.begin(), new_block_ids.end());
    impl.OwnBlocks(new_block_ids, 0);
  }
  if (impl.step_open && impl.board == nullptr) {
    impl.Store(request, num_computed_tokens + num_scheduled_tokens);
  }
}

std::span<const std::byte> SchedulerSession::EndStep() {
  Impl& impl = *impl_;
  impl.plan.Start(impl.plan_number + 1);
  for (uint32_t block : impl.new_owner_blocks) impl.plan.AddFence(block);
  impl.stats.fenced_blocks += impl.new_owner_blocks.size();
  impl.new_owner_blocks.clear();
  for (const Impl::NewOp& op : impl.step_ops) {
    impl.plan.AddOp(op.key, op.route, op.block_ids, op.request_id, op.dead, op.layerwise);
    if (op.route == Route::kDeviceToCpu) impl.sources.Add(op.key, op.block_ids);
  }
  impl.step_ops.clear();
  impl.ReportStats(impl.step_began);
  if (!impl.plan.empty()) ++impl.plan_number;
  impl.RingIfDue();
  return impl.Deliver(impl.plan.Finish());
}

// --- the rest -----------------------------------------------------------------------------------

void SchedulerSession::Impl::ReportStats(TimeNs now) {
  if (!step_open || now - reported_at < kReportEveryNs) return;
  reported_at = now;
  shm::EngineStatsBody body;
  body.prefill_tokens_per_s = economics.prefill_tokens_per_s();
  body.step_ms = economics.step_seconds() * 1e3;
  body.load_tokens_per_s = economics.load_tokens_per_s();
  body.min_load_tokens = MinLoadTokens();
  body.lookup_timeouts = stats.lookup_timeouts;
  body.load_failures = stats.load_failures;
  body.breaker_opens = stats.breaker_opens;
  Push(shm::MakeMessage(shm::MessageType::kEngineStats), shm::AsBytes(body));
}

bool SchedulerSession::ResetCache(uint32_t timeout_ms) {
  Impl& impl = *impl_;
  if (!impl.Usable()) return false;
  impl.Drain();
  shm::Message message = shm::MakeMessage(shm::MessageType::kReset);
  message.request = ++impl.reset_number;
  if (!impl.Push(message)) {
    impl.reset_answered = impl.reset_number;
    return false;
  }
  impl.requests.ForEach([](SchedulerRequest* request) {
    request->lookup = LookupState::kNone;
    request->lease = 0;
    request->matched_blocks = 0;
  });
  impl.RingIfDue();
  const TimeNs deadline = impl.clock.Now() + timeout_ms * kNsPerMs;
  while (impl.reset_answered < impl.reset_number) {
    const TimeNs now = impl.clock.Now();
    if (now >= deadline || !impl.Usable()) {
      impl.reset_answered = impl.reset_number;
      return false;
    }
    impl.channel->Sleep(std::min<TimeNs>(deadline - now, kNsPerMs));
    impl.Drain();
  }
  return impl.reset_ok;
}

bool SchedulerSession::WaitReady(uint32_t timeout_ms) {
  Impl& impl = *impl_;
  const TimeNs deadline = impl.clock.Now() + timeout_ms * kNsPerMs;
  while (true) {
    impl.Drain();
    if (impl.ready) return true;
    if (impl.clock.Now() >= deadline) return false;
    if (impl.channel != nullptr) {
      impl.channel->Sleep(kNsPerMs);
    } else {
      usleep(1000);
    }
  }
}

SchedulerStats SchedulerSession::stats() const {
  SchedulerStats stats = impl_->stats;
  stats.prefill_tokens_per_s = impl_->economics.prefill_tokens_per_s();
  stats.step_ms = impl_->economics.step_seconds() * 1e3;
  stats.load_tokens_per_s = impl_->economics.load_tokens_per_s();
  stats.min_load_tokens = impl_->MinLoadTokens();
  stats.ready = impl_->ready;
  stats.stores_under_way = impl_->sources.size();
  stats.breaker_open = impl_->breaker_open;
  const uint64_t attachments = impl_->link->attachments();
  stats.reattaches = attachments > 0 ? attachments - 1 : 0;
  return stats;
}

SchedulerSession::SchedulerSession(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SchedulerSession::~SchedulerSession() = default;

absl::StatusOr<std::unique_ptr<SchedulerSession>> SchedulerSession::Open(const Options& options,
                                                                         HashSource* hashes) {
  if (options.tokens_per_block == 0 || options.world_size == 0) {
    return absl::InvalidArgumentError("tokens_per_block and world_size must not be 0");
  }
  const std::string text = absl::StrCat(options.label, std::string(1, '\0'), options.fingerprint);
  if (text.size() > shm::kMaxHelloText) {
    return absl::InvalidArgumentError("the engine's fingerprint is too long");
  }
  auto impl = std::make_unique<Impl>();
  impl->options = options;
  impl->hash_source = hashes;
  if (options.reduced) {
    absl::StatusOr<std::unique_ptr<PlanBoard>> board =
        PlanBoard::Create(options.engine_id, options.world_size);
    if (!board.ok()) return board.status();
    impl->board = *std::move(board);
  }
  DaemonLink::Options link;
  link.socket_path = options.socket_path;
  link.hello.role = static_cast<uint32_t>(shm::Role::kScheduler);
  link.hello.world_size = options.world_size;
  link.hello.tokens_per_block = options.tokens_per_block;
  link.hello.engine_id[0] = options.engine_id[0];
  link.hello.engine_id[1] = options.engine_id[1];
  link.text = text;
  impl->link = std::make_unique<DaemonLink>(std::move(link));
  return std::unique_ptr<SchedulerSession>(new SchedulerSession(std::move(impl)));
}

}  // namespace flexkv
