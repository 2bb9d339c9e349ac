#include "flexkv/server/trace_log.h"

#include "flexkv/server/log.h"
#include "spdlog/spdlog.h"

namespace flexkv {

absl::StatusOr<std::unique_ptr<TraceLog>> TraceLog::Open(const TraceConfig& config,
                                                         std::string config_json, TimeNs now) {
  if (absl::Status status = CheckTracePath(config); !status.ok()) return status;
  trace::TraceWriterOptions options;
  options.path = config.path;
  options.rotate_bytes = config.rotate_bytes;
  options.max_files = config.max_files;
  options.zstd = config.zstd;
  options.hashes = config.hashes;
  options.config_json = std::move(config_json);
  options.start_ns = now;
  options.on_error = [](const absl::Status& status) {
    spdlog::error("the trace cannot be written, records are lost: {}", Words(status));
  };
  absl::StatusOr<std::unique_ptr<trace::TraceWriter>> writer = trace::TraceWriter::Open(options);
  if (!writer.ok()) return writer.status();
  return std::unique_ptr<TraceLog>(new TraceLog(config, *std::move(writer)));
}

void TraceLog::Close() {
  if (!writer_->Close(kNsPerSecond)) spdlog::warn("the trace's last records could not be written");
}

TraceRecorderOptions TraceLog::recorder_options() const {
  return {.hashes = hashes_ != trace::TraceHashes::kNone};
}

}  // namespace flexkv
