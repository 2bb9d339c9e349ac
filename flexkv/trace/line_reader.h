// The lines of one file, without copies: a line is a view into a large buffer until the next one is
// asked for. Memory: one buffer, no larger than the longest line allowed. Thread: one.
#pragma once

#include <cstdint>
#include <cstring>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/trace/byte_source.h"

namespace flexkv::trace {

// A line's text is always followed by '\n' (also where the file has none), and that by bytes that
// may be read: parsers need not look where they are.
inline constexpr size_t kLinePadding = 64;

struct Line {
  std::string_view text;  // without its '\n'
  bool too_long = false;  // longer than allowed; `text` may be empty
  bool complete = true;   // false: the file ends without '\n'
};

class LineReader {
 public:
  // Errors of OpenByteSource.
  static absl::StatusOr<std::unique_ptr<LineReader>> Open(const std::string& path,
                                                          uint64_t max_line_bytes);
  LineReader(std::unique_ptr<ByteSource> source, uint64_t max_line_bytes);

  // False: the end, or status() tells an error.
  bool Next(Line* line) {
    const auto* end = static_cast<const char*>(
        std::memchr(buffer_.get() + begin_, '\n', static_cast<size_t>(end_ - begin_)));
    if (end == nullptr) return NextSlow(line);
    const char* start = buffer_.get() + begin_;
    begin_ += static_cast<uint64_t>(end - start) + 1;
    line->text = {start, static_cast<size_t>(end - start)};
    line->too_long = line->text.size() > max_line_bytes_;
    line->complete = true;
    return true;
  }

  const absl::Status& status() const { return status_; }
  const ByteSource& source() const { return *source_; }
  // Stored bytes that the lines given out stand for, nearly: without what lies in the buffer.
  uint64_t stored_done() const {
    const auto ahead = static_cast<double>(end_ - begin_);
    const double share = text_read_ == 0 ? 0 : ahead / static_cast<double>(text_read_);
    return static_cast<uint64_t>(static_cast<double>(source_->stored_read()) * (1 - share));
  }

 private:
  bool NextSlow(Line* line);
  bool Fill();  // false: the end or an error; the buffer has the bytes from begin_ on at its front
  bool MakeRoom();
  bool SkipLongLine(Line* line);

  std::unique_ptr<ByteSource> source_;
  const uint64_t max_line_bytes_;
  uint64_t capacity_;
  std::unique_ptr<char[]> buffer_;  // kLinePadding longer than capacity_
  uint64_t begin_ = 0, end_ = 0;    // what of it was read and not given out
  uint64_t text_read_ = 0;
  bool at_end_ = false;
  absl::Status status_;
};

}  // namespace flexkv::trace
