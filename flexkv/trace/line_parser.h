// What turns the lines of one format into requests; one reader_*.cc each. Thread: one.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>

#include "flexkv/trace/json_cursor.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {

enum class LineOutcome : uint8_t {
  kTaken,
  kBad,          // reason() says why
  kOtherFormat,  // well-formed, and not of this format as far as its own fields go
  kFatal,        // reason() says why nothing of the trace can be read
};

// Times of a trace: from its first request on, never falling. A time that falls within a file is
// taken as the one before and counted; a file that starts before the last one ended is moved behind
// it as a whole (traces put one after another).
class TimeLine {
 public:
  explicit TimeLine(TraceInfo* info) : info_(info) {}
  void BeginFile() { new_file_ = true; }
  void Restart() { *this = TimeLine(info_); }
  TimeNs Place(uint64_t time_ns);

 private:
  TraceInfo* info_;
  bool started_ = false, new_file_ = true;
  uint64_t base_ = 0, last_ = 0;
};

// The labels of TraceInfo::namespaces. Bounded, because a trace is not trusted.
class NamespaceLabels {
 public:
  explicit NamespaceLabels(TraceInfo* info) : info_(info) {}
  static constexpr uint32_t kMax = 1 << 16;
  // Its index; kMax: there are too many.
  uint32_t Find(std::string_view label);

 private:
  TraceInfo* info_;
  std::unordered_map<std::string, uint32_t> indices_;
};

// Room for the ids of one line, kept from line to line.
class IdScratch {
 public:
  uint64_t* Room(uint64_t ids) {
    if (ids > room_) {
      room_ = ids + ids / 2;
      ids_.reset(new uint64_t[room_]);
    }
    return ids_.get();
  }

 private:
  uint64_t room_ = 0;
  std::unique_ptr<uint64_t[]> ids_;
};

class LineParser {
 public:
  // `info` outlives the parser.
  LineParser(const OpenTraceOptions& options, TraceInfo* info)
      : options_(options), info_(info), times_(info), labels_(info) {}
  virtual ~LineParser() = default;

  // Appends what the line says. kBad and kOtherFormat append nothing.
  virtual LineOutcome Parse(std::string_view line, RequestBatch* batch) = 0;
  virtual void BeginFile() { times_.BeginFile(); }
  virtual void Restart() { times_.Restart(); }
  const std::string& reason() const { return reason_; }

 protected:
  LineOutcome Bad(std::string reason) {
    reason_ = std::move(reason);
    return LineOutcome::kBad;
  }
  LineOutcome Bad(const JsonCursor& json) { return Bad(std::string(json.reason())); }
  // Completes and appends a request of `count` ids, of which only the full blocks are kept.
  void Append(const TraceRequest& request, const uint64_t* ids, uint64_t count,
              RequestBatch* batch);

  const OpenTraceOptions options_;
  TraceInfo* const info_;
  TimeLine times_;
  NamespaceLabels labels_;
  IdScratch scratch_;
  std::string reason_;
};

// Of a line by its fields; nothing: no JSON object, or of no known format.
std::optional<TraceFormat> FormatOf(std::string_view line);

std::unique_ptr<LineParser> NewLineParser(TraceFormat format, const OpenTraceOptions& options,
                                          TraceInfo* info);
std::unique_ptr<LineParser> NewMooncakeParser(const OpenTraceOptions& options, TraceInfo* info);
std::unique_ptr<LineParser> NewQwenBailianParser(const OpenTraceOptions& options, TraceInfo* info);
std::unique_ptr<LineParser> NewLmcacheParser(const OpenTraceOptions& options, TraceInfo* info);
std::unique_ptr<LineParser> NewFlexkvParser(const OpenTraceOptions& options, TraceInfo* info);

// 64 bits of a text, the same everywhere.
uint64_t HashText(std::string_view text);

}  // namespace flexkv::trace
