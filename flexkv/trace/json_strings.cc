// Strings, values that are skipped, and strings of hexadecimal digits.
#include <tmmintrin.h>

#include <bit>
#include <cstring>

#include "flexkv/trace/json_cursor.h"
#include "flexkv/trace/utf8.h"

namespace flexkv::trace {
namespace {

constexpr int kMaxDepth = 64;

// 16 hexadecimal digits as 8 bytes in the low half. False: another character is among them.
bool HexToBytes(const char* from, uint64_t* bytes) {
  const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i digit = _mm_sub_epi8(text, _mm_set1_epi8('0'));
  const __m128i letter = _mm_sub_epi8(_mm_or_si128(text, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
  const __m128i is_digit = _mm_cmpeq_epi8(_mm_min_epu8(digit, _mm_set1_epi8(9)), digit);
  const __m128i is_letter = _mm_cmpeq_epi8(_mm_min_epu8(letter, _mm_set1_epi8(5)), letter);
  if (_mm_movemask_epi8(_mm_or_si128(is_digit, is_letter)) != 0xffff) return false;
  const __m128i value =
      _mm_or_si128(_mm_and_si128(is_digit, digit),
                   _mm_and_si128(is_letter, _mm_add_epi8(letter, _mm_set1_epi8(10))));
  const __m128i pairs = _mm_maddubs_epi16(value, _mm_set1_epi16(0x0110));
  *bytes = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm_packus_epi16(pairs, pairs)));
  return true;
}

// How many of the next 16 characters come before the first that is not plain (quote, backslash,
// control, not ASCII).
int ShortLength(const char* from) {
  const __m128i text = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const __m128i special = _mm_or_si128(_mm_or_si128(_mm_cmpeq_epi8(text, _mm_set1_epi8('"')),
                                                    _mm_cmpeq_epi8(text, _mm_set1_epi8('\\'))),
                                       _mm_cmplt_epi8(text, _mm_set1_epi8(0x20)));
  return std::countr_zero(static_cast<uint32_t>(_mm_movemask_epi8(special)) | 0x10000u);
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  const char lower = static_cast<char>(c | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

void AppendUtf8(uint32_t point, std::string* out) {
  const auto tail = [&](int shift) {
    out->push_back(static_cast<char>(0x80 | ((point >> shift) & 0x3f)));
  };
  if (point < 0x80) {
    out->push_back(static_cast<char>(point));
  } else if (point < 0x800) {
    out->push_back(static_cast<char>(0xC0 | (point >> 6)));
    tail(0);
  } else if (point < 0x10000) {
    out->push_back(static_cast<char>(0xE0 | (point >> 12)));
    tail(6);
    tail(0);
  } else {
    out->push_back(static_cast<char>(0xF0 | (point >> 18)));
    tail(12);
    tail(6);
    tail(0);
  }
}

}  // namespace

bool JsonCursor::CheckUtf8() {
  const size_t length = Utf8Length(std::string_view(at_, static_cast<size_t>(end_ - at_)));
  if (length == 0) return Fail("no UTF-8");
  at_ += length;
  return true;
}

bool JsonCursor::ReadString(std::string_view* value) {
  if (!ok()) return false;
  SkipSpace();
  if (*at_ != '"') return Fail(at_ == end_ ? "the line is cut" : "no string");
  const char* const start = ++at_;
  if (const int length = ShortLength(start); length < 16 && start[length] == '"') {
    *value = {start, static_cast<size_t>(length)};
    at_ += length + 1;
    return true;
  }
  while (*at_ != '"') {
    const auto c = static_cast<unsigned char>(*at_);
    if (c == '\\') return ReadEscapedString(start, value);
    if (c < 0x20) return Fail(at_ == end_ ? "the line is cut" : "a control character");
    if (c < 0x80) {
      ++at_;
    } else if (!CheckUtf8()) {
      return false;
    }
  }
  *value = {start, static_cast<size_t>(at_ - start)};
  ++at_;
  return true;
}

bool JsonCursor::ReadEscapedString(const char* start, std::string_view* value) {
  scratch_.assign(start, at_);
  while (*at_ != '"') {
    const auto c = static_cast<unsigned char>(*at_);
    if (c < 0x20) return Fail(at_ == end_ ? "the line is cut" : "a control character");
    if (c == '\\') {
      if (!ReadEscape()) return false;
      continue;
    }
    const char* const from = at_;
    if (c < 0x80) {
      ++at_;
    } else if (!CheckUtf8()) {
      return false;
    }
    scratch_.append(from, at_);
  }
  ++at_;
  *value = scratch_;
  return true;
}

bool JsonCursor::ReadHex4(uint32_t* value) {
  *value = 0;
  for (int i = 0; i < 4; ++i) {
    const int digit = HexDigit(*at_);
    if (digit < 0) return Fail(at_ == end_ ? "the line is cut" : "a bad escape");
    *value = *value * 16 + static_cast<uint32_t>(digit);
    ++at_;
  }
  return true;
}

bool JsonCursor::ReadEscape() {
  constexpr std::string_view kNames = "\"\\/bfnrt";
  constexpr std::string_view kValues = "\"\\/\b\f\n\r\t";
  const char name = at_[1];
  if (name != 'u') {
    const size_t place = kNames.find(name);
    if (place == std::string_view::npos) return Fail("a bad escape");
    scratch_.push_back(kValues[place]);
    at_ += 2;
    return true;
  }
  at_ += 2;
  uint32_t point = 0;
  if (!ReadHex4(&point)) return false;
  if (point >= 0xDC00 && point < 0xE000) return Fail("half of a surrogate pair");
  if (point >= 0xD800 && point < 0xDC00) {
    if (at_[0] != '\\' || at_[1] != 'u') return Fail("half of a surrogate pair");
    at_ += 2;
    uint32_t low = 0;
    if (!ReadHex4(&low)) return false;
    if (low < 0xDC00 || low >= 0xE000) return Fail("half of a surrogate pair");
    point = 0x10000 + ((point - 0xD800) << 10) + (low - 0xDC00);
  }
  AppendUtf8(point, &scratch_);
  return true;
}

bool JsonCursor::SkipLiteral(std::string_view literal) {
  for (const char c : literal) {
    if (*at_ != c) return Fail(at_ == end_ ? "the line is cut" : "no JSON value");
    ++at_;
  }
  return true;
}

bool JsonCursor::SkipScalar() {
  std::string_view text;
  Number number;
  switch (*at_) {
    case '"':
      return ReadString(&text);
    case 't':
      return SkipLiteral("true");
    case 'f':
      return SkipLiteral("false");
    case 'n':
      return SkipLiteral("null");
    default:
      return ReadNumberToken(&number);
  }
}

// Closes what ends here, and moves to where the next value starts. `nesting`: a bit a level, 1 for
// objects, the innermost lowest. False at the end of the outermost, or on failure.
bool JsonCursor::AfterValue(uint64_t* nesting, int* depth) {
  while (*depth > 0) {
    SkipSpace();
    const bool object = (*nesting & 1) != 0;
    if (*at_ == ',') {
      ++at_;
      return !object || SkipKey();
    }
    if (*at_ != (object ? '}' : ']')) {
      return Fail(at_ == end_ ? "the line is cut" : "a comma or bracket is missing");
    }
    ++at_;
    *nesting >>= 1;
    --*depth;
  }
  return false;
}

// Steps into an object or array, up to its first value. False: it is empty (and not closed), or a
// failure.
bool JsonCursor::Open(uint64_t* nesting, int* depth) {
  if (*depth == kMaxDepth) return Fail("nested too deep");
  const bool object = *at_ == '{';
  ++at_;
  *nesting = (*nesting << 1) | (object ? 1 : 0);
  ++*depth;
  SkipSpace();
  if (*at_ == (object ? '}' : ']')) return false;
  return !object || SkipKey();
}

bool JsonCursor::SkipKey() {
  std::string_view key;
  if (!ReadString(&key)) return false;
  SkipSpace();
  if (*at_ != ':') return Fail(at_ == end_ ? "the line is cut" : "a colon is missing");
  ++at_;
  return true;
}

bool JsonCursor::SkipValue() {
  if (!ok()) return false;
  uint64_t nesting = 0;
  int depth = 0;
  while (true) {
    SkipSpace();
    if (*at_ == '{' || *at_ == '[') {
      if (Open(&nesting, &depth)) continue;  // a value comes
      if (!ok()) return false;
    } else if (!SkipScalar()) {
      return false;
    }
    if (!AfterValue(&nesting, &depth)) return ok();
  }
}

bool JsonCursor::ReadRaw(std::string_view* value) {
  if (!ok()) return false;
  SkipSpace();
  const char* const start = at_;
  if (!SkipValue()) return false;
  *value = {start, static_cast<size_t>(at_ - start)};
  return true;
}

bool JsonCursor::ReadHexWords(uint32_t digits, uint64_t* out, uint64_t* count) {
  if (!ok()) return false;
  SkipSpace();
  *count = 0;
  if (*at_ != '"') return Fail(at_ == end_ ? "the line is cut" : "no string");
  // Hexadecimal digits need no look for escapes and ends: the first other character is the end.
  const char* group = at_ + 1;
  while (end_ - group >= static_cast<int64_t>(digits) && *group != '"') {
    uint64_t unused = 0;
    for (uint32_t part = 0; part < digits; part += 16) {
      if (!HexToBytes(group + part, part == 0 ? &out[*count] : &unused)) {
        return Fail("no hexadecimal digits");
      }
    }
    ++*count;
    group += digits;
  }
  if (*group != '"') {
    const bool ends = std::memchr(group, '"', static_cast<size_t>(end_ - group)) != nullptr;
    return Fail(ends ? "a hash of another length" : "the line is cut");
  }
  at_ = group + 1;
  return true;
}

}  // namespace flexkv::trace
