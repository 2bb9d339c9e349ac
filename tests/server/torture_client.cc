#include "tests/server/torture_client.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <shared_mutex>

#include "absl/strings/str_cat.h"
#include "tests/support/sanitized.h"

namespace flexkv {
namespace {

constexpr uint32_t kTokens = 16;      // of a block
constexpr uint32_t kGpuBlocks = 120;  // so stores under way are overwritten by later steps
constexpr auto kPoison = std::byte{0xDB};

// Bounds, not expectations.
constexpr uint32_t kSlower = kSanitized ? 4 : 1;
constexpr uint32_t kLookupTimeoutMs = 5'000 * kSlower;
constexpr uint32_t kLoadTimeoutMs = 5'000 * kSlower;
constexpr uint32_t kResetTimeoutMs = 5'000 * kSlower;
constexpr TimeNs kCheckNs = 15 * kNsPerSecond * kSlower;

uint32_t DocOf(std::string_view id) {
  return static_cast<uint32_t>(
      std::strtoul(std::string(id.substr(id.find(':') + 1)).c_str(), nullptr, 10));
}

uint32_t TokensOf(uint32_t doc) {
  return static_cast<uint32_t>(TortureChain(doc).size()) * kTokens;
}

void Nap() { std::this_thread::sleep_for(std::chrono::microseconds(200)); }

// What a client is at, for kills that mean to meet it there.
class Doing {
 public:
  Doing(std::atomic<TortureActivity>* activity, TortureActivity what) : activity_(activity) {
    activity_->store(what, std::memory_order_release);
  }
  ~Doing() { activity_->store(TortureActivity::kIdle, std::memory_order_release); }

 private:
  std::atomic<TortureActivity>* activity_;
};

}  // namespace

void TortureCounts::Add(const TortureCounts& other) {
  puts += other.puts;
  put_blocks += other.put_blocks;
  loads += other.loads;
  loads_failed += other.loads_failed;
  loaded_blocks += other.loaded_blocks;
  lookups += other.lookups;
  resets += other.resets;
  resets_acknowledged += other.resets_acknowledged;
  bytes += other.bytes;
  found_again += other.found_again;
}

std::string TortureCounts::ToString() const {
  return absl::StrCat(puts, " puts (", put_blocks, " blocks), ", loads, " loads (", loads_failed,
                      " failed, ", loaded_blocks, " blocks), ", lookups, " lookups, ", resets,
                      " resets (", resets_acknowledged, " acknowledged), ", bytes >> 20,
                      " MiB compared, ", found_again, " committed blocks found again");
}

void TortureClient::Hashes::AppendHashes(std::string_view id, uint32_t from,
                                         std::vector<BlockHash>* hashes) {
  const std::vector<BlockHash>& chain = TortureChain(DocOf(id));
  if (from < chain.size()) hashes->insert(hashes->end(), chain.begin() + from, chain.end());
}

TortureClient::TortureClient(const Options& options, NamespaceOracle* oracle, Verdict* verdict)
    : layout_(options.layout),
      name_(absl::StrCat(options.name, "/", options.engine_id)),
      oracle_(oracle),
      verdict_(verdict),
      rng_(options.seed) {
  OpenSessions(options);
  thread_ = std::thread([this] { Run(); });
}

TortureClient::~TortureClient() {
  Give(TortureOrder::kExit);
  thread_.join();
}

void TortureClient::OpenSessions(const Options& options) {
  SchedulerOptions scheduler;
  scheduler.socket_path = options.socket_path;
  scheduler.engine_id[0] = options.engine_id;
  scheduler.world_size = layout_.ranks;
  scheduler.tokens_per_block = kTokens;
  scheduler.label = options.name;
  scheduler.fingerprint = options.name;
  scheduler.lookup_wait_us = 20'000;
  scheduler.lookup_timeout_ms = kLookupTimeoutMs;
  scheduler.min_load_tokens = 0;
  auto opened = SchedulerSession::Open(scheduler, &hashes_);
  if (!opened.ok()) return Fail(opened.status().ToString());
  scheduler_ = *std::move(opened);
  ranks_.resize(layout_.ranks);
  for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
    const size_t layer_bytes = size_t{kGpuBlocks} * layout_.layer_bytes;
    ranks_[rank].memory.assign(layer_bytes * layout_.layers, kPoison);
    std::vector<TensorView> tensors;
    for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
      const std::byte* at = ranks_[rank].memory.data() + layer * layer_bytes;
      tensors.push_back({absl::StrCat("layer.", layer),
                         reinterpret_cast<uintptr_t>(at),
                         1,
                         {kGpuBlocks, layout_.layer_bytes},
                         {layout_.layer_bytes, 1},
                         0});
    }
    KvLayout kv;
    kv.groups.push_back(*MakeKvGroup(tensors, kTokens));
    kv.descriptor = absl::StrCat(layout_.layers, " layers of ", layout_.layer_bytes);
    WorkerOptions worker;
    worker.socket_path = options.socket_path;
    worker.engine_id[0] = options.engine_id;
    worker.rank = rank;
    worker.world_size = layout_.ranks;
    worker.load_timeout_ms = kLoadTimeoutMs;
    auto session = WorkerSession::Open(worker, std::move(kv));
    if (!session.ok()) return Fail(session.status().ToString());
    ranks_[rank].session = *std::move(session);
  }
}

// --- orders --------------------------------------------------------------------------------------

void TortureClient::Give(TortureOrder order) {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    order_ = order;
    ++given_;
  }
  changed_.notify_all();
}

bool TortureClient::AwaitDone(int timeout_ms) {
  std::unique_lock<std::mutex> lock(mutex_);
  return changed_.wait_for(lock, std::chrono::milliseconds(timeout_ms),
                           [&] { return done_ == given_; });
}

TimeNs TortureClient::StepNs() const {
  const TimeNs began = step_began_.load();
  return began == 0 ? 0 : clock_.Now() - began;
}

void TortureClient::Run() {
  uint64_t taken = 0;
  for (;;) {
    TortureOrder order;
    bool fresh = false;
    {
      std::unique_lock<std::mutex> lock(mutex_);
      const auto working = [&] {
        return order_ == TortureOrder::kWork || order_ == TortureOrder::kReset;
      };
      changed_.wait(lock, [&] { return taken != given_ || (working() && !verdict_->failed()); });
      fresh = taken != given_;
      taken = given_;
      order = order_;
    }
    if (order == TortureOrder::kExit) return;
    if (!fresh) order = TortureOrder::kWork;
    step_began_ = clock_.Now();
    if (!verdict_->failed()) Obey(order);
    step_began_ = 0;
    if (!fresh) continue;
    {
      std::lock_guard<std::mutex> lock(mutex_);
      done_ = taken;
    }
    changed_.notify_all();
  }
}

void TortureClient::Obey(TortureOrder order) {
  switch (order) {
    case TortureOrder::kWork:
      return Step();
    case TortureOrder::kReset:
      return Reset();
    case TortureOrder::kNote:
      return Note();
    case TortureOrder::kCheck:
      return Check();
    case TortureOrder::kPause:
    case TortureOrder::kExit:
      return;
  }
}

void TortureClient::Fail(const std::string& what) {
  verdict_->Fail(absl::StrCat("client ", name_, ": ", what, "; ", Explain()));
}

std::string TortureClient::Explain() const {
  if (scheduler_ == nullptr) return "no session";
  const SchedulerStats s = scheduler_->stats();
  std::string text = absl::StrCat("ready ", s.ready, ", reattaches ", s.reattaches,
                                  ", lookup timeouts ", s.lookup_timeouts, ", ring full ",
                                  s.ring_full, ", load failures ", s.load_failures);
  for (const Rank& rank : ranks_) {
    if (rank.session == nullptr) continue;
    const WorkerStats w = rank.session->stats();
    absl::StrAppend(&text, ", rank: attached ", w.attached, ", reattaches ", w.reattaches,
                    ", load timeouts ", w.load_timeouts, ", bad plans ", w.bad_plans);
  }
  return text;
}

// --- steps ---------------------------------------------------------------------------------------

void TortureClient::Step() {
  // An engine without a daemon goes on; here it need not at full speed.
  if (!scheduler_->stats().ready) std::this_thread::sleep_for(std::chrono::milliseconds(3));
  const uint64_t dice = rng_.Below(400);
  if (dice < 40) {
    Lookup();
  } else if (dice < 200) {
    Put();
  } else if (dice < 399) {
    Load();
  } else {
    Reset();
  }
}

std::string TortureClient::NewId(uint32_t doc) { return absl::StrCat(next_id_++, ":", doc); }

std::vector<uint32_t> TortureClient::PickBlocks(size_t count) {
  std::vector<uint32_t> ids(kGpuBlocks - 1);
  std::iota(ids.begin(), ids.end(), 1);  // 0 is the null block
  for (size_t i = 0; i < count; ++i) std::swap(ids[i], ids[i + rng_.Below(ids.size() - i)]);
  ids.resize(count);
  return ids;
}

std::span<std::byte> TortureClient::LayerBytes(uint32_t rank, uint32_t layer, uint32_t block) {
  const size_t at = (size_t{layer} * kGpuBlocks + block) * layout_.layer_bytes;
  return std::span(ranks_[rank].memory).subspan(at, layout_.layer_bytes);
}

// Blocks that a lookup finds; 0 without a daemon.
uint32_t TortureClient::Ask(const std::string& id, uint32_t doc) {
  const uint64_t timeouts = scheduler_->stats().lookup_timeouts;
  const TimeNs deadline = clock_.Now() + 2 * kLookupTimeoutMs * kNsPerMs;
  ++counts_.lookups;
  scheduler_->NewRequest(id, TokensOf(doc) + 1);
  int64_t matched = SchedulerSession::kAskAgain;
  while (matched == SchedulerSession::kAskAgain) {
    matched = scheduler_->MatchedTokens(id, 0, TokensOf(doc) + 1);
    if (clock_.Now() < deadline) continue;
    Fail("a lookup is not answered");
    return 0;
  }
  if (scheduler_->stats().lookup_timeouts != timeouts) Fail("a lookup was not answered in time");
  return static_cast<uint32_t>(matched) / kTokens;
}

void TortureClient::Lookup() {
  const Doing doing(&activity_, TortureActivity::kLookup);
  const auto doc = static_cast<uint32_t>(rng_.Below(kTortureDocs));
  const std::string id = NewId(doc);
  Ask(id, doc);
  scheduler_->RequestFinished(id);
}

void TortureClient::Put() {
  const Doing doing(&activity_, TortureActivity::kPut);
  const auto doc = static_cast<uint32_t>(rng_.Below(kTortureDocs));
  const std::string id = NewId(doc);
  std::shared_lock<std::shared_mutex> gate(oracle_->gate());
  Ask(id, doc);
  const std::vector<uint32_t> ids = PickBlocks(TortureChain(doc).size());
  scheduler_->BlocksAllocated(id, ids, 0);
  Compute(id, doc, 0, ids);
  scheduler_->RequestFinished(id);
}

void TortureClient::Load() {
  const Doing doing(&activity_, TortureActivity::kLoad);
  const auto doc = static_cast<uint32_t>(rng_.Below(kTortureDocs));
  const std::string id = NewId(doc);
  // With what is missing computed behind it, or alone, and then beside resets.
  std::shared_lock<std::shared_mutex> gate(oracle_->gate(), std::defer_lock);
  if (rng_.OneIn(3)) gate.lock();
  const uint32_t oldest = oracle_->oldest();
  const uint32_t blocks = Ask(id, doc);
  if (blocks > 0) {
    const std::vector<uint32_t> ids = PickBlocks(TortureChain(doc).size());
    const LoadResult result = LoadBlocks(id, doc, blocks, ids, oldest);
    if (!result.failed && gate.owns_lock() && blocks < ids.size()) {
      scheduler_->BlocksAllocated(id, ids, 0);  // the engine looks at it again
      Compute(id, doc, blocks, ids);
    }
  }
  scheduler_->RequestFinished(id);
}

void TortureClient::Compute(const std::string& id, uint32_t doc, uint32_t computed,
                            std::span<const uint32_t> ids) {
  const std::vector<BlockHash>& chain = TortureChain(doc);
  const uint32_t tokens = TokensOf(doc) - computed * kTokens;
  scheduler_->BeginStep(tokens);
  scheduler_->ScheduledNew(id, ids, computed * kTokens, tokens);
  const std::span<const std::byte> plan = scheduler_->EndStep();
  for (Rank& rank : ranks_) {
    rank.session->Fence(plan);
    rank.session->Bind(plan);
  }
  for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
    for (uint32_t i = computed; i < chain.size(); ++i) {
      for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
        oracle_->Fill(chain[i], rank, uint64_t{layer} * layout_.layer_bytes,
                      LayerBytes(rank, layer, ids[i]));
      }
    }
    ranks_[rank].session->StepDone();
  }
  ++counts_.puts;
  counts_.put_blocks += chain.size() - computed;
  // The ring is read in order: once this is answered (or the daemon gone), the offer was read.
  const std::string after = NewId(doc);
  Ask(after, doc);
  scheduler_->RequestFinished(after);
}

TortureClient::LoadResult TortureClient::LoadBlocks(const std::string& id, uint32_t doc,
                                                    uint32_t blocks, std::span<const uint32_t> ids,
                                                    uint32_t oldest) {
  scheduler_->BlocksAllocated(id, ids, blocks * kTokens);
  scheduler_->BeginStep(0);
  const std::span<const std::byte> plan = scheduler_->EndStep();
  for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
    ranks_[rank].session->Fence(plan);
    for (uint32_t i = 0; i < blocks; ++i) {
      for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
        std::ranges::fill(LayerBytes(rank, layer, ids[i]), kPoison);
      }
    }
    ranks_[rank].session->Bind(plan);
    ranks_[rank].session->StepDone();
  }
  ++counts_.loads;
  std::vector<std::vector<uint32_t>> failed(layout_.ranks);
  if (!AwaitReports(id, &failed)) return {.failed = true};
  CheckBytes(doc, blocks, ids, oldest, failed);
  const bool any = std::ranges::any_of(failed, [](const auto& list) { return !list.empty(); });
  scheduler_->LoadEnded(id, any);
  counts_.loads_failed += any;
  return {.failed = any, .blocks = any ? 0 : blocks};
}

bool TortureClient::AwaitReports(const std::string& id,
                                 std::vector<std::vector<uint32_t>>* failed) {
  const TimeNs deadline = clock_.Now() + 2 * kLoadTimeoutMs * kNsPerMs;
  for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
    WorkerSession::Report report;
    for (;;) {
      ranks_[rank].session->Poll(&report);
      if (!report.loads.empty()) break;
      if (clock_.Now() >= deadline) {
        Fail("a load is not reported");
        return false;
      }
      Nap();
    }
    if (report.loads != std::vector<std::string>{id}) {
      Fail("another load is reported");
      return false;
    }
    (*failed)[rank] = std::move(report.failed_block_ids);
  }
  return true;
}

void TortureClient::CheckBytes(uint32_t doc, uint32_t blocks, std::span<const uint32_t> ids,
                               uint32_t oldest, const std::vector<std::vector<uint32_t>>& failed) {
  const std::vector<BlockHash>& chain = TortureChain(doc);
  const uint32_t newest = oracle_->newest();
  for (uint32_t rank = 0; rank < layout_.ranks; ++rank) {
    for (uint32_t i = 0; i < blocks; ++i) {
      if (std::ranges::find(failed[rank], ids[i]) != failed[rank].end()) continue;
      ++counts_.loaded_blocks;
      uint32_t first_epoch = 0;
      for (uint32_t layer = 0; layer < layout_.layers; ++layer) {
        const std::span<const std::byte> bytes = LayerBytes(rank, layer, ids[i]);
        const uint64_t offset = uint64_t{layer} * layout_.layer_bytes;
        const auto epoch = oracle_->EpochOf(chain[i], rank, offset, bytes, oldest, newest);
        counts_.bytes += bytes.size();
        if (epoch.has_value() && (layer == 0 || *epoch == first_epoch)) {
          first_epoch = *epoch;
          continue;
        }
        const std::string why =
            epoch.has_value()
                ? absl::StrCat("half of epoch ", first_epoch, ", half of epoch ", *epoch)
                : oracle_->Explain(chain[i], rank, offset, bytes, oldest, newest);
        Fail(absl::StrCat("WRONG BYTES: document ", doc, ", block ", i, " of ", blocks, ", rank ",
                          rank, ", layer ", layer, ": ", why));
        return;
      }
    }
  }
}

void TortureClient::Reset() {
  const Doing doing(&activity_, TortureActivity::kReset);
  std::unique_lock<std::shared_mutex> gate(oracle_->gate());
  oracle_->BeginReset();
  ++counts_.resets;
  if (!scheduler_->ResetCache(kResetTimeoutMs)) return;
  oracle_->ResetAcknowledged();
  ++counts_.resets_acknowledged;
}

// --- what was committed --------------------------------------------------------------------------

void TortureClient::Note() {
  const TimeNs deadline = clock_.Now() + kCheckNs;
  if (!scheduler_->WaitReady(kCheckNs / kNsPerMs)) return Fail("does not attach again");
  const std::map<uint32_t, uint32_t> before = oracle_->committed();
  for (uint32_t doc = 0; doc < kTortureDocs; ++doc) {
    const auto known = before.find(doc);
    const uint32_t expected = known == before.end() ? 0 : known->second;
    uint32_t blocks = 0;
    do {
      const std::string id = NewId(doc);
      blocks = Ask(id, doc);
      scheduler_->RequestFinished(id);
    } while (blocks < expected && clock_.Now() < deadline && !verdict_->failed());
    if (blocks < expected) {
      return Fail(absl::StrCat("LOST: of document ", doc, " ", expected,
                               " blocks were committed, and ", blocks, " are there"));
    }
    oracle_->SetCommitted(doc, blocks);
  }
}

void TortureClient::Check() {
  const TimeNs deadline = clock_.Now() + kCheckNs;
  for (const auto& [doc, blocks] : oracle_->committed()) {
    if (blocks > 0) CheckDoc(doc, blocks, deadline);
    if (verdict_->failed()) return;
  }
}

// Until the client has attached again, and where four clients want more memory than there is,
// it is tried again: a block that comes late is not lost.
void TortureClient::CheckDoc(uint32_t doc, uint32_t blocks, TimeNs deadline) {
  uint32_t found = 0, failures = 0;
  for (;;) {
    const std::string id = NewId(doc);
    const uint32_t oldest = oracle_->oldest();
    found = Ask(id, doc);
    LoadResult result{.failed = true};
    if (found >= blocks) {
      result = LoadBlocks(id, doc, found, PickBlocks(TortureChain(doc).size()), oldest);
      failures += result.failed;
    }
    scheduler_->RequestFinished(id);
    if (!result.failed) break;
    if (verdict_->failed()) return;
    if (clock_.Now() >= deadline) {
      return Fail(absl::StrCat("LOST: of document ", doc, " ", blocks,
                               " blocks were committed; after the restart ", found,
                               " are found, and ", failures, " loads of them failed"));
    }
    Nap();
  }
  counts_.found_again += blocks;
}

}  // namespace flexkv
