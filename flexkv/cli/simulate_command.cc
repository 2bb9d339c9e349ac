#include "flexkv/cli/simulate_command.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/cells.h"
#include "flexkv/cli/text_table.h"
#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis_json.h"

namespace flexkv::cli {
namespace {

using trace::Cell;
using trace::CellResult;

constexpr size_t kMaxCells = 4096;

// A point of the exact curve, in the words of a cell.
CellResult CurvePoint(const trace::LruCurve& curve, uint64_t blocks) {
  CellResult point;
  point.cell.policy = "lru";
  point.cell.cpu_blocks = blocks;
  point.requests = curve.requests;
  point.prompt_tokens = curve.prompt_tokens;
  point.hit_tokens_cpu = curve.HitsAt(blocks) * curve.tokens_per_block;
  return point;
}

}  // namespace

void SimulationFlags::AddTo(CLI::App* app) {
  app->add_flag("--timed", timed,
                "requests start at their times and take time; eviction as in the daemon, ahead of "
                "need (else: one after another, eviction exactly when full)");
  app->add_option("--hint-oracle", hint_oracle,
                  "give each request a hint read from the future that is right with this "
                  "probability: 0.9 or 0.9:SEED")
      ->type_name("P[:SEED]");
  app->add_option("--prefill-tokens-per-s", prefill_tokens_per_s, "what the engine computes")
      ->check(CLI::Range(1.0, 1e12))
      ->capture_default_str();
  app->add_option("--block-bytes", block_bytes,
                  "bytes of a block on all ranks together, such as 2MiB")
      ->type_name("SIZE");
  app->add_option("--threads", threads, "0: one per core")->check(CLI::Range(0u, 1024u));
}

absl::StatusOr<uint64_t> SimulationFlags::BlockBytes() const {
  if (block_bytes.empty()) return 0;
  const absl::StatusOr<uint64_t> bytes = ParseBytes(block_bytes, 0);
  if (!bytes.ok() || *bytes == 0) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--block-bytes: ", bytes.ok() ? "must not be 0" : std::string(bytes.status().message())));
  }
  return *bytes;
}

absl::StatusOr<trace::SimulateOptions> SimulationFlags::Options(uint64_t max_memory) const {
  trace::SimulateOptions options;
  options.timed = timed;
  options.prefill_tokens_per_s = prefill_tokens_per_s;
  options.max_memory_bytes = max_memory;
  options.threads = threads;
  const absl::StatusOr<uint64_t> bytes = BlockBytes();
  if (!bytes.ok()) return bytes.status();
  if (*bytes != 0) options.block_bytes = *bytes;
  if (hint_oracle.empty()) return options;
  const size_t colon = hint_oracle.find(':');
  const bool good = absl::SimpleAtod(hint_oracle.substr(0, colon), &options.hint_oracle) &&
                    options.hint_oracle > 0 && options.hint_oracle <= 1 &&
                    (colon == std::string::npos ||
                     absl::SimpleAtoi(hint_oracle.substr(colon + 1), &options.hint_seed));
  if (good) return options;
  return absl::InvalidArgumentError(
      absl::StrCat("--hint-oracle: '", Printable(hint_oracle),
                   "' is not a probability above 0, or one with a seed (0.9:7)"));
}

SimulateCommand::SimulateCommand(CLI::App* group) {
  app_ = AddCommand(
      group, "simulate", "what the trace would have got from other policies and sizes",
      "Runs the daemon's own core, with copies that move nothing. `min` is the best that any "
      "policy could do, knowing the future.\n\n"
      "Examples:\n"
      "  flexkv trace simulate trace.jsonl\n"
      "  flexkv trace simulate trace.jsonl --policy all --cpu-blocks 1k,3k,10k,inf\n"
      "  flexkv trace simulate trace.jsonl --policy lru --cpu-blocks 3k --ssd-blocks 0,30k\n"
      "  flexkv trace simulate trace.jsonl --config node.json --block-bytes 2MiB --timed\n"
      "  flexkv trace simulate trace.jsonl --curve --json\n\n"
      "With --json, one line a cell: policy, cpu_blocks, ssd_blocks, hit_rate, hit_rate_cpu,\n"
      "hit_rate_ssd (0..1 of prompt tokens, full blocks only), requests, prompt_tokens. An\n"
      "infinite size is the string \"inf\".\n\n"
      "Exit codes: 0 done, 1 reading or computing failed, 2 usage or no trace, 130 interrupted.\n");
  input_.AddTo(app_);
  app_->add_option("--policy", policies_,
                   "names with commas between, or all (default: the daemon's, lru and min)")
      ->type_name("NAMES");
  app_->add_option("--cpu-blocks", cpu_blocks_,
                   "sizes in memory: 1k,3k,inf (default: some up to what is enough)")
      ->type_name("SIZES");
  app_->add_option("--ssd-blocks", ssd_blocks_, "sizes on SSD")
      ->type_name("SIZES")
      ->capture_default_str();
  app_->add_option("--admission", admissions_, "what goes to SSD: always, second_touch, or both")
      ->type_name("NAMES")
      ->capture_default_str();
  app_->add_option("--evict-ratio", evict_ratio_, "with --timed, as in the configuration")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app_->add_option("--evict-start-ratio", evict_start_ratio_,
                   "with --timed, as in the configuration")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  app_->add_option("--config", config_path_, "a daemon's configuration, as one more cell")
      ->type_name("FILE");
  app_->add_flag("--curve", curve_, "the exact LRU hit rate over all sizes, in one pass");
  flags_.AddTo(app_);
  app_->add_flag("--json", json_, "one line a cell");
}

absl::Status SimulateCommand::AddConfigCell(std::vector<Cell>* cells) const {
  const absl::StatusOr<DaemonConfig> config = ReadNodeConfig(config_path_);
  if (!config.ok()) return config.status();
  const absl::StatusOr<uint64_t> block_bytes = flags_.BlockBytes();
  if (!block_bytes.ok()) return block_bytes.status();
  const absl::StatusOr<Cell> cell = CellOfConfig(*config, *block_bytes);
  if (!cell.ok()) return cell.status();
  cells->push_back(*cell);
  return absl::OkStatus();
}

absl::StatusOr<std::vector<Cell>> SimulateCommand::Cells(trace::TraceSource* source) const {
  std::vector<Cell> cells;
  if (!config_path_.empty()) {
    if (absl::Status status = AddConfigCell(&cells); !status.ok()) return status;
    if (policies_.empty() && cpu_blocks_.empty()) return cells;
  }
  const auto policies = ParsePolicies(policies_);
  if (!policies.ok()) return policies.status();
  const auto ssd_sizes = ParseBlockCounts("--ssd-blocks", ssd_blocks_);
  if (!ssd_sizes.ok()) return ssd_sizes.status();
  const auto admissions = ParseAdmissions(admissions_);
  if (!admissions.ok()) return admissions.status();
  std::vector<uint64_t> cpu_sizes;
  if (!cpu_blocks_.empty()) {
    const auto given = ParseBlockCounts("--cpu-blocks", cpu_blocks_);
    if (!given.ok()) return given.status();
    cpu_sizes = *given;
  } else {
    const absl::StatusOr<trace::LruCurve> curve = trace::ComputeLruCurve(source);
    if (!curve.ok()) return curve.status();
    if (absl::Status status = source->Rewind(); !status.ok()) {
      return absl::FailedPreconditionError(
          "standard input can be read once only: name the sizes with --cpu-blocks");
    }
    cpu_sizes = SensibleCapacities(*curve);
  }
  for (const std::string& policy : *policies) {
    for (const uint64_t ssd : *ssd_sizes) {
      for (const SsdAdmission admission : *admissions) {
        // Without an SSD there is nothing to admit to; `min` is one tier of both.
        if ((ssd == 0 || policy == "min") && admission != admissions->front()) continue;
        for (const uint64_t cpu : cpu_sizes) {
          cells.push_back({policy, cpu, ssd, admission, evict_ratio_, evict_start_ratio_});
        }
      }
    }
  }
  if (cells.size() <= kMaxCells) return cells;
  return absl::InvalidArgumentError(
      absl::StrCat(cells.size(), " combinations are more than ", kMaxCells, ": name fewer"));
}

absl::Status SimulateCommand::PrintCurve(trace::TraceSource* source) const {
  const absl::StatusOr<uint64_t> memory = input_.MaxMemory();
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<trace::LruCurve> curve = trace::ComputeLruCurve(source, *memory);
  if (!curve.ok()) return curve.status();
  TextTable table({"blocks", "LRU hit rate"});
  for (const auto& point : trace::CurveJson(*curve, json_ ? 200 : 24)) {
    const auto blocks = point[0].get<uint64_t>();
    if (json_) {
      Print(trace::Dump(trace::CellJson(CurvePoint(*curve, blocks))) + "\n");
    } else {
      table.Add({BlocksText(blocks), trace::Percent(curve->HitRateAt(blocks))});
    }
  }
  if (json_) {
    Print(trace::Dump(trace::CellJson(CurvePoint(*curve, trace::kInfiniteBlocks))) + "\n");
    return absl::OkStatus();
  }
  Print(absl::StrCat("LRU at every size, exactly: ", trace::Grouped(curve->requests), " lookups, ",
                     trace::Grouped(curve->block_accesses), " block accesses, ",
                     trace::Grouped(curve->unique_blocks), " different blocks\n\n", table.Text(2),
                     "\n  ", trace::Grouped(trace::SufficientBlocks(*curve)),
                     " blocks are enough: more raise it by less than 0.5 points\n"));
  return absl::OkStatus();
}

int SimulateCommand::Run() const {
  EndOnSignals();
  const absl::StatusOr<uint64_t> memory = input_.MaxMemory();
  if (!memory.ok()) return Fail(memory.status());
  absl::StatusOr<trace::SimulateOptions> options = flags_.Options(*memory);
  if (!options.ok()) return Fail(options.status());
  const absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = input_.Open();
  if (!source.ok()) return Fail(source.status());
  if (curve_) {
    const absl::Status status = PrintCurve(source->get());
    if (!status.ok()) return Fail(status);
    if (policies_.empty() && cpu_blocks_.empty() && config_path_.empty()) return kExitOk;
    if (absl::Status rewound = (*source)->Rewind(); !rewound.ok()) return Fail(rewound);
  }
  const absl::StatusOr<std::vector<Cell>> cells = Cells(source->get());
  if (!cells.ok()) return Fail(cells.status());
  Progress progress("simulating");
  options->progress = progress.Callback();
  const absl::StatusOr<std::vector<CellResult>> results =
      trace::Simulate(source->get(), *cells, *options);
  progress.Clear();
  if (!results.ok()) return Fail(results.status());
  if (json_) {
    for (const CellResult& result : *results) {
      Print(trace::Dump(trace::CellJson(result)) + "\n");
    }
    return kExitOk;
  }
  const CellResult& first = results->front();
  Print(absl::StrCat(trace::Grouped(first.requests), " lookups, ",
                     trace::Grouped(first.prompt_tokens), " prompt tokens",
                     flags_.timed ? ", at their times" : "", "\n", CellsText(*results)));
  return kExitOk;
}

}  // namespace flexkv::cli
