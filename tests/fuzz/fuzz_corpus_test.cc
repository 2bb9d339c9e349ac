// The fuzz targets without a fuzzer: the corpus, and some thousand seeded mutations of it.
#include <string>

#include "gtest/gtest.h"
#include "tests/fuzz/fuzz_targets.h"
#include "tests/support/test_seed.h"

namespace flexkv {
namespace {

constexpr int kMutations = 5000;

FuzzInput Bytes(const std::string& text) { return std::as_bytes(std::span(text)); }

std::string Mutate(std::string text, TestRng* rng) {
  for (uint64_t i = 0; i <= rng->Below(6); ++i) {
    const size_t place = text.empty() ? 0 : rng->Below(text.size());
    switch (rng->Below(5)) {
      case 0:
        if (!text.empty()) text[place] = static_cast<char>(rng->Next());
        break;
      case 1:
        text.insert(place, 1, static_cast<char>(rng->Next()));
        break;
      case 2:
        text.erase(place, rng->Below(8));
        break;
      case 3:
        text.insert(place, text.substr(place, rng->Below(64)));
        break;
      default:
        if (!text.empty()) text[place] = static_cast<char>(text[place] ^ (1 << rng->Below(8)));
    }
  }
  if (text.size() > 8192) text.resize(8192);
  return text;
}

class FuzzCorpusTest : public testing::TestWithParam<FuzzTarget> {};

TEST_P(FuzzCorpusTest, CorpusAndMutations) {
  const FuzzTarget& target = GetParam();
  const std::vector<std::string> corpus = target.corpus();
  for (const std::string& text : corpus) target.run(Bytes(text));
  TestRng rng(TestSeed());
  std::vector<std::string> grown = corpus;
  for (int i = 0; i < kMutations; ++i) {
    std::string& text = grown[rng.Below(grown.size())];
    std::string mutated = Mutate(text, &rng);
    target.run(Bytes(mutated));
    if (rng.OneIn(20)) text = std::move(mutated);  // drift away from the corpus
    if (rng.OneIn(200)) grown = corpus;            // and start afresh
  }
}

INSTANTIATE_TEST_SUITE_P(Device, FuzzCorpusTest,
                         testing::ValuesIn(DeviceFuzzTargets().begin(), DeviceFuzzTargets().end()),
                         [](const auto& target) { return std::string(target.param.name); });
INSTANTIATE_TEST_SUITE_P(Ssd, FuzzCorpusTest,
                         testing::ValuesIn(SsdFuzzTargets().begin(), SsdFuzzTargets().end()),
                         [](const auto& target) { return std::string(target.param.name); });
INSTANTIATE_TEST_SUITE_P(Trace, FuzzCorpusTest,
                         testing::ValuesIn(TraceFuzzTargets().begin(), TraceFuzzTargets().end()),
                         [](const auto& target) { return std::string(target.param.name); });
INSTANTIATE_TEST_SUITE_P(All, FuzzCorpusTest,
                         testing::ValuesIn(FuzzTargets().begin(), FuzzTargets().end()),
                         [](const auto& target) { return std::string(target.param.name); });

}  // namespace
}  // namespace flexkv
