// Identifiers shared by every folder. Plain values; no behaviour beyond comparison and packing.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>

namespace flexkv {

// Identity of a token block inside a namespace: the engine's own chained 32-byte block hash (vLLM's
// request.block_hashes: SHA-256 over parent hash, tokens and extra keys). Because hashes are
// chained, equal hashes mean equal prefixes. Shorter engine hashes are zero-padded on the right by
// the client.
struct BlockHash {
  std::array<uint64_t, 4> words{};

  friend bool operator==(const BlockHash&, const BlockHash&) = default;
  // The hash is uniform already; one word of it serves as tag.
  uint64_t tag() const { return words[0]; }

  static BlockHash FromBytes(const void* bytes) {
    BlockHash hash;
    std::memcpy(hash.words.data(), bytes, sizeof(hash.words));
    return hash;
  }
};
static_assert(sizeof(BlockHash) == 32);

enum class Tier : uint8_t { kCpu = 0, kSsd = 1, kRemote = 2 };
inline constexpr uint32_t kNumTiers = 3;

// Room for one block in one tier: tier in the top two bits, index below. kNoSlot is no room at all.
// While a block resides in a slot, the slot is also the block's handle inside its tree (see
// RadixTree).
struct SlotId {
  static constexpr uint32_t kNone = 0xffffffffu;
  static constexpr uint32_t kMaxIndex = 0x3ffffffeu;
  uint32_t value = kNone;

  static SlotId Make(Tier tier, uint32_t index) {
    return SlotId{(static_cast<uint32_t>(tier) << 30) | index};
  }
  Tier tier() const { return static_cast<Tier>(value >> 30); }
  uint32_t index() const { return value & 0x3fffffffu; }
  bool valid() const { return value != kNone; }
  friend bool operator==(SlotId, SlotId) = default;
};
inline constexpr SlotId kNoSlot{};

using NamespaceId =
    uint32_t;  // dense, never reused within one daemon life; one per epoch of a namespace
using SegmentId = uint32_t;     // one sealed memfd; never reused within one daemon life
using EngineHandle = uint32_t;  // one attached engine (scheduler + all ranks); never reused
using RequestKey = uint64_t;    // chosen by the engine's scheduler client, unique per attachment
using OpKey = uint64_t;  // chosen by the engine's scheduler client, unique per attachment, never 0
using LeaseId = uint64_t;  // chosen by the daemon, never 0

}  // namespace flexkv

template <>
struct std::hash<flexkv::BlockHash> {
  size_t operator()(const flexkv::BlockHash& block) const noexcept { return block.tag(); }
};
