#include "perf/ssd_metadata/metadata_store.h"

namespace flexkv::bench {

std::unique_ptr<MetadataStore> MakeLmdbStore(const std::string&, uint64_t) { return nullptr; }

}  // namespace flexkv::bench
