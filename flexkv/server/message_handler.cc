#include "flexkv/server/message_handler.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "proto/lookup_fields.h"

namespace flexkv {
namespace {

using shm::Message;
using shm::MessageType;
using shm::WireStatus;

struct Request {
  CacheManager* manager;
  EngineHandle engine;
  const Message& message;
  std::span<const std::byte> payload;
  EngineSink* sink;
  TimeNs now;
  TraceRecorder* recorder;
};

absl::Status Violation(const char* what) { return absl::InvalidArgumentError(what); }

WireStatus ToWire(const absl::Status& status) {
  if (status.ok()) return WireStatus::kOk;
  return absl::IsInvalidArgument(status) ? WireStatus::kInvalid : WireStatus::kRefused;
}

Message ReplyTo(const Message& request, MessageType type) {
  Message reply = shm::MakeMessage(type);
  reply.sequence = request.sequence;
  reply.request = request.request;
  reply.op = request.op;
  return reply;
}

// The payload as hashes, in place where it lies as they must (a ring's payload always does), else
// copied to `scratch`. False: not a whole number of them.
bool ReadHashes(std::span<const std::byte> payload, std::vector<BlockHash>* scratch,
                std::span<const BlockHash>* hashes) {
  if (payload.size() % sizeof(BlockHash) != 0) return false;
  const size_t count = payload.size() / sizeof(BlockHash);
  if (reinterpret_cast<uintptr_t>(payload.data()) % alignof(BlockHash) == 0) {
    *hashes = {reinterpret_cast<const BlockHash*>(payload.data()), count};
    return true;
  }
  scratch->resize(count);
  std::memcpy(static_cast<void*>(scratch->data()), payload.data(), payload.size());
  *hashes = *scratch;
  return true;
}

bool RangeFits(uint64_t first, uint64_t count) {
  return first + count <= std::numeric_limits<uint32_t>::max();  // both come from 32 bits or are
                                                                 // checked by the caller
}

template <typename Body>
bool ReadBody(std::span<const std::byte> payload, Body* body) {
  if (payload.size() != sizeof(Body)) return false;
  std::memcpy(static_cast<void*>(body), payload.data(), sizeof(Body));
  return true;
}

absl::Status HandleLookup(const Request& r) {
  std::vector<BlockHash> scratch;
  std::span<const BlockHash> suffix;
  if (!ReadHashes(r.payload, &scratch, &suffix) || suffix.size() != r.message.count) {
    return Violation("a lookup's payload is not as many hashes as it says");
  }
  if (!RangeFits(r.message.first, suffix.size())) return Violation("a lookup's range overflows");
  shm::LookupFields fields;
  if (!shm::UnpackLookup(r.message, &fields))
    return Violation("a lookup's prompt length or hint is out of range");
  Message reply = ReplyTo(r.message, MessageType::kLookupReply);
  if (r.engine == 0) {
    reply.status = static_cast<uint32_t>(WireStatus::kRefused);
  } else {
    const absl::StatusOr<LookupAnswer> answer =
        r.manager->Lookup(r.engine, r.message.request, r.message.first, suffix, r.now, fields.hint);
    reply.status = static_cast<uint32_t>(ToWire(answer.status()));
    if (answer.ok()) {
      reply.first = answer->matched_blocks;
      reply.count = answer->warm_blocks;
      reply.lease = answer->lease;
      if (r.recorder != nullptr) {
        r.recorder->OnLookup(r.engine, r.message.request, *answer,
                             {fields.prompt_tokens, fields.hint}, r.now);
      }
    }
  }
  r.sink->ToScheduler(reply);
  return absl::OkStatus();
}

absl::Status HandleLoad(const Request& r) {
  const Message& m = r.message;
  if (!r.payload.empty()) return Violation("a load has a payload");
  if (m.op == 0 || m.count == 0 || !RangeFits(m.first, m.count))
    return Violation("a load's op or range is not valid");
  absl::Status status = absl::UnavailableError("the engine is not complete");
  if (r.engine != 0) {
    status = r.manager->Load(r.engine, m.request, m.op, m.lease, m.first, m.count,
                             r.now);  // tells the ranks itself
    if (r.recorder != nullptr) r.recorder->OnLoad(r.engine, m.request, m.op, status, r.now);
  } else {
    r.sink->RefuseAtWorkers(m.op, Route::kCpuToDevice);
  }
  if (status.ok()) return absl::OkStatus();
  Message reply = ReplyTo(m, MessageType::kOpEnded);
  reply.status = static_cast<uint32_t>(ToWire(status));
  reply.count = m.count;
  reply.route = static_cast<uint32_t>(Route::kCpuToDevice);
  r.sink->ToScheduler(reply);
  return absl::OkStatus();
}

absl::Status HandlePut(const Request& r) {
  const Message& m = r.message;
  std::vector<BlockHash> scratch;
  std::span<const BlockHash> suffix;
  if (!ReadHashes(r.payload, &scratch, &suffix))
    return Violation("a put's payload is not whole hashes");
  const uint64_t suffix_first = m.lease;
  if (m.op == 0 || m.count == 0 || !RangeFits(m.first, m.count))
    return Violation("a put's op or range is not valid");
  if (suffix_first > std::numeric_limits<uint32_t>::max() ||
      !RangeFits(suffix_first, suffix.size())) {
    return Violation("a put's hashes overflow");
  }
  Message reply = ReplyTo(m, MessageType::kPutReply);
  reply.route = static_cast<uint32_t>(Route::kDeviceToCpu);
  absl::StatusOr<PutAnswer> answer = absl::UnavailableError("the engine is not complete");
  if (r.engine != 0) {
    answer = r.manager->Put(r.engine, m.request, m.op, m.first, m.count,
                            static_cast<uint32_t>(suffix_first), suffix, r.now);
    if (r.recorder != nullptr && answer.ok())
      r.recorder->OnPut(r.engine, m.request, m.op, m.first, m.count, *answer, r.now);
  }
  if (answer.ok()) {
    reply.first = answer->held;
    reply.count = answer->accepted;
    reply.lease = answer->refused;
    if (answer->accepted == 0 && answer->refused > 0)
      reply.status = static_cast<uint32_t>(WireStatus::kRefused);
  } else {
    reply.status = static_cast<uint32_t>(ToWire(answer.status()));
    reply.lease = m.count;
    if (r.engine == 0) r.sink->RefuseAtWorkers(m.op, Route::kDeviceToCpu);
  }
  r.sink->ToScheduler(reply);
  return absl::OkStatus();
}

absl::Status HandleReset(const Request& r) {
  if (!r.payload.empty()) return Violation("a reset has a payload");
  Message reply = ReplyTo(r.message, MessageType::kResetReply);
  const CacheManager::NamespaceInfo ended = r.manager->NamespaceOf(r.engine);
  const absl::Status status = r.engine == 0 ? absl::UnavailableError("the engine is not complete")
                                            : r.manager->Reset(r.engine, r.message.request, r.now);
  if (status.ok() && r.recorder != nullptr) r.recorder->OnReset(ended.id, r.now);
  if (status.ok()) return absl::OkStatus();  // answered by its kResetDone
  reply.status = static_cast<uint32_t>(ToWire(status));
  r.sink->ToScheduler(reply);
  return absl::OkStatus();
}

absl::Status HandleRecordGet(const Request& r) {
  shm::GetRecordBody body;
  if (!ReadBody(r.payload, &body)) return Violation("a get record has the wrong size");
  if (r.engine == 0) return absl::OkStatus();
  const CacheManager::GetRecord record{body.prompt, body.engine_matched, body.offered,
                                       body.taken,  body.loaded,         body.failed};
  r.manager->RecordGet(r.engine, record);
  if (r.recorder != nullptr) r.recorder->OnGet(r.engine, r.message.request, record, r.now);
  return absl::OkStatus();
}

absl::Status HandleEngineStats(const Request& r) {
  shm::EngineStatsBody body;
  if (!ReadBody(r.payload, &body)) return Violation("engine statistics have the wrong size");
  for (const double value : {body.prefill_tokens_per_s, body.step_ms, body.load_tokens_per_s}) {
    if (!std::isfinite(value) || value < 0)
      return Violation("engine statistics hold a value that is no number");
  }
  r.sink->OnStats(body);
  return absl::OkStatus();
}

}  // namespace

absl::Status HandleSchedulerMessage(CacheManager* manager, EngineHandle engine,
                                    const Message& message, std::span<const std::byte> payload,
                                    EngineSink* sink, TimeNs now, TraceRecorder* recorder) {
  const Request request{manager, engine, message, payload, sink, now, recorder};
  switch (static_cast<MessageType>(message.type)) {
    case MessageType::kLookup:
      return HandleLookup(request);
    case MessageType::kLoad:
      return HandleLoad(request);
    case MessageType::kPut:
      return HandlePut(request);
    case MessageType::kReleaseLease:
      if (!payload.empty()) return Violation("a release has a payload");
      if (engine != 0) manager->ReleaseLease(engine, message.request, message.lease);
      return absl::OkStatus();
    case MessageType::kEndRequest:
      if (!payload.empty()) return Violation("an end of request has a payload");
      if (engine == 0) return absl::OkStatus();
      if (recorder != nullptr) recorder->OnEndRequest(engine, message.request, now);
      manager->EndRequest(engine, message.request);
      return absl::OkStatus();
    case MessageType::kReset:
      return HandleReset(request);
    case MessageType::kRecordGet:
      return HandleRecordGet(request);
    case MessageType::kEngineStats:
      return HandleEngineStats(request);
    default:
      return absl::InvalidArgumentError(
          absl::StrCat("message type ", message.type, " is not a scheduler's"));
  }
}

}  // namespace flexkv
