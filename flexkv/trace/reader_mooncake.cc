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
    constexpr uint32_t kTime = 1, kInput = 2, kIds = 4, kChat = 8, kAll = 7;
    TraceRequest request;
    uint64_t count = 0;
    uint32_t seen = 0;
    uint64_t* const ids = scratch_.Room(line.size() / 2 + 1);
    JsonCursor json(line);
    for (std::string_view key; json.NextKey(&key);) {
      if (key == "hash_ids") {
        seen |= json.ReadChainedUints(kSeed, ids, &count) ? kIds : 0;
      } else if (key == "timestamp") {
        seen |= json.ReadScaled(kNsPerMs, &request.time_ns) ? kTime : 0;
      } else if (key == "input_length") {
        seen |= json.ReadUint(&request.prompt_tokens) ? kInput : 0;
      } else if (key == "output_length") {
        json.ReadUint(&request.output_tokens);
      } else {
        if (key == "chat_id") seen |= kChat;
        json.SkipValue();
      }
    }
    if (!json.Finish()) return Bad(json);
    if (seen != kAll) return LineOutcome::kOtherFormat;
    request.tokens_per_block =
        options_.tokens_per_block != 0 ? options_.tokens_per_block : kTokensPerBlock;
    if (info_->namespaces.empty()) labels_.Find("");
    Append(request, ids, count, batch);
    return LineOutcome::kTaken;
  }
};

}  // namespace

std::unique_ptr<LineParser> NewMooncakeParser(const OpenTraceOptions& options, TraceInfo* info) {
  return std::make_unique<MooncakeParser>(options, info);
}

}  // namespace flexkv::trace
