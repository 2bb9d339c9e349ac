#include "flexkv/cli/tune_command.h"

#include <fstream>
#include <memory>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"
#include "flexkv/cli/cells.h"
#include "flexkv/trace/analysis.h"

namespace flexkv::cli {
namespace {

absl::StatusOr<uint64_t> Size(const char* option, const std::string& text) {
  const absl::StatusOr<uint64_t> bytes = ParseBytes(text, 0);
  if (bytes.ok()) return bytes;
  return absl::InvalidArgumentError(absl::StrCat(option, ": ", bytes.status().message()));
}

// The file was read and checked before.
std::string TextOf(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

TuneCommand::TuneCommand(CLI::App* app) {
  app_ = AddCommand(
      app, "tune", "search the configuration that serves a trace best within a budget",
      "Chooses sizes, policy, admission and way of evicting. Says what that would bring, what "
      "else\n"
      "was tried, and when more memory cannot help.\n\n"
      "Examples:\n"
      "  flexkv tune trace.jsonl --memory 200GB --config node.json\n"
      "  flexkv tune trace.jsonl --memory 64GB --ssd 2TB --block-bytes 2MiB -o better.json\n"
      "  flexkv tune trace.jsonl --target cost --target-value 0.5 --memory 1TB --block-bytes 2MiB\n"
      "  flexkv tune trace.jsonl --target ttft --memory 200GB --config node.json --json\n"
      "  flexkv tune trace.jsonl --memory 200GB --config node.json --verify\n\n"
      "Targets: hit-rate (the highest, or the value given, then the cheapest size within 0.5\n"
      "points), ttft (the least time until prompts are computed or loaded; a value is in "
      "seconds),\n"
      "cost (the cheapest that reaches the value, or 90 % of the best).\n\n"
      "Exit codes: 0 done, 1 reading or computing failed, 2 usage or no trace, 130 interrupted.\n");
  input_.AddTo(app_);
  app_->add_option("--target", target_, "hit-rate, ttft or cost")
      ->check(CLI::IsMember({"hit-rate", "ttft", "cost"}))
      ->capture_default_str();
  app_->add_option("--target-value", target_value_, "a hit rate (0.9), or seconds for ttft")
      ->check(CLI::Range(0.0, 1e6));
  app_->add_option("--memory", memory_, "the most memory it may take: 200GB")
      ->type_name("SIZE")
      ->required();
  app_->add_option("--ssd", ssd_, "the most SSD it may take: 2TB")
      ->type_name("SIZE")
      ->capture_default_str();
  app_->add_option("--config", config_path_, "the present configuration, to compare and to change")
      ->type_name("FILE");
  app_->add_option("--ssd-dir", ssd_dir_, "ssd_cache_dir of the result")->type_name("DIR");
  app_->add_option("--policy", policies_, "policies to choose from")
      ->type_name("NAMES")
      ->capture_default_str();
  app_->add_option("--memory-price", memory_price_, "of a GB, in any unit")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  app_->add_option("--ssd-price", ssd_price_, "of a GB, in the same unit")
      ->check(CLI::Range(0.0, 1e9))
      ->capture_default_str();
  app_->add_option("--load-gb-per-s", load_gb_per_s_, "memory to GPU")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app_->add_option("--ssd-gb-per-s", ssd_gb_per_s_, "SSD to memory")
      ->check(CLI::Range(0.001, 1e6))
      ->capture_default_str();
  app_->add_option("-o,--output", output_, "write the configuration there as well")
      ->type_name("FILE");
  app_->add_flag("--verify", verify_,
                 "replay the trace against a daemon of its own, with small blocks, and compare");
  app_->add_option("--verify-requests", verify_requests_, "at most, from the trace's beginning")
      ->check(CLI::Range(uint64_t{1}, uint64_t{1} << 40))
      ->capture_default_str();
  flags_.AddTo(app_);
  app_->add_flag("--json", json_, "one JSON object");
}

// As said, else as measured by the transfers in the trace.
absl::StatusOr<uint64_t> TuneCommand::BlockBytes(trace::TraceSource* source) const {
  const absl::StatusOr<uint64_t> said = flags_.BlockBytes();
  if (!said.ok() || *said != 0) return said;
  trace::AnalyzeOptions options;
  options.curve = false;
  options.max_memory_bytes = 64 << 20;
  const absl::StatusOr<trace::Analysis> analysis = trace::Analyze(source, options);
  if (!analysis.ok()) return analysis.status();
  if (analysis->block_bytes() == 0) {
    return absl::InvalidArgumentError(
        "the trace does not say how many bytes a block has: give --block-bytes (2MiB, as shown by "
        "flexkv status)");
  }
  if (absl::Status status = source->Rewind(); !status.ok()) return status;
  return analysis->block_bytes();
}

absl::StatusOr<TuneRequest> TuneCommand::Request(trace::TraceSource* source) const {
  const absl::StatusOr<uint64_t> max_memory = input_.MaxMemory();
  if (!max_memory.ok()) return max_memory.status();
  const absl::StatusOr<trace::SimulateOptions> simulate = flags_.Options(*max_memory);
  if (!simulate.ok()) return simulate.status();
  TuneRequest request;
  request.simulate = *simulate;
  request.simulate.load_bytes_per_s = load_gb_per_s_ * 1e9;
  request.simulate.ssd_bytes_per_s = ssd_gb_per_s_ * 1e9;
  request.target = target_ == "ttft"   ? TuneTarget::kTtft
                   : target_ == "cost" ? TuneTarget::kCost
                                       : TuneTarget::kHitRate;
  if (target_value_ >= 0) request.target_value = target_value_;
  if (target_ != "ttft" && target_value_ > 1) {
    return absl::InvalidArgumentError("--target-value: a hit rate is from 0 to 1, such as 0.9");
  }
  const absl::StatusOr<uint64_t> memory = Size("--memory", memory_);
  if (!memory.ok()) return memory.status();
  const absl::StatusOr<uint64_t> ssd = Size("--ssd", ssd_);
  if (!ssd.ok()) return ssd.status();
  request.memory_bytes = *memory;
  request.ssd_bytes = *ssd;
  request.memory_price = memory_price_;
  request.ssd_price = ssd_price_;
  const absl::StatusOr<std::vector<std::string>> policies = ParsePolicies(policies_);
  if (!policies.ok()) return policies.status();
  for (const std::string& policy : *policies) {
    if (policy != "min" && policy != "default") request.policies.push_back(policy);
  }
  if (request.policies.empty()) request.policies.emplace_back("lru");
  absl::StatusOr<DaemonConfig> config = DaemonConfig();
  if (!config_path_.empty()) {
    config = ReadNodeConfig(config_path_);
    if (!config.ok()) return config.status();
  }
  const absl::StatusOr<uint64_t> block_bytes = BlockBytes(source);
  if (!block_bytes.ok()) return block_bytes.status();
  request.block_bytes = *block_bytes;
  if (config_path_.empty()) return request;
  const absl::StatusOr<trace::Cell> cell = CellOfConfig(*config, *block_bytes);
  if (!cell.ok()) return cell.status();
  request.present = *cell;
  return request;
}

absl::Status TuneCommand::Verify(trace::TraceSource* source, TuneResult* result) const {
  Progress progress("verifying");
  VerifyOptions options;
  options.max_requests = verify_requests_;
  options.progress = progress.Callback();
  const absl::StatusOr<uint64_t> memory = input_.MaxMemory();
  if (!memory.ok()) return memory.status();
  options.max_memory_bytes = *memory;
  absl::StatusOr<VerifyResult> verified = VerifyLive(source, result->chosen.result.cell, options);
  if (!verified.ok()) return verified.status();
  result->verified = std::move(*verified);
  return absl::OkStatus();
}

int TuneCommand::Run() const {
  EndOnSignals();
  const absl::StatusOr<std::unique_ptr<trace::TraceSource>> source = input_.Open();
  if (!source.ok()) return Fail(source.status());
  absl::StatusOr<TuneRequest> request = Request(source->get());
  if (!request.ok()) return Fail(request.status());
  Progress progress("searching");
  request->simulate.progress = progress.Callback();
  absl::StatusOr<TuneResult> result = Tune(source->get(), *request);
  progress.Clear();
  if (!result.ok()) return Fail(result.status());
  if (verify_) {
    if (absl::Status status = Verify(source->get(), &*result); !status.ok()) return Fail(status);
  }
  const absl::StatusOr<TunedConfig> config = MakeTunedConfig(
      *result, *request, config_path_.empty() ? "" : TextOf(config_path_), ssd_dir_);
  if (!config.ok()) return Fail(config.status());
  if (!output_.empty()) {
    const absl::Status written = WriteFile(output_, trace::Dump(config->json, 2) + "\n");
    if (!written.ok()) return Fail(written);
  }
  Print(json_ ? trace::Dump(TuneJson(*result, *request, *config)) + "\n"
              : TuneText(*result, *request, *config));
  return kExitOk;
}

}  // namespace flexkv::cli
