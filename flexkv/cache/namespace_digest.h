// What tells a namespace's blocks on disk from all others: SHA-256 over everything under which
// equal block hashes mean equal bytes.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv {

// Every field goes in with its length, so no two different namespaces give the same input.
// `shard_bytes` are those that are stored; `replicas` as in Namespace: what no replicated engine
// wrote has the digest that it had before there were any.
NamespaceDigest DigestOfNamespace(std::string_view key, uint32_t tokens_per_block,
                                  std::span<const uint64_t> shard_bytes, uint32_t replicas = 0);

}  // namespace flexkv
