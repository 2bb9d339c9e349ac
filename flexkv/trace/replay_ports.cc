#include "flexkv/trace/replay_ports.h"

#include <utility>

namespace flexkv::trace {

bool TimedCopies::Submit(const TransferOp& op) {
  (op.route == Route::kCpuToDevice ? loads_ : stores_).Push(now_, op.blocks.size(), op.id);
  return true;
}

void TimedCopies::Poll(TimeNs /*timeout_ns*/, std::vector<OpResult>* results) {
  const auto done = [&](OpId id) { results->push_back({.id = id}); };
  loads_.Pop(now_, done);
  stores_.Pop(now_, done);
}

bool TimedSsd::Write(uint64_t tag, SsdPlace /*place*/, const SsdIdentity& /*identity*/,
                     std::span<const ArenaShard> /*shards*/) {
  writes_.Push(now_, 1, tag);
  return true;
}

bool TimedSsd::Read(uint64_t tag, SsdPlace /*place*/, const SsdIdentity& /*identity*/,
                    std::span<const ArenaShard> /*shards*/) {
  reads_.Push(now_, 1, tag);
  return true;
}

bool TimedSsd::Free(uint64_t tag, SsdPlace /*place*/) {
  rest_.Push(now_, 0, {.tag = tag});
  return true;
}

bool TimedSsd::RaiseEpoch(uint64_t tag, const NamespaceDigest& /*ns*/, uint32_t /*epoch*/) {
  rest_.Push(now_, 0, {.tag = tag});
  return true;
}

bool TimedSsd::CreateSegment(uint64_t tag, const SsdShape& /*shape*/) {
  rest_.Push(now_, 0, {.tag = tag, .segment = next_segment_++});
  return true;
}

bool TimedSsd::DropSegment(uint64_t tag, uint32_t /*segment*/) {
  rest_.Push(now_, 0, {.tag = tag});
  return true;
}

void TimedSsd::TakeResults(std::vector<SsdPortResult>* results) {
  const auto done = [&](uint64_t tag) { results->push_back({.tag = tag}); };
  rest_.Pop(now_, [&](SsdPortResult result) { results->push_back(std::move(result)); });
  writes_.Pop(now_, done);
  reads_.Pop(now_, done);
}

}  // namespace flexkv::trace
