#include "flexkv/storage/ssd/ssd_checksum.h"

#include <array>
#include <vector>

#include "flexkv/storage/ssd/ssd_checksum_isa.h"

namespace flexkv::ssd {
namespace {

using internal::ChecksumPiece;

internal::ChecksumFn ChooseChecksum() {
  return __builtin_cpu_supports("avx2") ? &internal::ChecksumAvx2 : &internal::ChecksumSse2;
}

uint64_t Run(std::span<const ChecksumPiece> pieces, uint64_t seed) {
  static const internal::ChecksumFn checksum = ChooseChecksum();
  return checksum(pieces.data(), pieces.size(), seed);
}

}  // namespace

uint64_t Checksum(const void* data, size_t bytes, uint64_t seed) {
  const ChecksumPiece piece{data, bytes};
  return Run({&piece, 1}, seed);
}

uint64_t Checksum(std::span<const std::span<const std::byte>> pieces, uint64_t seed) {
  std::array<ChecksumPiece, 256> list;  // as many shards as a block may have
  const size_t count = pieces.size() < list.size() ? pieces.size() : list.size();
  for (size_t i = 0; i < count; ++i) list[i] = {pieces[i].data(), pieces[i].size()};
  return Run(std::span(list).first(count), seed);
}

}  // namespace flexkv::ssd
