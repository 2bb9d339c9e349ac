// The first packet of a client, checked before anything is made for it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "proto/shm_layout.h"

namespace flexkv {

inline constexpr uint32_t kMaxWorldSize = 256;
inline constexpr uint32_t kMaxTokensPerBlock = 1u << 16;
inline constexpr uint64_t kMaxShardBytes = 1ull << 30;

struct EngineId {
  uint64_t high = 0, low = 0;
  friend auto operator<=>(const EngineId&, const EngineId&) = default;
};

struct ClientHello {
  shm::Role role = shm::Role::kScheduler;
  EngineId engine;
  uint32_t rank = 0;
  uint32_t world_size = 1;
  uint32_t tokens_per_block = 0;
  uint64_t shard_bytes = 0;  // workers
  bool replicated = false;   // workers: all ranks' shards have the same bytes
  uint64_t pid = 0;          // as the client says
  std::string label;         // schedulers: printable ASCII without quotes, what status shows
  std::string identity;      // scheduler: fingerprint text; worker: layout descriptor
};

// InvalidArgument: one sentence that is sent back to the client.
absl::StatusOr<ClientHello> ParseHello(std::span<const std::byte> packet);

// A label from outside, made safe for logs, metrics and terminals.
std::string SafeLabel(std::string_view label);

}  // namespace flexkv
