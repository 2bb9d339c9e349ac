#include "flexkv/trace/line_reader.h"

#include <algorithm>
#include <utility>

namespace flexkv::trace {
namespace {

// Small enough to stay in the core's own cache between the kernel's copy and the parser.
constexpr uint64_t kFirstCapacity = 256 << 10;

}  // namespace

absl::StatusOr<std::unique_ptr<LineReader>> LineReader::Open(const std::string& path,
                                                             uint64_t max_line_bytes) {
  absl::StatusOr<std::unique_ptr<ByteSource>> source = OpenByteSource(path);
  if (!source.ok()) return source.status();
  return std::make_unique<LineReader>(*std::move(source), max_line_bytes);
}

LineReader::LineReader(std::unique_ptr<ByteSource> source, uint64_t max_line_bytes)
    : source_(std::move(source)),
      max_line_bytes_(std::max<uint64_t>(max_line_bytes, 1)),
      capacity_(kFirstCapacity),
      buffer_(new char[capacity_ + kLinePadding]()) {}

// False: the line under way is as long as a line may be.
bool LineReader::MakeRoom() {
  if (begin_ > 0) {
    std::memmove(buffer_.get(), buffer_.get() + begin_, end_ - begin_);
    end_ -= begin_;
    begin_ = 0;
  }
  if (end_ > max_line_bytes_) return false;
  if (end_ < capacity_) return true;
  capacity_ = std::min(capacity_ * 2, max_line_bytes_ + kFirstCapacity);
  std::unique_ptr<char[]> larger(new char[capacity_ + kLinePadding]);
  std::memcpy(larger.get(), buffer_.get(), end_);
  std::memset(larger.get() + end_, 0, capacity_ + kLinePadding - end_);
  buffer_ = std::move(larger);
  return true;
}

bool LineReader::Fill() {
  if (at_end_) return false;
  absl::StatusOr<size_t> got = source_->Read(buffer_.get() + end_, capacity_ - end_);
  if (!got.ok()) {
    status_ = got.status();
    at_end_ = true;
    return false;
  }
  end_ += *got;
  text_read_ += *got;
  at_end_ = *got == 0;
  return !at_end_;
}

bool LineReader::NextSlow(Line* line) {
  while (true) {
    const uint64_t scanned = end_ - begin_;
    if (!MakeRoom()) return SkipLongLine(line);
    if (!Fill()) break;
    if (std::memchr(buffer_.get() + scanned, '\n', end_ - scanned) != nullptr) return Next(line);
  }
  if (begin_ == end_) return false;
  buffer_[end_] = '\n';
  line->text = {buffer_.get() + begin_, end_ - begin_};
  line->too_long = line->text.size() > max_line_bytes_;
  if (line->too_long) line->text = {};
  line->complete = false;
  begin_ = end_;
  return true;
}

bool LineReader::SkipLongLine(Line* line) {
  line->text = {};
  line->too_long = true;
  line->complete = true;
  while (true) {
    begin_ = end_ = 0;
    if (!Fill()) {
      line->complete = false;
      return true;
    }
    const auto* end = static_cast<const char*>(std::memchr(buffer_.get(), '\n', end_));
    if (end == nullptr) continue;
    begin_ = static_cast<uint64_t>(end - buffer_.get()) + 1;
    return true;
  }
}

}  // namespace flexkv::trace
