// Records on their way from the control thread to the writer's: a ring of bytes with one producer
// and one consumer. An entry lies in one piece; where the end of the memory is too near, the rest
// of it is skipped.
#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>

#include "flexkv/base/ids.h"
#include "flexkv/trace/trace_record.h"

namespace flexkv::trace {

class RecordRing {
 public:
  struct Entry {
    const TraceRecord* record = nullptr;
    std::span<const uint64_t> words;  // hashes, `words_per_hash` each
  };

  // REQUIRES: `bytes` a power of two, `words_per_hash` 0, 1 (the hash's tag) or 4.
  RecordRing(uint64_t bytes, uint32_t words_per_hash);

  // Producer. False: no room.
  bool Push(const TraceRecord& record, std::span<const BlockHash> hashes);
  // Producer: more than a quarter is in use.
  bool filling();

  // Consumer. The entry stays until Pop.
  bool Front(Entry* entry);
  void Pop();

 private:
  struct Header {
    uint32_t bytes = 0;  // of the entry, this included
    uint32_t words = 0;
  };
  static constexpr uint32_t kSkip = UINT32_MAX;

  void CopyHashes(std::byte* target, std::span<const BlockHash> hashes) const;

  const uint64_t bytes_;
  const uint32_t words_per_hash_;
  std::unique_ptr<std::byte[]> memory_;
  // Bytes ever given back and ever pushed; apart, so that the two threads do not share a line.
  alignas(64) std::atomic<uint64_t> head_{0};
  uint64_t seen_tail_ = 0;  // consumer's
  alignas(64) std::atomic<uint64_t> tail_{0};
  uint64_t seen_head_ = 0;  // producer's
};

}  // namespace flexkv::trace
