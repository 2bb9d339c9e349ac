// What a scheduler's requests mean: checks a message from the ring, asks the CacheManager, answers.
// The message and its payload come from another process; they have been copied out and nothing else
// about them is known.
#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "flexkv/cache/cache_manager.h"
#include "flexkv/server/trace_recorder.h"
#include "proto/shm_layout.h"

namespace flexkv {

// Where answers go: one engine's clients.
class EngineSink {
 public:
  virtual ~EngineSink() = default;
  virtual void ToScheduler(const shm::Message& message) = 0;
  // The op will never have a daemon half; every rank present is told.
  virtual void RefuseAtWorkers(OpKey key, Route route) = 0;
  virtual void OnStats(const shm::EngineStatsBody& stats) = 0;
};

// Handles one request of a scheduler; `recorder` (null: none) sees what becomes of it. `engine` is
// 0 while the engine is not complete: lookups then answer 0 and ops are refused. InvalidArgument,
// in words: the client broke the protocol and must be dropped. What may happen to an honest client
// (a request unknown after a detach, no room) is an answer, not an error.
absl::Status HandleSchedulerMessage(CacheManager* manager, EngineHandle engine,
                                    const shm::Message& message, std::span<const std::byte> payload,
                                    EngineSink* sink, TimeNs now,
                                    TraceRecorder* recorder = nullptr);

}  // namespace flexkv
