#include "tests/storage/ssd_block_buffer.h"

#include <cstring>

#include "flexkv/base/units.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint64_t kPage = 4096;

}  // namespace

BlockHash SsdContentKey(const SsdIdentity& identity) {
  uint64_t ns = 0;
  std::memcpy(&ns, identity.ns.data(), sizeof(ns));
  const uint64_t mixed = ns * 31 + (uint64_t{identity.epoch} << 32 | identity.depth);
  return ChildHash(identity.hash, mixed);
}

SsdBlockBuffer::SsdBlockBuffer(const std::vector<uint32_t>& shard_bytes)
    : shard_bytes_(shard_bytes) {
  for (uint32_t shard : shard_bytes) bytes_ += RoundUp(shard, kPage);
  memory_.reset(static_cast<std::byte*>(std::aligned_alloc(kPage, bytes_)));
}

void SsdBlockBuffer::Fill(const SsdIdentity& identity) {
  const BlockHash key = SsdContentKey(identity);
  uint32_t shard = 0;
  for (std::span<std::byte> piece : ToRead()) {
    const uint32_t proper = shard_bytes_[shard];
    FillContent(key, shard++, piece.first(proper));
    std::memset(piece.data() + proper, static_cast<int>(proper * 31 + shard),
                piece.size() - proper);
  }
}

bool SsdBlockBuffer::Matches(const SsdIdentity& identity) const {
  const BlockHash key = SsdContentKey(identity);
  uint32_t shard = 0;
  for (std::span<const std::byte> piece : ToWrite()) {
    if (!ContentMatches(key, shard, piece.first(shard_bytes_[shard]))) return false;
    ++shard;
  }
  return true;
}

std::vector<std::span<std::byte>> SsdBlockBuffer::ToRead() const {
  std::vector<std::span<std::byte>> pieces;
  uint64_t at = 0;
  for (uint32_t shard : shard_bytes_) {
    pieces.emplace_back(memory_.get() + at, RoundUp(shard, kPage));
    at += RoundUp(shard, kPage);
  }
  return pieces;
}

std::vector<std::span<const std::byte>> SsdBlockBuffer::ToWrite() const {
  const auto pieces = ToRead();
  return {pieces.begin(), pieces.end()};
}

}  // namespace flexkv
