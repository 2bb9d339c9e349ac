// LMCache's lookup-hash log: {"timestamp": s, "request_id", "model_name", "chunk_size": tokens,
// "seq_len": tokens, "dtypes", "shapes", "chunk_hashes": ["0x...", ...]}. A hash has any number of
// digits, or is a negative number. A model is a namespace.
#include <memory>
#include <string>

#include "flexkv/trace/line_parser.h"

namespace flexkv::trace {
namespace {

// "0x1f", "-0x1f": 64 bits of any number of digits. False: something else.
bool ReadHash(std::string_view text, uint64_t* hash) {
  const bool negative = text.starts_with('-');
  if (negative) text.remove_prefix(1);
  if (!text.starts_with("0x") || text.size() < 3) return false;
  text.remove_prefix(2);
  uint64_t chain = negative ? 1 : 0, word = 0;
  for (size_t i = 0; i < text.size(); ++i) {
    const char c = text[i];
    const char lower = static_cast<char>(c | 0x20);
    const bool is_digit = c >= '0' && c <= '9';
    if (!is_digit && (lower < 'a' || lower > 'f')) return false;
    word = word << 4 | static_cast<uint64_t>(is_digit ? c - '0' : lower - 'a' + 10);
    if (i % 16 == 15 || i + 1 == text.size()) {
      chain = JsonCursor::Chain(chain, word);
      word = 0;
    }
  }
  *hash = chain;
  return true;
}

class LmcacheParser : public LineParser {
 public:
  using LineParser::LineParser;

  LineOutcome Parse(std::string_view line, RequestBatch* batch) override {
    constexpr uint32_t kTime = 1, kLength = 2, kHashes = 4, kChunk = 8, kAll = 15;
    TraceRequest request;
    uint64_t count = 0;
    uint32_t seen = 0;
    uint64_t* const ids = scratch_.Room(line.size() / 2 + 1);
    std::string model;
    JsonCursor json(line);
    for (std::string_view key; json.NextKey(&key);) {
      if (key == "chunk_hashes") {
        count = 0;
        const auto each = [&](std::string_view text) { return ReadHash(text, &ids[count++]); };
        seen |= json.ReadStrings(each) ? kHashes : 0;
      } else if (key == "timestamp") {
        seen |= json.ReadScaled(kNsPerSecond, &request.time_ns) ? kTime : 0;
      } else if (key == "seq_len") {
        seen |= json.ReadUint(&request.prompt_tokens) ? kLength : 0;
      } else if (key == "chunk_size") {
        seen |= json.ReadUint(&request.tokens_per_block) ? kChunk : 0;
      } else if (key == "model_name") {
        std::string_view name;
        if (json.ReadString(&name)) model = name;
      } else {
        json.SkipValue();
      }
    }
    if (!json.Finish()) return Bad(json);
    if (seen != kAll) return LineOutcome::kOtherFormat;
    return Take(request, model, ids, count, batch);
  }

 private:
  LineOutcome Take(TraceRequest request, const std::string& model, uint64_t* ids, uint64_t count,
                   RequestBatch* batch) {
    if (options_.tokens_per_block != 0) request.tokens_per_block = options_.tokens_per_block;
    if (request.tokens_per_block == 0) return Bad("chunk_size is 0");
    request.ns = labels_.Find(model);
    if (request.ns == NamespaceLabels::kMax) return Bad("too many models");
    uint64_t chain = HashText(model);
    for (uint64_t i = 0; i < count; ++i) ids[i] = chain = JsonCursor::Chain(chain, ids[i]);
    Append(request, ids, count, batch);
    return LineOutcome::kTaken;
  }
};

}  // namespace

std::unique_ptr<LineParser> NewLmcacheParser(const OpenTraceOptions& options, TraceInfo* info) {
  return std::make_unique<LmcacheParser>(options, info);
}

}  // namespace flexkv::trace
