// Blocks are read in the order of their places, as many at a time as the memory holds: the device
// sees its whole queue depth and nearly sequential offsets.
#include "flexkv/storage/ssd/ssd_scrub.h"

#include <algorithm>
#include <filesystem>
#include <limits>
#include <utility>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv::ssd {
namespace {

constexpr TimeNs kTickNs = 20 * kNsPerMs;
constexpr uint32_t kMostReads = 1024;  // the device's queue bounds them further

// Looked for before anything is locked: that would leave a file in a directory of somebody else.
bool IsWithoutStore(const std::string& directory) {
  std::error_code error;
  std::filesystem::directory_iterator it(directory, error);
  if (error) return false;  // why, opening it will say
  for (const std::filesystem::directory_iterator end; it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    uint32_t segment = 0;
    bool is_log = false;
    if (name == kSuperblockNames[0] || name == kSuperblockNames[1] ||
        ParseSegmentName(name, &segment, &is_log)) {
      return false;
    }
  }
  return !error;
}

absl::Status InDirectory(const absl::Status& status, const std::string& directory) {
  if (status.ok() || absl::StrContains(status.message(), directory)) return status;
  return absl::Status(status.code(), absl::StrCat(directory, ": ", status.message()));
}

}  // namespace

void BlockMemory::Reset(Disk* disk, const SsdShape& shape, uint64_t bytes, uint32_t most) {
  Release();
  shape_ = shape;
  block_pages_ = shape.record_bytes() / kPageBytes - 1;
  count_ =
      static_cast<uint32_t>(std::clamp<uint64_t>(bytes / (block_pages_ * kPageBytes), 1, most));
  pages_ = PageBuffer(count_ * block_pages_);
  if (disk->RegisterMemory(pages_.span(0, pages_.pages()))) registered_with_ = disk;
}

void BlockMemory::Release() {
  if (registered_with_ != nullptr) registered_with_->UnregisterMemory(pages_.page(0));
  registered_with_ = nullptr;
  count_ = 0;
  pages_ = PageBuffer();
}

std::vector<std::span<std::byte>> BlockMemory::Shards(uint32_t block) const {
  std::vector<std::span<std::byte>> shards;
  size_t page = block * block_pages_;
  for (const uint32_t bytes : shape_.shard_bytes) {
    const size_t pages = RoundUpToPage(bytes) / kPageBytes;
    shards.push_back(pages_.span(page, pages));
    page += pages;
  }
  return shards;
}

Scrub::Scrub(const SsdVerifyOptions& options, std::string directory) : options_(options) {
  report.directory = std::move(directory);
}

Scrub::~Scrub() {
  store_.reset();  // waits for its transfers
  if (disk_ != nullptr) memory_.Release();
}

absl::Status Scrub::OpenDisk() {
  DirectoryDiskOptions options;
  options.directory = report.directory;
  options.queue_depth = options_.queue_depth;
  options.threads = std::clamp(options_.queue_depth, 1u, 64u);
  options.direct = false;  // the bytes are the same; who chose the place had a reason
  options.lock_wait_ns = options_.lock_wait_ns;
  options.read_only = !options_.repair;
  absl::StatusOr<std::unique_ptr<Disk>> disk = absl::UnavailableError("");
  if (!options_.use_threads) disk = MakeUringDisk(options);
  if (absl::IsUnavailable(disk.status())) disk = MakeThreadDisk(options);
  if (!disk.ok()) return disk.status();
  disk_ = *std::move(disk);
  return absl::OkStatus();
}

absl::Status Scrub::OpenStore(const SsdStoreOptions& given) {
  SsdStoreOptions options = given;
  options.max_bytes = std::numeric_limits<uint64_t>::max();  // the daemon's quota is not known here
  options.max_inflight_bytes = options_.max_inflight_bytes;
  absl::StatusOr<std::unique_ptr<SsdStore>> store = SsdStore::Open(options, disk_.get(), &clock_);
  if (!store.ok()) return InDirectory(store.status(), report.directory);
  store_ = *std::move(store);
  segments_.clear();
  for (SsdSegmentInfo& info : store_->segments()) segments_.emplace(info.id, std::move(info));
  return absl::OkStatus();
}

absl::Status Scrub::Open() {
  if (IsWithoutStore(report.directory)) {
    return absl::NotFoundError(absl::StrCat(report.directory, " is no SSD cache of FlexKV"));
  }
  if (absl::Status status = OpenDisk(); !status.ok()) return status;
  SsdStoreOptions options;
  options.read_only = true;
  if (absl::Status status = OpenStore(options); !status.ok()) return status;
  blocks_ = store_->TakeRecovered();
  verdicts_.assign(blocks_.size(), Verdict::kUnread);
  for (size_t i = 0; i < blocks_.size(); ++i) total_bytes_ += BytesOf(i);
  CountSegments();
  return absl::OkStatus();
}

void Scrub::CountSegments() {
  for (const auto& [id, segment] : segments_) {
    switch (segment.state) {
      case SegmentState::kOpen:
        ++report.open_segments;
        break;
      case SegmentState::kRetired:  // by nothing but a data file of another size, so far
        ++report.cut_segments;
        break;
      case SegmentState::kUnreadable:
        ++report.unreadable_segments;
        break;
    }
    if (segment.rebuilt && segment.state == SegmentState::kOpen) ++report.rebuilt_segments;
    report.damaged_records += segment.damaged_records;
    report.quarantined_slots += segment.quarantined;
  }
  const SsdStoreStats stats = store_->stats();
  report.bad_superblocks = stats.bad_superblocks;
  report.leftover_files = stats.leftover_files;
  report.file_bytes = stats.file_bytes;
  for (const auto& [ns, epoch] : store_->Epochs()) {
    ++report.namespaces;
    report.highest_epoch = std::max(report.highest_epoch, epoch);
  }
}

const SsdShape* Scrub::ShapeOf(size_t block) const {
  return &segments_.at(blocks_[block].place.segment).shape;
}

uint64_t Scrub::BytesOf(size_t block) const { return ShapeOf(block)->record_bytes() - kPageBytes; }

void Scrub::StartReads() {
  while (next_ < blocks_.size()) {
    const SsdShape* shape = ShapeOf(next_);
    const bool fits = next_ > 0 && shape->shard_bytes == ShapeOf(next_ - 1)->shard_bytes;
    if (!fits && in_flight_ > 0) return;  // another shape: when all reads of the last one ended
    if (!fits) {
      memory_.Reset(disk_.get(), *shape, options_.max_inflight_bytes, kMostReads);
      reading_.assign(memory_.count(), 0);
      unused_.clear();
      for (uint32_t i = memory_.count(); i-- > 0;) unused_.push_back(i);
    }
    if (unused_.empty()) return;
    const uint32_t place = unused_.back();
    const RecoveredBlock& block = blocks_[next_];
    if (!store_->SubmitRead({place, block.place, block.identity, memory_.Shards(place)})) return;
    unused_.pop_back();
    reading_[place] = next_++;
    ++in_flight_;
  }
}

uint64_t Scrub::EndReads() {
  uint64_t bytes = 0;
  for (const SsdResult& result : results_) {
    const auto place = static_cast<uint32_t>(result.tag);
    const size_t block = reading_[place];
    unused_.push_back(place);
    --in_flight_;
    bytes += BytesOf(block);
    if (result.status.ok()) {
      verdicts_[block] = Verdict::kGood;
      continue;
    }
    ++bad_blocks_;
    verdicts_[block] = absl::IsDataLoss(result.status) ? Verdict::kCorrupt : Verdict::kUnreadable;
  }
  results_.clear();
  return bytes;
}

bool Scrub::ReadBlocks(const std::function<bool(uint64_t bytes)>& tick) {
  bool going_on = true;
  while (in_flight_ > 0 || (going_on && next_ < blocks_.size())) {
    if (going_on) StartReads();
    store_->Poll(kTickNs, &results_);
    const uint64_t bytes = EndReads();
    report.read_bytes += bytes;
    if (going_on) going_on = tick(bytes);
  }
  memory_.Release();
  unused_.clear();
  return going_on;
}

void Scrub::CountVerdicts() {
  const auto count = [this](Verdict verdict) {
    return static_cast<uint64_t>(std::count(verdicts_.begin(), verdicts_.end(), verdict));
  };
  report.orphans = count(Verdict::kOrphan);
  report.duplicates = count(Verdict::kDuplicate);
  report.good_blocks = count(Verdict::kGood) + report.orphans + report.duplicates;
  report.corrupt_blocks = count(Verdict::kCorrupt);
  report.unreadable_blocks = count(Verdict::kUnreadable);
  report.unread_blocks = count(Verdict::kUnread);
}

}  // namespace flexkv::ssd
