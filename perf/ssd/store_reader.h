// An SsdStore of its own in a directory of its own, filled once, read by the benchmark's thread.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "flexkv/base/clock.h"
#include "flexkv/storage/segment_store.h"
#include "flexkv/storage/ssd/ssd_store.h"
#include "perf/ssd/ssd_load.h"

namespace flexkv::bench {

// Memory as an arena of the daemon gets it, populated.
struct ArenaPiece {
  explicit ArenaPiece(size_t bytes);
  std::unique_ptr<MemfdSegmentStore> store;
  std::span<std::byte> span;
  PageKind pages = PageKind::kUnknown;
};

class StoreReader {
 public:
  // Makes `directory` and removes it at the end. As many blocks of `block_bytes` are written as
  // asked for, in order. `memory` (a multiple of block_bytes) takes what is read, one block a
  // place. Exits the program when something fails.
  StoreReader(const std::string& directory, size_t block_bytes, uint32_t blocks,
              std::span<std::byte> memory, bool threads);
  ~StoreReader();
  StoreReader(const StoreReader&) = delete;
  StoreReader& operator=(const StoreReader&) = delete;

  bool registered() const { return registered_; }
  // Opens the store again.
  void Reopen(bool verify_reads);
  // Reads the blocks that `next` names until it names none, as many at a time as memory has places.
  SsdRate Read(const std::function<std::optional<uint32_t>()>& next);

 private:
  SsdIdentity IdentityOf(uint32_t block) const;
  std::vector<std::span<std::byte>> Place(uint64_t index) const;
  void Fill();
  void Submit(uint32_t block, uint64_t place);

  const std::string directory_;
  const size_t block_bytes_;
  const uint32_t blocks_;
  const std::span<std::byte> memory_;
  SteadyClock clock_;
  std::unique_ptr<Disk> disk_;
  std::unique_ptr<SsdStore> store_;
  SsdStoreOptions options_;
  bool registered_ = false;
  uint32_t segment_ = 0;
};

}  // namespace flexkv::bench
