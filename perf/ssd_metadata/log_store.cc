// Our log per segment with the store's own code: PageBuilder and TurnOver write, RegionReplay
// reads.
#include <fcntl.h>
#include <unistd.h>

#include <map>

#include "absl/strings/str_cat.h"
#include "flexkv/base/unique_fd.h"
#include "flexkv/storage/ssd/ssd_log.h"
#include "flexkv/storage/ssd/ssd_replay.h"
#include "perf/ssd_metadata/metadata_store.h"

namespace flexkv::bench {
namespace {

using ssd::kPageBytes;

class LogStore : public MetadataStore {
 public:
  LogStore(const std::string& directory, uint32_t segments, uint32_t slots);
  const char* name() const override { return "log"; }
  void Fill(const std::vector<MetadataRecord>& records) override;
  void CommitGroup(std::span<const MetadataRecord> group) override;
  uint64_t Load() override;
  uint64_t file_bytes() const override {
    return segments_.size() * 2 * uint64_t{segments_.front().region_pages} * kPageBytes;
  }

 private:
  uint32_t FreePages(const ssd::Segment& segment) const {
    return segment.region_pages - segment.position.next_page;
  }
  void Run(size_t index, ssd::TurnOver turn_over);
  void Append(size_t index, std::span<const MetadataRecord> records, bool sync);

  const ssd::StoreId store_{1};
  std::vector<ssd::Segment> segments_;
  std::vector<UniqueFd> files_;
  ssd::EpochMap epochs_;
};

LogStore::LogStore(const std::string& directory, uint32_t segments, uint32_t slots) {
  segments_.resize(segments);
  for (uint32_t i = 0; i < segments; ++i) {
    ssd::Segment& segment = segments_[i];
    segment.id = i;
    segment.SetShape({.shard_bytes = {4096}, .slots = slots});
    segment.slots.Reset(slots, 0);
    const std::string path = absl::StrCat(directory, "/", ssd::LogName(i));
    unlink(path.c_str());
    files_.emplace_back(open(path.c_str(), O_RDWR | O_CREAT | O_DIRECT | O_CLOEXEC, 0600));
    Demand(files_.back().get() >= 0, "open");
    const auto bytes = static_cast<off_t>(2ull * segment.region_pages * kPageBytes);
    Demand(posix_fallocate(files_.back().get(), 0, bytes) == 0, "fallocate");
    Run(i, ssd::TurnOver(store_, &segment, epochs_));
  }
}

void LogStore::Run(size_t index, ssd::TurnOver turn_over) {
  const int file = files_[index].get();
  while (const auto io = turn_over.Next()) {
    const auto offset = static_cast<off_t>(io->offset);
    const auto bytes = static_cast<ssize_t>(io->memory.size());
    switch (io->kind) {
      case IoKind::kRead:
        Demand(pread(file, io->memory.data(), io->memory.size(), offset) == bytes, "pread");
        break;
      case IoKind::kWrite:
        Demand(pwrite(file, io->memory.data(), io->memory.size(), offset) == bytes, "pwrite");
        break;
      case IoKind::kSync:
        Demand(fdatasync(file) == 0, "fdatasync");
        break;
    }
    Demand(turn_over.Done(), "turn over");
  }
}

void LogStore::Append(size_t index, std::span<const MetadataRecord> records, bool sync) {
  ssd::Segment& segment = segments_[index];
  const auto pages = static_cast<uint32_t>(records.size() / ssd::kRecordsPerPage + 1);
  if (FreePages(segment) < pages) Run(index, ssd::TurnOver(store_, &segment, epochs_));
  ssd::PageBuilder builder(ssd::AppendPageId(store_, segment), pages);
  for (const MetadataRecord& entry : records) {
    builder.Add(entry.record);
    const auto state = entry.commit ? ssd::SlotState::kCommitted : ssd::SlotState::kFree;
    segment.slots.Write(entry.place.slot, state, entry.record.generation, 1, entry.record.checksum);
  }
  const auto bytes = builder.SealAll(/*last=*/false);
  const auto offset =
      segment.RegionOffset(segment.position.region) + uint64_t{builder.first_page()} * kPageBytes;
  Demand(pwrite(files_[index].get(), bytes.data(), bytes.size(), static_cast<off_t>(offset)) ==
             static_cast<ssize_t>(bytes.size()),
         "pwrite");
  if (sync) Demand(fdatasync(files_[index].get()) == 0, "fdatasync");
  segment.position.next_page = builder.next_page();
}

void LogStore::Fill(const std::vector<MetadataRecord>& records) {
  size_t at = 0;
  for (size_t i = 0; i < segments_.size(); ++i) {
    const size_t begin = at;
    while (at < records.size() && records[at].place.segment == i) ++at;
    Append(i, std::span(records).subspan(begin, at - begin), /*sync=*/false);
    Run(i, ssd::TurnOver(store_, &segments_[i], epochs_));
    // As in the long run: each segment is somewhere else on its way to the next turn-over.
    const uint64_t skip = FreePages(segments_[i]) * i / segments_.size();
    for (uint64_t page = 0; page < skip; ++page) {
      const MetadataRecord& any = records[begin];
      Append(i, {&any, 1}, /*sync=*/false);
    }
    Demand(fdatasync(files_[i].get()) == 0, "fdatasync");
  }
}

// A group lies in one segment, as groups of an open segment do.
void LogStore::CommitGroup(std::span<const MetadataRecord> group) {
  Append(group.front().place.segment, group, /*sync=*/true);
}

uint64_t LogStore::Load() {
  constexpr uint32_t kChunkPages = 256;
  ssd::PageBuffer buffer(kChunkPages);
  std::vector<RecoveredBlock> blocks;
  for (size_t i = 0; i < segments_.size(); ++i) {
    ssd::Segment& segment = segments_[i];
    ssd::SegmentImage image(&segment, UINT64_MAX, &blocks, &epochs_);
    ssd::RegionReplay replay(store_, segment, segment.position.epoch, &image);
    for (uint32_t page = 1; page < segment.region_pages && replay.wants_more();) {
      const uint32_t count = std::min(kChunkPages, segment.region_pages - page);
      const auto memory = buffer.span(0, count);
      const uint64_t offset =
          segment.RegionOffset(segment.position.region) + uint64_t{page} * kPageBytes;
      Demand(pread(files_[i].get(), memory.data(), memory.size(), static_cast<off_t>(offset)) ==
                 static_cast<ssize_t>(memory.size()),
             "pread");
      for (uint32_t at = 0; at < count && replay.wants_more(); ++at, ++page) {
        replay.Feed(buffer.page(at));
      }
    }
    Demand(replay.verdict() == ssd::RegionVerdict::kGood, "replay");
    image.Compact();
  }
  return blocks.size();
}

}  // namespace

std::unique_ptr<MetadataStore> MakeLogStore(const std::string& directory, uint32_t segments,
                                            uint32_t slots) {
  return std::make_unique<LogStore>(directory, segments, slots);
}

}  // namespace flexkv::bench
