#include "flexkv/server/hello.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "proto/packet_socket.h"

namespace flexkv {
namespace {

constexpr size_t kMaxLabel = 200;

absl::Status CheckNumbers(const shm::Hello& hello) {
  if (hello.world_size == 0 || hello.world_size > kMaxWorldSize) {
    return absl::InvalidArgumentError(
        absl::StrCat("world size ", hello.world_size, " is not in 1..", kMaxWorldSize));
  }
  if (hello.rank >= hello.world_size) {
    return absl::InvalidArgumentError(
        absl::StrCat("rank ", hello.rank, " is not below the world size"));
  }
  if (hello.tokens_per_block > kMaxTokensPerBlock ||
      (hello.tokens_per_block == 0 && hello.role == static_cast<uint32_t>(shm::Role::kScheduler))) {
    return absl::InvalidArgumentError("the tokens per block are zero or too many");
  }
  if (hello.engine_id[0] == 0 && hello.engine_id[1] == 0) {
    return absl::InvalidArgumentError("the engine id is zero");
  }
  const bool worker = hello.role == static_cast<uint32_t>(shm::Role::kWorker);
  if ((hello.flags & ~(worker ? shm::kReplicated : 0u)) != 0)
    return absl::InvalidArgumentError("a reserved field is not zero");
  if (worker && (hello.shard_bytes == 0 || hello.shard_bytes >= kMaxShardBytes)) {
    return absl::InvalidArgumentError("a block's shard has no bytes, or 1 GiB or more");
  }
  return absl::OkStatus();
}

}  // namespace

std::string SafeLabel(std::string_view label) {
  std::string safe(label.substr(0, kMaxLabel));
  for (char& c : safe) {
    if (c < 0x20 || c > 0x7e || c == '"' || c == '\\') c = '_';
  }
  return safe.empty() ? "unnamed" : safe;
}

absl::StatusOr<ClientHello> ParseHello(std::span<const std::byte> packet) {
  shm::Hello hello;
  if (packet.size() >= 2 * sizeof(uint32_t)) {  // the version decides how the rest is read
    uint32_t head[2];
    std::memcpy(head, packet.data(), sizeof(head));
    if (head[0] != static_cast<uint32_t>(shm::PacketType::kHello)) {
      return absl::InvalidArgumentError("the first packet must be a hello");
    }
    if (head[1] != shm::kProtocolVersion) {
      return absl::InvalidArgumentError(absl::StrCat("this flexkvd speaks protocol version ",
                                                     shm::kProtocolVersion, ", the client speaks ",
                                                     head[1]));
    }
  }
  if (!shm::ReadStruct(packet, &hello)) return absl::InvalidArgumentError("the hello is too short");
  const bool scheduler = hello.role == static_cast<uint32_t>(shm::Role::kScheduler);
  if (!scheduler && hello.role != static_cast<uint32_t>(shm::Role::kWorker)) {
    return absl::InvalidArgumentError("the hello names no known role");
  }
  if (absl::Status status = CheckNumbers(hello); !status.ok()) return status;
  if (hello.text_bytes > shm::kMaxHelloText || hello.text_bytes != packet.size() - sizeof(hello)) {
    return absl::InvalidArgumentError("the hello's text has another length than announced");
  }
  const std::string_view text(reinterpret_cast<const char*>(packet.data()) + sizeof(hello),
                              hello.text_bytes);
  ClientHello result;
  result.role = static_cast<shm::Role>(hello.role);
  result.engine = {hello.engine_id[0], hello.engine_id[1]};
  result.rank = hello.rank;
  result.world_size = hello.world_size;
  result.tokens_per_block = hello.tokens_per_block;
  result.shard_bytes = scheduler ? 0 : hello.shard_bytes;
  result.replicated = (hello.flags & shm::kReplicated) != 0;
  result.pid = hello.pid;
  if (scheduler) {
    const size_t end = text.find('\0');
    if (end == std::string_view::npos) return absl::InvalidArgumentError("the hello has no label");
    result.label = SafeLabel(text.substr(0, end));
    result.identity = std::string(text.substr(end + 1));
  } else {
    result.identity = std::string(text);
  }
  return result;
}

}  // namespace flexkv
