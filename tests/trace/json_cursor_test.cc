// The parser beside nlohmann-json as the oracle: what one takes the other takes, with equal values,
// on random documents and on mutations of them.
#include "flexkv/trace/json_cursor.h"

#include <cctype>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "flexkv/trace/line_reader.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "tests/support/sanitized.h"
#include "tests/support/test_seed.h"

namespace flexkv::trace {
namespace {

constexpr int kShare = kSanitized ? 8 : 1;

// A line in memory as LineReader gives it.
class Padded {
 public:
  explicit Padded(const std::string& text) : size_(text.size()), text_(text) {
    text_ += '\n';
    text_.append(kLinePadding, '7');  // digits: what the parser must not take
  }
  std::string_view view() const { return {text_.data(), size_}; }

 private:
  size_t size_;
  std::string text_;
};

std::string RandomString(TestRng* rng) {
  std::string text;
  for (uint64_t i = rng->Below(20); i > 0; --i) {
    switch (rng->Below(12)) {
      case 0:
        text += static_cast<char>(rng->Below(0x20));
        break;
      case 1:
        text += rng->OneIn(2) ? "\"" : "\\";
        break;
      case 2:
        text += rng->OneIn(2) ? "\xC3\xA9" : "\xE2\x82\xAC";
        break;
      case 3:
        text += "\xF0\x9F\x98\x80";
        break;
      default:
        text += static_cast<char>('a' + rng->Below(26));
    }
  }
  return text;
}

nlohmann::json RandomValue(TestRng* rng, int depth) {
  switch (rng->Below(depth > 4 ? 6 : 8)) {
    case 0:
      return rng->Next() >> rng->Below(64);
    case 1:
      return -static_cast<int64_t>(rng->Next() >> (1 + rng->Below(63)));
    case 2:
      return static_cast<double>(rng->Next()) / static_cast<double>(1 + rng->Below(1u << 30));
    case 3:
      return RandomString(rng);
    case 4:
      return rng->OneIn(2);
    case 5:
      return nullptr;
    case 6: {
      nlohmann::json array = nlohmann::json::array();
      const bool numbers = rng->OneIn(2);
      for (uint64_t i = rng->Below(30); i > 0; --i) {
        if (numbers) {
          array.push_back(rng->Next() >> rng->Below(64));
        } else {
          array.push_back(RandomValue(rng, depth + 1));
        }
      }
      return array;
    }
    default: {
      nlohmann::json object = nlohmann::json::object();
      for (uint64_t i = rng->Below(5); i > 0; --i) {
        object[RandomString(rng)] = RandomValue(rng, depth + 1);
      }
      return object;
    }
  }
}

std::string Spaced(const std::string& compact, TestRng* rng) {
  std::string text;
  bool in_string = false, escaped = false;
  for (const char c : compact) {
    text += c;
    if (escaped) {
      escaped = false;
    } else if (in_string && c == '\\') {
      escaped = true;
    } else if (c == '"') {
      in_string = !in_string;
    }
    if (!in_string && std::strchr(",:[]{}", c) != nullptr && rng->OneIn(3)) {
      text.append(rng->Below(3), rng->OneIn(4) ? '\t' : ' ');
    }
  }
  return text;
}

void Mutate(std::string* text, TestRng* rng) {
  static const std::string kInteresting = "\"\\[]{},:0123456789.eE+-tfn \t\x01\x7f\xff\xc3u";
  for (uint64_t i = 1 + rng->Below(3); i > 0 && !text->empty(); --i) {
    const size_t place = rng->Below(text->size());
    const char c = kInteresting[rng->Below(kInteresting.size())];
    if (rng->OneIn(3)) {
      text->erase(place, 1);
    } else if (rng->OneIn(2)) {
      (*text)[place] = c;
    } else {
      text->insert(place, 1, c);
    }
  }
}

// A whole line as an object of which "n" is read as what it is, all else skipped; nothing: refused.
struct Seen {
  uint64_t keys = 0;
  std::optional<std::string> text;
  std::optional<double> number;
  std::vector<uint64_t> ids;
};
std::optional<Seen> ReadLine(const std::string& text) {
  const Padded line(text);
  JsonCursor json(line.view());
  Seen seen;
  for (std::string_view key; json.NextKey(&key);) {
    ++seen.keys;
    std::string_view raw;
    if (!json.ReadRaw(&raw)) break;
    if (raw.empty()) return std::nullopt;
  }
  if (!json.Finish()) {
    EXPECT_NE(json.reason(), nullptr);
    return std::nullopt;
  }
  return seen;
}

bool InRange(const std::string& text) {
  // nlohmann refuses numbers out of a double's range as we do, by an exception of its own kind.
  return nlohmann::json::accept(text);
}

TEST(JsonCursorTest, TakesWhatTheOracleTakes) {
  TestRng rng(TestSeed());
  int taken = 0, refused = 0;
  for (int i = 0; i < 30000 / kShare; ++i) {
    nlohmann::json object = nlohmann::json::object();
    for (uint64_t k = rng.Below(5); k > 0; --k) object[RandomString(&rng)] = RandomValue(&rng, 0);
    std::string text = Spaced(object.dump(-1, ' ', rng.OneIn(2)), &rng);
    if (i % 3 != 0) Mutate(&text, &rng);
    if (text.find('\n') != std::string::npos) continue;
    const nlohmann::json oracle = nlohmann::json::parse(text, nullptr, false);
    const bool good = InRange(text) && oracle.is_object();
    EXPECT_EQ(ReadLine(text).has_value(), good) << text;
    ++(good ? taken : refused);
  }
  EXPECT_GT(taken, 8000 / kShare);
  EXPECT_GT(refused, 5000 / kShare);
}

TEST(JsonCursorTest, NumbersAreTheOracles) {
  TestRng rng(TestSeed() + 1);
  for (int i = 0; i < 50000 / kShare; ++i) {
    std::string text;
    if (rng.OneIn(3)) text += '-';
    text += std::to_string(rng.Next() >> rng.Below(64));
    if (rng.OneIn(3)) text.append(1, '.').append(std::to_string(rng.Next() >> rng.Below(64)));
    if (rng.OneIn(4)) text.append(rng.OneIn(2) ? "e-" : "E").append(std::to_string(rng.Below(400)));
    const nlohmann::json oracle = nlohmann::json::parse(text, nullptr, false);
    const Padded line("{\"n\":" + text + "}");
    JsonCursor json(line.view());
    std::string_view key;
    double value = -7;
    ASSERT_TRUE(json.NextKey(&key));
    ASSERT_EQ(json.ReadNumber(&value), !oracle.is_discarded()) << text;
    if (oracle.is_discarded()) continue;
    EXPECT_EQ(value, oracle.get<double>()) << text;
    EXPECT_FALSE(json.NextKey(&key));
    EXPECT_TRUE(json.Finish());
    if (!oracle.is_number_unsigned()) continue;
    JsonCursor again(line.view());
    uint64_t whole = 0;
    again.NextKey(&key);
    EXPECT_TRUE(again.ReadUint(&whole));
    EXPECT_EQ(whole, oracle.get<uint64_t>());
  }
}

TEST(JsonCursorTest, StringsAreTheOracles) {
  TestRng rng(TestSeed() + 2);
  for (int i = 0; i < 30000 / kShare; ++i) {
    const std::string text = RandomString(&rng) + RandomString(&rng);
    const nlohmann::json object = {{text, text}};
    const Padded line(object.dump(-1, ' ', rng.OneIn(2)));
    JsonCursor json(line.view());
    std::string_view key, value;
    ASSERT_TRUE(json.NextKey(&key));
    EXPECT_EQ(key, text);
    ASSERT_TRUE(json.ReadString(&value));
    EXPECT_EQ(value, text);
  }
}

TEST(JsonCursorTest, ArraysOfNumbersChainAsOneByOne) {
  TestRng rng(TestSeed() + 3);
  for (int i = 0; i < 20000 / kShare; ++i) {
    std::vector<uint64_t> numbers(rng.Below(60));
    for (uint64_t& number : numbers) number = rng.Next() >> (rng.OneIn(4) ? 0 : 40 + rng.Below(24));
    std::string text = Spaced(nlohmann::json(numbers).dump(), &rng);
    if (i % 2 == 0) Mutate(&text, &rng);
    const std::string object = "{\"n\":" + text + "}";
    const nlohmann::json oracle = nlohmann::json::parse(object, nullptr, false);
    bool good = oracle.is_object() && oracle.size() == 1 && oracle["n"].is_array();
    uint64_t chain = 5;
    std::vector<uint64_t> expected;
    for (size_t k = 0; good && k < oracle["n"].size(); ++k) {
      const auto& element = oracle["n"][k];
      // Also what is whole without looking so.
      const double real = element.is_number() ? element.get<double>() : -1;
      good = element.is_number_unsigned() ||
             (element.is_number() && real >= 0 && real < 18446744073709551616.0 &&
              real == std::floor(real));
      if (!good) break;
      const uint64_t id =
          element.is_number_unsigned() ? element.get<uint64_t>() : static_cast<uint64_t>(real);
      expected.push_back(chain = JsonCursor::Chain(chain, id));
    }
    const Padded line(object);
    JsonCursor json(line.view());
    std::vector<uint64_t> out(object.size() / 2 + 1);
    uint64_t count = 0;
    std::string_view key;
    const bool taken = json.NextKey(&key) && json.ReadChainedUints(5, out.data(), &count) &&
                       !json.NextKey(&key) && json.Finish();
    ASSERT_EQ(taken, good) << object;
    if (!good) continue;
    out.resize(count);
    EXPECT_EQ(out, expected) << object;
  }
}

TEST(JsonCursorTest, HashesInHexadecimal) {
  const auto read = [](const std::string& text, uint32_t digits) {
    const Padded line("{\"h\":" + text + "}");
    JsonCursor json(line.view());
    std::string_view key;
    std::vector<uint64_t> out(line.view().size() / 2 + 1);
    uint64_t count = 0;
    json.NextKey(&key);
    const bool good =
        json.ReadHexWords(digits, out.data(), &count) && !json.NextKey(&key) && json.Finish();
    out.resize(good ? count : 0);
    return std::pair(good, out);
  };
  EXPECT_EQ(read("\"\"", 16), std::pair(true, std::vector<uint64_t>{}));
  EXPECT_EQ(read("\"0123456789abcdefFEDCBA9876543210\"", 16),
            std::pair(true, std::vector<uint64_t>{0xefcdab8967452301u, 0x1032547698badcfeu}));
  EXPECT_EQ(read("\"0123456789abcdef" + std::string(48, '0') + "\"", 64).second,
            std::vector<uint64_t>{0xefcdab8967452301u});
  EXPECT_FALSE(read("\"0123456789abcde\"", 16).first);
  EXPECT_FALSE(read("\"0123456789abcdeg\"", 16).first);
  EXPECT_FALSE(read("\"0123456789abcdef0\"", 16).first);
  EXPECT_FALSE(read("\"0123456789abcdef", 16).first);
  EXPECT_FALSE(read("7", 16).first);
  for (int c = 1; c < 256; ++c) {
    if (c == '"') continue;
    const std::string text = std::string("\"0123456789abcde") + static_cast<char>(c) + "\"";
    EXPECT_EQ(read(text, 16).first, std::isxdigit(c) != 0) << c;
  }
}

}  // namespace
}  // namespace flexkv::trace
