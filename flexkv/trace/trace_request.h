// A trace as a cache sees it: one request after another, whatever file format they came from.
//
// Streams: a TraceSource hands out batches, so a trace larger than memory costs the memory of one
// batch. Block ids are made *chained* by the reader (equal id = equal prefix of the same
// namespace), also where the format's own are not: everything behind may compare single ids.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "flexkv/base/clock.h"
#include "flexkv/base/request_hint.h"

namespace flexkv::trace {

enum class TraceFormat : uint8_t { kFlexkv, kMooncake, kQwenBailian, kLmcache };
const char* NameOf(TraceFormat format);  // "flexkv", "mooncake", "qwen-bailian", "lmcache"

enum class RequestKind : uint8_t {
  kGetPut,  // look the prompt up, then insert all of it (formats that record prompts only)
  kGet,     // a lookup
  kPut,     // an insert; `prompt_tokens` is 0 and does not count in rates
};

enum class Result : uint8_t { kOk, kPartial, kFailed, kRefused, kUnknown };

// What was measured when the request really ran. Only in our own traces; 0 where nothing happened.
struct Measured {
  bool present = false;
  Result result = Result::kUnknown;
  uint32_t engine_tokens = 0;                                  // matched by the engine's own cache
  uint32_t cpu_tokens = 0, ssd_tokens = 0, remote_tokens = 0;  // matched by us beyond nothing: the
                                                               // prefix, by the tier it lay in
  uint32_t loaded_tokens = 0;                                  // really brought to the device
  uint64_t match_ns = 0;                                       // of the lookup, in the daemon
  uint64_t queue_ns = 0;                   // from launch to the first byte moving
  uint64_t load_ns = 0, load_bytes = 0;    // CPU -> device
  uint64_t ssd_ns = 0, ssd_bytes = 0;      // SSD -> CPU, for this request
  uint64_t store_ns = 0, store_bytes = 0;  // device -> CPU
  uint32_t accepted_blocks = 0, held_blocks = 0, refused_blocks = 0;  // of a put
};

struct TraceRequest {
  TimeNs time_ns = 0;  // since the trace's first request; never falls within a file
  RequestKind kind = RequestKind::kGetPut;
  uint32_t ns = 0;  // index into TraceInfo::namespaces
  uint32_t prompt_tokens = 0;
  uint32_t output_tokens = 0;
  uint32_t tokens_per_block = 0;  // of its blocks
  uint64_t session = 0;           // the conversation, where the format names it; 0: unknown
  uint64_t first_block = 0;       // its full blocks: ids [first_block, first_block + num_blocks) of
  uint32_t num_blocks = 0;        // RequestBatch::blocks
  RequestHint hint;
  Measured measured;
};

// Evictions as recorded (our own traces only).
struct TraceEviction {
  TimeNs time_ns = 0;
  uint8_t tier = 0;  // Tier
  uint32_t blocks = 0;
};

struct RequestBatch {
  std::vector<TraceRequest> requests;
  std::vector<uint64_t> blocks;  // chained ids of full blocks, root first, request after request
  std::vector<TraceEviction> evictions;

  std::span<const uint64_t> BlocksOf(const TraceRequest& request) const {
    return {blocks.data() + request.first_block, request.num_blocks};
  }
  void Clear();
  uint64_t bytes() const;
};

struct BadLine {
  std::string file;
  uint64_t number = 0;  // from 1
  std::string reason;   // one line, without the line's content
};

// Grows while reading; complete after the last batch.
struct TraceInfo {
  TraceFormat format = TraceFormat::kFlexkv;
  std::vector<std::string> namespaces;  // labels; one "" for formats without
  uint32_t tokens_per_block = 0;        // of the first request (Mooncake 512, Qwen-Bailian 16)
  bool has_blocks = true;               // false: recorded without hashes; nothing can be replayed
  std::string config_json;              // our traces: the daemon's configuration record, else ""
  uint64_t lines = 0, bytes_read = 0;   // bytes as stored (compressed)
  uint64_t bad_lines = 0;
  std::vector<BadLine> first_bad_lines;  // the first 20
  uint64_t dropped_records = 0;          // said by our writer
  uint64_t clamped_times = 0;    // requests whose time fell: taken as that of the one before
  uint64_t unresolved_puts = 0;  // our traces: puts whose prefix no earlier line told; left out
};

class TraceSource {
 public:
  virtual ~TraceSource() = default;
  // Replaces `batch` by the next requests: at least one (or evictions that no request follows), at
  // most about `max_blocks` blocks. False:
  // the end. InvalidArgument: more bad lines than the limit, names the first. DataLoss: a
  // compressed file is cut or corrupt. Unavailable: reading failed.
  virtual absl::StatusOr<bool> Next(uint64_t max_blocks, RequestBatch* batch) = 0;
  // From the start again. FailedPrecondition: a pipe.
  virtual absl::Status Rewind() = 0;
  virtual const TraceInfo& info() const = 0;
  virtual double progress() const = 0;  // 0..1 of the stored bytes
};

struct OpenTraceOptions {
  double max_bad_share = 0.01;    // of all lines; above it (and more than 10 lines) reading fails
  uint32_t tokens_per_block = 0;  // 0: the format's own
  uint64_t max_line_bytes = 64ull << 20;
};

// Files are read one after another as one trace (rotated files: in time order as given). Format by
// the first good line; plain, gzip or zstd by the first bytes; "-" is standard input. NotFound,
// PermissionDenied, InvalidArgument (empty, no known format, two formats mixed).
absl::StatusOr<std::unique_ptr<TraceSource>> OpenTrace(const std::vector<std::string>& paths,
                                                       const OpenTraceOptions& options = {});
// Everything at once, for small traces and tests. ResourceExhausted above `max_bytes`.
absl::StatusOr<RequestBatch> ReadWholeTrace(TraceSource* source, uint64_t max_bytes);

}  // namespace flexkv::trace
