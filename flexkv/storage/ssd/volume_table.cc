#include "flexkv/storage/ssd/volume_table.h"

#define XXH_INLINE_ALL
#include <xxhash.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "flexkv/base/units.h"

namespace flexkv {
namespace {

constexpr char kMagic[8] = {'F', 'K', 'V', 'V', 'O', 'L', 'U', 'M'};
constexpr uint32_t kFormat = 1;
constexpr uint64_t kSmallUnits = 16;
constexpr uint64_t kMaxUnits = 1ull << 40;  // so that bytes of any run fit 63 bits

struct Header {
  char magic[8];
  uint64_t checksum;  // of all that follows, up to the last entry's page
  uint32_t format;
  uint32_t files;
  uint64_t sequence;
  std::array<uint8_t, 16> id;
  uint64_t device_units;
  uint8_t reserved[kVolumePage - 56];
};
static_assert(sizeof(Header) == kVolumePage);

struct Entry {
  char name[kMaxVolumeName + 1];
  uint64_t first_unit;
  uint64_t units;
  uint64_t bytes;
  char magic[8];  // a sector of entries without their header is still known for ours
  uint64_t reserved[4];
};
static_assert(sizeof(Entry) == 128);
static_assert(kVolumePage + kMaxVolumeFiles * sizeof(Entry) <= kVolumeCopyBytes);

constexpr size_t kCovered = offsetof(Header, format);

uint64_t ChecksumOf(std::span<const std::byte> bytes) {
  return XXH3_64bits_withSeed(bytes.data() + kCovered, bytes.size() - kCovered, 0x766f6c756d65);
}

using Run = std::pair<uint64_t, uint64_t>;  // first unit, units

bool IsZero(std::span<const std::byte> bytes) {
  return std::all_of(bytes.begin(), bytes.end(), [](std::byte b) { return b == std::byte{0}; });
}

bool ParseEntry(const Entry& entry, uint64_t device_units, VolumeFile* file) {
  const size_t length = strnlen(entry.name, sizeof(entry.name));
  file->name.assign(entry.name, length);
  file->first_unit = entry.first_unit;
  file->units = entry.units;
  file->bytes = entry.bytes;
  const auto zero = [](auto value) { return value == 0; };
  return VolumeNameIsValid(file->name) &&
         std::all_of(entry.name + length, entry.name + sizeof(entry.name), zero) &&
         std::all_of(std::begin(entry.reserved), std::end(entry.reserved), zero) &&
         std::memcmp(entry.magic, kMagic, sizeof(kMagic)) == 0 &&
         entry.first_unit >= kVolumeFirstUnit && entry.units > 0 && entry.bytes > 0 &&
         entry.first_unit <= device_units && entry.units <= device_units - entry.first_unit &&
         entry.bytes <= entry.units * kVolumeUnit && entry.bytes > (entry.units - 1) * kVolumeUnit;
}

// The first write of a copy may be cut short before its header: its entries alone are there then.
VolumeTableState JudgeWithoutHeader(std::span<const std::byte> copy) {
  if (!IsZero(copy.first(kVolumePage))) return VolumeTableState::kForeign;
  bool blank = true;
  for (size_t at = kVolumePage; at + sizeof(Entry) <= copy.size(); at += sizeof(Entry)) {
    const std::span<const std::byte> entry = copy.subspan(at, sizeof(Entry));
    if (IsZero(entry)) continue;
    blank = false;
    if (std::memcmp(entry.data() + offsetof(Entry, magic), kMagic, sizeof(kMagic)) != 0) {
      return VolumeTableState::kForeign;
    }
  }
  return blank ? VolumeTableState::kBlank : VolumeTableState::kDamaged;
}

std::vector<Run> RunsOf(const VolumeTable& table) {
  std::vector<Run> runs;
  for (const VolumeFile& file : table.files) runs.emplace_back(file.first_unit, file.units);
  std::sort(runs.begin(), runs.end());
  return runs;
}

// No two files in one place, or of one name.
bool FilesAreApart(const VolumeTable& table) {
  uint64_t end = kVolumeFirstUnit;
  for (const auto& [first, units] : RunsOf(table)) {
    if (first < end) return false;
    end = first + units;
  }
  std::vector<std::string> names;
  for (const VolumeFile& file : table.files) names.push_back(file.name);
  std::sort(names.begin(), names.end());
  return std::adjacent_find(names.begin(), names.end()) == names.end();
}

}  // namespace

const VolumeFile* VolumeTable::Find(const std::string& name) const {
  const auto it = std::find_if(files.begin(), files.end(),
                               [&](const VolumeFile& file) { return file.name == name; });
  return it == files.end() ? nullptr : &*it;
}

bool VolumeNameIsValid(const std::string& name) {
  return !name.empty() && name.size() <= kMaxVolumeName && name != "." && name != ".." &&
         name != "lock" && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

uint64_t VolumeTableBytes(size_t files) {
  return kVolumePage + RoundUp(files * sizeof(Entry), kVolumePage);
}

void EncodeVolumeTable(const VolumeTable& table, std::span<std::byte> out) {
  std::memset(out.data(), 0, out.size());
  Header header{};
  std::memcpy(header.magic, kMagic, sizeof(kMagic));
  header.format = kFormat;
  header.files = static_cast<uint32_t>(table.files.size());
  header.sequence = table.sequence;
  header.id = table.id;
  header.device_units = table.device_units;
  std::memcpy(out.data(), &header, sizeof(header));
  std::byte* at = out.data() + sizeof(header);
  for (const VolumeFile& file : table.files) {
    Entry entry{};
    std::memcpy(entry.name, file.name.data(), file.name.size());
    entry.first_unit = file.first_unit;
    entry.units = file.units;
    entry.bytes = file.bytes;
    std::memcpy(entry.magic, kMagic, sizeof(kMagic));
    std::memcpy(at, &entry, sizeof(entry));
    at += sizeof(entry);
  }
  header.checksum = ChecksumOf(out);
  std::memcpy(out.data() + offsetof(Header, checksum), &header.checksum, sizeof(header.checksum));
}

VolumeTableState ParseVolumeTable(std::span<const std::byte> copy, VolumeTable* table) {
  Header header;
  if (copy.size() < sizeof(header)) return VolumeTableState::kDamaged;
  std::memcpy(&header, copy.data(), sizeof(header));
  if (std::memcmp(header.magic, kMagic, sizeof(kMagic)) != 0) {
    return JudgeWithoutHeader(copy);
  }
  if (header.files > kMaxVolumeFiles) return VolumeTableState::kDamaged;
  const uint64_t bytes = VolumeTableBytes(header.files);
  if (bytes > copy.size() || header.checksum != ChecksumOf(copy.first(bytes))) {
    return VolumeTableState::kDamaged;
  }
  if (header.format != kFormat) return VolumeTableState::kOtherVersion;
  VolumeTable parsed{header.id, header.sequence, header.device_units, {}};
  const bool blank_rest = IsZero(std::as_bytes(std::span(header.reserved)));
  if (!blank_rest || header.sequence == 0 || header.device_units > kMaxUnits) {
    return VolumeTableState::kDamaged;
  }
  for (uint32_t i = 0; i < header.files; ++i) {
    Entry entry;
    std::memcpy(&entry, copy.data() + sizeof(header) + i * sizeof(entry), sizeof(entry));
    VolumeFile file;
    if (!ParseEntry(entry, header.device_units, &file)) return VolumeTableState::kDamaged;
    parsed.files.push_back(std::move(file));
  }
  if (!FilesAreApart(parsed)) return VolumeTableState::kDamaged;
  *table = std::move(parsed);
  return VolumeTableState::kGood;
}

uint64_t FindVolumeRun(const VolumeTable& table, std::span<const Run> taken, uint64_t units) {
  std::vector<Run> runs = RunsOf(table);
  runs.insert(runs.end(), taken.begin(), taken.end());
  runs.emplace_back(table.device_units, 0);  // the end
  std::sort(runs.begin(), runs.end());
  const bool small = units < kSmallUnits;
  uint64_t found = 0;
  uint64_t free = kVolumeFirstUnit;
  for (const auto& [first, used] : runs) {
    if (first > free && first - free >= units) {
      found = small ? first - units : free;
      if (!small) return found;
    }
    free = std::max(free, first + used);
  }
  return found;
}

}  // namespace flexkv
