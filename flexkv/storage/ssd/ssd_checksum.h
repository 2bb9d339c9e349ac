// 64-bit XXH3 over pages and payloads, by the widest instruction set that the CPU has; the value is
// the same on all of them. Not cryptographic: it finds what broke, not what was forged (the
// directory is ours alone).
// → xxHash doc/xxhash_spec.md (XXH3, 64 bits, seeded).
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace flexkv::ssd {

uint64_t Checksum(const void* data, size_t bytes, uint64_t seed);
// Of the pieces as if they lay one behind the other.
uint64_t Checksum(std::span<const std::span<const std::byte>> pieces, uint64_t seed);

}  // namespace flexkv::ssd
