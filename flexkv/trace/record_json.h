// The lines of a trace (docs/trace-format.md), appended to a string. Thread: one.
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>

#include "flexkv/trace/keyed_hash.h"
#include "flexkv/trace/record_ring.h"
#include "flexkv/trace/trace_writer.h"

namespace flexkv::trace {

inline constexpr uint32_t kTraceVersion = 1;

uint32_t WordsPerHash(TraceHashes hashes);
const char* NameOf(TraceHashes hashes);  // "none", "short", "full"

struct ConfigLine {
  uint64_t run = 0;   // the same in all files of one writer
  uint64_t file = 0;  // 0, 1, ... within the run
  uint64_t unix_ms = 0;
  TraceHashes hashes = TraceHashes::kShort;
  std::string_view config_json;  // one line
};
void AppendConfigLine(const ConfigLine& line, std::string* out);
void AppendNamespaceLine(NamespaceId id, std::string_view label, std::string* out);
void AppendDropLine(uint64_t records, std::string* out);

struct RecordStyle {
  TraceHashes hashes = TraceHashes::kShort;
  HashKey key;  // of short hashes
  TimeNs start_ns = 0;
};
void AppendRecordLine(const RecordRing::Entry& entry, const RecordStyle& style, std::string* out);

// Which of a record's chain is written: all of a get's; of a put's its range and the block before
// it.
std::span<const BlockHash> HashesToWrite(const TraceRecord& record,
                                         std::span<const BlockHash> chain);

}  // namespace flexkv::trace
