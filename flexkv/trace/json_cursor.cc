// How the fast paths stay safe: a line ends in '\n', which no token contains, so a scan stops there
// by itself; loads of 8 or 16 bytes may run over it into the padding, and what they found there is
// never taken because the '\n' comes first.
#include "flexkv/trace/json_cursor.h"

#include <charconv>
#include <cmath>

#include "flexkv/trace/json_digits.h"

namespace flexkv::trace {
namespace {

bool IsDigit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

bool JsonCursor::Fail(const char* reason) {
  if (reason_ == nullptr) reason_ = reason;
  return false;
}

bool JsonCursor::NextKey(std::string_view* key) {
  if (!ok()) return false;
  SkipSpace();
  if (state_ == State::kStart) {
    if (*at_ != '{') return Fail("no JSON object");
    ++at_;
    SkipSpace();
    state_ = State::kMembers;
    if (*at_ == '}') {
      ++at_;
      state_ = State::kDone;
      return false;
    }
  } else if (state_ == State::kMembers) {
    if (*at_ == '}') {
      ++at_;
      state_ = State::kDone;
      return false;
    }
    if (*at_ != ',') return Fail(at_ == end_ ? "the line is cut" : "a comma or } is missing");
    ++at_;
    SkipSpace();
  } else {
    return false;
  }
  if (!ReadString(key)) return false;
  SkipSpace();
  if (*at_ != ':') return Fail(at_ == end_ ? "the line is cut" : "a colon is missing");
  ++at_;
  return true;
}

bool JsonCursor::Finish() {
  if (!ok()) return false;
  if (state_ != State::kDone) return Fail("the object does not end");
  SkipSpace();
  return at_ == end_ || Fail("something follows the object");
}

bool JsonCursor::ReadNumberToken(Number* number) {
  if (!ok()) return false;
  SkipSpace();
  const char* const start = at_;
  number->negative = *at_ == '-';
  if (number->negative) ++at_;
  const char* const first = at_;
  const uint64_t flipped = Load8(at_) ^ 0x3030303030303030u;
  const uint32_t count = LeadingDigits(flipped);
  if (count == 0) return Fail(at_ == end_ ? "the line is cut" : "no number");
  if (count < 8) {
    number->digits = DigitsValue(flipped, count);
    at_ += count;
  } else {
    while (IsDigit(*at_)) ++at_;
    const auto result = std::from_chars(first, at_, number->digits);
    number->whole = result.ec == std::errc();
  }
  if (*first == '0' && at_ - first > 1) return Fail("a number starts with 0");
  const bool plain = *at_ != '.' && *at_ != 'e' && *at_ != 'E';
  if (plain && (count < 8 || number->whole)) {
    number->whole = true;
    return true;
  }
  return ReadFraction(start, number);
}

// The rest of a number that is no plain integer of 64 bits.
bool JsonCursor::ReadFraction(const char* start, Number* number) {
  bool small = *at_ == '.';  // if it is out of range, then towards 0
  if (*at_ == '.') {
    ++at_;
    if (!IsDigit(*at_)) return Fail("a number ends in a point");
    while (IsDigit(*at_)) ++at_;
  }
  if (*at_ == 'e' || *at_ == 'E') {
    ++at_;
    small = *at_ == '-';
    if (*at_ == '-' || *at_ == '+') ++at_;
    if (!IsDigit(*at_)) return Fail("a number without its exponent");
    while (IsDigit(*at_)) ++at_;
  }
  const auto result = std::from_chars(start, at_, number->value);
  if (result.ec == std::errc::result_out_of_range) {
    if (!small) return Fail("a number out of range");
    number->value = 0;
  }
  const double size = std::fabs(number->value);
  number->whole = size < 18446744073709551616.0 && size == std::floor(size);
  if (number->whole) number->digits = static_cast<uint64_t>(size);
  number->negative = number->value < 0;
  return true;
}

bool JsonCursor::ReadUint(uint64_t* value) {
  Number number;
  if (!ReadNumberToken(&number)) return false;
  if (!number.whole) return Fail("no whole number");
  if (number.negative && number.digits != 0) return Fail("a negative number");
  *value = number.digits;
  return true;
}

bool JsonCursor::ReadUint(uint32_t* value) {
  uint64_t wide = 0;
  if (!ReadUint(&wide)) return false;
  if (wide > UINT32_MAX) return Fail("a number out of range");
  *value = static_cast<uint32_t>(wide);
  return true;
}

bool JsonCursor::ReadInt(int64_t* value) {
  Number number;
  if (!ReadNumberToken(&number)) return false;
  if (!number.whole) return Fail("no whole number");
  if (number.digits > INT64_MAX) return Fail("a number out of range");
  *value = static_cast<int64_t>(number.digits);
  if (number.negative) *value = -*value;
  return true;
}

bool JsonCursor::ReadNumber(double* value) {
  Number number;
  if (!ReadNumberToken(&number)) return false;
  *value = number.value;
  if (number.whole) {
    *value = static_cast<double>(number.digits);
    if (number.negative) *value = -*value;
  }
  return true;
}

bool JsonCursor::ReadScaled(uint64_t scale, uint64_t* value) {
  Number number;
  if (!ReadNumberToken(&number)) return false;
  if (number.negative && (!number.whole || number.digits != 0)) return Fail("a negative number");
  if (number.whole) {
    if (number.digits > INT64_MAX / scale) return Fail("a number out of range");
    *value = number.digits * scale;
    return true;
  }
  const double scaled = number.value * static_cast<double>(scale);
  if (!(scaled < 9.2e18)) return Fail("a number out of range");
  *value = static_cast<uint64_t>(std::llround(scaled));
  return true;
}

bool JsonCursor::BeginArray() {
  if (!ok()) return false;
  SkipSpace();
  if (*at_ != '[') return Fail(at_ == end_ ? "the line is cut" : "no array");
  ++at_;
  first_element_ = true;
  return true;
}

bool JsonCursor::NextElement() {
  if (!ok()) return false;
  SkipSpace();
  if (*at_ == ']') {
    ++at_;
    return false;
  }
  if (!first_element_) {
    if (*at_ != ',') return Fail(at_ == end_ ? "the line is cut" : "a comma or ] is missing");
    ++at_;
  }
  first_element_ = false;
  SkipSpace();
  return *at_ != ']' || Fail("a comma before ]");
}

}  // namespace flexkv::trace
