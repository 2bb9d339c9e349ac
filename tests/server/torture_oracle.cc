#include "tests/server/torture_oracle.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "tests/support/content_oracle.h"

namespace flexkv {
namespace {

constexpr uint32_t kStems = 12;
constexpr uint32_t kStemBlocks = 4;

std::vector<std::vector<BlockHash>> MakeChains() {
  std::vector<std::vector<BlockHash>> chains;
  for (uint32_t doc = 0; doc < kTortureDocs; ++doc) {
    std::vector<BlockHash> chain = {HashFromNumber(1 + doc % kStems)};
    const uint32_t length = 2 + doc * 7 % (kTortureMaxBlocks - 1);
    while (chain.size() < length) {
      const uint64_t own = chain.size() < kStemBlocks ? 0 : 1000 + doc;
      chain.push_back(ChildHash(chain.back(), own));
    }
    chains.push_back(std::move(chain));
  }
  return chains;
}

}  // namespace

const std::vector<BlockHash>& TortureChain(uint32_t doc) {
  static const auto* chains = new std::vector<std::vector<BlockHash>>(MakeChains());
  return (*chains)[doc];
}

void Verdict::Fail(const std::string& what) {
  std::lock_guard<std::mutex> lock(mutex_);
  if (text_.empty()) text_ = what;
  failed_.store(true, std::memory_order_release);
}

std::string Verdict::text() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return text_;
}

void NamespaceOracle::BeginReset() {
  {
    std::lock_guard<std::mutex> lock(mutex_);
    committed_.clear();
  }
  ++newest_;
}

BlockHash NamespaceOracle::Key(const BlockHash& hash, uint32_t epoch) const {
  BlockHash key = hash;
  key.words[0] ^= HashFromNumber(number_).words[0];
  key.words[1] += epoch;
  return key;
}

void NamespaceOracle::Fill(const BlockHash& hash, uint32_t rank, uint64_t offset,
                           std::span<std::byte> out) const {
  FillContent(Key(hash, newest()), rank, out, offset);
}

std::optional<uint32_t> NamespaceOracle::EpochOf(const BlockHash& hash, uint32_t rank,
                                                 uint64_t offset, std::span<const std::byte> bytes,
                                                 uint32_t oldest, uint32_t newest) const {
  for (uint32_t epoch = newest; epoch >= oldest && epoch > 0; --epoch) {
    if (ContentMatches(Key(hash, epoch), rank, bytes, offset)) return epoch;
  }
  return std::nullopt;
}

std::string NamespaceOracle::Explain(const BlockHash& hash, uint32_t rank, uint64_t offset,
                                     std::span<const std::byte> bytes, uint32_t oldest,
                                     uint32_t newest) const {
  if (const auto epoch = EpochOf(hash, rank, offset, bytes, 1, oldest - 1)) {
    return absl::StrCat("bytes of epoch ", *epoch, ", and epoch ", oldest,
                        " began with a reset that was acknowledged");
  }
  if (std::all_of(bytes.begin(), bytes.end(), [&](std::byte b) { return b == bytes.front(); })) {
    return absl::StrCat("every byte is ", static_cast<int>(bytes.front()), ": nothing was copied");
  }
  const size_t wrong = FirstWrongByte(Key(hash, newest), rank, bytes, offset).value_or(0);
  return absl::StrCat("bytes of something else, the first wrong one at ", offset + wrong);
}

std::map<uint32_t, uint32_t> NamespaceOracle::committed() const {
  std::lock_guard<std::mutex> lock(mutex_);
  return committed_;
}

void NamespaceOracle::SetCommitted(uint32_t doc, uint32_t blocks) {
  std::lock_guard<std::mutex> lock(mutex_);
  committed_[doc] = blocks;
}

}  // namespace flexkv
