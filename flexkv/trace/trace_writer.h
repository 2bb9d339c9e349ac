// Records what the daemon is asked. The control thread copies records into a bounded ring and never
// waits; a low-priority thread of the writer's own turns them into JSON lines
// (docs/trace-format.md), rotates, compresses. A full ring drops records, a failing disk loses
// them: both are counted here and said in the trace, neither is ever an error of the daemon.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/ids.h"
#include "flexkv/trace/trace_disk.h"
#include "flexkv/trace/trace_record.h"

namespace flexkv::trace {

enum class TraceHashes : uint8_t {
  kNone,   // sizes and times only: analysed, not replayed
  kShort,  // 8 bytes a block, keyed by a random salt of this writer that is never written down
  kFull,   // the engine's 32 bytes: comparable between daemons and runs, and with guessed prompts
};

struct TraceWriterOptions {
  // Of the first file, best NAME.jsonl; the next ones are NAME.1.jsonl, NAME.2.jsonl, ... (with
  // zstd NAME.jsonl.zst, NAME.1.jsonl.zst, ...). Files that exist stay: numbers go on behind them.
  std::string path;
  uint64_t rotate_bytes = 256ull << 20;  // of one file, as stored; 0: never
  uint32_t max_files = 0;                // the oldest go, those of earlier runs too; 0: all stay
  bool zstd = false;
  TraceHashes hashes = TraceHashes::kShort;
  uint64_t ring_bytes = 4ull << 20;
  std::string config_json = "{}";        // one JSON object: the daemon's configuration
  TimeNs start_ns = 0;                   // TraceRecord::time_ns of the trace's zero
  uint64_t start_unix_ms = 0;            // the wall clock then; 0: now
  TimeNs flush_every_ns = kNsPerSecond;  // how old what a kill loses may be
  // How long after a failure of the disk the next file is tried.
  TimeNs retry_after_ns = 5 * kNsPerSecond;
  // Told once, of the first failure of the disk, on the writer's thread. May be empty.
  std::function<void(const absl::Status&)> on_error;
  TraceDisk* disk = nullptr;  // outlives the writer; nullptr: MakeDirectoryTraceDisk()
};

struct TraceWriterStats {
  uint64_t records = 0;  // taken by Record
  uint64_t dropped = 0;  // not taken: the ring was full
  uint64_t lost = 0;     // taken and not written: the disk failed
  uint64_t written_bytes = 0, files = 0, disk_errors = 0;
};

class TraceWriter {
 public:
  // Makes the first file and the thread. InvalidArgument: no path, config_json is no JSON object, a
  // ring under 64 KiB; errors of the disk.
  static absl::StatusOr<std::unique_ptr<TraceWriter>> Open(const TraceWriterOptions& options);
  virtual ~TraceWriter() = default;  // Close(1 s)

  // `hashes`: of a get, the prompt's full blocks from the root on; of a put, those of its own range
  // [first_block, first_block + blocks) and, where it does not start at the root, the one in front
  // (or the whole chain up to the range's end, of which only these are kept: a request that decodes
  // puts one block at a time); empty for evictions, resets, and gets of prompts shorter than a
  // block. Records come in the order in which the core saw them (a put when it was offered):
  // time_ns never falls. Never blocks, allocates or fails. One thread at a time.
  virtual void Record(const TraceRecord& record, std::span<const BlockHash> hashes) = 0;

  // What readers show for `id`: no salt, no token. Before the first record of the namespace, by the
  // thread of Record; takes a short lock and allocates. Unnamed ones show as "namespace ID".
  virtual void NameNamespace(NamespaceId id, std::string_view label) = 0;

  // Writes what was recorded and ends the thread. False: `timeout_ns` passed first; the rest is
  // lost and counted. Again: the same answer. Record must not run any more.
  virtual bool Close(TimeNs timeout_ns) = 0;

  virtual TraceWriterStats stats() const = 0;  // any thread
};

}  // namespace flexkv::trace
