#include "tests/support/sim_disk.h"

#include <algorithm>
#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"
#include "flexkv/base/units.h"

namespace flexkv {
namespace {

constexpr TimeNs kPollCost = kNsPerUs;
constexpr uint64_t kSectorsPerPage = SimDisk::kPage / SimDisk::kSector;

}  // namespace

SimDisk::SimDisk(const SimDiskOptions& options)
    : options_(options),
      rng_(options.seed),
      clock_(options.clock != nullptr ? options.clock : &own_clock_) {
  limits_.queue_depth = options.queue_depth;
}

void SimDisk::Violate(const std::string& what) {
  if (violation_.empty()) violation_ = what;
}

SimDisk::PageRef SimDisk::Find(const PageMap& pages, uint64_t index) {
  auto it = pages.find(index);
  return it == pages.end() ? nullptr : it->second;
}

// --- names --------------------------------------------------------------------------------------

uint64_t SimDisk::UsedBytes() const {
  uint64_t used = 0;
  for (const auto& [name, file] : files_) used += file.bytes;
  return used;
}

absl::StatusOr<FileId> SimDisk::Open(const std::string& name) {
  if (off_) return absl::UnavailableError("the disk is off");
  if (files_.count(name) == 0) return absl::NotFoundError(absl::StrCat("no file ", name));
  handles_[next_file_] = name;
  return next_file_++;
}

absl::StatusOr<FileId> SimDisk::Create(const std::string& name, uint64_t bytes) {
  if (off_) return absl::UnavailableError("the disk is off");
  if (files_.count(name) > 0) return absl::AlreadyExistsError(absl::StrCat(name, " exists"));
  const uint64_t used = UsedBytes();
  const bool told = failing_creates_ > 0 && failing_creates_-- > 0;
  const bool unlucky = odds_.create_enospc > 0 && rng_.OneIn(odds_.create_enospc);
  if (told || unlucky || used > options_.capacity_bytes || bytes > options_.capacity_bytes - used) {
    if (told || unlucky) ++faults_;
    return absl::ResourceExhaustedError(absl::StrCat("no space for ", name));
  }
  pending_create_ = name;
  pending_bytes_ = bytes;
  Observe();
  pending_create_.clear();
  files_[name].bytes = bytes;
  Observe();
  return Open(name);
}

void SimDisk::Close(FileId file) {
  for (const Op& op : ops_) {
    if (op.file == file && !op.orphan) Violate("Close under a transfer");
  }
  handles_.erase(file);
}

absl::Status SimDisk::Remove(const std::string& name) {
  if (off_) return absl::UnavailableError("the disk is off");
  if (files_.count(name) == 0) return absl::NotFoundError(absl::StrCat("no file ", name));
  pending_remove_ = name;
  Observe();
  pending_remove_.clear();
  files_.erase(name);
  Observe();
  return absl::OkStatus();
}

absl::StatusOr<std::vector<DiskFile>> SimDisk::List() {
  std::vector<DiskFile> list;
  for (const auto& [name, file] : files_) list.push_back({name, file.bytes});
  // Directories have no order.
  for (size_t i = list.size(); i > 1; --i) std::swap(list[i - 1], list[rng_.Below(i)]);
  return list;
}

absl::StatusOr<uint64_t> SimDisk::FreeBytes() {
  const uint64_t used = UsedBytes();
  return used > options_.capacity_bytes ? 0 : options_.capacity_bytes - used;
}

bool SimDisk::RegisterMemory(std::span<std::byte> memory) {
  if (!options_.registers_memory) return false;
  registered_.push_back(memory);
  return true;
}

void SimDisk::UnregisterMemory(const std::byte* memory) {
  for (const Op& op : ops_) {
    for (const iovec& slice : op.slices) {
      if (slice.iov_base == memory) Violate("UnregisterMemory under a transfer");
    }
  }
  std::erase_if(registered_, [&](const auto& piece) { return piece.data() == memory; });
}

// --- transfers ----------------------------------------------------------------------------------

bool SimDisk::WellFormed(const Op& op) const {
  if (op.kind == IoKind::kSync) return op.slices.empty();
  if (op.offset % limits_.offset_align != 0 || op.bytes == 0) return false;
  auto file = files_.find(op.name);
  const bool beyond = file != files_.end() && op.offset + op.bytes > file->second.bytes;
  if (op.kind == IoKind::kWrite && beyond) return false;
  return std::all_of(op.slices.begin(), op.slices.end(), [&](const iovec& slice) {
    return reinterpret_cast<uintptr_t>(slice.iov_base) % limits_.memory_align == 0 &&
           slice.iov_len % limits_.offset_align == 0;
  });
}

// Two transfers of one place at a time, one of them a write: a real disk gives anything.
void SimDisk::CheckOverlap(const Op& op) {
  if (op.kind == IoKind::kSync) return;
  for (const Op& other : ops_) {
    if (other.kind == IoKind::kSync || other.orphan || other.name != op.name) continue;
    if (op.kind == IoKind::kRead && other.kind == IoKind::kRead) continue;
    if (op.offset < other.offset + other.bytes && other.offset < op.offset + op.bytes) {
      Violate(absl::StrCat("overlapping transfers of ", op.name, " at ", op.offset));
    }
  }
}

SimFault SimDisk::ChooseFault(const Op& op) {
  for (SimRule& rule : rules_) {
    if (rule.kind.has_value() && *rule.kind != op.kind) continue;
    if (op.name.find(rule.name_part) == std::string::npos) continue;
    if (rule.skip > 0) {
      --rule.skip;
      continue;
    }
    if (rule.count == 0) continue;
    --rule.count;
    return rule.fault;
  }
  const auto unlucky = [&](uint32_t odds) { return odds > 0 && rng_.OneIn(odds); };
  if (op.kind == IoKind::kSync) return unlucky(odds_.sync_error) ? SimFault::kEio : SimFault::kNone;
  if (unlucky(odds_.short_transfer)) return SimFault::kShort;
  if (unlucky(odds_.eio)) return SimFault::kEio;
  if (op.kind == IoKind::kWrite && unlucky(odds_.enospc)) return SimFault::kEnospc;
  if (unlucky(odds_.bit_flip)) return SimFault::kBitFlip;
  if (unlucky(odds_.misdirect)) return SimFault::kMisdirect;
  if (unlucky(odds_.stale)) return SimFault::kStale;
  if (unlucky(odds_.slow)) return SimFault::kSlow;
  return SimFault::kNone;
}

std::vector<SimDisk::PageRef> SimDisk::PagesOf(std::span<const iovec> slices, uint64_t bytes) {
  std::vector<PageRef> pages;
  pages.reserve(bytes / kPage);
  for (const iovec& slice : slices) {
    for (uint64_t at = 0; at < slice.iov_len; at += kPage) {
      auto page = std::make_shared<Page>();
      std::memcpy(page->bytes, static_cast<const std::byte*>(slice.iov_base) + at, kPage);
      pages.push_back(std::move(page));
    }
  }
  return pages;
}

bool SimDisk::Submit(const IoRequest& request) {
  if (ops_.size() >= limits_.queue_depth) return false;
  if (!ops_.empty() && odds_.busy > 0 && rng_.OneIn(odds_.busy)) return false;
  Op op{.tag = request.tag, .kind = request.kind, .file = request.file, .offset = request.offset};
  op.slices.assign(request.slices.begin(), request.slices.end());
  for (const iovec& slice : op.slices) op.bytes += slice.iov_len;
  const TimeNs spread = options_.max_delay_ns - options_.min_delay_ns + 1;
  op.ready_at = Now() + options_.min_delay_ns + rng_.Below(spread);
  auto handle = handles_.find(request.file);
  if (off_) {
    op.orphan = true;
  } else if (handle == handles_.end()) {
    op.result = -EBADF;
  } else if (op.name = handle->second; !WellFormed(op)) {
    op.result = -EINVAL;
  } else {
    CheckOverlap(op);
    op.fault = ChooseFault(op);
    op.covered = sequence_;
    if (op.fault == SimFault::kSlow) op.ready_at += options_.slow_ns;
    if (op.kind == IoKind::kWrite) op.pages = PagesOf(op.slices, op.bytes);
    if (op.kind == IoKind::kRead) {  // whoever looks too early sees this
      for (const iovec& slice : op.slices) std::memset(slice.iov_base, 0xA5, slice.iov_len);
    }
  }
  ++transfers_;
  ops_.push_back(std::move(op));
  Observe();
  return true;
}

const SimDisk::Op* SimDisk::Next() const {
  auto first = std::min_element(ops_.begin(), ops_.end(),
                                [](const Op& a, const Op& b) { return a.ready_at < b.ready_at; });
  return first == ops_.end() ? nullptr : &*first;
}

bool SimDisk::DeliverReady(std::vector<IoResult>* results) {
  bool any = false;
  for (const Op* next = Next(); next != nullptr && next->ready_at <= Now(); next = Next()) {
    auto it = std::find_if(ops_.begin(), ops_.end(), [&](const Op& op) { return &op == next; });
    Op op = std::move(*it);
    ops_.erase(it);
    const int64_t result = Finish(&op);
    if (result < 0) ++stats_.errors;
    Observe();
    results->push_back({op.tag, result});
    any = true;
  }
  return any;
}

void SimDisk::Poll(TimeNs timeout_ns, std::vector<IoResult>* results) {
  clock_->Advance(kPollCost);
  const bool woken = woken_.exchange(false, std::memory_order_relaxed);
  if (DeliverReady(results) || timeout_ns == 0 || woken) return;
  const Op* next = Next();
  const TimeNs wait = next != nullptr ? next->ready_at - Now() : kNsPerSecond;
  clock_->Advance(std::min(wait, timeout_ns));
  DeliverReady(results);
}

int64_t SimDisk::Finish(Op* op) {
  if (op->orphan) return -EIO;
  if (op->result != 0) return op->result;
  if (files_.count(op->name) == 0) return -EBADF;
  if (op->fault != SimFault::kNone) ++faults_;
  switch (op->kind) {
    case IoKind::kRead:
      ++stats_.reads;
      return FinishRead(*op);
    case IoKind::kWrite:
      ++stats_.writes;
      return FinishWrite(op);
    case IoKind::kSync:
      ++stats_.syncs;
      return FinishSync(*op);
  }
  return -EINVAL;
}

int64_t SimDisk::FinishRead(const Op& op) {
  if (op.fault == SimFault::kEio || op.fault == SimFault::kEnospc) return -EIO;
  const File* file = &files_.at(op.name);
  uint64_t offset = op.offset;
  if (op.fault == SimFault::kMisdirect) {  // another place, often the start of another record
    const uint64_t step = rng_.OneIn(2) ? op.bytes : kPage;
    offset = rng_.Below(std::max<uint64_t>(file->bytes / step, 1)) * step;
    if (offset == op.offset) offset += step;
  }
  uint64_t length = op.offset >= file->bytes ? 0 : std::min(op.bytes, file->bytes - op.offset);
  if (op.fault == SimFault::kShort) length = rng_.Below(length / kSector + 1) * kSector;
  if (op.fault == SimFault::kShort && length == op.bytes) length -= kSector;
  uint64_t done = 0;
  for (const iovec& slice : op.slices) {
    for (uint64_t at = 0; at < slice.iov_len && done < length; at += kPage) {
      const uint64_t index = (offset + done) / kPage;
      PageRef page = Find(file->cached, index);
      if (op.fault == SimFault::kStale) page = Find(file->previous, index);
      const uint64_t count = std::min(kPage, length - done);
      auto* target = static_cast<std::byte*>(slice.iov_base) + at;
      page == nullptr ? std::memset(target, 0, count) : std::memcpy(target, page->bytes, count);
      done += count;
    }
  }
  if (op.fault == SimFault::kBitFlip && length > 0) {
    uint64_t bit = rng_.Below(length * 8);
    for (const iovec& slice : op.slices) {
      if (bit / 8 < slice.iov_len) {
        static_cast<std::byte*>(slice.iov_base)[bit / 8] ^= std::byte{1} << (bit % 8);
        break;
      }
      bit -= slice.iov_len * 8;
    }
  }
  stats_.read_bytes += length;
  return static_cast<int64_t>(length);
}

void SimDisk::CheckUnchanged(const Op& op) {
  size_t page = 0;
  for (const iovec& slice : op.slices) {
    for (uint64_t at = 0; at < slice.iov_len; at += kPage, ++page) {
      const auto* now = static_cast<const std::byte*>(slice.iov_base) + at;
      if (std::memcmp(now, op.pages[page]->bytes, kPage) != 0) {
        Violate(absl::StrCat("buffer changed under a write to ", op.name, " at ", op.offset));
        return;
      }
    }
  }
}

SimDisk::PageRef SimDisk::Mix(const PageRef& old, const PageRef& fresh,
                              const std::function<bool(uint64_t)>& keep) {
  auto page = std::make_shared<Page>();
  for (uint64_t sector = 0; sector < kSectorsPerPage; ++sector) {
    const PageRef& source = keep(sector) ? fresh : old;
    std::byte* target = page->bytes + sector * kSector;
    if (source == nullptr) {
      std::memset(target, 0, kSector);
    } else {
      std::memcpy(target, source->bytes + sector * kSector, kSector);
    }
  }
  return page;
}

void SimDisk::Land(File* file, uint64_t first_page, std::vector<PageRef> pages) {
  for (size_t i = 0; i < pages.size(); ++i) {
    PageRef& cached = file->cached[first_page + i];
    file->previous[first_page + i] = std::move(cached);
    cached = pages[i];
  }
  file->unsynced.push_back({++sequence_, first_page, std::move(pages)});
}

int64_t SimDisk::FinishWrite(Op* op) {
  CheckUnchanged(*op);
  File* file = &files_.at(op->name);
  uint64_t first_page = op->offset / kPage;
  const uint64_t sectors = op->bytes / kSector;
  int64_t result = static_cast<int64_t>(op->bytes);
  switch (op->fault) {
    case SimFault::kNone:
    case SimFault::kSlow:
      break;
    case SimFault::kEnospc:
      return -ENOSPC;
    case SimFault::kStale:
      return result;
    case SimFault::kMisdirect:
      first_page = rng_.Below(file->bytes / kPage - op->pages.size() + 1);
      break;
    case SimFault::kBitFlip: {
      const uint64_t bit = rng_.Below(op->bytes * 8);
      auto page = std::make_shared<Page>(*op->pages[bit / 8 / kPage]);
      page->bytes[bit / 8 % kPage] ^= std::byte{1} << (bit % 8);
      op->pages[bit / 8 / kPage] = std::move(page);
      break;
    }
    case SimFault::kShort:
    case SimFault::kEio: {
      const uint64_t landed = rng_.Below(sectors);
      for (size_t i = 0; i < op->pages.size(); ++i) {
        op->pages[i] = Mix(Find(file->cached, first_page + i), op->pages[i],
                           [&](uint64_t sector) { return i * kSectorsPerPage + sector < landed; });
      }
      result = op->fault == SimFault::kEio ? -EIO : static_cast<int64_t>(landed * kSector);
      break;
    }
  }
  Land(file, first_page, std::move(op->pages));
  if (result > 0) stats_.written_bytes += static_cast<uint64_t>(result);
  return result;
}

// A sync that fails leaves pages that look clean: no later sync writes them, reads may see them or
// not, a crash takes them.
int64_t SimDisk::FinishSync(const Op& op) {
  File* file = &files_.at(op.name);
  const bool fails = op.fault != SimFault::kNone && op.fault != SimFault::kSlow;
  const bool evicted = fails && rng_.OneIn(2);
  auto rest = std::find_if(file->unsynced.begin(), file->unsynced.end(),
                           [&](const Write& write) { return write.sequence > op.covered; });
  for (auto write = file->unsynced.begin(); write != rest; ++write) {
    for (size_t i = 0; i < write->pages.size(); ++i) {
      const uint64_t index = write->first_page + i;
      if (!fails) file->durable[index] = write->pages[i];
      if (evicted) file->cached[index] = Find(file->durable, index);
    }
  }
  for (auto write = rest; evicted && write != file->unsynced.end(); ++write) {
    for (size_t i = 0; i < write->pages.size(); ++i) {
      file->cached[write->first_page + i] = write->pages[i];
    }
  }
  file->unsynced.erase(file->unsynced.begin(), rest);
  return !fails ? 0 : op.fault == SimFault::kEnospc ? -ENOSPC : -EIO;
}

// --- crashes ------------------------------------------------------------------------------------

// `writes` in the order in which they were made. How much survives is drawn once per file and
// crash, so that "all but one" and "almost nothing" are as likely as half.
void SimDisk::Survive(File* file, std::vector<const Write*> writes, CrashMode mode, TestRng* rng) {
  const uint64_t keep_of_8 = rng->Below(9);
  if (mode == CrashMode::kReorder && writes.size() > 1) {
    const size_t split = rng->Below(writes.size());  // earlier ones: mostly gone
    std::vector<const Write*> kept;
    for (size_t i = 0; i < writes.size(); ++i) {
      if (i >= split ? !rng->OneIn(8) : rng->OneIn(8)) kept.push_back(writes[i]);
    }
    for (size_t i = kept.size(); i > 1; --i) std::swap(kept[i - 1], kept[rng->Below(i)]);
    writes = std::move(kept);
  }
  for (const Write* write : writes) {
    if (mode == CrashMode::kDrop && rng->Below(8) >= keep_of_8) continue;
    // A tear: a prefix, a suffix, or any sectors.
    const uint64_t sectors = write->pages.size() * kSectorsPerPage;
    const uint64_t cut = rng->Below(sectors + 1);
    const uint64_t shape = rng->Below(3);
    for (size_t i = 0; i < write->pages.size(); ++i) {
      PageRef& page = file->durable[write->first_page + i];
      if (mode != CrashMode::kTear) {
        page = write->pages[i];
        continue;
      }
      page = Mix(page, write->pages[i], [&](uint64_t sector) {
        const uint64_t at = i * kSectorsPerPage + sector;
        return shape == 0 ? at < cut : shape == 1 ? at >= cut : rng->Below(8) < keep_of_8;
      });
    }
  }
}

void SimDisk::CopyFiles(const SimDisk& from, std::optional<CrashMode> mode, TestRng* rng) {
  std::map<std::string, File> files;
  for (const auto& [name, source] : from.files_) {
    if (name == from.pending_remove_ && rng->OneIn(2)) continue;
    File& file = files[name];
    file.bytes = source.bytes;
    std::vector<Write> in_flight;
    for (const Op& op : from.ops_) {
      if (op.kind == IoKind::kWrite && op.name == name && !op.orphan && op.result == 0) {
        in_flight.push_back({0, op.offset / kPage, op.pages});
      }
    }
    std::vector<const Write*> writes;
    if (mode.has_value()) {
      file.durable = source.durable;
      for (const Write& write : source.unsynced) writes.push_back(&write);
    } else {
      file.durable = source.cached;
    }
    for (const Write& write : in_flight) writes.push_back(&write);
    if (!writes.empty()) Survive(&file, writes, mode.value_or(CrashMode::kDrop), rng);
    file.cached = file.durable;
  }
  if (!from.pending_create_.empty() && !rng->OneIn(3)) {
    const bool whole = rng->OneIn(2);
    files[from.pending_create_].bytes =
        whole ? from.pending_bytes_ : rng->Below(from.pending_bytes_ + 1);
  }
  files_ = std::move(files);
}

std::unique_ptr<SimDisk> SimDisk::CrashedCopy(CrashMode mode, uint64_t seed,
                                              ManualClock* clock) const {
  SimDiskOptions options = options_;
  options.seed = seed;
  options.clock = clock;
  auto copy = std::make_unique<SimDisk>(options);
  TestRng rng(seed ^ 0xC5A54);
  copy->CopyFiles(*this, mode, &rng);
  return copy;
}

std::unique_ptr<SimDisk> SimDisk::KilledCopy(uint64_t seed, ManualClock* clock) const {
  SimDiskOptions options = options_;
  options.seed = seed;
  options.clock = clock;
  auto copy = std::make_unique<SimDisk>(options);
  TestRng rng(seed ^ 0xC5A54);
  copy->CopyFiles(*this, std::nullopt, &rng);
  return copy;
}

void SimDisk::Crash(CrashMode mode, uint64_t seed) {
  TestRng rng(seed ^ 0xC5A54);
  CopyFiles(*this, mode, &rng);
  handles_.clear();
  for (Op& op : ops_) op.orphan = true;
  off_ = true;
}

void SimDisk::ClearFaults() {
  odds_ = {};
  rules_.clear();
  failing_creates_ = 0;
}

uint64_t SimDisk::unsynced_writes() const {
  uint64_t count = 0;
  for (const auto& [name, file] : files_) count += file.unsynced.size();
  return count;
}

// --- the medium ---------------------------------------------------------------------------------

uint64_t SimDisk::FileBytes(const std::string& name) const {
  auto it = files_.find(name);
  return it == files_.end() ? 0 : it->second.bytes;
}

std::vector<std::byte> SimDisk::ReadRaw(const std::string& name, uint64_t offset,
                                        uint64_t bytes) const {
  std::vector<std::byte> content(bytes);
  auto it = files_.find(name);
  if (it == files_.end()) return content;
  for (uint64_t done = 0; done < bytes;) {
    const uint64_t at = offset + done;
    const uint64_t count = std::min(kPage - at % kPage, bytes - done);
    const PageRef page = Find(it->second.cached, at / kPage);
    if (page != nullptr) std::memcpy(content.data() + done, page->bytes + at % kPage, count);
    done += count;
  }
  return content;
}

void SimDisk::WriteRaw(const std::string& name, uint64_t offset, std::span<const std::byte> bytes) {
  File& file = files_[name];
  for (uint64_t done = 0; done < bytes.size();) {
    const uint64_t at = offset + done;
    const uint64_t count = std::min<uint64_t>(kPage - at % kPage, bytes.size() - done);
    const PageRef old = Find(file.cached, at / kPage);
    auto page = old == nullptr ? std::make_shared<Page>() : std::make_shared<Page>(*old);
    std::memcpy(page->bytes + at % kPage, bytes.data() + done, count);
    file.cached[at / kPage] = page;
    file.durable[at / kPage] = page;
    done += count;
  }
  file.bytes = std::max(file.bytes, offset + bytes.size());
}

void SimDisk::FlipBit(const std::string& name, uint64_t bit) {
  std::vector<std::byte> one = ReadRaw(name, bit / 8, 1);
  one[0] ^= std::byte{1} << (bit % 8);
  WriteRaw(name, bit / 8, one);
}

void SimDisk::Truncate(const std::string& name, uint64_t bytes) {
  auto it = files_.find(name);
  if (it == files_.end()) return;
  File& file = it->second;
  const uint64_t whole = RoundUp(bytes, kPage) / kPage;
  for (PageMap* pages : {&file.cached, &file.durable, &file.previous}) {
    absl::erase_if(*pages, [&](const auto& entry) { return entry.first >= whole; });
  }
  file.bytes = bytes;
}

}  // namespace flexkv
