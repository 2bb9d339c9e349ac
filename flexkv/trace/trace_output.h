// The files of one writer: numbers, sizes, compression, what becomes of errors. Takes whole lines.
// Thread: the writer's.
#pragma once

#include <zstd.h>

#include <chrono>
#include <cstdint>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "flexkv/trace/trace_disk.h"
#include "flexkv/trace/trace_writer.h"

namespace flexkv::trace {

// "a/b.jsonl" (or "a/b.jsonl.zst") cut into what all files of a trace share.
struct TraceFileNames {
  TraceFileNames(const std::string& path, bool zstd);
  std::string Path(uint64_t number) const;
  // The number of a file of this trace; -1 for other names.
  int64_t NumberOf(std::string_view name) const;

  std::string directory;  // "." where the path has none
  std::string stem, suffix;
};

class TraceOutput {
 public:
  using Clock = std::chrono::steady_clock;
  // `header`: the first line of file 0, 1, ... of this run; asked whenever a file is made.
  TraceOutput(const TraceWriterOptions& options, std::function<std::string(uint64_t)> header);
  ~TraceOutput();
  TraceOutput(const TraceOutput&) = delete;
  TraceOutput& operator=(const TraceOutput&) = delete;

  // Makes the first file. Later ones are made by the Append that needs one.
  absl::Status Open();
  // `records`: how many the lines hold, to be counted in lost() where they do not reach the disk.
  // False: they were lost.
  bool Append(std::string_view lines, uint64_t records);
  // What was appended reaches the kernel. A failure shows in has_file().
  void Flush();
  void Close();
  // False: the next line starts a file and must not lean on earlier lines.
  bool has_file() const { return file_ != nullptr; }

  uint64_t written_bytes() const { return written_bytes_; }
  uint64_t files() const { return files_; }
  uint64_t errors() const { return errors_; }
  // Never too few: of a write that failed half-way all count.
  uint64_t lost() const { return lost_; }

 private:
  absl::Status FindNumbers();
  absl::Status NextFile();
  absl::Status Store(std::string_view bytes);  // as they are
  absl::Status Write(std::string_view text, ZSTD_EndDirective end);
  void Fail(const absl::Status& why);
  void RemoveOldest();

  const TraceWriterOptions& options_;
  const std::function<std::string(uint64_t)> header_;
  const TraceFileNames names_;
  TraceDisk* disk_;
  std::unique_ptr<TraceDisk> own_disk_;
  std::unique_ptr<TraceFile> file_;
  ZSTD_CCtx* zstd_ = nullptr;
  std::string compressed_;
  uint64_t next_number_ = 0;
  std::deque<uint64_t> kept_;  // numbers of the files there are, oldest first
  uint64_t file_bytes_ = 0, written_bytes_ = 0, files_ = 0, errors_ = 0, lost_ = 0;
  uint64_t unsettled_ = 0;  // records that may still be in the compressor only
  Clock::time_point retry_at_{};
};

}  // namespace flexkv::trace
