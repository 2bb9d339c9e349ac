// The two ways to keep the metadata of committed blocks, behind one interface for the benchmark:
// our log per segment, and an embedded ordered store.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "flexkv/storage/ssd/ssd_format.h"

namespace flexkv::bench {

struct MetadataRecord {
  SsdPlace place;
  bool commit = true;  // false: the place was freed
  ssd::LogRecord record;
};

class MetadataStore {
 public:
  virtual ~MetadataStore() = default;
  virtual const char* name() const = 0;
  // Makes the files and fills every slot; need not be durable step by step.
  virtual void Fill(const std::vector<MetadataRecord>& records) = 0;
  // Durable when it returns.
  virtual void CommitGroup(std::span<const MetadataRecord> group) = 0;
  // Forgets all memory and reads everything back: the number of committed blocks.
  virtual uint64_t Load() = 0;
  virtual uint64_t file_bytes() const = 0;
};

std::unique_ptr<MetadataStore> MakeLogStore(const std::string& directory, uint32_t segments,
                                            uint32_t slots);
// Null where it was not built in.
std::unique_ptr<MetadataStore> MakeLmdbStore(const std::string& directory, uint64_t blocks);

// Ends the program with errno's text unless `holds`.
void Demand(bool holds, const char* what);

}  // namespace flexkv::bench
