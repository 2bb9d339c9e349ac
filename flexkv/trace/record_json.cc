#include "flexkv/trace/record_json.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cstring>

#include "flexkv/trace/utf8.h"

namespace flexkv::trace {
namespace {

constexpr const char* kKindNames[] = {"get", "put", "evict", "reset"};
constexpr const char* kResultNames[] = {"ok", "partial", "failed", "refused"};
constexpr const char* kTierNames[] = {"cpu", "ssd", "remote"};

void AppendNumber(uint64_t value, std::string* out) {
  char text[20];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  out->append(text, static_cast<size_t>(end - text));
}

// ,"name":value; nothing for 0, which is what an absent field means.
void AppendField(std::string_view name, uint64_t value, std::string* out) {
  if (value == 0) return;
  out->append(",\"").append(name).append("\":");
  AppendNumber(value, out);
}

void AppendField(std::string_view name, float value, std::string* out) {
  char text[32];
  const auto end = std::to_chars(text, text + sizeof(text), value).ptr;
  out->append(",\"").append(name).append("\":").append(text, static_cast<size_t>(end - text));
}

void AppendField(std::string_view name, std::string_view value, std::string* out) {
  out->append(",\"").append(name).append("\":\"").append(value).append("\"");
}

// A word as its 8 bytes lie in memory, so that full hashes read as the engine prints them.
void WriteHexBytes(uint64_t word, char* out) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::array<uint8_t, 8> bytes;
  std::memcpy(bytes.data(), &word, sizeof(word));
  for (size_t i = 0; i < bytes.size(); ++i) {
    out[2 * i] = kDigits[bytes[i] >> 4];
    out[2 * i + 1] = kDigits[bytes[i] & 15];
  }
}

void AppendHashes(std::string_view name, std::span<const uint64_t> words, const RecordStyle& style,
                  std::string* out) {
  if (words.empty()) return;
  out->append(",\"").append(name).append("\":\"");
  size_t place = out->size();
  out->resize(place + 16 * words.size());
  for (const uint64_t word : words) {
    const bool keyed = style.hashes == TraceHashes::kShort;
    WriteHexBytes(keyed ? KeyedHash(style.key, word) : word, out->data() + place);
    place += 16;
  }
  out->push_back('"');
}

void AppendEscaped(std::string_view text, std::string* out) {
  while (!text.empty()) {
    const char c = text[0];
    size_t length = Utf8Length(text);
    if (length == 0) {
      out->append("\\ufffd");
      length = 1;
    } else if (c == '"' || c == '\\') {
      out->push_back('\\');
      out->push_back(c);
    } else if (static_cast<uint8_t>(c) < 0x20) {
      constexpr char kDigits[] = "0123456789abcdef";
      out->append("\\u00");
      out->push_back(kDigits[c >> 4]);
      out->push_back(kDigits[c & 15]);
    } else {
      out->append(text.substr(0, length));
    }
    text.remove_prefix(length);
  }
}

void AppendGetFields(const TraceRecord& r, std::string* out) {
  AppendField("prompt", uint64_t{r.prompt_tokens}, out);
  AppendField("engine_hit", uint64_t{r.engine_tokens}, out);
  AppendField("cpu_hit", uint64_t{r.matched_cpu_tokens}, out);
  AppendField("ssd_hit", uint64_t{r.matched_ssd_tokens}, out);
  AppendField("remote_hit", uint64_t{r.matched_remote_tokens}, out);
  AppendField("loaded", uint64_t{r.loaded_tokens}, out);
}

void AppendBlockFields(const TraceRecord& r, std::string* out) {
  AppendField("first", uint64_t{r.first_block}, out);
  AppendField("blocks", uint64_t{r.blocks}, out);
  AppendField("held", uint64_t{r.held_blocks}, out);
  AppendField("accepted", uint64_t{r.accepted_blocks}, out);
  AppendField("refused", uint64_t{r.refused_blocks}, out);
  AppendField("failed", uint64_t{r.failed_blocks}, out);
}

void AppendTimes(const TraceRecord& r, std::string* out) {
  AppendField("match_ns", r.match_ns, out);
  AppendField("queue_ns", r.queue_ns, out);
  AppendField("load_ns", r.load_ns, out);
  AppendField("load_bytes", r.load_bytes, out);
  AppendField("ssd_ns", r.ssd_ns, out);
  AppendField("ssd_bytes", r.ssd_bytes, out);
  AppendField("store_ns", r.store_ns, out);
  AppendField("store_bytes", r.store_bytes, out);
}

void AppendHint(const RequestHint& hint, std::string* out) {
  AppendField("continue_p", hint.continue_p, out);
  if (hint.expected_in_s >= 0) AppendField("expected_in_s", hint.expected_in_s, out);
}

}  // namespace

uint32_t WordsPerHash(TraceHashes hashes) {
  switch (hashes) {
    case TraceHashes::kNone:
      return 0;
    case TraceHashes::kShort:
      return 1;
    case TraceHashes::kFull:
      return 4;
  }
  return 0;
}

const char* NameOf(TraceHashes hashes) {
  switch (hashes) {
    case TraceHashes::kNone:
      return "none";
    case TraceHashes::kShort:
      return "short";
    case TraceHashes::kFull:
      return "full";
  }
  return "none";
}

void AppendConfigLine(const ConfigLine& line, std::string* out) {
  out->append("{\"k\":\"config\",\"flexkv_trace\":");
  AppendNumber(kTraceVersion, out);
  out->append(",\"run\":\"");
  const size_t place = out->size();
  out->resize(place + 16);
  WriteHexBytes(line.run, out->data() + place);
  out->append("\",\"file\":");
  AppendNumber(line.file, out);
  out->append(",\"unix_ms\":");
  AppendNumber(line.unix_ms, out);
  AppendField("hashes", std::string_view(NameOf(line.hashes)), out);
  out->append(",\"config\":").append(line.config_json).append("}\n");
}

void AppendNamespaceLine(NamespaceId id, std::string_view label, std::string* out) {
  out->append("{\"k\":\"ns\",\"ns\":");
  AppendNumber(id, out);
  out->append(",\"label\":\"");
  AppendEscaped(label, out);
  out->append("\"}\n");
}

void AppendDropLine(uint64_t records, std::string* out) {
  out->append("{\"k\":\"drop\",\"records\":");
  AppendNumber(records, out);
  out->append("}\n");
}

void AppendRecordLine(const RecordRing::Entry& entry, const RecordStyle& style, std::string* out) {
  const TraceRecord& r = *entry.record;
  out->append("{\"k\":\"").append(kKindNames[static_cast<size_t>(r.kind)]).append("\"");
  out->append(",\"t\":");
  AppendNumber(r.time_ns > style.start_ns ? r.time_ns - style.start_ns : 0, out);
  AppendField("engine", uint64_t{r.engine}, out);
  AppendField("request", r.request, out);
  AppendField("ns", uint64_t{r.ns}, out);
  if (r.kind == RecordKind::kEvict) {
    AppendField("tier", std::string_view(kTierNames[static_cast<size_t>(r.tier)]), out);
  }
  if (r.result != RecordResult::kOk) {
    AppendField("result", std::string_view(kResultNames[static_cast<size_t>(r.result)]), out);
  }
  AppendField("tokens_per_block", uint64_t{r.tokens_per_block}, out);
  AppendGetFields(r, out);
  AppendBlockFields(r, out);
  AppendTimes(r, out);
  if (r.hint.known() && r.hint.valid()) AppendHint(r.hint, out);
  std::span<const uint64_t> words = entry.words;
  const uint32_t width = WordsPerHash(style.hashes);
  if (r.kind == RecordKind::kPut && r.first_block > 0 && words.size() >= width) {
    AppendHashes("parent", words.first(width), style, out);
    words = words.subspan(width);
  }
  AppendHashes("hashes", words, style, out);
  out->append("}\n");
}

std::span<const BlockHash> HashesToWrite(const TraceRecord& record,
                                         std::span<const BlockHash> chain) {
  if (record.kind == RecordKind::kGet) return chain;
  if (record.kind != RecordKind::kPut) return {};
  const size_t wanted = size_t{record.blocks} + (record.first_block > 0 ? 1 : 0);
  if (chain.size() == wanted) return chain;  // else it is the whole chain
  const size_t from =
      std::min<size_t>(chain.size(), record.first_block == 0 ? 0 : record.first_block - 1);
  const size_t end =
      std::min<size_t>(chain.size(), size_t{record.first_block} + size_t{record.blocks});
  return end > from ? chain.subspan(from, end - from) : std::span<const BlockHash>();
}

}  // namespace flexkv::trace
