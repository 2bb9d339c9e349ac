// One trace over one or more files: which format, which line is bad, when that is too much.
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "flexkv/trace/line_parser.h"
#include "flexkv/trace/line_reader.h"
#include "flexkv/trace/trace_request.h"

namespace flexkv::trace {
namespace {

constexpr size_t kBadLinesKept = 20;
constexpr uint64_t kBadLinesForgiven = 10;
// So far the first good line is looked for.
constexpr uint64_t kMaxLinesToFormat = 10000;
constexpr uint64_t kMaxBytesToFormat = 64ull << 20;

bool IsBlank(std::string_view text) {
  return text.find_first_not_of(" \t\r") == std::string_view::npos;
}

class FileTraceSource : public TraceSource {
 public:
  FileTraceSource(std::vector<std::string> paths, const OpenTraceOptions& options)
      : paths_(std::move(paths)), options_(options) {}

  // Up to the first request, so that info() knows format, block size and configuration.
  absl::Status Open() {
    if (paths_.empty()) return absl::InvalidArgumentError("no trace is named");
    absl::Status status = CheckFiles();
    if (!status.ok()) return status;
    absl::StatusOr<bool> more = Fill(1, &ahead_);
    if (!more.ok()) return more.status();
    if (parser_ == nullptr) return NoFormatError();
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Next(uint64_t max_blocks, RequestBatch* batch) override {
    batch->Clear();
    if (!ahead_.requests.empty() || !ahead_.evictions.empty()) std::swap(*batch, ahead_);
    ahead_.Clear();
    return Fill(max_blocks, batch);
  }

  absl::Status Rewind() override;
  const TraceInfo& info() const override { return info_; }
  double progress() const override {
    if (total_bytes_ == 0) return 0;
    return std::min(1.0, static_cast<double>(info_.bytes_read) / static_cast<double>(total_bytes_));
  }

 private:
  absl::Status CheckFiles();
  absl::Status NoFormatError() const;
  absl::StatusOr<bool> Fill(uint64_t max_blocks, RequestBatch* batch);
  // False: the end of all files.
  absl::StatusOr<bool> NextLine(Line* line);
  absl::StatusOr<bool> NextFile();
  absl::Status EndFile();
  absl::Status TakeLine(const Line& line, RequestBatch* batch);
  absl::Status FindFormat(const Line& line);
  absl::Status AddBadLine(std::string_view reason);
  absl::Status CheckBadLines(bool at_end) const;
  std::string Where() const { return absl::StrCat(paths_[file_ - 1], ":", line_number_); }
  void CountBytes() { info_.bytes_read = bytes_before_ + reader_->source().stored_read(); }

  const std::vector<std::string> paths_;
  const OpenTraceOptions options_;
  TraceInfo info_;
  std::unique_ptr<LineParser> parser_;
  std::unique_ptr<LineReader> reader_;
  size_t file_ = 0;  // the one being read is paths_[file_ - 1]
  bool is_pipe_ = false;
  uint64_t line_number_ = 0;   // in this file
  uint64_t bytes_before_ = 0;  // of the files before
  uint64_t total_bytes_ = 0;   // 0: not known
  uint64_t text_bytes_ = 0;    // looked at before the format was known
  RequestBatch ahead_;
  absl::Status failed_;
};

absl::Status FileTraceSource::CheckFiles() {
  for (const std::string& path : paths_) {
    if (path == "-") {
      is_pipe_ = true;
      continue;
    }
    // Not opened yet: a pipe can be opened only once.
    struct stat file {};
    if (stat(path.c_str(), &file) != 0 || access(path.c_str(), R_OK) != 0) {
      return absl::ErrnoToStatus(errno, path);
    }
    is_pipe_ = is_pipe_ || !S_ISREG(file.st_mode);
    total_bytes_ += static_cast<uint64_t>(file.st_size);
  }
  if (is_pipe_ && paths_.size() > 1) {
    return absl::InvalidArgumentError("a pipe can only be the one file of a trace");
  }
  if (is_pipe_) total_bytes_ = 0;
  return absl::OkStatus();
}

absl::Status FileTraceSource::NoFormatError() const {
  if (info_.lines == 0) return absl::InvalidArgumentError(absl::StrCat(paths_[0], " is empty"));
  const BadLine& first = info_.first_bad_lines.front();
  return absl::InvalidArgumentError(absl::StrCat("no trace of a known format; line ", first.number,
                                                 " of ", first.file, ": ", first.reason));
}

absl::Status FileTraceSource::Rewind() {
  if (is_pipe_) return absl::FailedPreconditionError("a pipe is read only once");
  info_.lines = info_.bytes_read = info_.bad_lines = info_.dropped_records = 0;
  info_.clamped_times = info_.unresolved_puts = 0;
  info_.first_bad_lines.clear();
  if (parser_ != nullptr) parser_->Restart();
  reader_.reset();
  file_ = 0;
  bytes_before_ = 0;
  ahead_.Clear();
  failed_ = absl::OkStatus();
  return absl::OkStatus();
}

absl::StatusOr<bool> FileTraceSource::NextFile() {
  if (file_ == paths_.size()) return false;
  if (file_ > 0) bytes_before_ = info_.bytes_read;
  absl::StatusOr<std::unique_ptr<LineReader>> reader =
      LineReader::Open(paths_[file_], options_.max_line_bytes);
  if (!reader.ok()) return reader.status();
  reader_ = *std::move(reader);
  ++file_;
  line_number_ = 0;
  if (parser_ != nullptr) parser_->BeginFile();
  return true;
}

// Our own writer may be killed at any time: what it wrote until then is a whole trace.
absl::Status FileTraceSource::EndFile() {
  CountBytes();
  absl::Status status = reader_->status();
  const bool ours = parser_ != nullptr && info_.format == TraceFormat::kFlexkv;
  const bool killed = ours && absl::IsDataLoss(status) && reader_->source().cut();
  if (killed) {
    ++line_number_;
    ++info_.lines;
    status = AddBadLine("the compressed file is cut");
  }
  reader_.reset();
  return status;
}

absl::StatusOr<bool> FileTraceSource::NextLine(Line* line) {
  while (true) {
    if (reader_ == nullptr) {
      absl::StatusOr<bool> more = NextFile();
      if (!more.ok() || !*more) return more;
    }
    while (reader_->Next(line)) {
      ++line_number_;
      if (line_number_ == 1 && line->text.starts_with("\xEF\xBB\xBF")) line->text.remove_prefix(3);
      if (!line->too_long && IsBlank(line->text)) continue;
      ++info_.lines;
      return true;
    }
    const absl::Status status = EndFile();
    if (!status.ok()) return status;
  }
}

absl::StatusOr<bool> FileTraceSource::Fill(uint64_t max_blocks, RequestBatch* batch) {
  if (!failed_.ok()) return failed_;
  const auto size = [&] {
    return batch->blocks.size() + batch->requests.size() + batch->evictions.size();
  };
  Line line;
  while (batch->requests.empty() || size() < max_blocks) {
    if (batch->requests.empty() && batch->evictions.size() >= max_blocks) break;
    absl::StatusOr<bool> more = NextLine(&line);
    if (more.ok() && *more) {
      failed_ = TakeLine(line, batch);
    } else {
      failed_ = more.ok() ? CheckBadLines(true) : more.status();
      if (failed_.ok()) break;
    }
    if (!failed_.ok()) break;
  }
  if (reader_ != nullptr) CountBytes();
  if (size() > 0) return true;  // an error is told next time
  if (!failed_.ok()) return failed_;
  return false;
}

absl::Status FileTraceSource::TakeLine(const Line& line, RequestBatch* batch) {
  if (line.too_long) {
    return AddBadLine(std::string(absl::StrCat("longer than ", options_.max_line_bytes, " bytes")));
  }
  if (parser_ == nullptr) {
    const absl::Status status = FindFormat(line);
    if (!status.ok() || parser_ == nullptr) return status;
  }
  switch (parser_->Parse(line.text, batch)) {
    case LineOutcome::kTaken:
      return absl::OkStatus();
    case LineOutcome::kBad:
      return AddBadLine(parser_->reason());
    case LineOutcome::kFatal:
      return absl::InvalidArgumentError(absl::StrCat(Where(), ": ", parser_->reason()));
    case LineOutcome::kOtherFormat:
      break;
  }
  const std::optional<TraceFormat> other = FormatOf(line.text);
  if (other.has_value() && *other != info_.format) {
    return absl::InvalidArgumentError(absl::StrCat(Where(), ": a line of the ", NameOf(*other),
                                                   " format in a trace of the ",
                                                   NameOf(info_.format), " format"));
  }
  return AddBadLine("fields of the format are missing");
}

// The first line that belongs to a format decides.
absl::Status FileTraceSource::FindFormat(const Line& line) {
  const std::optional<TraceFormat> format = FormatOf(line.text);
  if (format.has_value()) {
    info_.format = *format;
    parser_ = NewLineParser(*format, options_, &info_);
    return absl::OkStatus();
  }
  text_bytes_ += line.text.size();
  JsonCursor json(line.text);
  json.SkipValue();
  const absl::Status bad =
      AddBadLine(json.ok() ? "no trace line of a known format" : json.reason());
  if (!bad.ok()) return bad;
  if (info_.lines >= kMaxLinesToFormat || text_bytes_ >= kMaxBytesToFormat) return NoFormatError();
  return absl::OkStatus();
}

absl::Status FileTraceSource::AddBadLine(std::string_view reason) {
  ++info_.bad_lines;
  if (info_.first_bad_lines.size() < kBadLinesKept) {
    info_.first_bad_lines.push_back({paths_[file_ - 1], line_number_, std::string(reason)});
  }
  if (parser_ == nullptr) {
    // A file without lines, such as one of zeros, must not be read to its end.
    const uint64_t read = bytes_before_ + reader_->source().stored_read();
    return read > kMaxBytesToFormat + options_.max_line_bytes ? NoFormatError() : absl::OkStatus();
  }
  return CheckBadLines(false);
}

// Within the files the share is that of as many lines as the part read so far promises: a bad
// stretch at the start of a long trace is no reason to give up.
absl::Status FileTraceSource::CheckBadLines(bool at_end) const {
  if (info_.bad_lines <= kBadLinesForgiven || parser_ == nullptr) return absl::OkStatus();
  double lines = static_cast<double>(info_.lines);
  if (!at_end && total_bytes_ > 0) {
    const auto done = static_cast<double>(bytes_before_ + reader_->stored_done());
    lines *= std::max(1.0, static_cast<double>(total_bytes_) / std::max(1.0, done));
  }
  if (static_cast<double>(info_.bad_lines) <= options_.max_bad_share * lines) {
    return absl::OkStatus();
  }
  const BadLine& first = info_.first_bad_lines.front();
  return absl::InvalidArgumentError(
      absl::StrCat(info_.bad_lines, " of ", info_.lines, " lines are bad, more than ",
                   options_.max_bad_share * 100, " %; the first is line ", first.number, " of ",
                   first.file, ": ", first.reason));
}

}  // namespace

absl::StatusOr<std::unique_ptr<TraceSource>> OpenTrace(const std::vector<std::string>& paths,
                                                       const OpenTraceOptions& options) {
  auto source = std::make_unique<FileTraceSource>(paths, options);
  const absl::Status status = source->Open();
  if (!status.ok()) return status;
  return source;
}

}  // namespace flexkv::trace
