// One pass over the trace for all cells together: a batch is read and prepared once, then every
// cell runs it, cells spread over threads. A cell is touched by one thread at a time and sees
// requests in order, so results do not depend on how many threads there are. What needs the future
// ("min", the hint oracle) gets it from a pass before.
#include "flexkv/trace/simulate.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/index/policies.h"
#include "flexkv/trace/min_policy.h"
#include "flexkv/trace/mix.h"
#include "flexkv/trace/next_uses.h"
#include "flexkv/trace/replay.h"
#include "flexkv/trace/run_tracker.h"
#include "flexkv/trace/worker_pool.h"

namespace flexkv::trace {
namespace {

constexpr uint64_t kBatchBlocks = 1 << 15;
constexpr double kFirstPassShare = 0.1;  // of the progress, when there is one

// 0 does not stay 0.
uint64_t MixStep(uint64_t x) { return Mix(x + 0x9E3779B97F4A7C15ull); }

// An id as the index wants it: uniform in its first word, no two alike.
BlockHash HashOf(uint64_t id) {
  BlockHash hash;
  hash.words = {MixStep(id), id, 0, 0};
  return hash;
}

bool IsMin(const Cell& cell) { return cell.policy == "min"; }

class Simulation {
 public:
  Simulation(TraceSource* source, const std::vector<Cell>& cells, const SimulateOptions& options)
      : source_(source), cells_(cells), options_(options), runs_(true) {}

  absl::StatusOr<std::vector<CellResult>> Run() {
    results_.resize(cells_.size());
    if (absl::Status status = OpenCells(); !status.ok()) return status;
    const bool future = options_.hint_oracle > 0 || has_min();
    if (future) {
      if (absl::Status status = LookAhead(); !status.ok()) return status;
    }
    const uint32_t threads =
        options_.threads > 0 ? options_.threads : std::max(1u, std::thread::hardware_concurrency());
    pool_ = std::make_unique<WorkerPool>(std::min<size_t>(threads, cells_.size()));
    RunMinCells();
    if (!replays_.empty()) {
      if (future) {
        if (absl::Status status = source_->Rewind(); !status.ok()) return status;
      }
      if (absl::Status status = Replay(future ? kFirstPassShare : 0); !status.ok()) return status;
    }
    if (options_.progress) options_.progress(1);
    return std::move(results_);
  }

 private:
  bool has_min() const { return replays_.size() < cells_.size(); }

  absl::Status OpenCells() {
    for (size_t i = 0; i < cells_.size(); ++i) {
      results_[i].cell = cells_[i];
      if (IsMin(cells_[i])) continue;
      absl::StatusOr<std::unique_ptr<CellReplay>> replay =
          CellReplay::New(cells_[i], options_, source_->info().tokens_per_block);
      if (!replay.ok()) return replay.status();
      replays_.push_back(*std::move(replay));
      replay_cells_.push_back(i);
    }
    return absl::OkStatus();
  }

  // Reads the next batch. False: the end.
  absl::StatusOr<bool> Read() {
    absl::StatusOr<bool> more = source_->Next(kBatchBlocks, &batch_);
    if (!more.ok() || !*more) return more;
    if (!source_->info().has_blocks)
      return absl::InvalidArgumentError("the trace was recorded without block hashes");
    return true;
  }

  absl::Status LookAhead() {
    const double share = replays_.empty() ? 1 : kFirstPassShare;
    NextUses asked(/*lookups_insert=*/true);
    while (true) {
      absl::StatusOr<bool> more = Read();
      if (!more.ok()) return more.status();
      if (!*more) break;
      const NextUses& larger = options_.hint_oracle > 0 ? asked : uses_;
      if (larger.size() + batch_.requests.size() > NextUses::kMaxRequests ||
          larger.unique_blocks() + batch_.blocks.size() > RunTracker::kMaxBlocks) {
        return absl::ResourceExhaustedError("the trace has more than 4 billion requests or blocks");
      }
      if (has_min()) uses_.Add(batch_);
      if (options_.hint_oracle > 0) asked.Add(batch_);
      if (absl::Status status = CheckMemory(asked.bytes()); !status.ok()) return status;
      if (options_.progress) options_.progress(share * source_->progress());
    }
    uses_.Finish();
    asked.Finish();
    if (options_.hint_oracle > 0) asked_again_ = asked.LastBlockAskedAgain();
    return absl::OkStatus();
  }

  void RunMinCells() {
    pool_->ForEach(cells_.size(), [&](size_t i) {
      const Cell& cell = cells_[i];
      if (!IsMin(cell)) return;
      const bool infinite = cell.cpu_blocks > kInfiniteBlocks - cell.ssd_blocks;
      const MinResult min =
          ReplayMin(uses_, infinite ? kInfiniteBlocks : cell.cpu_blocks + cell.ssd_blocks);
      CellResult& result = results_[i];
      result.requests = uses_.requests();
      result.prompt_tokens = uses_.prompt_tokens();
      result.hit_tokens_cpu = min.hit_tokens;
      result.inserted_blocks = min.inserted_blocks;
      result.evicted_blocks = min.evicted_blocks;
    });
  }

  absl::Status Replay(double progress_before) {
    std::vector<absl::Status> statuses(replays_.size());
    while (true) {
      absl::StatusOr<bool> more = Read();
      if (!more.ok()) return more.status();
      if (!*more) break;
      if (absl::Status status = Prepare(); !status.ok()) return status;
      pool_->ForEach(replays_.size(), [&](size_t i) { statuses[i] = replays_[i]->Run(shared_); });
      if (absl::Status status = FirstError(statuses); !status.ok()) return status;
      if (absl::Status status = CheckMemory(); !status.ok()) return status;
      if (options_.progress)
        options_.progress(progress_before + (1 - progress_before) * source_->progress());
    }
    pool_->ForEach(replays_.size(), [&](size_t i) {
      statuses[i] = replays_[i]->Finish();
      results_[replay_cells_[i]] = replays_[i]->result();
    });
    return FirstError(statuses);
  }

  static absl::Status FirstError(const std::vector<absl::Status>& statuses) {
    for (const absl::Status& status : statuses) {
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }

  // What the cells need of the batch.
  absl::Status Prepare() {
    if (runs_.unique_blocks() + batch_.blocks.size() > RunTracker::kMaxBlocks)
      return absl::ResourceExhaustedError("the trace has more than 4 billion different blocks");
    shared_.batch = &batch_;
    shared_.hashes.resize(batch_.blocks.size());
    shared_.numbers.assign(batch_.blocks.size(), ReplayBatch::kNoNumber);
    shared_.hints.clear();
    for (size_t i = 0; i < batch_.blocks.size(); ++i) shared_.hashes[i] = HashOf(batch_.blocks[i]);
    constexpr size_t kFar = 4, kNear = 2;
    const std::vector<TraceRequest>& requests = batch_.requests;
    for (size_t i = 0; i < requests.size(); ++i) {
      const TraceRequest& request = requests[i];
      if (i + kFar < requests.size()) runs_.PrefetchFar(batch_.BlocksOf(requests[i + kFar]));
      if (i + kNear < requests.size()) runs_.PrefetchNear(batch_.BlocksOf(requests[i + kNear]));
      runs_.Access(batch_.BlocksOf(request), request.kind != RequestKind::kGet);
      std::copy(runs_.numbers().begin(), runs_.numbers().end(),
                shared_.numbers.begin() + static_cast<std::ptrdiff_t>(request.first_block));
      shared_.hints.push_back(HintOf(request, next_request_++));
    }
    shared_.numbers_end = runs_.unique_blocks();
    return absl::OkStatus();
  }

  RequestHint HintOf(const TraceRequest& request, uint64_t number) const {
    if (options_.hint_oracle <= 0) return options_.use_trace_hints ? request.hint : RequestHint{};
    // Uniform in [0, 1), the same for all cells.
    const double dice =
        static_cast<double>(MixStep(options_.hint_seed ^ MixStep(number)) >> 11) * 0x1p-53;
    const bool truth = asked_again_[number];
    const bool told = dice < options_.hint_oracle ? truth : !truth;
    return RequestHint{.continue_p = told ? 0.9f : 0.1f};
  }

  absl::Status CheckMemory(uint64_t other = 0) const {
    const uint64_t batch = batch_.bytes() + shared_.hashes.capacity() * sizeof(BlockHash) +
                           shared_.numbers.capacity() * sizeof(uint32_t) +
                           shared_.hints.capacity() * sizeof(RequestHint) + runs_.bytes();
    uint64_t future = other + uses_.bytes() + asked_again_.capacity() / 8;
    uint64_t cells = 0;
    for (const auto& replay : replays_) cells += replay->bytes();
    if (has_min())
      future += uses_.size() * 24 *
                std::min<uint64_t>(pool_ == nullptr ? 1 : pool_->threads(),
                                   cells_.size() - replays_.size());
    if (batch + future + cells <= options_.max_memory_bytes) return absl::OkStatus();
    return absl::ResourceExhaustedError(
        absl::StrCat("the simulation needs more than ", options_.max_memory_bytes >> 20,
                     " MiB of memory: ", cells >> 20, " MiB for ", replays_.size(), " caches, ",
                     batch >> 20, " MiB for the trace at hand and ", future >> 20,
                     " MiB for next uses, after ", static_cast<int>(100 * source_->progress()),
                     " % of this pass; simulate fewer or smaller caches at a time"));
  }

  TraceSource* const source_;
  const std::vector<Cell>& cells_;
  const SimulateOptions& options_;
  std::vector<CellResult> results_;
  std::vector<std::unique_ptr<CellReplay>> replays_;
  std::vector<size_t> replay_cells_;  // beside replays_: index of the cell
  std::unique_ptr<WorkerPool> pool_;
  RequestBatch batch_;
  ReplayBatch shared_;
  RunTracker runs_;
  NextUses uses_;
  std::vector<bool> asked_again_;
  uint64_t next_request_ = 0;
};

}  // namespace

absl::StatusOr<std::vector<CellResult>> Simulate(TraceSource* source,
                                                 const std::vector<Cell>& cells,
                                                 const SimulateOptions& options) {
  if (cells.empty()) return std::vector<CellResult>{};
  return Simulation(source, cells, options).Run();
}

}  // namespace flexkv::trace
