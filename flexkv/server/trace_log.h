// The daemon's trace: from the recorder on the control thread to the writer and its thread.
#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "flexkv/server/config_trace.h"
#include "flexkv/server/trace_recorder.h"
#include "flexkv/trace/trace_writer.h"

namespace flexkv {

class TraceLog : public RecordSink {
 public:
  // `config_json`: the daemon's configuration, one object. `now` is the control thread's clock,
  // whose times the records carry. Errors are those of CheckTracePath and of the disk.
  static absl::StatusOr<std::unique_ptr<TraceLog>> Open(const TraceConfig& config,
                                                        std::string config_json, TimeNs now);

  // RecordSink, control thread.
  void Name(NamespaceId ns, std::string_view label) override { writer_->NameNamespace(ns, label); }
  void Take(const trace::TraceRecord& record, std::span<const BlockHash> hashes) override {
    writer_->Record(record, hashes);
  }

  // After the control thread: writes what it recorded, within a second.
  void Close();

  TraceRecorderOptions recorder_options() const;
  const std::string& path() const { return path_; }
  trace::TraceWriterStats stats() const { return writer_->stats(); }  // any thread

 private:
  TraceLog(const TraceConfig& config, std::unique_ptr<trace::TraceWriter> writer)
      : path_(config.path), hashes_(config.hashes), writer_(std::move(writer)) {}

  const std::string path_;
  const trace::TraceHashes hashes_;
  const std::unique_ptr<trace::TraceWriter> writer_;
};

}  // namespace flexkv
