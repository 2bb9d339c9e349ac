// Mooncake: {"timestamp": ms, "input_length": tokens, "output_length": tokens, "hash_ids": [...]},
// an id per block of 512 tokens, the last one often partial.
#include <memory>

#include "flexkv/trace/line_parser.h"

namespace flexkv::trace {
namespace {

constexpr uint32_t kTokensPerBlock = 512;
constexpr uint64_t kSeed = 0x6d6f6f6e;

class MooncakeParser : public LineParser {
 public:
  using LineParser::LineParser;

  LineOutcome Parse(std::string_view line, RequestBatch* batch) override {
    Prompt prompt;
    uint64_t* const ids = scratch_.Room(line.size() / 2 + 1);
    if (!ReadUsual(line, ids, &prompt)) {
      prompt = {};
      const LineOutcome outcome = ReadAny(line, ids, &prompt);
      if (outcome != LineOutcome::kTaken) return outcome;
    }
    TraceRequest request;
    request.time_ns = prompt.time_ns;
    request.prompt_tokens = prompt.input_tokens;
    request.output_tokens = prompt.output_tokens;
    request.tokens_per_block =
        options_.tokens_per_block != 0 ? options_.tokens_per_block : kTokensPerBlock;
    if (info_->namespaces.empty()) labels_.Find("");
    Append(request, ids, prompt.ids, batch);
    return LineOutcome::kTaken;
  }

 private:
  struct Prompt {
    TimeNs time_ns = 0;
    uint32_t input_tokens = 0, output_tokens = 0;
    uint64_t ids = 0;
  };

  // A line as Python writes it, the fields in the order of the published traces.
  static bool ReadUsual(std::string_view line, uint64_t* ids, Prompt* prompt) {
    JsonCursor json(line);
    return json.SkipText("{\"timestamp\": ") && json.ReadScaled(kNsPerMs, &prompt->time_ns) &&
           json.SkipText(", \"input_length\": ") && json.ReadUint(&prompt->input_tokens) &&
           json.SkipText(", \"output_length\": ") && json.ReadUint(&prompt->output_tokens) &&
           json.SkipText(", \"hash_ids\": ") && json.ReadChainedUints(kSeed, ids, &prompt->ids) &&
           json.SkipText("}") && json.at_end();
  }

  LineOutcome ReadAny(std::string_view line, uint64_t* ids, Prompt* prompt) {
    constexpr uint32_t kTime = 1, kInput = 2, kIds = 4, kChat = 8, kAll = 7;
    uint32_t seen = 0;
    JsonCursor json(line);
    for (std::string_view key; json.NextKey(&key);) {
      if (key == "hash_ids") {
        seen |= json.ReadChainedUints(kSeed, ids, &prompt->ids) ? kIds : 0;
      } else if (key == "timestamp") {
        seen |= json.ReadScaled(kNsPerMs, &prompt->time_ns) ? kTime : 0;
      } else if (key == "input_length") {
        seen |= json.ReadUint(&prompt->input_tokens) ? kInput : 0;
      } else if (key == "output_length") {
        json.ReadUint(&prompt->output_tokens);
      } else {
        if (key == "chat_id") seen |= kChat;
        json.SkipValue();
      }
    }
    if (!json.Finish()) return Bad(json);
    return seen == kAll ? LineOutcome::kTaken : LineOutcome::kOtherFormat;
  }
};

}  // namespace

std::unique_ptr<LineParser> NewMooncakeParser(const OpenTraceOptions& options, TraceInfo* info) {
  return std::make_unique<MooncakeParser>(options, info);
}

}  // namespace flexkv::trace
