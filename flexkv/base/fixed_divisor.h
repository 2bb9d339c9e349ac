// Division by a number that stays the same: a multiplication.
#pragma once

#include <cstdint>

namespace flexkv {

class FixedDivisor {
 public:
  // REQUIRES: 0 < divisor < 2^31. (0 is taken for 1.)
  explicit FixedDivisor(uint32_t divisor)
      : divisor_(divisor == 0 ? 1 : divisor), factor_((1ull << 62) / divisor_ + 1) {}

  // REQUIRES: n < 2^31. Exact: the factor is too large by at most divisor / 2^62, which n * divisor
  // < 2^62 keeps below one.
  uint32_t Quotient(uint32_t n) const {
    __extension__ using Wide = unsigned __int128;
    return static_cast<uint32_t>((static_cast<Wide>(n) * factor_) >> 62);
  }
  uint32_t Remainder(uint32_t n) const { return n - Quotient(n) * divisor_; }
  uint32_t divisor() const { return divisor_; }

 private:
  uint32_t divisor_;
  uint64_t factor_;
};

}  // namespace flexkv
