#include "flexkv/cli/trace_command.h"

#include <sstream>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/analysis_text.h"
#include "flexkv/cli/cells.h"
#include "flexkv/cli/text_table.h"
#include "flexkv/trace/advice.h"
#include "flexkv/trace/analysis.h"
#include "flexkv/trace/analysis_json.h"
#include "flexkv/trace/generate.h"
#include "flexkv/trace/report/report.h"

namespace flexkv::cli {
namespace {

using trace::Grouped;

constexpr const char* kExitCodes =
    "\nExit codes: 0 done, 1 reading or computing failed, 2 usage or no trace, 130 interrupted.\n";

// What `info` shows, counted in one pass without keeping anything.
struct Counts {
  uint64_t lookups = 0, puts = 0, prompt_tokens = 0, output_tokens = 0, blocks = 0;
  TimeNs duration_ns = 0;
  bool measured = false, hints = false;

  void Add(const trace::RequestBatch& batch) {
    for (const trace::TraceRequest& request : batch.requests) {
      ++(request.kind == trace::RequestKind::kPut ? puts : lookups);
      prompt_tokens += request.prompt_tokens;
      output_tokens += request.output_tokens;
      blocks += request.num_blocks;
      duration_ns = std::max(duration_ns, request.time_ns);
      measured |= request.measured.present;
      hints |= request.hint.known();
    }
  }
};

trace::OrderedJson InfoJson(const trace::TraceInfo& info, const Counts& counts) {
  trace::OrderedJson bad = trace::OrderedJson::array();
  for (const trace::BadLine& line : info.first_bad_lines) {
    bad.push_back({{"file", line.file}, {"line", line.number}, {"reason", line.reason}});
  }
  trace::OrderedJson config = trace::OrderedJson::parse(info.config_json, nullptr, false);
  return {{"format", NameOf(info.format)},
          {"lookups", counts.lookups},
          {"puts", counts.puts},
          {"prompt_tokens", counts.prompt_tokens},
          {"output_tokens", counts.output_tokens},
          {"blocks", counts.blocks},
          {"duration_s", static_cast<double>(counts.duration_ns) / 1e9},
          {"tokens_per_block", info.tokens_per_block},
          {"has_blocks", info.has_blocks},
          {"measured", counts.measured},
          {"hints", counts.hints},
          {"namespaces", info.namespaces},
          {"lines", info.lines},
          {"bytes", info.bytes_read},
          {"bad_lines", info.bad_lines},
          {"first_bad_lines", bad},
          {"dropped_records", info.dropped_records},
          {"config", config.is_discarded() ? trace::OrderedJson() : std::move(config)}};
}

std::string InfoText(const trace::TraceInfo& info, const Counts& counts) {
  std::string text = absl::StrCat(
      "format          ", NameOf(info.format), "\n", "lookups         ", Grouped(counts.lookups),
      "\n", "stores          ", Grouped(counts.puts), "\n", "prompt tokens   ",
      Grouped(counts.prompt_tokens), "\n", "output tokens   ", Grouped(counts.output_tokens), "\n",
      "blocks          ", Grouped(counts.blocks), " of ", info.tokens_per_block, " tokens",
      info.has_blocks ? "" : "; recorded without hashes, cannot be replayed", "\n");
  absl::StrAppend(&text, "time            ",
                  FormatDuration(static_cast<uint64_t>(counts.duration_ns)), "\n",
                  "measured        ", counts.measured ? "yes" : "no: prompts only", "\n",
                  "hints           ", counts.hints ? "yes" : "no", "\n", "lines           ",
                  Grouped(info.lines), ", ", FormatBytes(info.bytes_read), " as stored\n");
  std::vector<std::string> labels;
  constexpr size_t kShown = 8;
  for (const std::string& label : info.namespaces) {
    if (!label.empty() && labels.size() < kShown) labels.push_back(Printable(label));
  }
  if (!labels.empty()) {
    absl::StrAppend(&text, "namespaces      ", absl::StrJoin(labels, ", "),
                    info.namespaces.size() > kShown ? ", ..." : "", "\n");
  }
  if (info.dropped_records != 0) {
    absl::StrAppend(&text, "dropped         ", Grouped(info.dropped_records), " records\n");
  }
  absl::StrAppend(&text, BadLinesText(info));
  if (!info.config_json.empty()) {
    absl::StrAppend(&text, "configuration   ", Printable(info.config_json, 4000), "\n");
  }
  return text;
}

absl::StatusOr<trace::Analysis> ReadAndAnalyze(const TraceInput& input, trace::TraceSource* source,
                                               uint32_t top) {
  const absl::StatusOr<uint64_t> memory = input.MaxMemory();
  if (!memory.ok()) return memory.status();
  Progress progress("analysing");
  trace::AnalyzeOptions options;
  options.max_memory_bytes = *memory;
  options.top = top;
  options.progress = progress.Callback();
  return trace::Analyze(source, options);
}

std::string Families() {
  std::vector<std::string> names;
  for (const std::string_view name : trace::TrafficNames()) names.emplace_back(name);
  return absl::StrJoin(names, ", ");
}

}  // namespace

TraceCommand::TraceCommand(CLI::App* app) {
  group_ = app->add_subcommand("trace", "read traces: what was found, what could have been");
  group_->require_subcommand(1);
  info_ = AddCommand(group_, "info", "what is in a trace",
                     absl::StrCat("Examples:\n"
                                  "  flexkv trace info trace.jsonl\n"
                                  "  flexkv trace info --json day/*.jsonl.zst\n",
                                  kExitCodes));
  input_.AddTo(info_);
  info_->add_flag("--json", json_, "one JSON object");
  AddAnalyze();
  simulate_ = std::make_unique<SimulateCommand>(group_);
  AddReport();
  AddGenerate();
}

void TraceCommand::AddAnalyze() {
  analyze_ = AddCommand(
      group_, "analyze", "hit rate and what it could be, latencies, reuse, and what to do next",
      absl::StrCat("Reads traces of flexkvd, of Mooncake and Qwen-Bailian, and LMCache lookup-hash "
                   "logs.\n\n"
                   "Examples:\n"
                   "  flexkv trace analyze trace.jsonl\n"
                   "  flexkv trace analyze trace.jsonl trace.1.jsonl\n"
                   "  flexkv trace analyze --json trace.jsonl | jq .advice\n",
                   kExitCodes));
  input_.AddTo(analyze_);
  analyze_->add_option("--top", top_, "how many prefixes and slow operations are shown")
      ->check(CLI::Range(1u, 1000u))
      ->capture_default_str();
  analyze_->add_flag("--json", json_, "one JSON object");
}

void TraceCommand::AddReport() {
  report_ =
      AddCommand(group_, "report", "one HTML page with charts; it needs no network",
                 absl::StrCat("Examples:\n"
                              "  flexkv trace report trace.jsonl -o report.html\n"
                              "  flexkv trace report trace.jsonl -o report.html --policy lru,min\n",
                              kExitCodes));
  input_.AddTo(report_);
  report_->add_option("-o,--output", output_, "the page")->type_name("FILE")->required();
  report_->add_option("--policy", policies_, "whose capacity curves are drawn, or none")
      ->type_name("NAMES")
      ->capture_default_str();
}

void TraceCommand::AddGenerate() {
  generate_ = AddCommand(
      group_, "generate", "traffic of a known family, as a trace in Mooncake's layout",
      absl::StrCat("Families: ", Families(),
                   "\n\nExamples:\n"
                   "  flexkv trace generate chat -o chat.jsonl --requests 20000\n"
                   "  flexkv trace generate mixed --seed 7 -o - | flexkv trace analyze -\n",
                   kExitCodes));
  generate_->add_option("FAMILY", family_, "one of the families above")->required();
  generate_->add_option("-o,--output", output_, "the trace; - is standard output")
      ->type_name("FILE")
      ->required();
  generate_->add_option("--seed", seed_, "equal seeds give equal traffic")->capture_default_str();
  generate_->add_option("--requests", requests_)
      ->check(CLI::Range(uint64_t{1}, uint64_t{100000000}))
      ->capture_default_str();
  generate_->add_option("--tokens-per-block", tokens_per_block_, "default: the family's")
      ->check(CLI::Range(1u, 1u << 20));
  generate_->add_option("--requests-per-s", requests_per_s_, "default: the family's")
      ->check(CLI::Range(1e-6, 1e9));
}

int TraceCommand::RunInfo() const {
  const absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = input_.Open();
  if (!source.ok()) return Fail(source.status());
  Progress progress("reading");
  Counts counts;
  trace::RequestBatch batch;
  while (true) {
    constexpr uint64_t kBatchBlocks = 1 << 18;
    const absl::StatusOr<bool> more = (*source)->Next(kBatchBlocks, &batch);
    if (!more.ok()) return progress.Clear(), Fail(more.status());
    if (!*more) break;
    counts.Add(batch);
    progress.Show((*source)->progress());
  }
  progress.Clear();
  Print(json_ ? trace::Dump(InfoJson((*source)->info(), counts)) + "\n"
              : InfoText((*source)->info(), counts));
  return kExitOk;
}

int TraceCommand::RunAnalyze() const {
  const absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = input_.Open();
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<trace::Analysis> analysis = ReadAndAnalyze(input_, source->get(), top_);
  if (!analysis.ok()) return Fail(analysis.status());
  const std::vector<trace::Advice> advice = trace::Advise(*analysis, trace::FactsOf(*analysis));
  Print(json_ ? trace::Dump(trace::AnalysisJson(*analysis, advice)) + "\n"
              : AnalysisText(*analysis, advice));
  return kExitOk;
}

int TraceCommand::RunReport() const {
  const absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = input_.Open();
  if (!source.ok()) return Fail(source.status());
  const absl::StatusOr<trace::Analysis> analysis = ReadAndAnalyze(input_, source->get(), 12);
  if (!analysis.ok()) return Fail(analysis.status());
  trace::ReportInput report;
  report.files = input_.files;
  report.analysis = &*analysis;
  report.advice = trace::Advise(*analysis, trace::FactsOf(*analysis));
  if (policies_ != "none" && analysis->curve.has_value() && analysis->curve->unique_blocks != 0) {
    const absl::StatusOr<std::vector<std::string>> policies = ParsePolicies(policies_);
    if (!policies.ok()) return Fail(policies.status());
    if (absl::Status status = (*source)->Rewind(); !status.ok()) {
      return Fail(absl::FailedPreconditionError(
          "standard input can be read once only: give --policy none"));
    }
    std::vector<trace::Cell> cells;
    for (const std::string& policy : *policies) {
      for (const uint64_t blocks : SensibleCapacities(*analysis->curve)) {
        if (blocks != trace::kInfiniteBlocks) {
          trace::Cell cell;
          cell.policy = policy;
          cell.cpu_blocks = blocks;
          cells.push_back(cell);
        }
      }
    }
    const absl::StatusOr<uint64_t> memory = input_.MaxMemory();
    if (!memory.ok()) return Fail(memory.status());
    Progress progress("simulating");
    trace::SimulateOptions options;
    options.max_memory_bytes = *memory;
    options.progress = progress.Callback();
    absl::StatusOr<std::vector<trace::CellResult>> results =
        trace::Simulate(source->get(), cells, options);
    progress.Clear();
    if (!results.ok()) return Fail(results.status());
    report.cells = std::move(*results);
  }
  const absl::Status written = WriteFile(output_, trace::ReportHtml(report));
  return written.ok() ? kExitOk : Fail(written);
}

int TraceCommand::RunGenerate() const {
  absl::StatusOr<trace::TrafficOptions> options = trace::NamedTraffic(family_);
  if (!options.ok()) return Fail(options.status());
  options->seed = seed_;
  options->requests = requests_;
  if (tokens_per_block_ != 0) options->tokens_per_block = tokens_per_block_;
  if (requests_per_s_ != 0) options->requests_per_s = requests_per_s_;
  const absl::StatusOr<trace::RequestBatch> batch = trace::GenerateTraffic(*options);
  if (!batch.ok()) return Fail(batch.status());
  std::ostringstream text;
  if (absl::Status status = trace::WriteMooncake(*batch, &text); !status.ok()) return Fail(status);
  if (Interrupted()) return Fail(absl::CancelledError("interrupted"));
  const absl::Status written = WriteFile(output_, text.str());
  return written.ok() ? kExitOk : Fail(written);
}

int TraceCommand::Run() const {
  EndOnSignals();
  if (info_->parsed()) return RunInfo();
  if (analyze_->parsed()) return RunAnalyze();
  if (report_->parsed()) return RunReport();
  if (generate_->parsed()) return RunGenerate();
  return simulate_->Run();
}

}  // namespace flexkv::cli
