// Our own traces (docs/trace-format.md). What is not plain translation:
//
// A put is written as its range and the block before it. The chain up to there is that of the same
// request's lookup or earlier put, which ChainTable keeps; the parent's hash proves that it fits.
//
// An id of a block belongs to a namespace and its epoch: each label has a generation that rises
// when the namespace is reset, and both go into the id. Blocks from before a reset therefore are
// never found again, as in the daemon, and ids of different namespaces never meet.
#include <array>
#include <bit>
#include <cstddef>
#include <memory>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "flexkv/trace/chain_table.h"
#include "flexkv/trace/line_parser.h"
#include "flexkv/trace/record_json.h"

namespace flexkv::trace {
namespace {

enum Field : uint8_t {  // in the order of the writer
  kTime,
  kEngine,
  kRequest,
  kNs,
  kTokensPerBlock,
  kPrompt,
  kEngineHit,
  kCpuHit,
  kSsdHit,
  kRemoteHit,
  kLoaded,
  kFirst,
  kBlocks,
  kHeld,
  kAccepted,
  kRefused,
  kFailed,
  kMatchNs,
  kQueueNs,
  kLoadNs,
  kLoadBytes,
  kSsdNs,
  kSsdBytes,
  kStoreNs,
  kStoreBytes,
  kVersion,
  kUnixMs,
  kRecords,
  kNumbers,
  kResult = kNumbers,
  kTier,
  kContinueP,
  kExpected,
  kParent,
  kHashes,
  kRun,
  kLabel,
  kConfig,
  kFields
};
constexpr std::array<std::string_view, kFields> kNames = {"t",
                                                          "engine",
                                                          "request",
                                                          "ns",
                                                          "tokens_per_block",
                                                          "prompt",
                                                          "engine_hit",
                                                          "cpu_hit",
                                                          "ssd_hit",
                                                          "remote_hit",
                                                          "loaded",
                                                          "first",
                                                          "blocks",
                                                          "held",
                                                          "accepted",
                                                          "refused",
                                                          "failed",
                                                          "match_ns",
                                                          "queue_ns",
                                                          "load_ns",
                                                          "load_bytes",
                                                          "ssd_ns",
                                                          "ssd_bytes",
                                                          "store_ns",
                                                          "store_bytes",
                                                          "flexkv_trace",
                                                          "unix_ms",
                                                          "records",
                                                          "result",
                                                          "tier",
                                                          "continue_p",
                                                          "expected_in_s",
                                                          "parent",
                                                          "hashes",
                                                          "run",
                                                          "label",
                                                          "config"};

enum class Kind : uint8_t { kGet, kPut, kEvict, kReset, kNamespace, kDrop, kConfig, kUnknown };

Kind KindOf(std::string_view name) {
  constexpr std::array<std::string_view, 7> kKinds = {"get", "put",  "evict", "reset",
                                                      "ns",  "drop", "config"};
  for (size_t i = 0; i < kKinds.size(); ++i) {
    if (name == kKinds[i]) return static_cast<Kind>(i);
  }
  return Kind::kUnknown;
}

struct Fields {
  std::array<uint64_t, kNumbers> numbers{};
  Result result = Result::kOk;
  uint8_t tier = 0;
  double continue_p = -1, expected_in_s = -1;
  uint64_t parent = 0, parents = 0, hashes = 0;  // hashes: how many in the scratch
  std::string run, label, config, mode;          // of rare lines
};

Result ResultOf(std::string_view name) {
  if (name == "ok") return Result::kOk;
  if (name == "partial") return Result::kPartial;
  if (name == "failed") return Result::kFailed;
  return name == "refused" ? Result::kRefused : Result::kUnknown;
}

class FlexkvParser : public LineParser {
 public:
  using LineParser::LineParser;

  void Restart() override {
    LineParser::Restart();
    run_.clear();
    epochs_.clear();
    generations_.clear();
    chains_.Clear();
  }

  LineOutcome Parse(std::string_view line, RequestBatch* batch) override;

 private:
  static constexpr size_t kMaxEpochs = 1 << 20;
  static constexpr uint64_t kMaxBlocks = 1 << 26;  // of a chain

  struct Epoch {
    uint32_t label = 0;
    uint64_t key = 0;
  };
  struct Generation {
    uint64_t number = 0;
    bool named = false;  // in this run
  };

  bool ReadFields(JsonCursor* json, Kind kind, uint64_t* ids, Fields* fields);
  bool ReadSpecial(JsonCursor* json, Kind kind, Field field, uint64_t* ids, Fields* fields);
  LineOutcome TakeConfig(const Fields& fields);
  LineOutcome TakeRecord(Kind kind, const Fields& fields, uint64_t* ids, RequestBatch* batch);
  LineOutcome TakePut(const Fields& fields, TraceRequest request, const Epoch& epoch,
                      const uint64_t* ids, RequestBatch* batch);
  // nullptr: there are too many.
  Epoch* EpochOf(uint64_t id);
  Epoch* NameEpoch(uint64_t id, std::string_view label);
  void NewKey(Epoch* epoch);

  uint32_t digits_ = 16;  // of a hash
  std::string run_;
  uint64_t unix_ms_ = 0;
  absl::flat_hash_map<uint64_t, Epoch> epochs_;  // by the daemon's id, of this run
  std::vector<Generation> generations_;          // by label
  ChainTable chains_;
  std::vector<uint64_t> chain_;
  Fields fields_;
};

bool FlexkvParser::ReadSpecial(JsonCursor* json, Kind kind, Field field, uint64_t* ids,
                               Fields* fields) {
  std::string_view text;
  switch (field) {
    case kResult:
      if (json->ReadString(&text)) fields->result = ResultOf(text);
      return json->ok();
    case kTier:
      if (json->ReadString(&text)) fields->tier = text == "ssd" ? 1 : text == "remote" ? 2 : 0;
      return json->ok();
    case kContinueP:
      return json->ReadNumber(&fields->continue_p);
    case kExpected:
      return json->ReadNumber(&fields->expected_in_s);
    case kParent:  // behind the hashes, where those came first
      if (!json->ReadHexWords(digits_, ids + fields->hashes, &fields->parents)) return false;
      fields->parent = fields->parents == 1 ? ids[fields->hashes] : 0;
      return true;
    case kHashes:
      if (kind == Kind::kGet || kind == Kind::kPut) {
        return json->ReadHexWords(digits_, ids, &fields->hashes);
      }
      if (json->ReadString(&text)) fields->mode = text;
      return json->ok();
    case kRun:
      if (json->ReadString(&text)) fields->run = text;
      return json->ok();
    case kLabel:
      if (json->ReadString(&text)) fields->label = text;
      return json->ok();
    case kConfig:
      if (json->ReadRaw(&text)) fields->config = text;
      return json->ok();
    default:
      return json->SkipValue();
  }
}

bool FlexkvParser::ReadFields(JsonCursor* json, Kind kind, uint64_t* ids, Fields* fields) {
  size_t next = 0;  // fields mostly come in the order of the writer
  for (std::string_view key; json->NextKey(&key);) {
    size_t field = next;
    for (size_t tries = 0; tries < kFields && kNames[field] != key; ++tries) {
      field = field + 1 == kFields ? 0 : field + 1;
    }
    if (kNames[field] != key) {
      json->SkipValue();
      continue;
    }
    next = field + 1 == kFields ? 0 : field + 1;
    if (field < kNumbers) {
      json->ReadUint(&fields->numbers[field]);
    } else {
      ReadSpecial(json, kind, static_cast<Field>(field), ids, fields);
    }
  }
  return json->Finish();
}

LineOutcome FlexkvParser::Parse(std::string_view line, RequestBatch* batch) {
  JsonCursor json(line);
  std::string_view key, name;
  if (!json.NextKey(&key)) return json.ok() ? LineOutcome::kOtherFormat : Bad(json);
  if (key != "k") return LineOutcome::kOtherFormat;
  if (!json.ReadString(&name)) return Bad(json);
  const Kind kind = KindOf(name);
  Fields& fields = fields_;
  fields = Fields{};
  uint64_t* const ids = scratch_.Room(line.size() / 2 + 1);
  if (!ReadFields(&json, kind, ids, &fields)) return Bad(json);
  switch (kind) {
    case Kind::kConfig:
      return TakeConfig(fields);
    case Kind::kDrop:
      info_->dropped_records += fields.numbers[kRecords];
      return LineOutcome::kTaken;
    case Kind::kNamespace:
      return NameEpoch(fields.numbers[kNs], fields.label) != nullptr ? LineOutcome::kTaken
                                                                     : Bad("too many namespaces");
    case Kind::kUnknown:
      return LineOutcome::kTaken;  // of a later program
    default:
      return TakeRecord(kind, fields, ids, batch);
  }
}

LineOutcome FlexkvParser::TakeConfig(const Fields& fields) {
  if (fields.numbers[kVersion] != kTraceVersion) {
    reason_ = absl::StrCat("a trace of version ", fields.numbers[kVersion], ", this program reads ",
                           kTraceVersion);
    return LineOutcome::kFatal;
  }
  if (fields.run != run_) {
    run_ = fields.run;
    epochs_.clear();
    chains_.Clear();
    for (Generation& generation : generations_) generation.named = false;
  }
  digits_ = fields.mode == "full" ? 64 : 16;
  if (fields.mode == "none") info_->has_blocks = false;
  unix_ms_ = fields.numbers[kUnixMs];
  if (info_->config_json.empty()) info_->config_json = fields.config;
  return LineOutcome::kTaken;
}

void FlexkvParser::NewKey(Epoch* epoch) {
  const uint64_t generation = generations_[epoch->label].number;
  epoch->key = JsonCursor::Chain(HashText(info_->namespaces[epoch->label]), generation);
}

FlexkvParser::Epoch* FlexkvParser::NameEpoch(uint64_t id, std::string_view label) {
  const auto known = epochs_.find(id);
  if (known != epochs_.end()) return &known->second;  // said again at the start of a file
  if (epochs_.size() >= kMaxEpochs) return nullptr;
  Epoch epoch;
  epoch.label = labels_.Find(label);
  if (epoch.label == NamespaceLabels::kMax) return nullptr;
  if (generations_.size() <= epoch.label) generations_.resize(epoch.label + 1);
  Generation& generation = generations_[epoch.label];
  if (generation.named) ++generation.number;
  generation.named = true;
  NewKey(&epoch);
  return &(epochs_[id] = epoch);
}

FlexkvParser::Epoch* FlexkvParser::EpochOf(uint64_t id) {
  const auto known = epochs_.find(id);
  if (known != epochs_.end()) return &known->second;
  return NameEpoch(id, std::string(absl::StrCat("namespace ", id)));
}

Measured MeasuredOf(const Fields& fields) {
  const auto number = [&](Field field) { return fields.numbers[field]; };
  const auto small = [&](Field field) {
    return static_cast<uint32_t>(std::min<uint64_t>(fields.numbers[field], UINT32_MAX));
  };
  return {.present = true,
          .result = fields.result,
          .engine_tokens = small(kEngineHit),
          .cpu_tokens = small(kCpuHit),
          .ssd_tokens = small(kSsdHit),
          .remote_tokens = small(kRemoteHit),
          .loaded_tokens = small(kLoaded),
          .match_ns = number(kMatchNs),
          .queue_ns = number(kQueueNs),
          .load_ns = number(kLoadNs),
          .load_bytes = number(kLoadBytes),
          .ssd_ns = number(kSsdNs),
          .ssd_bytes = number(kSsdBytes),
          .store_ns = number(kStoreNs),
          .store_bytes = number(kStoreBytes),
          .accepted_blocks = small(kAccepted),
          .held_blocks = small(kHeld),
          .refused_blocks = small(kRefused)};
}

LineOutcome FlexkvParser::TakeRecord(Kind kind, const Fields& fields, uint64_t* ids,
                                     RequestBatch* batch) {
  const auto& numbers = fields.numbers;
  constexpr uint64_t kMaxTime = uint64_t{1} << 62;
  if (numbers[kTime] > kMaxTime || unix_ms_ > kMaxTime / kNsPerMs)
    return Bad("a time out of range");
  const uint64_t time_ns = unix_ms_ * kNsPerMs + numbers[kTime];
  if (kind == Kind::kEvict) {
    const uint64_t blocks = std::min<uint64_t>(numbers[kBlocks], UINT32_MAX);
    batch->evictions.push_back({times_.Place(time_ns), fields.tier, static_cast<uint32_t>(blocks)});
    return LineOutcome::kTaken;
  }
  Epoch* epoch = EpochOf(numbers[kNs]);
  if (epoch == nullptr) return Bad("too many namespaces");
  if (kind == Kind::kReset) {
    ++generations_[epoch->label].number;
    NewKey(epoch);
    return LineOutcome::kTaken;
  }
  if (numbers[kPrompt] > UINT32_MAX || numbers[kTokensPerBlock] > UINT32_MAX) {
    return Bad("a number out of range");
  }
  TraceRequest request;
  request.time_ns = time_ns;
  request.kind = kind == Kind::kGet ? RequestKind::kGet : RequestKind::kPut;
  request.ns = epoch->label;
  request.tokens_per_block = static_cast<uint32_t>(numbers[kTokensPerBlock]);
  request.measured = MeasuredOf(fields);
  request.hint = {static_cast<float>(fields.continue_p), static_cast<float>(fields.expected_in_s)};
  if (!request.hint.valid()) return Bad("a bad hint");
  for (uint64_t i = 0; i < fields.hashes; ++i) ids[i] = JsonCursor::Chain(epoch->key, ids[i]);
  if (kind == Kind::kPut) return TakePut(fields, request, *epoch, ids, batch);
  request.prompt_tokens = static_cast<uint32_t>(numbers[kPrompt]);
  chains_.Remember(numbers[kEngine], numbers[kRequest], {ids, fields.hashes});
  Append(request, ids, fields.hashes, batch);
  return LineOutcome::kTaken;
}

LineOutcome FlexkvParser::TakePut(const Fields& fields, TraceRequest request, const Epoch& epoch,
                                  const uint64_t* ids, RequestBatch* batch) {
  const uint64_t first = fields.numbers[kFirst], engine = fields.numbers[kEngine];
  if (first > kMaxBlocks) return Bad("a number out of range");
  chain_.clear();
  if (first > 0 && fields.parents + fields.hashes > 0) {
    const std::span<const uint64_t> known = chains_.Find(engine, fields.numbers[kRequest]);
    const bool fits = fields.parents == 1 && known.size() >= first &&
                      known[first - 1] == JsonCursor::Chain(epoch.key, fields.parent);
    if (!fits) {
      ++info_->unresolved_puts;
      Append(request, nullptr, 0, batch);
      return LineOutcome::kTaken;
    }
    chain_.assign(known.begin(), known.begin() + static_cast<std::ptrdiff_t>(first));
  }
  chain_.insert(chain_.end(), ids, ids + fields.hashes);
  chains_.Remember(engine, fields.numbers[kRequest], chain_);
  Append(request, chain_.data(), chain_.size(), batch);
  return LineOutcome::kTaken;
}

}  // namespace

std::unique_ptr<LineParser> NewFlexkvParser(const OpenTraceOptions& options, TraceInfo* info) {
  return std::make_unique<FlexkvParser>(options, info);
}

}  // namespace flexkv::trace
