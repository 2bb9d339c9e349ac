// Two copies that are written in turns, so that one is whole whatever happens. Both damaged is not
// the end: segments name their store themselves. A directory is only formatted where nothing of any
// store is in it.
#include <algorithm>
#include <random>

#include "absl/strings/str_cat.h"
#include "flexkv/storage/ssd/ssd_state.h"

namespace flexkv::ssd {
namespace {

struct Copy {
  const char* name = nullptr;
  uint64_t file_bytes = 0;
  bool exists = false;
  bool readable = false;  // else an I/O error
  SuperblockState state = SuperblockState::kBlank;
  Superblock superblock;
  uint32_t format = 0;

  bool good() const { return exists && readable && state == SuperblockState::kGood; }
};

absl::Status Explain(const absl::Status& status, absl::string_view what) {
  return absl::Status(status.code(), absl::StrCat(what, ": ", status.message()));
}

absl::StatusOr<Copy> ReadCopy(IoDriver* io, const char* name, const std::vector<DiskFile>& files) {
  Copy copy;
  copy.name = name;
  const auto file = std::find_if(files.begin(), files.end(),
                                 [&](const DiskFile& entry) { return entry.name == name; });
  if (file == files.end()) return copy;
  copy.exists = true;
  copy.file_bytes = file->bytes;
  const absl::StatusOr<FileId> id = io->disk()->Open(name);
  if (!id.ok()) return Explain(id.status(), name);
  PageBuffer page(1);
  // A file cut short is damage, not an error of the device.
  copy.readable = copy.file_bytes < kPageBytes || io->Read(*id, 0, page.span(0, 1)) ||
                  io->Read(*id, 0, page.span(0, 1));
  io->disk()->Close(*id);
  copy.state = copy.file_bytes < kPageBytes
                   ? SuperblockState::kDamaged
                   : ParseSuperblock(page.page(0), &copy.superblock, &copy.format);
  return copy;
}

absl::Status WriteCopy(StoreState* state, const char* name, bool in_place,
                       const Superblock& superblock) {
  IoDriver& io = state->io;
  if (!in_place) {
    const absl::Status removed = io.disk()->Remove(name);
    if (!removed.ok() && !absl::IsNotFound(removed)) return Explain(removed, name);
  }
  absl::StatusOr<FileId> file = absl::NotFoundError(name);
  if (in_place) file = io.disk()->Open(name);
  if (absl::IsNotFound(file.status())) file = io.disk()->Create(name, kPageBytes);
  if (!file.ok()) return Explain(file.status(), name);
  PageBuffer page(1);
  EncodeSuperblock(superblock, page.page(0));
  const bool written = io.Write(*file, 0, page.span(0, 1)) && state->SyncFile(*file);
  io.disk()->Close(*file);
  if (written) return absl::OkStatus();
  return absl::UnavailableError(absl::StrCat("cannot write ", name, ", error ", -io.last_error()));
}

// The store that a segment's file belongs to, from the file itself.
bool ReadOwner(IoDriver* io, const DiskFile& entry, bool is_log, StoreId* store, bool* error) {
  const absl::StatusOr<FileId> file = io->disk()->Open(entry.name);
  if (!file.ok()) return false;
  PageBuffer page(1);
  bool found = false;
  for (const uint64_t offset : {uint64_t{0}, entry.bytes / 2 / kPageBytes * kPageBytes}) {
    if (offset + kPageBytes > entry.bytes || found) continue;
    if (!io->Read(*file, offset, page.span(0, 1))) {
      *error = true;
      continue;
    }
    RegionHeader region;
    SlotHeader slot;
    if (is_log ? ParseRegionHeader(page.page(0), &region) : ParseSlotHeader(page.page(0), &slot)) {
      *store = is_log ? region.store : slot.store;
      found = true;
    }
  }
  io->disk()->Close(*file);
  return found;
}

struct Owner {
  bool found = false, error = false;
  StoreId store{};
  uint32_t segments = 0;
  uint32_t max_segment = 0;
};

Owner FindOwner(IoDriver* io, const std::vector<DiskFile>& files, bool read) {
  Owner owner;
  for (const bool logs : {true, false}) {
    for (const DiskFile& file : files) {
      uint32_t segment = 0;
      bool is_log = false;
      if (!ParseSegmentName(file.name, &segment, &is_log) || is_log != logs) continue;
      ++owner.segments;
      owner.max_segment = std::max(owner.max_segment, segment);
      if (!read || owner.found) continue;
      owner.found = ReadOwner(io, file, is_log, &owner.store, &owner.error);
    }
  }
  return owner;
}

// The format asks only for ids that are not equal.
StoreId NewStoreId() {
  std::random_device device;
  StoreId id;
  for (uint8_t& byte : id) byte = static_cast<uint8_t>(device());
  return id;
}

// No copy is good: whose files are these?
absl::StatusOr<Superblock> Reconstruct(StoreState* state, const Copy& a, const Copy& b,
                                       const std::vector<DiskFile>& files) {
  for (const Copy* copy : {&a, &b}) {
    if (copy->exists && !copy->readable) {
      return absl::UnavailableError(
          absl::StrCat("cannot read ", copy->name, ", error ", -state->io.last_error()));
    }
  }
  const Owner owner = FindOwner(&state->io, files, /*read=*/true);
  if (owner.found) return Superblock{owner.store, 1, owner.max_segment + 1};
  for (const Copy* copy : {&a, &b}) {
    if (copy->exists && copy->state == SuperblockState::kForeign) {
      return absl::FailedPreconditionError(
          absl::StrCat(copy->name, " is not a superblock of FlexKV"));
    }
  }
  if (owner.error) return absl::UnavailableError("no segment of the device can be read");
  if (state->options.read_only && !a.exists && !b.exists && owner.segments == 0) {
    return absl::NotFoundError("there is no store of FlexKV");
  }
  Superblock fresh{state->options.new_store_id, 1, 1};
  if (fresh.store == StoreId{}) fresh.store = NewStoreId();
  if (owner.segments > 0) fresh.next_segment = owner.max_segment + 1;
  return fresh;
}

absl::StatusOr<Superblock> Choose(StoreState* state, const Copy& a, const Copy& b,
                                  const std::vector<DiskFile>& files) {
  for (const Copy* copy : {&a, &b}) {
    if (copy->exists && copy->readable && copy->state == SuperblockState::kOtherVersion) {
      return absl::FailedPreconditionError(
          absl::StrCat(copy->name, " has format ", copy->format, ", this program reads ", kFormat));
    }
  }
  if (!a.good() && !b.good()) return Reconstruct(state, a, b, files);
  if (a.good() && b.good() && a.superblock.store != b.superblock.store) {
    return absl::FailedPreconditionError("superblock.a and superblock.b are of two stores");
  }
  const bool take_b = b.good() && (!a.good() || b.superblock.sequence > a.superblock.sequence);
  return take_b ? b.superblock : a.superblock;
}

}  // namespace

absl::Status OpenSuperblocks(StoreState* state, const std::vector<DiskFile>& files) {
  std::vector<Copy> copies;
  for (const char* name : kSuperblockNames) {
    absl::StatusOr<Copy> copy = ReadCopy(&state->io, name, files);
    if (!copy.ok()) return copy.status();
    copies.push_back(*copy);
  }
  absl::StatusOr<Superblock> chosen = Choose(state, copies[0], copies[1], files);
  if (!chosen.ok()) return chosen.status();
  const Owner owner = FindOwner(&state->io, files, /*read=*/false);
  if (owner.segments > 0) {
    chosen->next_segment = std::max(chosen->next_segment, owner.max_segment + 1);
  }
  state->superblock = *chosen;
  state->stats.bad_superblocks = static_cast<uint64_t>(
      std::count_if(copies.begin(), copies.end(), [](const Copy& copy) { return !copy.good(); }));
  if (state->options.read_only) return absl::OkStatus();
  int present = -1;
  for (int i = 0; i < 2; ++i) {
    const bool same = copies[i].good() && copies[i].superblock.sequence == chosen->sequence;
    if (same) present = i;
  }
  absl::Status failure;
  for (int i = 0; i < 2; ++i) {
    if (copies[i].good()) continue;
    // Where a copy cannot be repaired the other one has to do.
    const bool in_place = copies[i].exists && copies[i].file_bytes == kPageBytes;
    const absl::Status written = WriteCopy(state, copies[i].name, in_place, *chosen);
    if (written.ok() && present < 0) present = i;
    failure.Update(written);
  }
  if (present < 0) return failure;
  state->superblock_copy = present;
  return absl::OkStatus();
}

absl::Status UpdateSuperblock(StoreState* state, uint32_t next_segment) {
  Superblock next = state->superblock;
  ++next.sequence;
  next.next_segment = next_segment;
  const int target = 1 - state->superblock_copy;
  const absl::Status written = WriteCopy(state, kSuperblockNames[target], /*in_place=*/true, next);
  if (!written.ok()) return written;
  state->superblock = next;
  state->superblock_copy = target;
  return absl::OkStatus();
}

}  // namespace flexkv::ssd
