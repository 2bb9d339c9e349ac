#include "flexkv/storage/ssd/ssd_store.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_store_impl.h"

namespace flexkv {

using ssd::kPageBytes;
using ssd::Segment;
using ssd::SlotState;

namespace {

constexpr TimeNs kDrainStep = 100 * kNsPerMs;

// Of the files that the store makes; others in the directory are not its business.
uint64_t BytesOfStore(const std::vector<DiskFile>& files) {
  uint64_t bytes = 0;
  for (const DiskFile& file : files) {
    uint32_t segment = 0;
    bool is_log = false;
    const bool superblock =
        file.name == ssd::kSuperblockNames[0] || file.name == ssd::kSuperblockNames[1];
    if (superblock || ssd::ParseSegmentName(file.name, &segment, &is_log)) bytes += file.bytes;
  }
  return bytes;
}

}  // namespace

SsdStore::Impl::Impl(const Options& options, Disk* disk, const Clock* clock)
    : state(options, disk, clock), committer(&state, this), headers(disk->limits().queue_depth) {
  for (uint32_t i = 0; i < headers.pages(); ++i) unused_headers.push_back(i);
  headers_registered = disk->RegisterMemory(headers.span(0, headers.pages()));
}

SsdStore::Impl::~Impl() {
  committer.Stop();
  while (state.io.in_flight() > 0) state.io.Poll(kDrainStep);
  Disk* disk = state.io.disk();
  for (const auto& [id, segment] : state.segments) {
    if (segment->data_open) disk->Close(segment->data);
    if (segment->log_open) disk->Close(segment->log);
  }
  if (headers_registered) disk->UnregisterMemory(headers.page(0));
}

absl::Status SsdStore::Impl::Open() {
  Disk* disk = state.io.disk();
  absl::StatusOr<std::vector<DiskFile>> files = disk->List();
  if (!files.ok()) return files.status();
  if (absl::Status status = ssd::OpenSuperblocks(&state, *files); !status.ok()) return status;
  files = disk->List();  // the superblocks may be new
  if (!files.ok()) return files.status();
  state.stats.file_bytes = BytesOfStore(*files);
  recovered = ssd::RecoverSegments(&state, *files);
  return absl::OkStatus();
}

bool SsdStore::Impl::Accept() {
  if (ops >= state.options.max_queued_ops) return false;
  ++ops;
  return true;
}

void SsdStore::Impl::Finish(uint32_t segment, uint64_t tag, SsdOpKind kind, absl::Status status) {
  --ops;
  state.results.push_back({tag, kind, std::move(status)});
  state.result_segments.push_back(segment);
}

void SsdStore::Impl::FinishOn(Segment* segment, uint64_t tag, SsdOpKind kind, absl::Status status) {
  --segment->pending_ops;
  Finish(segment->id, tag, kind, std::move(status));
}

void SsdStore::Impl::Pump() {
  committer.Pump(writes_in_flight > 0 || !writes.empty());
  if (committer.has_waiting()) return;  // syncs and log pages go first: results wait for them
  while (!reads.empty() && StartRead(&reads.front())) reads.pop_front();
  if (!reads.empty()) return;
  while (!writes.empty() && StartWrite(&writes.front())) writes.pop_front();
}

absl::StatusOr<std::unique_ptr<SsdStore>> SsdStore::Open(const Options& options, Disk* disk,
                                                         const Clock* clock) {
  if (options.max_bytes < 2 * kPageBytes || options.max_inflight_bytes == 0 ||
      options.max_queued_ops == 0) {
    return absl::InvalidArgumentError("an option of the SSD store is out of range");
  }
  const DiskLimits& limits = disk->limits();
  if (limits.memory_align > kPageBytes || limits.offset_align > kPageBytes) {
    return absl::FailedPreconditionError(
        absl::StrCat("the device wants transfers aligned to ",
                     std::max(limits.memory_align, limits.offset_align), " bytes, not to 4096"));
  }
  auto impl = std::make_unique<Impl>(options, disk, clock);
  if (absl::Status status = impl->Open(); !status.ok()) return status;
  return std::unique_ptr<SsdStore>(new SsdStore(std::move(impl)));
}

SsdStore::SsdStore(std::unique_ptr<Impl> impl) : impl_(std::move(impl)) {}
SsdStore::~SsdStore() = default;

std::vector<RecoveredBlock> SsdStore::TakeRecovered() { return std::move(impl_->recovered); }

std::vector<std::pair<NamespaceDigest, uint32_t>> SsdStore::Epochs() const {
  return {impl_->state.epochs.begin(), impl_->state.epochs.end()};
}

absl::StatusOr<uint32_t> SsdStore::CreateSegment(const SsdShape& shape) {
  return ssd::CreateSegment(&impl_->state, shape);
}

absl::Status SsdStore::DropSegment(uint32_t segment) {
  return ssd::DropSegment(&impl_->state, segment);
}

std::vector<SsdSegmentInfo> SsdStore::segments() const {
  std::vector<SsdSegmentInfo> infos;
  for (const auto& [id, segment] : impl_->state.segments) infos.push_back(segment->Info());
  return infos;
}

bool SsdStore::SubmitWrite(SsdWrite op) {
  if (!impl_->Accept()) return false;
  impl_->AcceptWrite(std::move(op));
  return true;
}

bool SsdStore::SubmitRead(SsdRead op) {
  if (!impl_->Accept()) return false;
  impl_->AcceptRead(std::move(op));
  return true;
}

bool SsdStore::SubmitFree(uint64_t tag, SsdPlace place) {
  if (!impl_->Accept()) return false;
  impl_->AcceptFree(tag, place);
  return true;
}

bool SsdStore::SubmitRaiseEpoch(uint64_t tag, const NamespaceDigest& ns, uint32_t epoch) {
  if (!impl_->Accept()) return false;
  if (absl::Status status = impl_->state.CheckWritable(); !status.ok()) {
    impl_->Finish(0, tag, SsdOpKind::kRaiseEpoch, std::move(status));
  } else if (ssd::RaiseEpoch(ns, epoch, &impl_->state.epochs)) {
    impl_->committer.Raise({tag, ns, epoch});
  } else {
    impl_->Finish(0, tag, SsdOpKind::kRaiseEpoch,
                  absl::UnavailableError("too many namespaces have an epoch"));
  }
  return true;
}

void SsdStore::Poll(TimeNs timeout_ns, std::vector<SsdResult>* results) {
  Impl& impl = *impl_;
  impl.Pump();
  if (!impl.state.results.empty() || !impl.arrived.empty()) timeout_ns = 0;
  if (const std::optional<TimeNs> deadline = impl.committer.deadline()) {
    const TimeNs now = impl.state.clock->Now();
    timeout_ns = std::min(timeout_ns, *deadline > now ? *deadline - now : 0);
  }
  impl.state.io.Poll(timeout_ns);
  impl.Pump();
  impl.EndArrived();
  results->insert(results->end(), std::make_move_iterator(impl.state.results.begin()),
                  std::make_move_iterator(impl.state.results.end()));
  impl.state.results.clear();
  impl.state.result_segments.clear();
}

void SsdStore::Flush() {
  if (!idle()) impl_->committer.Flush();
}

bool SsdStore::idle() const { return impl_->ops == 0 && impl_->committer.idle(); }

SsdStoreStats SsdStore::stats() const {
  SsdStoreStats stats = impl_->state.stats;
  stats.queued_ops = impl_->ops;
  stats.inflight_bytes = impl_->state.io.in_flight_bytes();
  return stats;
}

absl::Status SsdStore::CheckInvariants() const {
  const Impl& impl = *impl_;
  uint64_t file_bytes = impl.state.options.read_only ? 0 : 2 * kPageBytes;  // else a copy may lack
  uint32_t pending = 0;
  for (const auto& [id, segment] : impl.state.segments) {
    if (absl::Status status = segment->slots.CheckInvariants(); !status.ok()) return status;
    const bool unreadable = segment->state == SegmentState::kUnreadable;
    if (!unreadable && segment->slots.size() != segment->shape.slots) {
      return absl::InternalError(absl::StrCat("segment ", id, " has another number of slots"));
    }
    const ssd::LogPosition& log = segment->position;
    if (log.appendable &&
        (log.next_page < 2 || log.next_page > segment->region_pages || log.epoch > log.max_epoch)) {
      return absl::InternalError(absl::StrCat("segment ", id, " appends outside of its region"));
    }
    file_bytes += segment->file_bytes();
    pending += segment->pending_ops;
  }
  if (pending > impl.ops) return absl::InternalError("segments have more ops than the store");
  if (impl.unused_headers.size() + impl.writes_in_flight != impl.headers.pages()) {
    return absl::InternalError("a header page is lost");
  }
  if (file_bytes > impl.state.stats.file_bytes) {
    return absl::InternalError("segments have more bytes than the store");
  }
  return absl::OkStatus();
}

}  // namespace flexkv
