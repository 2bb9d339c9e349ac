#include "flexkv/trace/replay.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cache/planner.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv::trace {
namespace {

constexpr TimeNs kForever = 1ull << 62;
// What a block costs at least in index and bookkeeping: an infinite cache that is full with this
// many has used up the memory that it was given.
constexpr uint64_t kLeastBytesPerBlock = 80;
constexpr uint64_t kMostBlocks = 1ull << 28;  // of one tier; fits slot numbers of both
constexpr uint64_t kArenaPage = 4096;

double NsPerBlock(const SimulateOptions& options, double bytes_per_s) {
  if (!options.timed || bytes_per_s <= 0) return 0;
  return static_cast<double>(options.block_bytes) / bytes_per_s * kNsPerSecond;
}

uint64_t BlocksFor(uint64_t wanted, const SimulateOptions& options) {
  if (wanted != kInfiniteBlocks) return wanted;
  return std::clamp<uint64_t>(options.max_memory_bytes / kLeastBytesPerBlock, 1 << 16, kMostBlocks);
}

// Behind infinite memory nothing is ever read from an SSD.
bool HasSsd(const Cell& cell) { return cell.ssd_blocks > 0 && cell.cpu_blocks != kInfiniteBlocks; }

OpKey LoadKey(RequestKey key) { return 2 * key; }
OpKey PutKey(RequestKey key) { return 2 * key + 1; }

uint64_t RecordBytes() {
  return SsdShape{.shard_bytes = {static_cast<uint32_t>(kReplayBlockBytes)}, .slots = 1}
      .record_bytes();
}

CacheManagerOptions OptionsOf(const Cell& cell, const SimulateOptions& options) {
  CacheManagerOptions manager;
  const ReplayGeometry geometry = PlanReplay(BlocksFor(cell.cpu_blocks, options), HasSsd(cell));
  manager.cpu_cache_bytes = geometry.cache_bytes;
  manager.segment_bytes = geometry.segment_bytes;
  manager.evict_ratio = options.timed ? cell.evict_ratio : 0;
  manager.evict_start_ratio = cell.evict_start_ratio;
  manager.lease_timeout_ns = kForever;
  manager.empty_group_keep_ns = kForever;
  manager.max_chain_blocks = 1u << 31;
  manager.max_requests_per_engine = 1u << 31;
  manager.max_chain_blocks_per_engine = kForever;
  manager.max_ops_per_engine = 1u << 31;
  if (cell.policy != "default") manager.eviction_policy = cell.policy;
  manager.ssd.num_blocks = BlocksFor(cell.ssd_blocks, options);
  manager.ssd.segment_bytes = kForever;
  manager.ssd.admission = cell.admission;
  manager.ssd.max_inflight_write_bytes = kForever;
  manager.ssd.load_part_bytes = kForever;
  manager.ssd.read_timeout_ns = kForever;
  if (!options.timed) return manager;
  // The defaults' bytes are of real blocks.
  const uint64_t block = std::max<uint64_t>(1, options.block_bytes);
  const SsdTierOptions defaults;
  manager.ssd.max_inflight_write_bytes =
      std::max<uint64_t>(1, defaults.max_inflight_write_bytes / block) * RecordBytes();
  manager.ssd.load_part_bytes =
      std::max<uint64_t>(1, defaults.load_part_bytes / block) * kReplayBlockBytes;
  manager.ssd.read_timeout_ns = defaults.read_timeout_ns;
  return manager;
}

}  // namespace

// Groups of slots are equal and, from 2 MiB on, whole multiples of it; there are eight at least
// where there is room for them.
ReplayGeometry PlanReplay(uint64_t cpu_blocks, bool with_ssd) {
  // Ballast would go to the SSD like everything else, so there more groups are put up with.
  const uint64_t most_groups = with_ssd ? 8192 : 64;
  const uint64_t stride = with_ssd ? kArenaPage : kReplayBlockBytes;
  const uint64_t aligned_slots = kSegmentAlign / stride;
  const uint64_t fewest = std::max<uint64_t>(kMinGroups, cpu_blocks / aligned_slots + 1);
  uint64_t groups = std::min(cpu_blocks, fewest);
  while (groups <= most_groups && groups < cpu_blocks && cpu_blocks % groups != 0) ++groups;
  uint64_t slots = groups == 0 ? 0 : cpu_blocks / groups;
  ReplayGeometry plan;
  if (slots == 0 || slots * groups != cpu_blocks || groups > most_groups) {
    slots = (cpu_blocks + 15) / 16;
    if (slots >= aligned_slots) slots = RoundUp(slots, aligned_slots);
    if (with_ssd) slots = aligned_slots;
    groups = (cpu_blocks + slots - 1) / slots;
    plan.ballast = with_ssd ? 0 : groups * slots - cpu_blocks;
  }
  plan.segment_bytes = slots * stride;
  plan.cache_bytes = groups * plan.segment_bytes;
  return plan;
}

// --- set-up --------------------------------------------------------------------------------------

CellReplay::CellReplay(const Cell& cell, const SimulateOptions& options)
    : options_(&options),
      infinite_(cell.cpu_blocks == kInfiniteBlocks),
      copies_(NsPerBlock(options, options.load_bytes_per_s)) {
  result_.cell = cell;
}

CellReplay::~CellReplay() = default;

absl::StatusOr<std::unique_ptr<CellReplay>> CellReplay::New(const Cell& cell,
                                                            const SimulateOptions& options,
                                                            uint32_t tokens_per_block) {
  if (cell.cpu_blocks == 0) return absl::InvalidArgumentError("a cache of 0 blocks in memory");
  const uint64_t most = 4 * kMostBlocks - 2;
  if (cell.cpu_blocks != kInfiniteBlocks && cell.cpu_blocks > most / 2)
    return absl::InvalidArgumentError(
        absl::StrCat(cell.cpu_blocks, " blocks are more than the index numbers: ", most / 2));
  std::unique_ptr<CellReplay> replay(new CellReplay(cell, options));
  if (absl::Status status = replay->Open(std::max(1u, tokens_per_block)); !status.ok())
    return status;
  return replay;
}

absl::Status CellReplay::Open(uint32_t tokens_per_block) {
  const Cell& cell = result_.cell;
  std::vector<SsdPort*> ports;
  if (HasSsd(cell)) {
    ssd_ = std::make_unique<TimedSsd>(NsPerBlock(*options_, options_->ssd_bytes_per_s));
    ports.push_back(ssd_.get());
  }
  transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{.max_queued_ops = 1u << 31},
                                                std::vector<Executor*>{&copies_});
  manager_ = std::make_unique<CacheManager>(OptionsOf(cell, *options_), &segments_,
                                            transfers_.get(), std::move(ports));
  absl::StatusOr<EngineHandle> engine =
      manager_->AttachEngine({.namespace_key = "trace",
                              .namespace_label = "trace",
                              .shard_bytes = {kReplayBlockBytes},
                              .tokens_per_block = tokens_per_block},
                             now_);
  if (!engine.ok()) return engine.status();
  engine_ = *engine;
  SetNow(now_);
  const uint64_t cpu_blocks = BlocksFor(cell.cpu_blocks, *options_);
  if (absl::Status status = AddBallast(PlanReplay(cpu_blocks, ssd_ != nullptr).ballast);
      !status.ok()) {
    return status;
  }
  Settle();  // devices make their first segment
  return absl::OkStatus();
}

// A chain of so many blocks that stays leased for ever.
absl::Status CellReplay::AddBallast(uint64_t blocks) {
  if (blocks == 0 || infinite_) return absl::OkStatus();
  absl::StatusOr<EngineHandle> engine = manager_->AttachEngine({.namespace_key = "ballast",
                                                                .namespace_label = "ballast",
                                                                .shard_bytes = {kReplayBlockBytes},
                                                                .tokens_per_block = 1},
                                                               now_);
  if (!engine.ok()) return engine.status();
  std::vector<BlockHash> chain(blocks);
  for (uint64_t i = 0; i < blocks; ++i) chain[i].words = {~i, i, 1, 1};
  const auto count = static_cast<uint32_t>(blocks);
  absl::StatusOr<PutAnswer> put = manager_->Put(*engine, 1, 1, 0, count, 0, chain, now_);
  if (!put.ok()) return put.status();
  copies_.SetNow(TimedQueue<OpId>::kNever - 1);  // it was always there: its copies take no time
  Settle();
  copies_.SetNow(now_);
  copies_.Rest();
  absl::StatusOr<LookupAnswer> held = manager_->Lookup(*engine, 1, 0, chain, now_);
  if (!held.ok()) return held.status();
  if (held->matched_blocks != count) return absl::InternalError("the ballast found no room");
  return absl::OkStatus();
}

uint64_t CellReplay::bytes() const {
  // Beside the index: references and owners of slots.
  constexpr uint64_t kBytesPerSlot = 16;
  const ManagerStatus status = manager_->status();
  return status.index_bytes + kBytesPerSlot * (status.slots + 2 * status.ssd.slots) +
         unread_.capacity() * sizeof(uint64_t);
}

// --- time ----------------------------------------------------------------------------------------

void CellReplay::SetNow(TimeNs now) {
  now_ = now;
  copies_.SetNow(now);
  if (ssd_ != nullptr) ssd_->SetNow(now);
}

TimeNs CellReplay::NextEnd() const {
  return std::min(copies_.next(), ssd_ == nullptr ? TimedQueue<OpId>::kNever : ssd_->next());
}

void CellReplay::Tick() { manager_->Tick(now_); }

// Ticks until nothing that is under way ends now.
void CellReplay::Settle() {
  do {
    Tick();
  } while (NextEnd() <= now_);
}

// --- one request ---------------------------------------------------------------------------------

absl::StatusOr<LookupAnswer> CellReplay::LookUp(const TraceRequest& request, RequestKey key,
                                                std::span<const BlockHash> chain,
                                                std::span<const uint32_t> numbers,
                                                RequestHint hint) {
  ++result_.requests;
  result_.prompt_tokens += request.prompt_tokens;
  absl::StatusOr<LookupAnswer> answer = manager_->Lookup(engine_, key, 0, chain, now_, hint);
  if (!answer.ok()) return answer;
  const uint64_t tokens = request.tokens_per_block;
  result_.hit_tokens_cpu += tokens * answer->warm_blocks;
  result_.hit_tokens_ssd += tokens * (answer->matched_blocks - answer->warm_blocks);
  for (uint32_t number : numbers.first(answer->matched_blocks)) {
    if (number == ReplayBatch::kNoNumber) break;  // only ids that are not chained get here
    uint64_t& word = unread_[number / 64];
    const uint64_t bit = 1ull << (number % 64);
    reads_ += (word & bit) != 0;
    word &= ~bit;
  }
  return answer;
}

absl::Status CellReplay::Put(RequestKey key, uint32_t count, std::span<const BlockHash> chain,
                             std::span<const uint32_t> numbers, RequestHint hint) {
  absl::StatusOr<PutAnswer> answer =
      manager_->Put(engine_, key, PutKey(key), 0, count, 0, chain, now_, hint);
  if (!answer.ok()) return answer.status();
  result_.inserted_blocks += answer->accepted;
  for (uint32_t number : numbers.subspan(answer->held, answer->accepted))
    unread_[number / 64] |= 1ull << (number % 64);
  return absl::OkStatus();
}

// Everything at once: lookup, load of what lies on the SSD, insert of what was missed.
absl::Status CellReplay::RunOne(const TraceRequest& request, RequestKey key,
                                std::span<const BlockHash> chain, std::span<const uint32_t> numbers,
                                RequestHint hint) {
  uint32_t matched = 0;
  if (request.kind != RequestKind::kPut) {
    absl::StatusOr<LookupAnswer> answer = LookUp(request, key, chain, numbers, hint);
    if (!answer.ok()) return answer.status();
    matched = answer->matched_blocks;
    // A load without an SSD tier changes nothing.
    if (ssd_ != nullptr && matched > 0) {
      absl::Status loaded =
          manager_->Load(engine_, key, LoadKey(key), answer->lease, 0, matched, now_);
      if (!loaded.ok()) return loaded;
      Settle();
    }
  }
  const auto count = static_cast<uint32_t>(chain.size());
  if (request.kind != RequestKind::kGet && matched < count) {
    const auto suffix = request.kind == RequestKind::kPut ? chain : std::span<const BlockHash>{};
    if (absl::Status status = Put(key, count, suffix, numbers, hint); !status.ok()) return status;
  }
  manager_->EndRequest(engine_, key);
  if (ssd_ != nullptr || NextEnd() <= now_) Settle();
  return absl::OkStatus();
}

absl::Status CellReplay::Run(const ReplayBatch& shared) {
  unread_.resize((shared.numbers_end + 63) / 64);
  const RequestBatch& batch = *shared.batch;
  for (size_t i = 0; i < batch.requests.size(); ++i) {
    const TraceRequest& request = batch.requests[i];
    const auto chain =
        std::span<const BlockHash>(shared.hashes).subspan(request.first_block, request.num_blocks);
    const auto numbers =
        std::span<const uint32_t>(shared.numbers).subspan(request.first_block, request.num_blocks);
    const TimeNs at = kNsPerSecond + request.time_ns;
    const RequestKey key = next_key_++;
    absl::Status status;
    if (options_->timed) {
      status = RunUntil(at);
      if (status.ok()) status = StartTimed(request, key, chain, numbers, shared.hints[i]);
    } else {
      SetNow(std::max(now_, at));
      status = RunOne(request, key, chain, numbers, shared.hints[i]);
    }
    if (!status.ok()) return status;
    TakeEvents();
  }
  if (infinite_ && manager_->status().counters.evicted_blocks > 0) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "an infinite cache needs more than ", options_->max_memory_bytes >> 20,
        " MiB of memory: it is full with ", manager_->status().cached_blocks, " blocks"));
  }
  return absl::OkStatus();
}

absl::Status CellReplay::Finish() {
  if (options_->timed) {
    if (absl::Status status = RunUntil(TimedQueue<OpId>::kNever - 1); !status.ok()) return status;
  }
  const CacheCounters counters = manager_->status().counters;
  result_.evicted_blocks = counters.evicted_blocks + counters.ssd_evicted_blocks;
  result_.ssd_written_blocks = counters.ssd_written_blocks;
  result_.never_read_blocks = result_.inserted_blocks - reads_;
  return absl::OkStatus();
}

// --- with time -----------------------------------------------------------------------------------

// A lookup, then the load of what was found, then the prefill of the rest, then the put.
absl::Status CellReplay::StartTimed(const TraceRequest& request, RequestKey key,
                                    std::span<const BlockHash> chain,
                                    std::span<const uint32_t> numbers, RequestHint hint) {
  const auto count = static_cast<uint32_t>(chain.size());
  if (request.kind == RequestKind::kPut) {
    if (count > 0) {
      if (absl::Status status = Put(key, count, chain, numbers, hint); !status.ok()) return status;
    }
    manager_->EndRequest(engine_, key);
    Tick();
    return absl::OkStatus();
  }
  absl::StatusOr<LookupAnswer> answer = LookUp(request, key, chain, numbers, hint);
  if (!answer.ok()) return answer.status();
  Flight flight{.key = key, .blocks = request.kind == RequestKind::kGet ? 0 : count};
  const uint64_t found = uint64_t{answer->matched_blocks} * request.tokens_per_block;
  const double missed =
      request.prompt_tokens > found ? static_cast<double>(request.prompt_tokens - found) : 0;
  const double rate = options_->prefill_tokens_per_s;
  if (rate > 0) flight.prefill_ns = static_cast<TimeNs>(missed / rate * kNsPerSecond);
  if (flight.blocks > 0) flight.numbers.assign(numbers.begin(), numbers.end());
  if (answer->matched_blocks > 0) {
    absl::Status loaded =
        manager_->Load(engine_, key, LoadKey(key), answer->lease, 0, answer->matched_blocks, now_);
    if (!loaded.ok()) return loaded;
  } else {
    puts_due_.push({now_ + flight.prefill_ns, key});
  }
  flights_.emplace(key, std::move(flight));
  Tick();
  return absl::OkStatus();
}

// What ends, or is due, up to this moment.
absl::Status CellReplay::RunUntil(TimeNs until) {
  while (true) {
    const TimeNs due = puts_due_.empty() ? TimedQueue<OpId>::kNever : puts_due_.top().at;
    const TimeNs next = std::min(NextEnd(), due);
    if (next > until) break;
    SetNow(std::max(now_, next));
    Tick();
    TakeEvents();
    while (!puts_due_.empty() && puts_due_.top().at <= now_) {
      const RequestKey key = puts_due_.top().key;
      puts_due_.pop();
      if (absl::Status status = PutFlight(key); !status.ok()) return status;
    }
  }
  if (until < TimedQueue<OpId>::kNever - 1) SetNow(std::max(now_, until));
  return absl::OkStatus();
}

// Loads that ended: their requests go on to compute the rest.
void CellReplay::TakeEvents() {
  manager_->TakeEvents(&events_);
  for (const ManagerEvent& event : events_) {
    if (event.route != Route::kCpuToDevice || flights_.empty()) continue;
    const RequestKey key = event.key / 2;
    auto flight = flights_.find(key);
    if (flight != flights_.end()) puts_due_.push({now_ + flight->second.prefill_ns, key});
  }
}

absl::Status CellReplay::PutFlight(RequestKey key) {
  auto it = flights_.find(key);
  const Flight flight = std::move(it->second);
  flights_.erase(it);
  absl::Status status;
  if (flight.blocks > 0) status = Put(key, flight.blocks, {}, flight.numbers, {});
  manager_->EndRequest(engine_, key);
  return status;
}

}  // namespace flexkv::trace
