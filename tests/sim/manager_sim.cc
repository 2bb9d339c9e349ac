#include "tests/sim/manager_sim.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <set>

#include "absl/strings/str_cat.h"
#include "flexkv/cache/namespace_digest.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint32_t kDocuments = 36;
constexpr uint32_t kDocumentBlocks = 140;  // crosses two anchors of the tree
constexpr size_t kMaxEngines = 6;
constexpr uint64_t kBudget = 4 << 20;
constexpr TimeNs kLeaseTimeoutNs = kNsPerSecond;
constexpr uint32_t kMaxOps = 12;
constexpr uint32_t kMaxRequests = 24;

struct SpecOf {
  const char* key;
  std::vector<uint64_t> shard_bytes;
  bool replicated = false;
};

const std::vector<SpecOf>& Specs() {
  static const auto* specs =
      new std::vector<SpecOf>{{"model-a", {8 << 10, 8 << 10}},
                              {"model-b", {8 << 10, 8 << 10}},
                              {"model-c", {24 << 10}},
                              {"model-c",
                               {24 << 10, 24 << 10, 24 << 10},
                               true}};  // the third's key and class, not its blocks
  return *specs;
}

NamespaceDigest DigestOf(const SpecOf& spec) {
  if (!spec.replicated) return DigestOfNamespace(spec.key, 16, spec.shard_bytes);
  return DigestOfNamespace(spec.key, 16, std::span(spec.shard_bytes).first(1),
                           static_cast<uint32_t>(spec.shard_bytes.size()));
}

// Documents of one family share their first blocks.
std::vector<BlockHash> MakeDocument(uint32_t document) {
  const uint32_t family = document % 6;
  const uint32_t shared = 5 + (document / 6) * 17;
  std::vector<BlockHash> chain = {HashFromNumber(family)};
  while (chain.size() < kDocumentBlocks) {
    chain.push_back(ChildHash(chain.back(), chain.size() < shared ? family : 1000 + document));
  }
  return chain;
}

constexpr uint64_t kSsdSlots = 300;  // of one device

CacheManagerOptions Options(bool with_ssd) {
  CacheManagerOptions options;
  options.cpu_cache_bytes = kBudget;
  options.lease_timeout_ns = kLeaseTimeoutNs;
  options.max_ops_per_engine = kMaxOps;
  options.max_requests_per_engine = kMaxRequests;
  options.max_chain_blocks = 400;
  options.evict_ratio = 0.02;
  options.evict_start_ratio = 0.95;
  options.empty_group_keep_ns = 200 * kNsPerMs;
  if (!with_ssd) return options;
  options.ssd.cache_bytes = 8 << 20;
  options.ssd.segment_bytes = 600 << 10;
  options.ssd.max_inflight_write_bytes = 400 << 10;
  options.ssd.load_part_bytes = 100 << 10;
  options.ssd.read_timeout_ns = 2 * kNsPerSecond;
  return options;
}

}  // namespace

std::string ManagerSimStats::ToString() const {
  return absl::StrCat("steps ", steps, ", lookups ", lookups, " (", matched_blocks,
                      " blocks), puts ", puts, " (", accepted_blocks, " blocks), loads ", loads,
                      " (", loads_checked, " shards checked), evicted ", evicted,
                      ", leases expired ", expired, ", resets ", resets, ", deaths ", deaths,
                      ", hostile ", hostile, ", failed blocks ", failed_blocks, ", segments made ",
                      groups_made, ", ssd: written ", ssd_written, ", read ", ssd_read,
                      ", evicted ", ssd_evicted, ", faults ", ssd_faults, ", stores of replicas ",
                      replica_stores, ", restarts ", restarts, ", recovered ", recovered);
}

ManagerSim::ManagerSim(uint64_t seed, bool with_ssd) : rng_(seed) {
  for (int i = 0; with_ssd && i < 2; ++i)
    ssds_.push_back(std::make_unique<SimSsd>(&rng_, kSsdSlots));
  for (uint32_t i = 0; i < kDocuments; ++i) documents_.push_back(MakeDocument(i));
  StartLife();
}

void ManagerSim::StartLife() {
  device_ = std::make_unique<SimDevice>(&rng_, &segments_);
  transfers_ = std::make_unique<TransferEngine>(TransferEngine::Options{.max_queued_ops = 60},
                                                std::vector<Executor*>{device_.get()});
  std::vector<SsdPort*> ports;
  for (const auto& ssd : ssds_) {
    ssd->SetArena(device_.get());
    ports.push_back(ssd.get());
  }
  CacheManagerOptions options = Options(!ssds_.empty());
  if (rng_.OneIn(2)) options.ssd.admission = SsdAdmission::kSecondTouch;
  options.eviction_policy = std::string(PolicyNames()[rng_.Below(PolicyNames().size())]);
  manager_ = std::make_unique<CacheManager>(options, &segments_, transfers_.get(), ports);
}

void ManagerSim::CountLife() {
  const CacheCounters counters = manager_->status().counters;
  stats_.evicted += counters.evicted_blocks;
  stats_.expired += counters.leases_expired;
  stats_.loads_checked += device_->loads_checked();
  stats_.ssd_written += counters.ssd_written_blocks;
  stats_.ssd_read += counters.ssd_load_blocks;
  stats_.ssd_evicted += counters.ssd_evicted_blocks;
}

// kill -9 of everything.
void ManagerSim::Restart() {
  if (ssds_.empty()) return;
  TakeEvents();
  CountLife();
  for (const auto& ssd : ssds_) ssd->Crash();
  manager_.reset();
  engines_.clear();
  resets_.clear();
  segments_.SetBudget(UINT64_MAX);
  StartLife();
  CheckRecovered();
  ++stats_.restarts;
  stats_.recovered += manager_->status().ssd.recovered_blocks;
}

// Which epoch of each content is on the devices, and that all its whole chains were found.
void ManagerSim::CheckRecovered() {
  uint64_t expected = 0;
  for (uint32_t content = 0; content < Specs().size(); ++content) {
    const SpecOf& spec = Specs()[content];
    const NamespaceDigest digest = DigestOf(spec);
    uint32_t present = 1;
    for (const auto& ssd : ssds_) {
      if (auto it = ssd->epochs().find(digest); it != ssd->epochs().end())
        present = std::max(present, it->second);
      for (const auto& [place, block] : ssd->blocks()) {
        if (block.identity.ns == digest) present = std::max(present, block.identity.epoch);
      }
    }
    std::vector<const SimSsdBlock*> blocks;
    for (const auto& ssd : ssds_) {
      for (const auto& [place, block] : ssd->blocks()) {
        if (block.identity.ns == digest && block.identity.epoch == present)
          blocks.push_back(&block);
      }
    }
    std::stable_sort(blocks.begin(), blocks.end(), [](const auto* one, const auto* other) {
      return one->identity.depth < other->identity.depth;
    });
    std::set<std::pair<uint32_t, std::array<uint64_t, 4>>> found;
    uint32_t back = 0;  // epochs that an unacknowledged reset fell back
    for (const SimSsdBlock* block : blocks) {
      const SsdIdentity& identity = block->identity;
      if (identity.depth > 0 && !found.contains({identity.depth - 1, identity.parent.words}))
        continue;  // without its parent it is no part of a chain
      found.emplace(identity.depth, identity.hash.words);
      const auto is_of = [&](uint32_t epoch) {
        return block->words[0] == ContentWord(Identity(content, epoch, identity.hash), 0);
      };
      if (is_of(0) || is_of(epochs_[content])) continue;  // 0: of a hostile chain
      while (back < epochs_[content] && !is_of(epochs_[content] - back)) ++back;
      Expect(back <= unacknowledged_[content], "blocks of a reset epoch came back");
    }
    expected += found.size();
    epochs_[content] -= std::min(back, epochs_[content]);
    unacknowledged_[content] = 0;
  }
  Expect(manager_->status().ssd.recovered_blocks == expected, "committed blocks were lost");
}

void ManagerSim::Fail(const std::string& what) {
  if (status_.ok()) status_ = absl::InternalError(absl::StrCat("step ", stats_.steps, ": ", what));
}

uint64_t ManagerSim::Identity(uint32_t content, uint32_t epoch, const BlockHash& hash) const {
  TestRng mixed(hash.words[1] ^ (uint64_t{content} << 32) ^ epoch);
  return mixed.Next() >> 8;
}

std::vector<uint64_t> ManagerSim::Identities(const SimEngine& engine, uint32_t epoch,
                                             uint32_t document, uint32_t first,
                                             uint32_t count) const {
  std::vector<uint64_t> identities;
  for (uint32_t i = first; i < first + count; ++i) {
    identities.push_back(Identity(engine.content, epoch, documents_[document][i]));
  }
  return identities;
}

ManagerSim::SimEngine* ManagerSim::AnyEngine() {
  return engines_.empty() ? nullptr : &engines_[rng_.Below(engines_.size())];
}

ManagerSim::SimRequest* ManagerSim::AnyRequest(SimEngine* engine, RequestKey* key) {
  if (engine == nullptr || engine->requests.empty()) return nullptr;
  auto it = engine->requests.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(rng_.Below(engine->requests.size())));
  *key = it->first;
  return &it->second;
}

// --- engines -------------------------------------------------------------------------------------

void ManagerSim::Attach() {
  if (engines_.size() >= kMaxEngines) return;
  const auto content = static_cast<uint32_t>(rng_.Below(Specs().size()));
  const SpecOf& spec = Specs()[content];
  auto handle = manager_->AttachEngine({.namespace_key = spec.key,
                                        .namespace_label = spec.key,
                                        .shard_bytes = spec.shard_bytes,
                                        .tokens_per_block = 16,
                                        .replicated = spec.replicated},
                                       now_);
  if (!handle.ok()) return Fail(std::string(handle.status().message()));
  engines_.push_back(SimEngine{.handle = *handle,
                               .content = content,
                               .shard_bytes = spec.shard_bytes,
                               .replicated = spec.replicated});
}

// The process dies first; that the owner detaches it before or after its last ops are reported is
// up to chance.
void ManagerSim::Kill() {
  if (engines_.empty()) return;
  const size_t index = rng_.Below(engines_.size());
  const EngineHandle handle = engines_[index].handle;
  device_->Kill(handle);
  for (uint64_t n = rng_.Below(4); n > 0; --n) device_->Step();
  if (rng_.OneIn(2)) Tick();
  manager_->DetachEngine(handle, now_);
  engines_.erase(engines_.begin() + static_cast<std::ptrdiff_t>(index));
  ++stats_.deaths;
}

// --- requests ------------------------------------------------------------------------------------

void ManagerSim::LookupAgain(SimEngine* engine, RequestKey key, SimRequest* request) {
  const std::vector<BlockHash>& document = documents_[request->document];
  const auto more = static_cast<uint32_t>(rng_.Below(document.size() - request->length + 1));
  const auto first =
      static_cast<uint32_t>(rng_.OneIn(3) ? rng_.Below(request->length + 1) : request->length);
  const auto suffix = std::span(document).subspan(first, request->length + more - first);
  auto answer = manager_->Lookup(engine->handle, key, first, suffix, now_);
  if (!answer.ok()) return Fail(absl::StrCat("lookup: ", answer.status().message()));
  request->length += more;
  request->lease = answer->lease;
  request->leased = answer->matched_blocks;
  request->epoch = epochs_[engine->content];
  request->deadline = now_ + kLeaseTimeoutNs;
  Expect(answer->matched_blocks <= request->length, "more matched than asked");
  Expect((answer->lease != 0) == (answer->matched_blocks > 0), "lease without match");
  ++stats_.lookups;
  stats_.matched_blocks += answer->matched_blocks;
}

void ManagerSim::Lookup() {
  SimEngine* engine = AnyEngine();
  if (engine == nullptr) return;
  RequestKey key = 0;
  SimRequest* request = AnyRequest(engine, &key);
  if (request == nullptr || (rng_.OneIn(2) && engine->requests.size() < kMaxRequests - 2)) {
    key = next_key_++;
    request = &engine->requests[key];
    request->document = static_cast<uint32_t>(rng_.Below(kDocuments));
  }
  LookupAgain(engine, key, request);
}

void ManagerSim::Load() {
  SimEngine* engine = AnyEngine();
  RequestKey request_key = 0;
  SimRequest* request = AnyRequest(engine, &request_key);
  if (request == nullptr) return;
  if (request->lease == 0) LookupAgain(engine, request_key, request);
  if (request->lease == 0) return;
  const auto first = static_cast<uint32_t>(rng_.Below(request->leased));
  const auto count = static_cast<uint32_t>(1 + rng_.Below(request->leased - first));
  const OpKey key = next_key_++;
  device_->AddHalf(engine->handle, key,
                   Identities(*engine, request->epoch, request->document, first, count),
                   engine->shard_bytes, engine->replicated);
  const absl::Status status =
      manager_->Load(engine->handle, request_key, key, request->lease, first, count, now_);
  if (status.ok()) {
    request->leased = first + count;
    request->deadline = UINT64_MAX;
    engine->ops[key] = SimOp{count, Route::kCpuToDevice};
    ++stats_.loads;
    return;
  }
  ++engine->refusals[key];
  const bool may_be_over = now_ >= request->deadline || request->deadline == UINT64_MAX;
  Expect(may_be_over || absl::IsResourceExhausted(status), "a load was refused without need");
  if (absl::IsNotFound(status)) request->lease = 0;
}

void ManagerSim::Put() {
  SimEngine* engine = AnyEngine();
  RequestKey request_key = 0;
  SimRequest* request = AnyRequest(engine, &request_key);
  if (request == nullptr) return;
  const std::vector<BlockHash>& document = documents_[request->document];
  const auto more = static_cast<uint32_t>(
      rng_.Below(std::min<uint64_t>(20, document.size() - request->length + 1)));
  const uint32_t length = request->length + more;
  if (length == 0) return;
  const auto first = static_cast<uint32_t>(rng_.OneIn(2) ? 0 : rng_.Below(length));
  const auto count = static_cast<uint32_t>(1 + rng_.Below(length - first));
  const OpKey key = next_key_++;
  device_->AddHalf(engine->handle, key,
                   Identities(*engine, epochs_[engine->content], request->document, first, count),
                   engine->shard_bytes, engine->replicated);
  auto answer = manager_->Put(engine->handle, request_key, key, first, count, request->length,
                              std::span(document).subspan(request->length, more), now_);
  if (!answer.ok()) return Fail(absl::StrCat("put: ", answer.status().message()));
  request->length = length;
  Expect(answer->held + answer->accepted + answer->refused == count, "a put does not add up");
  ++stats_.puts;
  stats_.accepted_blocks += answer->accepted;
  if (answer->accepted > 0) {
    engine->ops[key] = SimOp{answer->accepted, Route::kDeviceToCpu};
  } else {
    ++engine->refusals[key];
  }
}

void ManagerSim::Release() {
  SimEngine* engine = AnyEngine();
  RequestKey key = 0;
  SimRequest* request = AnyRequest(engine, &key);
  if (request == nullptr) return;
  if (rng_.OneIn(2)) {
    manager_->ReleaseLease(engine->handle, key, rng_.OneIn(2) ? 0 : request->lease);
    request->lease = 0;
  } else {
    manager_->EndRequest(engine->handle, key);
    engine->requests.erase(key);
  }
}

void ManagerSim::Reset() {
  SimEngine* engine = AnyEngine();
  if (engine == nullptr) return;
  const uint64_t tag = next_key_++;
  Expect(manager_->Reset(engine->handle, tag, now_).ok(), "reset failed");
  ++epochs_[engine->content];
  ++unacknowledged_[engine->content];
  resets_[tag] = engine->content;
  for (SimEngine& other : engines_) {
    if (other.content != engine->content) continue;
    for (auto& [key, request] : other.requests) request.lease = 0;
  }
  ++stats_.resets;
}

void ManagerSim::Cancel() {
  SimEngine* engine = AnyEngine();
  if (engine == nullptr || engine->ops.empty()) return;
  auto it = engine->ops.begin();
  std::advance(it, static_cast<std::ptrdiff_t>(rng_.Below(engine->ops.size())));
  device_->Cancel(engine->handle, it->first);
}

// A lease we hold keeps its blocks: anybody who asks finds them, but for damaged ones.
void ManagerSim::CheckLeaseHolds() {
  SimEngine* engine = AnyEngine();
  RequestKey key = 0;
  const SimRequest* request = AnyRequest(engine, &key);
  if (request == nullptr || request->lease == 0 || now_ >= request->deadline ||
      request->deadline == UINT64_MAX)
    return;
  const std::span<const BlockHash> chain =
      std::span(documents_[request->document]).first(request->length);
  auto answer = manager_->Lookup(engine->handle, UINT64_MAX, 0, chain, now_);
  if (!answer.ok()) return Fail("lookup beside a lease failed");
  Expect(answer->matched_blocks >= request->leased || manager_->status().ssd.damaged_blocks > 0,
         "leased blocks are gone");
  manager_->EndRequest(engine->handle, UINT64_MAX);
}

// --- bad input -----------------------------------------------------------------------------------

// Hashes that are no chain: the same one over and over, in any order and depth. None of ours is
// used.
void ManagerSim::HostileChain(SimEngine* engine) {
  std::vector<BlockHash> chain;
  for (uint64_t n = rng_.Below(150); n > 0; --n)
    chain.push_back(HashFromNumber(1'000'000 + rng_.Below(12)));
  const RequestKey request = UINT64_MAX - 1;
  const OpKey key = next_key_++;
  const auto count = static_cast<uint32_t>(chain.size());
  std::vector<uint64_t> identities;
  for (const BlockHash& hash : chain) identities.push_back(Identity(engine->content, 0, hash));
  device_->AddHalf(engine->handle, key, identities, engine->shard_bytes, engine->replicated);
  auto answer = manager_->Put(engine->handle, request, key, 0, count, 0, chain, now_);
  if (answer.ok() && answer->accepted > 0) {
    engine->ops[key] = SimOp{answer->accepted, Route::kDeviceToCpu};
  } else {
    ++engine->refusals[key];
  }
  if (auto found = manager_->Lookup(engine->handle, request, 0, chain, now_); !found.ok()) {
    Expect(absl::IsResourceExhausted(found.status()) || absl::IsInvalidArgument(found.status()),
           "hostile lookup");
  }
  manager_->EndRequest(engine->handle, request);
}

void ManagerSim::Hostile() {
  SimEngine* engine = AnyEngine();
  if (engine == nullptr) return;
  ++stats_.hostile;
  const EngineHandle handle =
      rng_.OneIn(4) ? static_cast<EngineHandle>(rng_.Next()) : engine->handle;
  const bool known = handle == engine->handle;
  RequestKey request = rng_.Next() | 1;
  if (rng_.OneIn(2)) AnyRequest(engine, &request);
  const auto number = [&] {
    return static_cast<uint32_t>(rng_.OneIn(2) ? rng_.Next() : rng_.Below(200));
  };
  const OpKey used = engine->ops.empty() ? 0 : engine->ops.begin()->first;
  const OpKey key = rng_.OneIn(3) ? used : next_key_++;
  const bool refusal = known && key != 0 && engine->ops.count(key) == 0;
  switch (rng_.Below(6)) {
    case 0:
      Expect(!manager_->Load(handle, request, key, rng_.Next(), number(), number(), now_).ok(),
             "hostile load");
      if (refusal) ++engine->refusals[key];
      break;
    case 1:
      Expect(!manager_
                  ->Put(handle, rng_.Next() | 1, key, number(), number(), 1 + number() % 1000, {},
                        now_)
                  .ok(),
             "hostile put");
      if (refusal) ++engine->refusals[key];
      break;
    case 2:
      Expect(
          !manager_->Lookup(handle, rng_.Next() | 1, 1 + number() % 1000, documents_[0], now_).ok(),
          "hostile lookup");
      break;
    case 3:
      manager_->ReleaseLease(handle, rng_.Next() | 1, rng_.Next());
      manager_->EndRequest(handle, rng_.Next() | 1);
      break;
    case 4:
      if (!known) manager_->DetachEngine(handle | 0x80000000u, now_);
      break;
    default:
      HostileChain(engine);
  }
}

// The world outside has no memory for a while.
void ManagerSim::Trouble() {
  if (rng_.OneIn(2)) segments_.FailCreate(static_cast<uint32_t>(1 + rng_.Below(3)));
  segments_.SetBudget(rng_.OneIn(4) ? segments_.live_bytes() : UINT64_MAX);
}

// --- progress ------------------------------------------------------------------------------------

// Of an op that runs: a load of which nothing could be read from an SSD, or a store that another
// replica makes.
void ManagerSim::TakeRefusal(SimEngine* engine, const ManagerEvent& event) {
  if (auto op = engine->ops.find(event.key); op != engine->ops.end()) {
    if (op->second.route == Route::kCpuToDevice) return;
    Expect(engine->replicated && event.spared_rank < engine->shard_bytes.size(),
           "a store that runs was refused");
    Expect(op->second.spared_rank == ManagerEvent::kNoRank, "two refusals of one store");
    op->second.spared_rank = event.spared_rank;
    return;
  }
  auto refusal = engine->refusals.find(event.key);
  if (refusal == engine->refusals.end()) return Fail("a refusal nobody expects");
  Expect(event.spared_rank == ManagerEvent::kNoRank, "an op that does not run spared a rank");
  if (--refusal->second == 0) engine->refusals.erase(refusal);
}

// Who copied an op that ended: every rank, but of replicas one alone stores.
void ManagerSim::CheckRanks(const SimEngine& engine, OpKey key, const SimOp& op) {
  std::vector<uint32_t> expected;
  for (uint32_t rank = 0; rank < engine.shard_bytes.size(); ++rank) expected.push_back(rank);
  if (engine.replicated && op.route == Route::kDeviceToCpu) {
    expected = {op.spared_rank};
    ++stats_.replica_stores;
  }
  const std::vector<uint32_t> ranks = device_->RanksOf(engine.handle, key);
  const bool none_read = op.route == Route::kCpuToDevice && ranks.empty();
  Expect(none_read || ranks == expected, "an op ran on other ranks than it should");
}

void ManagerSim::TakeEvents() {
  std::vector<ManagerEvent> events;
  manager_->TakeEvents(&events);
  for (const ManagerEvent& event : events) {
    if (event.kind == ManagerEvent::Kind::kResetDone) {
      auto reset = resets_.find(event.key);
      if (reset == resets_.end()) continue;
      // A later one covers those before it.
      if (event.status == OpStatus::kOk) unacknowledged_[reset->second] = 0;
      resets_.erase(reset);
      continue;
    }
    auto engine = std::find_if(engines_.begin(), engines_.end(),
                               [&](const SimEngine& e) { return e.handle == event.engine; });
    if (engine == engines_.end()) return Fail("an event for an engine that is gone");
    if (event.kind == ManagerEvent::Kind::kRefuseOp) {
      TakeRefusal(&*engine, event);
      if (engine->ops.contains(event.key)) continue;
    } else {
      auto op = engine->ops.find(event.key);
      if (op == engine->ops.end()) return Fail("an op ended that was not launched");
      Expect(op->second.route == event.route, "an op ended with another route");
      Expect(event.ok_blocks + event.failed_blocks == op->second.blocks, "an op lost blocks");
      stats_.failed_blocks += event.failed_blocks;
      CheckRanks(*engine, event.key, op->second);
      engine->ops.erase(op);
    }
    device_->ForgetHalf(event.engine, event.key);
  }
  for (const SimEngine& engine : engines_)
    Expect(engine.refusals.empty(), "a refusal did not come");
}

void ManagerSim::CheckSegments() {
  uint64_t told = 0;
  std::map<SegmentId, uint64_t> seen_segments;
  for (const SimEngine& engine : engines_) {
    for (uint32_t rank = 0; rank < engine.shard_bytes.size(); ++rank) {
      uint64_t seen = 0;
      std::vector<SegmentId> segments;
      Expect(manager_->SegmentsOf(engine.handle, rank, &seen, &segments), "segments were not told");
      for (SegmentId segment : segments) seen_segments[segment] = 1;
    }
  }
  for (const auto& [segment, one] : seen_segments) {
    Expect(segments_.live().count(segment) == 1, "a worker is told of a segment that is gone");
    ++told;
  }
  Expect(told <= segments_.live().size(), "more segments told than live");
}

void ManagerSim::Tick() {
  manager_->Tick(now_);
  TakeEvents();
}

void ManagerSim::Step() {
  now_ += rng_.Below(2 * kNsPerMs);
  if (rng_.OneIn(2000)) now_ += 2 * kLeaseTimeoutNs;
  const uint64_t dice = rng_.Below(1000);
  if (dice < 220) {
    Lookup();
  } else if (dice < 400) {
    Put();
  } else if (dice < 520) {
    Load();
  } else if (dice < 600) {
    Release();
  } else if (dice < 640) {
    CheckLeaseHolds();
  } else if (dice < 660) {
    Cancel();
  } else if (dice < 680) {
    Hostile();
  } else if (dice < 682) {
    Reset();
  } else if (dice < 684) {
    Kill();
  } else if (dice < 690) {
    Attach();
  } else if (dice < 692) {
    Trouble();
  } else if (dice < 693) {
    if (rng_.OneIn(3)) Restart();
  } else if (dice < 860) {
    device_->Step();
  } else {
    Tick();
  }
  TakeEvents();
  device_->Step();
  for (const auto& ssd : ssds_) {
    for (uint64_t n = rng_.Below(4); n > 0; --n) ssd->Step();
  }
}

// Everything ends: nothing may be left over.
void ManagerSim::Finish() {
  device_->set_faults(false);
  for (const auto& ssd : ssds_) ssd->set_faults(false);
  segments_.SetBudget(UINT64_MAX);
  for (const SimEngine& engine : engines_) device_->Kill(engine.handle);
  for (int round = 0; round < 1000 && manager_->status().ops_in_flight > 0; ++round) {
    device_->Drain();
    for (const auto& ssd : ssds_) ssd->Drain();
    now_ += 10 * kNsPerMs;
    Tick();
  }
  for (SimEngine& engine : engines_) {
    Expect(engine.ops.empty(), "an op never ended");
    for (auto& [key, request] : engine.requests) manager_->EndRequest(engine.handle, key);
  }
  Settle();
  ManagerStatus status = manager_->status();
  Expect(status.leases == 0 && status.ops_in_flight == 0 && status.pinned_blocks == 0 &&
             status.requests == 0,
         "leases, ops, pins or requests are left");
  Expect(
      status.used_slots == status.cached_blocks - status.ssd.blocks + status.ssd.copies_in_memory,
      "slots are left without blocks");
  Expect(status.ready_blocks == status.cached_blocks, "blocks are left pending");
  Expect(transfers_->queued_ops() == 0, "transfer ops are left");
  manager_->ResetByLabel("", 1, now_);
  for (const SimEngine& engine : engines_) manager_->DetachEngine(engine.handle, now_);
  Settle();
  status = manager_->status();
  Expect(status.used_slots == 0 && segments_.live_bytes() == 0, "memory is left");
  Expect(!ssds_.empty() || status.size_classes == 0, "size classes are left");
  Expect(status.ssd.used_slots == 0 && status.ssd.blocks == 0, "SSD slots are left");
  Expect(segments_.unknown_destroys() == 0, "a segment was destroyed twice");
  CountLife();
  stats_.groups_made = segments_.creates();
  for (const auto& ssd : ssds_) stats_.ssd_faults += ssd->faults();
}

// Until nothing moves any more.
void ManagerSim::Settle() {
  for (int i = 0; i < 400; ++i) {
    for (const auto& ssd : ssds_) ssd->Drain();
    manager_->Tick(now_ += 100 * kNsPerMs);
  }
}

absl::Status ManagerSim::Run(uint64_t steps) {
  for (int i = 0; i < 3; ++i) Attach();
  for (uint64_t i = 0; i < steps && status_.ok(); ++i) {
    ++stats_.steps;
    Step();
    if (absl::Status status = manager_->CheckInvariants(); !status.ok())
      Fail(std::string(status.message()));
    if (!device_->status().ok()) Fail(std::string(device_->status().message()));
    for (const auto& ssd : ssds_) {
      if (!ssd->status().ok()) Fail(std::string(ssd->status().message()));
    }
    if (i % 64 == 0) CheckSegments();
  }
  if (status_.ok()) Finish();
  if (status_.ok() && !device_->status().ok()) Fail(std::string(device_->status().message()));
  return status_;
}

}  // namespace flexkv
