#include "flexkv/trace/line_parser.h"

#include <algorithm>

namespace flexkv::trace {

TimeNs TimeLine::Place(uint64_t time_ns) {
  if (!started_) base_ = time_ns;
  started_ = true;
  auto relative = static_cast<int64_t>(time_ns - base_);
  if (relative < static_cast<int64_t>(last_)) {
    if (new_file_) {
      base_ = time_ns - last_;
    } else {
      ++info_->clamped_times;
    }
    relative = static_cast<int64_t>(last_);
  }
  new_file_ = false;
  last_ = static_cast<uint64_t>(relative);
  return last_;
}

uint32_t NamespaceLabels::Find(std::string_view label) {
  if (indices_.empty()) {  // after a restart the list is still there
    for (uint32_t i = 0; i < info_->namespaces.size(); ++i) indices_[info_->namespaces[i]] = i;
  }
  const auto found = indices_.find(std::string(label));
  if (found != indices_.end()) return found->second;
  if (info_->namespaces.size() >= kMax) return kMax;
  const auto index = static_cast<uint32_t>(info_->namespaces.size());
  info_->namespaces.emplace_back(label);
  indices_.emplace(label, index);
  return index;
}

uint64_t HashText(std::string_view text) {
  uint64_t hash = text.size();
  for (const char c : text) hash = JsonCursor::Chain(hash, static_cast<unsigned char>(c));
  return hash;
}

void LineParser::Append(const TraceRequest& request, const uint64_t* ids, uint64_t count,
                        RequestBatch* batch) {
  if (info_->tokens_per_block == 0) info_->tokens_per_block = request.tokens_per_block;
  if (request.kind != RequestKind::kPut) {
    const uint32_t full =
        request.tokens_per_block == 0 ? 0 : request.prompt_tokens / request.tokens_per_block;
    count = std::min<uint64_t>(count, full);
  }
  TraceRequest& taken = batch->requests.emplace_back(request);
  taken.time_ns = times_.Place(request.time_ns);
  taken.first_block = batch->blocks.size();
  taken.num_blocks = static_cast<uint32_t>(count);
  batch->blocks.insert(batch->blocks.end(), ids, ids + count);
}

std::optional<TraceFormat> FormatOf(std::string_view line) {
  constexpr uint32_t kTime = 1, kInput = 2, kIds = 4, kChat = 8, kChunks = 16, kKind = 32;
  uint32_t seen = 0;
  JsonCursor json(line);
  for (std::string_view key; json.NextKey(&key);) {
    if (key == "k") {
      std::string_view kind;
      if (json.ReadString(&kind)) seen |= kKind;
      continue;
    }
    if (key == "timestamp") seen |= kTime;
    if (key == "input_length") seen |= kInput;
    if (key == "hash_ids") seen |= kIds;
    if (key == "chat_id") seen |= kChat;
    if (key == "chunk_hashes") seen |= kChunks;
    json.SkipValue();
  }
  if (!json.Finish()) return std::nullopt;
  if (seen == kKind) return TraceFormat::kFlexkv;
  if ((seen & kTime) != 0 && (seen & kChunks) != 0) return TraceFormat::kLmcache;
  const uint32_t prompt = kTime | kInput | kIds;
  if ((seen & prompt) != prompt) return std::nullopt;
  return (seen & kChat) != 0 ? TraceFormat::kQwenBailian : TraceFormat::kMooncake;
}

std::unique_ptr<LineParser> NewLineParser(TraceFormat format, const OpenTraceOptions& options,
                                          TraceInfo* info) {
  switch (format) {
    case TraceFormat::kFlexkv:
      return NewFlexkvParser(options, info);
    case TraceFormat::kMooncake:
      return NewMooncakeParser(options, info);
    case TraceFormat::kQwenBailian:
      return NewQwenBailianParser(options, info);
    case TraceFormat::kLmcache:
      return NewLmcacheParser(options, info);
  }
  return nullptr;
}

}  // namespace flexkv::trace
