// The inside of ssd_verify.h: one directory, its store, and what was found out of each block.
// ssd_scrub.cc reads, ssd_repair.cc repairs, ssd_verify.cc takes the directories together.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flexkv/storage/ssd/ssd_io.h"
#include "flexkv/storage/ssd/ssd_store.h"
#include "flexkv/storage/ssd/ssd_verify.h"

namespace flexkv::ssd {

enum class Verdict : uint8_t { kUnread, kGood, kCorrupt, kUnreadable, kOrphan, kDuplicate };

// Memory for blocks of one shape after the other, each with room for all its shards.
class BlockMemory {
 public:
  // Room for as many blocks as fit into `bytes`, 1 at least and `most` at most.
  void Reset(Disk* disk, const SsdShape& shape, uint64_t bytes, uint32_t most);
  void Release();  // REQUIRES: no transfer uses it
  uint32_t count() const { return count_; }
  std::vector<std::span<std::byte>> Shards(uint32_t block) const;

 private:
  Disk* registered_with_ = nullptr;
  SsdShape shape_;
  uint64_t block_pages_ = 0;
  uint32_t count_ = 0;
  PageBuffer pages_;
};

class Scrub {
 public:
  Scrub(const SsdVerifyOptions& options, std::string directory);
  ~Scrub();

  absl::Status Open();  // locks, recovers, counts what is not a block
  uint64_t total_bytes() const { return total_bytes_; }
  // Reads all blocks. `tick` is called after each wait with the bytes read since; false ends it.
  // False: ended early.
  bool ReadBlocks(const std::function<bool(uint64_t bytes)>& tick);
  std::vector<RecoveredBlock>& blocks() { return blocks_; }
  std::vector<Verdict>& verdicts() { return verdicts_; }
  void CountVerdicts();
  // Makes the directory one that verifies. REQUIRES: opened with options.repair.
  void Repair();

  uint64_t bad_blocks() const { return bad_blocks_; }
  SsdDirectoryReport report;

 private:
  absl::Status OpenDisk();
  absl::Status OpenStore(const SsdStoreOptions& options);
  void CountSegments();
  bool NeedsRepair() const;
  void StartReads();
  uint64_t EndReads();
  const SsdShape* ShapeOf(size_t block) const;
  uint64_t BytesOf(size_t block) const;

  // ssd_repair.cc
  void FreeBlocks();
  void ReplaceSegments();
  uint64_t MoveBlocks(uint32_t source, uint32_t target, const SsdShape& shape);
  uint64_t MoveBatch(std::span<const size_t> batch, uint32_t target);
  void Drop(uint32_t segment);
  std::vector<SsdResult> Drain();
  void Fail(const absl::Status& status);

  const SsdVerifyOptions& options_;
  SteadyClock clock_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<SsdStore> store_;
  std::map<uint32_t, SsdSegmentInfo> segments_;
  std::vector<RecoveredBlock> blocks_;  // by place
  std::vector<Verdict> verdicts_;
  uint64_t total_bytes_ = 0;
  uint64_t bad_blocks_ = 0;
  // Of ReadBlocks.
  BlockMemory memory_;
  std::vector<uint32_t> unused_;  // blocks of memory_
  std::vector<size_t> reading_;   // by block of memory_: index of the block being read into it
  size_t next_ = 0;
  uint32_t in_flight_ = 0;
  std::vector<SsdResult> results_;
};

}  // namespace flexkv::ssd
