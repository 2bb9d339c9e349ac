#include "flexkv/cache/namespace_digest.h"

#include <openssl/sha.h>

#include <string>

namespace flexkv {
namespace {

void Append(uint64_t number, std::string* text) {
  for (int shift = 0; shift < 64; shift += 8) text->push_back(static_cast<char>(number >> shift));
}

}  // namespace

NamespaceDigest DigestOfNamespace(std::string_view key, uint32_t tokens_per_block,
                                  std::span<const uint64_t> shard_bytes, uint32_t replicas) {
  std::string text = "flexkv namespace 1";
  Append(key.size(), &text);
  text.append(key);
  Append(tokens_per_block, &text);
  Append(shard_bytes.size(), &text);
  for (uint64_t bytes : shard_bytes) Append(bytes, &text);
  if (replicas > 0) Append(replicas, &text);
  NamespaceDigest digest;
  static_assert(sizeof(digest) == SHA256_DIGEST_LENGTH);
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest.data());
  return digest;
}

}  // namespace flexkv
