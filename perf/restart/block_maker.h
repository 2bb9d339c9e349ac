// Fills a directory of the SSD tier with committed blocks, through the store that the daemon uses.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "flexkv/storage/ssd/disk.h"
#include "flexkv/storage/ssd/ssd_store.h"

namespace flexkv::bench {

// Chains of one namespace: families that share a beginning (a system prompt, a long document), as
// an engine's prompts do.
struct FamilyShape {
  uint32_t trunk_blocks = 64;                  // shared by all of a family
  uint32_t branches = 12;                      // that go on from it
  uint32_t min_blocks = 32, max_blocks = 480;  // of a branch
};

struct MadeBlock {
  BlockHash hash, parent;
  uint32_t depth = 0;
};

// At least `count` blocks, each behind its parent, several branches mixed as engines store them;
// cut to `count`. The first family's trunk is BenchChain(first_chain, trunk_blocks).
std::vector<MadeBlock> MakeFamilies(const FamilyShape& shape, uint64_t first_chain, uint32_t count,
                                    uint64_t seed);

// Writes blocks of one namespace into new segments of at most `segment_bytes`.
class BlockMaker {
 public:
  // Exits the program when the directory cannot be opened.
  BlockMaker(const std::string& directory, uint64_t max_bytes);
  ~BlockMaker();
  BlockMaker(const BlockMaker&) = delete;
  BlockMaker& operator=(const BlockMaker&) = delete;

  // What is there.
  const std::vector<RecoveredBlock>& found() const { return found_; }
  std::vector<SsdSegmentInfo> segments() const { return store_->segments(); }
  // `identity` has namespace and epoch; progress goes to standard error.
  void Write(const std::vector<uint32_t>& shard_bytes, uint64_t segment_bytes,
             const SsdIdentity& identity, const std::vector<MadeBlock>& blocks);

 private:
  SteadyClock clock_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<SsdStore> store_;
  std::vector<RecoveredBlock> found_;
};

}  // namespace flexkv::bench
