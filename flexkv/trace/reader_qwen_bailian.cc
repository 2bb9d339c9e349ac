// Qwen-Bailian: {"chat_id", "parent_chat_id" (-1 at the first turn), "timestamp": s,
// "input_length", "output_length", "type", "turn", "hash_ids": [...]}, an id per block of 16
// tokens.
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "flexkv/trace/line_parser.h"

namespace flexkv::trace {
namespace {

constexpr uint32_t kTokensPerBlock = 16;
constexpr uint64_t kSeed = 0x7177656e;

// The first chat of each conversation. Bounded: the older half is forgotten when a million newer
// chats have come; a conversation that goes on after that counts as a new one.
class RootChats {
 public:
  int64_t RootOf(int64_t chat, int64_t parent) {
    const int64_t root = parent < 0 ? chat : Find(parent);
    if (newer_.size() >= kAtOnce) {
      older_ = std::move(newer_);
      newer_.clear();
    }
    newer_[chat] = root;
    return root;
  }
  void Clear() {
    newer_.clear();
    older_.clear();
  }

 private:
  static constexpr size_t kAtOnce = 1 << 20;
  int64_t Find(int64_t chat) const {
    auto found = newer_.find(chat);
    if (found != newer_.end()) return found->second;
    found = older_.find(chat);
    return found != older_.end() ? found->second : chat;
  }
  std::unordered_map<int64_t, int64_t> newer_, older_;
};

class QwenBailianParser : public LineParser {
 public:
  using LineParser::LineParser;

  void Restart() override {
    LineParser::Restart();
    roots_.Clear();
  }

  LineOutcome Parse(std::string_view line, RequestBatch* batch) override {
    constexpr uint32_t kTime = 1, kInput = 2, kIds = 4, kChat = 8, kAll = 15;
    TraceRequest request;
    uint64_t count = 0;
    int64_t chat = 0, parent = -1;
    uint32_t seen = 0;
    uint64_t* const ids = scratch_.Room(line.size() / 2 + 1);
    JsonCursor json(line);
    for (std::string_view key; json.NextKey(&key);) {
      if (key == "hash_ids") {
        seen |= json.ReadChainedUints(kSeed, ids, &count) ? kIds : 0;
      } else if (key == "timestamp") {
        seen |= json.ReadScaled(kNsPerSecond, &request.time_ns) ? kTime : 0;
      } else if (key == "input_length") {
        seen |= json.ReadUint(&request.prompt_tokens) ? kInput : 0;
      } else if (key == "output_length") {
        json.ReadUint(&request.output_tokens);
      } else if (key == "chat_id") {
        seen |= json.ReadInt(&chat) ? kChat : 0;
      } else if (key == "parent_chat_id") {
        json.ReadInt(&parent);
      } else {
        json.SkipValue();  // type and turn too: the chain of parents says more
      }
    }
    if (!json.Finish()) return Bad(json);
    if (seen != kAll) return LineOutcome::kOtherFormat;
    request.tokens_per_block =
        options_.tokens_per_block != 0 ? options_.tokens_per_block : kTokensPerBlock;
    request.session = static_cast<uint64_t>(roots_.RootOf(chat, parent)) + 1;  // 0: unknown
    if (info_->namespaces.empty()) labels_.Find("");
    Append(request, ids, count, batch);
    return LineOutcome::kTaken;
  }

 private:
  RootChats roots_;
};

}  // namespace

std::unique_ptr<LineParser> NewQwenBailianParser(const OpenTraceOptions& options, TraceInfo* info) {
  return std::make_unique<QwenBailianParser>(options, info);
}

}  // namespace flexkv::trace
