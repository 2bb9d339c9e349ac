#include "flexkv/trace/trace_output.h"

#include <algorithm>
#include <charconv>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"

namespace flexkv::trace {
namespace {

constexpr std::string_view kLines = ".jsonl";
constexpr std::string_view kZstd = ".zst";
constexpr int kZstdLevel = 3;

}  // namespace

TraceFileNames::TraceFileNames(const std::string& path, bool zstd) {
  const size_t slash = path.rfind('/');
  directory = slash == std::string::npos ? "." : slash == 0 ? "/" : path.substr(0, slash);
  stem = slash == std::string::npos ? path : path.substr(slash + 1);
  const auto cut = [this](std::string_view end) {
    if (!std::string_view(stem).ends_with(end)) return false;
    stem.resize(stem.size() - end.size());
    return true;
  };
  cut(kZstd);
  suffix = cut(kLines) ? kLines : "";
  if (zstd) suffix += kZstd;
}

std::string TraceFileNames::Path(uint64_t number) const {
  const std::string tail = number == 0 ? suffix : absl::StrCat(".", number) + suffix;
  return directory + "/" + stem + tail;
}

int64_t TraceFileNames::NumberOf(std::string_view name) const {
  if (!name.starts_with(stem) || !name.ends_with(suffix)) return -1;
  if (name.size() < stem.size() + suffix.size()) return -1;
  name = name.substr(stem.size(), name.size() - stem.size() - suffix.size());
  if (name.empty()) return 0;
  if (name.size() < 2 || name.size() > 16 || name[0] != '.' || name[1] == '0') return -1;
  int64_t number = -1;
  const char* const end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + 1, end, number);
  return error == std::errc() && stop == end ? number : -1;
}

TraceOutput::TraceOutput(const TraceWriterOptions& options,
                         std::function<std::string(uint64_t)> header)
    : options_(options),
      header_(std::move(header)),
      names_(options.path, options.zstd),
      disk_(options.disk) {
  if (disk_ == nullptr) {
    own_disk_ = MakeDirectoryTraceDisk();
    disk_ = own_disk_.get();
  }
  if (options.zstd) {
    zstd_ = ZSTD_createCCtx();
    ZSTD_CCtx_setParameter(zstd_, ZSTD_c_compressionLevel, kZstdLevel);
    ZSTD_CCtx_setParameter(zstd_, ZSTD_c_checksumFlag, 1);
    compressed_.resize(ZSTD_CStreamOutSize());
  }
}

TraceOutput::~TraceOutput() { ZSTD_freeCCtx(zstd_); }

absl::Status TraceOutput::FindNumbers() {
  absl::StatusOr<std::vector<std::string>> names = disk_->List(names_.directory);
  if (!names.ok()) return names.status();
  for (const std::string& name : *names) {
    const int64_t number = names_.NumberOf(name);
    if (number >= 0) kept_.push_back(static_cast<uint64_t>(number));
  }
  std::sort(kept_.begin(), kept_.end());
  next_number_ = kept_.empty() ? 0 : kept_.back() + 1;
  return absl::OkStatus();
}

absl::Status TraceOutput::Open() {
  absl::Status status = FindNumbers();
  if (status.ok()) status = NextFile();
  return status;
}

absl::Status TraceOutput::NextFile() {
  absl::StatusOr<std::unique_ptr<TraceFile>> file = disk_->Create(names_.Path(next_number_));
  // Somebody else's file: leave it, take the next number (at the next try, so that this ends).
  if (absl::IsAlreadyExists(file.status())) ++next_number_;
  if (!file.ok()) return file.status();
  file_ = *std::move(file);
  file_bytes_ = 0;
  if (zstd_ != nullptr) ZSTD_CCtx_reset(zstd_, ZSTD_reset_session_only);
  // Flushed, so that also a file that is never written again says what it is.
  const absl::Status status = Write(header_(files_), ZSTD_e_flush);
  if (!status.ok()) {
    file_.reset();
    (void)disk_->Remove(names_.Path(next_number_));  // else a full disk fills with empty files
    return status;
  }
  kept_.push_back(next_number_++);
  ++files_;
  RemoveOldest();
  return absl::OkStatus();
}

void TraceOutput::RemoveOldest() {
  while (options_.max_files != 0 && kept_.size() > options_.max_files) {
    const absl::Status status = disk_->Remove(names_.Path(kept_.front()));
    if (!status.ok() && !absl::IsNotFound(status)) ++errors_;
    kept_.pop_front();
  }
}

absl::Status TraceOutput::Store(std::string_view bytes) {
  if (bytes.empty()) return absl::OkStatus();
  const absl::Status status = file_->Append(bytes);
  if (!status.ok()) return status;
  file_bytes_ += bytes.size();
  written_bytes_ += bytes.size();
  return absl::OkStatus();
}

absl::Status TraceOutput::Write(std::string_view text, ZSTD_EndDirective end) {
  if (zstd_ == nullptr) return Store(text);
  ZSTD_inBuffer in{text.data(), text.size(), 0};
  while (true) {
    ZSTD_outBuffer out{compressed_.data(), compressed_.size(), 0};
    const size_t left = ZSTD_compressStream2(zstd_, &out, &in, end);
    if (ZSTD_isError(left)) return absl::InternalError(ZSTD_getErrorName(left));
    const absl::Status status = Store(std::string_view(compressed_.data(), out.pos));
    if (!status.ok()) return status;
    if (end == ZSTD_e_continue ? in.pos == in.size : left == 0) return absl::OkStatus();
  }
}

void TraceOutput::Fail(const absl::Status& why) {
  file_.reset();
  lost_ += unsettled_;
  unsettled_ = 0;
  retry_at_ = Clock::now() + std::chrono::nanoseconds(options_.retry_after_ns);
  if (++errors_ == 1 && options_.on_error) options_.on_error(why);
}

bool TraceOutput::Append(std::string_view lines, uint64_t records) {
  unsettled_ += records;
  if (file_ == nullptr) {
    const bool early = Clock::now() < retry_at_;
    if (early) lost_ += std::exchange(unsettled_, 0);
    if (early) return false;
    const absl::Status made = NextFile();
    if (!made.ok()) {
      Fail(made);
      return false;
    }
  }
  const absl::Status status = Write(lines, ZSTD_e_continue);
  if (!status.ok()) {
    Fail(status);
    return false;
  }
  if (zstd_ == nullptr) unsettled_ = 0;
  if (options_.rotate_bytes != 0 && file_bytes_ >= options_.rotate_bytes) Close();
  return true;
}

void TraceOutput::Flush() {
  if (file_ == nullptr || zstd_ == nullptr) return;
  const absl::Status status = Write({}, ZSTD_e_flush);
  if (!status.ok()) Fail(status);
  unsettled_ = 0;
}

void TraceOutput::Close() {
  if (file_ == nullptr) return;
  const absl::Status status = Write({}, ZSTD_e_end);
  if (!status.ok()) Fail(status);
  unsettled_ = 0;
  file_.reset();
}

}  // namespace flexkv::trace
