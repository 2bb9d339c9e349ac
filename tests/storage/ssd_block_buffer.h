// Blocks whose bytes follow from their identity, in memory as the store wants it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <span>
#include <vector>

#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv {

// The bytes that belong to an identity: a function of all of it, so that a block of another epoch
// or namespace never looks right.
BlockHash SsdContentKey(const SsdIdentity& identity);

// Memory for the shards of one block, aligned and rounded up as the store wants it.
class SsdBlockBuffer {
 public:
  explicit SsdBlockBuffer(const std::vector<uint32_t>& shard_bytes);
  void Fill(const SsdIdentity& identity);           // padding gets noise
  bool Matches(const SsdIdentity& identity) const;  // the shards proper
  std::vector<std::span<const std::byte>> ToWrite() const;
  std::vector<std::span<std::byte>> ToRead() const;
  uint64_t bytes() const { return bytes_; }

 private:
  struct Release {
    void operator()(std::byte* memory) const { std::free(memory); }
  };
  std::vector<uint32_t> shard_bytes_;
  std::unique_ptr<std::byte, Release> memory_;
  uint64_t bytes_ = 0;
};

}  // namespace flexkv
