#include "perf/daemon/bench_engine.h"

#include <sys/mman.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "perf/bench_util.h"

namespace flexkv::bench {
namespace {

constexpr size_t kHugePage = size_t{2} << 20;

[[noreturn]] void Fail(const std::string& what) {
  std::fprintf(stderr, "bench engine: %s\n", what.c_str());
  std::exit(2);
}

uint64_t Word(const BlockHash& hash, uint32_t rank, uint64_t offset) {
  return SplitMix(hash.words[1] ^ (uint64_t{rank} << 56) ^ offset);
}

void Nap() { std::this_thread::sleep_for(std::chrono::microseconds(50)); }

}  // namespace

BlockHash BenchHash(uint64_t chain, uint32_t depth) {
  BlockHash hash;
  for (uint32_t i = 0; i < 4; ++i) hash.words[i] = SplitMix(chain << 32 ^ uint64_t{depth} << 2 ^ i);
  return hash;
}

std::vector<BlockHash> BenchChain(uint64_t chain, uint32_t blocks) {
  std::vector<BlockHash> hashes;
  for (uint32_t depth = 0; depth < blocks; ++depth) hashes.push_back(BenchHash(chain, depth));
  return hashes;
}

void FillShard(const BlockHash& hash, uint32_t rank, uint64_t offset, std::span<std::byte> bytes) {
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = Word(hash, rank, offset + i);
    std::memcpy(bytes.data() + i, &word, 8);
  }
}

bool ShardIsRight(const BlockHash& hash, uint32_t rank, uint64_t offset,
                  std::span<const std::byte> bytes) {
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = Word(hash, rank, offset + i);
    if (std::memcmp(bytes.data() + i, &word, 8) != 0) return false;
  }
  return true;
}

// On huge pages where the system has them, as an engine's tensors often are.
struct BenchEngine::Memory {
  explicit Memory(size_t bytes) : mapped(RoundUp(bytes, kHugePage) + kHugePage) {
    room = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) Fail("no memory");
    const auto aligned = RoundUp(reinterpret_cast<uintptr_t>(room), kHugePage);
    span = {reinterpret_cast<std::byte*>(aligned), bytes};
    madvise(span.data(), mapped - kHugePage, MADV_HUGEPAGE);
    std::memset(span.data(), 0, bytes);
  }
  ~Memory() { munmap(room, mapped); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  const size_t mapped;
  void* room = nullptr;
  std::span<std::byte> span;
};

void BenchEngine::Hashes::AppendHashes(std::string_view id, uint32_t from,
                                       std::vector<BlockHash>* hashes) {
  const auto chain = chains.find(std::string(id));
  if (chain == chains.end() || from >= chain->second.size()) return;
  hashes->insert(hashes->end(), chain->second.begin() + from, chain->second.end());
}

BenchEngine::BenchEngine(const BenchEngineOptions& options)
    : options_(options), fragment_bytes_(options.shard_bytes / options.layers) {
  SchedulerOptions scheduler;
  scheduler.socket_path = options.socket_path;
  scheduler.engine_id[0] = options.id;
  scheduler.world_size = options.ranks;
  scheduler.tokens_per_block = kTokensPerBlock;
  scheduler.label = absl::StrCat("bench ", options.ranks, " x ", options.shard_bytes);
  scheduler.fingerprint = "bench";
  scheduler.lookup_wait_us = 50000;
  scheduler.lookup_timeout_ms = 10000;
  scheduler.min_load_tokens = 0;
  auto session = SchedulerSession::Open(scheduler, &hashes_);
  if (!session.ok()) Fail(session.status().ToString());
  scheduler_ = *std::move(session);
  for (uint32_t rank = 0; rank < options.ranks; ++rank) {
    memory_.push_back(std::make_unique<Memory>(size_t{options.blocks} * options.shard_bytes));
    KvGroup group;
    group.num_blocks = options.blocks;
    group.tokens_per_block = kTokensPerBlock;
    for (uint32_t layer = 0; layer < options.layers; ++layer) {
      LayerView view;
      view.base = reinterpret_cast<uintptr_t>(Fragment(rank, layer, 0).data());
      view.block_stride_bytes = fragment_bytes_;
      view.fragment_bytes = fragment_bytes_;
      group.layers.push_back(view);
    }
    WorkerOptions worker;
    worker.socket_path = options.socket_path;
    worker.engine_id[0] = options.id;
    worker.rank = rank;
    worker.world_size = options.ranks;
    auto opened = WorkerSession::Open(worker, {{group}, absl::StrCat("rank ", rank)});
    if (!opened.ok()) Fail(opened.status().ToString());
    workers_.push_back(*std::move(opened));
  }
}

BenchEngine::~BenchEngine() = default;

std::span<std::byte> BenchEngine::Fragment(uint32_t rank, uint32_t layer, uint32_t block) const {
  return memory_[rank]->span.subspan((size_t{layer} * options_.blocks + block) * fragment_bytes_,
                                     fragment_bytes_);
}

std::string BenchEngine::NewRequest(std::span<const BlockHash> chain) {
  std::string id = absl::StrCat("r", next_request_++);
  hashes_.chains[id] = chain;
  scheduler_->NewRequest(id, static_cast<uint32_t>(chain.size()) * kTokensPerBlock + 1);
  return id;
}

int64_t BenchEngine::Ask(const std::string& id, uint32_t blocks) {
  constexpr int kAttempts = 200;
  for (int i = 0; i < kAttempts; ++i) {
    const int64_t matched = scheduler_->MatchedTokens(id, 0, blocks * kTokensPerBlock + 1);
    if (matched != SchedulerSession::kAskAgain) return matched / kTokensPerBlock;
  }
  return 0;
}

void BenchEngine::End(const std::string& id) {
  scheduler_->RequestFinished(id);
  hashes_.chains.erase(id);
}

void BenchEngine::Execute() {
  const std::span<const std::byte> plan = scheduler_->EndStep();
  if (plan.empty()) return;
  for (const auto& worker : workers_) {
    worker->Fence(plan);
    worker->Bind(plan);
    worker->StepDone();
  }
}

uint32_t BenchEngine::Match(std::span<const BlockHash> chain) {
  const std::string id = NewRequest(chain);
  const int64_t matched = Ask(id, static_cast<uint32_t>(chain.size()));
  End(id);
  return static_cast<uint32_t>(matched);
}

bool BenchEngine::Store(std::span<const BlockHash> chain) {
  const auto blocks = static_cast<uint32_t>(chain.size());
  for (uint32_t rank = 0; rank < options_.ranks; ++rank) {
    for (uint32_t layer = 0; layer < options_.layers; ++layer) {
      for (uint32_t i = 0; i < blocks; ++i)
        FillShard(chain[i], rank, uint64_t{layer} * fragment_bytes_, Fragment(rank, layer, i + 1));
    }
  }
  std::vector<uint32_t> ids(blocks);
  std::iota(ids.begin(), ids.end(), 1);
  const uint32_t tokens = blocks * kTokensPerBlock;
  const std::string id = NewRequest(chain);
  Ask(id, blocks);
  scheduler_->BlocksAllocated(id, ids, 0);
  scheduler_->BeginStep(tokens);
  scheduler_->ScheduledNew(id, ids, 0, tokens);
  Execute();
  bool stored = false;
  for (int i = 0; i < 10000 && !stored; ++i) {
    Nap();
    stored = Match(chain) == blocks;
  }
  End(id);
  return stored;
}

// Blocks that failed, of all ranks; none of them is counted twice in what a load brought.
uint32_t BenchEngine::Await() {
  size_t ended = 0;
  std::vector<uint32_t> failed;
  WorkerSession::Report report;
  std::vector<bool> done(workers_.size());
  while (ended < workers_.size()) {
    for (size_t rank = 0; rank < workers_.size(); ++rank) {
      if (done[rank]) continue;
      workers_[rank]->Poll(&report);
      if (report.loads.empty()) continue;
      done[rank] = true;
      ++ended;
      failed.insert(failed.end(), report.failed_block_ids.begin(), report.failed_block_ids.end());
    }
    if (ended < workers_.size()) Nap();
  }
  std::sort(failed.begin(), failed.end());
  return static_cast<uint32_t>(std::unique(failed.begin(), failed.end()) - failed.begin());
}

uint32_t BenchEngine::Load(std::span<const BlockHash> chain) {
  const std::string id = NewRequest(chain);
  const auto matched = static_cast<uint32_t>(Ask(id, static_cast<uint32_t>(chain.size())));
  if (matched == 0) {
    End(id);
    return 0;
  }
  std::vector<uint32_t> ids(chain.size());
  std::iota(ids.begin(), ids.end(), 1);
  scheduler_->BlocksAllocated(id, ids, matched * kTokensPerBlock);
  scheduler_->BeginStep(0);
  Execute();
  const uint32_t failed = Await();
  scheduler_->LoadEnded(id, failed > 0);
  End(id);
  return matched - failed;
}

bool BenchEngine::IsRight(std::span<const BlockHash> chain) const {
  for (uint32_t rank = 0; rank < options_.ranks; ++rank) {
    for (uint32_t layer = 0; layer < options_.layers; ++layer) {
      for (uint32_t i = 0; i < chain.size(); ++i) {
        if (!ShardIsRight(chain[i], rank, uint64_t{layer} * fragment_bytes_,
                          Fragment(rank, layer, i + 1)))
          return false;
      }
    }
  }
  return true;
}

void BenchEngine::Wipe() {
  for (const auto& memory : memory_) std::memset(memory->span.data(), 0, memory->span.size());
}

}  // namespace flexkv::bench
