// Reads one line of JSON once, from front to back, into what its caller asks for: a pull parser for
// lines whose fields are known. Takes exactly what the JSON grammar takes (UTF-8 checked, numbers
// out of range refused), nested at most 64 deep. Nothing is copied but strings with escapes.
//
//   JsonCursor json(line);
//   for (std::string_view key; json.NextKey(&key);) {
//     if (key == "timestamp") json.ReadNumber(&time); else json.SkipValue();
//   }
//   if (!json.Finish()) ... json.reason() ...
//
// After the first failure every call returns false. REQUIRES of the line: as LineReader gives it
// ('\n' follows, then kLinePadding readable bytes).
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>

namespace flexkv::trace {

class JsonCursor {
 public:
  explicit JsonCursor(std::string_view line) : at_(line.data()), end_(at_ + line.size()) {}

  // The next key of the line's object; false at its end. The view holds until the next call.
  bool NextKey(std::string_view* key);

  // For lines as one known program writes them: moves over `text` if it is what comes next. Calls
  // of this kind and of NextKey do not mix; a line that differs is read again from its start.
  bool SkipText(std::string_view text) {
    if (!ok() || static_cast<size_t>(end_ - at_) < text.size()) return false;
    if (std::memcmp(at_, text.data(), text.size()) != 0) return false;
    at_ += text.size();
    return true;
  }
  bool at_end() const { return ok() && at_ == end_; }

  // Whole numbers, also when written as 12.0 or 1e3.
  bool ReadUint(uint64_t* value);
  bool ReadUint(uint32_t* value);
  bool ReadInt(int64_t* value);
  bool ReadNumber(double* value);
  // A number times `scale` (1, 10^3, ...), exact for whole numbers. False: negative, or >= 2^63.
  bool ReadScaled(uint64_t scale, uint64_t* value);
  // The view holds until the next call.
  bool ReadString(std::string_view* value);
  // The value as it is written, checked.
  bool ReadRaw(std::string_view* value);
  bool SkipValue();

  // An array of whole numbers, each chained with those before it from `seed` on (Chain). `out` has
  // room for half the line's bytes and one more.
  bool ReadChainedUints(uint64_t seed, uint64_t* out, uint64_t* count);
  // A string of hexadecimal digits in groups of `digits` (a multiple of 16): the first 8 bytes of
  // each, as the writer puts them (record_json.h).
  bool ReadHexWords(uint32_t digits, uint64_t* out, uint64_t* count);
  // An array of strings "0x12ab": `each(std::string_view)` returns whether it takes one.
  template <typename Each>
  bool ReadStrings(Each each) {
    if (!BeginArray()) return false;
    std::string_view text;
    while (NextElement()) {
      if (!ReadString(&text)) return false;
      if (!each(text)) return Fail("an element of another form");
    }
    return ok();
  }

  // True: the object has ended, nothing but space follows, and nothing failed.
  bool Finish();
  bool ok() const { return reason_ == nullptr; }
  const char* reason() const { return reason_; }
  bool Fail(const char* reason);

  // The chained id of a block: equal chains get equal ids, others almost never. For a given parent
  // it is a bijection.
  static uint64_t Chain(uint64_t parent, uint64_t id) {
    const uint64_t product = (parent ^ id) * 0x9E3779B97F4A7C15u;
    return product ^ (product >> 32);
  }

 private:
  struct Number {
    bool negative = false, whole = false;  // whole: `digits` has the value without its sign
    uint64_t digits = 0;
    double value = 0;
  };

  void SkipSpace() {
    while (*at_ == ' ' || *at_ == '\t' || *at_ == '\r') ++at_;
  }
  bool BeginArray();
  bool NextElement();
  bool ReadNumberToken(Number* number);
  bool ReadFraction(const char* start, Number* number);
  bool ReadEscapedString(const char* start, std::string_view* value);
  bool ReadEscape();
  bool ReadHex4(uint32_t* value);
  bool CheckUtf8();  // one character at at_ that is not ASCII
  bool SkipLiteral(std::string_view literal);
  bool SkipScalar();
  bool Open(uint64_t* nesting, int* depth);
  bool SkipKey();
  bool AfterValue(uint64_t* nesting, int* depth);

  const char* at_;
  const char* const end_;  // the '\n' behind the line
  const char* reason_ = nullptr;
  enum class State : uint8_t { kStart, kMembers, kDone } state_ = State::kStart;
  bool first_element_ = false;
  std::string scratch_;  // of strings with escapes
};

}  // namespace flexkv::trace
