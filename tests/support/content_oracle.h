// The bytes of a block are a function of its identity, so any block read back can be checked
// without keeping a copy: byte i of shard s of block h is a pure function of (h, s, i).
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>

#include "flexkv/base/ids.h"

namespace flexkv {

// Writes bytes [offset, offset + target.size()) of the shard's content.
void FillContent(const BlockHash& hash, uint32_t shard, std::span<std::byte> target,
                 uint64_t offset = 0);

// Position (within `bytes`) of the first byte that is not the shard's content from `offset` on;
// nullopt when all are right.
std::optional<size_t> FirstWrongByte(const BlockHash& hash, uint32_t shard,
                                     std::span<const std::byte> bytes, uint64_t offset = 0);
inline bool ContentMatches(const BlockHash& hash, uint32_t shard, std::span<const std::byte> bytes,
                           uint64_t offset = 0) {
  return !FirstWrongByte(hash, shard, bytes, offset).has_value();
}

// A uniform hash from a small number, and the chained hash of a child block.
BlockHash HashFromNumber(uint64_t number);
BlockHash ChildHash(const BlockHash& parent, uint64_t number);

}  // namespace flexkv
